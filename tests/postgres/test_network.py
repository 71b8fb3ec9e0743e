"""A network that is slow, cuts, is deaf or mute, and servers that are full: clear errors in bounded time, no more."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self

import asyncpg
import pytest

from aiostore import END, EngineUnavailable, EventStore, EventStoreError, Limits, OutcomeUnknown
from tests.postgres.fixtures import NewUrl
from tests.postgres.life import HASTY, SEED, again, in_own_schema, live_through, until
from tests.postgres.notes import BUDGET, errors_of
from tests.postgres.proxy import Proxy
from tests.postgres.server import Server
from tests.postgres.worker import DEADLINE_S
from tests.scheduler import running, take

BOUND_S = 20.0
"""More than what short timeouts can add up to, on a machine that is busy."""

STUBBORN: dict[str, Any] = {"retry_timeout": 90.0, "connect_timeout": 1.0, "command_timeout": 1.0}
"""Gives a connection up soon, but not the server."""

CONNECTIONS_MAX = 30


@pytest.fixture
def dice() -> random.Random:
    """Chance."""
    return random.Random(SEED)


@pytest.fixture
async def proxy(new_postgres_url: NewUrl, dice: random.Random) -> AsyncIterator[Proxy]:
    """The way to a store that is not there yet; behind the test, nobody is on it, and no task of a store is left."""
    before = asyncio.all_tasks()
    async with Proxy(new_postgres_url(), dice) as proxy:
        yield proxy
        proxy.black_hole(False)
        await until(lambda: proxy.is_idle, "all connections are closed")
        left = asyncio.all_tasks() - before - proxy.tasks - {asyncio.current_task()}
        assert not left, f"left behind: {left}"


@pytest.fixture
def small_server() -> Iterator[Server]:
    """A server that takes few connections, and may be filled."""
    server = Server({"max_connections": str(CONNECTIONS_MAX), "superuser_reserved_connections": "0"})
    try:
        yield server.create()
    finally:
        server.stop()


class Crowd:
    """Connections that fill a server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._connections: list[asyncpg.Connection] = []

    async def fill(self) -> None:
        """Connect until there is no room."""
        async with asyncio.timeout(DEADLINE_S):
            with contextlib.suppress(asyncpg.TooManyConnectionsError):
                while True:
                    self._connections.append(await asyncpg.connect(self._server.url))

    async def end_stores(self) -> None:
        """End the backends of all stores."""
        await self._connections[0].execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'aiostore'"
        )

    async def leave(self) -> None:
        """Make room."""
        while self._connections:
            await self._connections.pop().close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._connections:
            connection.terminate()


# --- storms ---


@pytest.mark.timeout(300 * BUDGET)
async def test_clients_live_on_over_a_network_that_is_slow_and_cuts_at_random(proxy: Proxy) -> None:
    strikes = 0

    async def strike() -> None:
        nonlocal strikes
        strikes += 1
        proxy.delay_s = 0.003
        proxy.cut_chance = 0.003
        if strikes % 3 == 1:
            proxy.cut()
        elif strikes % 3 == 2:
            before = proxy.tasks
            proxy.mute = True
            await until(lambda: before - proxy.tasks, "a connection is given up")
            proxy.mute = False
        else:
            before = proxy.tasks
            proxy.black_hole()
            await until(lambda: before - proxy.tasks, "a connection is given up")
            proxy.black_hole(False)

    await live_through(proxy.url, 3 * BUDGET, strike, **STUBBORN)
    assert proxy.cut_count > 5


@pytest.mark.timeout(300 * BUDGET)
async def test_clients_live_on_when_all_backends_are_ended_at_once(
    postgres_server: Server, new_postgres_url: NewUrl
) -> None:
    async def strike() -> None:
        connection = await asyncpg.connect(postgres_server.url)
        try:
            ended = await connection.fetch(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'aiostore'"
            )
            assert ended
        finally:
            await connection.close()

    notes = await live_through(new_postgres_url(), 5 * BUDGET, strike)
    assert not errors_of(notes), "whoever has the patience hears of no error"


# --- one thing at a time ---


async def test_a_black_hole_is_an_error_in_bounded_time_and_then_all_goes_on(proxy: Proxy) -> None:
    async with EventStore(proxy.url, **HASTY) as store:
        async with store.subscribe() as subscription:
            await store.append("s", "E", {"n": 1})
            assert await take(subscription, 1) == [1]
            proxy.black_hole()
            async with asyncio.timeout(BOUND_S):
                with pytest.raises(OutcomeUnknown):
                    await store.append("s", "E", {"n": 2}, idempotency_key="k")
                with pytest.raises(EngineUnavailable):
                    await store.append("s", "E", {"n": 3})
                with pytest.raises(EngineUnavailable):
                    await store.read_stream("s").to_list()
                with pytest.raises(EngineUnavailable):
                    await EventStore.open(proxy.url, **HASTY)
            proxy.black_hole(False)
            proxy.cut()
            async with asyncio.timeout(DEADLINE_S):
                event = await again(lambda: store.append("s", "E", {"n": 2}, idempotency_key="k"))
                assert event.event_id == 2
                assert await again(lambda: store.append("s", "E", {"n": 2}, idempotency_key="k")) == event
                assert await take(subscription, 1) == [2]
        assert [event.data["n"] for event in await store.read_all().to_list()] == [1, 2]


async def test_a_store_closes_and_an_append_is_cancelled_in_a_black_hole(proxy: Proxy) -> None:
    async with asyncio.timeout(3 * BOUND_S):
        async with EventStore(proxy.url, **HASTY) as store:
            await store.append("s", "E", {"n": 1})
            subscription = store.subscribe(after=END)
            following = asyncio.ensure_future(anext(subscription))
            proxy.black_hole()
            loop = asyncio.get_running_loop()
            append = asyncio.ensure_future(store.append("s", "E", {"n": 2}))
            read = asyncio.ensure_future(store.head())
            await until(lambda: proxy.swallowed_bytes, "it is under way")
            for task in (append, read):
                task.cancel()
            before = loop.time()
            await asyncio.wait([append, read])
            assert append.cancelled()
            assert read.cancelled()
            assert loop.time() - before < 5, "who is cancelled does not wait for the network"
        with pytest.raises(EventStoreError):
            await following
    proxy.cut()


@pytest.mark.parametrize("key", [None, "k"])
async def test_an_append_whose_answer_is_lost_is_stored_once_and_finds_out_by_itself(
    key: str | None, proxy: Proxy, new_postgres_url: NewUrl
) -> None:
    async with EventStore(proxy.url, **STUBBORN) as store, EventStore(proxy.target_url) as witness:
        await store.append("s", "E", {"n": 1}, expected_version=0)  # the server knows the statement from here on
        async with witness.subscribe() as subscription, store.subscribe() as own:
            proxy.mute = True
            append = asyncio.ensure_future(store.append("s", "E", {"n": 2}, expected_version=1, idempotency_key=key))
            async with running(append), asyncio.timeout(DEADLINE_S):
                assert await take(subscription, 2) == [1, 2], "it is stored"
                assert not append.done()
                proxy.mute = False
                event = await append
            assert (event.event_id, event.version) == (2, 2)
            assert await take(own, 2) == [1, 2]
            await store.append("s", "E", {"n": 3}, expected_version=2)
            assert await take(own, 1) == await take(subscription, 1) == [3]


async def test_an_append_of_which_the_end_does_not_arrive_holds_others_up_for_a_bounded_time(proxy: Proxy) -> None:
    async with EventStore(proxy.url, **STUBBORN) as store, EventStore(proxy.target_url, **STUBBORN) as other:
        await store.append("s", "E", {"n": 1})
        proxy.withheld = 5  # the message that ends the transaction
        append = asyncio.ensure_future(store.append("s", "E", {"n": 2}))
        async with running(append), asyncio.timeout(DEADLINE_S):
            await until(lambda: proxy.withheld == 0, "it is under way")
            async with asyncio.timeout(BOUND_S):
                await again(lambda: other.append("s", "E", {"n": 3}))
            await append
        assert sorted(event.data["n"] for event in await other.read_all().to_list()) == [1, 2, 3]


async def test_a_subscription_in_its_history_goes_on_behind_a_black_hole(
    proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """Cut off for longer than the retries take, it says so in the log, tries again, and goes on where it was."""
    async with EventStore(proxy.target_url) as store:
        await store.append_batch("s", [("E", {"n": n}) for n in range(2000)])
    async with (
        EventStore(proxy.url, limits=Limits(ring_bytes_max=1), **HASTY) as store,
        store.subscribe() as subscription,
    ):
        seen = await take(subscription, 10)

        async def follow() -> None:
            async for events in subscription.batches():
                seen.extend(event.event_id for event in events)

        proxy.black_hole()
        async with running(asyncio.create_task(follow())):
            async with asyncio.timeout(BOUND_S):
                await until(lambda: "cannot read on now" in caplog.text, "it says so")
            assert len(seen) < 2000
            proxy.black_hole(False)
            proxy.cut()
            async with asyncio.timeout(DEADLINE_S):
                await until(lambda: len(seen) == 2000, "it goes on")
        assert seen == list(range(1, 2001))


async def test_many_reads_share_a_small_pool(proxy: Proxy) -> None:
    proxy.delay_s = 0.01
    async with EventStore(proxy.url, pool_size=2) as store:
        events = await store.append_batch("s", [("E", {"n": n}) for n in range(50)])
        async with asyncio.timeout(DEADLINE_S):
            found = await asyncio.gather(*(store.read_stream("s").to_list() for _ in range(100)))
        assert all(one == events for one in found)


async def test_a_full_pool_in_a_black_hole_is_an_error_in_bounded_time(proxy: Proxy) -> None:
    async with EventStore(proxy.url, pool_size=1, **HASTY) as store:
        await store.append("s", "E", {"n": 1})
        proxy.black_hole()
        try:
            async with asyncio.timeout(8):  # one alone takes 2 s at most
                errors = await asyncio.gather(*(store.head() for _ in range(60)), return_exceptions=True)
            assert all(isinstance(error, EngineUnavailable) for error in errors), errors
        finally:
            proxy.black_hole(False)
            proxy.cut()
        async with asyncio.timeout(DEADLINE_S):
            while True:
                with contextlib.suppress(EngineUnavailable):
                    assert await store.head() == 1
                    break


# --- a full server ---


async def test_a_full_server_is_an_error_in_bounded_time_until_there_is_room(small_server: Server) -> None:
    url = in_own_schema(small_server.url)
    async with Crowd(small_server) as crowd, EventStore(url, **HASTY) as store, store.subscribe() as subscription:
        await store.append("s", "E", {"n": 1})
        await crowd.fill()
        assert (await store.append("s", "E", {"n": 2})).event_id == 2, "who is in stays in"
        async with asyncio.timeout(BOUND_S):
            with pytest.raises(EngineUnavailable, match="too many clients"):
                await EventStore.open(url, **HASTY)
        await crowd.end_stores()
        await crowd.fill()
        async with asyncio.timeout(BOUND_S):
            with pytest.raises(EngineUnavailable, match="too many clients"):
                await store.append("s", "E", {"n": 3})
            with pytest.raises(EngineUnavailable, match="too many clients"):
                await store.head()
        await crowd.leave()
        async with asyncio.timeout(DEADLINE_S):
            await again(lambda: store.append("s", "E", {"n": 4}))
            assert await take(subscription, 3) == [1, 2, 3]
        assert [event.data["n"] for event in await store.read_all().to_list()] == [1, 2, 4]


async def test_an_append_whose_answer_is_lost_is_stored_once_where_the_server_is_full(
    small_server: Server, dice: random.Random
) -> None:
    url = in_own_schema(small_server.url)
    async with (
        Proxy(url, dice) as proxy,
        Crowd(small_server) as crowd,
        EventStore(proxy.url, **STUBBORN) as store,
        EventStore(url) as witness,
        witness.subscribe() as subscription,
    ):
        await store.append("s", "E", {"n": 1})
        proxy.mute = True
        append = asyncio.ensure_future(store.append("s", "E", {"n": 2}))
        async with running(append), asyncio.timeout(DEADLINE_S):
            assert await take(subscription, 2) == [1, 2], "it is stored"
            proxy.refusing = True
            proxy.cut()
            proxy.mute = False
            await crowd.fill()
            proxy.refusing = False
            refused = small_server.log.count("too many clients")
            await until(lambda: small_server.log.count("too many clients") >= refused + 6, "it is refused")
            await crowd.leave()
            event = await append
        assert [event.data["n"] for event in await store.read_all().to_list()] == [1, 2]
        assert event.event_id == 2
