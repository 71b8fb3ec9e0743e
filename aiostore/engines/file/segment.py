"""A segment: one file of the log, and where each of its events begins."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import Protocol

from aiostore.engines.file.format import line_seed, segment_name


class Segment:
    """The place of every event in one file. An event that is known to be missing has a place without bytes."""

    __slots__ = ("end", "first_event_id", "last_event_id", "path", "places", "seed")

    def __init__(self, directory: str, store_id: str, first_event_id: int) -> None:
        self.path = f"{directory}/{segment_name(first_event_id)}"
        self.first_event_id = first_event_id
        self.last_event_id = first_event_id - 1
        """The last event that has a place here; the one before the first if none has."""
        self.seed = line_seed(store_id, first_event_id)
        self.places: Places = LinePlaces(first_event_id)
        self.end = 0
        """Where the last whole commit ends: the next line begins here."""

    def starts(self, first_event_id: int, last_event_id: int) -> Sequence[int]:
        """Where the bytes of each of these events begin, and at last where those of the last one end."""
        if last_event_id >= self.last_event_id:
            end = self.end
            if last_event_id >= self.last_event_id:
                return [*self.places.offsets(first_event_id, last_event_id), end]
            # Lines were added meanwhile, and the end may be theirs.
        return self.places.offsets(first_event_id, last_event_id + 1)

    def spans(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """From where to where the line of each of these events goes, which go up or down."""
        return self.places.spans(ids, self)

    def span(self, event_id: int) -> tuple[int, int]:
        """From where to where the line of the event goes."""
        return self.spans((event_id,))[0]

    def extend(self, starts: Sequence[int], size: int) -> None:
        """Take in lines that were written at the end: where each begins in these bytes, and how many bytes."""
        end = self.end
        self.add([end + start for start in starts], end + size)

    def add(self, offsets: Sequence[int], end: int) -> None:
        """Take in lines by where they begin in the file, and where the last one ends.

        In this order: a thread that finds the last event unchanged after it read the end has the end of that one.
        """
        assert isinstance(self.places, LinePlaces), "nothing is written to what is sealed"
        self.places.extend(offsets)
        self.last_event_id += len(offsets)
        self.end = end


class Places(Protocol):
    """Where the lines of a segment's events begin."""

    def offsets(self, first_event_id: int, last_event_id: int) -> Sequence[int]:
        """Where the lines of these events begin, each."""
        ...

    def spans(self, ids: Sequence[int], segment: Segment) -> list[tuple[int, int]]:
        """Where the lines of these events of the segment begin and end."""
        ...


class LinePlaces:
    """The same, in memory."""

    __slots__ = ("_first", "starts")

    def __init__(self, first_event_id: int) -> None:
        self._first = first_event_id
        self.starts: array[int] = array("Q")

    def offsets(self, first_event_id: int, last_event_id: int) -> Sequence[int]:
        """See `Places`."""
        return self.starts[first_event_id - self._first : last_event_id - self._first + 1]

    def spans(self, ids: Sequence[int], segment: Segment) -> list[tuple[int, int]]:
        """See `Places`."""
        end = segment.end  # before the last event: where lines are added meanwhile, it may be theirs
        starts, first, last = self.starts, self._first, segment.last_event_id
        return [
            (starts[event_id - first], end if event_id == last else starts[event_id - first + 1]) for event_id in ids
        ]

    def extend(self, offsets: Iterable[int]) -> None:
        """Take in the next lines."""
        self.starts.extend(offsets)
