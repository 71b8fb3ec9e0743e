"""Subscriptions: no gap, no double, in order, from history to live; and what they tell of themselves."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from aiostore import (
    END,
    Event,
    EventStore,
    InvalidEvent,
    Limits,
    NewEvent,
    Query,
    QueryItem,
    StoreClosed,
    StreamAppend,
    Subscription,
)
from aiostore.inbox import Interest
from aiostore.testing.conformance.tasks import running, take, turns, until, waiting

OpenStore = Callable[..., Awaitable[EventStore]]

NO_RING = Limits(ring_bytes_max=1)
"""So that history comes from the engine, but for the last commit."""


async def fill(store: EventStore, count: int, stream_id: str = "s") -> None:
    await store.append_batch(stream_id, [("E", {"n": n}) for n in range(count)])


# No gap, no double, in order


@dataclass
class Wish:
    wants: Callable[[Event], bool]
    options: dict[str, Any] = field(default_factory=dict)


WISHES = {
    "everything": Wish(lambda event: True),
    "stream": Wish(lambda event: event.stream_id == "red-1", {"stream_id": "red-1"}),
    "type": Wish(lambda event: event.event_type == "A", {"query": Query.where(types="A")}),
    "types": Wish(lambda event: event.event_type in "AC", {"query": Query.where(types=("A", "C"))}),
    "tag": Wish(lambda event: "x" in event.tags, {"query": Query.where(tags="x")}),
    "tags": Wish(lambda event: {"x", "y"} <= set(event.tags), {"query": Query.where(tags=("x", "y"))}),
    "prefix": Wish(lambda event: event.stream_id[:4] == "red-", {"query": Query.where(stream_prefix="red-")}),
    "type, tag and prefix": Wish(
        lambda event: event.event_type == "B" and "y" in event.tags and event.stream_id[:4] == "red-",
        {"query": Query.where(types="B", tags="y", stream_prefix="red-")},
    ),
    "several items": Wish(
        lambda event: event.event_type == "A" or "x" in event.tags or event.stream_id == "blue-0",
        {"query": Query(QueryItem(types=("A",)), QueryItem(tags=("x",)), QueryItem(stream_prefix="blue-0"))},
    ),
    "stream and query": Wish(
        lambda event: event.stream_id == "red-0" and event.event_type == "B",
        {"stream_id": "red-0", "query": Query.where(types="B")},
    ),
    "after": Wish(lambda event: event.event_id > 41, {"after": 41}),
    "nothing": Wish(lambda event: False, {"query": Query.where(types="never")}),
}


def stormy(number: int) -> list[NewEvent]:
    """One to three events of different types and tags."""
    tags = ((), ("x",), ("y", "x"), ("y",), ("z",))
    return [
        NewEvent("ABC"[(number + i) % 3], {"number": number}, tags=tags[(number * 2 + i) % 5])
        for i in range(1 + number % 3)
    ]


async def storm(store: EventStore, appenders: int = 8, appends: int = 10) -> None:
    """Many tasks append at once, in all three ways."""

    async def append(appender: int) -> None:
        for turn in range(appends):
            number = appender * appends + turn
            if number % 4 == 0:
                red, blue = (StreamAppend(f"{color}-{number % 2}", stormy(number)) for color in ("red", "blue"))
                await store.append_streams([red, blue])
            elif number % 4 == 1:
                await store.append(f"red-{number % 3}", "B", {}, tags=("y",))
            else:
                await store.append_batch(f"blue-{number % 3}", stormy(number))

    await asyncio.gather(*map(append, range(appenders)))


@pytest.mark.parametrize("limits", [Limits(), NO_RING], ids=["ring", "no ring"])
@pytest.mark.parametrize("queue_size", [1, 5, 1024])
@pytest.mark.parametrize("wish", WISHES.values(), ids=WISHES.keys())
async def test_subscriptions_started_in_a_storm_get_every_event_once_and_in_order(
    open_store: OpenStore, wish: Wish, queue_size: int, limits: Limits
) -> None:
    store = await open_store(limits=limits)
    got: dict[Subscription, list[Event]] = {}

    async def collect(subscription: Subscription) -> None:
        got[subscription] = []
        async for event in subscription:
            got[subscription].append(event)
            if event.event_id % 7 == 0:
                await asyncio.sleep(0)  # a reader that is slow now and then

    async def appended(count: int) -> None:
        head = await store.head() + count
        await until(lambda: appending.done() or store._fanout.head >= head)

    async def subscribe_now_and_then(appending: asyncio.Task[None]) -> None:
        while not appending.done():
            readers.append(asyncio.create_task(collect(store.subscribe(queue_size=queue_size, **wish.options))))
            await appended(20)

    readers: list[asyncio.Task[None]] = []
    appending = asyncio.create_task(storm(store))
    await subscribe_now_and_then(appending)
    await appending
    head = await store.head()
    await until(lambda: all(subscription.position >= head for subscription in got))
    for subscription in got:
        await subscription.aclose()
    await asyncio.gather(*readers)
    wanted = [event for event in await store.read_all().to_list() if wish.wants(event)]
    assert len(got) >= 3
    assert all(events == wanted for events in got.values())


async def test_a_subscription_goes_from_history_to_live_without_a_gap_whatever_the_moment(
    open_store: OpenStore,
) -> None:
    # The n-th subscription begins n turns of the loop into a run of appends.
    for count in range(30):
        store = await open_store(limits=NO_RING if count % 2 else Limits())
        await fill(store, 3)

        async def append(store: EventStore = store) -> None:
            for n in range(10):
                await store.append("s", "E", {"n": n})

        appending = asyncio.create_task(append())
        await turns(count)
        async with store.subscribe(queue_size=2) as subscription:
            assert await take(subscription, 13) == list(range(1, 14))
        await appending


async def test_history_longer_than_a_page_comes_whole(open_store: OpenStore) -> None:
    store = await open_store(limits=NO_RING)
    for _ in range(3):
        await fill(store, 700)
    async with store.subscribe(queue_size=10) as subscription:
        assert await take(subscription, 2100) == list(range(1, 2101))


async def test_history_with_few_matches_comes_whole(open_store: OpenStore) -> None:
    store = await open_store()
    for n in range(4):
        await fill(store, 1500, "other")
        await store.append("s", "Rare", {"n": n})
    async with store.subscribe(query=Query.where(types="Rare")) as subscription:
        assert await take(subscription, 4) == [1501, 3002, 4503, 6004]


async def test_a_store_of_many_subscriptions_asks_only_the_one_that_is_concerned(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscriptions = [store.subscribe(stream_id=f"s-{n}", after=END) for n in range(10_000)]
    steps = [asyncio.create_task(anext(subscription)) for subscription in subscriptions]
    await until(lambda: all(subscription.is_live for subscription in subscriptions))
    asked: list[Interest] = []
    matches = Interest.matches

    def counting(interest: Interest, event: Event) -> bool:
        asked.append(interest)
        return matches(interest, event)

    monkeypatch.setattr(Interest, "matches", counting)
    async with running(*steps):
        event = await store.append("s-5000", "E", {})
        assert await steps[5000] == event
        assert asked == [Interest("s-5000")]
        assert sum(step.done() for step in steps) == 1


@pytest.mark.parametrize("query", [Query.where(types="A"), Query.where(tags="a"), Query.where(tags=("a", "b"))])
async def test_subscriptions_by_type_or_tag_are_not_asked_about_events_without_it(
    store: EventStore, monkeypatch: pytest.MonkeyPatch, query: Query
) -> None:
    async with store.subscribe(query=query) as subscription, running(await waiting(subscription)):
        monkeypatch.setattr(Interest, "matches", lambda self, event: pytest.fail("asked in vain"))
        await store.append("s", "B", {}, tags=("b", "c"))
        assert subscription.position == 1


# Isolated


async def test_each_receiver_gets_events_of_its_own(store: EventStore) -> None:
    async with store.subscribe() as one, store.subscribe() as two:
        steps = [await waiting(one), await waiting(two)]
        appended = await store.append("s", "E", {"list": [1]}, metadata={"by": "me"})
        events = await asyncio.gather(*steps)
    async with store.subscribe() as late:
        events.append(await anext(late))
    for event in (appended, *events):
        assert event.data == {"list": [1]}
        assert event.metadata == {"by": "me"}
        event.data["list"].append(2)
        event.metadata.clear()
    assert len(set(map(id, (appended, *events)))) == 4


async def test_what_was_passed_in_can_be_changed_before_the_event_is_delivered(store: EventStore) -> None:
    async with store.subscribe() as subscription:
        step = await waiting(subscription)
        data = {"n": 1}
        appending = asyncio.create_task(store.append("s", "E", data))
        await asyncio.sleep(0)
        data["n"] = 2
        await appending
        assert (await step).data == {"n": 1}


# Where it starts


async def test_after_is_exclusive(store: EventStore) -> None:
    await fill(store, 5)
    async with store.subscribe(after=3) as subscription:
        assert await take(subscription, 2) == [4, 5]


@pytest.mark.parametrize("limits", [Limits(), NO_RING], ids=["ring", "no ring"])
async def test_after_in_the_middle_of_a_commit_gives_the_rest_of_it(open_store: OpenStore, limits: Limits) -> None:
    store = await open_store(limits=limits)
    await fill(store, 5)
    await fill(store, 5)
    async with store.subscribe(after=2) as subscription:
        assert await take(subscription, 8) == list(range(3, 11))


async def test_after_beyond_the_head_waits_for_what_is_above_it(store: EventStore) -> None:
    await fill(store, 2)
    async with store.subscribe(after=5) as subscription:
        step = await waiting(subscription)
        assert subscription.position == 5
        assert subscription.lag == 0
        await fill(store, 2)
        await fill(store, 3)  # the first of these is event 5
        assert (await step).event_id == 6
        assert await take(subscription, 1) == [7]


async def test_end_is_fixed_when_the_block_is_entered(store: EventStore) -> None:
    await fill(store, 2)
    subscription = store.subscribe(after=END)
    await fill(store, 2)
    async with subscription:
        await fill(store, 2)
        assert await take(subscription, 2) == [5, 6]


async def test_end_is_fixed_at_the_first_step_where_no_block_is_entered(store: EventStore) -> None:
    subscription = store.subscribe(after=END)
    await fill(store, 2)
    step = await waiting(subscription)
    await fill(store, 2)
    assert (await step).event_id == 3
    assert await take(subscription, 1) == [4]


async def test_end_of_a_stream_gives_only_what_comes_to_it_from_now_on(store: EventStore) -> None:
    await fill(store, 2)
    async with store.subscribe(stream_id="s", after=END) as subscription:
        await fill(store, 2, "other")
        await fill(store, 1)
        assert await take(subscription, 1) == [5]


async def test_a_subscription_resumes_after_the_position_of_another(store: EventStore) -> None:
    await fill(store, 10)
    async with store.subscribe() as first:
        assert await take(first, 4) == [1, 2, 3, 4]
        async with store.subscribe(after=first.position) as second:
            assert await take(second, 6) == [5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize(
    "options",
    [
        {"after": -1},
        {"after": True},
        {"after": "7"},
        {"queue_size": 0},
        {"on_slow": "never"},
        {"query": "A"},
        {"on_live": 1},
        {"stream_id": ""},
    ],
    ids=str,
)
async def test_wrong_options_are_refused_at_once(store: EventStore, options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError, InvalidEvent)):
        store.subscribe(**options)


# What it tells of itself


async def test_position_and_lag_follow_what_was_handed_out(store: EventStore) -> None:
    await fill(store, 3)
    async with store.subscribe() as subscription:
        assert (subscription.position, subscription.lag, subscription.is_live) == (0, 3, False)
        for event_id in (1, 2, 3):
            await anext(subscription)
            assert (subscription.position, subscription.lag) == (event_id, 3 - event_id)


async def test_position_is_the_head_where_nothing_that_matches_is_left(store: EventStore) -> None:
    await fill(store, 3, "mine")
    await fill(store, 3, "other")
    async with store.subscribe(stream_id="mine") as subscription:
        await take(subscription, 3)
        step = await waiting(subscription)
        assert (subscription.position, subscription.lag) == (6, 0)
        await fill(store, 2, "other")
        assert (subscription.position, subscription.lag) == (8, 0)
        await fill(store, 2, "mine")
        await step
        await fill(store, 2, "other")
        assert (subscription.position, subscription.lag) == (9, 3)
        await anext(subscription)
        assert (subscription.position, subscription.lag) == (12, 0)


@pytest.mark.parametrize("wish", WISHES.values(), ids=WISHES.keys())
async def test_position_is_true_and_never_goes_back_in_a_storm(open_store: OpenStore, wish: Wish) -> None:
    store = await open_store(limits=NO_RING)
    subscription = store.subscribe(queue_size=3, **wish.options)
    handed_out_at: list[tuple[int, int]] = []  # the position seen, and how many events had been handed out then
    got: list[Event] = []

    async def collect() -> None:
        async for event in subscription:
            got.append(event)
            if event.event_id % 5 == 0:
                await asyncio.sleep(0)

    collecting = asyncio.create_task(collect())
    appending = asyncio.create_task(storm(store))
    while not appending.done() or subscription.position < await store.head():
        handed_out_at.append((subscription.position, len(got)))
        await asyncio.sleep(0)
    await subscription.aclose()
    await asyncio.gather(appending, collecting)
    positions = [position for position, _ in handed_out_at]
    assert positions == sorted(positions)
    wanted = [event.event_id for event in await store.read_all().to_list() if wish.wants(event)]
    for position, count in handed_out_at:
        # The event that the reader's next turn brings may be counted already, but not be in its hands.
        assert wanted[:count] == [event_id for event_id in wanted if event_id <= position][:count]
        assert len([event_id for event_id in wanted if event_id <= position]) - count in (0, 1)


async def test_position_does_not_go_back_when_the_subscription_is_closed(store: EventStore) -> None:
    await fill(store, 2, "mine")
    await fill(store, 3, "other")
    subscription = store.subscribe(stream_id="mine")
    await take(subscription, 2)
    step = await waiting(subscription)
    assert subscription.position == 5
    await subscription.aclose()
    with pytest.raises(StopAsyncIteration):
        await step
    assert subscription.position == 5


async def test_position_does_not_go_back_when_the_store_is_closed(store: EventStore) -> None:
    await fill(store, 2, "mine")
    await fill(store, 3, "other")
    subscription = store.subscribe(stream_id="mine")
    await take(subscription, 2)
    step = await waiting(subscription)
    await store.aclose()
    with pytest.raises(StoreClosed):
        await step
    assert subscription.position == 5


async def test_statistics_count_what_was_handed_out_and_what_waits(store: EventStore) -> None:
    async with store.subscribe(queue_size=3) as subscription:
        step = await waiting(subscription)
        await fill(store, 2)
        await step
        statistics = subscription.statistics()
        assert (statistics.position, statistics.lag, statistics.is_live) == (1, 1, True)
        assert (statistics.delivered_count, statistics.queued_count, statistics.fell_behind_count) == (1, 1, 0)
        assert statistics.queued_bytes > 0
        await anext(subscription)
        statistics = subscription.statistics()
        assert (statistics.delivered_count, statistics.queued_count, statistics.queued_bytes) == (2, 0, 0)


async def test_repr_says_how_it_is_doing(store: EventStore) -> None:
    await fill(store, 2)
    async with store.subscribe() as subscription:
        assert repr(subscription) == "<Subscription catching up position=0 lag=2 queued=0>"
        await anext(subscription)
        assert repr(subscription) == "<Subscription live position=1 lag=1 queued=1>"
    assert "closed" in repr(subscription)


# Going live


async def test_on_live_is_called_once_all_that_there_was_is_handed_out(store: EventStore) -> None:
    await fill(store, 2)
    told: list[tuple[int, int, bool]] = []

    def on_live(subscription: Subscription) -> None:
        told.append((subscription.position, subscription.lag, subscription.is_live))

    async with store.subscribe(on_live=on_live) as subscription:
        await take(subscription, 2)
        assert told == []
        step = await waiting(subscription)
        assert told == [(2, 0, True)]
        await fill(store, 2)
        await step
        await anext(subscription)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(anext(subscription), 0)
        assert told == [(2, 0, True)]


async def test_on_live_of_an_empty_store_is_called_at_once(store: EventStore) -> None:
    told: list[int] = []
    subscription = store.subscribe(on_live=lambda subscription: told.append(subscription.position))
    async with running(await waiting(subscription)):
        assert told == [0]


async def test_on_live_may_be_async_and_the_next_event_waits_for_it(store: EventStore) -> None:
    await fill(store, 1)
    gate, inside = asyncio.Event(), asyncio.Event()

    async def on_live(subscription: Subscription) -> None:
        inside.set()
        await gate.wait()

    async with store.subscribe(on_live=on_live) as subscription:
        await anext(subscription)
        step = asyncio.create_task(anext(subscription))
        await inside.wait()
        await fill(store, 1)
        assert not step.done()
        gate.set()
        assert (await step).event_id == 2


async def test_an_error_of_on_live_comes_out_of_the_loop_and_loses_nothing(store: EventStore) -> None:
    await fill(store, 1)

    def on_live(subscription: Subscription) -> None:
        raise LookupError("mine")

    async with store.subscribe(on_live=on_live) as subscription:
        assert await take(subscription, 1) == [1]
        with pytest.raises(LookupError, match="mine"):
            await anext(subscription)
        await fill(store, 2)
        assert await take(subscription, 2) == [2, 3]


async def test_an_on_live_that_is_cancelled_is_called_again(store: EventStore) -> None:
    gate, calls = asyncio.Event(), 0

    async def on_live(subscription: Subscription) -> None:
        nonlocal calls
        calls += 1
        await gate.wait()

    async with store.subscribe(on_live=on_live) as subscription:
        step = asyncio.create_task(anext(subscription))
        await until(lambda: calls == 1)
        step.cancel()
        await asyncio.wait([step])
        gate.set()
        await fill(store, 1)
        assert await take(subscription, 1) == [1]
        assert calls == 2


async def test_on_live_is_called_again_each_time_it_has_come_back_from_history(store: EventStore) -> None:
    told: list[int] = []
    async with store.subscribe(
        queue_size=2, on_live=lambda subscription: told.append(subscription.position)
    ) as subscription:
        step = await waiting(subscription)
        for _ in range(5):
            await fill(store, 1)
        await step
        await take(subscription, 4)
        async with running(await waiting(subscription)):
            assert told == [0, 5]


# Reading


async def test_batches_give_what_is_there_without_waiting_for_more(store: EventStore) -> None:
    await fill(store, 5)
    async with store.subscribe() as subscription:
        batches = subscription.batches(3)
        assert [event.event_id for event in await anext(batches)] == [1, 2, 3]
        assert [event.event_id for event in await anext(batches)] == [4, 5]
        step = asyncio.ensure_future(anext(batches))
        await until(lambda: subscription.is_live)
        await fill(store, 1)
        assert [event.event_id for event in await step] == [6]


async def test_batches_and_single_steps_mix(store: EventStore) -> None:
    await fill(store, 6)
    async with store.subscribe() as subscription:
        assert await take(subscription, 1) == [1]
        assert [event.event_id for event in await anext(subscription.batches(2))] == [2, 3]
        assert await take(subscription, 1) == [4]
        assert [event.event_id for event in await anext(subscription.batches())] == [5, 6]


async def test_batches_end_quietly_when_the_subscription_is_closed(store: EventStore) -> None:
    await fill(store, 3)
    batches = []
    async with store.subscribe() as subscription:
        async for batch in subscription.batches(2):
            batches.append([event.event_id for event in batch])
            if len(batches) == 2:
                await subscription.aclose()
    assert batches == [[1, 2], [3]]


@pytest.mark.parametrize("max_events", [0, -1, 1.5, None])
async def test_a_batch_of_no_size_is_refused(store: EventStore, max_events: Any) -> None:
    with pytest.raises(ValueError, match="max_events"):
        store.subscribe().batches(max_events)


async def test_a_second_reader_is_refused_and_the_first_goes_on(store: EventStore) -> None:
    async with store.subscribe() as subscription:
        step = await waiting(subscription)
        with pytest.raises(RuntimeError, match="another task"):
            await anext(subscription)
        with pytest.raises(RuntimeError, match="another task"):
            await anext(subscription.batches())
        await fill(store, 1)
        assert (await step).event_id == 1


async def test_a_second_reader_is_refused_while_the_first_waits_for_on_live(store: EventStore) -> None:
    gate, inside = asyncio.Event(), asyncio.Event()

    async def on_live(subscription: Subscription) -> None:
        inside.set()
        await gate.wait()

    async with store.subscribe(on_live=on_live) as subscription:
        step = asyncio.create_task(anext(subscription))
        await inside.wait()
        await fill(store, 1)
        with pytest.raises(RuntimeError, match="another task"):
            await anext(subscription)
        gate.set()
        assert (await step).event_id == 1


async def test_a_reader_may_hand_over_to_another_task_between_two_events(store: EventStore) -> None:
    await fill(store, 3)
    async with store.subscribe() as subscription:
        assert await take(subscription, 1) == [1]
        assert await asyncio.create_task(take(subscription, 2)) == [2, 3]


# Its end


async def test_its_own_aclose_ends_the_loop_quietly(store: EventStore) -> None:
    await fill(store, 3)
    seen = []
    subscription = store.subscribe()
    async for event in subscription:
        seen.append(event.event_id)
        if event.event_id == 2:
            await subscription.aclose()
    assert seen == [1, 2]
    with pytest.raises(StopAsyncIteration):
        await anext(subscription)


async def test_its_own_aclose_ends_it_quietly_while_another_task_waits_in_it(store: EventStore) -> None:
    async with store.subscribe() as subscription:
        step = await waiting(subscription)
        await subscription.aclose()
        with pytest.raises(StopAsyncIteration):
            await step


async def test_its_own_aclose_ends_it_quietly_while_another_task_reads_history(open_store: OpenStore) -> None:
    store = await open_store(limits=NO_RING)
    await fill(store, 20)
    await fill(store, 20)
    for count in range(6):
        subscription = store.subscribe(query=Query.where(types="never"))
        step = asyncio.ensure_future(anext(subscription))
        await turns(count)
        await subscription.aclose()
        with pytest.raises(StopAsyncIteration):
            await step


async def test_a_subscription_closed_while_it_reads_history_does_not_go_live(store: EventStore) -> None:
    await fill(store, 1)
    for count in range(6):
        subscription = store.subscribe(queue_size=1)
        step = asyncio.ensure_future(anext(subscription))
        await turns(count)
        await subscription.aclose()
        async with running(step):
            await asyncio.wait([step])
        assert not subscription.is_live
        assert "live subscriptions=0" in repr(store)


async def test_aclose_from_on_live_ends_it_quietly(store: EventStore) -> None:
    await fill(store, 2)
    async with store.subscribe(on_live=Subscription.aclose) as subscription:
        assert [event.event_id async for event in subscription] == [1, 2]


async def test_aclose_again_is_nothing_also_after_the_store_is_closed(store: EventStore) -> None:
    subscription = store.subscribe()
    await subscription.aclose()
    await subscription.aclose()
    await store.aclose()
    await subscription.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(subscription)


async def test_leaving_the_block_leaves_nothing_behind(store: EventStore) -> None:
    async with store.subscribe() as subscription, running(await waiting(subscription)):
        assert "live subscriptions=1" in repr(store)
    assert "live subscriptions=0" in repr(store)


async def test_a_bare_break_leaves_nothing_behind(store: EventStore) -> None:
    await fill(store, 1)

    async def first() -> tuple[weakref.ref[Subscription], int]:
        subscription = store.subscribe()
        async for event in subscription:
            assert subscription.is_live
            return weakref.ref(subscription), event.event_id
        raise AssertionError

    gone, event_id = await first()
    assert event_id == 1
    gc.collect()
    assert gone() is None
    await asyncio.sleep(0)
    assert "live subscriptions=0" in repr(store)
    await fill(store, 1)


@pytest.fixture
def no_automatic_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_automatic_collection")
async def test_a_subscription_that_nobody_holds_is_gone_without_the_garbage_collector(store: EventStore) -> None:
    await fill(store, 1)
    subscription = store.subscribe()
    await anext(subscription)
    gone = weakref.ref(subscription)
    del subscription
    assert gone() is None
    await asyncio.sleep(0)
    assert "live subscriptions=0" in repr(store)


async def test_a_consumer_task_that_nobody_references_survives_a_collection_and_gets_events(store: EventStore) -> None:
    seen: list[int] = []

    async def consume() -> None:
        async for event in store.subscribe():
            seen.append(event.event_id)  # noqa: PERF401

    # The loop holds tasks weakly; here nobody else holds them.
    asyncio.create_task(consume())  # noqa: RUF006
    await until(lambda: "live subscriptions=1" in repr(store))
    await turns(5)
    gc.collect()
    await fill(store, 1)
    await until(lambda: seen == [1])
    gc.collect()
    await fill(store, 1)
    await until(lambda: seen == [1, 2])
    await store.aclose()
    await until(lambda: len(asyncio.all_tasks()) == 1)
