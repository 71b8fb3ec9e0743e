"""What types cost: a replay to objects, beside one to dicts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from aiostore import EventStore, EventTypes

from .contest import BATCH_EVENTS, Contest, Goal, Row, batch_of_payloads, contender, rate, shared, stream
from .reading import by_batches, one_by_one
from .subjects import batches_count, filled_aiostore


class Customer(msgspec.Struct):
    name: str
    country: str


class OrderPlaced(msgspec.Struct):
    order: str
    customer: Customer
    item: str
    quantity: int
    price: float
    express: bool
    paid: bool


@asynccontextmanager
async def filled_typed(directory: Path, events_count: int) -> AsyncIterator[EventStore]:
    """A store with the same events, that knows their type."""
    types = EventTypes()
    types.add(OrderPlaced)
    events = batch_of_payloads()
    async with EventStore(directory / "store", types=types) as store:
        for number in range(batches_count(events_count)):
            await store.append_batch(stream(number), events)
        yield store


async def objects_one_by_one(store: EventStore) -> int:
    """Read all events as objects; returns how many there were."""
    paid: list[bool] = [event.decode().paid async for event in store.read_all()]
    return len(paid)


async def objects_by_batches(store: EventStore) -> int:
    """The same, as lists."""
    paid: list[bool] = []
    async for batch in store.read_all().batches():
        paid += [event.decode().paid for event in batch]
    return len(paid)


async def objects_decoded(store: EventStore) -> int:
    """The same, as pairs."""
    paid: list[bool] = [value.paid async for _, value in store.read_all().decoded()]
    return len(paid)


def typed_replay(events_count: int) -> Contest:
    """Reading all events as objects, beside reading them as dicts in a store without types."""
    events_count = batches_count(events_count) * BATCH_EVENTS
    typed = shared(lambda directory: filled_typed(directory, events_count))
    plain = shared(lambda directory: filled_aiostore(directory, events_count))
    return Contest(
        f"replay of {events_count:,} to objects",
        "events/s",
        True,
        {
            "event.decode()": contender(typed, lambda store: rate(objects_one_by_one(store))),
            "event.data": contender(plain, lambda store: rate(one_by_one(store))),
            "event.decode(), batches": contender(typed, lambda store: rate(objects_by_batches(store))),
            "event.data, batches": contender(plain, lambda store: rate(by_batches(store))),
            "decoded()": contender(typed, lambda store: rate(objects_decoded(store))),
        },
        [
            Row("event.decode()", "event.data", Goal(1, at_most=False)),
            Row("event.decode(), batches", "event.data, batches", Goal(1, at_most=False)),
            Row("decoded()", "event.data"),
        ],
    )
