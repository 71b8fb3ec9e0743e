"""Servers that are killed in mid-append: started again, or replaced by their standby. Clients go on by themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from aiostore import EngineUnavailable, EngineUnsupported, Event, EventStore, EventStoreError, OutcomeUnknown
from tests.postgres.life import HASTY, again, in_own_schema, live_through, until
from tests.postgres.notes import BUDGET, errors_of, tally_of
from tests.postgres.server import Server
from tests.postgres.standby import Pair, kill_all
from tests.postgres.worker import DEADLINE_S, tally_projection
from tests.scheduler import running

ROUNDS = 3 * BUDGET


@pytest.fixture
def doomed_pair() -> Iterator[Pair]:
    """A primary and its standby, of which the test may kill the primary."""
    pair = Pair()
    try:
        yield pair.create()
    finally:
        pair.stop()


@pytest.fixture(scope="module")
def lasting_pair() -> Iterator[Pair]:
    """A primary and its standby, of which several tests may kill the standby."""
    pair = Pair()
    try:
        yield pair.create()
    finally:
        pair.stop()


@pytest.fixture
def pair(lasting_pair: Pair) -> Pair:
    """The same, with both of them there."""
    lasting_pair.mend()
    return lasting_pair


@pytest.mark.timeout(200 * BUDGET)
async def test_a_server_killed_in_mid_append_loses_nothing_and_clients_go_on(own_server: Server) -> None:
    def strike() -> None:
        kill_all(own_server)
        own_server.start()

    notes = await live_through(in_own_schema(own_server.url), ROUNDS, lambda: asyncio.to_thread(strike))
    assert not errors_of(notes), "whoever has the patience hears of no error"


async def test_a_server_that_stays_away_is_an_error_in_bounded_time_until_it_is_back(own_server: Server) -> None:
    async with EventStore(in_own_schema(own_server.url), **HASTY) as store:
        seen: list[int] = []

        async def follow() -> None:
            async with store.subscribe() as subscription:
                async for events in subscription.batches():
                    seen.extend(event.event_id for event in events)

        async with tally_projection(store) as projection, running(asyncio.create_task(follow())):
            await store.append("s", "Moved", {"op": "first"})
            await asyncio.to_thread(kill_all, own_server)
            async with asyncio.timeout(30):
                first, *others = await asyncio.gather(
                    *(store.append("s", "Moved", {"op": str(number)}) for number in range(5)), return_exceptions=True
                )
                with pytest.raises(EngineUnavailable):
                    await store.append("s", "Moved", {"op": "later"}, idempotency_key="k")
                with pytest.raises(EngineUnavailable):
                    await store.read_all().to_list()
                with pytest.raises(EngineUnavailable):
                    await EventStore.open(own_server.url, **HASTY)
            for error in (first, *others):
                assert isinstance(error, EngineUnavailable | OutcomeUnknown), error
            await asyncio.to_thread(own_server.start)
            async with asyncio.timeout(DEADLINE_S):
                event = await again(lambda: store.append("s", "Moved", {"op": "later"}, idempotency_key="k"))
            assert event.event_id == 2, "what was refused is not there"
            await until(lambda: seen == [1, 2], f"both are seen, not {seen}")
            await projection.wait_for(2, timeout=DEADLINE_S)
            assert projection.state == tally_of(await store.read_all().to_list())


@pytest.mark.timeout(200)
async def test_a_primary_killed_in_mid_append_loses_nothing_to_its_promoted_standby(doomed_pair: Pair) -> None:
    notes = await live_through(in_own_schema(doomed_pair.url), 1, doomed_pair.fail_over)
    assert not errors_of(notes), "whoever has the patience hears of no error"


async def test_a_standby_is_read_and_takes_no_appends(pair: Pair) -> None:
    url = in_own_schema(pair.primary.url)
    on_standby = url.replace(f":{pair.primary.port}/", f":{pair.standby.port}/")
    async with EventStore(url) as store:
        events = await store.append_batch("s", [("Moved", {"op": "a"})] * 3)
        with pytest.raises(EngineUnavailable, match=r"standby|read-write|read-only|suitable"):
            await EventStore.open(on_standby, **HASTY)
        async with await opened_on(on_standby) as standby:
            await until_equal(standby, events)
            assert await standby.stream_version("s") == 3
            assert await standby.read_stream("s", backwards=True, limit=1).to_list() == events[-1:]
            for append in (standby.append("s", "Moved", {}), standby.append_batch("s", [])):
                with pytest.raises(EngineUnsupported, match="mode='r'"):
                    await append
            events.append(await store.append("s", "Moved", {"op": "b"}, tags=["rot"]))
            await until_equal(standby, events)


async def opened_on(url: str) -> EventStore:
    """A store opened for reading on a standby, which may be a moment behind the making of it."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                return await EventStore.open(url, mode="r")
            except EngineUnavailable:
                await asyncio.sleep(0.02)


async def until_equal(store: EventStore, events: Sequence[Event]) -> None:
    """Read again and again, until these are there; there is nothing else on the way."""
    async with asyncio.timeout(DEADLINE_S):
        while (found := await store.read_all().to_list()) != events:
            assert found == events[: len(found)]
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "times",
    [
        {"command_timeout": 0.5, "retry_timeout": 0.3},
        {"command_timeout": 0.3, "retry_timeout": 2.0},
    ],
    ids=["the client gives up waiting", "the server gives up the take-over"],
)
async def test_an_append_that_waits_for_a_lost_standby_is_of_unknown_outcome(times: dict[str, Any], pair: Pair) -> None:
    """It is stored on the primary, and may be lost with it: neither acknowledged nor refused."""
    async with EventStore(in_own_schema(pair.primary.url), connect_timeout=2.0, **times) as store:
        await store.append("s", "Moved", {"op": "a"})
        await asyncio.to_thread(kill_all, pair.standby)
        async with asyncio.timeout(60):
            with pytest.raises(EventStoreError) as caught:
                await store.append("s", "Moved", {"op": "b"})
        await asyncio.to_thread(pair.standby.start)
        async with asyncio.timeout(DEADLINE_S):
            event = await again(lambda: store.append("s", "Moved", {"op": "c"}, idempotency_key="c"))
        log = await store.read_all().to_list()
        assert [e.data["op"] for e in log] in (["a", "b", "c"], ["a", "c"])
        assert log[-1] == event
        assert isinstance(caught.value, OutcomeUnknown), (
            f"{caught.value!r}, and it is{'' if len(log) == 3 else ' not'} stored"
        )


async def test_an_append_with_a_key_waits_for_its_standby_and_is_stored_once(pair: Pair) -> None:
    options: dict[str, Any] = {"command_timeout": 1.0, "retry_timeout": 60.0}
    async with EventStore(in_own_schema(pair.primary.url), **options) as store:
        await store.append("s", "Moved", {"op": "a"})
        await asyncio.to_thread(kill_all, pair.standby)
        append = asyncio.create_task(store.append("s", "Moved", {"op": "b"}, idempotency_key="b"))
        async with running(append):
            await asyncio.wait([append], timeout=3)
            if append.done():
                assert isinstance(append.exception(), OutcomeUnknown)
            await asyncio.to_thread(pair.standby.start)
            async with asyncio.timeout(DEADLINE_S):
                await again(lambda: store.append("s", "Moved", {"op": "b"}, idempotency_key="b"))
        assert [e.data["op"] for e in await store.read_all().to_list()] == ["a", "b"]
