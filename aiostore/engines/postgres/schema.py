"""The schema: its tables, how it is made, and how it is told that one is ours."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final

from aiostore.engine import FIRST_TIMESTAMP
from aiostore.engines.postgres import functions
from aiostore.errors import EngineUnavailable, EngineUnsupported

if TYPE_CHECKING:
    from asyncpg import Connection, Record

FORMAT: Final = 3
"""The number of the format that this code reads and writes: of its tables and functions."""

SERVER_VERSION_MIN: Final = 14
SCHEMA_DEFAULT: Final = "aiostore"

_NAME = re.compile(r"[a-z_][a-z0-9_]{0,47}")

# Names are compared and sorted by their bytes, whatever the database's own language is. What is updated often has room
# in its pages, so that an update stays in its page and no index is touched.
_TABLES = """
CREATE TABLE {schema}.meta (name text COLLATE "C" PRIMARY KEY, value text NOT NULL);
CREATE TABLE {schema}.head (
    id boolean PRIMARY KEY DEFAULT true CHECK (id),
    pos bigint NOT NULL, ts timestamptz NOT NULL, sids bigint NOT NULL
) WITH (fillfactor = 20);
CREATE TABLE {schema}.streams (
    sid bigint PRIMARY KEY, name text COLLATE "C" NOT NULL UNIQUE, version bigint NOT NULL
) WITH (fillfactor = 80);
CREATE TABLE {schema}.events (
    pos bigint PRIMARY KEY, sid bigint NOT NULL, version bigint NOT NULL, ts timestamptz NOT NULL,
    more integer NOT NULL, size integer NOT NULL, type text COLLATE "C" NOT NULL, data json NOT NULL, metadata json,
    tags text[] COLLATE "C", key text COLLATE "C",
    UNIQUE (sid, version)
);
CREATE INDEX events_type ON {schema}.events (type, pos);
CREATE UNIQUE INDEX events_key ON {schema}.events (sid, key) WHERE key IS NOT NULL;
CREATE TABLE {schema}.tags (tag text COLLATE "C", pos bigint, PRIMARY KEY (tag, pos));
CREATE TABLE {schema}.states (
    key text COLLATE "C" PRIMARY KEY, revision bigint NOT NULL, pos bigint NOT NULL, mark text NOT NULL,
    value bytea NOT NULL
);
CREATE TYPE {schema}.result AS (
    previous bigint, ts timestamptz, refused bigint[], verdicts smallint[], details bigint[], versions bigint[]
);
CREATE TABLE {schema}.writers (
    writer uuid PRIMARY KEY, token bigint NOT NULL, group_number bigint NOT NULL, seen timestamptz NOT NULL,
    result {schema}.result
) WITH (fillfactor = 20);
INSERT INTO {schema}.head (pos, ts, sids) VALUES (0, '{first}', 0);
INSERT INTO {schema}.meta VALUES ('aiostore', '{format}'), ('store_id', gen_random_uuid()::text);
"""


def checked_name(schema: object) -> str:
    """The name itself, if it is one that a schema may have; else ValueError."""
    if not isinstance(schema, str) or _NAME.fullmatch(schema) is None or schema.startswith("pg_"):
        raise ValueError(
            f"schema must be 1 to 48 of a-z, 0-9 and _, not beginning with a digit or pg_, not {schema!r:.80}"
        )
    return schema


def lock_of(schema: str, what: str = "") -> int:
    """The number of the advisory lock that writers of this schema take, one at a time; ``what``: of its states."""
    name = f"aiostore{what}:{schema}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


def channel_of(schema: str) -> str:
    """Where it is made known that the schema has new events."""
    return f"aiostore_{schema}"


def ddl(schema: str) -> str:
    """The statements that make the tables and functions in an empty schema."""
    text = "".join((_TABLES, *functions.FUNCTIONS))
    fields = {
        "schema": schema,
        "lock": str(lock_of(schema)),
        "states_lock": str(lock_of(schema, "-states")),
        "channel": channel_of(schema),
        "first": FIRST_TIMESTAMP,
        "format": str(FORMAT),
        "fenced": functions.FENCED,
        "no_event": functions.NO_EVENT,
        "passed": str(functions.PASSED),
        "duplicate": str(functions.DUPLICATE),
        "conflict": str(functions.CONFLICT),
        "matched": str(functions.MATCHED),
    }
    return re.sub(r"\{(\w+)\}", lambda field: fields[field[1]], text).replace("{{}}", "{}")


def check_server(connection: Connection[Record]) -> None:
    """Raise `EngineUnsupported` for a server that cannot hold a store."""
    version = connection.get_server_version()
    if version.major < SERVER_VERSION_MIN:
        raise EngineUnsupported(f"PostgreSQL {version.major} is too old: {SERVER_VERSION_MIN} or later is needed")
    encoding = getattr(connection.get_settings(), "server_encoding", "UTF8")
    if encoding != "UTF8":
        raise EngineUnsupported(f"the database has the encoding {encoding}: a store needs one of ENCODING 'UTF8'")


async def check_or_create(connection: Connection[Record], schema: str, *, create: bool) -> None:
    """See that the schema holds a store of this format; make it if there is none and ``create`` says so.

    Raises `EngineUnsupported` where it is somebody else's or of another format, `EngineUnavailable` where it is not
    there and not to be made. Any number of processes may do this at once.
    """
    if await _is_ours(connection, schema):
        return
    if not create:
        raise EngineUnavailable(f"there is no store in the schema {schema!r}; open it with mode='rw' to make one")
    async with connection.transaction():
        await connection.execute(f"SELECT pg_advisory_xact_lock({lock_of(schema)})")
        if await _is_ours(connection, schema):  # made by somebody else meanwhile
            return
        if not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)", schema):
            await connection.execute(f"CREATE SCHEMA {schema}")
        await connection.execute(ddl(schema))


async def _is_ours(connection: Connection[Record], schema: str) -> bool:
    """Whether there is a store in the schema; False where there is nothing in it."""
    found = await connection.fetch(
        "SELECT c.relname::text AS name, a.attname::text AS column FROM pg_class c"
        " JOIN pg_namespace n ON n.oid = c.relnamespace"
        " LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND c.relname = 'meta' AND a.attnum > 0 AND NOT a.attisdropped"
        " WHERE n.nspname = $1 AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')",
        schema,
    )
    if not found:
        return False
    stated = None
    if {record["column"] for record in found if record["name"] == "meta"} == {"name", "value"}:
        stated = await connection.fetchval(f"SELECT value FROM {schema}.meta WHERE name = 'aiostore'")
    if stated is None:
        raise EngineUnsupported(f"the schema {schema!r} holds other tables, not a store; give another with schema=…")
    if stated != str(FORMAT):
        raise EngineUnsupported(
            f"the store in the schema {schema!r} has format {stated}, and this version has {FORMAT}: open it with one "
            "that has the same"
        )
    return True
