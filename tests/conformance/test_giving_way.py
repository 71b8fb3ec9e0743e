"""The loop is never kept for long: whatever is read or stored, other tasks run between bounded steps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

import pytest

from aiostore import AppendCondition, AppendConditionFailed, EventStore, NewEvent, Query
from aiostore.engine import PAGE_EVENTS

EVENTS = 6_000
STEP_EVENTS = 2_000
"""So many events are looked at in one step at most, where they need not be handed out."""


class Heartbeat:
    """Counts how often the loop comes around to it."""

    def __init__(self) -> None:
        self.beats = 0

    async def beat(self) -> None:
        while True:
            self.beats += 1
            await asyncio.sleep(0)


@asynccontextmanager
async def heartbeat() -> AsyncIterator[Heartbeat]:
    """A task that would run all the time, beside what is done in the block."""
    heart = Heartbeat()
    task = asyncio.create_task(heart.beat())
    await asyncio.sleep(0)
    yield heart
    task.cancel()


@pytest.fixture
async def full(store: EventStore) -> EventStore:
    """Many events, of which the last few have another tag than the others."""
    events = [NewEvent("T", {"n": n}, tags=["rare" if n >= EVENTS - 3 else "usual"]) for n in range(EVENTS)]
    for start in range(0, EVENTS, 1000):
        await store.append_batch("s", events[start : start + 1000])
    return store


async def beats_during(work: Awaitable[object]) -> int:
    async with heartbeat() as heart:
        before = heart.beats
        await work
        return heart.beats - before


async def test_a_replay_gives_way_after_each_page(full: EventStore) -> None:
    async def replay() -> None:
        assert len([event.data async for event in full.read_all()]) == EVENTS

    assert await beats_during(replay()) >= EVENTS // PAGE_EVENTS
    assert await beats_during(full.read_all().to_list()) >= EVENTS // PAGE_EVENTS
    assert await beats_during(full.read_stream("s", backwards=True).to_list()) >= EVENTS // PAGE_EVENTS


async def test_a_search_that_finds_nothing_gives_way(full: EventStore) -> None:
    none = Query.where(stream_prefix="none")
    assert await beats_during(full.read_all(query=none).to_list()) >= EVENTS // STEP_EVENTS
    condition = AppendCondition(none)
    assert await beats_during(full.append("other", "T", {}, condition=condition)) >= EVENTS // STEP_EVENTS


async def test_a_condition_that_matches_late_is_found_all_the_same(full: EventStore) -> None:
    with pytest.raises(AppendConditionFailed) as caught:
        await full.append("other", "T", {}, condition=AppendCondition(Query.where(tags=["rare"])))
    assert caught.value.event_id == EVENTS - 2


async def test_a_subscription_in_its_history_gives_way(full: EventStore) -> None:
    async def follow() -> None:
        seen = 0
        async with full.subscribe() as events:
            async for _ in events:
                seen += 1
                if seen == EVENTS:
                    return

    # The last of it comes from the ring, in larger steps.
    assert await beats_during(follow()) >= 2


async def test_a_long_append_gives_way(store: EventStore) -> None:
    events = [("T", {"n": n}) for n in range(20_000)]
    assert await beats_during(store.append_batch("s", events)) >= len(events) // 1000
