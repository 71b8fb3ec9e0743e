"""What projections cost: contests in which ours is the peer of ours."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiostore import Event, EventStore, LiveProjection, Projection

from .contest import TASKS, Contest, Goal, Measure, Row, contender, payload, rate, together
from .subjects import filled_aiostore, open_aiostore


def count(state: dict[str, Any], event: Event) -> None:
    """A trivial handler."""
    state["count"] = state.get("count", 0) + 1


def live_projection(times: int) -> Contest:
    """Single durable appends by 64 tasks with a live projection, beside the same without one."""

    async def append_all(store: EventStore) -> int:
        return await together(lambda name, n: store.append(name, "OrderPlaced", payload(n)), times)

    @asynccontextmanager
    async def with_projection(directory: Path) -> AsyncIterator[Measure]:
        async with open_aiostore(directory) as store:
            projection: LiveProjection[dict[str, Any]] = LiveProjection("count", store)
            projection.when("OrderPlaced", count)
            async with projection:
                yield lambda: rate(append_all(store))
                assert projection.state["count"] == await store.head()

    @asynccontextmanager
    async def with_listener(directory: Path) -> AsyncIterator[Measure]:
        async def ignore(events: list[Event]) -> None:
            pass

        async with open_aiostore(directory) as store:
            store.on_commit(ignore)
            yield lambda: rate(append_all(store))

    return Contest(
        f"single durable appends by {TASKS} tasks, followed",
        "events/s",
        True,
        {
            "with a live projection": with_projection,
            "without": contender(open_aiostore, lambda store: rate(append_all(store))),
            "with a handler of on_commit": with_listener,
        },
        # An append costs at most a quarter more: the rate is at least 1 / 1.25 of that without.
        [
            Row("with a live projection", "without", Goal(0.8, at_most=False)),
            Row("with a handler of on_commit", "without"),
        ],
    )


def catch_up(events_count: int) -> Contest:
    """A projection that reads all there is, beside a loop that does the same by itself."""

    async def projected(store: EventStore) -> int:
        projection: Projection[int] = Projection("paid", store, initial=lambda: 0)
        projection.when("OrderPlaced", lambda paid, event: paid + event.data["paid"])
        return await projection.catch_up()

    async def one_by_one(store: EventStore) -> int:
        paid = 0
        async for event in store.read_all():
            paid += event.data["paid"]
        return paid

    async def by_batches(store: EventStore) -> int:
        paid = 0
        async for events in store.read_all().batches():
            for event in events:
                paid += event.data["paid"]
        return paid

    def over_all(work: Callable[[EventStore], Awaitable[int]]) -> Callable[[EventStore], Awaitable[float]]:
        async def measure(store: EventStore) -> float:
            started = time.perf_counter()
            assert await work(store) == await store.head()
            return await store.head() / (time.perf_counter() - started)

        return measure

    def filled(work: Callable[[EventStore], Awaitable[int]]) -> Any:
        return contender(lambda directory: filled_aiostore(directory, events_count), over_all(work))

    return Contest(
        f"catching up with {events_count:,}, decoded",
        "events/s",
        True,
        {
            "Projection.catch_up": filled(projected),
            "read_all, async for": filled(one_by_one),
            "read_all, batches": filled(by_batches),
        },
        [
            Row("Projection.catch_up", "read_all, async for", Goal(0.8, at_most=False)),
            Row("Projection.catch_up", "read_all, batches", Goal(0.8, at_most=False)),
        ],
    )


def projection_contests(scale: float) -> list[Contest]:
    """All of them; ``scale`` 1 is the full size."""
    return [live_projection(max(TASKS, round(12_800 * scale))), catch_up(max(1_000, round(200_000 * scale)))]
