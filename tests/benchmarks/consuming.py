"""What a consumer takes: one whose handler does nothing, beside a bare subscription to the same events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

from aiostore import Consumer, Event, EventStore, StreamAppend

from .contest import BATCH_EVENTS, Contest, Goal, Row, batch_of_payloads, contender, rate, shared
from .subjects import batches_count, open_aiostore

names = count()


@asynccontextmanager
async def filled(directory: Path, streams_count: int, events_count: int) -> AsyncIterator[EventStore]:
    """A store with so many events; each commit has as many of each of so many streams."""
    events = batch_of_payloads()[: BATCH_EVENTS // streams_count]
    async with open_aiostore(directory) as store:
        for _ in range(batches_count(events_count)):
            await store.append_streams([StreamAppend(f"order-{number}", events) for number in range(streams_count)])
        yield store


async def subscribed(store: EventStore) -> int:
    """Every event, by ``async for``; returns how many there were."""
    head = await store.head()
    async with store.subscribe() as events:
        async for event in events:
            if event.event_id == head:
                break
    return head


async def consumed(store: EventStore) -> int:
    """Every event, by a handler; it ends when all of this is recorded."""

    async def handle(event: Event) -> None:
        pass

    async with Consumer(store, f"consumer-{next(names)}", handle) as consumer:
        await consumer.wait_idle()
        return consumer.stats().handled_count


def consuming(streams_count: int, events_count: int) -> Contest:
    """A consumer of all events from the first on, beside a subscription."""
    events_count = batches_count(events_count) * BATCH_EVENTS
    store = shared(lambda directory: filled(directory, streams_count, events_count))
    return Contest(
        f"{events_count:,} events of {streams_count:,} streams, handled",
        "events/s",
        True,
        {
            "Consumer": contender(store, lambda store: rate(consumed(store))),
            "subscribe()": contender(store, lambda store: rate(subscribed(store))),
        },
        [Row("Consumer", "subscribe()", Goal(0.6, at_most=False))],
    )
