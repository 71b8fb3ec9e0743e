"""Live projections: up to date before an append returns, no gap and no double, and what one does that fails."""

from __future__ import annotations

import asyncio
import logging
import re
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aiostore import (
    EngineUnsupported,
    Event,
    EventStore,
    Limits,
    LiveProjection,
    ProjectionStopped,
    Query,
    StoreClosed,
    StreamAppend,
)
from aiostore.waiting import SEAM_EVENTS
from tests.conformance import engine_of, reopen
from tests.conformance.accounts import live_balances, open_accounts
from tests.conftest import OpenStore
from tests.scheduler import running, until


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, logger="aiostore")
    return caplog


def noting(store: EventStore, name: str = "noted", **options: Any) -> LiveProjection[Any]:
    """A projection whose state is the list of the event_ids that it had."""
    projection: LiveProjection[Any] = LiveProjection(name, store, initial=list, **options)
    projection.when("E", lambda state, event: state.append(event.event_id))
    return projection


class Failing:
    """A projection that fails at events with ``bad`` data while it is broken."""

    def __init__(self, store: EventStore, name: str = "failing") -> None:
        self.broken = True
        self.projection: LiveProjection[Any] = LiveProjection(name, store, initial=list)
        self.projection.when("E", self._handle)

    def _handle(self, state: list[int], event: Event) -> None:
        if self.broken and event.data.get("bad"):
            raise LookupError("mine")
        state.append(event.event_id)


# Up to date


async def test_it_is_up_to_date_when_an_append_returns(store: EventStore) -> None:
    await open_accounts(store)
    async with live_balances(store) as live:
        assert (live.state, live.position, live.is_live) == ({"ann": 70, "bob": 20}, 6, True)
        for amount in range(1, 20):
            event = await store.append("bob", "Deposited", {"amount": amount})
            assert live.position == event.event_id
            assert live.state["bob"] == 20 + sum(range(amount + 1))
        await store.append_streams(
            [StreamAppend("ann", [("Withdrawn", {"amount": 70})]), StreamAppend("bob", [("Deposited", {"amount": 70})])]
        )
        assert live.state == {"ann": 0, "bob": 280}


async def test_concurrent_appends_each_find_themselves_in_the_state(store: EventStore) -> None:
    async with noting(store) as live:

        async def append(stream_id: str) -> None:
            for _ in range(20):
                event = await store.append(stream_id, "E", {})
                assert event.event_id in live.state

        await asyncio.gather(*(append(f"s-{n}") for n in range(20)))
        assert live.state == list(range(1, 401))


async def test_events_that_do_not_match_move_its_position(store: EventStore) -> None:
    async with noting(store, query=Query.where(types="E", stream_prefix="a")) as live:
        await store.append("a", "E", {})
        await store.append("b", "E", {})
        await store.append("a", "F", {})
        assert (live.state, live.position, live.lag) == ([1], 3, 0)
        await store.append_streams([StreamAppend("b", [("E", {})]), StreamAppend("a", [("E", {}), ("E", {})])])
        assert (live.state, live.position) == ([1, 5, 6], 6)


async def test_listeners_and_projections_of_every_order_have_it(store: EventStore) -> None:
    seen: list[tuple[str, int]] = []

    def listening(name: str) -> Callable[[list[Event]], Awaitable[None]]:
        async def handler(events: list[Event]) -> None:
            seen.append((name, events[-1].event_id))

        return handler

    first, second = noting(store, "first"), noting(store, "second")
    store.on_commit(listening("a"))
    async with first:
        store.on_commit(listening("b"))
        async with second:
            await asyncio.gather(*(store.append("s", "E", {}) for _ in range(5)))
            assert first.state == second.state == [1, 2, 3, 4, 5]
    assert seen == [(name, n) for n in range(1, 6) for name in "ab"]


# From history to what is live


@pytest.mark.parametrize("ring_bytes_max", [1, 4_000_000])
async def test_started_in_the_middle_of_a_storm_it_has_each_event_once(
    open_store: OpenStore, ring_bytes_max: int
) -> None:
    store = await open_store(limits=Limits(ring_bytes_max=ring_bytes_max))
    await store.append_batch("history", [("E", {})] * 3000)
    over = False

    async def append(stream_id: str) -> None:
        while not over:
            await store.append_batch(stream_id, [("E", {})] * 3)

    tasks = [asyncio.create_task(append(f"s-{n}")) for n in range(20)]
    async with running(*tasks):
        live = noting(store)
        async with live:
            behind = await store.head()
            assert live.position >= behind - 60, "what has returned is there"
            await until(lambda: live.position > 6000)
            over = True
            await asyncio.gather(*tasks)
            assert live.state == list(range(1, await store.head() + 1))


async def test_a_slow_projection_makes_appends_wait_rather_than_never_going_live(store: EventStore) -> None:
    await store.append_batch("history", [("E", {})] * (SEAM_EVENTS + 100))
    over = False

    async def append() -> None:
        while not over:
            await store.append_batch("s", [("E", {})] * 100)

    live: LiveProjection[Any] = LiveProjection("slow", store, initial=list)

    @live.when("E")
    async def handle(state: list[int], event: Event) -> None:
        await asyncio.sleep(0)
        state.append(event.event_id)

    tasks = [asyncio.create_task(append()) for _ in range(3)]
    async with running(*tasks), live:
        over = True
        await asyncio.gather(*tasks)
        assert live.state == list(range(1, await store.head() + 1))


async def test_a_handler_that_appends_waits_for_nobody(store: EventStore) -> None:
    await store.append_batch("s", [("Asked", {"n": n}) for n in range(3)])
    live: LiveProjection[Any] = LiveProjection("answering", store, initial=list)

    @live.when("Asked")
    async def answer(state: list[Any], event: Event) -> None:
        stored = await store.append("s", "Answered", {}, idempotency_key=f"answer-{event.event_id}")
        state.append((event.event_id, stored.event_id))

    live.when("Answered", lambda state, event: state.append(event.event_id))
    async with live:
        await live.wait_for(6)
        assert live.state == [(1, 4), (2, 5), (3, 6), 4, 5, 6]
        asked = await store.append("s", "Asked", {})
        assert live.state[6] == (asked.event_id, 8)
        await live.wait_for(8)
        assert live.state[7:] == [8]


async def test_what_it_appends_while_it_goes_live_does_not_lock_it_up(open_store: OpenStore) -> None:
    store = await open_store(limits=Limits(ring_bytes_max=1))
    live: LiveProjection[Any] = LiveProjection("chatty", store, initial=list)
    others = [asyncio.create_task(store.append("s", "Asked", {})) for _ in range(3)]

    @live.when("Asked")
    async def answer(state: list[int], event: Event) -> None:
        await store.append("s", "Answered", {}, idempotency_key=str(event.event_id))
        state.append(event.event_id)

    async with live:
        await asyncio.gather(*others)
        more = [store.append("s", "Asked", {}) for _ in range(30)]
        await asyncio.gather(*more)
        await live.wait_for(await store.head())
        asked = [event.event_id async for event in store.read_all(query=Query.where(types="Asked"))]
        assert live.state == asked
    assert await store.head() == 66


# Where one fails


async def test_a_handler_that_raises_stops_that_projection_alone(
    store: EventStore, log: pytest.LogCaptureFixture
) -> None:
    failing, sound = Failing(store), noting(store, "sound")
    async with failing.projection as projection, sound:
        await store.append("s", "E", {})
        waiting = asyncio.create_task(projection.wait_for(3))
        await asyncio.sleep(0)
        bad = await store.append_batch("s", [("E", {}), ("E", {"bad": True}), ("E", {})])  # it succeeds
        assert sound.state == [1, 2, 3, 4]
        assert (projection.state, projection.position) == ([1, 2], 2)
        assert not projection.is_live
        with pytest.raises(LookupError, match="mine") as caught:
            await waiting
        assert projection.error is caught.value
        with pytest.raises(LookupError, match="mine"):
            await projection.wait_for(bad[-1].event_id)
        await projection.wait_for(2)
        assert re.search(r"of projection 'failing' is detached: it raised LookupError", log.text)
        await store.append("s", "E", {})
        assert (sound.state, projection.state, projection.lag) == ([1, 2, 3, 4, 5], [1, 2], 3)

        with pytest.raises(LookupError, match="mine"):
            await projection.catch_up()
        assert projection.position == 2
        failing.broken = False
        assert await projection.catch_up() == 3
        assert (projection.state, repr(projection.error)) == ([1, 2, 3, 4, 5], "None")
        await store.append("s", "E", {})
        assert projection.state == sound.state == [1, 2, 3, 4, 5, 6]


async def test_a_handler_that_raises_in_history_is_raised_on_entering(store: EventStore) -> None:
    await store.append_batch("s", [("E", {}), ("E", {"bad": True})])
    failing = Failing(store)
    with pytest.raises(LookupError, match="mine"):
        await failing.projection.__aenter__()
    assert (failing.projection.position, failing.projection.is_live) == (1, False)
    assert "listeners=0" in repr(store)
    failing.broken = False
    async with failing.projection as live:
        assert live.state == [1, 2]


async def test_a_delivery_that_is_cancelled_stops_it_and_catching_up_goes_on(
    store: EventStore, log: pytest.LogCaptureFixture
) -> None:
    gate = asyncio.Event()
    live: LiveProjection[Any] = LiveProjection("cut off", store, initial=list)

    @live.when("E")
    async def handle(state: list[int], event: Event) -> None:
        await gate.wait()
        state.append(event.event_id)

    async with live:
        appending = asyncio.create_task(store.append("s", "E", {}))
        await until(lambda: "head=1" in repr(store))
        waiting = asyncio.create_task(live.wait_for(1))
        await asyncio.sleep(0)
        for task in asyncio.all_tasks():
            if task.get_name() == "aiostore delivery":
                task.cancel()
        await appending
        with pytest.raises(ProjectionStopped, match=r"'cut off' is at event 0 .* cancelled"):
            await waiting
        gate.set()
        assert await live.catch_up() == 1
        await store.append("s", "E", {})
        assert live.state == [1, 2]


# Waiting


async def test_waiting_returns_when_the_event_is_there(store: EventStore) -> None:
    async with noting(store) as live:
        waits = [asyncio.create_task(live.wait_for(n)) for n in (3, 1, 2, 3)]
        await asyncio.sleep(0)
        for n in (1, 2, 3):
            await store.append("s", "E", {})
            await asyncio.sleep(0)
            assert [task.done() for task in waits] == [n >= 3, True, n >= 2, n >= 3]
        await asyncio.gather(*waits)
        await live.wait_for(0)
        await live.wait_for(3, timeout=0)


async def test_waiting_has_a_timeout_and_can_be_cancelled(store: EventStore) -> None:
    async with noting(store) as live:
        with pytest.raises(TimeoutError):
            await live.wait_for(1, timeout=0.001)
        waiting = asyncio.create_task(live.wait_for(1))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert len(live._waiters) == 0
        await store.append("s", "E", {})
        assert live.state == [1]


async def test_waiting_ends_with_the_store(store: EventStore) -> None:
    async with noting(store) as live:
        waiting = asyncio.create_task(live.wait_for(1))
        await asyncio.sleep(0)
        await store.aclose()
        with pytest.raises(StoreClosed):
            await waiting
        with pytest.raises(StoreClosed):
            await live.wait_for(1)
        with pytest.raises(StoreClosed):
            await live.catch_up()


async def test_waiting_ends_with_the_projection(store: EventStore) -> None:
    live = noting(store)
    with pytest.raises(ProjectionStopped, match="follows only within"):
        await live.wait_for(1)
    async with live:
        waiting = asyncio.create_task(live.wait_for(1))
        await asyncio.sleep(0)
        await asyncio.create_task(live.aclose())
        with pytest.raises(ProjectionStopped, match="closed"):
            await waiting
        await live.aclose()
    with pytest.raises(ProjectionStopped):
        await live.wait_for(1)


async def test_waiting_in_a_handler_is_refused(store: EventStore) -> None:
    caught: list[str] = []
    live: LiveProjection[Any] = LiveProjection("p", store)

    async def attempt(call: Callable[[], Awaitable[Any]]) -> None:
        try:
            await call()
        except RuntimeError as error:
            caught.append(str(error))

    async def handle(events: list[Event]) -> None:
        await attempt(lambda: live.wait_for(99))
        await attempt(live.catch_up)
        await attempt(noting(store).__aenter__)

    @live.when("E")
    async def _(state: Any, event: Event) -> None:
        await attempt(lambda: live.wait_for(99))
        await attempt(live.save_snapshot)

    async with live:
        store.on_commit(handle)
        await store.append("s", "E", {})
        assert len(caught) == 5
        assert all("wait for" in text for text in caught)
    with pytest.raises(ValueError, match="event_id"):
        await live.wait_for(-1)


# Entering and leaving


async def test_left_it_stays_as_it_is_and_entered_again_it_goes_on(store: EventStore) -> None:
    live = noting(store)
    async with live:
        await store.append("s", "E", {})
        with pytest.raises(RuntimeError, match="already"):
            await live.__aenter__()
    assert "listeners=0" in repr(store)
    await store.append("s", "E", {})
    assert (live.state, live.is_live, live.lag) == ([1], False, 1)
    assert await live.catch_up() == 1  # as a plain projection
    await store.append("s", "E", {})
    async with live:
        assert live.state == [1, 2, 3]


async def test_closing_waits_for_the_handler_in_hand(store: EventStore) -> None:
    gate = asyncio.Event()
    live: LiveProjection[Any] = LiveProjection("p", store, initial=list)

    @live.when("E")
    async def handle(state: list[int], event: Event) -> None:
        await gate.wait()
        state.append(event.event_id)

    async with live:
        appending = asyncio.create_task(store.append("s", "E", {}))
        await until(lambda: "head=1" in repr(store))
        for _ in range(5):
            await asyncio.sleep(0)
        closing = asyncio.create_task(live.aclose())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not closing.done()
        await appending  # nothing holds it any more
        gate.set()
        await closing
        assert live.state == [1]


async def test_closed_in_its_own_handler_it_takes_no_more(store: EventStore) -> None:
    live: LiveProjection[Any] = LiveProjection("p", store, initial=list)

    @live.when("E")
    async def handle(state: list[int], event: Event) -> None:
        state.append(event.event_id)
        await live.aclose()

    async with live:
        await store.append("s", "E", {})
        await store.append("s", "E", {})
        assert (live.state, live.is_live, live.error) == ([1], False, None)


async def test_closed_while_it_reads_history_it_stops_there(store: EventStore) -> None:
    await store.append_batch("s", [("E", {})] * 3000)
    live: LiveProjection[Any] = LiveProjection("p", store, initial=list)

    @live.when("E")
    async def handle(state: list[int], event: Event) -> None:
        await asyncio.sleep(0)
        state.append(event.event_id)

    entering = asyncio.create_task(live.__aenter__())
    await until(lambda: len(live.state) > 10)
    await live.aclose()
    with pytest.raises(ProjectionStopped, match="closed"):
        await entering
    assert 10 < live.position < 3000
    assert live.state == list(range(1, live.position + 1))
    assert "listeners=0" in repr(store)


async def test_two_who_resume_it_at_once_listen_once(store: EventStore) -> None:
    failing = Failing(store)
    async with failing.projection as live:
        await store.append("s", "E", {"bad": True})
        failing.broken = False
        assert sorted(await asyncio.gather(live.catch_up(), live.catch_up())) in ([0, 1], [1, 1])
        assert "listeners=1" in repr(store)
        await store.append("s", "E", {})
        assert live.state == [1, 2]


async def test_live_catching_up_waits_for_what_is_on_its_way(store: EventStore) -> None:
    async with noting(store) as live:
        assert await live.catch_up() == 0
        appends = [asyncio.create_task(store.append("s", "E", {})) for _ in range(3)]
        await until(lambda: "head=3" in repr(store))
        await live.catch_up()
        assert live.state == [1, 2, 3]
        await asyncio.gather(*appends)


async def test_a_store_opened_for_reading_follows_the_one_that_writes(store: EventStore) -> None:
    await store.append("s", "E", {})
    async with await reopen(store, mode="r") as reading:
        live = noting(reading)
        assert await live.catch_up() == 1  # as a plain projection
        async with live, await EventStore.open(engine_of(store).location) as writing:
            event = await writing.append("s", "E", {})
            await live.wait_for(event.event_id)
            assert live.state == [1, 2]
            with pytest.raises(EngineUnsupported, match="mode='r'"):
                await reading.append("s", "E", {})


# Snapshots


async def test_snapshots_are_saved_in_the_background_and_a_restart_goes_on_from_them(store: EventStore) -> None:
    async with noting(store, snapshot_interval=10) as live:
        for _ in range(4):
            await store.append_batch("s", [("E", {})] * 8)
    other = noting(store)
    assert await other.load_snapshot()
    assert other.position in (10, 20, 30)
    assert other.state == live.state[: other.position]
    async with await reopen(store) as again, noting(again, snapshot_interval=10) as resumed:
        assert resumed.state == list(range(1, 33))
        await again.append("s", "E", {})
        assert resumed.state == list(range(1, 34))


async def test_an_append_does_not_wait_for_a_snapshot(store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()
    saved: list[int] = []

    async def save_state(key: str, position: int, value: bytes, **options: Any) -> int:
        await gate.wait()
        saved.append(position)
        return 1

    monkeypatch.setattr(store._engine, "save_state", save_state)
    async with noting(store, snapshot_interval=1) as live:
        for _ in range(5):
            await store.append("s", "E", {})
        assert live.position == 5
        gate.set()
    assert saved == [1, 5]  # of those that wait, only the newest is worth saving


async def test_a_snapshot_of_a_live_projection_can_be_asked_for(store: EventStore) -> None:
    async with noting(store) as live:
        await store.append("s", "E", {})
        await live.save_snapshot()
        await store.append("s", "E", {})
    other = noting(store)
    assert await other.load_snapshot()
    assert other.state == [1]


async def test_a_live_projection_does_not_go_back_to_a_snapshot(store: EventStore) -> None:
    async with noting(store) as live:
        await live.save_snapshot()
        await store.append("s", "E", {})
        with pytest.raises(RuntimeError, match="follows the store"):
            await live.load_snapshot()
        assert live.state == [1]


# Found by a review


def gated(store: EventStore, gate: asyncio.Semaphore) -> LiveProjection[Any]:
    """A projection whose handler waits for the gate with each event."""
    live: LiveProjection[Any] = LiveProjection("gated", store, initial=list)

    @live.when("E")
    async def handle(state: list[int], event: Event) -> None:
        await gate.acquire()
        state.append(event.event_id)

    return live


async def test_of_many_appends_at_once_each_returns_and_is_waited_for_in_its_turn(store: EventStore) -> None:
    gate = asyncio.Semaphore(0)
    async with gated(store, gate) as live:
        appends = [asyncio.create_task(store.append("s", "E", {})) for _ in range(50)]
        waits = [asyncio.create_task(live.wait_for(n)) for n in range(1, 51)]
        done: list[tuple[int, int]] = []
        for n in range(1, 51):
            gate.release()
            await until(lambda: live.position == n)  # noqa: B023 (it is over before the next one)
            for _ in range(10):
                await asyncio.sleep(0)
            done.append((sum(task.done() for task in waits), sum(task.done() for task in appends)))
        await asyncio.gather(*appends, *waits)
        assert done == [(n, n) for n in range(1, 51)]


async def test_closed_in_a_handler_it_takes_no_more_of_many_appends(store: EventStore) -> None:
    live: LiveProjection[Any] = LiveProjection("p", store, initial=list)

    @live.when("E")
    async def handle(state: list[int], event: Event) -> None:
        state.append(event.event_id)
        await asyncio.sleep(0)
        if event.event_id == 3:
            await live.aclose()

    async with live:
        await asyncio.gather(*(store.append("s", "E", {}) for _ in range(50)))
        assert (live.state, live.position) == ([1, 2, 3], 3)
    await store.append_batch("s", [("E", {})] * 50)
    async with live:
        pass
    assert live.state == list(range(1, 101))


async def test_who_waits_while_it_reads_history_is_woken_there(store: EventStore) -> None:
    await store.append_batch("s", [("E", {"bad": n == 700}) for n in range(1000)])
    failing = Failing(store)
    live = failing.projection
    entering = asyncio.create_task(live.__aenter__())
    await asyncio.sleep(0)
    waits = [asyncio.create_task(live.wait_for(n)) for n in (10, 900)]
    with pytest.raises(LookupError):
        await entering
    await waits[0]
    with pytest.raises(LookupError):
        await waits[1]
    failing.broken = False
    async with live:
        await live.wait_for(1000)


async def test_a_projection_that_resumes_is_waited_for(store: EventStore) -> None:
    failing = Failing(store)
    async with failing.projection as live:
        await store.append_batch("s", [("E", {"bad": True})] * 5)
        failing.broken = False
        resuming = asyncio.create_task(live.catch_up())
        await asyncio.sleep(0)
        await live.wait_for(5)
        assert await resuming == 5


async def test_a_snapshot_asked_for_is_not_replaced_by_an_older_one(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    gate = asyncio.Event()

    async def save_state(key: str, position: int, value: bytes, **options: Any) -> int:
        await gate.wait()
        saved.append(position)
        return 1

    monkeypatch.setattr(store._engine, "save_state", save_state)
    async with noting(store, snapshot_interval=2) as live:
        for _ in range(5):
            await store.append("s", "E", {})
        asked = asyncio.create_task(live.save_snapshot())
        await asyncio.sleep(0)
        gate.set()
        await asked
        assert saved[-1] == 5
    assert saved == sorted(saved)


class Uncommon(BaseException):
    """Neither an Exception nor one of the few that end a program."""


@pytest.mark.parametrize("in_seam", [False, True])
async def test_whatever_a_handler_raises_it_is_detached_and_nobody_gets_a_commit_twice(
    store: EventStore, log: pytest.LogCaptureFixture, in_seam: bool
) -> None:
    heard: list[int] = []

    async def hear(events: list[Event]) -> None:
        heard.extend(event.event_id for event in events)

    async def fail(events: list[Event]) -> None:
        raise Uncommon

    store.on_commit(hear)
    listener = store.on_commit(fail)
    await store.append("s", "E", {})
    await store.append("s", "E", {})
    assert heard == [1, 2]
    assert isinstance(listener.error, Uncommon)

    live: LiveProjection[Any] = LiveProjection("p", store)

    @live.when("F")
    def handle(state: Any, event: Event) -> None:
        raise Uncommon

    if in_seam:
        await store.append("s", "F", {})
        with pytest.raises((ProjectionStopped, Uncommon)):
            await live.__aenter__()
    else:
        async with live:
            await store.append("s", "F", {})
            with pytest.raises(ProjectionStopped):
                await live.wait_for(3)


async def test_waiting_for_a_stopped_projection_again_and_again_adds_nothing_to_its_error(store: EventStore) -> None:
    failing = Failing(store)
    async with failing.projection as live:
        await store.append("s", "E", {"bad": True})
        lengths = set()
        for _ in range(50):
            with pytest.raises(LookupError) as caught:
                await live.wait_for(1)
            lengths.add(len(list(traceback.walk_tb(caught.value.__traceback__))))
        assert len(lengths) == 1


async def test_each_of_several_closings_waits_for_the_handler_in_hand(store: EventStore) -> None:
    gate = asyncio.Semaphore(0)
    async with gated(store, gate) as live:
        appending = asyncio.create_task(store.append("s", "E", {}))
        await until(lambda: live._turn._lock.locked())
        closings = [asyncio.create_task(live.aclose()) for _ in range(3)]
        await asyncio.sleep(0)
        closings[0].cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        assert [task.done() for task in closings] == [True, False, False]
        gate.release()
        await asyncio.gather(*closings[1:], appending)
        assert live.state == [1]


async def test_closed_and_entered_again_while_it_was_still_entering(store: EventStore) -> None:
    await store.append_batch("s", [("E", {})] * 3)
    gate = asyncio.Semaphore(0)
    live = gated(store, gate)
    first = asyncio.create_task(live.__aenter__())
    await until(lambda: live._turn._lock.locked())
    closing = asyncio.create_task(live.aclose())
    await asyncio.sleep(0)
    for _ in range(4):
        gate.release()
    await closing
    async with live:
        with pytest.raises(ProjectionStopped):
            await first
        assert live.is_live
        assert live.state == [1, 2, 3]


async def test_another_handler_may_close_it_while_it_goes_live(store: EventStore) -> None:
    live: LiveProjection[Any] = LiveProjection("p", store, initial=list)

    @live.when("E")
    async def handle(state: list[int], event: Event) -> None:
        await store.append("s", "Answered", {}, idempotency_key=str(event.event_id))
        state.append(event.event_id)

    async def close(events: list[Event]) -> None:
        await live.aclose()

    store.on_commit(close)
    await store.append_batch("s", [("E", {})] * 3)
    with pytest.raises(ProjectionStopped):
        await live.__aenter__()
    assert not live.is_live


async def test_a_large_commit_gives_way(store: EventStore) -> None:
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with noting(store) as live:
        appending = asyncio.create_task(store.append_batch("s", [("E", {})] * 20_000))
        await until(lambda: live._turn._lock.locked())
        task = asyncio.create_task(take_turns())
        async with running(task):
            await appending
        assert turns >= 20_000 // 500 - 2
        assert len(live.state) == 20_000
