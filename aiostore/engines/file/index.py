"""What is stored, and where: the segments in order, the postings of their events, and what is known to be damaged."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from aiostore.engine import FIRST_TIMESTAMP, Commit, Head
from aiostore.engines.file.segment import Segment
from aiostore.engines.postings import Postings
from aiostore.errors import StoreCorrupt


class Damage(NamedTuple):
    """Events that are lost: from ``first`` to ``last``, which is below ``first`` where no event is known to be."""

    path: str
    offset: int
    reason: str
    first: int
    last: int

    def error(self) -> StoreCorrupt:
        """The error that says so."""
        known = self.last >= self.first
        return StoreCorrupt(self.path, self.offset, self.reason, self.first, self.last if known else 0)


class Index:
    """Everything up to ``head``, the last event that questions and reads may see."""

    def __init__(self) -> None:
        self.postings = Postings()
        self.segments: list[Segment] = []
        self._firsts: list[int] = []
        self.damages: list[Damage] = []
        self.head = Head(0, FIRST_TIMESTAMP)

    def add_segment(self, segment: Segment) -> None:
        """Take in the next segment."""
        self.segments.append(segment)
        self._firsts.append(segment.first_event_id)

    def segment_of(self, event_id: int) -> Segment:
        """The segment that the event is in."""
        return self.segments[bisect_right(self._firsts, event_id) - 1]

    def add_commits(self, commits: Sequence[Commit], starts: list[int], size: int) -> None:
        """Take in a group that was written at the end of the last segment."""
        self.postings.add_commits(commits)
        self.segments[-1].extend(starts, size)
        last = commits[-1].events[-1]
        self.head = Head(last.event_id, last._timestamp)
