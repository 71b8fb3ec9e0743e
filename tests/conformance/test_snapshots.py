"""Snapshots: state and position in one step, across restarts, and discarded where they no longer fit."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from aiostore import Event, EventStore, EventStoreError, Projection, Query
from tests.conformance import reopen
from tests.conformance.accounts import balances, open_accounts


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, logger="aiostore")
    return caplog


async def saved(store: EventStore, **options: Any) -> Projection[dict[str, Any]]:
    """A projection of the six events, saved."""
    await open_accounts(store)
    projection = balances(store, **options)
    await projection.catch_up()
    await projection.save_snapshot()
    return projection


# Save, load, go on


async def test_a_snapshot_gives_state_and_position_back(store: EventStore) -> None:
    first = await saved(store)
    second = balances(store)
    assert await second.load_snapshot()
    assert (second.state, second.position) == (first.state, first.position) == ({"ann": 70, "bob": 20}, 6)
    assert await second.catch_up() == 0


async def test_the_bank_restarts_where_it_was(store: EventStore) -> None:
    await saved(store)
    await store.append("ann", "Deposited", {"amount": 1})  # after the snapshot
    async with await reopen(store) as again:
        projection = balances(again)
        assert await projection.load_snapshot()
        assert (projection.state, projection.position) == ({"ann": 70, "bob": 20}, 6)
        await again.append("bob", "Withdrawn", {"amount": 5})
        assert await projection.catch_up() == 2
        assert projection.state == {"ann": 71, "bob": 15}


async def test_without_a_snapshot_nothing_is_loaded(store: EventStore, log: pytest.LogCaptureFixture) -> None:
    projection = balances(store)
    assert not await projection.load_snapshot()
    assert (projection.state, projection.position) == ({}, 0)
    assert log.messages == []


async def test_the_last_snapshot_counts(store: EventStore) -> None:
    projection = await saved(store)
    await store.append("ann", "Deposited", {"amount": 1})
    await projection.catch_up()
    await projection.save_snapshot()
    other = balances(store)
    assert await other.load_snapshot()
    assert other.position == 7


async def test_names_have_snapshots_of_their_own(store: EventStore) -> None:
    for name in ("a", "b"):
        projection = Projection(name, store, initial=lambda: 0)
        projection.when("E", lambda count, event: count + 1)
        await store.append("s", "E", {})
        await projection.catch_up()
        await projection.save_snapshot()
    loaded: list[Any] = []
    for name in ("a", "b", "c"):
        projection = Projection(name, store, initial=lambda: 0)
        loaded.append((await projection.load_snapshot(), projection.state))
    assert loaded == [(True, 1), (True, 2), (False, 0)]


async def test_what_is_loaded_is_not_what_was_saved_but_equal_to_it(store: EventStore) -> None:
    first = await saved(store)
    second = balances(store)
    await second.load_snapshot()
    second.state["ann"] = 0
    third = balances(store)
    await third.load_snapshot()
    assert first.state["ann"] == third.state["ann"] == 70


async def test_a_snapshot_of_nothing(store: EventStore) -> None:
    await balances(store).save_snapshot()
    projection = balances(store)
    assert await projection.load_snapshot()
    assert (projection.state, projection.position) == ({}, 0)


async def test_a_snapshot_waits_for_the_handler_in_hand(store: EventStore) -> None:
    await store.append_batch("s", [("E", {})] * 2)
    gate = asyncio.Event()
    projection: Projection[Any] = Projection("p", store, initial=list)

    @projection.when("E")
    async def handle(state: list[int], event: Event) -> None:
        state.append(event.event_id)
        await gate.wait()
        state.append(event.event_id)

    catching_up = asyncio.create_task(projection.catch_up())
    await asyncio.sleep(0.001)
    saving = asyncio.create_task(projection.save_snapshot())
    await asyncio.sleep(0.001)
    assert not saving.done()
    gate.set()
    await asyncio.gather(catching_up, saving)
    other: Projection[Any] = Projection("p", store, initial=list)
    assert await other.load_snapshot()
    assert (other.state, other.position) == ([1, 1, 2, 2], 2)


async def test_handlers_may_be_registered_after_loading(store: EventStore) -> None:
    await saved(store)
    projection: Projection[Any] = Projection("balances", store)
    assert await projection.load_snapshot()
    assert projection.state == {"ann": 70, "bob": 20}
    with pytest.raises(RuntimeError, match=r"lacks the handlers .*Deposited"):
        await projection.catch_up()
    with pytest.raises(RuntimeError, match="passed over"):
        projection.when("Audited", lambda state, event: None)
    for event_type in ("Opened", "Deposited", "Withdrawn"):
        projection.when(event_type, lambda state, event: None)
    assert await projection.catch_up() == 0


# By interval


async def test_an_interval_saves_as_it_goes_and_begins_from_the_last_one(store: EventStore) -> None:
    await store.append_batch("s", [("E", {})] * 25)
    positions = []
    for _ in range(2):
        projection = Projection("count", store, initial=lambda: 0, snapshot_interval=10)
        projection.when("E", lambda count, event: count + 1)
        loaded = Projection("count", store, initial=lambda: 0)
        await loaded.load_snapshot()
        positions.append((loaded.position, await projection.catch_up(), projection.state))
    assert positions == [(0, 25, 25), (20, 5, 25)]
    await store.append_batch("s", [("E", {})] * 5)
    assert await projection.catch_up() == 5
    await loaded.load_snapshot()
    assert (loaded.state, loaded.position) == (30, 30)


async def test_an_interval_counts_what_the_query_matches(store: EventStore) -> None:
    projection = Projection("c", store, initial=lambda: 0, query=Query.where(types="A"), snapshot_interval=3)
    projection.when("A", lambda count, event: count + 1)
    await store.append_batch("s", [(event_type, {}) for event_type in "ABABABABAB"])
    await projection.catch_up()
    other = Projection("c", store, initial=lambda: 0, query=Query.where(types="A"))
    assert await other.load_snapshot()
    assert (other.state, other.position) == (3, 5)


async def test_a_failing_handler_keeps_the_snapshots_before_it(store: EventStore) -> None:
    await store.append_batch("s", [("E", {"n": n}) for n in range(1, 9)])

    def handle(state: int, event: Event) -> int:
        if event.data["n"] == 6:
            raise LookupError("mine")
        return state + 1

    projection = Projection("p", store, initial=lambda: 0, snapshot_interval=2)
    projection.when("E", handle)
    with pytest.raises(LookupError):
        await projection.catch_up()
    assert projection.position == 5
    other = Projection("p", store, initial=lambda: 0)
    assert await other.load_snapshot()
    assert (other.state, other.position) == (4, 4)


# What fits


@dataclass
class Totals:
    count: int = 0
    by_type: dict[str, int] = field(default_factory=dict)


@dataclass
class TotalsWithAmount:
    count: int = 0
    by_type: dict[str, int] = field(default_factory=dict)
    amount: int = 0


class Color(Enum):
    RED = "red"


class Tally(Counter[str]):
    of = 0

    def with_total(self, total: int) -> Tally:
        self.of = total
        return self


SHARED: list[int] = []
DEEP: list[Any] = []
for _ in range(2_000):
    DEEP = [DEEP]


async def kept(store: EventStore, state_type: Any, *types: str, query: Query | None = None) -> Projection[Any]:
    projection: Projection[Any] = Projection("kept", store, state_type=state_type, query=query)
    for event_type in types:
        projection.when(event_type, lambda state, event: None)
    return projection


async def test_a_snapshot_of_another_state_type_is_discarded_and_made_anew(
    store: EventStore, log: pytest.LogCaptureFixture
) -> None:
    await store.append("s", "E", {})
    first = await kept(store, Totals, "E")
    await first.catch_up()
    await first.save_snapshot()
    assert await (await kept(store, Totals, "E")).load_snapshot()
    grown = await kept(store, TotalsWithAmount, "E")  # it could be filled with the default, and would be wrong
    assert not await grown.load_snapshot()
    assert "'kept' at event 1 is discarded" in log.text
    assert "state_type" in log.text
    assert await grown.catch_up() == 1
    await grown.save_snapshot()
    assert await (await kept(store, TotalsWithAmount, "E")).load_snapshot()


@pytest.mark.parametrize(
    ("types", "query", "reason"),
    [
        (("E",), Query.where(types="E"), "query is another"),
        (("E", "F"), None, "handlers of F are new"),
        (("F",), None, "handlers of E and F are not there any more"),
        (("G",), None, "handlers of E are not there any more"),
    ],
)
async def test_a_snapshot_that_a_replay_would_not_give_is_discarded(
    store: EventStore, log: pytest.LogCaptureFixture, types: tuple[str, ...], query: Query | None, reason: str
) -> None:
    await store.append_batch("s", [("E", {}), ("F", {})])
    first = await kept(store, Totals, "E")
    await first.catch_up()
    await first.save_snapshot()
    second = await kept(store, Totals, *types, query=query)
    assert not await second.load_snapshot()
    assert reason in log.text


async def test_a_snapshot_fits_with_a_handler_for_what_has_not_come_yet(store: EventStore) -> None:
    await store.append("s", "E", {})
    first = await kept(store, Totals, "E")
    await first.catch_up()
    await first.save_snapshot()
    assert await (await kept(store, Totals, "E", "F")).load_snapshot()


async def test_with_an_interval_a_snapshot_that_does_not_fit_costs_a_replay(
    store: EventStore, log: pytest.LogCaptureFixture
) -> None:
    await store.append_batch("s", [("E", {})] * 4)
    for state_type, count in ((dict[str, int], 4), (dict[str, int], 0), (dict[str, float], 4)):
        projection: Projection[Any] = Projection("p", store, state_type=state_type, snapshot_interval=2)
        projection.when("E", lambda state, event: None)
        assert await projection.catch_up() == count
    assert log.text.count("is discarded") == 1


@pytest.mark.parametrize(
    "state",
    [
        {"a": [1, 2.5, None, True, "x", b"y"], "b": {"c": {}}},
        {1: "one", 2: {3: 4}},
        [float("nan"), float("inf")],
        "text",
        7,
        None,
    ],
    ids=["nested", "integer keys", "not finite", "text", "number", "none"],
)
async def test_plain_states_come_back_as_they_are(store: EventStore, state: Any) -> None:
    await Projection("p", store, initial=lambda: state).save_snapshot()
    other: Projection[Any] = Projection("p", store, initial=lambda: "first")
    assert await other.load_snapshot()
    assert repr(other.state) == repr(state)


@pytest.mark.parametrize(
    "state",
    [(1, 2), {"a": {1}}, Counter("ab"), defaultdict(int, a=1), {"n": defaultdict(int)}, object(), 2**70, Totals()],
    ids=lambda state: type(state).__name__,
)
async def test_a_state_that_would_not_come_back_is_refused(store: EventStore, state: Any) -> None:
    projection: Projection[Any] = Projection("p", store, initial=lambda: state)
    with pytest.raises(TypeError, match=r"snapshot"):
        await projection.save_snapshot()
    assert not await Projection("p", store, initial=list).load_snapshot()


@pytest.mark.parametrize(
    ("state_type", "state", "difference"),
    [
        (None, {"a": [1, (2,)]}, "state['a'][1], of type tuple, would be of type list"),
        (None, {"a": Counter("x")}, "state['a'], of type Counter, would be of type dict"),
        (None, {(1, 2): "x", "t": {3}}, "state['t'], of type set, would be of type list"),
        (None, {Color.RED: 1}, "state, in it the key <Color.RED: 'red'>, of type Color, would be of type str"),
        (set, {Color.RED}, "state, in it <Color.RED: 'red'>, would not be there"),
        (
            None,
            [datetime(2026, 1, 1, tzinfo=ZoneInfo("Asia/Tokyo"))],
            "state[0], 2026-01-01T00:00:00+09:00, would be in",
        ),
        (None, [SHARED, {"b": SHARED}], "state[1]['b'] is the same list as in another place"),
        (Tally, Tally(a=1).with_total(2), "state.of"),
        (None, DEEP, "RecursionError"),
    ],
    ids=["tuple", "counter", "set", "enum key", "enum in set", "zone", "shared", "attribute", "deep"],
)
async def test_what_would_not_come_back_is_named(
    store: EventStore, state_type: Any, state: Any, difference: str
) -> None:
    projection: Projection[Any] = Projection("p", store, state_type=state_type, initial=lambda: state)
    with pytest.raises(TypeError, match=re.escape(difference)):
        await projection.save_snapshot()


class Node(msgspec.Struct):
    children: list[Node] = []
    names: set[str] = set()


@pytest.mark.parametrize(
    ("state_type", "state"),
    [
        (Totals, Totals(3, {"a": 1})),
        (Node, Node([Node(names={"x", "y"})])),
        (set[int], {1, 2}),
        (tuple[int, str], (1, "a")),
        (dict[str, Totals], {"a": Totals(1)}),
        (Counter, Counter("aab")),
        (frozenset[str], frozenset("ab")),
    ],
    ids=["dataclass", "struct", "set", "tuple", "dict", "counter", "frozenset"],
)
async def test_typed_states_come_back_as_they_are(store: EventStore, state_type: Any, state: Any) -> None:
    first: Projection[Any] = Projection("p", store, state_type=state_type, initial=lambda: state)
    await first.save_snapshot()
    second: Projection[Any] = Projection("p", store, state_type=state_type, initial=lambda: None)
    assert await second.load_snapshot()
    assert second.state == state
    assert type(second.state) is type(state)
    assert second.state is not state


async def test_a_pydantic_model_comes_back(store: EventStore) -> None:
    pydantic = pytest.importorskip("pydantic")
    model = pydantic.create_model("Totals", count=(int, 0), names=(set[str], set()))
    first: Projection[Any] = Projection("p", store, state_type=model, initial=lambda: model(count=3, names={"a"}))
    await first.save_snapshot()
    second: Projection[Any] = Projection("p", store, state_type=model)
    assert await second.load_snapshot()
    assert second.state == model(count=3, names={"a"})


async def test_a_store_opened_for_reading_loads_and_does_not_save(store: EventStore) -> None:
    await saved(store)
    async with await reopen(store, mode="r") as reading:
        projection = balances(reading)
        assert await projection.load_snapshot()
        assert (projection.state, projection.lag) == ({"ann": 70, "bob": 20}, 0)
        with pytest.raises(EventStoreError, match="mode='rw'"):
            await projection.save_snapshot()
        every: Projection[Any] = Projection("every", reading, initial=lambda: 0, snapshot_interval=1)
        every.when("Opened", lambda count, event: count + 1)
        assert (await every.catch_up(), every.state) == (6, 2)


async def test_a_due_snapshot_that_cannot_be_made_is_logged_and_the_projection_goes_on(
    store: EventStore, log: pytest.LogCaptureFixture
) -> None:
    await store.append_batch("s", [("E", {})] * 4)
    projection: Projection[Any] = Projection("p", store, snapshot_interval=2)

    @projection.when("E")
    def handle(state: dict[str, Any], event: Event) -> None:
        state["ids"] = {*state.get("ids", ()), event.event_id}

    assert await projection.catch_up() == 4
    assert projection.state == {"ids": {1, 2, 3, 4}}
    assert log.text.count("goes on without a snapshot") == 2
    with pytest.raises(TypeError, match=r"state\['ids'\], of type set"):
        await projection.save_snapshot()


async def test_a_first_state_that_would_not_come_back_is_refused_at_once_with_an_interval(store: EventStore) -> None:
    with pytest.raises(TypeError, match="of type defaultdict"):
        Projection("p", store, initial=lambda: defaultdict(int), snapshot_interval=1)


@dataclass
class Amount:
    amount: float = 0


async def test_an_int_may_stand_where_a_float_is_declared(store: EventStore) -> None:
    first: Projection[Amount] = Projection("p", store, initial=lambda: Amount(1), state_type=Amount)
    await first.save_snapshot()
    second: Projection[Amount] = Projection("p", store, state_type=Amount)
    assert await second.load_snapshot()
    assert second.state == Amount(1)


PROGRAM = """
import msgspec
from aiostore.snapshots import _fingerprint
class Seen(msgspec.Struct):
    {docstring}
    seen: frozenset[str] = frozenset({{"a", "b", "c", "d"}})
    title: str = "x"
    {more}
print(_fingerprint(Seen))
"""


def fingerprint(seed: int, docstring: str = "", more: str = "") -> str:
    program = PROGRAM.format(docstring=repr(docstring), more=more)
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": str(seed)},
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout


def test_a_state_type_is_the_same_in_every_process_and_whatever_its_docstring() -> None:
    same = {fingerprint(1), fingerprint(2), fingerprint(3, docstring="Says more.")}
    assert len(same) == 1
    assert fingerprint(1, more="title2: str = ''") not in same


async def test_queries_that_name_the_same_in_another_order_have_one_snapshot(store: EventStore) -> None:
    first = await kept(store, Totals, "A", query=Query.where(types=("A", "B"), tags=("x", "y")))
    await first.save_snapshot()
    assert await (await kept(store, Totals, "A", query=Query.where(types=("B", "A"), tags=("y", "x")))).load_snapshot()


async def test_a_projection_of_anything_large_has_a_short_repr_at_once(store: EventStore) -> None:
    class Unlooked(dict[str, int]):
        def __repr__(self) -> str:
            raise AssertionError("looked at")

    counted: Projection[Any] = Projection("p", store, initial=lambda: Unlooked({str(n): n for n in range(100)}))
    assert "Unlooked of 100" in repr(counted)
    totals: Projection[Any] = Projection("p", store, initial=lambda: Totals(1, {str(n): n for n in range(10_000)}))
    assert "Totals(count=1, by_type={" in repr(totals)
    assert len(repr(totals)) < 300
