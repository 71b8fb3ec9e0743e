"""Two things at once, in every order that a hundred seeds have."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from aiostore import END, ConcurrencyConflict, Event, EventStore, Limits, Query, StoreClosed
from tests.conformance import ids
from tests.scheduler import turns
from tests.scheduler.engines import MakePlace, plain_memory, restless_files, restless_memory
from tests.scheduler.loop import Order, SeededLoop

NO_RING = Limits(ring_bytes_max=1)

Play = Callable[[Callable[[EventStore, random.Random], Coroutine[Any, Any, None]]], None]


@pytest.fixture(params=[plain_memory, restless_memory, restless_files], ids=lambda make: make.__name__)
def play(request: pytest.FixtureRequest, tmp_path: Path) -> Play:
    """Plays a scenario over a store of eight events, by a hundred seeds."""
    make: MakePlace = request.param

    def play(scenario: Callable[[EventStore, random.Random], Coroutine[Any, Any, None]]) -> None:
        async def run(seed: int) -> None:
            chance = random.Random(seed)
            store = await EventStore.open(make(chance, tmp_path / str(seed), None)(), limits=NO_RING)
            for _ in range(4):
                await store.append_batch("s", [("E", {})] * 2)
            await scenario(store, chance)
            await store.aclose()

        for seed in range(100):
            SeededLoop(seed, list(Order)[seed % 3]).play(run(seed))

    return play


def test_a_subscription_that_is_closed_before_the_store_ends_quietly(play: Play) -> None:
    async def scenario(store: EventStore, chance: random.Random) -> None:
        subscription = store.subscribe(query=chance.choice((None, Query.where(types="never"))))
        seen: list[int] = []

        async def follow() -> None:
            async for event in subscription:
                seen.append(event.event_id)  # noqa: PERF401

        following = asyncio.create_task(follow())
        await turns(chance.randrange(12))
        await subscription.aclose()
        await turns(chance.randrange(3))
        await store.aclose()
        await following
        assert seen == list(range(1, len(seen) + 1))

    play(scenario)


def test_a_subscription_of_a_store_that_closes_raises_store_closed(play: Play) -> None:
    async def scenario(store: EventStore, chance: random.Random) -> None:
        seen: list[int] = []

        async def follow() -> None:
            async for batch in store.subscribe(queue_size=2).batches(chance.randrange(1, 4)):
                seen.extend(ids(batch))

        following = asyncio.create_task(follow())
        await turns(chance.randrange(12))
        await store.aclose()
        with pytest.raises(StoreClosed):
            await following
        assert seen == list(range(1, len(seen) + 1))

    play(scenario)


def test_a_read_that_the_closing_cuts_off_raises_store_closed(play: Play) -> None:
    async def scenario(store: EventStore, chance: random.Random) -> None:
        for _ in range(8):
            await store.append_batch("s", [("E", {"text": "x" * 1000})] * 3)  # over several segments, if they are small
        query = chance.choice((None, Query.where(types="E")))
        reader = store.read_all(query=query) if chance.randrange(2) else store.read_stream("s", backwards=True)
        reading = asyncio.create_task(reader.to_list())
        await turns(chance.randrange(12))
        await store.aclose()
        with contextlib.suppress(StoreClosed):
            assert len(await reading) == 32

    play(scenario)


def test_a_listener_gets_all_above_the_head_at_its_registration(play: Play) -> None:
    async def scenario(store: EventStore, chance: random.Random) -> None:
        heard: list[int] = []

        async def handle(events: list[Event]) -> None:
            heard.extend(ids(events))

        appending = [asyncio.create_task(store.append("s", "E", {})) for _ in range(5)]
        await turns(chance.randrange(12))
        head = await store.head()
        store.on_commit(handle, wait=chance.choice((True, False)))
        await asyncio.gather(*appending)
        await store.aclose()
        assert heard == list(range(head + 1, 14))

    play(scenario)


def test_end_is_the_head_when_the_block_is_entered(play: Play) -> None:
    async def scenario(store: EventStore, chance: random.Random) -> None:
        appending = [asyncio.create_task(store.append("s", "E", {})) for _ in range(5)]
        await turns(chance.randrange(12))
        async with store.subscribe(after=END, queue_size=chance.choice((1, 100))) as subscription:
            head = await store.head()
            await turns(chance.randrange(12))
            for event_id in range(head + 1, 14):
                assert (await anext(subscription)).event_id == event_id
        await asyncio.gather(*appending)

    play(scenario)


def test_one_of_many_wins_each_version(play: Play) -> None:
    async def scenario(store: EventStore, chance: random.Random) -> None:
        conflicts: list[ConcurrencyConflict] = []

        async def win(name: int) -> None:
            while True:
                version = await store.stream_version("prize")
                try:
                    event = await store.append("prize", "Won", {"by": name}, expected_version=version)
                except ConcurrencyConflict as conflict:
                    conflicts.append(conflict)
                else:
                    assert event.version == version + 1
                    return

        await asyncio.gather(*map(win, range(6)))
        events = await store.read_stream("prize").to_list()
        assert sorted(event.data["by"] for event in events) == list(range(6))
        assert [event.version for event in events] == list(range(1, 7))
        assert all(conflict.actual != conflict.expected for conflict in conflicts)

    play(scenario)
