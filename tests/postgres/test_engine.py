"""What is stored comes back as it was, through every index; options, locations and schemas."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from typing import Literal

import asyncpg
import pytest

from aiostore import (
    EngineUnavailable,
    EngineUnsupported,
    EventStore,
    InvalidEvent,
    NewEvent,
    Query,
    QueryItem,
    StateConflict,
    StoreClosed,
    StoreCorrupt,
)
from aiostore.engine import Question, Selection
from aiostore.engines.connect import connect
from aiostore.engines.postgres import schema as schemas
from aiostore.engines.postgres.engine import PostgresEngine
from aiostore.engines.postgres.failures import mapped
from aiostore.engines.postgres.location import parse_location
from aiostore.engines.postgres.pages import PAGE_BYTES, Scan, meet
from tests.postgres.appends import append, commit, ids, read_all, stored, tagged, until
from tests.postgres.conftest import OpenEngine
from tests.postgres.fixtures import NewUrl
from tests.postgres.server import Server

HOSTILE = [
    "'; DROP TABLE events; --",
    '"quoted" $1 %s {schema} \\ \\u0000',
    "ключ-日本語-🎉" * 20,
    "a" * 1024,
    "%_LIKE%",
    "NULL",
    " ",
]


# What is stored


async def test_hostile_names_are_stored_and_read_exactly(engine: PostgresEngine) -> None:
    names = [name[:60] for name in HOSTILE]
    for stream_id, name in zip(HOSTILE, names, strict=True):
        await commit(engine, append(stream_id, [NewEvent(name, {name: name}, {name: 1}, [name])], key=name))
    events = await read_all(engine)
    assert [event.stream_id for event in events] == HOSTILE
    for event, name in zip(events, names, strict=True):
        assert (event.event_type, event.data, event.metadata, event.tags) == (name, {name: name}, {name: 1}, (name,))
        for query in (Query.where(tags=name), Query.where(types=name), Query.where(stream_prefix=event.stream_id)):
            assert await read_all(engine, Selection(up_to=99, query=query)) == [event]
        assert await read_all(engine, Selection(up_to=99, stream_id=event.stream_id)) == [event]
        assert (await engine.facts(Question(idempotency_key=(event.stream_id, name)))).stored == [event]


async def test_the_bytes_of_data_come_back_as_they_were(engine: PostgresEngine) -> None:
    data = {"nul": "\0", "big": 2**64 - 1, "float": 1e-300, "text": "é\u2028\\u0000", "b": [], "a": {"": None}}
    given = append("s", [("E", data), NewEvent("E", {}, {"\0": "\0"})])
    await commit(engine, given)
    first, second = await read_all(engine)
    assert bytes(first._data) == bytes(given.parts[0].drafts[0].data)
    assert first.data == data
    assert second.metadata == {"\0": "\0"}


async def test_names_that_cannot_be_stored_match_nothing(engine: PostgresEngine) -> None:
    await commit(engine, append("s", tagged(1, "t")))
    for name in ("\0", "a\0b", "\ud800"):
        for query in (Query.where(types=name), Query.where(tags=["t", name]), Query.where(stream_prefix=name)):
            assert await read_all(engine, Selection(up_to=9, query=query)) == []
            assert ids(await read_all(engine, Selection(up_to=9, query=query | Query.where(tags="t")))) == [1]
        assert await read_all(engine, Selection(up_to=9, stream_id=name)) == []
        facts = await engine.facts(Question([name, "s"], (name, name)))
        assert (facts.versions, facts.stored) == ({name: 0, "s": 1}, None)
    assert ids(await read_all(engine, Selection(up_to=9, query=Query.where(types=["\0", "E"])))) == [1]


async def test_large_events_come_in_pages_of_bounded_bytes(engine: PostgresEngine) -> None:
    half = "x" * (PAGE_BYTES // 2)
    for _ in range(2):
        await commit(engine, append("s", [NewEvent("E", {"x": half}, tags=["t"]) for _ in range(3)]))
    await commit(engine, append("large", [("L", {"x": "y" * 15_000_000})]))
    every = [None, Query.where(types="E"), Query.where(tags="t"), Query.where(stream_prefix="s")]
    every.append(Query(QueryItem(tags=("t",), types=("E",)), QueryItem(types=("Z",))))
    for query in every:
        for backwards in (False, True):
            selection = Selection(up_to=6, query=query, backwards=backwards)
            page = await engine.read(selection)
            assert len(page.events) == 2
            assert page.cursor is not None
            expected = [6, 5, 4, 3, 2, 1] if backwards else [1, 2, 3, 4, 5, 6]
            assert ids(await read_all(engine, selection)) == expected
    page = await engine.read(Selection(up_to=7, after=6))
    assert len(page.events[0].data["x"]) == 15_000_000
    commits = await engine.commits_after(0)
    assert [len(commit.events) for commit in commits] == [3, 3, 1]


@pytest.mark.parametrize("page_events", [1, 7, 500])
async def test_every_selection_reads_what_a_walk_over_all_events_finds(
    engine: PostgresEngine, page_events: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiostore.engines.postgres.pages.EXAMINED", 9)
    monkeypatch.setattr("aiostore.engines.postgres.pages.WINDOW", 11)
    chance = random.Random(page_events)
    streams, types, tags = ["a", "ab", "abc", "b"], ["T", "U", "V"], ["x", "y", "z"]
    for _ in range(40):
        events = [
            NewEvent(chance.choice(types), {}, tags=chance.sample(tags, chance.randrange(4)))
            for _ in range(chance.randrange(1, 5))
        ]
        await commit(engine, append(chance.choice(streams), events))
    everything = await read_all(engine)
    assert ids(everything) == list(range(1, len(everything) + 1))
    for _ in range(60):
        items = [
            QueryItem(
                tuple(chance.sample(types, chance.choice((0, 0, 1, 2)))),
                tuple(chance.sample(tags, chance.choice((0, 1, 2)))),
                chance.choice((None, None, "a", "ab", "q")),
            )
            for _ in range(chance.choice((0, 1, 1, 2, 3)))
        ]
        query = Query(*items) if items else None
        stream_id = chance.choice((None, None, *streams))
        low, high = sorted(chance.sample(range(len(everything) + 2), 2))
        versions = (chance.choice((1, 3)), chance.choice((None, 8))) if stream_id else (1, None)
        selection = Selection(high, low, stream_id, *versions, query, backwards=chance.random() < 0.5)
        wanted = [
            event
            for event in everything
            if low < event.event_id <= high
            and (query is None or query.matches(event))
            and (stream_id is None or event.stream_id == stream_id)
            and versions[0] <= event.version <= (versions[1] or 2**63)
        ]
        found = await read_all(engine, selection, page_events)
        assert found == (wanted[::-1] if selection.backwards else wanted), selection


async def test_a_stream_is_read_from_the_middle_without_its_beginning(engine: PostgresEngine) -> None:
    for _ in range(4):
        await commit(engine, append("other", [("E", {})] * 3), append("long", [("E", {})] * 500))
    everything = await read_all(engine, Selection(up_to=9999, stream_id="long"))
    for after in (0, 1, 502, 503, 504, 1300, 2011, 2012):
        found = await read_all(engine, Selection(up_to=9999, stream_id="long", after=after), 300)
        assert found == [event for event in everything if event.event_id > after]


def test_scans_meet_where_all_of_them_know() -> None:
    few, many = Scan([5, 900], 1000), Scan([1, 2, 5, 7], 7)
    assert meet([few, many], backwards=False) == ([5, 900], 1000)  # 900 lies beyond what the other knows: looked at
    assert meet([Scan([3, 9], 9), Scan([3, 5, 7, 9], 9)], backwards=False) == ([3, 9], 9)
    assert meet([Scan([900, 5], 0), Scan([990, 980], 980)], backwards=True) == ([900, 5], 0)


async def test_what_readers_get_is_their_own(engine: PostgresEngine) -> None:
    await commit(engine, append("s", [("E", {"a": []})]))
    first, second = (await read_all(engine))[0], (await read_all(engine))[0]
    first.data["a"].append(1)
    assert second.data == {"a": []}


async def test_timestamps_never_go_back(engine: PostgresEngine) -> None:
    await commit(engine, append(), timestamp="2026-11-23T04:50:00.123456Z")
    await commit(engine, append(), timestamp="2020-01-01T00:00:00.000000Z")
    committed = await commit(engine, append(), timestamp="2026-11-23T04:50:01.000000Z")
    assert [event._timestamp for event in await read_all(engine)] == [
        "2026-11-23T04:50:00.123456Z",
        "2026-11-23T04:50:00.123456Z",
        "2026-11-23T04:50:01.000000Z",
    ]
    assert stored(committed)[0]._timestamp == "2026-11-23T04:50:01.000000Z"


async def test_numbers_beyond_what_the_server_counts_are_bounds_like_others(engine: PostgresEngine) -> None:
    await commit(engine, append())
    huge = 10**30
    assert ids(await read_all(engine, Selection(up_to=huge))) == [1]
    assert await read_all(engine, Selection(up_to=huge, after=huge)) == []
    assert ids(await read_all(engine, Selection(up_to=huge, stream_id="s", to_version=huge))) == [1]
    assert await read_all(engine, Selection(up_to=huge, stream_id="s", from_version=huge)) == []
    committed = await commit(engine, append(expected=huge))
    assert repr(committed.outcomes) == f"[ConcurrencyConflict('s', {huge}, 1)]"


# Locations and options


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:secret@h:5/d", "postgresql://u@h:5/d"),
        ("postgres://u:s%40cret@h1:1,h2:2/d?sslmode=require", "postgres://u@h1:1,h2:2/d?sslmode=require"),
        ("postgresql:///d?host=/tmp/x&password=secret", "postgresql:///d?host=/tmp/x"),
        ("postgresql://h/d?schema=mine", "postgresql://h/d?schema=mine"),
        ("postgresql://h/d?schema=aiostore", "postgresql://h/d"),
    ],
)
def test_a_location_does_not_show_the_password(url: str, shown: str) -> None:
    engine = connect(url, {})
    assert engine.location == shown
    assert "cret" not in repr(engine) + engine.location
    assert parse_location(shown, None).shown == shown


@pytest.mark.parametrize("schema", ["", "A", "1a", "a-b", 'a"; DROP', "a" * 49, "pg_mine", "a b", "ä", 7])
def test_a_schema_has_a_plain_name(schema: object) -> None:
    with pytest.raises(ValueError, match="schema must be"):
        connect("postgresql://h/d", {"schema": schema})


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "w"},
        {"pool_size": 0},
        {"pool_size": True},
        {"connect_timeout": 0},
        {"command_timeout": "1"},
        {"retry_timeout": -1},
        {"poll_interval": float("nan")},
    ],
    ids=str,
)
def test_options_are_checked(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        connect("postgresql://h/d", options)


def test_the_url_and_the_option_must_not_name_two_schemas() -> None:
    with pytest.raises(ValueError, match="schema"):
        connect("postgresql://h/d?schema=a", {"schema": "b"})
    with pytest.raises(TypeError):
        connect("postgresql://h/d", {"durability": "fsync"})


def test_without_the_driver_there_is_a_hint() -> None:
    code = "import sys; sys.modules['asyncpg'] = None; import aiostore; aiostore.EventStore('postgresql://h/d')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "EngineUnavailable" in run.stderr
    assert "pip install '.[postgres]' from the checkout" in run.stderr


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    engine = PostgresEngine("postgresql://nobody@127.0.0.1:1/d")
    with pytest.raises(EngineUnavailable, match=r"127\.0\.0\.1:1"):
        await engine.open()
    await engine.aclose()


async def test_what_the_server_refuses_says_why(postgres_server: Server) -> None:
    engine = PostgresEngine(f"postgresql://nobody:secret@127.0.0.1:{postgres_server.port}/postgres")
    with pytest.raises(EngineUnavailable, match='role "nobody" does not exist'):
        await engine.open()


async def test_the_unix_socket_works_too(postgres_server: Server) -> None:
    async with EventStore(postgres_server.socket_url, schema="by_socket") as store:
        await store.append("s", "E", {})


# Schemas


async def test_many_that_open_a_new_store_at_once_make_it_once(new_postgres_url: NewUrl) -> None:
    url = new_postgres_url()
    engines = [PostgresEngine(url) for _ in range(8)]
    try:
        await asyncio.gather(*(engine.open() for engine in engines))
        await asyncio.gather(*(commit(engine, append()) for engine in engines))
        assert ids(await read_all(engines[0])) == list(range(1, 9))
    finally:
        await asyncio.gather(*(engine.aclose() for engine in engines))


async def test_a_schema_of_somebody_else_is_left_alone(postgres_server: Server) -> None:
    connection = await asyncpg.connect(postgres_server.url)
    for name, table in (("foreign_a", "orders (id int)"), ("foreign_b", "meta (a int)")):
        await connection.execute(f"CREATE SCHEMA {name}; CREATE TABLE {name}.{table}")
        with pytest.raises(EngineUnsupported, match="not a store"):
            await PostgresEngine(postgres_server.url, schema=name).open()
    await connection.close()


@pytest.mark.parametrize("mode", ["rw", "r"])
async def test_another_format_is_refused(
    open_engine: OpenEngine, postgres_server: Server, mode: Literal["rw", "r"]
) -> None:
    engine = await open_engine()
    schema = engine.location.rpartition("=")[2]
    connection = await asyncpg.connect(postgres_server.url)
    for other in (schemas.FORMAT - 1, schemas.FORMAT + 1):
        await connection.execute(f"UPDATE {schema}.meta SET value = '{other}' WHERE name = 'aiostore'")
        with pytest.raises(EngineUnsupported, match=f"has format {other}, and this version has {schemas.FORMAT}"):
            await PostgresEngine(engine.location, mode=mode).open()
    await connection.close()


async def test_an_empty_schema_of_the_administrator_is_used(postgres_server: Server) -> None:
    connection = await asyncpg.connect(postgres_server.url)
    await connection.execute(
        "CREATE ROLE tenant LOGIN; CREATE SCHEMA given AUTHORIZATION tenant;"
        "CREATE ROLE guest LOGIN; GRANT CONNECT ON DATABASE postgres TO guest"
    )
    await connection.close()
    url = postgres_server.url.replace("postgres@", "tenant@")
    async with EventStore(url, schema="given") as store:
        await store.append("s", "E", {})
    with pytest.raises(EngineUnavailable, match="permission denied"):
        await PostgresEngine(url, schema="not_given").open()
    with pytest.raises(EngineUnavailable, match="permission denied"):
        await PostgresEngine(postgres_server.url.replace("postgres@", "guest@"), schema="given").open()


async def test_a_database_in_another_encoding_is_refused(postgres_server: Server) -> None:
    connection = await asyncpg.connect(postgres_server.url)
    await connection.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    await connection.close()
    with pytest.raises(EngineUnsupported, match="LATIN1"):
        await PostgresEngine(postgres_server.url.removesuffix("postgres") + "latin").open()


async def test_opened_to_read_it_makes_nothing_and_writes_nothing(
    open_engine: OpenEngine, new_postgres_url: NewUrl
) -> None:
    url = new_postgres_url()
    with pytest.raises(EngineUnavailable, match="mode='rw'"):
        await PostgresEngine(url, mode="r").open()
    writer = await open_engine(url)
    await commit(writer, append())
    await writer.save_state("k", 1, b"v")
    reader = await open_engine(url, mode="r")
    assert reader.read_only
    assert ids(await read_all(reader)) == [1]
    assert (await reader.load_state("k")) == (1, b"v", 1, True)
    with pytest.raises(EngineUnsupported, match="mode='r'"):
        await commit(reader, append())
    with pytest.raises(EngineUnsupported, match="mode='r'"):
        await reader.save_state("k", 1, b"w")


async def test_lazy_commits_of_the_server_are_made_durable_ones(own_server: Server) -> None:
    own_server.stop_process()
    own_server.settings["synchronous_commit"] = "off"
    own_server.start()
    engine = PostgresEngine(own_server.url)
    await engine.open()
    try:
        assert await engine._ask("SELECT current_setting('synchronous_commit') AS x") == [("on",)]
    finally:
        await engine.aclose()


# Closing


async def test_a_closed_engine_says_so(new_postgres_url: NewUrl) -> None:
    engine = PostgresEngine(new_postgres_url())
    await engine.aclose()
    await engine.open()
    waiting = asyncio.create_task(engine.changed(0))
    await asyncio.sleep(0)
    await asyncio.gather(engine.aclose(), engine.aclose())
    with pytest.raises(StoreClosed):
        await waiting
    for call in (engine.facts(Question()), commit(engine, append()), engine.commits_after(0), engine.load_state("k")):
        with pytest.raises(StoreClosed):
            await call


async def test_nothing_of_a_closed_engine_stays_in_the_server(
    postgres_server: Server, new_postgres_url: NewUrl
) -> None:
    engine = PostgresEngine(new_postgres_url())
    await engine.open()
    await commit(engine, append())
    schema = engine.location.rpartition("=")[2]
    await engine.aclose()
    connection = await asyncpg.connect(postgres_server.url)
    assert await connection.fetchval(f"SELECT count(*) FROM {schema}.writers") == 0
    query = "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'aiostore'"
    await until(lambda: connection.fetchval(query))
    await connection.close()


# States


async def test_a_state_fits_only_the_events_it_was_made_of(engine: PostgresEngine) -> None:
    for n in range(3):
        await commit(engine, append("s", [("E", {"n": n})]))
    await engine.save_state("k", 3, b"v")
    schema = engine.location.rpartition("=")[2]
    kept = await engine.load_state("k")
    assert kept is not None
    assert kept.fits
    # A backup is restored, and the store goes on otherwise.
    await engine._ask(f"DELETE FROM {schema}.events WHERE pos = 3")
    kept = await engine.load_state("k")
    assert kept is not None
    assert not kept.fits
    await engine._ask(f"UPDATE {schema}.head SET pos = 2")
    await engine._ask(f"UPDATE {schema}.streams SET version = 2")
    await commit(engine, append("s", [("E", {"n": 3})]))
    kept = await engine.load_state("k")
    assert kept is not None
    assert not kept.fits
    await engine.save_state("k", 3, b"w")
    kept = await engine.load_state("k")
    assert kept is not None
    assert kept.fits


async def test_a_state_of_events_that_are_not_there_is_refused(engine: PostgresEngine) -> None:
    with pytest.raises(StoreCorrupt):
        await engine.save_state("k", 1, b"v")
    with pytest.raises(InvalidEvent):
        await engine.save_state("\0", 0, b"v")
    assert await engine.load_state("\0") is None
    with pytest.raises(StateConflict):
        await engine.save_state("k", 0, b"v", expected_revision=4)


# Errors


def test_errors_of_the_server_become_ours() -> None:
    def error(state: str) -> asyncpg.PostgresError:
        return asyncpg.PostgresError.new({"C": state, "M": "so it is", "S": "ERROR"})

    names = {
        state: type(mapped(error(state), "here")).__name__ for state in ("53100", "42501", "25006", "57014", "54000")
    }
    assert names == {
        "53100": "StoreFull",
        "42501": "EngineUnavailable",
        "25006": "EngineUnavailable",
        "57014": "EngineUnavailable",
        "54000": "InvalidEvent",
    }
    assert type(mapped(OSError("gone"), "here")) is EngineUnavailable


def test_the_lock_belongs_to_the_schema() -> None:
    assert schemas.lock_of("a") != schemas.lock_of("b")
    assert -(2**63) <= schemas.lock_of("a") < 2**63
