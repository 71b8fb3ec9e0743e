"""Given–when–then: what passes, and what a failure says."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Any

import pytest

from aiostore import Decider, Event, EventStore, LiveProjection, NewEvent, Projection, StreamAppend
from aiostore.testing import given, given_events


class Overdrawn(Exception):
    pass


def evolve(balance: int, event: Event) -> int:
    amount: int = event.data["amount"]
    return balance + amount


def withdraw(amount: int, balance: int) -> list[tuple[str, Any]]:
    if amount > balance:
        raise Overdrawn(f"{amount} of {balance}")
    return [("Withdrawn", {"amount": -amount})] if amount else []


ACCOUNT = Decider(0, evolve, withdraw)
DEPOSITED = ("Deposited", {"amount": 100})
WITHDRAWN = ("Withdrawn", {"amount": -30})


def test_what_is_as_expected_passes() -> None:
    given(ACCOUNT, DEPOSITED).when(30).then(WITHDRAWN).then_state(70).then_state(70)
    given(ACCOUNT, DEPOSITED, NewEvent(*WITHDRAWN)).when(70).then(NewEvent("Withdrawn", {"amount": -70})).then_state(0)
    given(ACCOUNT, DEPOSITED).when(0).then_nothing().then_state(100)
    given(ACCOUNT).when(1).then_raises(Overdrawn, match="1 of 0").then_raises(Exception)


async def test_events_of_a_store_may_be_given_and_it_works_inside_of_a_loop() -> None:
    async with EventStore() as store:
        events = await store.append_batch("ann", [DEPOSITED])
    given(ACCOUNT, *events).when(30).then(WITHDRAWN).then_state(70)


def test_events_have_places_and_times() -> None:
    seen: list[Any] = []

    def note(state: None, event: Event) -> None:
        seen.append((event.event_id, event.stream_id, event.version, event.timestamp.second, event.tags))

    decider: Decider[None, None] = Decider(None, note, lambda command, state: StreamAppend("b", [("C", {})]))
    events = [StreamAppend("a", [("A", {}), ("A", {})]), StreamAppend("b", [NewEvent("B", {}, tags=["t"])]), ("A", {})]
    given(decider, *events).when(None).then(StreamAppend("b", [("C", {})])).then_state(None)
    assert seen[:4] == [(1, "a", 1, 1, ()), (2, "a", 2, 2, ()), (3, "b", 1, 3, ("t",)), (4, "given", 1, 4, ())]
    assert seen[-1] == (5, "b", 2, 5, ())


def fails(expectation: Any, *patterns: str) -> None:
    with pytest.raises(AssertionError) as caught:
        expectation()
    for pattern in patterns:
        assert re.search(pattern, str(caught.value), re.MULTILINE), (pattern, str(caught.value))


def test_a_failure_shows_what_was_expected_and_what_came() -> None:
    came = given(ACCOUNT, DEPOSITED).when(30)
    wanted = ("Withdrawn", {"amount": -31})
    fails(lambda: came.then(wanted), r"other events", r"^- .*-31", r"^\+ .*'Withdrawn'.*-30")
    fails(lambda: came.then(WITHDRAWN, wanted), r"^  .*-30", r"^- .*-31")
    fails(lambda: came.then_nothing(), r"^\+ .*-30")
    fails(lambda: came.then(StreamAppend("ann", [WITHDRAWN])), r"^- .*'stream_id': 'ann'")
    fails(lambda: came.then(NewEvent(*WITHDRAWN, tags=["t"])), r"^- .*'tags': \('t',\)")
    fails(lambda: came.then((*WITHDRAWN, {"m": 1})), r"^- .*'metadata': \{'m': 1\}")
    fails(lambda: came.then_state(71), r"the state is another", r"^- 71", r"^\+ 70")
    fails(lambda: came.then_raises(Overdrawn), r"Overdrawn was to be raised", r"^\+ .*-30")
    fails(lambda: given(ACCOUNT).when(0).then_raises(Overdrawn), r"^\+ nothing")


def test_a_failure_shows_what_was_raised() -> None:
    came = given(ACCOUNT, DEPOSITED).when(101)
    fails(lambda: came.then(WITHDRAWN), r"decide raised Overdrawn\('101 of 100'\)")
    fails(lambda: came.then_nothing(), r"decide raised")
    fails(lambda: came.then_state(1), r"decide raised")
    fails(lambda: came.then_raises(LookupError), r"LookupError was to be raised, but it was Overdrawn")
    fails(lambda: came.then_raises(Overdrawn, match="102"), r"'101 of 100', which '102' does not match")


async def decide_later(amount: int, balance: int) -> Any:
    await asyncio.sleep(0)
    return withdraw(amount, balance)


async def test_an_async_decide_is_awaited() -> None:
    decider = Decider(0, evolve, decide_later)
    (await given(decider, DEPOSITED).when_async(30)).then(WITHDRAWN).then_state(70)
    (await given(decider).when_async(30)).then_raises(Overdrawn)
    with pytest.raises(TypeError, match="when_async"):
        given(decider, DEPOSITED).when(30)


@dataclass
class Deposited:
    amount: int


def test_typed_objects_may_stand_for_events() -> None:
    def evolve_typed(balance: int, event: Deposited) -> int:
        return balance + event.amount

    def deposit(command: int, balance: int) -> Any:
        return Deposited(command)

    decider = Decider(0, evolve_typed, deposit, decoded=True)
    came = given(decider, Deposited(1), Deposited(2)).when(5).then(Deposited(5)).then_state(8)
    fails(lambda: came.then(Deposited(4)), r"^- Deposited\(amount=4\)", r"^\+ Deposited\(amount=5\)")


# Projections


def balances(store: EventStore) -> Projection[dict[str, Any]]:
    projection: Projection[dict[str, Any]] = Projection("balances", store)

    @projection.when("Deposited")
    def deposit(state: dict[str, Any], event: Event) -> None:
        state[event.stream_id] = state.get(event.stream_id, 0) + event.data["amount"]

    return projection


async def test_a_projection_is_given_events() -> None:
    await given_events(balances).then_state({})
    events = [DEPOSITED, StreamAppend("ann", [DEPOSITED, WITHDRAWN, DEPOSITED])]
    await given_events(balances, *events).then_state({"given": 100, "ann": 200})
    assert await given_events(lambda store: LiveProjection("p", store), DEPOSITED).state() == {}
    async with EventStore() as store:
        await store.append("bob", *DEPOSITED)
        log = await store.read_all().to_list()
    await given_events(balances, *log).then_state({"bob": 100})


async def test_a_projection_that_comes_to_another_state_is_shown() -> None:
    with pytest.raises(AssertionError, match="the state is another") as caught:
        await given_events(balances, DEPOSITED).then_state({"given": 99})
    assert "- {'given': 99}" in str(caught.value)
    assert "+ {'given': 100}" in str(caught.value)
