"""Which events have which stream, type, tag and key: the terms, an inverted index in memory, and what is asked of one.

A `Source` answers for the events of a range. An engine has one or several, in the order of their events.
"""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from itertools import chain
from typing import NamedTuple, Protocol

from aiostore.engine import Commit, Selection
from aiostore.query import Query, QueryItem

WALKED_IDS = 512
"""So many event_ids are taken out of a source at once."""

NARROWING_MAX = 8
"""Where so many times as many event_ids have another term, to look at the events themselves is cheaper."""


class Kind(bytes, Enum):
    """What a term is the text of; the byte keeps the texts of one kind apart from those of another."""

    STREAM = b"s"
    TYPE = b"t"
    TAG = b"g"
    KEY = b"k"


class Term:
    """What events are found by: a text of a kind. Make one for a whole lookup."""

    __slots__ = ("hashed", "kind", "text")

    def __init__(self, kind: Kind, text: str) -> None:
        self.kind = kind
        self.text = text
        self.hashed: int | None = None
        """What an index by hashes made of it, computed when first needed."""

    def __repr__(self) -> str:
        return f"Term({self.kind.name}, {self.text!r})"


def key_text(stream_id: str, key: str) -> str:
    """The text of the term of an idempotency key; no name has a control character."""
    return f"{stream_id}\0{key}"


class Source(Protocol):
    """An index of the events from the first to the last.

    The event_ids that have a term stand in order, each in a place. There may be others among them (a hash may be that
    of another term), but none is missing.
    """

    @property
    def first_event_id(self) -> int: ...
    @property
    def last_event_id(self) -> int: ...

    def places(self, term: Term, low: int, high: int) -> range:
        """The places of the event_ids from ``low`` to ``high`` that have the term."""
        ...

    def ids(self, term: Term, places: range) -> Sequence[int]:
        """The event_ids in these places, which go up or down by one."""
        ...


class Entry(Protocol):
    """What of an event is entered: an Event, or a line of a log."""

    @property
    def event_id(self) -> int: ...
    @property
    def stream_id(self) -> str: ...
    @property
    def event_type(self) -> str: ...
    @property
    def tags(self) -> Sequence[str]: ...


class Postings:
    """A source in memory: sorted event_ids by term."""

    def __init__(self, first_event_id: int = 1) -> None:
        self.first_event_id = first_event_id
        self.last_event_id = first_event_id - 1
        self._streams: dict[str, array[int]] = {}
        self._types: dict[str, array[int]] = {}
        self._tags: dict[str, array[int]] = {}
        self._keys: dict[str, array[int]] = {}
        self.by_kind = {
            Kind.STREAM: self._streams,
            Kind.TYPE: self._types,
            Kind.TAG: self._tags,
            Kind.KEY: self._keys,
        }
        """The event_ids of each term, by its kind and its text."""

    def add_all(self, events: Iterable[Entry]) -> None:
        """Enter the next events; event_ids must come in order."""
        streams, types, tags = self._streams, self._types, self._tags
        event_id = self.last_event_id
        for event in events:
            event_id = event.event_id
            of_stream = streams.get(event.stream_id)
            if of_stream is None:
                of_stream = streams[event.stream_id] = array("Q")
            of_stream.append(event_id)
            of_type = types.get(event.event_type)
            if of_type is None:
                of_type = types[event.event_type] = array("Q")
            of_type.append(event_id)
            for tag in event.tags:
                of_tag = tags.get(tag)
                if of_tag is None:
                    of_tag = tags[tag] = array("Q")
                of_tag.append(event_id)
        self.last_event_id = event_id

    def add_commits(self, commits: Sequence[Commit]) -> None:
        """Enter the events and the keys of the next commits."""
        self.add_all(chain.from_iterable([commit.events for commit in commits]))
        for commit in commits:
            if commit.idempotency_key is not None:
                first = commit.events[0]
                self.add_key(first.stream_id, commit.idempotency_key, first.event_id)

    def add_key(self, stream_id: str, key: str, first_event_id: int) -> None:
        """Enter the idempotency key of a commit that begins with this event."""
        self._keys.setdefault(key_text(stream_id, key), array("Q")).append(first_event_id)

    def count(self, stream_id: str) -> int:
        """How many events of the stream were entered."""
        return len(self._streams.get(stream_id, ()))

    def places(self, term: Term, low: int, high: int) -> range:
        """See `Source`."""
        ids = self.by_kind[term.kind].get(term.text)
        if ids is None:
            return range(0)
        return range(bisect_left(ids, low), bisect_right(ids, high))

    def ids(self, term: Term, places: range) -> Sequence[int]:
        """See `Source`."""
        if not places:
            return ()
        ids = self.by_kind[term.kind][term.text]
        low, high = min(places[0], places[-1]), max(places[0], places[-1])
        return ids[low : high + 1] if places.step > 0 else ids[low : high + 1][::-1]


class StreamPlaces(NamedTuple):
    """The events of a stream up to a bound, and which of them are selected. That of version v is in place v - 1."""

    term: Term
    spans: Sequence[tuple[int, Source, range]]
    """A source that has some, its places of these, and how many come before."""
    selected: range
    """The places that are selected, upwards."""

    def ids(self, places: range) -> list[int]:
        """The event_ids in these places, which go up or down by one."""
        found: list[int] = []
        up = places.step > 0
        low, after = (places.start, places.stop) if up else (places.stop + 1, places.start + 1)
        for before, source, own in self.spans if up else reversed(self.spans):
            part = own[max(low - before, 0) : max(after - before, 0)]
            if part:
                found.extend(source.ids(self.term, part if up else part[::-1]))
        return found

    def walk(self, backwards: bool) -> Iterator[int]:
        """The selected event_ids, in order."""
        places = self.selected[::-1] if backwards else self.selected
        for start in range(0, len(places), WALKED_IDS):
            yield from self.ids(places[start : start + WALKED_IDS])


def stream_places(sources: Iterable[Source], stream_id: str, selection: Selection, cursor: int | None) -> StreamPlaces:
    """Where the selected events of a stream are."""
    low, high = bounds(selection, cursor)
    term = Term(Kind.STREAM, stream_id)
    spans: list[tuple[int, Source, range]] = []
    count = below = 0
    for source in sources:
        if source.first_event_id > high:
            break
        own = source.places(term, source.first_event_id, high)
        if not own:
            continue
        spans.append((count, source, own))
        count += len(own)
        if source.last_event_id < low:
            below = count
        elif source.first_event_id < low:
            below = count - len(source.places(term, low, high))
    last = count if selection.to_version is None else min(selection.to_version, count)
    return StreamPlaces(term, spans, range(max(selection.from_version - 1, below), last))


def candidates(
    sources: Sequence[Source], query: Query | None, low: int, high: int, *, backwards: bool
) -> Iterator[int]:
    """The event_ids from low to high (backwards: from high to low): all that match the query, and some that may not."""
    if not query or not query.items:
        return iter(range(high, low - 1, -1) if backwards else range(low, high + 1))
    return chain.from_iterable(
        _of_source(source, query, max(low, source.first_event_id), min(high, source.last_event_id), backwards)
        for source in (reversed(sources) if backwards else sources)
        if source.first_event_id <= high and source.last_event_id >= low
    )


def posted(sources: Sequence[Source], term: Term, low: int, high: int, *, backwards: bool) -> Iterator[int]:
    """The event_ids from low to high (backwards: from high to low) that have the term."""
    return chain.from_iterable(
        _walk(source, term, (), low, high, backwards)
        for source in (reversed(sources) if backwards else sources)
        if source.first_event_id <= high and source.last_event_id >= low
    )


def _of_source(source: Source, query: Query, low: int, high: int, backwards: bool) -> Iterator[int]:
    walks: list[Iterator[int]] = []
    for item in query.items:
        clauses = _clauses(item)
        if not clauses:
            return iter(range(high, low - 1, -1) if backwards else range(low, high + 1))
        counts = [sum(len(source.places(term, low, high)) for term in clause) for clause in clauses]
        fewest = counts.index(min(counts))
        others = clauses[:fewest] + clauses[fewest + 1 :]
        walks.extend(_walk(source, term, others, low, high, backwards) for term in clauses[fewest])
    return walks[0] if len(walks) == 1 else _distinct(heapq.merge(*walks, reverse=backwards))


def _clauses(item: QueryItem) -> list[list[Term]]:
    """Terms of each of which an event must have one, to match."""
    clauses = [[Term(Kind.TAG, tag)] for tag in item.tags]
    if item.types:
        clauses.append([Term(Kind.TYPE, event_type) for event_type in item.types])
    return clauses


def _walk(
    source: Source, term: Term, others: Sequence[Sequence[Term]], low: int, high: int, backwards: bool
) -> Iterator[int]:
    """The event_ids with the term, without those that are seen to have none of other terms that they must have."""
    places = source.places(term, low, high)
    if backwards:
        places = places[::-1]
    for start in range(0, len(places), WALKED_IDS):
        ids = source.ids(term, places[start : start + WALKED_IDS])
        for clause in others:
            if ids:
                ids = _narrowed(source, ids, clause)
        yield from ids


def _narrowed(source: Source, ids: Sequence[int], clause: Sequence[Term]) -> Sequence[int]:
    low, high = min(ids[0], ids[-1]), max(ids[0], ids[-1])
    places = [source.places(term, low, high) for term in clause]
    if sum(map(len, places)) > NARROWING_MAX * len(ids):
        return ids
    have: set[int] = set()
    for term, own in zip(clause, places, strict=True):
        have.update(source.ids(term, own))
    return [event_id for event_id in ids if event_id in have]


def bounds(selection: Selection, cursor: int | None) -> tuple[int, int]:
    """The lowest and the highest event_id that the selection still asks for behind the cursor."""
    low, high = selection.after + 1, selection.up_to
    if cursor is None:
        return low, high
    return (low, min(high, cursor - 1)) if selection.backwards else (max(low, cursor + 1), high)


def _distinct(ids: Iterator[int]) -> Iterator[int]:
    previous = None
    for event_id in ids:
        if event_id != previous:
            yield event_id
        previous = event_id
