"""Several stores on one shared engine: all see all events in one order, their own among those of others."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from typing import Any

import pytest

from aiostore import END, ConcurrencyConflict, EngineUnavailable, Event, EventStore, Limits, LiveProjection
from tests.conformance import ids
from tests.scheduler import take, until
from tests.scheduler.loop import Order, SeededLoop
from tests.shared.database import Database, SharedEngine
from tests.shared.storm import rage

SEEDS = 400 if os.environ.get("CI") == "true" else 100


@pytest.fixture
def database() -> Database:
    return Database()


async def test_what_another_store_appends_is_followed(database: Database) -> None:
    async with EventStore(SharedEngine(database)) as here, EventStore(SharedEngine(database)) as there:
        heard: list[list[int]] = []

        async def hear(events: list[Event]) -> None:
            heard.append(ids(events))

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


async def test_a_subscription_in_its_history_outlives_an_outage(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = SharedEngine(database)
    async with EventStore(engine, limits=Limits(ring_bytes_max=1)) as store:
        await store.append_batch("s", [("E", {})] * 3)
        await store.append("s", "E", {})
        outages = iter([True, True, False])
        read = engine.read

        async def sometimes(*arguments: Any) -> Any:
            if next(outages, False):
                raise EngineUnavailable("away")
            return await read(*arguments)

        monkeypatch.setattr(engine, "read", sometimes)
        async with store.subscribe() as events:
            assert await take(events, 4) == [1, 2, 3, 4]
        assert caplog.text.count("cannot read on now") == 2


@pytest.mark.parametrize("chunk", range(5))
def test_everyone_sees_the_same_events_in_the_same_order_in_every_storm(
    chunk: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, logger="aiostore")
    for seed in range(chunk, SEEDS, 5):
        try:
            SeededLoop(seed, list(Order)[seed % 3]).play(rage(random.Random(seed)))
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
    assert not caplog.records
