"""A store of many events as a service would have left it, and the same events in SQLite."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec

from aiostore import EventStore, NewEvent

from .contest import BATCH_EVENTS, TASKS, idle, payload
from .peers import PRAGMAS, encode, now

STREAM_EVENTS = 100
RUN_EVENTS = 20
"""So many events of a stream come in one append."""
STREAMS_IN_USE = 200
"""Streams that get events at a time; one that has all of its events makes room for the next."""
TAG_EVENTS = 100
"""So many events have the same tag, evenly spread."""

SCHEMA = """
CREATE TABLE events (
    event_id INTEGER PRIMARY KEY AUTOINCREMENT,
    stream_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    event_type TEXT NOT NULL,
    timestamp TEXT NOT NULL,
    data BLOB NOT NULL,
    tags TEXT NOT NULL,
    UNIQUE (stream_id, version)
)
"""
INSERT = "INSERT INTO events (stream_id, version, event_type, timestamp, data, tags) VALUES (?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True)
class Run:
    """Neighbouring events of a stream."""

    stream_id: str
    version: int
    """Of the event before them."""
    events: list[NewEvent]


@dataclass(frozen=True)
class Contents:
    """Which events there are; a multiple of 100."""

    events_count: int

    @property
    def streams_count(self) -> int:
        """How many streams they are in."""
        return self.events_count // STREAM_EVENTS

    @property
    def tags_count(self) -> int:
        """How many tags there are."""
        return self.events_count // TAG_EVENTS

    def stream(self, number: int) -> str:
        """The name of a stream."""
        return f"order-{number:08}"

    def tag(self, number: int) -> str:
        """The tag of an event, or one of the tags."""
        return f"customer-{number % self.tags_count:08}"

    def runs(self) -> Iterator[Run]:
        """All events in their order; which of the streams in use comes next is by chance."""
        chance = random.Random(3)
        waiting = iter(range(self.streams_count))
        in_use = [[number, 0] for number in islice(waiting, STREAMS_IN_USE)]
        for first in range(0, self.events_count, RUN_EVENTS):
            place = chance.randrange(len(in_use))
            number, version = in_use[place]
            events = [
                NewEvent("OrderPlaced", payload(first + n), tags=[self.tag(first + n)]) for n in range(RUN_EVENTS)
            ]
            yield Run(self.stream(number), version, events)
            in_use[place][1] += RUN_EVENTS
            if in_use[place][1] == STREAM_EVENTS:
                following = next(waiting, None)
                if following is None:
                    in_use.pop(place)
                else:
                    in_use[place] = [following, 0]

    async def fill(self, directory: Path) -> None:
        """Append them durably to a new store, 64 appends at a time, and let it finish what it does beside."""
        runs = self.runs()
        async with EventStore(directory) as store:

            async def append() -> None:
                for run in runs:
                    await store.append_batch(run.stream_id, run.events)

            await asyncio.gather(*(append() for _ in range(TASKS)))
            assert await store.head() == self.events_count
            await idle()

    def fill_sqlite(self, path: Path) -> None:
        """Insert them into a new database, by about 1,000 in a transaction."""
        runs = self.runs()
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            for statement in (*PRAGMAS, SCHEMA):
                db.execute(statement)
            while chunk := list(islice(runs, BATCH_EVENTS // RUN_EVENTS)):
                timestamp = now()
                db.execute("BEGIN IMMEDIATE")
                db.executemany(
                    INSERT,
                    (
                        (
                            run.stream_id,
                            version,
                            event.event_type,
                            timestamp,
                            encode(event.data),
                            msgspec.json.encode(event.tags).decode(),
                        )
                        for run in chunk
                        for version, event in enumerate(run.events, run.version + 1)
                    ),
                )
                db.execute("COMMIT")


def bytes_in(directory: Path) -> int:
    """What the files of a directory hold."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
