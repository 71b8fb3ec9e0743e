"""A process that forks in the midst of a write, and one that dies while its child lives on."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aiostore import EventStore, StoreClosed, StoreLocked
from aiostore.engines.file.engine import FileEngine
from tests.file.disks import WatchedRealDisk
from tests.real.commands import ROOT

PARENT = """
import asyncio, os, sys
from aiostore import EventStore
async def main():
    async with EventStore(sys.argv[1]) as store:
        await store.append("s", "T", {"n": 1})
        if os.fork() == 0:
            print(os.getpid(), flush=True)
            sys.stdin.read()
            os._exit(0)
        await asyncio.sleep(3600)
asyncio.run(main())
"""


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
async def test_a_fork_while_a_write_is_in_the_thread(tmp_path: Path) -> None:
    disk = WatchedRealDisk()
    async with EventStore(FileEngine(tmp_path / "s", disk=disk)) as store:
        first = await store.append("s", "T", {"n": 1})
        with disk.calls.hold():
            append = asyncio.create_task(store.append("s", "T", {"n": 2}))
            await asyncio.to_thread(disk.calls.wait_until_held)
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    store.append("s", "T", {"n": 3}).send(None)
                except StoreClosed as error:
                    status = 0 if "process" in str(error) else 2
                finally:
                    os._exit(status)
            _, status = os.waitpid(child, 0)  # noqa: ASYNC222 (it only exits)
            assert os.waitstatus_to_exitcode(status) == 0
            assert not append.done()
        events = [first, await append, await store.append("s", "T", {"n": 4})]
        with pytest.raises(StoreLocked, match="this same process"):
            await EventStore.open(tmp_path / "s")
    async with EventStore(tmp_path / "s") as store:
        assert await store.read_all().to_list() == events
        assert [event.data["n"] for event in events] == [1, 2, 4]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
async def test_a_child_that_outlives_its_killed_parent_does_not_keep_the_store_locked(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PARENT, str(tmp_path / "s")]
    with subprocess.Popen(  # noqa: ASYNC220 (alone in this loop)
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as parent:
        try:
            assert parent.stdout is not None
            child = int(parent.stdout.readline())
        finally:
            parent.kill()
        parent.wait()
        os.kill(child, 0)  # it lives
        try:
            async with EventStore(tmp_path / "s") as store:
                assert [event.data["n"] for event in await store.read_all().to_list()] == [1]
                await store.append("s", "T", {"n": 2})
        finally:
            os.kill(child, signal.SIGKILL)
