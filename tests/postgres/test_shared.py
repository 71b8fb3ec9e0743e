"""Several engines on one store: one order, and news of what the others did."""

from __future__ import annotations

import asyncio
import random

import asyncpg
import pytest

from aiostore import ConcurrencyConflict
from aiostore.engine import Commit
from aiostore.engines.postgres.engine import PostgresEngine
from tests.postgres.appends import append, commit, ids, read_all, stored, tagged, until
from tests.postgres.conftest import OpenEngine
from tests.postgres.fixtures import NewUrl
from tests.postgres.server import Server


async def test_engines_that_race_number_everything_densely(open_engine: OpenEngine, new_postgres_url: NewUrl) -> None:
    url = new_postgres_url()
    engines = [await open_engine(url) for _ in range(4)]
    own: list[list[int]] = []

    async def run(engine: PostgresEngine, number: int) -> None:
        chance = random.Random(number)
        for _ in range(40):
            appends = [
                append(chance.choice("abc"), tagged(chance.randrange(1, 4))) for _ in range(chance.randrange(1, 5))
            ]
            committed = await commit(engine, *appends)
            found = [event.event_id for one in committed.commits for event in one.events]
            assert found == list(range(committed.previous_head + 1, committed.previous_head + 1 + len(found)))
            own.append(found)

    seen: list[Commit] = []

    async def follow(engine: PostgresEngine) -> None:
        head = 0
        while True:
            await engine.changed(head)
            for one in await engine.commits_after(head):
                seen.append(one)
                assert one.events[0].event_id == head + 1, "nothing is missed"
                head = one.events[-1].event_id

    follower = await open_engine(url, mode="r")
    following = asyncio.create_task(follow(follower))
    await asyncio.gather(*(run(engine, number) for number, engine in enumerate(engines)))
    everything = await read_all(engines[0])
    assert sorted(event_id for found in own for event_id in found) == ids(everything)
    assert ids(everything) == list(range(1, len(everything) + 1))
    for stream_id in "abc":
        versions = [event.version for event in everything if event.stream_id == stream_id]
        assert versions == list(range(1, len(versions) + 1))
    await until(lambda: seen and seen[-1].events[-1].event_id == len(everything))
    following.cancel()
    assert [event for one in seen for event in one.events] == everything


async def test_of_many_that_expect_the_same_version_one_appends(
    open_engine: OpenEngine, new_postgres_url: NewUrl
) -> None:
    url = new_postgres_url()
    engines = [await open_engine(url) for _ in range(5)]
    for version in range(10):
        results = await asyncio.gather(*(commit(engine, append("s", expected=version)) for engine in engines))
        refused = [result.outcomes[0] for result in results if isinstance(result.outcomes[0], ConcurrencyConflict)]
        assert [(error.expected, error.actual) for error in refused] == [(version, version + 1)] * 4


async def test_a_commit_of_others_comes_whole(open_engine: OpenEngine, new_postgres_url: NewUrl) -> None:
    url = new_postgres_url()
    writer, reader = await open_engine(url), await open_engine(url)
    await commit(writer, append("s", tagged(3), key="k"), append("t"))
    await commit(writer, append("s", tagged(2040)), append("s", tagged(10)))
    commits = await reader.commits_after(0)
    assert [(len(one.events), one.idempotency_key) for one in commits] == [(3, "k"), (1, None), (2040, None)]
    assert commits[0].bytes_estimate > 600
    assert [len(one.events) for one in await reader.commits_after(2044)] == [10]
    assert await reader.commits_after(2054) == []
    assert [len(one.events) for one in await reader.commits_after(1)] == [2, 1, 2040]


async def test_one_larger_than_what_is_read_at_once_is_cut(
    open_engine: OpenEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiostore.engines.postgres.engine.CATCH_UP_EVENTS", 4)
    engine = await open_engine()
    await commit(engine, append("s", tagged(10), key="k"), append("t"))
    head, sizes = 0, []
    while commits := await engine.commits_after(head):
        sizes.append([(len(one.events), one.idempotency_key) for one in commits])
        head = commits[-1].events[-1].event_id
    assert sizes == [[(4, "k")], [(4, None)], [(2, None), (1, None)]]


async def test_others_wake_at_once(open_engine: OpenEngine, new_postgres_url: NewUrl) -> None:
    url = new_postgres_url()
    writer, reader = await open_engine(url), await open_engine(url, poll_interval=3600)
    for head in range(5):
        waiting = asyncio.create_task(reader.changed(head))
        await until(lambda: reader._waker is not None and reader._waker._session is not None)
        assert not waiting.done()
        await commit(writer, append())
        await asyncio.wait_for(waiting, 10)
        assert ids((await reader.commits_after(head))[0].events) == [head + 1]


async def test_what_came_before_is_told_at_once_and_again(open_engine: OpenEngine, new_postgres_url: NewUrl) -> None:
    url = new_postgres_url()
    writer, reader = await open_engine(url), await open_engine(url, poll_interval=3600)
    await commit(writer, append(), append())
    for _ in range(3):
        for after in (0, 1):
            await asyncio.wait_for(reader.changed(after), 10)
    waiting = asyncio.create_task(reader.changed(2))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    waiting.cancel()


async def test_where_notifications_get_lost_it_looks_by_itself(
    open_engine: OpenEngine, new_postgres_url: NewUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiostore.engines.postgres.waking.Waker._notified", lambda *_: None)
    url = new_postgres_url()
    writer, reader = await open_engine(url), await open_engine(url, poll_interval=0.02)
    waiting = asyncio.create_task(reader.changed(0))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await commit(writer, append())
    await asyncio.wait_for(waiting, 10)


async def test_strange_notifications_do_no_harm(open_engine: OpenEngine, postgres_server: Server) -> None:
    engine = await open_engine(poll_interval=3600)
    await commit(engine, append())
    channel = f"aiostore_{engine.location.rpartition('=')[2]}"
    waiting = asyncio.create_task(engine.changed(1))
    await until(lambda: engine._waker is not None and engine._waker._session is not None)
    stranger = await asyncpg.connect(postgres_server.url)
    for payload in ("", "x", "-1", "999999", "99999999999999999999999999"):
        await stranger.execute("SELECT pg_notify($1, $2)", channel, payload)
    await stranger.close()
    await asyncio.wait_for(waiting, 10)  # something happened, or so it is said
    waiting = asyncio.create_task(engine.changed(1))
    await asyncio.sleep(0.1)
    waiting.cancel()
    assert stored(await commit(engine, append("s")))[0].event_id == 2


async def test_an_open_transaction_elsewhere_stalls_nothing(open_engine: OpenEngine, postgres_server: Server) -> None:
    engine = await open_engine()
    stranger = await asyncpg.connect(postgres_server.url)
    transaction = stranger.transaction()
    await transaction.start()
    await stranger.execute(
        "CREATE TABLE public.open_transaction (a int); INSERT INTO public.open_transaction VALUES (1)"
    )
    for n in range(3):
        await commit(engine, append())
        assert len(await engine.commits_after(0)) == n + 1
    await transaction.rollback()
    await stranger.close()


async def test_what_is_new_is_asked_for_where_it_was_told(
    open_engine: OpenEngine, new_postgres_url: NewUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_postgres_url()
    writer, reader = await open_engine(url), await open_engine(url, poll_interval=3600)
    await commit(writer, append())
    await asyncio.wait_for(reader.changed(0), 10)
    with monkeypatch.context() as patch:
        patch.setattr("aiostore.engines.postgres.connections.Pool.run_here", None)
        assert ids((await reader.commits_after(0))[0].events) == [1]


async def test_where_the_listening_connection_is_busy_or_goes_another_is_asked(
    open_engine: OpenEngine, new_postgres_url: NewUrl
) -> None:
    url = new_postgres_url()
    writer, reader = await open_engine(url), await open_engine(url, poll_interval=0.001)
    await commit(writer, append())
    waiting = asyncio.create_task(reader.changed(1))
    for _ in range(50):
        found = await asyncio.gather(*(reader.commits_after(0) for _ in range(4)))
        assert [ids(commits[0].events) for commits in found] == [[1]] * 4
    assert reader._waker is not None
    session = reader._waker._session
    assert session is not None
    assert not session.is_closed(), "no question came into the way of another"
    reading = asyncio.gather(*(reader.commits_after(0) for _ in range(4)))
    await asyncio.sleep(0)
    session.terminate()
    assert [ids(commits[0].events) for commits in await reading] == [[1]] * 4
    await commit(writer, append())
    await asyncio.wait_for(waiting, 10)
    assert ids((await reader.commits_after(1))[0].events) == [2]


async def test_a_reader_that_is_cancelled_leaves_the_listening_connection_to_be_made_anew(
    open_engine: OpenEngine, new_postgres_url: NewUrl
) -> None:
    url = new_postgres_url()
    writer, reader = await open_engine(url), await open_engine(url, poll_interval=3600)
    await commit(writer, append())
    await asyncio.wait_for(reader.changed(0), 10)
    waiting = asyncio.create_task(reader.changed(1))
    reading = asyncio.create_task(reader.commits_after(0))
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.wait([reading])
    await commit(writer, append())
    await asyncio.wait_for(waiting, 10)
    assert ids((await reader.commits_after(1))[0].events) == [2]


async def test_own_appends_wake_nobody_and_are_known(open_engine: OpenEngine) -> None:
    engine = await open_engine(poll_interval=3600)
    waiting = asyncio.create_task(engine.changed(0))
    await until(lambda: engine._waker is not None and engine._waker._session is not None)
    await commit(engine, append())
    await until(lambda: engine._waker is not None and engine._waker._known == 1)
    assert not waiting.done()
    waiting.cancel()
    await asyncio.wait_for(engine.changed(0), 10)
