"""What aiostore is measured against: event stores as one would write them by hand over sqlite3 and aiosqlite.

Both commit durably (WAL, ``synchronous=FULL``: one sync for each transaction) and give each event the next version of
its stream under a unique index. They are kept as fast as their library allows: one statement for each append, the same
JSON codec as aiostore, rows as plain tuples. They have no subscribers, listeners, conditions or idempotency keys.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

import aiosqlite
import msgspec

SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    event_id INTEGER PRIMARY KEY AUTOINCREMENT,
    stream_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    event_type TEXT NOT NULL,
    timestamp TEXT NOT NULL,
    data BLOB NOT NULL,
    UNIQUE (stream_id, version)
)
"""
PRAGMAS = ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL")
APPEND = """
INSERT INTO events (stream_id, version, event_type, timestamp, data)
SELECT ?1, coalesce(max(version), 0) + 1, ?2, ?3, ?4 FROM events WHERE stream_id = ?1
"""
APPEND_RETURNING = APPEND + "RETURNING event_id, version"
VERSION = "SELECT coalesce(max(version), 0) FROM events WHERE stream_id = ?"
INSERT = "INSERT INTO events (stream_id, version, event_type, timestamp, data) VALUES (?, ?, ?, ?, ?)"
READ_ALL = "SELECT event_id, stream_id, version, event_type, timestamp, data FROM events ORDER BY event_id"

READ_STREAM = """
SELECT event_id, stream_id, version, event_type, timestamp, data FROM events WHERE stream_id = ? ORDER BY version
"""

encode = msgspec.json.encode
"""To the bytes that are stored; `aiostore` uses the same codec."""

decode = msgspec.json.decode
"""From these bytes."""

SqliteRow = tuple[int, str, int, str, str, bytes]


def now() -> str:
    """The timestamp of an event."""
    return datetime.now(UTC).isoformat()


class SqliteStore:
    """An event store over sqlite3, synchronous."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    @classmethod
    @contextmanager
    def open(cls, directory: Path) -> Iterator[SqliteStore]:
        """The store of a directory."""
        with closing(sqlite3.connect(directory / "events.db", isolation_level=None)) as connection:
            for statement in (*PRAGMAS, SCHEMA):
                connection.execute(statement)
            yield cls(connection)

    def append(self, stream_id: str, event_type: str, data: Any) -> tuple[int, int]:
        """One event, in a transaction of its own; returns its event_id and version."""
        row: tuple[int, int] = self._db.execute(
            APPEND_RETURNING, (stream_id, event_type, now(), encode(data))
        ).fetchone()
        return row

    def append_batch(
        self, stream_id: str, events: Sequence[tuple[str, Any]], encode: Callable[[Any], bytes | str] = encode
    ) -> None:
        """Many events of one stream in one transaction."""
        db, timestamp = self._db, now()
        db.execute("BEGIN IMMEDIATE")
        try:
            (version,) = db.execute(VERSION, (stream_id,)).fetchone()
            rows = (
                (stream_id, number, event_type, timestamp, encode(data))
                for number, (event_type, data) in enumerate(events, version + 1)
            )
            db.executemany(INSERT, rows)
        except BaseException:
            db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")

    def fill(self, events: Iterable[tuple[str, int, str, Any]]) -> None:
        """Many events of any streams, each with its version, in one transaction."""
        db, timestamp = self._db, now()
        db.execute("BEGIN IMMEDIATE")
        db.executemany(
            INSERT,
            (
                (stream_id, version, event_type, timestamp, encode(data))
                for stream_id, version, event_type, data in events
            ),
        )
        db.execute("COMMIT")

    def read_all(self) -> Iterator[SqliteRow]:
        """All events in order, as rows; the last column is the encoded data."""
        return self._db.execute(READ_ALL)

    def read_stream(self, stream_id: str) -> Iterator[SqliteRow]:
        """The events of a stream in order, as rows."""
        return self._db.execute(READ_STREAM, (stream_id,))


class AioSqliteStore:
    """An event store over aiosqlite: one connection, each of whose awaits is a trip to its thread."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._db = connection

    @classmethod
    @asynccontextmanager
    async def open(cls, directory: Path, isolation_level: Literal["DEFERRED"] | None = None) -> AsyncIterator[Self]:
        """The store of a directory; with ``DEFERRED``, the default of sqlite3, an insert begins a transaction."""
        async with aiosqlite.connect(directory / "events.db", isolation_level=isolation_level) as connection:
            for statement in (*PRAGMAS, SCHEMA):
                await connection.execute(statement)
            yield cls(connection)

    async def append(self, stream_id: str, event_type: str, data: Any) -> None:
        """One event as aiosqlite's documentation writes a row: an insert, which begins a transaction, and a commit."""
        await self._db.execute(APPEND, (stream_id, event_type, now(), encode(data)))
        await self._db.commit()

    async def append_in_one_trip(self, stream_id: str, event_type: str, data: Any) -> tuple[int, int]:
        """The fastest that aiosqlite allows: one statement that commits itself; returns its event_id and version."""
        rows = await self._db.execute_fetchall(APPEND_RETURNING, (stream_id, event_type, now(), encode(data)))
        ((event_id, version),) = rows
        return event_id, version

    async def append_stepwise(self, stream_id: str, event_type: str, data: Any) -> None:
        """Begin, read the version, insert, commit, each awaited."""
        await self._db.execute("BEGIN IMMEDIATE")
        try:
            ((version,),) = await self._db.execute_fetchall(VERSION, (stream_id,))
            await self._db.execute(INSERT, (stream_id, version + 1, event_type, now(), encode(data)))
        except BaseException:
            await self._db.rollback()
            raise
        await self._db.commit()

    def read_all(self) -> AbstractAsyncContextManager[aiosqlite.Cursor]:
        """All events in order, as rows of the cursor; the last column is the encoded data."""
        return self._db.execute(READ_ALL)
