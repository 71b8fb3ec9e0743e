"""What following costs: the way to a live subscriber, many of them, and what they take from those who append."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from pathlib import Path

from aiostore import END, EventStore, Subscription

from .contest import (
    TASKS,
    WARM_UP,
    Contender,
    Contest,
    Goal,
    Measure,
    Row,
    batch_of_payloads,
    contender,
    latency,
    median_us,
    payload,
    rate,
    shared,
    stream,
    together,
)
from .subjects import filled_aiostore, open_aiostore

FAN_OUT_BATCH_EVENTS = 100
WRITER_BATCH_EVENTS = 100


def live(times: int) -> Contest:
    """From the call of append to the body of a live ``async for``, beside the return of that same append."""
    returned: list[float] = []

    async def delivery(store: EventStore) -> float:
        called, back, seen = [], [], []

        async def read(events: Subscription) -> None:
            async for _ in events:
                seen.append(time.perf_counter())
                if len(seen) == WARM_UP + times:
                    break

        async with store.subscribe(after=END) as events, asyncio.TaskGroup() as group:
            group.create_task(read(events))
            for number in range(WARM_UP + times):
                called.append(time.perf_counter())
                await store.append("order-1", "OrderPlaced", payload(number))
                back.append(time.perf_counter())
        returned.append(median_us(called, back))
        return median_us(called, seen)

    async def just_returned(directory: Path) -> float:
        return returned[-1]

    return Contest(
        "append to the body of a live async for, p50",
        "µs",
        False,
        {
            "aiostore": contender(open_aiostore, delivery),
            "return of that append": contender(nullcontext, just_returned),
        },
        [Row("aiostore", "return of that append", Goal(1.15, at_most=True))],
    )


class Audience:
    """Live subscribers, each in a task of its own, who wait for an event that the next round ends with."""

    def __init__(self) -> None:
        self.last_event_id = 0
        """Where the round ends."""
        self.waiting_count = 0
        self.all_there = asyncio.Event()

    async def one_by_one(self, events: Subscription) -> None:
        """Read as one would."""
        async for event in events:
            if event.event_id == self.last_event_id:
                self._arrived()

    async def by_batches(self, events: Subscription) -> None:
        """Read what is there, as lists."""
        async for batch in events.batches():
            if batch[-1].event_id == self.last_event_id:
                self._arrived()

    def _arrived(self) -> None:
        self.waiting_count -= 1
        if not self.waiting_count:
            self.all_there.set()


@asynccontextmanager
async def listening(tasks: list[asyncio.Task[None]]) -> AsyncIterator[None]:
    """End the tasks in the end; an error of one of them is raised."""
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    for error in ended:
        if isinstance(error, Exception):
            raise error


async def until_live(subscriptions: list[Subscription]) -> None:
    """Wait until all of them follow."""
    while not all(events.is_live for events in subscriptions):  # noqa: ASYNC110 (thousands, with no event in common)
        await asyncio.sleep(0.01)


def fan_out(subscribers_count: int, events_count: int) -> Contest:
    """Live subscribers to all events: how many events a second come out at them together, until the last has the last.

    They are appended durably, by batches of 100 one after the other, or one by one by 64 tasks.
    """
    batch = batch_of_payloads(FAN_OUT_BATCH_EVENTS)
    events_count = max(1, events_count // FAN_OUT_BATCH_EVENTS) * FAN_OUT_BATCH_EVENTS

    async def by_batches(store: EventStore) -> int:
        for number in range(events_count // FAN_OUT_BATCH_EVENTS):
            await store.append_batch(stream(number), batch)
        return events_count

    async def by_tasks(store: EventStore) -> int:
        return await together(lambda name, n: store.append(name, "OrderPlaced", payload(n)), events_count)

    def followed(
        read: Callable[[Audience, Subscription], Awaitable[None]],
        append_all: Callable[[EventStore], Awaitable[int]],
        appended_count: int,
    ) -> Contender:
        @asynccontextmanager
        async def opened(directory: Path) -> AsyncIterator[Measure]:
            async with open_aiostore(directory) as store, AsyncExitStack() as stack:
                audience = Audience()
                subscriptions = [
                    await stack.enter_async_context(store.subscribe(after=END)) for _ in range(subscribers_count)
                ]

                async def deliver() -> int:
                    audience.last_event_id = await store.head() + appended_count
                    audience.waiting_count = subscribers_count
                    audience.all_there.clear()
                    count = await append_all(store)
                    assert count == appended_count
                    await audience.all_there.wait()
                    return count * subscribers_count

                async def reading(events: Subscription) -> None:
                    await read(audience, events)

                tasks = [asyncio.create_task(reading(events)) for events in subscriptions]
                await stack.enter_async_context(listening(tasks))
                await until_live(subscriptions)
                yield lambda: rate(deliver())

        return opened

    by_tasks_count = max(1, events_count // TASKS) * TASKS
    return Contest(
        f"{subscribers_count:,} live subscribers to all, deliveries",
        "events/s",
        True,
        {
            "async for, batches of 100": followed(Audience.one_by_one, by_batches, events_count),
            "batches(), batches of 100": followed(Audience.by_batches, by_batches, events_count),
            f"async for, {TASKS} tasks": followed(Audience.one_by_one, by_tasks, by_tasks_count),
            f"batches(), {TASKS} tasks": followed(Audience.by_batches, by_tasks, by_tasks_count),
        },
        [
            Row("async for, batches of 100", goal=Goal(1_000_000, at_most=False)),
            Row("batches(), batches of 100", goal=Goal(1_000_000, at_most=False)),
            Row(f"async for, {TASKS} tasks"),
            Row(f"batches(), {TASKS} tasks"),
        ],
    )


def streams_followed(subscribers_count: int, times: int) -> Contest:
    """The latency of a durable append to a stream that is followed live, as are many others, each by a subscriber."""

    def appended(store: EventStore) -> Awaitable[float]:
        return latency(
            lambda n: store.append(f"order-{n * 7919 % subscribers_count}", "OrderPlaced", payload(n)), times
        )

    @asynccontextmanager
    async def followed(directory: Path) -> AsyncIterator[Measure]:
        async with open_aiostore(directory) as store, AsyncExitStack() as stack:
            subscriptions = [
                await stack.enter_async_context(store.subscribe(stream_id=f"order-{number}", after=END))
                for number in range(subscribers_count)
            ]

            async def read(events: Subscription) -> None:
                async for _ in events:
                    pass

            tasks = [asyncio.create_task(read(events)) for events in subscriptions]
            await stack.enter_async_context(listening(tasks))
            await until_live(subscriptions)
            yield lambda: appended(store)

    name = f"with {subscribers_count:,} live"
    return Contest(
        "one durable append at a time, its stream followed live, p50",
        "µs",
        False,
        {name: followed, "without": contender(open_aiostore, appended)},
        [Row(name, "without", Goal(1.2, at_most=True))],
    )


@asynccontextmanager
async def one_live_one_catching_up(store: EventStore) -> AsyncIterator[None]:
    """Have one live subscriber, and one that reads all history; arrived, it is followed by another that begins anew."""

    async def follow(events: Subscription) -> None:
        async for _ in events:
            pass

    async def catch_up() -> None:
        while True:
            async with store.subscribe() as events:
                async for _ in events:
                    if events.is_live:
                        break

    async with store.subscribe(after=END) as events:
        tasks = [asyncio.create_task(follow(events)), asyncio.create_task(catch_up())]
        async with listening(tasks):
            await until_live([events])
            yield


def sustained(history_count: int, times: int) -> Contest:
    """Durable appends with one live and one catching-up subscriber, beside the same without them."""
    batch = batch_of_payloads(WRITER_BATCH_EVENTS)

    async def by_tasks(store: EventStore) -> int:
        return await together(lambda name, n: store.append(name, "OrderPlaced", payload(n)), times)

    async def by_batches(store: EventStore) -> int:
        """A writer that has two batches in hand at any time."""
        numbers = iter(range(max(1, times * 4 // WRITER_BATCH_EVENTS)))

        async def writer() -> int:
            written = 0
            for number in numbers:
                written += len(await store.append_batch(stream(number), batch))
            return written

        return sum(await asyncio.gather(writer(), writer()))

    def followed(work: Callable[[EventStore], Awaitable[int]]) -> Callable[[EventStore], Awaitable[float]]:
        async def measure(store: EventStore) -> float:
            async with one_live_one_catching_up(store):
                return await rate(work(store))

        return measure

    history = shared(lambda directory: filled_aiostore(directory, history_count))
    pipelined = f"pipelined batches of {WRITER_BATCH_EVENTS}"
    return Contest(
        "sustained durable appends, 1 live and 1 catching-up subscriber",
        "events/s",
        True,
        {
            f"{TASKS} tasks, with them": contender(history, followed(by_tasks)),
            f"{TASKS} tasks, without": contender(history, lambda store: rate(by_tasks(store))),
            f"{pipelined}, with them": contender(history, followed(by_batches)),
            f"{pipelined}, without": contender(history, lambda store: rate(by_batches(store))),
        },
        [
            Row(f"{TASKS} tasks, with them", f"{TASKS} tasks, without", Goal(0.8, at_most=False)),
            Row(f"{pipelined}, with them", f"{pipelined}, without", Goal(0.8, at_most=False)),
        ],
    )
