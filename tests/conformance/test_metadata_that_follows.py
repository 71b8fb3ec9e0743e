"""Correlation and causation: what is appended says by itself what it follows from, on every engine."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aiostore import (
    Consumer,
    Event,
    EventStore,
    IdempotencyConflict,
    LiveProjection,
    NewEvent,
    Projection,
    Query,
    StreamAppend,
    correlate,
)
from aiostore.context import following, handled, handling


async def test_without_anything_set_nothing_is_added(store: EventStore) -> None:
    assert (await store.append("a", "T", {})).metadata == {}
    assert following() is None


async def test_what_is_appended_in_a_request_has_its_id(store: EventStore) -> None:
    with correlate("req-7"):
        event = await store.append("a", "T", {}, metadata={"by": "me"})
        batch = await store.append_batch("a", [("T", {}), ("T", {}, {"x": 1}), NewEvent("T", {}, {"y": 1})])
        streams = await store.append_streams([StreamAppend("b", [("T", {})]), StreamAppend("c", [("T", {})])])
    after = await store.append("a", "T", {})
    told = [each.metadata for each in (event, *batch, *streams, after)]
    own: list[dict[str, Any]] = [{"by": "me"}, {}, {"x": 1}, {"y": 1}, {}, {}]
    assert told == [*({"correlation_id": "req-7", **each} for each in own), {}]
    assert [each.metadata for each in await store.read_all().to_list()] == told


async def test_a_long_batch_has_it_in_every_event(store: EventStore) -> None:
    with correlate("req-7"):
        events = await store.append_batch("a", [("T", {"n": n}) for n in range(2000)])
    assert {each.metadata["correlation_id"] for each in events} == {"req-7"}


async def test_what_the_caller_says_stands(store: EventStore) -> None:
    with correlate("req-7", causation_id="mail-1"):
        event = await store.append("a", "T", {}, metadata={"correlation_id": "mine"})
        other = await store.append("a", "T", {}, metadata={"causation_id": None})
    assert event.metadata == {"correlation_id": "mine", "causation_id": "mail-1"}
    assert other.metadata == {"correlation_id": "req-7", "causation_id": None}


async def test_tasks_of_a_request_belong_to_it_and_others_do_not(store: EventStore) -> None:
    async def request(name: str) -> list[Event]:
        with correlate(name):
            return list(await asyncio.gather(*(store.append(name, "T", {}) for _ in range(3))))

    for name, events in zip("xy", await asyncio.gather(request("x"), request("y")), strict=True):
        assert [event.metadata for event in events] == [{"correlation_id": name}] * 3


async def test_one_inside_another_keeps_what_it_does_not_say(store: EventStore) -> None:
    with correlate("outer", causation_id=5):
        with correlate("inner"):
            assert following() == {"correlation_id": "inner", "causation_id": 5}
        first = await store.append("a", "T", {})
    with correlate(first):
        second = await store.append("a", "T", {})
    with correlate(await store.append("a", "T", {})):
        third = await store.append("a", "T", {})
    assert first.metadata == {"correlation_id": "outer", "causation_id": 5}
    assert second.metadata == {"correlation_id": "outer", "causation_id": first.event_id}
    assert third.metadata == {"correlation_id": "3", "causation_id": 3}


def test_what_is_no_id_is_refused() -> None:
    with pytest.raises(TypeError, match="correlation_id"):
        correlate(7)  # type: ignore[arg-type]
    for wrong in (True, 1.5, b"x"):
        with pytest.raises(TypeError, match="causation_id"):
            correlate("x", causation_id=wrong)  # type: ignore[arg-type]
    twice = correlate("x")
    with twice, pytest.raises(RuntimeError, match="in use"):
        twice.__enter__()
    with twice:  # one after another is fine
        assert following() == {"correlation_id": "x"}


# Handlers


async def test_what_a_handler_is_called_with_is_what_its_appends_follow_from(store: EventStore) -> None:
    first = await store.append("a", "T", {})
    second = await store.append("a", "T", {}, metadata={"correlation_id": "req-7"})
    cases: list[tuple[Event | list[Event], dict[str, Any] | None]] = [
        (first, {"correlation_id": "1", "causation_id": 1}),
        ([second], {"correlation_id": "req-7", "causation_id": 2}),
        ([second, second], {"correlation_id": "req-7"}),
        ([first, second], None),
        ([], None),
    ]
    for given, expected in cases:
        second.metadata["correlation_id"] = "changed"
        token = handling(given)
        assert following() == expected
        handled(token)
    assert following() is None


async def test_what_a_listener_appends_follows_from_the_commit(store: EventStore) -> None:
    async def answer(events: list[Event]) -> None:
        if events[0].stream_id == "asked":
            events.clear()
            await store.append("answers", "A", {})
            await asyncio.create_task(store.append("answers", "A", {}))

    store.on_commit(answer)
    with correlate("req-7"):
        await store.append("asked", "T", {})
    await store.append("asked", "T", {})
    await store.append_batch("asked", [("T", {}), ("T", {})])
    with correlate("req-8"):
        await store.append_batch("asked", [("T", {}), ("T", {})])
    with correlate("of whoever appends next, and not of the handler"):
        await store.append("last", "T", {})
    answers = await store.read_stream("answers").to_list()
    asked = [event.event_id for event in await store.read_stream("asked").to_list()]
    assert [event.metadata for event in answers[::2]] == [event.metadata for event in answers[1::2]]
    assert [event.metadata for event in answers[::2]] == [
        {"correlation_id": "req-7", "causation_id": asked[0]},
        {"correlation_id": str(asked[1]), "causation_id": asked[1]},
        {},
        {"correlation_id": "req-8"},
    ]


async def test_what_a_projection_appends_follows_from_each_event(store: EventStore) -> None:
    await store.append_batch("asked", [("T", {}), ("T", {}, {"correlation_id": "req-7"})])
    expected = [{"correlation_id": "1", "causation_id": 1}, {"correlation_id": "req-7", "causation_id": 2}]

    async def answer(state: dict[str, Any], event: Event) -> None:
        await asyncio.sleep(0)
        await store.append("answers", "A", {})

    projection: Projection[dict[str, Any]] = Projection("p", store)
    projection.when("T", answer)
    await projection.catch_up()
    assert [event.metadata for event in await store.read_stream("answers").to_list()] == expected
    assert following() is None
    live: LiveProjection[dict[str, Any]] = LiveProjection("q", store)
    live.when("T", answer)
    async with live:
        event = await store.append("asked", "T", {})
        last = await anext(store.read_stream("answers", backwards=True))
    assert last.metadata == {"correlation_id": str(event.event_id), "causation_id": event.event_id}


# Repeats


@pytest.mark.parametrize("metadata", [None, {"by": "me"}])
async def test_a_repeat_in_another_request_is_a_repeat(store: EventStore, metadata: Any) -> None:
    async def append() -> Event:
        return await store.append("a", "T", {"n": 1}, metadata=metadata, idempotency_key="k")

    with correlate("req-7"):
        first = await append()
    for n in range(300):  # so that it is not only in memory
        await store.append("b", "T", {"n": n})
    with correlate("req-8", causation_id=5):
        assert await append() == first
    assert await append() == first
    assert first.metadata == {"correlation_id": "req-7", **(metadata or {})}
    with correlate("req-7"), pytest.raises(IdempotencyConflict):
        await store.append("a", "T", {"n": 1}, metadata={"by": "you"}, idempotency_key="k")


async def test_repeats_in_one_group_are_repeats(store: EventStore) -> None:
    async def append(request: str) -> Event:
        with correlate(request):
            return await store.append("a", "T", {"n": 1}, idempotency_key="k")

    events = await asyncio.gather(*map(append, "xyz"))
    assert [event.event_id for event in events] == [1, 1, 1]
    assert len({event.metadata["correlation_id"] for event in events}) == 1


async def test_keys_of_a_trace_do_not_count_in_a_repeat(store: EventStore) -> None:
    for n in range(2):
        trace = {"traceparent": f"00-{n:032x}-{n:016x}-01", "tracestate": f"a={n}", "by": "me"}
        event = await store.append("a", "T", {}, metadata=trace, idempotency_key="k")
        assert event.event_id == 1


async def test_what_consumers_effects_and_deliveries_append_follows_from_their_event(store: EventStore) -> None:
    with correlate("req-7"):
        await store.append("a", "Asked", {"n": 1})

    async def answer(event: Event) -> None:
        await asyncio.sleep(0)
        await store.append("b", "Answered", {"by": "a handler"})

    asked = Query.where(types="Asked")
    async with Consumer(store, "handler", answer, query=asked) as consumer:
        await consumer.wait_idle()
    async with Consumer(store, "loop", query=asked) as consumer:
        async for delivery in consumer:
            async with delivery:
                await store.append("b", "Answered", {"by": "a loop"})
            break
        await store.append("b", "Answered", {"by": "nobody"})

    projection = Projection("p", store, query=asked)
    projection.when("Asked", lambda state, event: None)

    @projection.effect("Asked")
    async def effect(state: dict[str, Any], event: Event) -> None:
        await store.append("b", "Answered", {"by": "an effect"})

    await projection.catch_up()
    told = {event.data["by"]: event.metadata async for event in store.read_stream("b")}
    follows = {"correlation_id": "req-7", "causation_id": 1}
    assert told == {"a handler": follows, "a loop": follows, "nobody": {}, "an effect": follows}
