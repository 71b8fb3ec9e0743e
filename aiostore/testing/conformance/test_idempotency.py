"""Idempotency keys: an append whose key is stored returns the events stored then and writes nothing, for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest

from aiostore import (
    NO_STREAM,
    AppendCondition,
    ConcurrencyConflict,
    Event,
    EventStore,
    IdempotencyConflict,
    Limits,
    NewEvent,
    Query,
    StreamAppend,
)
from aiostore.testing.conformance import outcome, reopen
from aiostore.testing.conformance.fixtures import OpenStore


@pytest.fixture(params=[1, 4 * 1024 * 1024])
async def ringed(request: pytest.FixtureRequest, open_store: OpenStore) -> EventStore:
    """An empty store that remembers hardly any, or many, of its latest events in memory."""
    return await open_store(limits=Limits(ring_bytes_max=request.param))


async def test_a_duplicate_returns_the_events_stored_first_and_writes_nothing(ringed: EventStore) -> None:
    first = await ringed.append("s", "T", {"n": 1}, metadata={"m": 1}, tags=["t"], idempotency_key="k")
    await ringed.append_batch("s", [("T", {})] * 5)
    again = await ringed.append("s", "T", {"n": 1}, metadata={"m": 1}, tags=["t"], idempotency_key="k")
    assert again == first
    assert await ringed.head() == 6


async def test_a_duplicate_of_a_batch_returns_all_of_it(ringed: EventStore) -> None:
    batch = [NewEvent("T", {"n": n}, tags=["t"]) for n in range(5)]
    await ringed.append("s", "T", {})
    first = await ringed.append_batch("s", batch, idempotency_key="k")
    await ringed.append("s", "T", {})
    assert await ringed.append_batch("s", batch, idempotency_key="k") == first
    assert await ringed.head() == 7


async def test_a_duplicate_of_an_append_to_several_streams_returns_all_of_it(ringed: EventStore) -> None:
    parts = [StreamAppend("a", [("T", {"n": 1})] * 2), StreamAppend("b", [("T", {"n": 2})])]
    first = await ringed.append_streams(parts, idempotency_key="k")
    await ringed.append("s", "T", {})
    assert await ringed.append_streams(parts, idempotency_key="k") == first
    assert await ringed.head() == 4


async def test_a_duplicate_is_recognised_whatever_the_version_and_the_condition(ringed: EventStore) -> None:
    async def register() -> Event:
        return await ringed.append(
            "s", "T", {}, expected_version=NO_STREAM, condition=AppendCondition(Query()), idempotency_key="k"
        )

    first = await register()
    await ringed.append("s", "T", {})
    assert await register() == first


async def test_the_key_works_across_the_kinds_of_append(ringed: EventStore) -> None:
    first = await ringed.append("s", "T", {"n": 1}, idempotency_key="k")
    assert await ringed.append_batch("s", [("T", {"n": 1})], idempotency_key="k") == [first]
    assert await ringed.append_streams([StreamAppend("s", [("T", {"n": 1})])], idempotency_key="k") == [first]
    assert await ringed.head() == 1


OTHER: list[Callable[[EventStore], Awaitable[Any]]] = [
    lambda store: store.append("s", "Other", {"n": 1}, tags=["t"], idempotency_key="k"),
    lambda store: store.append("s", "T", {"n": 2}, tags=["t"], idempotency_key="k"),
    lambda store: store.append("s", "T", {"n": 1, "m": None}, tags=["t"], idempotency_key="k"),
    lambda store: store.append("s", "T", {"n": True}, tags=["t"], idempotency_key="k"),
    lambda store: store.append("s", "T", {"n": "1"}, tags=["t"], idempotency_key="k"),
    lambda store: store.append("s", "T", {"n": 1}, metadata={"m": 1}, tags=["t"], idempotency_key="k"),
    lambda store: store.append("s", "T", {"n": 1}, idempotency_key="k"),
    lambda store: store.append("s", "T", {"n": 1}, tags=["t", "u"], idempotency_key="k"),
    lambda store: store.append_batch("s", [], idempotency_key="k"),
    lambda store: store.append_batch("s", [NewEvent("T", {"n": 1}, tags=["t"])] * 2, idempotency_key="k"),
    lambda store: store.append_streams([StreamAppend("s", [])], idempotency_key="k"),
    lambda store: store.append_streams(
        [StreamAppend("s", [NewEvent("T", {"n": 1}, tags=["t"])]), StreamAppend("u", [("T", {})])],
        idempotency_key="k",
    ),
]


@pytest.mark.parametrize("other", OTHER)
async def test_the_same_key_with_other_events_is_a_conflict(
    ringed: EventStore, other: Callable[[EventStore], Awaitable[Any]]
) -> None:
    await ringed.append("first", "T", {})
    await ringed.append("s", "T", {"n": 1}, tags=["t"], idempotency_key="k")
    await ringed.append("last", "T", {})
    with pytest.raises(IdempotencyConflict) as caught:
        await other(ringed)
    assert (caught.value.stream_id, caught.value.idempotency_key, caught.value.event_id) == ("s", "k", 2)
    assert await ringed.head() == 3


async def test_the_order_of_keys_and_the_python_type_of_a_value_do_not_count(ringed: EventStore) -> None:
    one = UUID(int=1)
    first = await ringed.append("s", "T", {"a": [1, 2], "b": one}, idempotency_key="k")
    await ringed.append("s", "T", {})
    assert await ringed.append("s", "T", {"b": str(one), "a": (1, 2)}, idempotency_key="k") == first


async def test_empty_metadata_is_the_same_as_none(ringed: EventStore) -> None:
    first = await ringed.append("s", "T", {}, idempotency_key="k")
    assert await ringed.append("s", "T", {}, metadata={}, idempotency_key="k") == first


async def test_the_scope_of_a_key_is_the_stream(ringed: EventStore) -> None:
    a = await ringed.append("a", "T", {}, idempotency_key="k")
    b = await ringed.append("b", "T", {"other": 1}, idempotency_key="k")
    assert [a.event_id, b.event_id] == [1, 2]
    assert await ringed.append("a", "T", {}, idempotency_key="k") == a
    assert await ringed.append("b", "T", {"other": 1}, idempotency_key="k") == b


async def test_the_scope_of_a_key_is_the_first_of_several_streams(ringed: EventStore) -> None:
    await ringed.append_streams([StreamAppend("a", [("T", {})]), StreamAppend("b", [("T", {})])], idempotency_key="k")
    assert (await ringed.append("b", "T", {}, idempotency_key="k")).event_id == 3
    with pytest.raises(IdempotencyConflict):
        await ringed.append("a", "T", {}, idempotency_key="k")


async def test_the_scope_is_the_first_stream_also_where_that_gets_no_events(ringed: EventStore) -> None:
    parts = [StreamAppend("a", []), StreamAppend("b", [("T", {})])]
    first = await ringed.append_streams(parts, idempotency_key="k")
    await ringed.append("s", "T", {})
    assert await ringed.append_streams(parts, idempotency_key="k") == first
    assert await ringed.head() == 2


async def test_an_append_that_failed_leaves_no_key(ringed: EventStore) -> None:
    with pytest.raises(ConcurrencyConflict):
        await ringed.append("s", "T", {"n": 1}, expected_version=5, idempotency_key="k")
    event = await ringed.append("s", "T", {"n": 2}, idempotency_key="k")
    assert event.data == {"n": 2}


async def test_an_append_of_nothing_leaves_no_key(ringed: EventStore) -> None:
    assert await ringed.append_batch("s", [], idempotency_key="k") == []
    assert await ringed.append_batch("s", [], idempotency_key="k") == []
    assert (await ringed.append("s", "T", {}, idempotency_key="k")).event_id == 1


async def test_duplicates_in_one_group_all_get_the_one_stored_event(store: EventStore) -> None:
    events = await asyncio.gather(*(store.append("s", "T", {"n": 1}, idempotency_key="k") for _ in range(50)))
    assert {event.event_id for event in events} == {1}
    assert await store.read_all().to_list() == [events[0]]


async def test_in_one_group_the_first_of_different_appends_wins_the_key(store: EventStore) -> None:
    results = await asyncio.gather(
        *(outcome(store.append("s", "T", {"n": n}, idempotency_key="k")) for n in (1, 2, 1, 2))
    )
    won = [result for result in results if isinstance(result, Event)]
    assert len(won) == 2
    assert won[0] == won[1]
    conflicts = [result for result in results if isinstance(result, IdempotencyConflict)]
    assert [conflict.event_id for conflict in conflicts] == [1, 1]
    assert await store.head() == 1


async def test_many_keys_each_stored_once(ringed: EventStore) -> None:
    async def deliver(number: int) -> Event:
        return await ringed.append(f"s-{number % 3}", "T", {"n": number}, idempotency_key=f"k-{number}")

    first = await asyncio.gather(*(deliver(n) for n in (*range(40), *range(40))))
    assert first[:40] == first[40:]
    assert await asyncio.gather(*(deliver(n) for n in range(40))) == first[:40]
    assert await ringed.head() == 40


async def test_a_key_outlives_the_store_object(store: EventStore) -> None:
    parts = [StreamAppend("a", [("T", {"n": 1})]), StreamAppend("b", [("T", {"n": 2}, {"m": 1})])]
    first = await store.append_streams(parts, idempotency_key="k")
    await store.append("s", "T", {})
    async with await reopen(store) as again:
        assert await again.append_streams(parts, idempotency_key="k") == first
        with pytest.raises(IdempotencyConflict) as caught:
            await again.append("a", "T", {"n": 1}, idempotency_key="k")
        assert (caught.value.stream_id, caught.value.event_id) == ("a", 1)
        assert (await again.append("b", "T", {}, idempotency_key="k")).event_id == 4


async def test_a_cancelled_append_is_retried_with_its_key(store: EventStore) -> None:
    for turns in range(10):
        task = asyncio.ensure_future(store.append("s", "T", {"n": turns}, idempotency_key=f"k-{turns}"))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        event = await store.append("s", "T", {"n": turns}, idempotency_key=f"k-{turns}")
        assert event.version == turns + 1
    assert [event.data["n"] for event in await store.read_all().to_list()] == list(range(10))
