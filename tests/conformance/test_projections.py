"""Projections: incremental, in order, and where they stop when a handler raises or is cancelled."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from aiostore import Event, EventStore, EventStoreError, InvalidEvent, Projection, Query, StoreClosed
from tests.conformance.accounts import balances, open_accounts
from tests.scheduler import until


def noting(store: EventStore, *types: str, **options: Any) -> Projection[Any]:
    """A projection whose state is the list of the event_ids that its handlers had."""
    projection: Projection[Any] = Projection("noted", store, initial=list, **options)
    for event_type in types:
        projection.when(event_type, lambda state, event: state.append(event.event_id))
    return projection


# What it takes


async def test_handlers_of_every_kind_make_the_state(store: EventStore) -> None:
    await open_accounts(store)
    projection = balances(store)
    assert (projection.state, projection.position, projection.lag) == ({}, 0, 6)
    assert await projection.catch_up() == 6
    assert (projection.state, projection.position, projection.lag) == ({"ann": 70, "bob": 20}, 6, 0)


async def test_catching_up_is_incremental(store: EventStore) -> None:
    await open_accounts(store)
    projection = balances(store)
    assert [await projection.catch_up(), await projection.catch_up()] == [6, 0]
    await store.append("bob", "Deposited", {"amount": 5})
    assert projection.state["bob"] == 20
    assert await projection.catch_up() == 1
    assert projection.state["bob"] == 25


async def test_an_empty_store_leaves_the_first_state(store: EventStore) -> None:
    projection = balances(store)
    assert await projection.catch_up() == 0
    assert (projection.state, projection.position) == ({}, 0)


async def test_a_query_narrows_it_and_its_position_passes_what_does_not_match(store: EventStore) -> None:
    await open_accounts(store)
    projection = noting(store, "Opened", "Deposited", query=Query.where(types="Opened") | Query.where(types="Audited"))
    assert await projection.catch_up() == 3
    assert (projection.state, projection.position) == ([1, 3], 6)
    await store.append("ann", "Deposited", {"amount": 1})
    assert await projection.catch_up() == 0
    assert projection.position == 7


async def test_many_events_come_once_and_in_order(store: EventStore) -> None:
    for _ in range(3):
        await store.append_batch("s", [("E", {})] * 700)
    projection = noting(store, "E")
    assert await projection.catch_up() == 2100
    assert projection.state == list(range(1, 2101))


async def test_what_a_handler_does_to_its_event_reaches_nobody_else(store: EventStore) -> None:
    await store.append("s", "E", {"list": [1]})

    def change(state: Any, event: Event) -> None:
        event.data["list"].append(2)
        state["seen"] = event.data

    first = Projection("p", store)
    first.when("E", change)
    await first.catch_up()
    second = Projection("p", store)
    second.when("E", change)
    await second.catch_up()
    assert first.state == second.state == {"seen": {"list": [1, 2]}}
    assert (await store.read_all().to_list())[0].data == {"list": [1]}


async def test_falsy_states_are_states(store: EventStore) -> None:
    await store.append_batch("s", [("E", {"n": n}) for n in (1, -1)])
    projection: Projection[int] = Projection("sum", store, initial=lambda: 0)
    projection.when("E", lambda total, event: total + event.data["n"])
    await projection.catch_up()
    assert projection.state == 0


async def test_the_initial_state_is_of_the_state_type_unless_given(store: EventStore) -> None:
    assert Projection("p", store, state_type=Counter).state == Counter()
    assert Projection("p", store, state_type=set[int]).state == set()
    assert Projection("p", store, state_type=int, initial=lambda: 7).state == 7


async def test_two_calls_at_once_take_each_event_once(store: EventStore) -> None:
    await store.append_batch("s", [("E", {})] * 10)
    projection: Projection[Any] = Projection("slow", store, initial=list)

    @projection.when("E")
    async def slow(state: list[int], event: Event) -> None:
        await asyncio.sleep(0)
        state.append(event.event_id)

    assert sorted(await asyncio.gather(projection.catch_up(), projection.catch_up())) == [0, 10]
    assert projection.state == list(range(1, 11))


async def test_a_handler_may_append_and_what_it_appends_comes_later(store: EventStore) -> None:
    await store.append("s", "Asked", {})
    projection: Projection[Any] = Projection("answering", store, initial=list)

    @projection.when("Asked")
    async def answer(state: list[str], event: Event) -> None:
        await store.append("s", "Answered", {}, idempotency_key=f"answer-{event.event_id}")
        state.append("asked")

    projection.when("Answered", lambda state, event: state.append("answered"))
    assert await projection.catch_up() == 1
    assert await projection.catch_up() == 1
    assert projection.state == ["asked", "answered"]


# Where it stops


async def test_a_handler_that_raises_stops_it_at_that_event_and_the_next_call_goes_on_there(store: EventStore) -> None:
    await store.append_batch("s", [("E", {"n": n}) for n in range(1, 6)])
    broken = True

    def handle(state: list[int], event: Event) -> None:
        if broken and event.data["n"] == 3:
            raise LookupError("mine")
        state.append(event.data["n"])

    projection: Projection[Any] = Projection("p", store, initial=list)
    projection.when("E", handle)
    for _ in range(2):
        with pytest.raises(LookupError, match="mine") as caught:
            await projection.catch_up()
        assert projection.error is caught.value
        assert (projection.state, projection.position, projection.lag) == ([1, 2], 2, 3)
        assert "mine" in repr(projection)
    broken = False
    assert await projection.catch_up() == 3
    assert (projection.state, projection.position, projection.error) == ([1, 2, 3, 4, 5], 5, None)


async def test_a_call_that_is_cancelled_loses_nothing(store: EventStore) -> None:
    await store.append_batch("s", [("E", {})] * 3)
    gate = asyncio.Event()
    in_hand: list[int] = []
    projection: Projection[Any] = Projection("p", store, initial=list)

    @projection.when("E")
    async def handle(state: list[int], event: Event) -> None:
        if event.event_id == 2:
            in_hand.append(2)
            await gate.wait()
        state.append(event.event_id)

    catching_up = asyncio.create_task(projection.catch_up())
    await until(lambda: in_hand)
    catching_up.cancel()
    await asyncio.wait([catching_up])
    assert catching_up.cancelled()
    assert (projection.state, projection.position, projection.error) == ([1], 1, None)
    gate.set()
    assert await projection.catch_up() == 2
    assert projection.state == [1, 2, 3]


async def test_a_handler_that_waits_for_its_own_projection_is_told_so(store: EventStore) -> None:
    await store.append("s", "E", {})
    projection = Projection("p", store)
    calls = [projection.catch_up, projection.save_snapshot, projection.load_snapshot]

    async def handle(state: Any, event: Event) -> None:
        await calls[0]()

    projection.when("E", handle)
    for _ in range(3):
        calls.append(calls.pop(0))
        with pytest.raises(RuntimeError, match="wait for itself"):
            await projection.catch_up()


async def test_a_closed_store_is_an_error(store: EventStore) -> None:
    projection = balances(store)
    await store.aclose()
    with pytest.raises(StoreClosed):
        await projection.catch_up()


# How it is made


async def test_bad_arguments_are_refused(store: EventStore) -> None:
    with pytest.raises(InvalidEvent, match="name"):
        Projection("", store)
    with pytest.raises(TypeError, match="EventStore"):
        Projection("p", {})  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="lambda: 0"):
        Projection("p", store, initial={})  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="Query"):
        Projection("p", store, query="E")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="snapshot_interval"):
        Projection("p", store, snapshot_interval=0)
    with pytest.raises(TypeError, match="state_type"):
        Projection("p", store, state_type=7)  # type: ignore[call-overload]
    projection = Projection("p", store)
    with pytest.raises(TypeError, match="callable"):
        projection.when("E", 7)  # type: ignore[call-overload]
    with pytest.raises(InvalidEvent, match="event_type"):
        projection.when("", print)


async def test_a_type_has_one_handler(store: EventStore) -> None:
    projection = noting(store, "E")
    with pytest.raises(ValueError, match="'E' already"):
        projection.when("E", lambda state, event: None)


async def test_a_handler_that_comes_too_late_is_refused(store: EventStore) -> None:
    await open_accounts(store)
    projection = noting(store, "Opened")
    await projection.catch_up()
    with pytest.raises(RuntimeError, match=r"passed over .*'Deposited' up to event 6"):
        projection.when("Deposited", lambda state, event: None)
    projection.when("Closed", lambda state, event: state.append(event.event_id))  # none has come
    await store.append("ann", "Closed", {})
    await projection.catch_up()
    assert projection.state == [1, 3, 7]


async def test_when_gives_the_handler_back(store: EventStore) -> None:
    projection = Projection("p", store)

    def handler(state: Any, event: Event) -> None:
        """Not called."""

    assert projection.when("A", handler) is handler
    assert projection.when("B")(handler) is handler


async def test_a_projection_says_where_it_is(store: EventStore) -> None:
    await open_accounts(store)
    projection = balances(store)
    await projection.catch_up()
    assert repr(projection) == "<Projection 'balances' position=6 state={'ann': 70, 'bob': 20}>"
    assert projection.name == "balances"
    large: Projection[Any] = Projection("large", store, initial=lambda: "x" * 10_000)
    assert len(repr(large)) < 300


async def test_errors_of_a_projection_are_errors_of_the_store(store: EventStore) -> None:
    await open_accounts(store)
    with pytest.raises(EventStoreError):
        Projection("x" * 201, store)
