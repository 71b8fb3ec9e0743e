"""Many processes on one server: they append, race, are cancelled and cut off, and follow; then all accounts are laid
beside the log."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import msgspec
import pytest

from aiostore import Event, EventStore, Query
from tests.postgres.fixtures import NewUrl
from tests.postgres.notes import BUDGET, CONFLICT, MATCHED, STORED, Noted, Tally, check_notes, errors_of, tally_of
from tests.postgres.server import Server
from tests.postgres.worker import DEADLINE_S, STREAMS, TYPES, Child, Job
from tests.scheduler import take

SEED = int(os.environ.get("AIOSTORE_SEED", "11"))
PROCESSES = 8
TASKS = 8
COUNT = 40 * BUDGET

ENDED = "terminating connection due to administrator command"


async def whole_log(url: str) -> list[Event]:
    """All events of a store, read in a store opened for it; each stream read alone agrees."""
    async with await EventStore.open(url, mode="r") as store:
        log = await store.read_all().to_list()
        for stream_id in {event.stream_id for event in log}:
            stream = [event for event in log if event.stream_id == stream_id]
            assert await store.read_stream(stream_id).to_list() == stream
            assert await store.stream_version(stream_id) == len(stream)
        assert await store.read_all(backwards=True).to_list() == log[::-1]
        return log


@pytest.mark.timeout(300 * BUDGET)
async def test_processes_append_and_are_cut_off_and_nothing_is_missed_doubled_or_out_of_order(
    postgres_server: Server, new_postgres_url: NewUrl, tmp_path: Path
) -> None:
    url = new_postgres_url()
    ended_before = postgres_server.log.count(ENDED)

    def job(name: str, **more: object) -> Job:
        fields = {"url": url, "notes": str(tmp_path / name), "name": name, "seed": SEED + hash_of(name), **more}
        return msgspec.convert(fields, Job)

    appenders = [job(f"p{n}", tasks=TASKS, count=COUNT, ending=n % 2 == 0) for n in range(PROCESSES)]
    followers = [
        job("everything"),
        job("a stream", stream_id=STREAMS[2]),
        job("a query", types=TYPES[:2], tags=("grün",)),
        job("slow", slow=True),
    ]
    async with contextlib.AsyncExitStack() as stack:
        appending = [await stack.enter_async_context(Child(job)) for job in appenders]
        following = [await stack.enter_async_context(Child(job)) for job in followers]
        for child in (*appending, *following):
            await child.hear("ready")
        for child in (*following, *appending):
            await child.tell("go")
        for child in (*appending, *following):
            await child.hear("done")
        log = await whole_log(url)
        for child in (*appending, *following):
            await child.tell(len(log))
        accounts = [await child.end() for child in appending]
        seen = dict(zip([job.name for job in followers], [await child.end() for child in following], strict=True))

    notes = [msgspec.json.decode(line, type=Noted) for account in accounts for line in account[:-1]]
    assert len(notes) == PROCESSES * TASKS * COUNT
    check_notes(log, notes)
    assert errors_of(notes) <= {repr(TimeoutError())}, "who loses a connection gets another"
    outcomes = [noted.outcome for noted in notes]
    assert outcomes.count(STORED) > len(notes) // 3, "most went through"
    assert min(outcomes.count(CONFLICT), outcomes.count(MATCHED)) > 5, "there were races"
    assert postgres_server.log.count(ENDED) - ended_before >= 10, "backends were ended"
    for account in accounts:
        assert msgspec.json.decode(account[-1], type=Tally) == tally_of(log)
    assert seen["everything"] == [event.to_json() for event in log]
    assert seen["slow"] == seen["everything"]
    assert seen["a stream"] == [event.to_json() for event in log if event.stream_id == STREAMS[2]]
    query = Query.where(types=TYPES[:2], tags="grün")
    assert seen["a query"] == [event.to_json() for event in log if query.matches(event)]


def hash_of(name: str) -> int:
    """A number of a name, the same in each run."""
    return int.from_bytes(name.encode(), "big") % 100_003


# --- what others have open ---


@contextlib.asynccontextmanager
async def open_write(dsn: str, *, isolation: str = "read committed") -> AsyncIterator[asyncpg.Connection]:
    """A connection with a transaction that has written, and stays open."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("CREATE TABLE IF NOT EXISTS public.other (n int)")
        await connection.execute(f"BEGIN ISOLATION LEVEL {isolation}")
        await connection.execute("INSERT INTO public.other VALUES (1)")
        assert await connection.fetchval("SELECT pg_current_xact_id_if_assigned() IS NOT NULL")
        yield connection
        assert connection.is_in_transaction()
    finally:
        connection.terminate()


@contextlib.asynccontextmanager
async def other_database(server: Server) -> AsyncIterator[str]:
    """The DSN of another database of the same server."""
    name = f"other_{secrets.token_hex(4)}"
    connection = await asyncpg.connect(server.url)
    try:
        await connection.execute(f"CREATE DATABASE {name}")
        yield server.url.removesuffix("postgres") + name
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await connection.close()


async def appends_and_subscriptions_flow(here: EventStore, there: EventStore) -> None:
    async with asyncio.timeout(DEADLINE_S), here.subscribe() as own, there.subscribe() as others:
        for number in range(1, 31):
            event = await here.append("s", "E", {"n": number}, expected_version=number - 1)
            assert await take(others, 1) == await take(own, 1) == [event.event_id]
        await asyncio.gather(*(store.append("t", "E", {}) for store in (here, there) for _ in range(20)))
        assert await take(others, 40) == await take(own, 40) == list(range(31, 71))


@pytest.mark.parametrize("where", ["another database", "this database", "this database, with a snapshot of the store"])
async def test_an_open_write_transaction_stalls_neither_appends_nor_subscriptions(
    where: str, postgres_server: Server, new_postgres_url: NewUrl
) -> None:
    url = new_postgres_url()
    async with contextlib.AsyncExitStack() as stack:
        here = await stack.enter_async_context(EventStore(url))
        there = await stack.enter_async_context(EventStore(url))
        if where == "another database":
            dsn = await stack.enter_async_context(other_database(postgres_server))
            await stack.enter_async_context(open_write(dsn))
        elif where == "this database":
            await stack.enter_async_context(open_write(postgres_server.url))
        else:
            connection = await stack.enter_async_context(open_write(postgres_server.url, isolation="serializable"))
            schema = url.partition("schema=")[2]
            assert await connection.fetchval(f"SELECT count(*) FROM {schema}.events") == 0
        await appends_and_subscriptions_flow(here, there)
