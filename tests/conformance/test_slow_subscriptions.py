"""Slow subscriptions: bounded memory, and appends that are held up only where that was asked for."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Literal

import pytest

from aiostore import END, Event, EventStore, Limits, Query, SlowSubscriber, Subscription
from tests.conformance import ids
from tests.scheduler import running, take, turns, until, waiting

OpenStore = Callable[..., Awaitable[EventStore]]

ALARM_S = 5
"""A test fails when what must not be held back takes so long; a ``wait`` subscription lets go by itself after 30 s."""


async def fill(store: EventStore, count: int, stream_id: str = "s") -> None:
    await store.append_batch(stream_id, [("E", {"n": n}) for n in range(count)])


def append(store: EventStore, stream_id: str = "s") -> asyncio.Task[Event]:
    return asyncio.create_task(store.append(stream_id, "E", {}))


# Any kind


@pytest.mark.parametrize("on_slow", ["catch_up", "fail"])
async def test_a_subscription_that_stands_still_for_100000_events_costs_bounded_memory(
    open_store: OpenStore, on_slow: Literal["catch_up", "fail"]
) -> None:
    store = await open_store(limits=Limits(ring_bytes_max=100_000))
    async with store.subscribe(on_slow=on_slow, queue_size=100) as subscription:
        step = await waiting(subscription)
        queued: list[int] = []
        for _ in range(100):
            await fill(store, 1000)
            queued.append(subscription.statistics().queued_count)
        assert (await step).event_id == 1
        assert max(queued) <= 100 + 1000  # at most one commit more than its bound
        statistics = subscription.statistics()
        assert (statistics.queued_count, statistics.queued_bytes) == (0, 0)
        assert (statistics.position, statistics.lag, statistics.is_live) == (1, 99_999, False)
        if on_slow == "catch_up":
            seen = []
            async for batch in subscription.batches():
                seen += ids(batch)
                assert subscription.statistics().queued_count <= 1000
                if batch[-1].event_id == 100_000:
                    break
            assert seen == list(range(2, 100_001))


async def test_a_subscription_that_stands_still_holds_none_of_the_events(open_store: OpenStore) -> None:
    # The events themselves would take more than 30 MB; the engine in memory has them, so they are measured apart.
    store = await open_store(limits=Limits(ring_bytes_max=1000))
    payload = "x" * 10_000

    async def appended_bytes(count: int) -> int:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(count):
            await store.append("s", "E", {"text": payload})
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before

    tracemalloc.start()
    try:
        alone = await appended_bytes(300)
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(10):
                subscription = await stack.enter_async_context(store.subscribe(queue_size=10))
                await take(subscription, 300)
                step = await waiting(subscription)
                stack.push_async_callback(asyncio.wait, [step])
                stack.callback(step.cancel)
            followed = await appended_bytes(300)
    finally:
        tracemalloc.stop()
    assert followed - alone < 2_000_000


async def test_a_batch_larger_than_the_queue_enters_a_queue_that_is_not_full(store: EventStore) -> None:
    async with store.subscribe(queue_size=2) as subscription:
        step = await waiting(subscription)
        await fill(store, 50)
        await step
        assert subscription.statistics().queued_count == 49
        assert subscription.is_live
        assert await take(subscription, 49) == list(range(2, 51))
        assert subscription.statistics().fell_behind_count == 0


async def test_the_bytes_of_a_queue_are_bounded_too(open_store: OpenStore) -> None:
    store = await open_store(limits=Limits(queue_bytes_max=10_000))
    async with store.subscribe() as subscription:
        step = await waiting(subscription)
        queued: list[int] = []
        for _ in range(10):
            await store.append("s", "E", {"text": "x" * 4000})
            queued.append(subscription.statistics().queued_bytes)
        assert (await step).event_id == 1
        assert max(queued) < 10_000 + 5000  # at most one commit more than its bound
        assert subscription.statistics().fell_behind_count == 1
        assert await take(subscription, 9) == list(range(2, 11))


async def test_a_slow_subscription_does_not_hold_appends_or_the_others(store: EventStore) -> None:
    slow, fast = store.subscribe(queue_size=1), store.subscribe()
    step, other = await waiting(slow), await waiting(fast)
    for _ in range(20):
        await fill(store, 1)
    assert (await other).event_id == 1
    assert await take(fast, 19) == list(range(2, 21))
    assert fast.statistics().fell_behind_count == 0
    assert (await step).event_id == 1
    assert await take(slow, 19) == list(range(2, 21))
    assert slow.statistics().fell_behind_count == 1


# catch_up


async def test_a_full_queue_is_dropped_and_read_from_the_log(store: EventStore) -> None:
    async with store.subscribe(queue_size=2) as subscription:
        step = await waiting(subscription)
        for _ in range(4):
            await fill(store, 1)
        await step
        assert not subscription.is_live  # 2 and 3 were queued, then came a commit that found it full
        statistics = subscription.statistics()
        assert (statistics.fell_behind_count, statistics.queued_count, statistics.position) == (1, 0, 1)
        assert await take(subscription, 3) == [2, 3, 4]
        async with running(await waiting(subscription)):
            assert subscription.is_live


@pytest.mark.parametrize("limits", [Limits(), Limits(ring_bytes_max=1)], ids=["ring", "no ring"])
@pytest.mark.parametrize("query", [None, Query.where(types="E"), Query.where(stream_prefix="s")], ids=str)
async def test_it_falls_behind_and_comes_back_again_and_again_without_a_gap(
    open_store: OpenStore, limits: Limits, query: Query | None
) -> None:
    store = await open_store(limits=limits)
    seen: list[int] = []
    async with store.subscribe(queue_size=3, query=query) as subscription:
        for _ in range(10):
            step = await waiting(subscription)
            for n in range(8):
                await append(store, "other" if n == 2 else "s")
            seen.append((await step).event_id)
            assert not subscription.is_live
            await append(store)  # the last of a round matches, so that the reader knows where to stop
            while seen[-1] < await store.head():
                seen += await take(subscription, 1)
        assert subscription.statistics().fell_behind_count == 10
    assert seen == ids(await store.read_all(query=query).to_list())


# fail


async def test_fail_raises_with_the_position_to_subscribe_from(store: EventStore) -> None:
    async with store.subscribe(on_slow="fail", queue_size=2) as subscription:
        step = await waiting(subscription)
        for _ in range(5):
            await fill(store, 1)
        assert (await step).event_id == 1
        for _ in range(2):  # it stays so
            with pytest.raises(SlowSubscriber) as caught:
                await anext(subscription)
            assert (caught.value.position, caught.value.queue_size) == (1, 2)
        assert "after=1" in str(caught.value)
    async with store.subscribe(on_slow="fail", after=caught.value.position) as again:
        assert await take(again, 4) == [2, 3, 4, 5]


async def test_fail_does_not_mind_history_however_long(store: EventStore) -> None:
    await fill(store, 3000)
    async with store.subscribe(on_slow="fail", queue_size=10) as subscription:
        assert await take(subscription, 3000) == list(range(1, 3001))
        await fill(store, 3000)
        assert await take(subscription, 3000) == list(range(3001, 6001))


async def test_fail_raises_in_batches_too(store: EventStore) -> None:
    async with store.subscribe(on_slow="fail", queue_size=1) as subscription:
        batches = subscription.batches()
        step = asyncio.ensure_future(anext(batches))
        await until(lambda: subscription.is_live)
        await turns(3)
        for _ in range(3):
            await fill(store, 1)
        assert ids(await step) == [1]
        with pytest.raises(SlowSubscriber):
            await anext(batches)


# wait


@contextlib.asynccontextmanager
async def full(store: EventStore, queue_size: int = 2) -> AsyncIterator[Subscription]:
    """A ``wait`` subscription that had one event and whose queue is full."""
    async with store.subscribe(on_slow="wait", queue_size=queue_size, after=END) as subscription:
        step = await waiting(subscription)
        await fill(store, queue_size + 1)
        await step
        assert subscription.statistics().queued_count == queue_size
        yield subscription


async def held(store: EventStore, count: int) -> list[asyncio.Task[Event]]:
    """So many appends, which have been staged and are held back; not made in the body of any loop."""
    appends = [asyncio.create_task(store.append("s", "E", {}), context=contextvars.Context()) for _ in range(count)]
    await until(lambda: f"staged={count}" in repr(store))
    await turns(5)
    assert not any(task.done() for task in appends)
    assert f"staged={count}" in repr(store)
    return appends


async def test_wait_requires_a_block(store: EventStore) -> None:
    subscription = store.subscribe(on_slow="wait")
    with pytest.raises(RuntimeError, match="async with"):
        await anext(subscription)
    with pytest.raises(RuntimeError, match="async with"):
        await anext(subscription.batches())


async def test_a_full_queue_stops_the_forming_of_groups_until_there_is_room(store: EventStore) -> None:
    async with full(store) as subscription:
        appends = await held(store, 3)
        assert await store.head() == 3
        assert await take(subscription, 1) == [2]
        await asyncio.wait(appends, return_when=asyncio.FIRST_COMPLETED)
        assert await take(subscription, 4) == [3, 4, 5, 6]
        assert ids(await asyncio.gather(*appends)) == [4, 5, 6]


async def test_what_is_held_back_is_unwritten_and_can_be_cancelled(store: EventStore) -> None:
    async with full(store) as subscription:
        appends = await held(store, 3)
        appends[1].cancel()
        await asyncio.wait([appends[1]])
        assert appends[1].cancelled()
        assert len(await store.read_all().to_list()) == 3
        assert await take(subscription, 4) == [2, 3, 4, 5]
        assert ids([await appends[0], await appends[2]]) == [4, 5]
    assert await store.head() == 5


async def test_what_is_held_back_can_time_out(store: EventStore) -> None:
    async with full(store):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(store.append("s", "E", {}), 0.01)
        assert await store.head() == 3


async def test_what_was_given_up_does_not_pile_up_while_groups_are_held_back(store: EventStore) -> None:
    async with full(store):
        for _ in range(3):
            appends = await held(store, 5)
            for task in appends:
                task.cancel()
            await asyncio.wait(appends)
            await until(lambda: "staged=0" in repr(store))


async def test_reads_go_on_while_appends_are_held_back(store: EventStore) -> None:
    async with full(store):
        appends = await held(store, 1)
        assert len(await store.read_all().to_list()) == 3
        assert await store.stream_version("s") == 3
        async with store.subscribe() as other:
            assert await take(other, 3) == [1, 2, 3]
    await asyncio.gather(*appends)


async def test_leaving_the_block_lets_appends_go(store: EventStore) -> None:
    async with full(store):
        appends = await held(store, 2)
    assert ids(await asyncio.gather(*appends)) == [4, 5]


async def test_its_aclose_from_another_task_lets_appends_go(store: EventStore) -> None:
    async with full(store) as subscription:
        appends = await held(store, 2)
        await asyncio.create_task(subscription.aclose())
        assert ids(await asyncio.gather(*appends)) == [4, 5]


async def test_cancelling_its_reader_lets_appends_go(store: EventStore) -> None:
    async def stuck() -> None:
        async with full(store):
            await asyncio.Event().wait()

    reading = asyncio.create_task(stuck())
    await until(lambda: "head=3" in repr(store))
    await turns(5)
    appends = await held(store, 2)
    async with running(reading):
        pass
    assert ids(await asyncio.gather(*appends)) == [4, 5]


async def test_a_subscription_that_was_dropped_without_leaving_its_block_lets_appends_go(store: EventStore) -> None:
    subscription = await store.subscribe(on_slow="wait", queue_size=1).__aenter__()
    step = await waiting(subscription)
    await fill(store, 2)
    await step
    appends = await held(store, 2)
    del subscription, step
    gc.collect()
    async with running(*appends), asyncio.timeout(ALARM_S):
        assert ids(await asyncio.gather(*appends)) == [3, 4]


async def test_a_storm_of_appends_stops_at_a_full_queue(store: EventStore) -> None:
    async def append_on(stream_id: str) -> None:
        for _ in range(20):
            await append(store, stream_id)

    async with store.subscribe(on_slow="wait", queue_size=10) as subscription:
        step = await waiting(subscription)
        appending = [asyncio.create_task(append_on(f"s-{n}")) for n in range(50)]
        await until(lambda: "head=0" not in repr(store))
        for _ in range(2000):
            await asyncio.sleep(0)
        stopped_at = await store.head()
        assert (await step).event_id == 1
        seen = await take(subscription, 999)
        await asyncio.gather(*appending)
        assert seen == list(range(2, 1001))
    # A group that was formed while there was room is written whole; behind it, nothing more.
    assert stopped_at <= 10 + 50
    assert subscription.statistics().fell_behind_count == 0


async def test_a_group_larger_than_the_queue_does_not_make_it_fall_behind(store: EventStore) -> None:
    async with store.subscribe(on_slow="wait", queue_size=3) as subscription:
        step = await waiting(subscription)
        appends = [append(store, f"s-{n}") for n in range(20)]
        assert (await step).event_id == 1
        assert await take(subscription, 19) == list(range(2, 21))
        await asyncio.gather(*appends)
        assert subscription.statistics().fell_behind_count == 0


async def test_all_waiting_subscriptions_must_have_room(store: EventStore) -> None:
    async with (
        store.subscribe(on_slow="wait", queue_size=2) as one,
        store.subscribe(on_slow="wait", queue_size=3) as two,
    ):
        steps = [await waiting(one), await waiting(two)]
        await fill(store, 4)
        assert ids(await asyncio.gather(*steps)) == [1, 1]
        await take(one, 3)
        appends = await held(store, 1)
        assert await take(two, 1) == [2]
        await asyncio.gather(*appends)


async def test_only_events_that_it_wants_fill_its_queue(store: EventStore) -> None:
    async with store.subscribe(on_slow="wait", queue_size=2, stream_id="mine") as subscription:
        step = await waiting(subscription)
        for _ in range(10):
            await fill(store, 1, "other")
        await fill(store, 3, "mine")
        await step
        appends = [append(store, "other")]
        await until(lambda: "staged=1" in repr(store))
        await turns(5)
        assert not appends[0].done()  # groups are held back whatever is in them
        await anext(subscription)
        await asyncio.gather(*appends)


async def test_history_that_fills_its_queue_holds_back_too_once_it_is_live(store: EventStore) -> None:
    await fill(store, 3)
    async with store.subscribe(on_slow="wait", queue_size=3, after=0) as subscription:
        seen: list[int] = []
        appends = []
        async for event in subscription:
            seen.append(event.event_id)
            if event.event_id == 1:
                appends = [append(store) for _ in range(2)]
            if event.event_id == 5:
                break
        assert seen == [1, 2, 3, 4, 5]
        assert ids(await asyncio.gather(*appends)) == [4, 5]


# wait: the body of the loop


async def directly(store: EventStore) -> None:
    await store.append("body", "Echo", {})


async def through_gather(store: EventStore) -> None:
    await asyncio.gather(*(store.append("body", "Echo", {}) for _ in range(3)))


async def through_a_task(store: EventStore) -> None:
    await asyncio.create_task(store.append("body", "Echo", {}))


async def through_wait_for(store: EventStore) -> None:
    await asyncio.wait_for(store.append("body", "Echo", {}), 3600)


async def through_a_task_group(store: EventStore) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(directly(store))


async def as_a_batch(store: EventStore) -> None:
    await store.append_batch("body", [("Echo", {})] * 5)


WAYS = [directly, through_gather, through_a_task, through_wait_for, through_a_task_group, as_a_batch]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("batches", [False, True], ids=["events", "batches"])
async def test_the_body_of_the_loop_appends_while_all_others_are_held_back(
    store: EventStore, way: Callable[[EventStore], Awaitable[None]], batches: bool
) -> None:
    await fill(store, 1)
    async with store.subscribe(on_slow="wait", queue_size=2, stream_id="s") as subscription:
        async for got in subscription.batches(1) if batches else subscription:
            assert got
            await fill(store, 2)  # now its queue is full
            others = await held(store, 2)
            await way(store)
            assert not any(task.done() for task in others)
            break
        assert await store.stream_version("body") > 0
    await asyncio.gather(*others)


async def test_a_body_that_fills_its_own_queue_loses_nothing(store: EventStore) -> None:
    await fill(store, 1)
    seen: list[int] = []
    async with store.subscribe(on_slow="wait", queue_size=2) as subscription:
        async for event in subscription:
            seen.append(event.event_id)
            if event.event_id <= 5:
                for _ in range(4):
                    await directly(store)
            if event.event_id == 21:
                break
    assert seen == list(range(1, 22))


async def test_a_producer_started_in_the_block_before_the_loop_is_held_back(store: EventStore) -> None:
    async def produce() -> None:
        for n in range(30):
            await store.append("s", "E", {"n": n})

    async with store.subscribe(on_slow="wait", queue_size=5) as subscription:
        producing = asyncio.create_task(produce())
        seen: list[int] = []
        async for event in subscription:
            seen.append(event.event_id)
            await turns(30)
            assert await store.head() - event.event_id <= 5
            if event.event_id == 30:
                break
        await producing
    assert seen == list(range(1, 31))
    assert subscription.statistics().fell_behind_count == 0


@pytest.mark.parametrize("waited", [False, True], ids=["the next event is there", "the next event is waited for"])
async def test_a_task_started_in_the_body_is_held_back_once_the_next_turn_begins(
    store: EventStore, waited: bool
) -> None:
    gate = asyncio.Event()

    async def later() -> None:
        await gate.wait()
        await store.append("late", "E", {})

    async with store.subscribe(on_slow="wait", queue_size=3, stream_id="s") as subscription:
        step = await waiting(subscription)
        await fill(store, 2 if waited else 3)
        await step
        await anext(subscription)
        left = asyncio.create_task(later())  # in the body, which ends with the next step
        step = await waiting(subscription) if waited else asyncio.ensure_future(anext(subscription))
        if not waited:
            await step
        await fill(store, 4)
        await step
        gate.set()
        await until(lambda: "staged=1" in repr(store))
        await turns(5)
        assert not left.done()
        await take(subscription, 2)
        await left


async def test_once_the_subscription_is_closed_its_reader_is_like_any_other_caller(store: EventStore) -> None:
    await fill(store, 1)
    async with store.subscribe(on_slow="wait", queue_size=1) as subscription:
        async for _ in subscription:
            break
    async with full(store) as other:
        appending = append(store)
        await until(lambda: "staged=1" in repr(store))
        await turns(5)
        assert not appending.done()
        await take(other, 1)
        await appending


async def test_loops_of_two_waiting_subscriptions_may_be_nested(store: EventStore) -> None:
    await fill(store, 1)
    async with store.subscribe(on_slow="wait", queue_size=1, stream_id="s") as outer:
        async for _ in outer:
            async with store.subscribe(on_slow="wait", queue_size=1) as inner:
                async for _ in inner:
                    await fill(store, 2)  # fills the queue of the outer one
                    break
            # Behind the inner loop, this is still the body of the outer one.
            async with asyncio.timeout(ALARM_S):
                await directly(store)
            break
