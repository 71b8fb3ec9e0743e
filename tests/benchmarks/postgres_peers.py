"""What aiostore on PostgreSQL is measured against: a store by hand over asyncpg, and `eventsourcing`.

The store by hand gives each event the next version of its stream under a unique index, and has its writers wait for
each other until their commit is visible, so that whoever reads on behind the last position that it saw misses nothing.
It has no subscribers, listeners, conditions or idempotency keys.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Self

import asyncpg
import msgspec

from tests.postgres.server import Server

from .eventsourcing_peer import EventsourcingStore

POOL_SIZE = 10

SCHEMA = """
CREATE TABLE events (
    event_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    stream_id text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    event_type text NOT NULL,
    timestamp timestamptz NOT NULL,
    data json NOT NULL,
    metadata json,
    tags text[],
    UNIQUE (stream_id, version)
);
CREATE FUNCTION append(stream_id text, event_type text, moment timestamptz, data json,
    OUT event_id bigint, OUT version bigint)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    PERFORM pg_advisory_xact_lock({lock});
    INSERT INTO events AS e (stream_id, version, event_type, timestamp, data)
        SELECT append.stream_id, coalesce(max(version), 0) + 1, append.event_type, moment, append.data
        FROM events WHERE stream_id = append.stream_id
        RETURNING e.event_id, e.version INTO event_id, version;
END $$
"""
LOCK = "SELECT pg_advisory_xact_lock({lock})"
APPEND = """
INSERT INTO events (stream_id, version, event_type, timestamp, data)
SELECT $1, coalesce(max(version), 0) + 1, $2, $3, $4 FROM events WHERE stream_id = $1
RETURNING event_id, version
"""
APPEND_IN_ONE_TRIP = "SELECT event_id, version FROM append($1, $2, $3, $4)"
APPEND_AND_NOTIFY = f"WITH stored AS ({APPEND}) SELECT pg_notify('{{channel}}', event_id::text) FROM stored"
NOTIFY = "SELECT pg_notify('{channel}', $1)"
FILL = """
INSERT INTO events (stream_id, version, event_type, timestamp, data)
SELECT $1, $2 + n.place, n.type, $3, n.data FROM unnest($4::text[], $5::json[]) WITH ORDINALITY n(type, data, place)
"""
PAGE = """
SELECT event_id, stream_id, version, event_type, timestamp, data, metadata, tags FROM events
WHERE event_id > $1 ORDER BY event_id LIMIT $2
"""

# Of aiostore's own schema, as one who needs no judgement would fill it.
OUR_STREAM = "INSERT INTO streams (sid, name, version) VALUES ($1, $2, 0)"
OUR_BATCH = """
INSERT INTO events (pos, sid, version, type, ts, data, metadata, tags, key, more, size)
SELECT $1 + n.place, $2, $3 + n.place, n.type, $4, n.data, NULL, NULL, NULL, n.more, n.size
FROM unnest($5::text[], $6::json[], $7::integer[], $8::integer[]) WITH ORDINALITY n(type, data, more, size, place)
"""


def encode(data: Any) -> bytes:
    """To the bytes that are stored; `aiostore` uses the same codec."""
    return msgspec.json.encode(data)


def now() -> datetime:
    """The timestamp of an event."""
    return datetime.now(UTC)


async def connect(server: Server, schema: str) -> asyncpg.Connection[asyncpg.Record]:
    """A connection to a schema, whose JSON is what msgspec makes of it."""
    connection = await asyncpg.connect(server.url, server_settings={"search_path": schema})
    await take_json(connection)
    return connection


async def take_json(connection: Any) -> None:
    """Have the driver read JSON with msgspec, and take what is encoded already."""
    await connection.set_type_codec(
        "json", schema="pg_catalog", encoder=bytes, decoder=msgspec.json.decode, format="binary"
    )


async def make_schema(server: Server, schema: str, sql: str = "") -> None:
    """An empty schema, with what the statements make in it."""
    connection = await asyncpg.connect(server.url)
    try:
        await connection.execute(f"CREATE SCHEMA {schema}; SET search_path = {schema}; {sql}")
    finally:
        await connection.close()


async def drop_schema(server: Server, schema: str) -> None:
    """Without it, the server would go on to clean up what nobody looks at any more."""
    connection = await asyncpg.connect(server.url)
    try:
        await connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
    finally:
        await connection.close()


class BareStore:
    """An event store by hand over asyncpg."""

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record], schema: str) -> None:
        self._pool = pool
        self._names = {"{lock}": f"hashtext('{schema}')", "{channel}": schema}

    @classmethod
    @asynccontextmanager
    async def open(cls, server: Server, schema: str, size: int = POOL_SIZE) -> AsyncIterator[Self]:
        """The store of a new schema, with so many connections."""
        await make_schema(server, schema, SCHEMA.replace("{lock}", f"hashtext('{schema}')"))
        settings = {"search_path": schema}
        async with asyncpg.create_pool(
            server.url, min_size=size, max_size=size, init=take_json, server_settings=settings
        ) as pool:
            yield cls(pool, schema)
        await drop_schema(server, schema)

    def _sql(self, text: str) -> str:
        for name, value in self._names.items():
            text = text.replace(name, value)
        return text

    async def append(self, stream_id: str, event_type: str, data: Any, *, notify: bool = False) -> tuple[int, int]:
        """One event, in a transaction of its own, stepwise; returns its event_id and version."""
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(self._sql(LOCK))
            row = await connection.fetchrow(APPEND, stream_id, event_type, now(), encode(data))
            assert row is not None
            if notify:
                await connection.execute(self._sql(NOTIFY), str(row[0]))
        event_id, version = row
        return event_id, version

    async def append_in_one_trip(self, stream_id: str, event_type: str, data: Any) -> tuple[int, int]:
        """The same by a function in the server, which is as fast as it gets."""
        row = await self._pool.fetchrow(APPEND_IN_ONE_TRIP, stream_id, event_type, now(), encode(data))
        assert row is not None
        event_id, version = row
        return event_id, version

    async def append_and_notify(self, stream_id: str, event_type: str, data: Any) -> None:
        """One event and a notification in one statement; nothing orders it among those of others."""
        await self._pool.fetchrow(self._sql(APPEND_AND_NOTIFY), stream_id, event_type, now(), encode(data))

    async def fill(self, stream_id: str, version: int, events: Sequence[tuple[str, Any]]) -> None:
        """Many events of one stream above a version."""
        types, data = [event_type for event_type, _ in events], [encode(data) for _, data in events]
        await self._pool.execute(FILL, stream_id, version, now(), types, data)

    async def pages(self, size: int) -> AsyncIterator[Sequence[asyncpg.Record]]:
        """All events in order, as rows with the data decoded; each page begins behind the one before."""
        after = 0
        async with self._pool.acquire() as connection:
            while rows := await connection.fetch(PAGE, after, size):
                after = rows[-1][0]
                yield rows


class BareBatches:
    """Inserts into the tables and indexes that aiostore uses, by one connection and without any judgement."""

    def __init__(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self._db = connection
        self._pos = 0
        self._streams: dict[str, tuple[int, int]] = {}

    @classmethod
    @asynccontextmanager
    async def open(cls, server: Server, schema: str, ddl: str) -> AsyncIterator[Self]:
        """With the tables of a new schema."""
        await make_schema(server, schema, ddl)
        connection = await connect(server, schema)
        try:
            yield cls(connection)
        finally:
            await connection.close()
        await drop_schema(server, schema)

    async def append_batch(self, stream_id: str, events: Sequence[tuple[str, Any]]) -> None:
        """Many events of one stream by one statement."""
        if stream_id not in self._streams:
            self._streams[stream_id] = (len(self._streams) + 1, 0)
            await self._db.execute(OUR_STREAM, len(self._streams), stream_id)
        sid, version = self._streams[stream_id]
        types, data = [event_type for event_type, _ in events], [encode(data) for _, data in events]
        more = list(range(len(events) - 1, -1, -1))
        await self._db.execute(OUR_BATCH, self._pos, sid, version, now(), types, data, more, [*map(len, data)])
        self._pos += len(events)
        self._streams[stream_id] = (sid, version + len(events))


@asynccontextmanager
async def open_eventsourcing(server: Server, schema: str) -> AsyncIterator[EventsourcingStore]:
    """The recorder of `eventsourcing`, in a new schema."""
    await make_schema(server, schema)
    environment = {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": "postgres",
        "POSTGRES_HOST": "127.0.0.1",
        "POSTGRES_PORT": str(server.port),
        "POSTGRES_USER": "postgres",
        "POSTGRES_PASSWORD": "none",
        "POSTGRES_SCHEMA": schema,
    }
    with EventsourcingStore.open(environment) as store:
        yield store
    await drop_schema(server, schema)
