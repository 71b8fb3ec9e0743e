"""Append conditions: an append fails if an event matches the query above ``after``."""

from __future__ import annotations

import asyncio
from copy import deepcopy
from itertools import permutations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiostore import (
    AppendCondition,
    AppendConditionFailed,
    ConcurrencyConflict,
    Event,
    EventStore,
    Limits,
    NewEvent,
    Query,
    QueryItem,
    StreamAppend,
)
from aiostore.testing.conformance import outcome, reopen
from aiostore.testing.conformance.fixtures import OpenStore
from aiostore.testing.conformance.model import Model, Wish, plain, wishes

FREE_SEAT = AppendCondition(Query.where(types="Booked", tags="seat:1"))


async def fill(store: EventStore) -> None:
    """Six events: 1 to 6, of types A and B in turn, tagged with their number and with odd or even."""
    for n in range(1, 7):
        await store.append(f"s-{n % 3}", "AB"[n % 2], {}, tags=[f"n:{n}", "odd" if n % 2 else "even"])


@pytest.mark.parametrize(
    ("query", "after", "first"),
    [
        (Query(), None, 1),
        (Query(), 0, 1),
        (Query(), 3, 4),
        (Query(), 5, 6),
        (Query(), 6, None),
        (Query(), 100, None),
        (Query.where(types="A"), None, 2),
        (Query.where(types=["A", "B"]), None, 1),
        (Query.where(types="A"), 2, 4),
        (Query.where(types="A"), 6, None),
        (Query.where(types="C"), None, None),
        (Query.where(tags=["n:4", "even"]), None, 4),
        (Query.where(tags=["n:4", "odd"]), None, None),
        (Query.where(tags="n:4"), 4, None),
        (Query.where(stream_prefix="s-0"), None, 3),
        (Query.where(stream_prefix="s-0"), 3, 6),
        (Query.where(stream_prefix="t"), None, None),
        (Query.where(types="A", tags="even", stream_prefix="s-1"), None, 4),
        (Query.where(types="A") | Query.where(tags="n:1"), None, 1),
        (Query(QueryItem(tags=("n:5",)), QueryItem(tags=("n:3",))), None, 3),
        (Query(QueryItem(tags=("n:5",)), QueryItem(tags=("n:3",))), 3, 5),
        (Query(QueryItem(tags=("n:5",)), QueryItem(tags=("n:3",))), 5, None),
    ],
)
@pytest.mark.parametrize("ring_bytes_max", [1, 4 * 1024 * 1024])
async def test_the_first_match_above_after_fails_the_append(
    open_store: OpenStore, query: Query, after: int | None, first: int | None, ring_bytes_max: int
) -> None:
    store = await open_store(limits=Limits(ring_bytes_max=ring_bytes_max))
    await fill(store)
    result = await outcome(store.append("s", "New", {}, condition=AppendCondition(query, after)))
    if first is None:
        assert isinstance(result, Event)
        assert result.event_id == 7
    else:
        assert isinstance(result, AppendConditionFailed)
        assert result.event_id == first
        assert await store.head() == 6


async def test_every_kind_of_append_takes_a_condition(store: EventStore) -> None:
    condition = AppendCondition(Query.where(types="T"))
    await store.append("s", "T", {}, condition=condition)
    for call in (
        store.append("s", "T", {}, condition=condition),
        store.append_batch("s", [("T", {})], condition=condition),
        store.append_batch("s", [], condition=condition),
        store.append_streams([StreamAppend("s", [("T", {})])], condition=condition),
        store.append_streams([], condition=condition),
    ):
        with pytest.raises(AppendConditionFailed) as caught:
            await call
        assert caught.value.event_id == 1
    assert await store.head() == 1


async def test_an_append_s_own_events_do_not_count(store: EventStore) -> None:
    events = await store.append_batch("s", [("T", {}), ("T", {})], condition=AppendCondition(Query.where(types="T")))
    assert len(events) == 2
    assert await store.append("t", "T", {}, condition=AppendCondition(Query.where(types="T"), after=2))


async def test_of_200_bookings_of_a_seat_one_succeeds(store: EventStore) -> None:
    results = await asyncio.gather(
        *(outcome(store.append(f"b-{n}", "Booked", {}, tags=["seat:1"], condition=FREE_SEAT)) for n in range(200))
    )
    failures = [result for result in results if isinstance(result, AppendConditionFailed)]
    assert len(failures) == 199
    assert {failure.event_id for failure in failures} == {1}
    assert await store.head() == 1


async def test_in_a_group_a_condition_sees_the_earlier_appends(store: EventStore) -> None:
    async def book(number: int) -> object:
        tag = f"seat:{number % 5}"
        condition = AppendCondition(Query.where(tags=tag))
        new = NewEvent("Booked", {"n": number}, tags=[tag])
        return await outcome(store.append_batch("bookings", [("Other", {}), new], condition=condition))

    results = await asyncio.gather(*(book(n) for n in range(50)))
    booked = [event for event in await store.read_all().to_list() if event.event_type == "Booked"]
    assert sorted(event.tags[0] for event in booked) == [f"seat:{seat}" for seat in range(5)]
    assert sum(isinstance(result, AppendConditionFailed) for result in results) == 45


async def test_in_a_group_the_match_is_the_first_above_after(store: EventStore) -> None:
    await store.append("s", "T", {})
    condition = AppendCondition(Query.where(types="T"), after=1)
    results = await asyncio.gather(*(outcome(store.append("s", "T", {}, condition=condition)) for _ in range(3)))
    won = [result for result in results if isinstance(result, Event)]
    assert [event.event_id for event in won] == [2]
    assert [result.event_id for result in results if isinstance(result, AppendConditionFailed)] == [2, 2]


async def test_in_a_group_after_may_point_at_events_of_that_group(store: EventStore) -> None:
    await store.append("s", "T", {})  # so that all are judged without asking the engine first, in order
    query = Query.where(types="T")
    results = await asyncio.gather(
        *(outcome(store.append("s", "T", {}, condition=AppendCondition(query, after=n))) for n in range(1, 6))
    )
    assert [result.event_id for result in results if isinstance(result, Event)] == [2, 3, 4, 5, 6]


async def test_a_failed_append_in_a_group_does_not_count_as_a_match(store: EventStore) -> None:
    condition = AppendCondition(Query.where(types="T"))
    results = await asyncio.gather(
        outcome(store.append("s", "T", {}, expected_version=9)),
        outcome(store.append("s", "T", {}, condition=condition)),
    )
    assert [type(result) for result in results] == [ConcurrencyConflict, Event]


async def test_the_expected_version_is_judged_before_the_condition(store: EventStore) -> None:
    await store.append("s", "T", {})
    with pytest.raises(ConcurrencyConflict):
        await store.append("s", "T", {}, expected_version=0, condition=AppendCondition(Query()))
    with pytest.raises(AppendConditionFailed):
        await store.append("s", "T", {}, expected_version=1, condition=AppendCondition(Query()))


async def test_a_condition_covers_streams_that_the_append_does_not_touch(store: EventStore) -> None:
    await store.append("users-1", "Registered", {}, tags=["name:ann"])
    condition = AppendCondition(Query.where(types="Registered", tags="name:ann"))
    with pytest.raises(AppendConditionFailed):
        await store.append("users-2", "Registered", {}, tags=["name:ann"], condition=condition)


async def test_read_decide_append_loses_no_update(store: EventStore) -> None:
    """A counter kept by a query alone: each reads, decides, appends on condition, and tries again when it was late."""
    query = Query.where(tags="counter")

    async def count(stream_id: str) -> None:
        while True:
            reader = store.read_all(query=query, backwards=True, limit=1)
            last = await reader.to_list()
            value = last[0].data["value"] if last else 0
            condition = AppendCondition(query, after=reader.head)
            result = await outcome(
                store.append(stream_id, "Counted", {"value": value + 1}, tags=["counter"], condition=condition)
            )
            if isinstance(result, Event):
                return
            assert isinstance(result, AppendConditionFailed)
            assert result.event_id > reader.head

    await asyncio.gather(*(count(f"s-{n}") for n in range(30)))
    values = [event.data["value"] for event in await store.read_all(query=query).to_list()]
    assert values == list(range(1, 31))


async def test_conditions_hold_in_a_store_opened_anew(store: EventStore) -> None:
    await store.append("s", "Booked", {}, tags=["seat:1"])
    async with await reopen(store) as again:
        with pytest.raises(AppendConditionFailed) as caught:
            await again.append("s", "Booked", {}, tags=["seat:1"], condition=FREE_SEAT)
        assert caught.value.event_id == 1
        await again.append("s", "Booked", {}, condition=AppendCondition(FREE_SEAT.query, after=1))


# Against a model

REPEATABLE = settings(
    derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@settings(REPEATABLE, max_examples=40)
@given(asked=st.lists(wishes, max_size=25), ring_bytes_max=st.sampled_from([1, 600, 4_000_000]))
async def test_any_appends_come_to_what_the_model_says(
    open_store: OpenStore, asked: list[Wish], ring_bytes_max: int
) -> None:
    async with await open_store(limits=Limits(ring_bytes_max=ring_bytes_max)) as store:
        model = Model()
        for wish in asked:
            assert plain(await outcome(wish.send(store))) == model.append(wish)
        assert plain(await store.read_all().to_list()) == model.rows


@settings(REPEATABLE, max_examples=25)
@given(asked=st.lists(wishes, max_size=12), asked_later=st.lists(wishes, max_size=12))
async def test_any_appends_come_to_the_same_in_a_store_opened_anew(
    open_store: OpenStore, asked: list[Wish], asked_later: list[Wish]
) -> None:
    async with await open_store() as store:
        model = Model()
        for wish in asked:
            assert plain(await outcome(wish.send(store))) == model.append(wish)
        async with await reopen(store) as again:
            for wish in asked_later:
                assert plain(await outcome(wish.send(again))) == model.append(wish)
            assert plain(await again.read_all().to_list()) == model.rows


@settings(REPEATABLE, max_examples=40)
@given(
    groups=st.lists(st.lists(wishes, max_size=4), max_size=5),
    ring_bytes_max=st.sampled_from([1, 600, 4_000_000]),
)
async def test_concurrent_appends_come_to_what_they_would_one_after_another_in_some_order(
    open_store: OpenStore, groups: list[list[Wish]], ring_bytes_max: int
) -> None:
    async with await open_store(limits=Limits(ring_bytes_max=ring_bytes_max)) as store:
        models = [Model()]  # one for each order that is possible so far
        for group in groups:
            results = [plain(result) for result in await asyncio.gather(*(outcome(wish.send(store)) for wish in group))]
            models = [after for before in models for after in orders(before, group, results)]
            assert models
            models = models[:1] if len({tuple(model.rows) for model in models}) == 1 else models
        assert plain(await store.read_all().to_list()) in [model.rows for model in models]


def orders(before: Model, group: list[Wish], results: list[object]) -> list[Model]:
    """The models after each order of the group that gives these results."""
    found = []
    for order in permutations(range(len(group))):
        model = deepcopy(before)
        if all(model.append(group[place]) == results[place] for place in order):
            found.append(model)
    return found
