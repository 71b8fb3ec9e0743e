"""Live readers of a store that is written: subscriptions, projections, the head file, idleness, the end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import shutil
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from aiostore import END, Event, EventStore, LiveProjection, Query, StoreClosed, StoreCorrupt, Subscription
from aiostore.engines.file import following
from aiostore.engines.file.disk import Disk, Watch
from aiostore.engines.file.engine import FileEngine
from tests.file.disks import MemoryDisk, WatchedRealDisk
from tests.file.driver import counted
from tests.file.followed import HandWritten
from tests.file.test_following import damaged

DEADLINE_S = 30.0
linux = pytest.mark.skipif(sys.platform != "linux", reason="inotify")


def reader_of(path: Any, disk: Disk | None = None, **options: Any) -> EventStore:
    return EventStore(FileEngine(path, mode="r", disk=disk, **options))


async def take(events: Subscription, count: int) -> list[int]:
    async with asyncio.timeout(DEADLINE_S):
        return [(await anext(events)).event_id for _ in range(count)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 (what others do is looked for)
            await asyncio.sleep(0.001)


@pytest.fixture
async def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where changes are not told of, one looks often."""
    monkeypatch.setattr(following, "POLL_SECONDS", 0.001)


@pytest.fixture
async def writer(tmp_path: Path) -> AsyncIterator[EventStore]:
    async with EventStore(tmp_path / "s") as store:
        await store.append("s", "T", {})
        yield store


# --- damage ---


@pytest.mark.usefixtures("quick")
async def test_those_who_follow_are_told_of_damage_when_they_get_there(caplog: pytest.LogCaptureFixture) -> None:
    log = HandWritten()
    log.write(counted(2))
    heard: list[int] = []

    async def hear(events: list[Event]) -> None:
        heard.extend(event.event_id for event in events)

    async with reader_of("/s", log.disk) as store:
        projection = LiveProjection[dict[str, int]]("p", store)
        projection.when("Counted", lambda state, event: state.update(n=event.event_id))
        listener = store.on_commit(hear)
        live, typed, end = (
            store.subscribe(),
            store.subscribe(query=Query.where(types="Counted")),
            store.subscribe(after=END),
        )
        async with projection, live, typed, end:
            assert await take(live, 2) == await take(typed, 2) == [1, 2]
            waiting = [asyncio.ensure_future(anext(each)) for each in (live, typed, end)]
            waits = asyncio.ensure_future(projection.wait_for(5))
            await asyncio.sleep(0)
            log.put(log.lines(counted(1), counted(1), counted(1)))
            offset = damaged(log, 4)
            log.say(5)
            assert [(await each).event_id for each in waiting] == [3, 3, 3]
            for each in (live, typed, end, live, store.subscribe(after=3), store.subscribe(after=END)):
                await told(lambda each=each: anext(each), offset)  # type: ignore[misc]
            await told(lambda: waits, offset)
            await told(lambda: projection.wait_for(4), offset)
            assert projection.state == {"n": 3}
            await projection.wait_for(3)
        assert heard == [3]
        assert isinstance(listener.error, StoreCorrupt)
        late = store.on_commit(hear)
        await until(lambda: late.closed)
        assert isinstance(late.error, StoreCorrupt)
        whole = store.subscribe()
        assert await take(whole, 3) == [1, 2, 3]
        await told(lambda: anext(whole), offset)
        await told(lambda: anext(aiter(store.subscribe(after=3).batches())), offset)
        async with LiveProjection[dict[str, int]]("later", store) as projection:
            await told(lambda: projection.wait_for(4), offset)
        assert await store.head() == 3
        assert [event.event_id for event in await store.read_all().to_list()] == [1, 2, 3]
    with pytest.raises(StoreClosed):
        await anext(whole)
    logged = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.getMessage() for record in logged if "nothing behind it is followed" in record.getMessage()]
    assert not [record for record in logged if record.levelno == logging.CRITICAL]


async def told(call: Callable[[], Awaitable[object]], offset: int) -> None:
    with pytest.raises(StoreCorrupt, match="checksum") as caught:
        async with asyncio.timeout(DEADLINE_S):
            await call()
    assert (caught.value.offset, caught.value.first_event_id, caught.value.last_event_id) == (offset, 4, 4)


@pytest.mark.usefixtures("quick")
async def test_a_slow_subscription_gets_all_before_the_damage() -> None:
    log = HandWritten()
    async with reader_of("/s", log.disk) as store, store.subscribe(queue_size=2) as events:
        for _ in range(20):
            log.write(counted(1))
        damaged(log, 20)
        await until(lambda: store._fanout.failure is not None)
        assert await take(events, 19) == list(range(1, 20))
        with pytest.raises(StoreCorrupt):
            await anext(events)
    assert log.disk.held == 0


async def test_damage_ends_the_workers_and_costs_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "POLL_SECONDS", 0)
    log = HandWritten()
    async with reader_of("/s", log.disk) as store:
        log.write(counted(1))
        damaged(log, 1)
        await until(lambda: store._fanout.failure is not None)
        tailer = store._committer._tailer
        assert tailer is not None
        await until(lambda: not tailer._watcher.running and not tailer._publisher.running)
        assert store._committer._failure is None


# --- the head file and the directory ---


@linux
async def test_a_head_file_that_is_deleted_and_made_anew(tmp_path: Path, writer: EventStore) -> None:
    async with EventStore(tmp_path / "s", mode="r") as reader, reader.subscribe() as events:
        assert await take(events, 1) == [1]
        assert await reader.head() == 1  # it has the file open by now
        (tmp_path / "s" / "head").unlink()
        await writer.append("s", "T", {})
        assert await take(events, 1) == [2]
        await writer.aclose()
        async with EventStore(tmp_path / "s") as next_writer:
            await next_writer.append("s", "T", {})
            assert await take(events, 1) == [3]
            assert await reader.head() == 3


@linux
async def test_a_head_file_that_is_missing_when_it_is_opened(
    tmp_path: Path, writer: EventStore, caplog: pytest.LogCaptureFixture
) -> None:
    await writer.append("s", "T", {})
    (tmp_path / "s" / "head").unlink()
    async with EventStore(tmp_path / "s", mode="r") as reader, reader.subscribe() as events:
        assert await take(events, 1) == [1]  # of which the next line says that it is durable
        await until(lambda: "head is missing" in caplog.text)
        await writer.aclose()
        async with EventStore(tmp_path / "s") as next_writer:
            assert await take(events, 1) == [2]
            await next_writer.append("s", "T", {})
            assert await take(events, 1) == [3]
    assert caplog.text.count("head is missing") == 1


@linux
async def test_a_directory_that_goes_and_comes_back(
    tmp_path: Path, writer: EventStore, caplog: pytest.LogCaptureFixture
) -> None:
    async with EventStore(tmp_path / "s", mode="r") as reader, reader.subscribe() as events:
        assert await take(events, 1) == [1]
        (tmp_path / "s").rename(tmp_path / "elsewhere")
        await writer.append("s", "T", {})
        await until(lambda: "head is missing" in caplog.text)
        assert await reader.head() == 1
        (tmp_path / "elsewhere").rename(tmp_path / "s")
        assert await take(events, 1) == [2]
        await writer.append("s", "T", {})
        assert await take(events, 1) == [3]


@linux
async def test_a_directory_that_is_deleted_and_another_store_in_its_place(
    tmp_path: Path, writer: EventStore, caplog: pytest.LogCaptureFixture
) -> None:
    async with EventStore(tmp_path / "s", mode="r") as reader, reader.subscribe() as events:
        assert await take(events, 1) == [1]
        await writer.aclose()
        step = asyncio.ensure_future(anext(events))
        shutil.rmtree(tmp_path / "s")
        await until(lambda: "head is missing" in caplog.text)
        async with EventStore(tmp_path / "s") as other:
            await other.append("s", "T", {})
            await other.append("s", "T", {})
            with pytest.raises(StoreCorrupt, match="another store"):
                await step


# --- being told of changes, or not ---


class Untold(Disk):
    """A system that does not tell of changes."""

    def __init__(self, why: int) -> None:
        self.why = why

    def watch(self, directory: str, path: str) -> Watch | None:
        if self.why:
            raise OSError(self.why, os.strerror(self.why))
        return None


@pytest.mark.parametrize("why", [0, errno.ENOSPC, errno.EMFILE, errno.EACCES])
async def test_where_the_system_does_not_tell_of_changes_it_looks_for_them(
    why: int, tmp_path: Path, writer: EventStore, caplog: pytest.LogCaptureFixture
) -> None:
    async with reader_of(tmp_path / "s", Untold(why)) as reader, reader.subscribe() as events:
        for number in range(1, 4):
            assert await take(events, 1) == [number]
            await writer.append("s", "T", {})
        assert await take(events, 1) == [4]
        await writer.aclose()
        (tmp_path / "s" / "head").unlink()
        async with EventStore(tmp_path / "s") as next_writer:
            await next_writer.append("s", "T", {})
            assert await take(events, 1) == [5]
    reasons = [record.getMessage() for record in caplog.records if "is looked at every 0.1 s" in record.getMessage()]
    assert len(reasons) == 1
    assert (os.strerror(why) if why else "does not tell") in reasons[0]


async def test_on_a_network_file_system_it_looks_by_itself(tmp_path: Path, writer: EventStore) -> None:
    disk = WatchedRealDisk()
    async with reader_of(tmp_path / "s", disk, force_network=True) as reader, reader.subscribe() as events:
        await writer.append("s", "T", {})
        assert await take(events, 2) == [1, 2]
    assert "watch" not in disk.calls.made


@linux
async def test_an_idle_follower_calls_nothing(tmp_path: Path, writer: EventStore) -> None:
    """It is woken by a write, and then looks a bounded number of times, however many wait."""
    disk = WatchedRealDisk()
    async with reader_of(tmp_path / "s", disk) as reader, contextlib.AsyncExitStack() as stack:
        subscriptions = [await stack.enter_async_context(reader.subscribe(after=END)) for _ in range(50)]
        waiting = [asyncio.ensure_future(anext(each)) for each in subscriptions]
        for number in range(2, 30):
            await writer.append("s", "T", {})
            assert [event.event_id for event in await asyncio.gather(*waiting)] == [number] * 50
            waiting = [asyncio.ensure_future(anext(each)) for each in subscriptions]
        await until(lambda: not reader_busy(reader))
        made = len(disk.calls.made)
        wakes = count_wakes()
        await asyncio.sleep(0.3)
        assert len(disk.calls.made) == made
        assert wakes() <= 3, "those of this test"
        await writer.append("s", "T", {})
        await asyncio.gather(*waiting)
        await until(lambda: not reader_busy(reader))
        assert len(disk.calls.made) - made <= 12


def follower_of(store: EventStore) -> following.Follower:
    engine = store._engine
    assert isinstance(engine, FileEngine)
    return engine._following()


def reader_busy(store: EventStore) -> bool:
    tailer = store._committer._tailer
    assert tailer is not None
    return tailer._publisher.running or not follower_of(store)._told._waiters


def count_wakes() -> Callable[[], int]:
    """Tells how often the loop was woken since."""
    loop: Any = asyncio.get_running_loop()
    count = 0
    select = loop._selector.select

    def counting(timeout: float | None = None) -> Any:
        nonlocal count
        count += 1
        return select(timeout)

    loop._selector.select = counting

    def stop() -> int:
        del loop._selector.select
        return count

    return stop


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
        await anext(reader.subscribe())
        engine = reader._engine
        assert isinstance(engine, FileEngine)
        engines.append(engine)

    engines: list[FileEngine] = []
    asyncio.run(main())
    before = open_files()
    follower = engines[0]._following()
    follower.close()
    follower.close()
    assert open_files() < before


# --- others ---


async def test_many_followers_in_the_writers_own_process(tmp_path: Path, writer: EventStore) -> None:
    async with contextlib.AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(reader_of(tmp_path / "s")) for _ in range(8)]
        seen: list[list[int]] = [[] for _ in readers]

        async def follow(number: int) -> None:
            async for event in readers[number].subscribe():
                seen[number].append(event.event_id)
                if event.event_id == 601:
                    return

        following = [asyncio.ensure_future(follow(number)) for number in range(len(readers))]
        for _ in range(20):
            await asyncio.gather(*(writer.append(f"s-{n % 7}", "T", {}) for n in range(30)))
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*following)
        assert all(each == list(range(1, 602)) for each in seen)


@pytest.mark.usefixtures("quick")
async def test_a_live_projection_follows_another_process() -> None:
    log = HandWritten(MemoryDisk())
    async with reader_of("/s", log.disk) as store:
        counts = LiveProjection[dict[str, int]]("counts", store, snapshot_interval=1)
        counts.when("Counted", lambda state, event: state.update({event.stream_id: event.version}))
        async with counts:
            for _ in range(10):
                log.write(counted(3), counted(2, "t"))
            assert await counts.catch_up() == 50
            assert counts.state == {"s": 30, "t": 20}
            log.write(counted(1))
            await counts.wait_for(51, timeout=DEADLINE_S)
            assert counts.state["s"] == 31
