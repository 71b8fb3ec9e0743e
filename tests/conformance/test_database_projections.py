"""Projections into a database: state and position in one transaction, so that no event is missed or counted twice."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aiostore import (
    Checkpoint,
    DatabaseProjection,
    Event,
    EventStore,
    InvalidEvent,
    ProjectionConflict,
    ProjectionStopped,
    Query,
    StoreClosed,
)
from aiostore.kept_projection import PASSED_EVENTS_MAX
from tests.conformance.targets import Down, MemoryTarget, Table
from tests.conftest import OpenStore
from tests.scheduler import running, until


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr("aiostore.kept_projection.BACKOFF_S", 0.001)
    caplog.set_level(logging.WARNING, logger="aiostore")
    return caplog


def noting(store: EventStore, target: MemoryTarget, name: str = "noted", **options: Any) -> DatabaseProjection[Table]:
    """A projection that inserts the event_ids of all events of type E."""
    projection = DatabaseProjection(name, store, target, **options)
    projection.when("E", lambda table, event: table.rows.append(event.event_id))
    return projection


async def append(store: EventStore, count: int, event_type: str = "E") -> None:
    await store.append_batch("s", [(event_type, {})] * count)


# What it takes


async def test_rows_and_position_are_committed_together(store: EventStore) -> None:
    await append(store, 250)
    target = MemoryTarget()
    projection = noting(store, target)
    assert (projection.position, projection.lag) == (0, 250)
    assert await projection.catch_up() == 250
    assert (projection.position, projection.lag, projection.error) == (250, 0, None)
    assert target.rows == list(range(1, 251))
    last = (await store.read_all(after=249).to_list())[0]
    assert target.checkpoints == {"noted": Checkpoint(250, last._timestamp)}
    assert target.commits_count == 3
    assert await projection.catch_up() == 0
    assert target.commits_count == 3


async def test_another_goes_on_where_the_first_was(store: EventStore) -> None:
    target = MemoryTarget()
    for count in (3, 0, 4):
        await append(store, count)
        projection = noting(store, target)
        assert await projection.catch_up() == count
    assert target.rows == list(range(1, 8))


async def test_batches_are_bounded_and_handlers_may_be_async(store: EventStore) -> None:
    await append(store, 7)
    target = MemoryTarget()
    projection = DatabaseProjection("p", store, target, batch_events=3)

    @projection.when("E")
    async def insert(table: Table, event: Event) -> None:
        await asyncio.sleep(0)
        table.rows.append(event.event_id)

    assert await projection.catch_up() == 7
    assert (target.rows, target.commits_count) == ([1, 2, 3, 4, 5, 6, 7], 3)


async def test_a_query_narrows_it_and_what_has_no_handler_costs_no_transaction(store: EventStore) -> None:
    target = MemoryTarget()
    projection = noting(store, target, query=Query.where(types=("E", "F")))
    for event_type in "FGEGF":
        await append(store, 1, event_type)
    assert await projection.catch_up() == 3
    assert (projection.position, target.rows, target.checkpoints["noted"].position) == (5, [3], 5)
    await append(store, 2, "F")
    await append(store, 2, "G")
    assert await projection.catch_up() == 2
    assert (projection.position, target.commits_count) == (9, 1)


async def test_the_position_is_kept_now_and_then_although_nothing_has_a_handler(store: EventStore) -> None:
    await store.append_batch("s", [("F", {})] * (PASSED_EVENTS_MAX + 1000))
    target = MemoryTarget()
    projection = noting(store, target, batch_events=1000)
    await projection.catch_up()
    assert target.checkpoints["noted"].position == PASSED_EVENTS_MAX
    assert await noting(store, target).catch_up() == 1000


# Where it stops


async def test_a_handler_that_raises_stops_it_at_that_event(store: EventStore) -> None:
    await append(store, 9)
    target = MemoryTarget()
    broken = {5, 7}
    projection = DatabaseProjection("p", store, target)

    @projection.when("E")
    def insert(table: Table, event: Event) -> None:
        table.rows.append(event.event_id)
        if event.event_id in broken:
            raise LookupError("mine")

    for _ in range(2):
        with pytest.raises(LookupError, match="mine") as caught:
            await projection.catch_up()
        assert projection.error is caught.value
        assert (projection.position, projection.lag, target.rows) == (4, 5, [1, 2, 3, 4])
        assert target.checkpoints["p"].position == 4
        assert "mine" in repr(projection)
    broken.remove(5)
    with pytest.raises(LookupError):
        await projection.catch_up()
    assert target.rows == [1, 2, 3, 4, 5, 6]
    broken.clear()
    assert await projection.catch_up() == 3
    assert (target.rows, projection.error) == (list(range(1, 10)), None)


async def test_a_first_event_that_fails_leaves_nothing(store: EventStore) -> None:
    await append(store, 3)
    target = MemoryTarget()
    projection = DatabaseProjection("p", store, target)

    @projection.when("E")
    async def insert(table: Table, event: Event) -> None:
        table.rows.append(event.event_id)
        raise LookupError

    with pytest.raises(LookupError):
        await projection.catch_up()
    assert (target.rows, target.checkpoints, projection.position) == ([], {}, 0)


async def test_an_answer_that_was_lost_counts_nothing_twice(store: EventStore) -> None:
    await append(store, 30)
    target = MemoryTarget()
    lost = iter([True, False, True, True, False])
    target.answer_is_lost = lambda: next(lost, False)
    projection = noting(store, target, batch_events=5)
    for _ in range(3):
        with pytest.raises(Down):
            await projection.catch_up()
    await projection.catch_up()
    assert target.rows == list(range(1, 31))


async def test_a_database_that_is_down_is_gone_on_with_when_it_is_up(store: EventStore) -> None:
    await append(store, 3)
    target = MemoryTarget()
    target.begin_fails = lambda: True
    projection = noting(store, target)
    with pytest.raises(Down):
        await projection.catch_up()
    assert isinstance(projection.error, Down)
    target.begin_fails = lambda: False
    assert await projection.catch_up() == 3


async def test_a_target_that_swallows_errors_is_told_so(store: EventStore) -> None:
    await append(store, 1)

    class Swallowing(MemoryTarget):
        @contextlib.asynccontextmanager
        async def begin(self) -> AsyncIterator[Table]:
            with contextlib.suppress(ProjectionConflict):
                async with super().begin() as transaction:
                    yield transaction

    target = Swallowing()
    projection = noting(store, target)
    target.checkpoints["noted"] = Checkpoint(0, "")  # a conflict
    projection._checkpoint, projection._loaded = None, True
    with pytest.raises(RuntimeError, match="must come out"):
        await projection.catch_up()


# Two at one target


async def test_of_two_at_one_target_the_loser_is_told_and_nothing_counts_twice(store: EventStore) -> None:
    target = MemoryTarget()
    first, second = noting(store, target, batch_events=3), noting(store, target, batch_events=3)
    await asyncio.gather(first.catch_up(), second.catch_up())
    await append(store, 10)
    outcomes = await asyncio.gather(first.catch_up(), second.catch_up(), return_exceptions=True)
    assert sum(isinstance(outcome, ProjectionConflict) for outcome in outcomes) == 1
    assert "another process runs it too" in str(first.error or second.error)
    assert target.rows == list(range(1, 11))
    await append(store, 2)
    loser, winner = (first, second) if first.error else (second, first)
    assert await loser.catch_up() == 2
    with pytest.raises(ProjectionConflict):
        await winner.catch_up()
    assert await winner.catch_up() == 0
    assert target.rows == list(range(1, 13))


async def test_two_that_follow_count_each_event_once(store: EventStore) -> None:
    target = MemoryTarget()
    async with noting(store, target) as first, noting(store, target) as second:
        for _ in range(20):
            await append(store, 1)
        await until(lambda: len(target.rows) == 20)
        await until(lambda: first.is_live != second.is_live)
        loser = first if not first.is_live else second
        with pytest.raises(ProjectionConflict):
            await loser.wait_for(30)
    assert target.rows == list(range(1, 21))


# A log that was set back


async def test_a_log_that_was_set_back_is_reported(open_store: OpenStore) -> None:
    target = MemoryTarget()
    first = await open_store()
    await append(first, 5)
    await noting(first, target).catch_up()
    shorter, grown = await open_store(), await open_store()
    await append(shorter, 3)
    await append(grown, 8)
    for store in (shorter, grown):
        projection = noting(store, target)
        with pytest.raises(ProjectionStopped, match=r"target is at event 5 of a log .* set back"):
            await projection.catch_up()
        with pytest.raises(ProjectionStopped, match="set back"):
            await projection.__aenter__()
        assert not projection.is_live
    assert target.rows == [1, 2, 3, 4, 5]


async def test_a_target_that_was_set_back_is_gone_on_with(store: EventStore) -> None:
    target = MemoryTarget()
    await append(store, 4)
    await noting(store, target).catch_up()
    rows, checkpoints = target.rows, target.checkpoints
    await append(store, 4)
    await noting(store, target).catch_up()
    target.rows, target.checkpoints = rows, checkpoints  # from a backup
    await noting(store, target).catch_up()
    assert target.rows == list(range(1, 9))


# Following


async def test_it_follows_and_wait_for_returns_when_it_is_committed(store: EventStore) -> None:
    await append(store, 500)
    target = MemoryTarget()
    async with noting(store, target) as projection:
        assert projection.is_live
        for _ in range(10):
            event = await store.append("s", "E", {})
            await projection.wait_for(event.event_id, timeout=30)
            assert target.rows == list(range(1, event.event_id + 1))
        await projection.wait_for(3)
        with pytest.raises(TimeoutError):
            await projection.wait_for(1000, timeout=0.001)
        assert len(projection._waiters) == 0
    assert not projection.is_live
    await append(store, 1)
    assert target.rows == list(range(1, 511))
    async with projection:
        await projection.wait_for(511)
    assert target.rows == list(range(1, 512))


async def test_what_does_not_match_moves_its_position(store: EventStore) -> None:
    async with noting(store, MemoryTarget(), query=Query.where(types="E")) as projection:
        event = await store.append("s", "F", {})
        await projection.wait_for(event.event_id, timeout=30)
        assert projection.position == event.event_id


async def test_a_slow_database_holds_no_append_up(store: EventStore) -> None:
    target, gate = MemoryTarget(), asyncio.Event()
    projection = DatabaseProjection("p", store, target)

    @projection.when("E")
    async def insert(table: Table, event: Event) -> None:
        await gate.wait()
        table.rows.append(event.event_id)

    async with projection:
        await append(store, 3)
        for _ in range(200):
            await append(store, 1)
        assert target.rows == []
        gate.set()
        await projection.wait_for(203)
        assert target.commits_count < 20


async def test_many_appenders_and_each_event_once_in_order(store: EventStore) -> None:
    target = MemoryTarget()

    async def appending(stream_id: str) -> None:
        for _ in range(20):
            await store.append(stream_id, "E", {})

    await append(store, 50)
    async with noting(store, target, batch_events=7) as projection:
        await asyncio.gather(*(appending(f"s-{n}") for n in range(10)))
        await projection.wait_for(250)
    assert target.rows == list(range(1, 251))


async def test_live_a_failure_is_tried_again_and_then_it_stops(
    store: EventStore, log: pytest.LogCaptureFixture
) -> None:
    target, fails = MemoryTarget(), 3

    def begin_fails() -> bool:
        nonlocal fails
        fails -= 1
        return fails >= 0

    target.begin_fails = begin_fails
    async with noting(store, target, attempts=4) as projection:
        await append(store, 2)
        await projection.wait_for(2)
        assert (target.rows, projection.error) == ([1, 2], None)
        assert log.text.count("tries again in") == 3
        fails = 10**6
        await append(store, 1)
        with pytest.raises(Down):
            await projection.wait_for(3)
        assert isinstance(projection.error, Down)
        assert not projection.is_live
        assert "is stopped" in log.text
        assert 10**6 - fails == 4
        with pytest.raises(Down):
            await projection.wait_for(3)
        fails = 0
        assert await projection.catch_up() == 1
        assert projection.is_live
        await append(store, 1)
        await projection.wait_for(4)
    assert target.rows == [1, 2, 3, 4]


async def test_live_a_handler_that_fails_stops_it_at_that_event(store: EventStore) -> None:
    target, broken = MemoryTarget(), True
    projection = DatabaseProjection("p", store, target, attempts=2)

    @projection.when("E")
    def insert(table: Table, event: Event) -> None:
        if broken and event.event_id == 4:
            raise LookupError("mine")
        table.rows.append(event.event_id)

    async with projection:
        await append(store, 6)
        with pytest.raises(LookupError, match="mine"):
            await projection.wait_for(6)
        assert (projection.position, target.rows) == (3, [1, 2, 3])
        broken = False
        await projection.catch_up()
        assert target.rows == [1, 2, 3, 4, 5, 6]


async def test_closing_during_a_backoff_is_quick(store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiostore.kept_projection.BACKOFF_S", 1000.0)
    target = MemoryTarget()
    target.begin_fails = lambda: True
    async with asyncio.timeout(60):
        async with noting(store, target) as projection:
            await append(store, 1)
            await until(lambda: projection.error is not None)
            await append(store, 1)
        with pytest.raises(Down):
            await projection.catch_up()


async def test_closing_waits_for_the_step_in_hand(store: EventStore) -> None:
    target, gate, begun = MemoryTarget(), asyncio.Event(), asyncio.Event()
    projection = DatabaseProjection("p", store, target)

    @projection.when("E")
    async def insert(table: Table, event: Event) -> None:
        begun.set()
        await gate.wait()
        table.rows.append(event.event_id)

    await projection.__aenter__()
    await append(store, 1)
    await begun.wait()
    waiting = asyncio.create_task(projection.wait_for(1))
    closing = asyncio.create_task(projection.aclose())
    async with running(waiting, closing):
        await asyncio.sleep(0)
        with pytest.raises(ProjectionStopped, match="closed"):
            await waiting
        assert not closing.done()
        gate.set()
        await closing
    assert target.rows == [1]
    await projection.aclose()


async def test_a_closed_store_ends_it(store: EventStore) -> None:
    target = MemoryTarget()
    async with noting(store, target) as projection:
        await append(store, 1)
        waiting = asyncio.create_task(projection.wait_for(100))
        await projection.wait_for(1)
        await store.aclose()
        with pytest.raises(StoreClosed):
            await waiting
        with pytest.raises(StoreClosed):
            await projection.catch_up()


async def test_waiting_where_it_would_wait_for_itself_is_refused(store: EventStore) -> None:
    projection = DatabaseProjection("p", store, MemoryTarget(), attempts=1)
    calls: list[Any] = [projection.catch_up, lambda: projection.wait_for(100)]

    @projection.when("E")
    async def insert(table: Table, event: Event) -> None:
        await calls[event.event_id - 1]()

    async with projection:
        await append(store, 2)
        with pytest.raises(RuntimeError, match="would wait for itself"):
            await projection.wait_for(2)
        calls[0] = projection.aclose
        with pytest.raises(RuntimeError, match="would wait for that handler"):
            await projection.catch_up()
        assert not projection.is_live
        assert projection.position == 1
    seen: list[BaseException] = []

    async def listen(events: list[Event]) -> None:
        try:
            await projection.wait_for(100)
        except RuntimeError as error:
            seen.append(error)

    store.on_commit(listen)
    await append(store, 1)
    assert len(seen) == 1


async def test_outside_of_its_block_there_is_nothing_to_wait_for(store: EventStore) -> None:
    await append(store, 1)
    projection = noting(store, MemoryTarget())
    with pytest.raises(ProjectionStopped, match="only within"):
        await projection.wait_for(1)
    await projection.catch_up()
    await projection.wait_for(1)
    async with projection:
        with pytest.raises(RuntimeError, match="already"):
            await projection.__aenter__()
        assert projection.is_live


# How it is made


async def test_bad_arguments_are_refused(store: EventStore) -> None:
    target = MemoryTarget()
    with pytest.raises(InvalidEvent, match="name"):
        DatabaseProjection("", store, target)
    with pytest.raises(TypeError, match="EventStore"):
        DatabaseProjection("p", {}, target)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="load, begin and save"):
        DatabaseProjection("p", store, {})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Query"):
        DatabaseProjection("p", store, target, query="E")  # type: ignore[arg-type]
    for option in ({"batch_events": 0}, {"attempts": 0}, {"attempts": True}):
        with pytest.raises(ValueError, match="must be an int"):
            DatabaseProjection("p", store, target, **option)
    projection = noting(store, target)
    with pytest.raises(ValueError, match="'E' already"):
        projection.when("E", print)
    with pytest.raises(TypeError, match="callable"):
        projection.when("F", 7)  # type: ignore[call-overload]
    for event_id in (-1, "3", None):
        with pytest.raises(ValueError, match="event_id"):
            await projection.wait_for(event_id)  # type: ignore[arg-type]
    await append(store, 1, "F")
    await projection.catch_up()
    with pytest.raises(RuntimeError, match=r"passed over .*'F' up to event 1"):
        projection.when("F", print)
    assert projection.name == "noted"
    assert repr(projection) == "<DatabaseProjection 'noted' position=1>"
