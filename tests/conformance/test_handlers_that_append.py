"""What a handler may do with the store it listens to: append in every way, but not wait for itself."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable

import pytest

from aiostore import ConcurrencyConflict, Event, EventStore, InvalidEvent, Limits, StoreClosed
from tests.scheduler import until

OpenStore = Callable[..., Awaitable[EventStore]]
Handler = Callable[[list[Event]], Awaitable[None]]

TINY_BACKLOG = Limits(backlog_bytes_max=1)
"""So that every commit that is not delivered holds all further groups back, but for what handlers append."""


async def directly(store: EventStore, number: int) -> None:
    await store.append("echo", "Echo", {"of": number})


async def through_gather(store: EventStore, number: int) -> None:
    await asyncio.gather(*(store.append("echo", "Echo", {"of": number}) for _ in range(3)))


async def through_a_task_it_awaits(store: EventStore, number: int) -> None:
    await asyncio.create_task(directly(store, number))


async def through_a_task_of_a_task(store: EventStore, number: int) -> None:
    await asyncio.create_task(through_a_task_it_awaits(store, number))


async def through_a_task_group(store: EventStore, number: int) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(directly(store, number))


async def with_a_timeout(store: EventStore, number: int) -> None:
    async with asyncio.timeout(3600):
        await directly(store, number)


async def through_wait_for(store: EventStore, number: int) -> None:
    await asyncio.wait_for(directly(store, number), 3600)


async def as_a_batch(store: EventStore, number: int) -> None:
    await store.append_batch("echo", [("Echo", {"of": number})] * 2)


async def with_an_expectation(store: EventStore, number: int) -> None:
    version = await store.stream_version("echo")
    await store.append("echo", "Echo", {"of": number}, expected_version=version)


WAYS = [
    directly,
    through_gather,
    through_a_task_it_awaits,
    through_a_task_of_a_task,
    through_a_task_group,
    with_a_timeout,
    through_wait_for,
    as_a_batch,
    with_an_expectation,
]


@pytest.mark.parametrize("limits", [Limits(), TINY_BACKLOG], ids=["", "tiny backlog"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_a_handler_appends_and_goes_on(
    open_store: OpenStore, way: Callable[[EventStore, int], Awaitable[None]], limits: Limits
) -> None:
    store = await open_store(limits=limits)
    seen: list[int] = []

    async def handler(events: list[Event]) -> None:
        for event in events:
            seen.append(event.event_id)
            if event.event_type == "Asked":
                await way(store, event.event_id)

    listener = store.on_commit(handler)
    await asyncio.gather(*(store.append(f"s-{n}", "Asked", {}) for n in range(10)))
    events = await store.read_all().to_list()
    assert {event.data["of"] for event in events if event.event_type == "Echo"} == {
        event.event_id for event in events if event.event_type == "Asked"
    }
    await until(lambda: len(seen) == len(events))
    assert seen == [event.event_id for event in events]
    assert listener.error is None


async def test_what_a_handler_appends_is_durable_at_once_and_delivered_after_the_commit_in_hand(
    store: EventStore,
) -> None:
    calls: list[str] = []

    async def first(events: list[Event]) -> None:
        calls.append(f"first begins {[event.event_id for event in events]}")
        if events[0].event_id == 1:
            echo = await store.append("echo", "Echo", {})
            assert echo.event_id == await store.head() == 2
        calls.append(f"first ends {[event.event_id for event in events]}")

    async def second(events: list[Event]) -> None:
        calls.append(f"second {[event.event_id for event in events]}")

    store.on_commit(first)
    store.on_commit(second)
    await store.append("s", "E", {})
    await until(lambda: len(calls) == 6)
    assert calls == [
        "first begins [1]",
        "first ends [1]",
        "second [1]",
        "first begins [2]",
        "first ends [2]",
        "second [2]",
    ]


async def test_a_chain_of_echoes_comes_to_its_end(store: EventStore) -> None:
    seen: list[int] = []

    async def handler(events: list[Event]) -> None:
        seen.extend(event.data["left"] for event in events)
        for event in events:
            if event.data["left"]:
                await store.append("s", "E", {"left": event.data["left"] - 1})

    store.on_commit(handler)
    await store.append("s", "E", {"left": 120})
    await until(lambda: len(seen) == 121)
    assert seen == list(range(120, -1, -1))


async def test_two_handlers_that_answer_each_other_do_not_hold_each_other(store: EventStore) -> None:
    seen: list[int] = []

    def answering(parity: int) -> Handler:
        async def handler(events: list[Event]) -> None:
            for event in events:
                if event.data["n"] < 20 and event.data["n"] % 2 == parity:
                    await store.append("s", "E", {"n": event.data["n"] + 1})

        return handler

    async def watching(events: list[Event]) -> None:
        seen.extend(event.data["n"] for event in events)

    for handler in (answering(0), answering(1), watching):
        store.on_commit(handler)
    await store.append("s", "E", {"n": 0})
    await until(lambda: len(seen) == 21)
    assert seen == list(range(21))


async def test_an_append_of_a_handler_passes_while_others_are_held_by_the_backlog(open_store: OpenStore) -> None:
    store = await open_store(limits=TINY_BACKLOG)
    inside, gate = asyncio.Event(), asyncio.Event()

    async def handler(events: list[Event]) -> None:
        if events[0].event_id == 1:
            inside.set()
            await gate.wait()
            await store.append("echo", "Echo", {})

    store.on_commit(handler)
    first = asyncio.create_task(store.append("s", "E", {}))
    await inside.wait()
    second = asyncio.create_task(store.append("s", "E", {}))
    await until(lambda: "staged=1" in repr(store))
    gate.set()
    assert [event.event_id for event in await asyncio.gather(first, second)] == [1, 3]
    assert (await store.read_stream("echo").to_list())[0].event_id == 2


async def test_an_append_of_a_handler_passes_while_others_are_held_by_a_subscription(store: EventStore) -> None:
    async def handler(events: list[Event]) -> None:
        if events[0].stream_id == "s":
            await store.append("echo", "Echo", {})

    async with store.subscribe(on_slow="wait", queue_size=1, stream_id="s") as subscription:
        step = asyncio.ensure_future(anext(subscription))
        await until(lambda: subscription.is_live)
        await store.append("s", "E", {})
        await step
        store.on_commit(handler)
        await asyncio.wait_for(store.append("s", "E", {}), 3600)
        held = asyncio.create_task(store.append("s", "E", {}))
        await until(lambda: "staged=1" in repr(store))
        assert [event.stream_id for event in await store.read_all().to_list()] == ["s", "s", "echo"]
        await anext(subscription)
        assert (await held).event_id == 4


async def test_a_task_that_outlives_its_handler_appends_like_any_other(store: EventStore) -> None:
    returned, started = asyncio.Event(), asyncio.Event()
    delivered: list[int] = []
    left: list[asyncio.Task[None]] = []

    async def later() -> None:
        await returned.wait()
        echo = await store.append("echo", "Echo", {})
        # The scope of the handler has ended: this append, too, returns after the listeners have had its event.
        assert echo.event_id in delivered

    async def handler(events: list[Event]) -> None:
        if events[0].event_id == 1:
            left.append(asyncio.create_task(later()))
            started.set()
        for _ in range(5):
            await asyncio.sleep(0)
        delivered.extend(event.event_id for event in events)

    store.on_commit(handler)
    await store.append("s", "E", {})
    returned.set()
    await left[0]


async def test_a_task_that_was_appending_when_its_handler_returned_is_not_forgotten(store: EventStore) -> None:
    left: list[asyncio.Task[Event]] = []

    async def handler(events: list[Event]) -> None:
        if events[0].event_id == 1:
            left.append(asyncio.create_task(store.append("echo", "Echo", {})))
            await asyncio.sleep(0)

    store.on_commit(handler)
    await store.append("s", "E", {})
    assert (await left[0]).stream_id == "echo"


async def test_a_refused_append_of_a_handler_is_the_handlers_own_error(store: EventStore) -> None:
    errors: list[Exception] = []

    async def handler(events: list[Event]) -> None:
        if events[0].event_id == 1:
            for expected, stream_id in ((7, "s"), (0, "")):
                try:
                    await store.append(stream_id, "E", {}, expected_version=expected)
                except (ConcurrencyConflict, InvalidEvent) as error:
                    errors.append(error)

    listener = store.on_commit(handler)
    await store.append("s", "E", {})
    assert [type(error) for error in errors] == [ConcurrencyConflict, InvalidEvent]
    assert not listener.closed


async def test_a_handler_runs_in_a_fresh_context(store: EventStore) -> None:
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")
    seen: list[str] = []

    async def handler(events: list[Event]) -> None:
        seen.append(request.get())
        request.set("handler's")
        await asyncio.sleep(0)
        seen.append(request.get())

    request.set("registrar's")
    store.on_commit(handler)
    request.set("caller's")
    await store.append("s", "E", {})
    await store.append("s", "E", {})
    assert seen == ["none", "handler's"] * 2
    assert request.get() == "caller's"


async def test_a_handler_of_another_store_is_held_like_any_other_caller(open_store: OpenStore) -> None:
    source, target = await open_store(), await open_store()
    copied: list[int] = []

    async def copy(events: list[Event]) -> None:
        for event in events:
            copied.append((await target.append(event.stream_id, event.event_type, event.data)).event_id)
            assert had == copied

    had: list[int] = []

    async def note(events: list[Event]) -> None:
        await asyncio.sleep(0)
        had.extend(event.event_id for event in events)

    listener = source.on_commit(copy)
    target.on_commit(note)
    await asyncio.gather(*(source.append("s", "E", {}) for _ in range(20)))
    assert listener.error is None
    assert copied == had == list(range(1, 21))


async def test_aclose_inside_a_handler_raises(store: EventStore) -> None:
    async def handler(events: list[Event]) -> None:
        await store.aclose()

    listener = store.on_commit(handler)
    await store.append("s", "E", {})
    assert isinstance(listener.error, RuntimeError)
    assert "aclose" in str(listener.error)
    await store.append("s", "E", {})


@pytest.mark.parametrize("through", ["task", "gather"])
async def test_aclose_in_a_task_that_a_handler_awaits_raises(store: EventStore, through: str) -> None:
    async def handler(events: list[Event]) -> None:
        if through == "task":
            await asyncio.create_task(store.aclose())
        else:
            await asyncio.gather(store.aclose(), store.aclose())

    listener = store.on_commit(handler)
    await store.append("s", "E", {})
    assert isinstance(listener.error, RuntimeError)


async def test_aclose_inside_a_handler_raises_also_while_the_store_is_being_closed(store: EventStore) -> None:
    inside, gate = asyncio.Event(), asyncio.Event()
    errors: list[RuntimeError] = []

    async def handler(events: list[Event]) -> None:
        inside.set()
        await gate.wait()
        try:
            await store.aclose()
        except RuntimeError as error:
            errors.append(error)

    store.on_commit(handler)
    appending = asyncio.create_task(store.append("s", "E", {}))
    await inside.wait()
    closing = asyncio.create_task(store.aclose())
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(appending, closing)
    assert len(errors) == 1


async def test_a_task_that_outlives_its_handler_may_close_the_store(store: EventStore) -> None:
    gate = asyncio.Event()
    left: list[asyncio.Task[None]] = []

    async def close_later() -> None:
        await gate.wait()
        await store.aclose()

    async def handler(events: list[Event]) -> None:
        left.append(asyncio.create_task(close_later()))

    store.on_commit(handler)
    await store.append("s", "E", {})
    gate.set()
    await left[0]
    with pytest.raises(StoreClosed):
        await store.head()


async def test_what_a_handler_appends_while_the_store_closes_is_refused(
    store: EventStore, caplog: pytest.LogCaptureFixture
) -> None:
    inside, gate = asyncio.Event(), asyncio.Event()

    async def handler(events: list[Event]) -> None:
        inside.set()
        await gate.wait()
        await store.append("echo", "Echo", {})

    listener = store.on_commit(handler)
    appending = asyncio.create_task(store.append("s", "E", {}))
    await inside.wait()
    closing = asyncio.create_task(store.aclose())
    await asyncio.sleep(0)
    gate.set()
    with caplog.at_level(logging.CRITICAL):
        assert (await appending).event_id == 1
    await closing
    assert isinstance(listener.error, StoreClosed)


async def test_on_live_and_the_body_of_a_loop_may_append(store: EventStore) -> None:
    await store.append("s", "E", {})

    async def on_live(subscription: object) -> None:
        await store.append("s", "Live", {})

    seen: list[str] = []
    async with store.subscribe(on_live=on_live) as subscription:
        async for event in subscription:
            seen.append(event.event_type)
            if event.event_type == "Live":
                await store.append("s", "Last", {})
            if event.event_type == "Last":
                break
    assert seen == ["E", "Live", "Last"]
