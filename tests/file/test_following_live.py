"""Live readers of a store that is written: subscriptions, listeners, projections, and the damage that they meet."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from aiostore import END, Event, EventStore, LiveProjection, Query, StoreClosed, StoreCorrupt
from aiostore.engines.file import following
from tests.file.disks import MemoryDisk
from tests.file.driver import counted
from tests.file.followed import DEADLINE_S, HandWritten, reader_of, take, until
from tests.file.test_following import damaged


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
