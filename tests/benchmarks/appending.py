"""What appending costs: one at a time, by many tasks, in batches; durable, and in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from aiostore import EventStore

from . import machine
from .contest import (
    BATCH_EVENTS,
    TASKS,
    Contest,
    Goal,
    Row,
    batch_of_payloads,
    contender,
    in_threads,
    latency,
    payload,
    rate,
    stream,
    together,
)
from .eventsourcing_peer import EventsourcingStore, Orders
from .peers import AioSqliteStore, SqliteStore
from .py_event_sourcing_peer import PyEventSourcingStore
from .subjects import (
    open_aiosqlite,
    open_aiostore,
    open_eventsourcing,
    open_log,
    open_sqlite,
    open_synced_log,
)
from .umadb_peer import UmadbStore

WRITE_AND_FDATASYNC = "write + fdatasync"
WRITE_O_DSYNC = "write, O_DSYNC"
WRITE_IN_THREAD = "write, O_DSYNC, in a thread"
LIMITS = (WRITE_AND_FDATASYNC, WRITE_O_DSYNC, WRITE_IN_THREAD)
"""The contenders that are no stores: what the machine itself takes."""

BlockingStore = SqliteStore | EventsourcingStore | UmadbStore
AsyncStore = EventStore | AioSqliteStore | PyEventSourcingStore


def one_at_a_time(times: int) -> Contest:
    """The latency of a durable append when nothing else goes on, beside the machine's own."""

    def awaited(store: AsyncStore) -> Awaitable[float]:
        return latency(lambda n: store.append(stream(n), "OrderPlaced", payload(n)), times)

    def blocking(store: BlockingStore) -> Awaitable[float]:
        async def append(number: int) -> None:
            store.append(stream(number), "OrderPlaced", payload(number))

        return latency(append, times)

    async def write_and_fdatasync(descriptor: int) -> None:
        machine.write_and_fdatasync(descriptor)

    async def write(descriptor: int) -> None:
        machine.write(descriptor)

    return Contest(
        "one durable append at a time, p50",
        "µs",
        False,
        {
            "aiostore": contender(open_aiostore, awaited),
            "aiosqlite, insert and commit": contender(open_aiosqlite, awaited),
            "aiosqlite, in one trip": contender(
                AioSqliteStore.open,
                lambda store: latency(lambda n: store.append_in_one_trip(stream(n), "OrderPlaced", payload(n)), times),
            ),
            "aiosqlite, stepwise": contender(
                AioSqliteStore.open,
                lambda store: latency(lambda n: store.append_stepwise(stream(n), "OrderPlaced", payload(n)), times),
            ),
            "sqlite3, blocking": contender(open_sqlite, blocking),
            "eventsourcing, blocking": contender(open_eventsourcing, blocking),
            "py-event-sourcing": contender(PyEventSourcingStore.open, awaited),
            "umadb, blocking": contender(UmadbStore.open, blocking),
            WRITE_AND_FDATASYNC: contender(open_log, lambda fd: latency(lambda _: write_and_fdatasync(fd), times)),
            WRITE_O_DSYNC: contender(open_synced_log, lambda fd: latency(lambda _: write(fd), times)),
            WRITE_IN_THREAD: contender(
                open_synced_log, lambda fd: latency(lambda _: asyncio.to_thread(machine.write, fd), times)
            ),
        },
        [
            Row("aiostore", "aiosqlite, insert and commit", Goal(0.8, at_most=True)),
            Row("aiostore", WRITE_AND_FDATASYNC, Goal(1.5, at_most=True)),
            Row("aiostore", "aiosqlite, in one trip"),
            Row("aiostore", "aiosqlite, stepwise"),
            Row("aiostore", "sqlite3, blocking"),
            Row("aiostore", "eventsourcing, blocking"),
            Row("aiostore", "py-event-sourcing"),
            Row("aiostore", "umadb, blocking"),
            Row("aiostore", WRITE_IN_THREAD),
        ],
    )


def many_tasks(ours_times: int, peer_times: int) -> Contest:
    """Single durable appends by 64 tasks at once.

    Those of aiosqlite share a connection under a lock. The client of umadb is blocking: it is fastest with as many
    threads of its own; tasks that call it with `asyncio.to_thread` share the few that the event loop has.
    """

    async def peer(append: Callable[[str, str, Any], Awaitable[object]]) -> int:
        lock = asyncio.Lock()

        async def locked(name: str, number: int) -> None:
            async with lock:
                await append(name, "OrderPlaced", payload(number))

        return await together(locked, peer_times)

    def loop_threads(store: UmadbStore) -> Awaitable[int]:
        return together(lambda name, n: asyncio.to_thread(store.append, name, "OrderPlaced", payload(n)), peer_times)

    def ours(store: EventStore) -> Awaitable[int]:
        return together(lambda name, n: store.append(name, "OrderPlaced", payload(n)), ours_times)

    return Contest(
        f"single durable appends by {TASKS} tasks",
        "events/s",
        True,
        {
            "aiostore": contender(open_aiostore, lambda store: rate(ours(store))),
            "aiosqlite, insert and commit": contender(open_aiosqlite, lambda store: rate(peer(store.append))),
            "aiosqlite, in one trip": contender(
                AioSqliteStore.open, lambda store: rate(peer(store.append_in_one_trip))
            ),
            "aiosqlite, stepwise": contender(AioSqliteStore.open, lambda store: rate(peer(store.append_stepwise))),
            "umadb, threads": contender(UmadbStore.open, lambda store: rate(in_threads(store.append, ours_times))),
            "umadb, to_thread": contender(UmadbStore.open, lambda store: rate(loop_threads(store))),
        },
        [
            Row("aiostore", "aiosqlite, insert and commit", Goal(20, at_most=False)),
            Row("aiostore", "umadb, threads", Goal(6, at_most=False)),
            Row("aiostore", "umadb, to_thread"),
            Row("aiostore", "aiosqlite, in one trip"),
            Row("aiostore", "aiosqlite, stepwise"),
        ],
    )


def batches(times: int) -> Contest:
    """Batches of 1,000 events, each durable before the next.

    SQLite is taken with the JSON of the standard library, which a store written by hand mostly has, and with ours.
    """
    events = batch_of_payloads()

    async def awaited(store: EventStore | PyEventSourcingStore) -> int:
        for number in range(times):
            await store.append_batch(stream(number), events)
        return times * BATCH_EVENTS

    async def blocking(store: EventsourcingStore | UmadbStore) -> int:
        for number in range(times):
            store.append_batch(stream(number), events)
        return times * BATCH_EVENTS

    async def sqlite3(store: SqliteStore, encode: Callable[[Any], bytes | str]) -> int:
        for number in range(times):
            store.append_batch(stream(number), events, encode)
        return times * BATCH_EVENTS

    return Contest(
        f"durable batches of {BATCH_EVENTS:,}",
        "events/s",
        True,
        {
            "aiostore": contender(open_aiostore, lambda store: rate(awaited(store))),
            "sqlite3, stdlib json": contender(open_sqlite, lambda store: rate(sqlite3(store, json.dumps))),
            "sqlite3, msgspec": contender(open_sqlite, lambda store: rate(sqlite3(store, msgspec.json.encode))),
            "eventsourcing": contender(open_eventsourcing, lambda store: rate(blocking(store))),
            "py-event-sourcing": contender(PyEventSourcingStore.open, lambda store: rate(awaited(store))),
            "umadb": contender(UmadbStore.open, lambda store: rate(blocking(store))),
        },
        [
            Row("aiostore", "sqlite3, stdlib json", Goal(3, at_most=False)),
            Row("aiostore", "sqlite3, msgspec"),
            Row("aiostore", "eventsourcing"),
            Row("aiostore", "py-event-sourcing"),
            Row("aiostore", "umadb"),
        ],
    )


def in_memory(times: int) -> Contest:
    """Single appends to a store in memory, one after the other, beside `eventsourcing` in memory.

    Its application is taken as its documentation has it: an aggregate's event, then ``save``. For information, its bare
    recorder, which keeps what it is given.
    """

    @asynccontextmanager
    async def open_orders(directory: Path) -> AsyncIterator[Orders]:
        with Orders(100) as orders:
            yield orders

    @asynccontextmanager
    async def open_recorder(directory: Path) -> AsyncIterator[EventsourcingStore]:
        with EventsourcingStore.open({}) as store:
            yield store

    async def ours(store: EventStore) -> int:
        for number in range(times):
            await store.append(stream(number), "OrderPlaced", payload(number))
        return times

    async def application(orders: Orders) -> int:
        for number in range(times):
            orders.place(number, payload(number))
        return times

    async def recorder(store: EventsourcingStore) -> int:
        for number in range(times):
            store.append(stream(number), "OrderPlaced", payload(number))
        return times

    return Contest(
        "in memory: one append at a time",
        "events/s",
        True,
        {
            "aiostore": contender(lambda _: EventStore(), lambda store: rate(ours(store))),
            "eventsourcing, application": contender(open_orders, lambda orders: rate(application(orders))),
            "eventsourcing, bare recorder": contender(open_recorder, lambda store: rate(recorder(store))),
        },
        [
            Row("aiostore", "eventsourcing, application", Goal(1.5, at_most=False)),
            Row("aiostore", "eventsourcing, bare recorder"),
        ],
    )
