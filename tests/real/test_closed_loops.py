"""A loop that ends in the midst of a commit: what was acknowledged is there, and there are never two writers."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from aiostore import EventStore
from aiostore.engines.file.engine import FileEngine
from tests.file.disks import WatchedRealDisk
from tests.real.commands import ROOT

STOPPED = """
import asyncio, os, sys
from aiostore import EventStore, StoreLocked
from aiostore.engines.file.engine import FileEngine
from tests.file.disks import WatchedRealDisk
path, then = sys.argv[1:]
disk = WatchedRealDisk()
loop = asyncio.new_event_loop()
store = loop.run_until_complete(EventStore.open(FileEngine(path, disk=disk)))
loop.run_until_complete(store.append("s", "T", {"n": 1}))
with disk.calls.hold():
    append = loop.create_task(store.append_batch("s", [("T", {"n": 2}), ("T", {"n": 3})]))
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    assert disk.calls.wait_until_held()
    loop.close()
    async def again():
        await EventStore.open(path)
    try:
        asyncio.run(again())  # the thread is still writing
    except StoreLocked as error:
        print(error.own, flush=True)
    if then == "dies in the midst":
        os._exit(0)
"""


@pytest.mark.parametrize("then", ["ends", "dies in the midst"])
async def test_a_loop_that_is_closed_in_mid_commit(tmp_path: Path, then: str) -> None:
    """Nobody can close that store any more: its process keeps the lock, to its end."""
    path = tmp_path / "s"
    done = subprocess.run(  # noqa: ASYNC221 (alone in this loop)
        [sys.executable, "-c", STOPPED, path, then], stdout=subprocess.PIPE, text=True, cwd=ROOT, timeout=60, check=True
    )
    assert done.stdout == "True\n"
    async with EventStore(path) as store:
        found = [event.data["n"] for event in await store.read_all().to_list()]
        assert found in ([1], [1, 2, 3])
        assert (await store.append("s", "T", {"n": 4})).event_id == len(found) + 1


def test_a_program_that_fails_in_mid_commit_leaves_no_lock(tmp_path: Path) -> None:
    disk = WatchedRealDisk()

    async def fail() -> None:
        async with EventStore(FileEngine(tmp_path / "s", disk=disk)) as store:
            await store.append("s", "T", {"n": 1})
            with disk.calls.hold():
                task = asyncio.create_task(store.append("s", "T", {"n": 2}))
                tasks.append(task)
                await asyncio.to_thread(disk.calls.wait_until_held)
                raise ZeroDivisionError

    async def again() -> list[int]:
        async with EventStore(tmp_path / "s") as store:
            return [event.data["n"] for event in await store.read_all().to_list()]

    tasks: list[asyncio.Task[object]] = []
    with pytest.raises(ZeroDivisionError):
        asyncio.run(fail())
    assert tasks[0].done()
    assert asyncio.run(again()) == [1, 2]
