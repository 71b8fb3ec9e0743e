"""What is measured: contests, each of a few contenders that do the same work in turn, round by round.

A contender is an async context manager over a directory of its own; it yields a function that does the work once and
returns one number. Where a row has a goal, it is for the ratio of ours to the peer's.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import msgspec

from aiostore import END, EventStore, Subscription

from . import machine
from .peers import AioSqliteStore, SqliteStore

S = TypeVar("S")

TASKS = 64
BATCH_EVENTS = 1_000
WARM_UP = 20

WRITE_AND_FDATASYNC = "write + fdatasync"
WRITE_O_DSYNC = "write, O_DSYNC"
WRITE_IN_THREAD = "write, O_DSYNC, in a thread"
LIMITS = (WRITE_AND_FDATASYNC, WRITE_O_DSYNC, WRITE_IN_THREAD)
"""The contenders that are no stores: what the machine itself takes."""

Measure = Callable[[], Awaitable[float]]
Contender = Callable[[Path], AbstractAsyncContextManager[Measure]]


@dataclass(frozen=True)
class Goal:
    """What the ratio of ours to the peer's is to be: at most ``bound`` for latencies, at least for rates."""

    bound: float
    at_most: bool

    def met(self, ratio: float) -> bool:
        """Whether it is."""
        return ratio <= self.bound if self.at_most else ratio >= self.bound

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.bound:g}"


@dataclass(frozen=True)
class Row:
    """One line of the result: two contenders of a contest, by name; a row without a goal is for information."""

    ours: str
    peer: str
    goal: Goal | None = None


@dataclass(frozen=True)
class Contest:
    """Contenders that are measured in turn."""

    name: str
    unit: str
    more_is_better: bool
    contenders: dict[str, Contender]
    rows: Sequence[Row]


def payload(number: int) -> dict[str, Any]:
    """About 150 bytes of JSON."""
    return {
        "order": f"order-{number:08}",
        "customer": {"name": "Ada Lovelace", "country": "GB"},
        "item": "teapot, blue",
        "quantity": number % 7 + 1,
        "price": 24.5,
        "express": number % 3 == 0,
        "paid": True,
    }


def median_us(earlier: Sequence[float], later: Sequence[float]) -> float:
    """The median of the differences, in microseconds, without the first few."""
    return median(b - a for a, b in list(zip(earlier, later, strict=True))[WARM_UP:]) * 1e6


async def latency(work: Callable[[int], Awaitable[object]], times: int) -> float:
    """The median time of one call, in microseconds."""
    started: list[float] = []
    ended: list[float] = []
    for number in range(WARM_UP + times):
        started.append(time.perf_counter())
        await work(number)
        ended.append(time.perf_counter())
    return median_us(started, ended)


async def rate(work: Awaitable[int]) -> float:
    """How many events a second the work does, which returns their number."""
    started = time.perf_counter()
    events_count = await work
    return events_count / (time.perf_counter() - started)


def stream(number: int) -> str:
    """The stream that an event goes to."""
    return f"order-{number % 100}"


def contender(
    open_subject: Callable[[Path], AbstractAsyncContextManager[S]], measure: Callable[[S], Awaitable[float]]
) -> Contender:
    """The contender that measures its subject, a store or a file, which stays open over the rounds."""

    @asynccontextmanager
    async def opened(directory: Path) -> AsyncIterator[Measure]:
        async with open_subject(directory) as subject:
            yield lambda: measure(subject)

    return opened


def open_aiostore(directory: Path) -> EventStore:
    """Ours."""
    return EventStore(directory / "store")


@asynccontextmanager
async def open_sqlite(directory: Path) -> AsyncIterator[SqliteStore]:
    """The blocking peer."""
    with SqliteStore.open(directory) as store:
        yield store


def open_aiosqlite(directory: Path) -> AbstractAsyncContextManager[AioSqliteStore]:
    """The peer as aiosqlite's documentation uses it: sqlite3 itself begins transactions."""
    return AioSqliteStore.open(directory, "DEFERRED")


@asynccontextmanager
async def open_log(directory: Path) -> AsyncIterator[int]:
    """No store at all: a file to append to."""
    with machine.open_file(directory / "log") as descriptor:
        yield descriptor


@asynccontextmanager
async def open_synced_log(directory: Path) -> AsyncIterator[int]:
    """The same, of which each write is a sync as well."""
    with machine.open_file(directory / "log", os.O_DSYNC) as descriptor:
        yield descriptor


def one_at_a_time(times: int) -> Contest:
    """(1) The latency of a durable append when nothing else goes on, beside the machine's own."""

    async def sqlite_append(store: SqliteStore, number: int) -> None:
        store.append(stream(number), "OrderPlaced", payload(number))

    async def write_and_fdatasync(descriptor: int) -> None:
        machine.write_and_fdatasync(descriptor)

    async def write(descriptor: int) -> None:
        machine.write(descriptor)

    return Contest(
        "one durable append at a time, p50",
        "µs",
        False,
        {
            "aiostore": contender(
                open_aiostore,
                lambda store: latency(lambda n: store.append(stream(n), "OrderPlaced", payload(n)), times),
            ),
            "aiosqlite": contender(
                open_aiosqlite,
                lambda store: latency(lambda n: store.append(stream(n), "OrderPlaced", payload(n)), times),
            ),
            "aiosqlite, in one trip": contender(
                AioSqliteStore.open,
                lambda store: latency(lambda n: store.append_in_one_trip(stream(n), "OrderPlaced", payload(n)), times),
            ),
            "aiosqlite, stepwise": contender(
                AioSqliteStore.open,
                lambda store: latency(lambda n: store.append_stepwise(stream(n), "OrderPlaced", payload(n)), times),
            ),
            "sqlite3, blocking": contender(
                open_sqlite, lambda store: latency(lambda n: sqlite_append(store, n), times)
            ),
            WRITE_AND_FDATASYNC: contender(open_log, lambda fd: latency(lambda _: write_and_fdatasync(fd), times)),
            WRITE_O_DSYNC: contender(open_synced_log, lambda fd: latency(lambda _: write(fd), times)),
            WRITE_IN_THREAD: contender(
                open_synced_log, lambda fd: latency(lambda _: asyncio.to_thread(machine.write, fd), times)
            ),
        },
        [
            Row("aiostore", "aiosqlite", Goal(1.15, at_most=True)),
            Row("aiostore", "aiosqlite, in one trip"),
            Row("aiostore", "aiosqlite, stepwise"),
            Row("aiostore", "sqlite3, blocking"),
            Row("aiostore", WRITE_IN_THREAD),
        ],
    )


async def together(append: Callable[[str, int], Awaitable[object]], times: int) -> int:
    """Have 64 tasks append, each to a stream of its own and one event after the other; returns how many there were."""
    each = max(1, times // TASKS)

    async def task(name: str) -> None:
        for number in range(each):
            await append(name, number)

    async with asyncio.TaskGroup() as group:
        for index in range(TASKS):
            group.create_task(task(f"order-{index}"))
    return each * TASKS


def many_tasks(ours_times: int, peer_times: int) -> Contest:
    """(2) Single durable appends by 64 tasks at once; those of the peer share a connection under a lock."""

    async def ours(store: EventStore) -> int:
        return await together(lambda name, n: store.append(name, "OrderPlaced", payload(n)), ours_times)

    async def peer(append: Callable[[str, str, Any], Awaitable[object]]) -> int:
        lock = asyncio.Lock()

        async def locked(name: str, number: int) -> None:
            async with lock:
                await append(name, "OrderPlaced", payload(number))

        return await together(locked, peer_times)

    return Contest(
        f"single durable appends by {TASKS} tasks",
        "events/s",
        True,
        {
            "aiostore": contender(open_aiostore, lambda store: rate(ours(store))),
            "aiosqlite": contender(open_aiosqlite, lambda store: rate(peer(store.append))),
            "aiosqlite, in one trip": contender(
                AioSqliteStore.open, lambda store: rate(peer(store.append_in_one_trip))
            ),
            "aiosqlite, stepwise": contender(AioSqliteStore.open, lambda store: rate(peer(store.append_stepwise))),
        },
        [
            Row("aiostore", "aiosqlite", Goal(15, at_most=False)),
            Row("aiostore", "aiosqlite, in one trip"),
            Row("aiostore", "aiosqlite, stepwise"),
        ],
    )


def batches(times: int) -> Contest:
    """(3) Batches of 1,000 events, each durable before the next.

    The peer is taken with the JSON of the standard library, which a store written by hand mostly has, and with ours.
    """
    events = [("OrderPlaced", payload(number)) for number in range(BATCH_EVENTS)]

    async def ours(store: EventStore) -> int:
        for number in range(times):
            await store.append_batch(stream(number), events)
        return times * BATCH_EVENTS

    async def sqlite3(store: SqliteStore, encode: Callable[[Any], bytes | str]) -> int:
        for number in range(times):
            store.append_batch(stream(number), events, encode)
        return times * BATCH_EVENTS

    return Contest(
        f"batches of {BATCH_EVENTS:,}",
        "events/s",
        True,
        {
            "aiostore": contender(open_aiostore, lambda store: rate(ours(store))),
            "sqlite3, stdlib json": contender(open_sqlite, lambda store: rate(sqlite3(store, json.dumps))),
            "sqlite3, msgspec": contender(open_sqlite, lambda store: rate(sqlite3(store, msgspec.json.encode))),
        },
        [
            Row("aiostore", "sqlite3, stdlib json", Goal(2, at_most=False)),
            Row("aiostore", "sqlite3, msgspec", Goal(2, at_most=False)),
        ],
    )


@asynccontextmanager
async def filled_aiostore(directory: Path, events_count: int) -> AsyncIterator[EventStore]:
    """Ours, with so many events, but at least a batch."""
    events = [("OrderPlaced", payload(number)) for number in range(BATCH_EVENTS)]
    async with open_aiostore(directory) as store:
        for number in range(max(1, events_count // BATCH_EVENTS)):
            await store.append_batch(stream(number), events)
        yield store


def replay(events_count: int) -> Contest:
    """(4) Reading all events with their data decoded."""
    events = [("OrderPlaced", payload(number)) for number in range(BATCH_EVENTS)]
    batches_count = max(1, events_count // BATCH_EVENTS)

    def filled(directory: Path) -> AbstractAsyncContextManager[EventStore]:
        return filled_aiostore(directory, events_count)

    @asynccontextmanager
    async def filled_sqlite(directory: Path) -> AsyncIterator[SqliteStore]:
        async with open_sqlite(directory) as store:
            for number in range(batches_count):
                store.append_batch(stream(number), events)
            yield store

    @asynccontextmanager
    async def filled_aiosqlite(directory: Path) -> AsyncIterator[AioSqliteStore]:
        async with filled_sqlite(directory), AioSqliteStore.open(directory) as store:
            yield store

    async def one_by_one(store: EventStore) -> int:
        paid = [event.data["paid"] async for event in store.read_all()]
        return len(paid)

    async def by_batches(store: EventStore) -> int:
        paid: list[bool] = []
        async for batch in store.read_all().batches():
            paid += [event.data["paid"] for event in batch]
        return len(paid)

    async def sqlite3(store: SqliteStore, decode: Callable[[bytes], Any]) -> int:
        paid = [decode(row[-1])["paid"] for row in store.read_all()]
        return len(paid)

    async def aiosqlite(store: AioSqliteStore) -> int:
        async with store.read_all() as rows:
            paid = [msgspec.json.decode(row[-1])["paid"] async for row in rows]
        return len(paid)

    return Contest(
        f"replay of {batches_count * BATCH_EVENTS:,}, decoded",
        "events/s",
        True,
        {
            "aiostore": contender(filled, lambda store: rate(one_by_one(store))),
            "aiostore, batches": contender(filled, lambda store: rate(by_batches(store))),
            "sqlite3, stdlib json": contender(filled_sqlite, lambda store: rate(sqlite3(store, json.loads))),
            "sqlite3, msgspec": contender(filled_sqlite, lambda store: rate(sqlite3(store, msgspec.json.decode))),
            "aiosqlite, async for": contender(filled_aiosqlite, lambda store: rate(aiosqlite(store))),
        },
        [
            Row("aiostore", "sqlite3, stdlib json", Goal(1.5, at_most=False)),
            Row("aiostore", "sqlite3, msgspec", Goal(1.5, at_most=False)),
            Row("aiostore, batches", "sqlite3, msgspec"),
            Row("aiostore", "aiosqlite, async for"),
        ],
    )


def live(times: int) -> Contest:
    """(5) From the call of append to the body of a live ``async for``, beside the return of that same append."""
    returned: list[float] = []

    async def delivery(store: EventStore) -> float:
        called, back, seen = [], [], []

        async def read(events: Subscription) -> None:
            async for _ in events:
                seen.append(time.perf_counter())
                if len(seen) == WARM_UP + times:
                    break

        async with store.subscribe(after=END) as events, asyncio.TaskGroup() as group:
            group.create_task(read(events))
            for number in range(WARM_UP + times):
                called.append(time.perf_counter())
                await store.append("order-1", "OrderPlaced", payload(number))
                back.append(time.perf_counter())
        returned.append(median_us(called, back))
        return median_us(called, seen)

    async def just_returned(directory: Path) -> float:
        return returned[-1]

    return Contest(
        "append to the body of a live async for, p50",
        "µs",
        False,
        {
            "aiostore": contender(open_aiostore, delivery),
            "return of that append": contender(nullcontext, just_returned),
        },
        [Row("aiostore", "return of that append", Goal(1.2, at_most=True))],
    )


def contests(scale: float) -> list[Contest]:
    """All of them; ``scale`` 1 is the full size."""

    def scaled(times: int) -> int:
        return max(1, round(times * scale))

    return [
        one_at_a_time(scaled(200)),
        many_tasks(scaled(12_800), scaled(1_280)),
        batches(scaled(30)),
        replay(scaled(200_000)),
        live(scaled(200)),
    ]
