"""Isolation: nothing that a caller passed in or got back changes what is stored or what anyone else reads."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aiostore import Event, EventStore, NewEvent, StreamAppend
from aiostore.testing.conformance import reopen

DATA: dict[str, Any] = {"n": 1, "list": [1, {"deep": [2]}], "dict": {"a": {"b": "c"}}}
METADATA: dict[str, Any] = {"user": {"name": "ann", "roles": ["admin"]}}


def ruin(value: Any) -> None:
    """Change every dict and list inside."""
    for child in list(value.values() if isinstance(value, dict) else value):
        if isinstance(child, dict | list):
            ruin(child)
    if isinstance(value, dict):
        value["ruined"] = True
        value.pop("n", None)
    else:
        value.append("ruined")


def ruin_event(event: Event) -> None:
    ruin(event.data)
    ruin(event.metadata)


async def assert_intact(store: EventStore, count: int = 1) -> None:
    """All events of the store have the data and metadata above."""
    read = await store.read_all().to_list()
    assert [(event.data, event.metadata) for event in read] == [(DATA, METADATA)] * count


def fresh() -> NewEvent:
    return NewEvent("T", copy.deepcopy(DATA), copy.deepcopy(METADATA), ["a", "b"])


# What is passed in


async def test_changing_inputs_after_an_append_changes_nothing(store: EventStore) -> None:
    new = fresh()
    event = await store.append("s", "T", new.data, metadata=new.metadata)
    ruin(new.data)
    ruin(new.metadata)
    assert (event.data, event.metadata) == (DATA, METADATA)
    await assert_intact(store)


async def test_changing_inputs_after_an_append_of_many_changes_nothing(store: EventStore) -> None:
    news = [fresh() for _ in range(3)]
    parts = [StreamAppend("a", [fresh()]), StreamAppend("b", [fresh()])]
    events = await store.append_batch("s", news) + await store.append_streams(parts)
    for new in [*news, *(new for part in parts for new in part.events)]:
        assert isinstance(new, NewEvent)
        ruin(new.data)
        ruin(new.metadata)
    news.clear()
    parts.clear()
    assert [(event.data, event.metadata) for event in events] == [(DATA, METADATA)] * 5
    await assert_intact(store, 5)


async def test_changing_inputs_while_an_append_is_pending_changes_nothing(store: EventStore) -> None:
    for turns in range(1, 8):
        new, tags = fresh(), ["a", "b"]
        task = asyncio.ensure_future(store.append("s", "T", new.data, metadata=new.metadata, tags=tags))
        for _ in range(turns):
            await asyncio.sleep(0)
        ruin(new.data)
        ruin(new.metadata)
        tags.clear()
        assert (await task).tags == ("a", "b")
    await assert_intact(store, 7)


async def test_changing_a_batch_while_its_append_is_pending_changes_nothing(store: EventStore) -> None:
    for turns in range(1, 8):
        news = [fresh() for _ in range(4)]
        task = asyncio.ensure_future(store.append_batch("s", news))
        for _ in range(turns):
            await asyncio.sleep(0)
        for new in news:
            ruin(new.data)
        news.clear()
        assert len(await task) == 4
    await assert_intact(store, 28)


async def test_changing_a_long_batch_while_its_append_is_pending_changes_nothing(store: EventStore) -> None:
    for turns in range(1, 5):
        new = fresh()
        news = [new] * 1800
        task = asyncio.ensure_future(store.append_batch(f"s{turns}", news))
        for _ in range(turns):
            await asyncio.sleep(0)
        ruin(new.data)
        news.clear()
        assert len(await task) == 1800
    await assert_intact(store, 4 * 1800)


async def test_changing_the_list_of_streams_while_its_append_is_pending_changes_nothing(store: EventStore) -> None:
    for turns in range(1, 5):
        parts = [StreamAppend("a", [fresh()] * 700), StreamAppend("b", [fresh()] * 700), StreamAppend("c", [fresh()])]
        task = asyncio.ensure_future(store.append_streams(parts))
        for _ in range(turns):
            await asyncio.sleep(0)
        parts.clear()
        assert len(await task) == 1401


async def test_the_condition_of_a_duplicate_is_not_what_the_first_caller_holds(store: EventStore) -> None:
    data = copy.deepcopy(DATA)
    first = await store.append("s", "T", data, metadata=METADATA, idempotency_key="k")
    ruin(data)
    ruin_event(first)
    assert (await store.append("s", "T", DATA, metadata=METADATA, idempotency_key="k")).data == DATA


# What is handed out


async def appended(store: EventStore) -> Iterator[Event]:
    return iter([await store.append("s", "T", DATA, metadata=METADATA, tags=["t"], idempotency_key="k")])


async def read_all(store: EventStore) -> Iterator[Event]:
    return iter(await store.read_all().to_list())


async def read_stream(store: EventStore) -> Iterator[Event]:
    return iter([event async for event in store.read_stream("s", backwards=True)])


async def read_batches(store: EventStore) -> Iterator[Event]:
    return iter([event async for batch in store.read_all().batches() for event in batch])


async def subscribed(store: EventStore) -> Iterator[Event]:
    async with store.subscribe() as subscription:
        return iter([await anext(subscription)])


async def subscribed_in_batches(store: EventStore) -> Iterator[Event]:
    async with store.subscribe(stream_id="s") as subscription:
        return iter(await anext(subscription.batches()))


WAYS = [appended, read_all, read_stream, read_batches, subscribed, subscribed_in_batches]


@pytest.mark.parametrize("way", WAYS)
async def test_changing_what_was_handed_out_changes_nothing(store: EventStore, way: Callable[..., Any]) -> None:
    await appended(store)
    for event in await way(store):
        ruin_event(event)
    for other in WAYS:
        assert [(event.data, event.metadata) for event in await other(store)] == [(DATA, METADATA)]


@pytest.mark.parametrize("way", WAYS)
async def test_changing_what_was_handed_out_changes_nothing_in_a_store_opened_anew(
    store: EventStore, way: Callable[..., Any]
) -> None:
    await appended(store)
    async with await reopen(store) as again:
        for event in await way(again):
            ruin_event(event)
        for other in WAYS:
            assert [(event.data, event.metadata) for event in await other(again)] == [(DATA, METADATA)]


async def test_live_subscribers_do_not_see_what_others_do_to_their_events(store: EventStore) -> None:
    async with store.subscribe() as first, store.subscribe() as second, store.subscribe(stream_id="s") as third:
        await asyncio.gather(*(appended(store) for _ in range(3)))
        for subscription in (first, second, third):
            event = await anext(subscription)
            assert (event.data, event.metadata) == (DATA, METADATA)
            ruin_event(event)
        live = [asyncio.ensure_future(anext(subscription)) for subscription in (first, second, third)]
        ruin_event(await store.append("s", "T", DATA, metadata=METADATA))
        for step in live:
            event = await step
            assert (event.data, event.metadata) == (DATA, METADATA)
            ruin_event(event)
    await assert_intact(store, 2)


async def test_listeners_do_not_see_what_others_do_to_their_events(store: EventStore) -> None:
    seen: list[tuple[Any, Any]] = []

    async def handler(events: list[Event]) -> None:
        seen.extend(copy.deepcopy((event.data, event.metadata)) for event in events)
        for event in events:
            ruin_event(event)
        events.clear()

    store.on_commit(handler)
    store.on_commit(handler, wait=False)
    async with store.subscribe() as subscription:
        event = await store.append("s", "T", DATA, metadata=METADATA)
        assert (event.data, event.metadata) == (DATA, METADATA)
        assert (await anext(subscription)).data == DATA
    await assert_intact(store)
    assert seen == [(DATA, METADATA)] * 2


async def test_callers_of_one_group_do_not_share_what_they_get(store: EventStore) -> None:
    events = await asyncio.gather(*(store.append("s", "T", DATA, idempotency_key="k") for _ in range(3)))
    for event in events:
        assert event.data == DATA
        ruin_event(event)
    assert (await store.append("s", "T", DATA, idempotency_key="k")).data == DATA


async def test_two_reads_do_not_share_what_they_give(store: EventStore) -> None:
    await appended(store)
    first, second = [(await store.read_all().to_list())[0] for _ in range(2)]
    assert first is not second
    assert first.data is not second.data
    assert first.data["list"] is not second.data["list"]


async def test_the_lists_that_are_handed_out_belong_to_the_receiver(store: EventStore) -> None:
    batch = await store.append_batch("s", [("T", {})] * 3, idempotency_key="k")
    batch.clear()
    assert len(await store.append_batch("s", [("T", {})] * 3, idempotency_key="k")) == 3
    (await store.read_all().to_list()).clear()
    assert len(await store.read_all().to_list()) == 3


async def test_an_event_s_own_changes_do_not_reach_its_stored_forms(store: EventStore) -> None:
    (event,) = await appended(store)
    as_json, as_dict = event.to_json(), event.to_dict()
    ruin_event(event)
    assert event.to_json() == as_json
    assert event.to_dict() == as_dict
    assert [event] == await store.read_all().to_list()


async def test_to_dict_gives_a_new_dict_at_every_call(store: EventStore) -> None:
    (event,) = await appended(store)
    ruin(event.to_dict()["data"])
    assert event.to_dict()["data"] == event.data == DATA
