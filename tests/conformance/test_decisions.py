"""Decisions: on what they are made, that nothing comes in between, what is stored and what is not."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiostore import (
    AppendConditionFailed,
    ConcurrencyConflict,
    Decider,
    Decision,
    Event,
    EventStore,
    IdempotencyConflict,
    InvalidEvent,
    NewEvent,
    Query,
    StoreClosed,
    StreamAppend,
)
from aiostore.decider import ATTEMPTS
from aiostore.events import EventLike
from tests.conformance import ids, outcome
from tests.conftest import OpenStore

Command = tuple[str, Any]


class Overdrawn(Exception):
    pass


def evolve(balance: int, event: Event) -> int:
    amount: int = event.data["amount"]
    return balance + amount


def decide(command: Command, balance: int) -> Sequence[tuple[str, Any]]:
    """To withdraw one's all, to withdraw so much, or to deposit."""
    kind, amount = command
    if kind == "close":
        return [] if balance == 0 else [("Withdrawn", {"amount": -balance})]
    if kind == "withdraw":
        if amount > balance:
            raise Overdrawn(f"{amount} of {balance}")
        return [("Withdrawn", {"amount": -amount})]
    return [("Deposited", {"amount": amount})]


ACCOUNT = Decider(0, evolve, decide)


# What is decided, and what is stored


async def test_a_decision_is_made_on_the_state_and_gives_the_state_after_it(store: EventStore) -> None:
    first = await ACCOUNT.execute(store, "ann", ("deposit", 100))
    second = await ACCOUNT.execute(store, "ann", ("withdraw", 30))
    assert (first.state, first.version, second.state, second.version) == (100, 1, 70, 2)
    assert second.position == 2
    assert [*first.events, *second.events] == await store.read_stream("ann").to_list()


async def test_what_decide_raises_goes_out_and_nothing_is_stored(store: EventStore) -> None:
    await ACCOUNT.execute(store, "ann", ("deposit", 10))
    with pytest.raises(Overdrawn, match="30 of 10"):
        await ACCOUNT.execute(store, "ann", ("withdraw", 30))
    assert await store.head() == 1


async def test_where_nothing_is_decided_nothing_is_stored_and_the_state_is_the_present_one(store: EventStore) -> None:
    assert await ACCOUNT.execute(store, "ann", ("close", None)) == Decision((), 0, 0, 0)
    await store.append_batch("ann", [("Deposited", {"amount": 5}), ("Withdrawn", {"amount": -5})])
    await store.append("bob", "Deposited", {"amount": 1})
    assert await ACCOUNT.execute(store, "ann", ("close", None)) == Decision((), 0, 2, 2)
    assert await store.head() == 3


@pytest.mark.parametrize(
    ("decided", "types"),
    [
        (None, ""),
        ([], ""),
        ((), ""),
        (("A", {}), "A"),
        (("A", {}, {"m": 1}), "A"),
        (NewEvent("A", {}, tags=["t"]), "A"),
        ([("A", {}), NewEvent("B", {})], "AB"),
        ((NewEvent("A", {}), ("B", {})), "AB"),
        (iter([("A", {}), ("B", {}), ("C", {})]), "ABC"),
    ],
)
async def test_decide_returns_events_one_event_or_none(store: EventStore, decided: Any, types: str) -> None:
    decider: Decider[str, int] = Decider(0, lambda count, event: count + 1, lambda command, state: copy.copy(decided))
    decision = await decider.execute(store, "s", "go")
    assert "".join(event.event_type for event in decision.events) == types
    assert decision.state == decision.version == len(types)


async def test_decide_may_be_async(store: EventStore) -> None:
    async def decide_later(command: str, count: int) -> NewEvent:
        await asyncio.sleep(0)
        return NewEvent("Counted", {"n": count})

    decider = Decider(0, lambda count, event: count + 1, decide_later)
    await decider.execute(store, "s", "go")
    assert (await decider.execute(store, "s", "go")).events[0].data == {"n": 1}


async def test_evolve_may_change_the_state_and_each_execution_has_its_own(store: EventStore) -> None:
    def add(state: dict[str, list[int]], event: Event) -> None:
        state["seen"].append(event.data["n"])

    shared: dict[str, list[int]] = {"seen": []}

    def decide(command: int, state: dict[str, list[int]]) -> tuple[str, Any]:
        return "Seen", {"n": command}

    def first_state() -> dict[str, list[int]]:
        return {"seen": []}

    for decider in (Decider(shared, add, decide), Decider(first_state, add, decide)):
        stream = f"s{id(decider)}"
        first = await decider.execute(store, stream, 1)
        second = await decider.execute(store, stream, 2)
        other = await decider.execute(store, "other" + stream, 3)
        assert (first.state, second.state, other.state) == ({"seen": [1]}, {"seen": [1, 2]}, {"seen": [3]})
    assert shared == {"seen": []}


async def test_metadata_goes_into_that_of_each_event_whose_own_stands_above_it(store: EventStore) -> None:
    own: list[EventLike] = [("A", {}), ("A", {}, {"own": 1}), NewEvent("A", {}, {"by": "me"}, ["t"]), NewEvent("A", {})]
    decider: Decider[None, int] = Decider(0, lambda state, event: state, lambda command, state: own)
    decision = await decider.execute(store, "s", None, metadata={"by": "you"})
    wanted = [{"by": "you"}, {"by": "you", "own": 1}, {"by": "me"}, {"by": "you"}]
    assert [event.metadata for event in decision.events] == wanted
    assert decision.events[2].tags == ("t",)
    over: Decider[None, int] = Decider(0, lambda state, event: state, lambda command, state: StreamAppend("s", own))
    decision = await over.execute_over(store, Query(), None, metadata={"by": "you"})
    assert [event.metadata for event in decision.events] == wanted


async def test_bad_events_are_refused_and_nothing_is_stored(store: EventStore) -> None:
    wrong: list[Any] = [[("A", {}), ("A", {"x": float("nan")})], {"A": {}}, "A", 5]
    for bad in wrong:
        decider: Decider[Any, int] = Decider(0, lambda state, event: state, lambda command, state: command)
        with pytest.raises((InvalidEvent, TypeError)):
            await decider.execute(store, "s", bad)
        with pytest.raises((InvalidEvent, TypeError)):
            await decider.execute_over(store, Query(), bad)
    with pytest.raises(TypeError, match="execute_over"):
        await decider.execute(store, "s", StreamAppend("s", [("A", {})]))
    assert await store.head() == 0


async def test_where_evolve_fails_on_what_was_stored_the_error_says_so(store: EventStore) -> None:
    def fail(state: int, event: Event) -> int:
        raise LookupError(event.event_type)

    decider: Decider[None, int] = Decider(0, fail, lambda command, state: ("A", {}))
    with pytest.raises(LookupError) as caught:
        await decider.execute(store, "s", None)
    assert "stored, the last as event 1" in caught.value.__notes__[0]
    assert await store.head() == 1


def test_what_makes_no_decider_is_refused() -> None:
    async def async_evolve(state: int, event: Event) -> int:
        return state

    made: list[Callable[[], object]] = [
        lambda: Decider(0, 5, decide),  # type: ignore[call-overload]
        lambda: Decider(0, evolve, None),  # type: ignore[call-overload]
        lambda: Decider(0, async_evolve, decide),  # type: ignore[arg-type]
        lambda: Decider(0, evolve, decide, snapshot_every=10),
        lambda: Decider(object(), lambda state, event: None, lambda command, state: None, name="n", snapshot_every=9),
    ]
    for make in made:
        with pytest.raises(TypeError):
            make()
    with pytest.raises(ValueError, match="snapshot_every"):
        Decider(0, evolve, decide, name="n", snapshot_every=0)
    assert repr(Decider(0, evolve, decide, name="account")) == "<Decider 'account' of decide>"


async def test_arguments_are_checked(store: EventStore) -> None:
    with pytest.raises(ValueError, match="attempts"):
        await ACCOUNT.execute(store, "ann", ("deposit", 1), attempts=0)
    with pytest.raises(InvalidEvent):
        await ACCOUNT.execute(store, "", ("deposit", 1))
    with pytest.raises(InvalidEvent):
        await ACCOUNT.execute(store, "ann", ("deposit", 1), idempotency_key="")
    with pytest.raises(TypeError, match="Query"):
        await ACCOUNT.execute_over(store, None, ("deposit", 1))  # type: ignore[arg-type]
    await store.aclose()
    with pytest.raises(StoreClosed):
        await ACCOUNT.execute(store, "ann", ("deposit", 1))


# Conflicts


class Interrupted:
    """Decides to add one to a counter, after others were faster, so many times."""

    def __init__(self, store: EventStore, times: int, interrupt: Callable[[], Any]) -> None:
        self.store = store
        self.left = times
        self.interrupt = interrupt
        self.states: list[int] = []
        self.evolved: list[int] = []
        self.decider: Decider[Any, int] = Decider(0, self.evolve, self.decide)

    def evolve(self, count: int, event: Event) -> int:
        self.evolved.append(event.event_id)
        return count + 1

    async def decide(self, command: Any, count: int) -> Any:
        self.states.append(count)
        if self.left:
            self.left -= 1
            await self.interrupt()
        return command


async def test_after_a_conflict_what_is_new_is_read_and_it_is_decided_again(store: EventStore) -> None:
    await store.append_batch("s", [("A", {})] * 3)
    slow = Interrupted(store, 2, lambda: store.append_batch("s", [("B", {})] * 2))
    decision = await slow.decider.execute(store, "s", ("Mine", {}))
    assert slow.states == [3, 5, 7]
    assert slow.evolved == list(range(1, 9))  # each once
    assert (decision.state, decision.version, ids(list(decision.events))) == (8, 8, [8])


async def test_what_others_append_elsewhere_is_no_conflict(store: EventStore) -> None:
    slow = Interrupted(store, 5, lambda: store.append("other", "B", {}))
    await slow.decider.execute(store, "s", ("Mine", {}))
    assert slow.states == [0]


async def test_after_the_last_attempt_the_conflict_is_raised(store: EventStore) -> None:
    slow = Interrupted(store, 99, lambda: store.append("s", "B", {}))
    with pytest.raises(ConcurrencyConflict) as caught:
        await slow.decider.execute(store, "s", ("Mine", {}), attempts=3)
    assert (caught.value.expected, caught.value.actual) == (2, 3)
    assert "decided 3 times" in caught.value.__notes__[0]
    assert slow.states == [0, 1, 2]
    assert {event.event_type for event in await store.read_all().to_list()} == {"B"}


async def test_a_refusal_after_a_conflict_goes_out(store: EventStore) -> None:
    async def withdraw(command: int, balance: int) -> Any:
        if balance >= 10:
            await ACCOUNT.execute(store, "ann", ("withdraw", 5))
        return decide(("withdraw", command), balance)

    await ACCOUNT.execute(store, "ann", ("deposit", 10))
    with pytest.raises(Overdrawn, match="10 of 5"):
        await Decider(0, evolve, withdraw).execute(store, "ann", 10)
    assert await store.head() == 2


async def test_many_at_once_on_one_stream_never_overdraw(store: EventStore) -> None:
    await ACCOUNT.execute(store, "ann", ("deposit", 12))
    tasks = [outcome(ACCOUNT.execute(store, "ann", ("withdraw", 1), attempts=100)) for _ in range(20)]
    came = await asyncio.gather(*tasks)
    assert sum(isinstance(each, Decision) for each in came) == 12
    assert sum(isinstance(each, Overdrawn) for each in came) == 8
    assert (await ACCOUNT.execute(store, "ann", ("close", None))).state == 0


# Over a query


async def test_over_a_query_it_is_decided_on_what_matches_wherever_it_stands(store: EventStore) -> None:
    about = Query.where(tags="x")
    await store.append("a", "A", {}, tags=["x"])
    await store.append("b", "A", {}, tags=["x", "y"])
    await store.append("b", "A", {}, tags=["y"])
    counter: Decider[Any, int] = Decider(0, lambda count, event: count + 1, lambda command, count: command)
    new = [NewEvent("N", {}, tags=["x"]), NewEvent("N", {})]
    decision = await counter.execute_over(store, about, [StreamAppend("a", new), StreamAppend("c", new)])
    assert (decision.state, decision.version, decision.position) == (4, 0, 7)
    assert [(event.stream_id, event.version) for event in decision.events] == [("a", 2), ("a", 3), ("c", 1), ("c", 2)]
    nothing = await counter.execute_over(store, about, None)
    assert nothing == Decision((), 4, 0, 7)
    assert (await counter.execute_over(store, about, StreamAppend("a", []))) == nothing
    assert await store.head() == 7


async def test_over_a_query_only_what_matches_is_a_conflict_and_only_what_is_new_is_read(store: EventStore) -> None:
    about = Query.where(types="A") | Query.where(tags="x")
    await store.append_batch("s", [("A", {}), ("B", {})])

    async def interrupt() -> None:
        await store.append("s", "B", {})
        if len(slow.states) < 3:
            await store.append("t", "B", {}, tags=["x"])

    slow = Interrupted(store, 5, interrupt)
    decision = await slow.decider.execute_over(store, about, [StreamAppend("mine", [("A", {})])])
    assert slow.states == [1, 2, 3]
    assert slow.evolved == [1, 4, 6, 8]
    assert decision.state == 4


async def test_over_a_query_after_the_last_attempt_the_conflict_is_raised(store: EventStore) -> None:
    slow = Interrupted(store, 99, lambda: store.append("s", "B", {}))
    with pytest.raises(AppendConditionFailed) as caught:
        await slow.decider.execute_over(store, Query(), StreamAppend("s", [("A", {})]), attempts=2)
    assert caught.value.event_id == 2
    assert len(slow.states) == 2


async def test_over_a_query_a_version_that_decide_expected_is_its_own_matter(store: EventStore) -> None:
    await store.append("s", "B", {})
    slow = Interrupted(store, 0, lambda: None)
    with pytest.raises(ConcurrencyConflict):
        await slow.decider.execute_over(store, Query(), StreamAppend("s", [("A", {})], expected_version=0))
    assert len(slow.states) == 1


CAPACITY, COURSES_MAX = 7, 2


class Refused(Exception):
    pass


def subscribing(course: str, student: str) -> tuple[Decider[None, dict[str, int]], Query]:
    """The decision on one subscription, and what it is made on: the course's events and the student's."""

    def count(seen: dict[str, int], event: Event) -> None:
        for tag in event.tags:
            seen[tag] = seen.get(tag, 0) + 1

    def subscribe(command: None, seen: dict[str, int]) -> StreamAppend:
        if seen.get(course, 0) >= CAPACITY or seen.get(student, 0) >= COURSES_MAX:
            raise Refused
        return StreamAppend(student, [NewEvent("Subscribed", {}, tags=[course, student])])

    about = Query.where(types="Subscribed", tags=course) | Query.where(types="Subscribed", tags=student)
    return Decider(dict, count, subscribe), about


async def test_fifty_at_once_over_one_query_hold_the_capacity(store: EventStore) -> None:
    async def subscribe(number: int) -> object:
        decider, about = subscribing("course", f"student-{number}")
        return await outcome(decider.execute_over(store, about, None, attempts=100))

    came = await asyncio.gather(*(subscribe(number) for number in range(50)))
    assert sum(isinstance(each, Decision) for each in came) == CAPACITY
    assert sum(isinstance(each, Refused) for each in came) == 50 - CAPACITY
    assert await store.head() == CAPACITY


async def test_fifty_at_once_over_two_tags_hold_both_bounds(store: EventStore) -> None:
    async def subscribe(number: int) -> object:
        decider, about = subscribing(f"course-{number % 5}", f"student-{number // 5}")
        return await outcome(decider.execute_over(store, about, None, attempts=100))

    came = await asyncio.gather(*(subscribe(number) for number in range(50)))
    assert all(isinstance(each, Decision | Refused) for each in came)
    seen: dict[str, int] = {}
    for event in await store.read_all().to_list():
        for tag in event.tags:
            seen[tag] = seen.get(tag, 0) + 1
    assert max(count for tag, count in seen.items() if tag.startswith("course")) <= CAPACITY
    # Every student wanted five courses of which none can be full before two of them are taken.
    assert [count for tag, count in seen.items() if tag.startswith("student")] == [COURSES_MAX] * 10


# Idempotency keys


async def test_a_command_sent_twice_is_decided_once_and_has_the_same_answer(store: EventStore) -> None:
    await ACCOUNT.execute(store, "ann", ("deposit", 10))
    first = await ACCOUNT.execute(store, "ann", ("withdraw", 10), idempotency_key="k")
    await ACCOUNT.execute(store, "ann", ("deposit", 3))
    assert await ACCOUNT.execute(store, "ann", ("withdraw", 10), idempotency_key="k") == first
    assert await store.head() == 3
    # Of another stream, it is another key.
    with pytest.raises(Overdrawn):
        await ACCOUNT.execute(store, "bob", ("withdraw", 10), idempotency_key="k")


async def test_over_a_query_too(store: EventStore) -> None:
    decider, about = subscribing("course", "student")
    first = await decider.execute_over(store, about, None, idempotency_key=("student", "k"))
    await store.append("x", "Other", {})
    second = await decider.execute_over(store, about, None, idempotency_key=("student", "l"))
    for _ in range(2):
        assert await decider.execute_over(store, about, None, idempotency_key=("student", "k")) == first
    assert await decider.execute_over(store, about, None, idempotency_key=("student", "l")) == second
    with pytest.raises(Refused):
        await decider.execute_over(store, about, None, idempotency_key=("student", "m"))
    assert await store.head() == 3


async def test_over_a_query_the_key_s_stream_must_be_the_first(store: EventStore) -> None:
    decider, about = subscribing("course", "student")
    with pytest.raises(ValueError, match="'elsewhere'"):
        await decider.execute_over(store, about, None, idempotency_key=("elsewhere", "k"))
    assert await store.head() == 0


@pytest.mark.parametrize("differs", [False, True])
async def test_a_command_sent_twice_at_once_is_stored_once(store: EventStore, differs: bool) -> None:
    numbers = iter(range(100))

    def count(command: None, state: int) -> Any:
        return "N", {"n": next(numbers) if differs else 0}

    decider: Decider[None, int] = Decider(0, lambda count, event: count + 1, count)
    came = await asyncio.gather(*(decider.execute(store, "s", None, idempotency_key="k") for _ in range(5)))
    assert all(each == came[0] for each in came)
    assert (await store.head(), came[0].state, came[0].version) == (1, 1, 1)


@pytest.mark.parametrize("over", [False, True])
async def test_a_twin_stored_between_reading_and_appending_is_the_answer(store: EventStore, over: bool) -> None:
    about = Query.where(types=["A", "B"])
    part = StreamAppend("s", [("A", {})])

    async def interrupt() -> None:
        await store.append("s", "B", {})
        await store.append("s", "A", {}, idempotency_key="k")

    slow = Interrupted(store, 1, interrupt)
    if over:
        decision = await slow.decider.execute_over(store, about, part, idempotency_key=("s", "k"))
    else:
        decision = await slow.decider.execute(store, "s", ("A", {}), idempotency_key="k")
    assert (decision.state, decision.position, ids(list(decision.events))) == (2, 2, [2])
    assert await store.head() == 2


async def test_an_idempotency_conflict_that_is_none_of_ours_goes_out(store: EventStore) -> None:
    class Forgetful(Decider[Any, int]):
        async def decide(self, command: Any, state: int) -> list[Any]:
            raise IdempotencyConflict("elsewhere", "k", 1)

    with pytest.raises(IdempotencyConflict):
        await Forgetful(0, evolve, decide).execute(store, "s", None, idempotency_key="k")


# Reads that feed a condition return the head that they saw


async def test_a_reader_s_head_is_that_of_its_start_also_of_empty_reads_and_limits(store: EventStore) -> None:
    async def heads() -> set[int]:
        readers = [
            store.read_all(),
            store.read_all(limit=0),
            store.read_all(limit=1),
            store.read_all(after=100),
            store.read_all(up_to=1),
            store.read_all(up_to=0),
            store.read_all(backwards=True, limit=1),
            store.read_all(query=Query.where(tags="nobody has it")),
            store.read_all(query=Query.where(types="E"), limit=1),
            store.read_stream("nobody"),
            store.read_stream("s", from_version=100),
            store.read_stream("s", limit=0),
        ]
        for reader in readers:
            await reader.to_list()
            async for _ in reader.batches():
                raise AssertionError("it was at its end")
        return {reader.head for reader in readers}

    assert await heads() == {0}
    await store.append_batch("s", [("E", {})] * 3)
    assert await heads() == {3}
    reader = store.read_all(limit=2)
    await anext(reader)
    await store.append("s", "E", {})
    await anext(reader)
    assert reader.head == 3
    assert await heads() == {4}


# Beside a plain model

amounts = st.integers(1, 4)
commands = st.one_of(
    st.tuples(st.just("deposit"), amounts), st.tuples(st.just("withdraw"), amounts), st.just(("close", None))
)
steps = st.lists(
    st.tuples(st.sampled_from(["ann", "bob"]), commands, st.one_of(st.none(), st.sampled_from("kl"))), max_size=12
)


@given(steps=steps, every=st.sampled_from([None, 1, 3]))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_decisions_come_to_what_a_plain_model_does(open_store: OpenStore, steps: Any, every: int | None) -> None:
    store = await open_store()
    decider = Decider(0, evolve, decide, name="account", snapshot_every=every)
    balances: dict[str, list[int]] = {"ann": [0], "bob": [0]}
    answers: dict[tuple[str, str], tuple[int, int, int]] = {}
    for stream_id, command, key in steps:
        history = balances[stream_id]
        wanted: Any = answers.get((stream_id, key)) if key else None
        if wanted is None:
            kind, amount = command
            change = -history[-1] if kind == "close" else amount if kind == "deposit" else -amount
            if history[-1] + change < 0:
                wanted = Overdrawn
            else:
                if change or kind != "close":
                    history.append(history[-1] + change)
                    if key:
                        answers[stream_id, key] = 1, history[-1], len(history) - 1
                wanted = int(bool(change)), history[-1], len(history) - 1
        came = await outcome(decider.execute(store, stream_id, command, idempotency_key=key))
        if isinstance(came, Decision):
            assert (len(came.events), came.state, came.version) == wanted
        else:
            assert type(came) is wanted
    await decider.flush(store)
    await store.aclose()


async def test_the_default_number_of_attempts_is_enough_for_ten_at_once(store: EventStore) -> None:
    assert ATTEMPTS == 10  # each round one of them at least is stored
    decisions = await asyncio.gather(*(ACCOUNT.execute(store, "s", ("deposit", 1)) for _ in range(10)))
    assert sorted(decision.version for decision in decisions) == list(range(1, 11))
