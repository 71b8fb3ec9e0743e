"""Cancellation: any task, at any await. Nothing leaks, nobody else is harmed, and the store stays usable."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from aiostore import (
    AppendCondition,
    ConcurrencyConflict,
    Event,
    EventStore,
    Limits,
    LiveProjection,
    Projection,
    ProjectionStopped,
    Query,
    StoreClosed,
    StreamAppend,
    Subscription,
)
from aiostore.engines.memory import MemoryEngine
from tests.conformance import ids
from tests.scheduler import turns, until
from tests.scheduler.cancelling import cancel_everywhere
from tests.scheduler.engines import THREAD, MakePlace, Place, plain_memory, restless_files, restless_memory
from tests.scheduler.loop import SeededLoop

NO_RING = Limits(ring_bytes_max=1)


@pytest.fixture(params=[plain_memory, restless_memory, restless_files], ids=lambda make: make.__name__)
def make_place(request: pytest.FixtureRequest) -> MakePlace:
    make: MakePlace = request.param
    return make


@pytest.fixture
def new_place(make_place: MakePlace, tmp_path: Path) -> Callable[[int], Place]:
    """A place for each number, without events; chance is the same in all of them."""
    return lambda number: make_place(random.Random(1), tmp_path / str(number), None)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A handler that is cancelled is logged; and to collect garbage often is quick only where there is little else."""
    caplog.set_level(logging.CRITICAL, logger="aiostore")
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@contextlib.asynccontextmanager
async def checked(place: Place, **options: Any) -> AsyncIterator[EventStore]:
    """A store that must be usable, dense and quiet behind the block, whatever was cancelled in it."""
    async with EventStore(place(), **options) as store:
        yield store
        first = await store.append("afterwards", "E", {})
        with pytest.raises(ConcurrencyConflict):
            await store.append("afterwards", "E", {}, expected_version=0)
        log = await store.read_all().to_list()
        assert ids(log) == list(range(1, first.event_id + 1))
        async with store.subscribe() as subscription:
            for event in log:
                assert await anext(subscription) == event
        assert "staged=0" in repr(store)
        assert "live subscriptions=0" in repr(store)
    assert {task.get_name() for task in asyncio.all_tasks()} == {"main"}
    gc.collect()  # what was left behind makes itself heard


def main(scenario: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, None]:
    """The scenario, in a task named ``main``."""

    async def run() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.set_name("main")
        await scenario

    return run()


def start(*coroutines: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
    """Tasks in a fresh context: not in the body of a loop, whatever starts them."""
    return [asyncio.create_task(coroutine, context=contextvars.Context()) for coroutine in coroutines]


async def ended(tasks: list[asyncio.Task[Any]]) -> list[asyncio.Task[Any]]:
    """Wait for all of the tasks; at most one was cancelled, and the others, which are returned, went well."""
    for task in tasks:
        await asyncio.wait([task])
    whole = [task for task in tasks if not task.cancelled()]
    assert len(tasks) - len(whole) <= 1
    for task in whole:
        task.result()
    return whole


# Appends


def test_an_append_cancelled_anywhere_harms_no_other(new_place: Callable[[int], Place]) -> None:
    async def single(store: EventStore) -> list[Event]:
        return [await store.append("a", "Single", {}, tags=("t",))]

    async def batch(store: EventStore) -> list[Event]:
        return await store.append_batch("b", [("Batch", {})] * 3, expected_version=0, idempotency_key="k")

    async def several(store: EventStore) -> list[Event]:
        parts = [StreamAppend(stream_id, [("Several", {})] * 2) for stream_id in "cd"]
        return await store.append_streams(parts, condition=AppendCondition(Query.where(types="Never")))

    async def refused(store: EventStore) -> list[Event]:
        with pytest.raises(ConcurrencyConflict):
            await store.append("a", "Refused", {}, expected_version=7)
        return []

    async def scenario(number: int) -> None:
        async with checked(new_place(number), limits=NO_RING) as store:
            await store.append_batch("before", [("E", {})] * 2)
            tasks = await ended(start(single(store), batch(store), several(store), refused(store), single(store)))
            log = await store.read_all().to_list()
            for task in tasks:
                for event in task.result():
                    assert log[event.event_id - 1] == event
            counts = [sum(event.event_type == name for event in log) for name in ("Single", "Batch", "Several")]
            assert counts[0] in (1, 2)
            assert counts[1] in (0, 3)
            assert counts[2] in (0, 4)
            # What may or may not be stored is retried with its key.
            retried = await batch(store)
            assert [event.version for event in retried] == [1, 2, 3]
            assert await store.stream_version("b") == 3

    names = cancel_everywhere(lambda number: main(scenario(number)))
    assert any("aiostore committer" in name for name in names)
    assert len(set(names)) > 3


def test_appends_that_are_held_back_are_unwritten_where_they_are_cancelled(new_place: Callable[[int], Place]) -> None:
    async def append(store: EventStore) -> None:
        await store.append("held", "E", {})

    async def scenario(number: int) -> None:
        async with checked(new_place(number)) as store:
            async with store.subscribe(on_slow="wait", queue_size=1) as subscription:
                await store.append("s", "E", {})
                await anext(subscription)
                await store.append_batch("s", [("E", {})] * 2)
                tasks = start(*(append(store) for _ in range(3)))
                for _ in range(60):  # long enough for each to be staged
                    await asyncio.sleep(0)
                given_up = sum(task.done() for task in tasks)
                assert await store.head() == 3
                for event_id in range(2, 7 - given_up):
                    assert (await anext(subscription)).event_id == event_id
                await ended(tasks)
            assert await store.stream_version("held") == 3 - given_up

    names = cancel_everywhere(lambda number: main(scenario(number)))
    assert any("append" in name for name in names)


# Subscriptions


@pytest.mark.parametrize("limits", [Limits(), NO_RING], ids=["ring", "no ring"])
@pytest.mark.parametrize("batches", [False, True], ids=["events", "batches"])
def test_a_step_cancelled_anywhere_loses_nothing(
    new_place: Callable[[int], Place], limits: Limits, batches: bool
) -> None:
    async def on_live(subscription: Subscription) -> None:
        await turns(2)

    async def read(subscription: Subscription, seen: list[int]) -> None:
        if batches:
            async for batch in subscription.batches(2):
                seen.extend(ids(batch))
        else:
            async for event in subscription:
                seen.append(event.event_id)  # noqa: PERF401

    async def append(store: EventStore) -> None:
        for _ in range(4):
            await store.append("s", "E", {})

    async def scenario(number: int) -> None:
        seen: list[int] = []
        async with checked(new_place(number), limits=limits) as store:
            for _ in range(3):
                await store.append_batch("s", [("E", {})] * 2)
            async with store.subscribe(queue_size=2, on_live=on_live) as subscription:
                reading = start(read(subscription, seen))
                appending = start(append(store))
                await asyncio.wait(appending)
                head = await store.head()
                await until(lambda: reading[0].done() or subscription.position == head)
                again = start(read(subscription, seen)) if reading[0].done() else []
                await until(lambda: subscription.position == head)
                await subscription.aclose()
                await ended([*reading, *appending, *again])
            assert seen == list(range(1, head + 1))

    names = cancel_everywhere(lambda number: main(scenario(number)))
    assert any("read" in name for name in names)


def test_a_reader_with_wait_cancelled_anywhere_lets_appends_go(new_place: Callable[[int], Place]) -> None:
    async def read(store: EventStore) -> None:
        async with store.subscribe(on_slow="wait", queue_size=1) as subscription:
            async for event in subscription:
                await turns(2)
                if event.stream_id == "s":
                    await store.append("echo", "E", {})
                if event.event_id == 8:
                    break

    async def append(store: EventStore) -> None:
        for _ in range(2):
            await store.append("s", "E", {})

    async def scenario(number: int) -> None:
        async with checked(new_place(number)) as store:
            tasks = start(append(store), read(store), append(store))
            await ended([tasks[0], tasks[2]])
            # Without the second appender's events the reader waits for more.
            while not tasks[1].done():
                await store.append("more", "E", {})
            await ended(tasks)
            assert asyncio.get_running_loop().time() < 5

    names = cancel_everywhere(lambda number: main(scenario(number)))
    assert any("read" in name for name in names)


# Listeners


def test_a_handler_cancelled_anywhere_harms_no_other(new_place: Callable[[int], Place]) -> None:
    async def append(store: EventStore) -> list[Event]:
        return [await store.append("s", "E", {}) for _ in range(2)]

    async def scenario(number: int) -> None:
        async with checked(new_place(number)) as store:
            quick: list[int] = []
            slow: list[int] = []

            async def handle_quickly(events: list[Event]) -> None:
                quick.extend(ids(events))

            async def handle_slowly(events: list[Event]) -> None:
                await turns(2)
                if events[0].stream_id == "s":
                    await store.append("echo", "E", {})
                slow.extend(ids(events))

            store.on_commit(handle_quickly)
            listener = store.on_commit(handle_slowly)
            last = store.on_commit(handle_quickly)
            for task in await ended(start(append(store), append(store))):
                for event in task.result():
                    assert quick.count(event.event_id) == 2
                    assert listener.closed or event.event_id in slow
            await store.append("last", "E", {})
            head = await store.head()
            assert quick == sorted([*range(1, head + 1)] * 2)
            assert slow == list(range(1, len(slow) + 1))
            assert len(slow) == head or isinstance(listener.error, asyncio.CancelledError)
            assert not last.closed

    names = cancel_everywhere(lambda number: main(scenario(number)))
    assert any("aiostore delivery" in name for name in names)


# Opening and closing


def test_closing_cancelled_anywhere_goes_on(new_place: Callable[[int], Place]) -> None:
    async def append(store: EventStore, stored: list[int]) -> None:
        with contextlib.suppress(StoreClosed):
            while True:
                stored.append((await store.append("s", "E", {})).event_id)

    async def follow(store: EventStore, **options: Any) -> None:
        with contextlib.suppress(StoreClosed):
            async with store.subscribe(**options) as subscription:
                async for _ in subscription:
                    await asyncio.sleep(0)

    async def close(store: EventStore) -> None:
        await turns(7)
        await store.aclose()

    async def handle(events: list[Event]) -> None:
        await turns(2)

    async def scenario(number: int) -> None:
        place = new_place(number)
        store = await EventStore.open(place())
        stored: list[int] = []
        store.on_commit(handle)
        tasks = start(
            append(store, stored),
            append(store, stored),
            follow(store),
            follow(store, on_slow="wait", queue_size=1),
            close(store),
            close(store),
        )
        await ended(tasks[4:])
        await ended(tasks)
        await store.aclose()
        with pytest.raises(StoreClosed):
            await store.append("s", "E", {})
        assert {task.get_name() for task in asyncio.all_tasks()} == {"main"}
        if not isinstance(place(), MemoryEngine):
            async with EventStore(place()) as again:
                assert set(stored) <= set(ids(await again.read_all().to_list()))

    names = cancel_everywhere(lambda number: main(scenario(number)))
    assert any("aiostore closing" in name for name in names)


def test_opening_cancelled_anywhere_leaves_nothing_held(new_place: Callable[[int], Place]) -> None:
    async def open_and_append(place: Place) -> None:
        async with EventStore(place()) as store:
            await store.append("s", "E", {})

    async def scenario(number: int) -> None:
        place = new_place(number)
        await ended(start(open_and_append(place)))
        await until(lambda: len(asyncio.all_tasks()) == 1)  # a cancelled aclose goes on in a task of its own
        if not isinstance(place(), MemoryEngine):
            async with checked(place):
                pass

    cancel_everywhere(lambda number: main(scenario(number)))


# All at once


def test_all_tasks_cancelled_at_once_at_any_moment_leave_a_usable_store(new_place: Callable[[int], Place]) -> None:
    # What `asyncio.run` does when a program ends or is interrupted.
    async def append(store: EventStore) -> None:
        while True:
            await store.append("s", "E", {})

    async def follow(store: EventStore, **options: Any) -> None:
        async with store.subscribe(**options) as subscription:
            async for event in subscription:
                if event.event_id % 3 == 0:
                    await store.append("echo", "E", {})

    async def handle(events: list[Event]) -> None:
        await turns(1)

    async def scenario(number: int, moment: int) -> None:
        async with checked(new_place(number), limits=NO_RING) as store:
            store.on_commit(handle)
            wait = follow(store, on_slow="wait", queue_size=2)
            tasks = start(append(store), append(store), follow(store), wait, follow(store, queue_size=1))
            await turns(moment)
            current = asyncio.current_task()
            for task in asyncio.all_tasks():
                if task is not current and task.get_name() != THREAD:
                    task.cancel()
            await asyncio.wait(tasks)
            assert all(task.cancelled() for task in tasks)

    for moment in range(60):
        SeededLoop().play(main(scenario(moment, moment)))


# Projections


def test_a_live_projection_killed_anywhere_agrees_with_a_replay(new_place: Callable[[int], Place]) -> None:
    """Its reader, its waiters, its snapshots, the delivery in its handlers; entering it again goes on."""

    def made(store: EventStore) -> LiveProjection[list[int]]:
        live: LiveProjection[list[int]] = LiveProjection("p", store, initial=list, snapshot_interval=2)

        @live.when("E")
        async def handle(state: list[int], event: Event) -> list[int]:
            await asyncio.sleep(0)
            if event.event_id == 3:
                await store.append("answers", "Answered", {}, idempotency_key="3")
            return [*state, event.event_id]

        return live

    async def project(live: LiveProjection[list[int]], store: EventStore) -> None:
        with contextlib.suppress(ProjectionStopped):  # the delivery was cancelled
            async with live:
                mine = await store.append("s", "E", {})
                if live.is_live:
                    assert mine.event_id in live.state
                await live.wait_for(mine.event_id)
                await live.save_snapshot()

    async def append(store: EventStore) -> None:
        for _ in range(2):
            await store.append_batch("s", [("E", {})] * 2)

    async def scenario(number: int) -> None:
        async with checked(new_place(number), limits=NO_RING) as store:
            await store.append_batch("s", [("E", {})] * 2)
            live = made(store)
            await ended(start(project(live, store), append(store)))
            assert len(live._waiters) == 0
            assert "listeners=0" in repr(store)
            wanted = ids(await store.read_all(query=Query.where(types="E")).to_list())
            assert live.state == [event_id for event_id in wanted if event_id <= live.position]
            again = made(store)
            for projection in (live, again):  # one goes on, the other begins from its snapshots
                async with projection:
                    assert projection.state == wanted

    names = cancel_everywhere(lambda number: main(scenario(number)))
    for part in ("project", "aiostore delivery", "aiostore committer"):
        assert any(part in name for name in names), (part, set(names))


def test_a_projection_killed_anywhere_goes_on_where_it_was(new_place: Callable[[int], Place]) -> None:
    def made(store: EventStore) -> Projection[int]:
        projection: Projection[int] = Projection("p", store, initial=lambda: 0, snapshot_interval=2)

        @projection.when("E")
        async def handle(count: int, event: Event) -> int:
            await asyncio.sleep(0)
            return count + 1

        return projection

    async def scenario(number: int) -> None:
        async with checked(new_place(number)) as store:
            await store.append_batch("s", [("E", {})] * 7)
            projection = made(store)
            await ended(start(projection.catch_up(), projection.catch_up(), projection.save_snapshot()))
            assert projection.state == projection.position
            again = made(store)
            for one in (projection, again):
                await one.catch_up()
                assert (one.state, one.position) == (7, 7)

    cancel_everywhere(lambda number: main(scenario(number)))
