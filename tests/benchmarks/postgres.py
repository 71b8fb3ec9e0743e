"""What is measured on PostgreSQL: contests like the others, each in schemas of its own on one real server."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from aiostore import EventStore
from aiostore.engine import PAGE_EVENTS
from aiostore.engines.postgres.schema import ddl
from tests.postgres.server import Server

from .contest import (
    BATCH_EVENTS,
    TASKS,
    WARM_UP,
    Contender,
    Contest,
    Goal,
    Measure,
    Row,
    contender,
    in_threads,
    median_us,
    payload,
    rate,
    stream,
    together,
)
from .eventsourcing_peer import EventsourcingStore
from .postgres_peers import BareBatches, BareStore, drop_schema, open_eventsourcing
from .reading import by_batches, one_by_one
from .umadb_peer import UmadbStore

Append = Callable[[int], Awaitable[object]]


@contextmanager
def running_server() -> Iterator[Server]:
    """A server as it comes, which syncs each commit."""
    server = Server()
    try:
        yield server.create()
    finally:
        server.stop()


def schema_of(directory: Path) -> str:
    """The schema of a contender, whose directory no other has."""
    return f"bench_{directory.parent.name}_{directory.name}"


class Opener:
    """Opens the contenders on a server, each in a schema that is dropped afterwards."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def url(self, directory: Path) -> str:
        """Of the store of a contender."""
        return f"{self.server.url}?schema={schema_of(directory)}"

    @asynccontextmanager
    async def aiostore(self, directory: Path) -> AsyncIterator[EventStore]:
        """Ours."""
        async with EventStore(self.url(directory)) as store:
            yield store
        await drop_schema(self.server, schema_of(directory))

    def bare(self, directory: Path) -> AbstractAsyncContextManager[BareStore]:
        """By hand, with a pool."""
        return BareStore.open(self.server, schema_of(directory))

    def bare_single(self, directory: Path) -> AbstractAsyncContextManager[BareStore]:
        """By hand, with one connection."""
        return BareStore.open(self.server, schema_of(directory), 1)

    def bare_batches(self, directory: Path) -> AbstractAsyncContextManager[BareBatches]:
        """By hand, into our tables."""
        schema = schema_of(directory)
        return BareBatches.open(self.server, schema, ddl(schema))

    def eventsourcing(self, directory: Path) -> AbstractAsyncContextManager[EventsourcingStore]:
        """The library `eventsourcing`."""
        return open_eventsourcing(self.server, schema_of(directory))

    @staticmethod
    def umadb(directory: Path) -> AbstractAsyncContextManager[UmadbStore]:
        """The database `umadb`."""
        return UmadbStore.open(directory)


def many_tasks(opener: Opener, ours_times: int, peer_times: int) -> Contest:
    """Single durable appends by 64 tasks at once; by hand, each is a transaction."""

    def tasks(append: Callable[[str, str, Any], Awaitable[object]], times: int) -> Awaitable[float]:
        return rate(together(lambda name, n: append(name, "OrderPlaced", payload(n)), times))

    return Contest(
        f"PostgreSQL: single durable appends by {TASKS} tasks",
        "events/s",
        True,
        {
            "aiostore": contender(opener.aiostore, lambda store: tasks(store.append, ours_times)),
            "asyncpg, pool": contender(opener.bare, lambda store: tasks(store.append, peer_times)),
            "asyncpg, pool, in one trip": contender(
                opener.bare, lambda store: tasks(store.append_in_one_trip, peer_times)
            ),
            "asyncpg, one connection": contender(opener.bare_single, lambda store: tasks(store.append, peer_times)),
            "asyncpg, one connection, in one trip": contender(
                opener.bare_single, lambda store: tasks(store.append_in_one_trip, peer_times)
            ),
            "eventsourcing, threads": contender(
                opener.eventsourcing, lambda store: rate(in_threads(store.append, peer_times))
            ),
            "umadb, threads": contender(opener.umadb, lambda store: rate(in_threads(store.append, ours_times))),
        },
        [
            Row("aiostore", "asyncpg, pool", Goal(8, at_most=False)),
            Row("aiostore", "asyncpg, pool, in one trip"),
            Row("aiostore", "asyncpg, one connection"),
            Row("aiostore", "asyncpg, one connection, in one trip"),
            Row("aiostore", "eventsourcing, threads"),
            Row("aiostore", "umadb, threads"),
        ],
    )


def batches(opener: Opener, times: int) -> Contest:
    """Batches of 1,000 events, each durable before the next; by hand, into the same tables and indexes."""
    events = [("OrderPlaced", payload(number)) for number in range(BATCH_EVENTS)]

    async def one_by_one(store: EventStore | BareBatches) -> int:
        for number in range(times):
            await store.append_batch(stream(number), events)
        return times * BATCH_EVENTS

    def in_thread(store: EventsourcingStore | UmadbStore) -> Awaitable[int]:
        def work() -> int:
            for number in range(times):
                store.append_batch(stream(number), events)
            return times * BATCH_EVENTS

        return asyncio.to_thread(work)

    return Contest(
        f"PostgreSQL: batches of {BATCH_EVENTS:,}",
        "events/s",
        True,
        {
            "aiostore": contender(opener.aiostore, lambda store: rate(one_by_one(store))),
            "asyncpg, unnest": contender(opener.bare_batches, lambda store: rate(one_by_one(store))),
            "eventsourcing": contender(opener.eventsourcing, lambda store: rate(in_thread(store))),
            "umadb": contender(opener.umadb, lambda store: rate(in_thread(store))),
        },
        [
            Row("aiostore", "asyncpg, unnest", Goal(0.6, at_most=False)),
            Row("aiostore", "eventsourcing"),
            Row("aiostore", "umadb"),
        ],
    )


def replay(opener: Opener, events_count: int) -> Contest:
    """Reading all events with their data decoded; by hand, page by page in the order of the key."""
    events = [("OrderPlaced", payload(number)) for number in range(BATCH_EVENTS)]
    batches_count = max(1, events_count // BATCH_EVENTS)

    @asynccontextmanager
    async def filled(directory: Path) -> AsyncIterator[EventStore]:
        async with opener.aiostore(directory) as store:
            for number in range(batches_count):
                await store.append_batch(stream(number), events)
            yield store

    @asynccontextmanager
    async def filled_bare(directory: Path) -> AsyncIterator[BareStore]:
        async with opener.bare_single(directory) as store:
            for number in range(batches_count):
                await store.fill(stream(number), number // 100 * BATCH_EVENTS, events)
            yield store

    def filled_threaded(open_store: Callable[[Path], AbstractAsyncContextManager[Any]]) -> Callable[[Path], Any]:
        @asynccontextmanager
        async def opened(directory: Path) -> AsyncIterator[Any]:
            async with open_store(directory) as store:
                for number in range(batches_count):
                    await asyncio.to_thread(store.append_batch, stream(number), events)
                yield store

        return opened

    async def bare(store: BareStore) -> int:
        paid: list[bool] = []
        async for rows in store.pages(PAGE_EVENTS):
            paid += [row[5]["paid"] for row in rows]
        return len(paid)

    def in_thread(read: Callable[[], Iterator[Any]]) -> Awaitable[int]:
        return asyncio.to_thread(lambda: len([data["paid"] for data in read()]))

    return Contest(
        f"PostgreSQL: replay of {batches_count * BATCH_EVENTS:,}, decoded",
        "events/s",
        True,
        {
            "aiostore": contender(filled, lambda store: rate(one_by_one(store))),
            "aiostore, batches": contender(filled, lambda store: rate(by_batches(store))),
            "asyncpg, keyset": contender(filled_bare, lambda store: rate(bare(store))),
            "eventsourcing": contender(
                filled_threaded(opener.eventsourcing),
                lambda store: rate(in_thread(lambda: store.read_all(PAGE_EVENTS))),
            ),
            "umadb": contender(filled_threaded(opener.umadb), lambda store: rate(in_thread(store.read_all))),
        },
        [
            Row("aiostore", "asyncpg, keyset", Goal(0.5, at_most=False)),
            Row("aiostore, batches", "asyncpg, keyset"),
            Row("aiostore", "eventsourcing"),
            Row("aiostore", "umadb"),
        ],
    )


@asynccontextmanager
async def follower(*arguments: str) -> AsyncIterator[Callable[[], Awaitable[float]]]:
    """A subscriber in another process; yields a function that waits for the time of its next event."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.benchmarks.follower",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    lines = process.stdout

    async def seen() -> float:
        async with asyncio.timeout(60):
            return float(await lines.readline())

    try:
        await seen()  # it is there
        yield seen
    finally:
        process.kill()
        await process.wait()


def live(opener: Opener, times: int) -> Contest:
    """From the call of append to the body of a live subscriber in another process, which then asks for more.

    By hand, an insert that notifies, and a connection that listens and then reads.
    """

    def measured(append: Append, seen: Callable[[], Awaitable[float]]) -> Measure:
        async def measure() -> float:
            called, there = [], []
            for number in range(WARM_UP + times):
                called.append(time.perf_counter())
                await append(number)
                there.append(await seen())
            return median_us(called, there)

        return measure

    @asynccontextmanager
    async def ours(directory: Path) -> AsyncIterator[Measure]:
        async with opener.aiostore(directory) as store, follower(opener.url(directory)) as seen:
            yield measured(lambda n: store.append("order-1", "OrderPlaced", payload(n)), seen)

    def bare(append: Callable[[BareStore, int], Awaitable[object]]) -> Contender:
        @asynccontextmanager
        async def opened(directory: Path) -> AsyncIterator[Measure]:
            async with (
                opener.bare_single(directory) as store,
                follower(opener.server.url, schema_of(directory)) as seen,
            ):
                yield measured(lambda n: append(store, n), seen)

        return opened

    return Contest(
        "PostgreSQL: append to the body of a subscriber in another process, p50",
        "µs",
        False,
        {
            "aiostore": ours,
            "asyncpg, insert and notify": bare(
                lambda store, n: store.append_and_notify("order-1", "OrderPlaced", payload(n))
            ),
            "asyncpg, a transaction": bare(
                lambda store, n: store.append("order-1", "OrderPlaced", payload(n), notify=True)
            ),
        },
        [
            Row("aiostore", "asyncpg, insert and notify", Goal(1.5, at_most=True)),
            Row("aiostore", "asyncpg, a transaction"),
        ],
    )


def postgres_contests(scale: float, server: Server) -> list[Contest]:
    """All of them; ``scale`` 1 is the full size."""

    def scaled(times: int) -> int:
        return max(1, round(times * scale))

    opener = Opener(server)
    return [
        many_tasks(opener, scaled(12_800), scaled(1_280)),
        batches(opener, scaled(30)),
        replay(opener, scaled(100_000)),
        live(opener, scaled(200)),
    ]
