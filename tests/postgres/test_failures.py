"""What breaks: sessions, servers, the time that is given. Nothing acknowledged is lost, and every outcome is true."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from aiostore import EngineUnavailable, EventStore, OutcomeUnknown, StoreFull
from aiostore.engine import Committed, Question
from aiostore.engines.postgres.connections import Session
from aiostore.engines.postgres.engine import PostgresEngine
from aiostore.engines.postgres.schema import lock_of
from tests.postgres.appends import append, commit, ids, read_all, stored, until
from tests.postgres.conftest import OpenEngine
from tests.postgres.fixtures import new_url
from tests.postgres.server import Server

Ask = Callable[..., Awaitable[list[Any]]]


def writing_pid(engine: PostgresEngine) -> int:
    assert engine._writer is not None
    pid = engine._writer.pid()
    assert pid is not None
    return pid


async def terminate(connection: asyncpg.Connection[asyncpg.Record], pid: int) -> None:
    await connection.execute("SELECT pg_terminate_backend($1)", pid)
    query = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)"
    await until(lambda: connection.fetchval(query, pid))


def before_groups(monkeypatch: pytest.MonkeyPatch, *steps: Callable[[Session], Awaitable[None]]) -> None:
    """Have each of the next groups wait for a step of its own before it is sent."""
    left = list(steps)
    ask: Ask = Session.ask

    async def asked(session: Session, sql: str, *args: object, **options: Any) -> list[Any]:
        if "append_group" in sql and left:
            await left.pop(0)(session)
        return await ask(session, sql, *args, **options)

    monkeypatch.setattr(Session, "ask", asked)


def after_groups(monkeypatch: pytest.MonkeyPatch, *steps: Callable[[Session], Awaitable[None]]) -> None:
    """Have each of the next groups lose its answer: it is carried out, then the step is taken and the session gone."""
    left = list(steps)
    ask: Ask = Session.ask

    async def asked(session: Session, sql: str, *args: object, **options: Any) -> list[Any]:
        rows = await ask(session, sql, *args, **options)
        if "append_group" in sql and left:
            await left.pop(0)(session)
            session.terminate()
            raise ConnectionResetError("the answer is lost")
        return rows

    monkeypatch.setattr(Session, "ask", asked)


async def nothing(_: Session) -> None:
    pass


@pytest.fixture
async def admin(postgres_server: Server) -> Any:
    connection = await asyncpg.connect(postgres_server.url)
    yield connection
    await connection.close()


# Sessions


async def test_a_session_ended_while_idle_is_made_anew(engine: PostgresEngine, admin: Any) -> None:
    await commit(engine, append())
    await terminate(admin, writing_pid(engine))
    assert ids(stored(await commit(engine, append()))) == [2]
    await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'aiostore'")
    assert ids(await read_all(engine)) == [1, 2]
    assert ids(stored(await commit(engine, append()))) == [3]


async def test_a_session_ended_in_the_middle_is_tried_again(
    engine: PostgresEngine, admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = engine.location.rpartition("=")[2]
    holder = admin.transaction()
    await holder.start()
    await admin.execute(f"SELECT pg_advisory_xact_lock({lock_of(schema)})")
    appending = asyncio.create_task(commit(engine, append(), append("t", key="k")))
    first = writing_pid(engine)
    query = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'advisory')"
    await until(lambda: admin.fetchval(query, first))
    await admin.execute("SELECT pg_terminate_backend($1)", first)
    await asyncio.sleep(0.05)
    assert not appending.done()
    await holder.rollback()
    assert len((await appending).commits) == 2
    assert writing_pid(engine) != first
    assert ids(await read_all(engine)) == [1, 2]


@pytest.mark.parametrize("times", [1, 3])
async def test_a_lost_answer_is_found_out(engine: PostgresEngine, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    await commit(engine, append("s"))
    after_groups(monkeypatch, nothing)
    committed = await commit(engine, append("s"), append("t", expected=7), append("u", key="k"), append("s"))
    assert committed.previous_head == 1
    assert [ids(one.events) for one in committed.commits] == [[2], [3], [4]]
    assert repr(committed.outcomes[1]) == "ConcurrencyConflict('t', 7, 0)"
    assert [event.version for event in await read_all(engine)] == [1, 2, 1, 3]
    assert await read_all(engine) == [*await read_all(engine)][:4]
    if times == 3:
        after_groups(monkeypatch, nothing)
        assert ids(stored(await commit(engine, append("s")))) == [5]
        assert ids(stored(await commit(engine, append("s")))) == [6]


async def test_a_lost_question_is_sent_again(engine: PostgresEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def lose(session: Session) -> None:
        session.terminate()
        raise ConnectionResetError("it was never sent")

    before_groups(monkeypatch, lose, lose)
    assert ids(stored(await commit(engine, append()))) == [1]
    assert ids(await read_all(engine)) == [1]


async def test_what_nothing_stored_is_judged_again_when_its_answer_is_lost(
    engine: PostgresEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_groups(monkeypatch, nothing)
    committed = await commit(engine, append("s", expected=3))
    assert repr(committed.outcomes) == "[ConcurrencyConflict('s', 3, 0)]"


async def test_a_call_that_comes_late_is_refused(engine: PostgresEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    late: list[asyncio.Task[Any]] = []
    ask: Ask = Session.ask

    async def asked(session: Session, sql: str, *args: object, **options: Any) -> list[Any]:
        if "append_group" in sql and not late:
            gate = asyncio.Event()

            async def come_late() -> Any:
                await gate.wait()
                return await ask(session, sql, *args, **options)

            late.append(asyncio.create_task(come_late()))
            late[0].add_done_callback(lambda _: session.terminate())
            asyncio.get_running_loop().call_later(0.2, gate.set)
            engine._writer._session = None  # type: ignore[union-attr]
            raise ConnectionResetError("it is stuck somewhere")
        return await ask(session, sql, *args, **options)

    monkeypatch.setattr(Session, "ask", asked)
    monkeypatch.setattr("aiostore.engines.postgres.writer.Writer._drop", lambda _: None)
    assert ids(stored(await commit(engine, append()))) == [1]
    with pytest.raises(asyncpg.PostgresError, match="has taken over"):
        await late[0]
    assert ids(await read_all(engine)) == [1]


async def test_a_writer_that_was_forgotten_goes_on(engine: PostgresEngine) -> None:
    await commit(engine, append())
    await engine._ask(f"DELETE FROM {engine.location.rpartition('=')[2]}.writers")
    assert ids(stored(await commit(engine, append()))) == [2]


async def test_a_lock_that_is_held_too_long_is_given_up_in_time(open_engine: OpenEngine, admin: Any) -> None:
    engine = await open_engine(command_timeout=0.3, retry_timeout=0.3)
    holder = admin.transaction()
    await holder.start()
    await admin.execute(f"SELECT pg_advisory_xact_lock({lock_of(engine.location.rpartition('=')[2])})")
    began = time.monotonic()
    with pytest.raises(EngineUnavailable, match="took too long"):
        await commit(engine, append())
    assert time.monotonic() - began < 10
    await holder.rollback()
    assert ids(stored(await commit(engine, append()))) == [1]


async def test_a_full_disk_stores_nothing(engine: PostgresEngine) -> None:
    schema = engine.location.rpartition("=")[2]
    await engine._ask(
        f"CREATE FUNCTION {schema}.full() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'no space left' USING ERRCODE = '53100'; END $$"
    )
    await engine._ask(f"CREATE TRIGGER full_up BEFORE INSERT ON {schema}.events EXECUTE FUNCTION {schema}.full()")
    with pytest.raises(StoreFull, match="no space left"):
        await commit(engine, append())
    await engine._ask(f"DROP TRIGGER full_up ON {schema}.events")
    assert ids(stored(await commit(engine, append()))) == [1]


async def test_a_pool_that_is_in_use_is_waited_for(open_engine: OpenEngine) -> None:
    engine = await open_engine(pool_size=1)
    await commit(engine, append())
    slow = asyncio.create_task(engine._ask("SELECT pg_sleep(0.3)"))
    results = await asyncio.gather(*(engine.facts(Question(["s"])) for _ in range(20)))
    assert {result.head for result in results} == {1}
    assert slow.done()
    await slow


async def test_a_server_without_room_for_sessions_is_unavailable(own_server: Server) -> None:
    own_server.stop_process()
    own_server.settings.update(max_connections="10", superuser_reserved_connections="0")
    own_server.start()
    engine = PostgresEngine(own_server.url, retry_timeout=0.3)
    await engine.open()
    others = [await asyncpg.connect(own_server.url) for _ in range(8)]
    try:
        results = await asyncio.gather(*(engine._ask("SELECT pg_sleep(1)") for _ in range(3)), return_exceptions=True)
        assert sum(isinstance(result, EngineUnavailable) for result in results) == 2
        assert (await engine.facts(Question())).head == 0
    finally:
        for other in others:
            await other.close()
        await engine.aclose()


# Cancellation


async def test_once_sent_a_group_is_waited_for(engine: PostgresEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()
    after_groups(monkeypatch, lambda _: gate.wait())  # type: ignore[arg-type, return-value]
    reached: list[Committed] = []

    async def appending() -> None:
        reached.append(await commit(engine, append()))
        await asyncio.sleep(3600)

    task = asyncio.create_task(appending())
    await until(lambda: engine._writer is not None and engine._writer.begun)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ids(stored(reached[0])) == ids(await read_all(engine)) == [1]


async def test_a_group_that_was_not_sent_is_given_up_at_once(own_server: Server) -> None:
    engine = PostgresEngine(own_server.url, retry_timeout=60)
    await engine.open()
    own_server.kill()
    await until(lambda: engine._writer is not None and engine._writer.pid() is None)
    task = asyncio.create_task(commit(engine, append()))
    await asyncio.sleep(0.3)
    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began < 5
    own_server.start()
    assert ids(stored(await commit(engine, append()))) == [1]
    await engine.aclose()


async def test_readers_that_are_cancelled_cost_no_session(engine: PostgresEngine) -> None:
    await commit(engine, append())
    for _ in range(50):
        task = asyncio.create_task(engine.facts(Question(["s"])))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (await engine.facts(Question(["s"]))).versions == {"s": 1}
    assert engine._pool is not None
    assert len(engine._pool._idle) <= 4


async def test_an_opening_that_is_cancelled_leaves_nothing(postgres_server: Server, admin: Any) -> None:
    query = "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'aiostore'"
    for turns in range(0, 60, 3):
        engine = PostgresEngine(new_url(postgres_server))
        task = asyncio.create_task(engine.open())
        for _ in range(turns):
            await asyncio.sleep(0)
        await asyncio.sleep(turns / 4000)
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            await engine.aclose()
    await until(lambda: admin.fetchval(query))


# Servers


@pytest.mark.parametrize("way", ["kill", "kill_hard"])
async def test_nothing_acknowledged_is_lost_when_the_server_is_killed(own_server: Server, way: str) -> None:
    store = await EventStore.open(own_server.url, retry_timeout=60)
    acknowledged: list[int] = []
    done = asyncio.Event()
    followed: list[int] = []

    async def appending(number: int) -> None:
        while not done.is_set():
            event = await store.append(f"s{number}", "E", {"number": number})
            acknowledged.append(event.event_id)

    async def following() -> None:
        async with store.subscribe() as subscription:
            async for batch in subscription.batches():
                followed.extend(ids(batch))

    follower = asyncio.create_task(following())
    tasks = [asyncio.create_task(appending(number)) for number in range(8)]
    for _ in range(3):
        await more(acknowledged, 200)
        getattr(own_server, way)()
        await asyncio.sleep(0.1)
        await asyncio.to_thread(restart, own_server)
    await more(acknowledged, 200)
    done.set()
    await asyncio.gather(*tasks)
    everything = await store.read_all().to_list()
    assert ids(everything) == list(range(1, len(everything) + 1))
    assert sorted(acknowledged) == ids(everything), "each append was answered once, with what is stored"
    await until(lambda: len(followed) == len(everything))
    assert followed == ids(everything)
    await store.aclose()
    follower.cancel()
    await asyncio.wait([follower])


async def more(acknowledged: list[int], count: int) -> None:
    """Wait until so many more are acknowledged."""
    enough = len(acknowledged) + count
    await until(lambda: len(acknowledged) >= enough)


def restart(server: Server) -> None:
    for _ in range(100):
        try:
            server.start()
            return
        except AssertionError:  # sessions of the one that was killed are still ending
            time.sleep(0.1)
    server.start()


async def test_where_the_server_does_not_come_back_the_outcome_is_unknown(
    own_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = PostgresEngine(own_server.url, retry_timeout=0.5, connect_timeout=1)
    await engine.open()
    await commit(engine, append())

    async def kill(_: Session) -> None:
        own_server.kill()

    after_groups(monkeypatch, kill)
    with pytest.raises(OutcomeUnknown, match="retry with a key"):
        await commit(engine, append("s", key="k"))
    with pytest.raises(EngineUnavailable):
        await commit(engine, append())
    with pytest.raises(EngineUnavailable):
        await read_all(engine)
    own_server.start()
    assert ids(stored(await commit(engine, append("s", key="k")))) == [2]
    assert ids(await read_all(engine)) == [1, 2]
    await engine.aclose()


async def test_waiting_for_others_outlives_the_server(own_server: Server) -> None:
    engine, writer = PostgresEngine(own_server.url), PostgresEngine(own_server.url)
    await engine.open()
    await writer.open()
    waiting = asyncio.create_task(engine.changed(0))
    await asyncio.sleep(0.1)
    own_server.kill()
    await asyncio.sleep(0.3)
    own_server.start()
    assert not waiting.done()
    await commit(writer, append())
    await asyncio.wait_for(waiting, 10)
    await engine.aclose()
    await writer.aclose()


async def test_a_standby_is_read_and_polled_but_not_written(own_server: Server) -> None:
    writer = PostgresEngine(own_server.url)
    await writer.open()
    await commit(writer, append())
    standby = Server()
    try:
        await asyncio.to_thread(standby.copy_of, own_server)
        with pytest.raises(EngineUnavailable):
            await PostgresEngine(standby.url).open()
        reader = PostgresEngine(standby.url, mode="r", poll_interval=0.05)
        await reader.open()
        waiting = asyncio.create_task(reader.changed(1))
        await asyncio.sleep(0.2)
        await commit(writer, append())
        await asyncio.wait_for(waiting, 10)
        assert ids(await read_all(reader)) == [1, 2]
        await reader.aclose()
    finally:
        standby.stop()
    await writer.aclose()


async def test_a_promoted_standby_takes_over_with_all_that_was_acknowledged(own_server: Server) -> None:
    standby = Server()
    try:
        await asyncio.to_thread(standby.copy_of, own_server)
        connection = await asyncpg.connect(own_server.url)
        await connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        await connection.execute("SELECT pg_reload_conf()")
        query = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
        await until(lambda: connection.fetchval(query))
        await connection.close()
        url = f"postgresql://postgres@127.0.0.1:{own_server.port},127.0.0.1:{standby.port}/postgres"
        store = await EventStore.open(url, retry_timeout=60)
        acknowledged: list[int] = []
        done = asyncio.Event()

        async def appending(number: int) -> None:
            while not done.is_set():
                acknowledged.append((await store.append(f"s{number}", "E", {})).event_id)

        tasks = [asyncio.create_task(appending(number)) for number in range(4)]
        await more(acknowledged, 100)
        own_server.kill()
        standby.run("pg_ctl", "-D", str(standby.data), "promote", "-w")
        await more(acknowledged, 100)
        done.set()
        await asyncio.gather(*tasks)
        everything = ids(await store.read_all().to_list())
        assert everything == list(range(1, len(everything) + 1))
        assert sorted(acknowledged) == everything
        await store.aclose()
    finally:
        standby.stop()


async def test_what_the_standby_did_not_confirm_is_not_acknowledged(own_server: Server) -> None:
    engine = PostgresEngine(own_server.url)
    await engine.open()
    connection = await asyncpg.connect(own_server.url)
    await connection.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    await connection.execute("SELECT pg_reload_conf()")
    await asyncio.sleep(0.2)
    appending = asyncio.create_task(commit(engine, append()))
    query = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    pid = await until(lambda: connection.fetchval(query))
    assert not appending.done()
    await connection.execute("SELECT pg_cancel_backend($1)", pid)  # an administrator loses patience
    with pytest.raises(OutcomeUnknown, match="warned"):
        await appending
    await connection.execute("ALTER SYSTEM RESET synchronous_standby_names")
    await connection.execute("SELECT pg_reload_conf()")
    await connection.close()
    await engine.aclose()


# Forks


def in_a_child(engine: PostgresEngine) -> int:
    """What a forked child says that lets go of its copies: how many sockets of the server it still holds."""
    pid = os.fork()
    if pid == 0:
        engine.abandon()
        held = [session for session in engine._connector._sessions if is_socket(session._descriptor)]
        os._exit(len(held))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def is_socket(descriptor: int) -> bool:
    return stat.S_ISSOCK(os.fstat(descriptor).st_mode)


async def test_a_forked_child_lets_go_without_a_word(engine: PostgresEngine) -> None:
    await commit(engine, append())
    await engine.facts(Question())
    assert all(is_socket(session._descriptor) for session in engine._connector._sessions)
    assert in_a_child(engine) == 0
    assert ids(stored(await commit(engine, append()))) == [2]
    assert ids(await read_all(engine)) == [1, 2]
