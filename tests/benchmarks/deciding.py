"""What a decision costs: to load a stream, decide, and append, beside the bare append."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiostore import Decider, Event, EventStore, NewEvent, Query, StreamAppend
from aiostore.events import EventLike

from .contest import WARM_UP, Contest, Goal, Measure, Row, idle, latency, payload
from .subjects import open_aiostore

STREAM_EVENTS = 100


def count(placed: int, event: Event) -> int:
    """How many orders were paid: looks into each event."""
    paid: bool = event.data["paid"]
    return placed + paid


def place(number: int | None, placed: int) -> list[EventLike]:
    """One more order, or none."""
    assert placed == STREAM_EVENTS
    return [] if number is None else [("OrderPlaced", payload(number))]


def place_over(command: tuple[int, str], placed: int) -> StreamAppend:
    """The same over a query."""
    number, stream = command
    return StreamAppend(stream, place(number, placed))


DECIDER = Decider(0, count, place)
WITH_SNAPSHOT = Decider(0, count, place, name="placed", snapshot_every=STREAM_EVENTS)
OVER = Decider(0, count, place_over)


async def by_hand(store: EventStore, name: str, number: int) -> None:
    """The same without a decider."""
    placed = 0
    async for events in store.read_stream(name).batches():
        for event in events:
            placed = count(placed, event)
    await store.append_batch(name, place(number, placed), expected_version=STREAM_EVENTS)


def decisions(times: int) -> Contest:
    """A decision at a time, each on a stream of its own with 100 events, beside single durable appends."""
    streams = itertools.count()  # each is decided on once, so that all have the same length

    def over_streams(decide: Callable[[EventStore, str, int], Awaitable[object]], *, snapshots: bool = False) -> Any:
        @asynccontextmanager
        async def opened(directory: Path) -> AsyncIterator[Measure]:
            async with open_aiostore(directory) as store:

                async def measure() -> float:
                    names = [f"order-{next(streams)}" for _ in range(WARM_UP + times)]
                    for name in names:
                        events = [NewEvent("OrderPlaced", payload(n), tags=[name]) for n in range(STREAM_EVENTS)]
                        await store.append_batch(name, events)
                        if snapshots:
                            await WITH_SNAPSHOT.execute(store, name, None)
                            await WITH_SNAPSHOT.flush(store)
                    await idle()
                    return await latency(lambda number: decide(store, names[number], number), times)

                yield measure

        return opened

    return Contest(
        f"a decision on a stream of {STREAM_EVENTS}, durable, p50",
        "µs",
        False,
        {
            "Decider.execute": over_streams(lambda store, name, n: DECIDER.execute(store, name, n)),
            "read, decide, append by hand": over_streams(by_hand),
            "append": over_streams(lambda store, name, n: store.append(name, "OrderPlaced", payload(n))),
            "Decider.execute, from a snapshot": over_streams(
                lambda store, name, n: WITH_SNAPSHOT.execute(store, name, n), snapshots=True
            ),
            "Decider.execute_over": over_streams(
                lambda store, name, n: OVER.execute_over(store, Query.where(tags=name), (n, name))
            ),
        },
        [
            Row("Decider.execute", "append", Goal(2.0, at_most=True)),
            Row("Decider.execute", "read, decide, append by hand"),
            Row("Decider.execute, from a snapshot", "append"),
            Row("Decider.execute_over", "append"),
        ],
    )
