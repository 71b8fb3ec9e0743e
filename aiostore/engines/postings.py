"""An inverted index in memory: which event_ids have which stream, type, tag and key."""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from aiostore.engine import Commit, Selection
from aiostore.query import QueryItem


class Entry(Protocol):
    """What of an event is entered: an Event, or a line of a log."""

    @property
    def event_id(self) -> int: ...
    @property
    def stream_id(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def event_type(self) -> str: ...
    @property
    def tags(self) -> Sequence[str]: ...


class Postings:
    """Sorted event_ids by term. `candidates` gives all events of a selection, and others that a match must rule out."""

    def __init__(self) -> None:
        self._streams: dict[str, array[int]] = {}
        self._types: dict[str, array[int]] = {}
        self._tags: dict[str, array[int]] = {}
        self._commits: dict[tuple[str, str], tuple[int, int]] = {}

    def add(self, event: Entry) -> None:
        """Enter the next event; event_ids must come in order."""
        self.add_all((event,))

    def add_all(self, events: Iterable[Entry]) -> None:
        """Enter the next events; event_ids must come in order."""
        streams, types, tags = self._streams, self._types, self._tags
        for event in events:
            event_id = event.event_id
            stream = streams.get(event.stream_id)
            if stream is None:
                stream = streams[event.stream_id] = array("Q")
            if event.version == len(stream) + 1:
                stream.append(event_id)
            else:  # only a damaged log leaves out versions; each stands for the next event that is there
                stream.extend([event_id] * (event.version - len(stream)))
            of_type = types.get(event.event_type)
            if of_type is None:
                of_type = types[event.event_type] = array("Q")
            of_type.append(event_id)
            for tag in event.tags:
                of_tag = tags.get(tag)
                if of_tag is None:
                    of_tag = tags[tag] = array("Q")
                of_tag.append(event_id)

    def add_commits(self, commits: Iterable[Commit]) -> None:
        """Enter the events and the keys of the next commits."""
        for commit in commits:
            self.add_all(commit.events)
            if commit.idempotency_key is not None:
                first = commit.events[0]
                self.add_key(first.stream_id, commit.idempotency_key, first.event_id, len(commit.events))

    def add_key(self, stream_id: str, key: str, first_event_id: int, events_count: int) -> None:
        """Enter the idempotency key of a commit."""
        self._commits[stream_id, key] = (first_event_id, events_count)

    def version(self, stream_id: str) -> int:
        """The version of the stream, 0 if it has no events."""
        return len(self._streams.get(stream_id, ()))

    def commit(self, stream_id: str, key: str) -> tuple[int, int] | None:
        """The first event_id and the number of events of the commit with this key."""
        return self._commits.get((stream_id, key))

    def candidates(self, selection: Selection, cursor: int | None) -> Iterator[int]:
        """Event_ids in the order of the selection, behind the cursor: all that match, and some that may not."""
        low, high = bounds(selection, cursor)
        if selection.stream_id is not None:
            ids, places = self.places(selection.stream_id, selection, cursor)
            return (ids[place] for place in places)
        lists: list[Sequence[int]] = []
        for item in selection.query.items if selection.query else ():
            shortest = self._shortest(item)
            if shortest is None:
                lists = []
                break
            lists.extend(shortest)
        else:
            if selection.query and selection.query.items:
                walks = [
                    _walk(ids, bisect_left(ids, low), bisect_right(ids, high), selection.backwards) for ids in lists
                ]
                return _distinct(heapq.merge(*walks, reverse=selection.backwards)) if len(walks) != 1 else walks[0]
        return iter(range(high, low - 1, -1) if selection.backwards else range(low, high + 1))

    def places(self, stream_id: str, selection: Selection, cursor: int | None) -> tuple[Sequence[int], range]:
        """The event_ids of a stream, and the places there of those that are selected, in the selection's order.

        The event of version v is in place v - 1.
        """
        low, high = bounds(selection, cursor)
        ids: Sequence[int] = self._streams.get(stream_id, ())
        first = max(selection.from_version - 1, bisect_left(ids, low))
        last = min(len(ids) if selection.to_version is None else selection.to_version, bisect_right(ids, high))
        return ids, range(last - 1, first - 1, -1) if selection.backwards else range(first, last)

    def _shortest(self, item: QueryItem) -> list[Sequence[int]] | None:
        """The lists with the fewest event_ids that cover the item; None if only all events do."""
        options: list[list[Sequence[int]]] = [[self._tags.get(tag, ())] for tag in item.tags]
        if item.types:
            options.append([self._types.get(event_type, ()) for event_type in item.types])
        return min(options, key=lambda lists: sum(map(len, lists))) if options else None


def bounds(selection: Selection, cursor: int | None) -> tuple[int, int]:
    """The lowest and the highest event_id that the selection still asks for behind the cursor."""
    low, high = selection.after + 1, selection.up_to
    if cursor is None:
        return low, high
    return (low, min(high, cursor - 1)) if selection.backwards else (max(low, cursor + 1), high)


def _walk(ids: Sequence[int], first: int, last: int, backwards: bool) -> Iterator[int]:
    places = range(last - 1, first - 1, -1) if backwards else range(first, last)
    return (ids[place] for place in places)


def _distinct(ids: Iterator[int]) -> Iterator[int]:
    previous = None
    for event_id in ids:
        if event_id != previous:
            yield event_id
        previous = event_id
