"""What reading costs: all events, and one stream among many."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from aiostore import EventStore, StreamAppend

from .contest import (
    BATCH_EVENTS,
    Contest,
    Goal,
    Opener,
    Row,
    batch_of_payloads,
    contender,
    idle,
    latency,
    payload,
    rate,
    shared,
    stream,
)
from .eventsourcing_peer import EventsourcingStore
from .peers import AioSqliteStore, SqliteStore
from .py_event_sourcing_peer import PyEventSourcingStore
from .subjects import (
    batches_count,
    filled_aiostore,
    filled_sqlite,
    open_aiostore,
    open_eventsourcing,
    open_sqlite,
)
from .umadb_peer import UmadbStore

S = TypeVar("S")
P = TypeVar("P", EventsourcingStore, PyEventSourcingStore, UmadbStore)

STREAM_EVENTS = 100
PAGE_EVENTS = 1_000
"""So many events `eventsourcing` is asked for at once."""


async def one_by_one(store: EventStore) -> int:
    """Read all events; returns how many there were, as the others do."""
    paid = [event.data["paid"] async for event in store.read_all()]
    return len(paid)


async def by_batches(store: EventStore) -> int:
    """The same, as lists."""
    paid: list[bool] = []
    async for batch in store.read_all().batches():
        paid += [event.data["paid"] for event in batch]
    return len(paid)


async def rows_decoded(store: SqliteStore, decode: Callable[[bytes], Any]) -> int:
    """The same by hand."""
    paid = [decode(row[-1])["paid"] for row in store.read_all()]
    return len(paid)


async def rows_awaited(store: AioSqliteStore) -> int:
    """The same by hand, over aiosqlite."""
    async with store.read_all() as rows:
        paid = [msgspec.json.decode(row[-1])["paid"] async for row in rows]
    return len(paid)


async def peer_blocking(store: EventsourcingStore | UmadbStore) -> int:
    """The same by a blocking library."""
    read = store.read_all(PAGE_EVENTS) if isinstance(store, EventsourcingStore) else store.read_all()
    return len([data["paid"] for data in read])


async def peer_awaited(store: PyEventSourcingStore) -> int:
    """The same by an asynchronous one."""
    paid = [data["paid"] async for data in store.read_all()]
    return len(paid)


def filled(open_store: Opener[P], events_count: int) -> Opener[P]:
    """Opens the store of another library with so many events."""

    @asynccontextmanager
    async def opened(directory: Path) -> AsyncIterator[P]:
        events = batch_of_payloads()
        async with open_store(directory) as store:
            for number in range(batches_count(events_count)):
                if isinstance(store, PyEventSourcingStore):
                    await store.append_batch(stream(number), events)
                else:
                    store.append_batch(stream(number), events)
            yield store

    return opened


def replay(events_count: int) -> Contest:
    """Reading all events with their data decoded."""
    events_count = batches_count(events_count) * BATCH_EVENTS

    @asynccontextmanager
    async def by_hand_awaited(directory: Path) -> AsyncIterator[AioSqliteStore]:
        async with filled_sqlite(directory, events_count), AioSqliteStore.open(directory) as store:
            yield store

    ours = shared(lambda directory: filled_aiostore(directory, events_count))
    by_hand = shared(lambda directory: filled_sqlite(directory, events_count))
    return Contest(
        f"replay of {events_count:,}, decoded",
        "events/s",
        True,
        {
            "aiostore": contender(ours, lambda store: rate(one_by_one(store))),
            "aiostore, batches": contender(ours, lambda store: rate(by_batches(store))),
            "sqlite3, stdlib json": contender(by_hand, lambda store: rate(rows_decoded(store, json.loads))),
            "sqlite3, msgspec": contender(by_hand, lambda store: rate(rows_decoded(store, msgspec.json.decode))),
            "aiosqlite, async for": contender(by_hand_awaited, lambda store: rate(rows_awaited(store))),
            "eventsourcing": contender(
                filled(open_eventsourcing, events_count), lambda store: rate(peer_blocking(store))
            ),
            "py-event-sourcing": contender(
                filled(PyEventSourcingStore.open, events_count), lambda store: rate(peer_awaited(store))
            ),
            "umadb": contender(filled(UmadbStore.open, events_count), lambda store: rate(peer_blocking(store))),
        },
        [
            Row("aiostore", "sqlite3, stdlib json", Goal(2, at_most=False)),
            Row("aiostore, batches", "sqlite3, stdlib json"),
            Row("aiostore", "sqlite3, msgspec"),
            Row("aiostore, batches", "sqlite3, msgspec"),
            Row("aiostore", "aiosqlite, async for"),
            Row("aiostore", "eventsourcing"),
            Row("aiostore", "py-event-sourcing"),
            Row("aiostore", "umadb"),
        ],
    )


@dataclass(frozen=True)
class Layout:
    """Streams of 100 events each, which came so many at a time, in turn with those of the others by chance."""

    streams_count: int
    run_events: int

    @property
    def names(self) -> list[str]:
        """The streams."""
        return [f"order-{number:06}" for number in range(self.streams_count)]

    def chunks(self) -> Iterator[list[tuple[str, int]]]:
        """The streams and the versions before their next runs, in the order of the log, by about 1,000 events."""
        chance = random.Random(5)
        per_chunk = BATCH_EVENTS // self.run_events
        names = self.names
        for version in range(0, STREAM_EVENTS, self.run_events):
            chance.shuffle(names)
            for first in range(0, len(names), per_chunk):
                yield [(name, version) for name in names[first : first + per_chunk]]

    def unread(self) -> Iterator[str]:
        """The streams in an order of their own: each read takes another, as long as there are others."""
        names = self.names
        random.Random(7).shuffle(names)
        return itertools.cycle(names)


@dataclass(frozen=True)
class Cold(Generic[S]):
    """A store that was opened anew, and the streams that were not read since."""

    store: S
    unread: Iterator[str]


def streams(layout: Layout, goal: Goal, times: int) -> Contest:
    """Reading one stream of 100 among many, with the data decoded; nothing of it was asked for since the store opened.

    What lies together in the log was appended in larger commits than a service would, which changes no line's place.
    """

    @asynccontextmanager
    async def ours(directory: Path) -> AsyncIterator[Cold[EventStore]]:
        async with open_aiostore(directory) as store:
            for chunk in layout.chunks():
                appends = [
                    StreamAppend(name, [("OrderPlaced", payload(version + n)) for n in range(layout.run_events)])
                    for name, version in chunk
                ]
                await store.append_streams(appends)
        async with open_aiostore(directory) as store:
            await idle()
            yield Cold(store, layout.unread())

    @asynccontextmanager
    async def by_hand(directory: Path) -> AsyncIterator[Cold[SqliteStore]]:
        async with open_sqlite(directory) as store:
            for chunk in layout.chunks():
                store.fill(
                    (name, version + n + 1, "OrderPlaced", payload(version + n))
                    for name, version in chunk
                    for n in range(layout.run_events)
                )
        async with open_sqlite(directory) as store:
            yield Cold(store, layout.unread())

    async def awaited(cold: Cold[EventStore]) -> None:
        paid = [event.data["paid"] async for event in cold.store.read_stream(next(cold.unread))]
        assert len(paid) == STREAM_EVENTS

    async def as_list(cold: Cold[EventStore]) -> None:
        paid = [event.data["paid"] for event in await cold.store.read_stream(next(cold.unread)).to_list()]
        assert len(paid) == STREAM_EVENTS

    async def sqlite3(cold: Cold[SqliteStore], decode: Callable[[bytes], Any]) -> None:
        paid = [decode(row[-1])["paid"] for row in cold.store.read_stream(next(cold.unread))]
        assert len(paid) == STREAM_EVENTS

    def timed(read: Callable[[Cold[S]], Awaitable[None]]) -> Callable[[Cold[S]], Awaitable[float]]:
        return lambda cold: latency(lambda _: read(cold), times)

    ours_shared, by_hand_shared = shared(ours), shared(by_hand)
    came = f"{layout.run_events} at a time" if layout.run_events > 1 else "one at a time, scattered"
    return Contest(
        f"a stream of {STREAM_EVENTS} among {layout.streams_count:,}, appended {came}, p50",
        "µs",
        False,
        {
            "aiostore": contender(ours_shared, timed(awaited)),
            "aiostore, to_list": contender(ours_shared, timed(as_list)),
            "sqlite3, stdlib json": contender(by_hand_shared, timed(lambda cold: sqlite3(cold, json.loads))),
            "sqlite3, msgspec": contender(by_hand_shared, timed(lambda cold: sqlite3(cold, msgspec.json.decode))),
        },
        [
            Row("aiostore", "sqlite3, stdlib json", goal),
            Row("aiostore", "sqlite3, msgspec"),
            Row("aiostore, to_list", "sqlite3, stdlib json"),
        ],
    )
