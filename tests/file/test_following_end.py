"""Readers that are closed, cancelled and forked in the midst of following."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aiostore import END, EventStore, StoreClosed
from aiostore.engines.file.engine import FileEngine
from tests.file.driver import counted
from tests.file.followed import HandWritten, reader_of, take, until

linux = pytest.mark.skipif(sys.platform != "linux", reason="inotify")


@pytest.fixture
async def writer(tmp_path: Path) -> AsyncIterator[EventStore]:
    async with EventStore(tmp_path / "s") as store:
        await store.append("s", "T", {})
        yield store


# --- the end ---


def open_files() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@linux
async def test_everything_is_closed_at_the_end(tmp_path: Path, writer: EventStore) -> None:
    for _ in range(2):  # the first time, a few things of the process itself are opened
        before, threads = open_files(), threading.active_count()
        readers = [reader_of(tmp_path / "s") for _ in range(5)]
        async with contextlib.AsyncExitStack() as stack:
            for reader in readers:
                await stack.enter_async_context(reader)
            events = [await stack.enter_async_context(reader.subscribe(after=END)) for reader in readers]
            for _ in range(3):
                appended = await writer.append("s", "T", {})
                for each in events:
                    assert await take(each, 1) == [appended.event_id]
        assert open_files() == before
        assert threading.active_count() == threads


async def test_closing_in_the_midst_of_whatever_it_does(tmp_path: Path, writer: EventStore) -> None:
    """After each number of steps of the loop; nothing is left, and nothing but StoreClosed is raised."""
    for steps in range(60):
        reader = await reader_of(tmp_path / "s").__aenter__()
        events = reader.subscribe(after=END)
        tasks: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(anext(events)),
            asyncio.ensure_future(reader.read_all().to_list()),
            asyncio.ensure_future(reader.head()),
        ]
        await writer.append("s", "T", {})
        for _ in range(steps):
            await asyncio.sleep(0)
        await reader.aclose()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert not isinstance(result, BaseException) or isinstance(result, StoreClosed), repr(result)


async def test_an_engine_that_closes_tells_those_who_wait_for_changes(tmp_path: Path, writer: EventStore) -> None:
    engine = FileEngine(tmp_path / "s", mode="r")
    await engine.open()
    waiting = [asyncio.ensure_future(engine.changed(1)) for _ in range(3)]
    await until(lambda: not engine._following()._runs_are_new)
    await engine.aclose()
    for each in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(each, StoreClosed)
    with pytest.raises(StoreClosed):
        await engine.changed(1)
    with pytest.raises(StoreClosed):
        await engine.commits_after(1)


@pytest.mark.parametrize("what", ["commits_after", "changed", "facts"])
async def test_cancelled_at_any_await_nothing_is_lost(what: str) -> None:
    """By the scheduler of the loop: the call is cancelled after each number of its steps."""
    from aiostore.engine import Question

    log = HandWritten()
    engine = FileEngine("/s", mode="r", disk=log.disk)
    await engine.open()
    position = 0
    for steps in range(1, 40):
        log.write(counted(1), counted(1))
        if steps % 3 == 0:
            log.roll()
        if what == "commits_after":
            call = asyncio.ensure_future(engine.commits_after(position))
        elif what == "changed":
            call = asyncio.ensure_future(engine.changed(position))  # type: ignore[arg-type]
        else:
            call = asyncio.ensure_future(engine.facts(Question(["s"])))  # type: ignore[arg-type]
        for _ in range(steps):
            await asyncio.sleep(0)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call
        while commits := await engine.commits_after(position):
            for commit in commits:
                for event in commit.events:
                    assert event == log.made[position]
                    position += 1
    assert position == len(log.made)
    await engine.aclose()
    assert log.disk.held == 0


async def test_cancelling_all_tasks_leaves_a_follower_that_follows(tmp_path: Path, writer: EventStore) -> None:
    async with reader_of(tmp_path / "s") as reader, reader.subscribe() as events:
        assert await take(events, 1) == [1]
        for steps in range(30):
            appended = await writer.append("s", "T", {})
            for _ in range(steps):
                await asyncio.sleep(0)
            tailer = reader._committer._tailer
            assert tailer is not None
            for worker in (tailer._watcher, tailer._publisher):
                worker.cancel()
            assert await take(events, 1) == [appended.event_id]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
async def test_a_forked_child_has_nothing_of_it_and_the_parent_goes_on(tmp_path: Path, writer: EventStore) -> None:
    async with reader_of(tmp_path / "s") as reader, reader.subscribe() as events:
        await writer.append("s", "T", {})
        assert await take(events, 2) == [1, 2]
        child = os.fork()
        if child == 0:
            try:
                held = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if fd.isdigit()]
            except OSError:
                held = []
            os._exit(any(str(tmp_path) in path or "inotify" in path for path in held))
        _, status = os.waitpid(child, 0)  # noqa: ASYNC222 (it only exits)
        assert os.waitstatus_to_exitcode(status) == 0
        await writer.append("s", "T", {})
        assert await take(events, 1) == [3]


def test_a_loop_that_ends_without_closing_leaves_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with EventStore(tmp_path / "s") as store:
            await store.append("s", "T", {})
        reader = await EventStore.open(tmp_path / "s", mode="r")
        events = reader.subscribe()
        await anext(events)
        engine = reader._engine
        assert isinstance(engine, FileEngine)
        engines.append(engine)
        await until(lambda: engine._following()._watch is not None)

    engines: list[FileEngine] = []
    asyncio.run(main())
    before = open_files()
    follower = engines[0]._following()
    follower.close()
    follower.close()
    assert open_files() < before
