"""What is measured, opened: aiostore, its peers and bare files, each in the directory of its contender."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from aiostore import EventStore

from . import machine
from .contest import BATCH_EVENTS, batch_of_payloads, stream
from .eventsourcing_peer import EventsourcingStore
from .peers import AioSqliteStore, SqliteStore


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
async def open_eventsourcing(directory: Path) -> AsyncIterator[EventsourcingStore]:
    """The recorder of `eventsourcing` on SQLite."""
    with EventsourcingStore.open_sqlite(directory) as store:
        yield store


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


def batches_count(events_count: int) -> int:
    """How many batches hold so many events; at least one."""
    return max(1, events_count // BATCH_EVENTS)


@asynccontextmanager
async def filled_aiostore(directory: Path, events_count: int) -> AsyncIterator[EventStore]:
    """Ours, with so many events, but at least a batch."""
    events = batch_of_payloads()
    async with open_aiostore(directory) as store:
        for number in range(batches_count(events_count)):
            await store.append_batch(stream(number), events)
        yield store


@asynccontextmanager
async def filled_sqlite(directory: Path, events_count: int) -> AsyncIterator[SqliteStore]:
    """The blocking peer, with the same events."""
    events = batch_of_payloads()
    async with open_sqlite(directory) as store:
        for number in range(batches_count(events_count)):
            store.append_batch(stream(number), events)
        yield store
