"""What happens after so many seconds: the store's alarms, by a clock that jumps."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from aiostore import END, Event, EventStore, Subscription
from aiostore.inbox import STALLED_S
from aiostore.listeners import SLOW_HANDLER_S
from tests.conformance import ids
from tests.scheduler import take, turns, until, waiting
from tests.scheduler.engines import MakePlace, plain_memory, restless_files, restless_memory
from tests.scheduler.loop import SeededLoop

Play = Callable[[Callable[[EventStore], Coroutine[Any, Any, None]]], None]


@pytest.fixture(params=[plain_memory, restless_memory, restless_files], ids=lambda make: make.__name__)
def play(request: pytest.FixtureRequest, tmp_path: Path) -> Play:
    """Plays a scenario over an empty store by a clock that jumps."""
    make: MakePlace = request.param

    def play(scenario: Callable[[EventStore], Coroutine[Any, Any, None]]) -> None:
        async def run() -> None:
            async with EventStore(make(random.Random(1), tmp_path / "store", None)()) as store:
                await scenario(store)

        SeededLoop().play(run())

    return play


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, logger="aiostore")
    return caplog


def now() -> float:
    return asyncio.get_running_loop().time()


def test_the_alarms_are_the_documented_ones() -> None:
    assert (SLOW_HANDLER_S, STALLED_S) == (5, 30)


# Handlers


def test_a_handler_that_takes_more_than_5_seconds_is_named_in_a_warning(
    play: Play, log: pytest.LogCaptureFixture
) -> None:
    async def sluggish(events: list[Event]) -> None:
        await asyncio.sleep(5.1)

    async def scenario(store: EventStore) -> None:
        store.on_commit(sluggish)
        await store.append("s", "E", {})
        assert [record.levelname for record in log.records] == ["WARNING"]
        assert "sluggish" in log.text
        assert "5 s" in log.text
        await store.append("s", "E", {})
        assert len(log.records) == 2  # once for each call

    play(scenario)


def test_a_handler_that_takes_less_is_not(play: Play, log: pytest.LogCaptureFixture) -> None:
    async def quick_enough(events: list[Event]) -> None:
        await asyncio.sleep(4.9)

    async def scenario(store: EventStore) -> None:
        store.on_commit(quick_enough)
        store.on_commit(quick_enough)
        for _ in range(3):
            await store.append("s", "E", {})
        await asyncio.sleep(100)
        assert not log.records

    play(scenario)


def test_a_handler_that_waits_for_another_tasks_append_is_named_and_can_be_cancelled(
    play: Play, log: pytest.LogCaptureFixture
) -> None:
    async def scenario(store: EventStore) -> None:
        tasks: list[asyncio.Task[Any]] = []

        async def forbidden(events: list[Event]) -> None:
            if events[0].event_id == 1:
                task = asyncio.current_task()
                assert task is not None
                tasks.append(task)
                await other

        async def append_when_told() -> Event:
            await until(lambda: tasks)
            return await store.append("s", "E", {})

        other = asyncio.create_task(append_when_told())
        listener = store.on_commit(forbidden)
        first = asyncio.create_task(store.append("s", "E", {}))
        await asyncio.sleep(6)
        assert "forbidden" in log.text
        assert not other.done()
        assert not first.done()
        tasks[0].cancel()  # the one way out
        await first
        assert isinstance(listener.error, asyncio.CancelledError)
        await asyncio.wait([other])

    play(scenario)


# Subscriptions that hold appends back


async def stalled(store: EventStore, subscription: Subscription) -> asyncio.Task[Event]:
    """Fill its queue of two, and have an append held back."""
    step = await waiting(subscription)
    for _ in range(3):
        await store.append("s", "E", {})
    await step
    held = asyncio.create_task(store.append("s", "E", {}), context=contextvars.Context())
    await turns(30)
    assert "staged=1" in repr(store)
    return held


async def append_ten(store: EventStore) -> None:
    for _ in range(10):
        await store.append("s", "E", {})


def test_after_30_seconds_without_a_step_it_lets_appends_go_and_catches_up(
    play: Play, log: pytest.LogCaptureFixture
) -> None:
    async def scenario(store: EventStore) -> None:
        async with store.subscribe(on_slow="wait", queue_size=2) as subscription:
            held = await stalled(store, subscription)
            began = now()
            assert (await held).event_id == 4
            assert now() - began == pytest.approx(30, abs=0.1)
            assert [record.levelname for record in log.records] == ["WARNING"]
            assert "30 s" in log.text
            assert not subscription.is_live
            # From now on it is one that catches up.
            for event_id in (2, 15):
                await asyncio.create_task(append_ten(store), context=contextvars.Context())
                assert now() - began == pytest.approx(30, abs=0.1)
                there = await store.head() - event_id + 1
                assert await take(subscription, there) == list(range(event_id, event_id + there))
                step = await waiting(subscription)
                step.cancel()
                assert subscription.is_live
            assert len(log.records) == 1

    play(scenario)


def test_a_reader_that_is_slow_but_goes_on_holds_appends_as_long_as_it_takes(
    play: Play, log: pytest.LogCaptureFixture
) -> None:
    async def scenario(store: EventStore) -> None:
        async with store.subscribe(on_slow="wait", queue_size=2, after=END) as subscription:
            step = await waiting(subscription)
            await store.append_batch("s", [("E", {})] * 6)  # more than its queue
            await step
            held = asyncio.create_task(store.append("s", "E", {}), context=contextvars.Context())
            for event_id in (2, 3, 4):
                await asyncio.sleep(29)
                assert not held.done()
                assert await take(subscription, 1) == [event_id]
            await asyncio.sleep(29)
            assert not held.done()
            await take(subscription, 1)
            assert (await held).event_id == 7
            assert not log.records

    play(scenario)


def test_a_queue_that_is_not_full_may_stand_still_for_ever(play: Play, log: pytest.LogCaptureFixture) -> None:
    async def scenario(store: EventStore) -> None:
        async with store.subscribe(on_slow="wait", queue_size=3) as subscription:
            step = await waiting(subscription)
            for _ in range(3):
                await store.append("s", "E", {})
            await step
            await asyncio.sleep(3600)
            assert subscription.is_live
            assert subscription.statistics().queued_count == 2
            assert not log.records

    play(scenario)


def test_a_stalled_subscription_that_is_closed_leaves_no_alarm_behind(
    play: Play, log: pytest.LogCaptureFixture
) -> None:
    async def scenario(store: EventStore) -> None:
        async with store.subscribe(on_slow="wait", queue_size=2) as subscription:
            held = await stalled(store, subscription)
        await held
        await asyncio.sleep(100)
        assert not log.records

    play(scenario)


def test_the_body_may_take_longer_than_30_seconds_and_append(play: Play, log: pytest.LogCaptureFixture) -> None:
    async def scenario(store: EventStore) -> None:
        await store.append("s", "E", {})
        seen: list[int] = []
        async with store.subscribe(on_slow="wait", queue_size=1) as subscription:
            async for event in subscription:
                seen.append(event.event_id)
                if event.event_id == 1:
                    for _ in range(3):
                        await asyncio.sleep(20)
                        await store.append("s", "E", {})
                if event.event_id == 4:
                    break
        assert seen == [1, 2, 3, 4]

    play(scenario)


def test_of_two_stalled_subscriptions_the_later_one_decides(play: Play) -> None:
    async def scenario(store: EventStore) -> None:
        async with (
            store.subscribe(on_slow="wait", queue_size=1) as one,
            store.subscribe(on_slow="wait", queue_size=1) as two,
        ):
            steps = [await waiting(one), await waiting(two)]
            await store.append_batch("s", [("E", {})] * 4)
            assert ids([await step for step in steps]) == [1, 1]
            began = now()
            await asyncio.sleep(10)
            await take(two, 1)  # a step, but its queue is still full
            held = asyncio.create_task(store.append("s", "E", {}), context=contextvars.Context())
            await held
            assert now() - began == pytest.approx(40, abs=0.1)
            assert await take(one, 4) == [2, 3, 4, 5]
            assert await take(two, 3) == [3, 4, 5]

    play(scenario)
