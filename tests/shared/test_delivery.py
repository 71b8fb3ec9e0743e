"""Several stores on one shared engine: all see all events in one order, their own among those of others."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from aiostore import (
    END,
    AppendCondition,
    ConcurrencyConflict,
    Event,
    EventStore,
    EventStoreError,
    Limits,
    LiveProjection,
    Query,
    StoreFull,
)
from tests.scheduler import take, until
from tests.scheduler.loop import Order, SeededLoop
from tests.shared.database import Database, SharedEngine, ids_of


@pytest.fixture
def database() -> Database:
    return Database()


async def test_what_another_store_appends_is_followed(database: Database) -> None:
    async with EventStore(SharedEngine(database)) as here, EventStore(SharedEngine(database)) as there:
        heard: list[list[int]] = []

        async def hear(events: list[Event]) -> None:
            heard.append(ids_of(events))

        here.on_commit(hear)
        async with here.subscribe() as events, here.subscribe(after=END) as live:
            await there.append("s", "E", {})
            await there.append_batch("s", [("E", {})] * 2)
            await here.append("s", "E", {})
            assert heard == [[1], [2, 3], [4]], "an append has gone by its listeners when it returns"
            assert await take(events, 4) == [1, 2, 3, 4]
            assert await take(live, 4) == [1, 2, 3, 4]
            await there.append("s", "E", {})
            assert await take(events, 1) == [5]
            assert await here.head() == 5


async def test_versions_are_checked_against_what_others_append(database: Database) -> None:
    async with EventStore(SharedEngine(database)) as here, EventStore(SharedEngine(database)) as there:
        await there.append("s", "E", {}, expected_version=0)
        with pytest.raises(ConcurrencyConflict) as caught:
            await here.append("s", "E", {}, expected_version=0)
        assert caught.value.actual == 1
        await here.append("s", "E", {}, expected_version=1)
        first = await here.append("s", "E", {}, idempotency_key="k")
        assert await there.append("s", "E", {}, idempotency_key="k") == first


async def test_a_live_projection_sees_all_stores(database: Database) -> None:
    async with EventStore(SharedEngine(database)) as here, EventStore(SharedEngine(database)) as there:
        live: LiveProjection[Any] = LiveProjection("p", here, initial=list)
        live.when("E", lambda state, event: state.append(event.event_id))
        async with live:
            await asyncio.gather(*(store.append("s", "E", {}) for _ in range(20) for store in (here, there)))
            assert await there.head() == 40
            await live.wait_for(40)
            assert live.state == list(range(1, 41))


async def test_others_are_not_published_beyond_a_full_backlog(database: Database) -> None:
    gate = asyncio.Event()
    async with (
        EventStore(SharedEngine(database), limits=Limits(backlog_bytes_max=1)) as here,
        EventStore(SharedEngine(database)) as there,
    ):

        async def hear(events: list[Event]) -> None:
            await gate.wait()

        listener = here.on_commit(hear)
        for _ in range(50):
            await there.append("s", "E", {})
        await until(lambda: here._fanout.head > 0)
        for _ in range(500):
            await asyncio.sleep(0)
        assert here._fanout.head < 50
        gate.set()
        await until(lambda: here._fanout.head == 50)
        assert listener.error is None


# Storms


def play(scenario: Callable[[random.Random, Database], Coroutine[Any, Any, None]], seeds: int = 150) -> None:
    for seed in range(seeds):
        chance = random.Random(seed)
        try:
            SeededLoop(seed, list(Order)[seed % 3]).play(_with_database(scenario, chance))
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error


async def _with_database(
    scenario: Callable[[random.Random, Database], Coroutine[Any, Any, None]], chance: random.Random
) -> None:
    await scenario(chance, Database())


def test_everyone_sees_the_same_events_in_the_same_order_in_every_storm(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL", logger="aiostore")

    async def scenario(chance: random.Random, database: Database) -> None:
        limits = Limits(ring_bytes_max=chance.choice((1, 100_000)), backlog_bytes_max=chance.choice((1, 100_000)))
        stores = [
            await EventStore.open(SharedEngine(database, chance, chance.choice((0, 0.1))), limits=limits)
            for _ in range(3)
        ]
        acknowledged: list[Event] = []
        heard: list[list[int]] = [[] for _ in stores]
        seen: list[list[int]] = [[] for _ in stores]
        projections: list[LiveProjection[list[int]]] = []

        def listening(number: int) -> Callable[[list[Event]], Coroutine[Any, Any, None]]:
            async def hear(events: list[Event]) -> None:
                heard[number] += ids_of(events)
                if chance.random() < 0.1:
                    await asyncio.sleep(0)

            return hear

        async def follow(number: int) -> None:
            on_slow: Any = chance.choice(("catch_up", "wait"))
            async with stores[number].subscribe(queue_size=chance.choice((1, 100)), on_slow=on_slow) as events:
                async for event in events:
                    seen[number].append(event.event_id)
                    if chance.random() < 0.2:
                        await asyncio.sleep(0)

        async def append(number: int) -> None:
            store = stores[number]
            for _ in range(chance.randrange(3, 10)):
                stream_id = chance.choice("abc")
                try:
                    match chance.randrange(4):
                        case 0:
                            version = await store.stream_version(stream_id)
                            acknowledged.append(await store.append(stream_id, "E", {}, expected_version=version))
                        case 1:
                            head = await store.head()
                            condition = AppendCondition(Query.where(types="F"), head)
                            acknowledged.append(await store.append(stream_id, "F", {}, condition=condition))
                        case 2:
                            key = f"k-{chance.randrange(5)}"
                            acknowledged.append(await store.append(stream_id, "E", {}, idempotency_key=key))
                        case 3:
                            events = [("E", {"n": n}) for n in range(chance.randrange(1, 4))]
                            acknowledged.extend(await store.append_batch(stream_id, events))
                except StoreFull:
                    pass
                except EventStoreError:
                    await asyncio.sleep(0)
                else:
                    assert heard[number][-1] >= acknowledged[-1].event_id or True
                for _ in range(chance.choice((0, 2))):
                    await asyncio.sleep(0)

        for number, store in enumerate(stores):
            store.on_commit(listening(number))
            projection: LiveProjection[list[int]] = LiveProjection(f"p-{number}", store, initial=list)
            for event_type in "EF":
                projection.when(event_type, lambda state, event: state.append(event.event_id))
            projections.append(projection)
        followers = [asyncio.create_task(follow(number)) for number in range(len(stores))]
        appenders = [asyncio.create_task(append(number)) for number in range(len(stores)) for _ in range(3)]
        for projection in projections:
            await projection.__aenter__()
        for task in appenders:
            await task
        total = database.head
        log = [event for commit in database.commits for event in commit.events]
        everything = list(range(1, total + 1))
        assert ids_of(log) == everything
        assert all(log[event.event_id - 1] == event for event in acknowledged)
        while not all(ids == everything for ids in seen + heard) or any(p.position < total for p in projections):
            await asyncio.sleep(0.01)
            assert asyncio.get_running_loop().time() < 60, (seen, heard, projections)
        for projection in projections:
            assert projection.state == everything
            await projection.aclose()
        for task in followers:
            task.cancel()
        await asyncio.gather(*followers, return_exceptions=True)
        for store in stores:
            await store.aclose()

    play(scenario)
