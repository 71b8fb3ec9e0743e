"""What clients noted of their appends, and what must hold of it when it is laid beside the log."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from aiostore import Event

BUDGET = max(1, int(os.environ.get("AIOSTORE_POSTGRES_BUDGET", "1")))
"""How much is done: 1 for a quick run."""

STORED, CONFLICT, MATCHED, REFUSED, UNKNOWN = "stored", "conflict", "matched", "refused", "unknown"


class Content(msgspec.Struct, frozen=True):
    """An event as it was to be stored."""

    stream_id: str
    event_type: str
    tags: tuple[str, ...]
    data: dict[str, Any]


class Conflict(msgspec.Struct, frozen=True):
    """A `ConcurrencyConflict`, and the stream's version as read before the append and after it."""

    stream_id: str
    expected: int
    actual: int
    before: int
    later: int


class Noted(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One append and what its caller was told. ``op`` stands in each of its events; with a key, several may share it.

    ``condition``: a tag that no event above an event_id has.
    """

    op: str
    events: list[Content]
    keyed: bool = False
    expected: dict[str, int] = {}
    condition: tuple[str, int] | None = None
    outcome: str = REFUSED
    places: list[tuple[int, int]] = []
    conflict: Conflict | None = None
    match: int = 0
    error: str = ""


def check_dense(log: Sequence[Event]) -> None:
    """The log is dense in event_ids and in versions, and its time never goes back."""
    assert [event.event_id for event in log] == list(range(1, len(log) + 1))
    versions: dict[str, int] = defaultdict(int)
    for event in log:
        versions[event.stream_id] += 1
        assert event.version == versions[event.stream_id], event
    times = [event.timestamp for event in log]
    assert times == sorted(times)


def check_notes(log: Sequence[Event], notes: Iterable[Noted]) -> None:
    """Everything in the log was asked for and stands there once, and every caller was told the truth."""
    check_dense(log)
    stored: dict[str, list[Event]] = defaultdict(list)
    for event in log:
        stored[event.data["op"]].append(event)
    asked = set()
    for noted in notes:
        asked.add(noted.op)
        events = stored.get(noted.op, [])
        if events:
            _check_whole(noted, events)
        if noted.outcome == STORED:
            assert events, f"acknowledged and lost: {noted}"
            assert noted.places == [(event.event_id, event.version) for event in events], noted
            _check_expectations(log, noted, events)
        elif noted.outcome != UNKNOWN and not noted.keyed:
            assert not events, f"refused and stored: {noted}, {events}"
        if noted.conflict is not None:
            _check_conflict(log, stored, noted.conflict)
        if noted.outcome == MATCHED:
            assert noted.condition is not None
            assert noted.match == _first_match(log, *noted.condition), noted
    assert asked >= stored.keys(), f"never asked for: {stored.keys() - asked}"


def _check_whole(noted: Noted, events: Sequence[Event]) -> None:
    contents = [Content(event.stream_id, event.event_type, event.tags, event.data) for event in events]
    assert contents == noted.events, f"not once, not whole or not as asked: {noted}"
    assert events[-1].event_id - events[0].event_id == len(events) - 1, f"something lies inside {noted}"


def _check_expectations(log: Sequence[Event], noted: Noted, events: Sequence[Event]) -> None:
    for stream_id, expected in noted.expected.items():
        first = next(event for event in events if event.stream_id == stream_id)
        assert first.version == expected + 1, noted
    if noted.condition is not None:
        match = _first_match(log, *noted.condition)
        assert match is None or match >= events[0].event_id, noted


def _check_conflict(log: Sequence[Event], stored: dict[str, list[Event]], conflict: Conflict) -> None:
    """The actual version is one that the stream had between two commits, while the append was under way."""
    assert conflict.actual != conflict.expected, conflict
    assert conflict.before <= conflict.actual <= conflict.later, conflict
    if conflict.actual:
        there = next(e for e in log if e.stream_id == conflict.stream_id and e.version == conflict.actual)
        of_commit = [e for e in stored[there.data["op"]] if e.stream_id == conflict.stream_id]
        assert of_commit[-1] == there, f"a version inside a commit: {conflict}"


def _first_match(log: Sequence[Event], tag: str, after: int) -> int | None:
    return next((event.event_id for event in log[after:] if tag in event.tags), None)


def errors_of(notes: Iterable[Noted]) -> set[str]:
    """What else they were told."""
    return {noted.error for noted in notes if noted.error}


class Tally(msgspec.Struct):
    """The state of the projection that clients keep: it differs if an event is missing, doubled or out of order."""

    counts: dict[str, int] = {}
    chain: int = 0

    def add(self, event: Event) -> None:
        """Take an event."""
        self.counts[event.stream_id] = self.counts.get(event.stream_id, 0) + 1
        self.chain = (self.chain * 31 + event.event_id * 7 + len(event.data["op"])) % (2**61 - 1)


def tally_of(log: Iterable[Event]) -> Tally:
    """That of a replay."""
    tally = Tally()
    for event in log:
        tally.add(event)
    return tally
