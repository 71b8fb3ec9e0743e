"""Appends as wishes, and a plain model of a store that takes them one after another."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from aiostore import (
    STREAM_EXISTS,
    AppendCondition,
    AppendConditionFailed,
    ConcurrencyConflict,
    Event,
    EventStore,
    EventStoreError,
    IdempotencyConflict,
    NewEvent,
    Query,
    QueryItem,
    StreamAppend,
)
from aiostore.events import StreamState


@dataclass(frozen=True)
class Wish:
    """One append, as the model and the store are both asked for it."""

    parts: tuple[tuple[str, tuple[NewEvent, ...], int | StreamState | None], ...]
    condition: AppendCondition | None = None
    key: str | None = None

    def send(self, store: EventStore) -> Coroutine[Any, Any, list[Event]]:
        """The append itself."""
        appends = [StreamAppend(stream_id, events, expected) for stream_id, events, expected in self.parts]
        return store.append_streams(appends, condition=self.condition, idempotency_key=self.key)


Row = tuple[int, str, int, str, int, tuple[str, ...]]


@dataclass
class Model:
    """A store that takes one append after another, in plain Python."""

    rows: list[Row] = field(default_factory=list)
    keys: dict[tuple[str, str], list[Row]] = field(default_factory=dict)

    def version(self, stream_id: str) -> int:
        return sum(row[1] == stream_id for row in self.rows)

    def matches(self, row: Row, query: Query) -> bool:
        return not query.items or any(
            (not item.types or row[3] in item.types)
            and set(item.tags) <= set(row[5])
            and row[1].startswith(item.stream_prefix or "")
            for item in query.items
        )

    def append(self, wish: Wish) -> object:
        new: list[Row] = []
        for stream_id, events, _ in wish.parts:
            for number, event in enumerate(events, self.version(stream_id) + 1):
                event_id = len(self.rows) + len(new) + 1
                new.append((event_id, stream_id, number, event.event_type, event.data["n"], tuple(event.tags)))
        key = next(((part[0], wish.key) for part in wish.parts if part[1]), None) if wish.key else None
        if wish.key and wish.parts and key is None:
            key = (wish.parts[0][0], wish.key)
        if key in self.keys:
            stored = self.keys[key]
            same = [(row[1], *row[3:]) for row in stored] == [(row[1], *row[3:]) for row in new]
            return stored if same else (IdempotencyConflict, (*key, stored[0][0]))
        for stream_id, _, expected in wish.parts:
            actual = self.version(stream_id)
            if expected is not None and (actual == 0 if expected is STREAM_EXISTS else actual != expected):
                return ConcurrencyConflict, (stream_id, expected, actual)
        if wish.condition is not None:
            for row in self.rows:
                if row[0] > (wish.condition.after or 0) and self.matches(row, wish.condition.query):
                    return AppendConditionFailed, (row[0],)
        self.rows += new
        if key is not None and new:
            self.keys[key] = new
        return new


def plain(result: list[Event] | BaseException) -> object:
    """What an append or a read came to, as the model says it."""
    if isinstance(result, EventStoreError):
        return type(result), result.args
    assert isinstance(result, list)
    return [(e.event_id, e.stream_id, e.version, e.event_type, e.data["n"], e.tags) for e in result]


streams = st.sampled_from(["a", "b", "ab"])
types = st.sampled_from(["A", "B"])
tags = st.lists(st.sampled_from(["x", "y"]), max_size=2, unique=True).map(tuple)
news = st.builds(NewEvent, types, st.fixed_dictionaries({"n": st.integers(0, 1)}), tags=tags)
items = st.builds(QueryItem, st.lists(types, max_size=1), tags, st.sampled_from([None, "a", "ab"]))
conditions = st.builds(
    AppendCondition,
    st.lists(items, max_size=2).map(lambda chosen: Query(*chosen)),
    st.one_of(st.none(), st.integers(0, 20)),
)
expectations = st.one_of(st.none(), st.none(), st.integers(0, 6), st.just(STREAM_EXISTS))
parts = st.tuples(streams, st.lists(news, max_size=2).map(tuple), expectations)
wishes = st.builds(
    Wish,
    st.lists(parts, min_size=1, max_size=2, unique_by=lambda part: part[0]).map(tuple),
    st.one_of(st.none(), st.none(), conditions),
    st.one_of(st.none(), st.sampled_from(["k", "l"])),
)
