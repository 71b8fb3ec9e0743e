"""Rows of the server as events and commits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final

from aiostore.engine import Commit
from aiostore.events import NO_METADATA, Event, event_size

COLUMNS: Final = "e.pos, s.name, e.version, e.type, e.ts, e.data, e.metadata, e.tags"
"""What makes an event, of ``events e`` and ``streams s``, in the order that `events_of` takes."""


def timestamp_text(moment: datetime) -> str:
    """A time in UTC as in the log."""
    return moment.isoformat(timespec="microseconds")[: -len("+00:00")] + "Z"


def events_of(rows: Iterable[Sequence[Any]]) -> list[Event]:
    """A new event for each row."""
    events: list[Event] = []
    moment, text = None, ""
    for row in rows:
        if row[4] != moment:  # most of a group's rows have one timestamp
            moment = row[4]
            text = timestamp_text(row[4])
        metadata, tags = row[6], row[7]
        events.append(
            Event(
                row[0],
                row[1],
                row[2],
                row[3],
                text,
                row[5],
                NO_METADATA if metadata is None else metadata,
                tuple(tags) if tags else (),
            )
        )
    return events


def commits_of(rows: Sequence[Sequence[Any]]) -> list[Commit]:
    """The whole commits that rows with ``key`` and ``more`` behind their `COLUMNS` make up.

    A last one that is not whole is left out, unless it is the only one.
    """
    commits: list[Commit] = []
    events = events_of(rows)
    start = 0
    for index, row in enumerate(rows):
        if row[9] == 0:
            commits.append(_commit(events[start : index + 1], rows[start][8]))
            start = index + 1
    if start < len(rows) and not commits:
        commits.append(_commit(events[start:], rows[start][8]))
    return commits


def _commit(events: list[Event], key: str | None) -> Commit:
    return Commit(events, key, sum(map(event_size, events)))
