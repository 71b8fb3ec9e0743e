"""What is stored, and where: the segments in order, what finds their events, and what is known to be damaged."""

from __future__ import annotations

import functools
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import NamedTuple

from aiostore.engine import FIRST_TIMESTAMP, Commit, Head
from aiostore.engines.file.format import Line
from aiostore.engines.file.recent import Recent
from aiostore.engines.file.run import Run
from aiostore.engines.file.run_writer import give_way
from aiostore.engines.file.segment import Segment
from aiostore.engines.postings import Postings, Source
from aiostore.errors import StoreCorrupt
from aiostore.limits import MIB

PART_BYTES_MIN = MIB
"""Segments are indexed together until they have so many bytes; by default, each has more."""


VERSIONS_MAX = 32_768
"""So many streams' versions are remembered, at least, where there are so many streams."""


TAKEN_APART = 4096
"""So many terms are freed between two pauses."""


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


class Part(Postings):
    """Neighbouring segments whose index is in memory."""

    def __init__(self, first_event_id: int) -> None:
        super().__init__(first_event_id)
        self.segments: list[Segment] = []
        self.aside: Callable[[Callable[[], object]], None] | None = None
        """Has it taken apart elsewhere when nobody uses it any more: at once, a large one takes the loop 30 ms."""

    def __del__(self) -> None:
        if self.aside is not None:
            self.aside(functools.partial(_take_apart, [*self.by_kind.values()]))


def _take_apart(postings: list[dict[str, array[int]]]) -> None:
    for each in postings:
        while each:
            for _ in range(min(len(each), TAKEN_APART)):
                each.popitem()
            give_way()


def runs_of(index: Index) -> list[Run]:
    """The sources that are on disk."""
    return [source for source in index.sources if isinstance(source, Run)]


class Index:
    """Everything up to ``head``, the last event that questions and reads may see.

    Read on threads as well: what changes is exchanged as a whole, or only grows behind the head.
    """

    def __init__(self, store_id: str, part_bytes_min: int = PART_BYTES_MIN) -> None:
        self.store_id = store_id
        self.segments: list[Segment] = []
        self.sources: Sequence[Part | Run] = ()
        """What finds the events, in their order; the last is the part with the segment that is written."""
        self.damages: list[Damage] = []
        self.head = Head(0, FIRST_TIMESTAMP)
        self.versions: Recent[str, int] = Recent(VERSIONS_MAX)
        """Those of some streams, as of the head."""
        self._firsts: list[int] = []
        self.part_bytes_min = part_bytes_min

    @property
    def newest(self) -> Part:
        """The part with the last segment."""
        part = self.sources[-1]
        assert isinstance(part, Part), "the last segment is not sealed"
        return part

    def add_segment(self, segment: Segment) -> Part | None:
        """Take in the next segment. Returns the part before it where that is complete: nothing is added to it."""
        self._add(segment)
        complete = None
        if self.sources and isinstance(self.sources[-1], Part):
            part = self.sources[-1]
            if sum(sealed.end for sealed in part.segments) < self.part_bytes_min:
                part.segments.append(segment)
                return None
            complete = part
        new = Part(segment.first_event_id)
        new.segments.append(segment)
        self.sources = (*self.sources, new)
        return complete

    def add_sealed(self, segments: Sequence[Segment], source: Run) -> Part | None:
        """Take in the next segments, which are sealed, with their index. Returns the part before them, complete now."""
        for segment in segments:
            self._add(segment)
            segment.places = source
        if self.versions:  # those of the scanned segments before these
            self.versions = Recent(VERSIONS_MAX)
        complete = self.sources[-1] if self.sources and isinstance(self.sources[-1], Part) else None
        self.sources = (*self.sources, source)
        return complete

    def _add(self, segment: Segment) -> None:
        self.segments.append(segment)
        self._firsts.append(segment.first_event_id)

    def segments_of(self, source: Source) -> Sequence[Segment]:
        """The segments with the events of a source."""
        first = bisect_right(self._firsts, source.first_event_id) - 1
        return self.segments[first : bisect_right(self._firsts, source.last_event_id)]

    def exchange(self, old: Sequence[Part | Run], new: Sequence[Part | Run]) -> None:
        """Put sources in the place of neighbouring ones for the same events."""
        for source in new:
            if isinstance(source, Part):
                for segment in source.segments:
                    self.segment_of(segment.first_event_id).places = segment.places
            else:
                for segment in self.segments_of(source):
                    segment.places = source
        place = self.sources.index(old[0])
        assert list(self.sources[place : place + len(old)]) == list(old), "they are neighbours"
        self.sources = (*self.sources[:place], *new, *self.sources[place + len(old) :])

    def segments_between(self, first_event_id: int, last_event_id: int) -> Sequence[Segment]:
        """The segments that begin with one of these events."""
        return self.segments[bisect_left(self._firsts, first_event_id) : bisect_right(self._firsts, last_event_id)]

    def adopt(self, run: Run, segments: Sequence[Segment], head: Head) -> None:
        """Take in a run that goes beyond the head, in the place of the sources from its beginning on.

        ``segments`` are those of the run, the first of which may be here already. The next is then to be added.
        """
        known = self.segments_between(run.first_event_id, run.last_event_id)
        for mine, sealed in zip(known, segments, strict=False):
            mine.places = run
            mine.last_event_id = sealed.last_event_id
            mine.end = sealed.end
        for sealed in segments[len(known) :]:
            sealed.places = run
            self._add(sealed)
        place = sum(source.first_event_id < run.first_event_id for source in self.sources)
        self.sources = (*self.sources[:place], run)
        self.versions = Recent(VERSIONS_MAX)  # of what was not decoded, none are known
        self.head = head

    def close(self) -> None:
        """Close what is held open, after the last read has ended."""
        for source in self.sources:
            if not isinstance(source, Part):
                source.close()

    def segment_of(self, event_id: int) -> Segment:
        """The segment that the event is in."""
        return self.segments[bisect_right(self._firsts, event_id) - 1]

    def add_lines(self, segment: Segment, lines: Sequence[Line], offsets: Sequence[int], end: int) -> None:
        """Take in the next lines of the last segment, where each begins, and where they end."""
        part = self.newest
        part.add_all(lines)
        versions = self.versions.room()
        for line in lines:
            versions[line.stream_id] = line.version
            if line.key is not None:
                part.add_key(line.stream_id, line.key, line.event_id)
        segment.add(offsets, end)
        self.head = Head(lines[-1].event_id, lines[-1].timestamp)

    def add_commits(self, commits: Sequence[Commit], starts: list[int], size: int) -> None:
        """Take in a group that was written at the end of the last segment."""
        self.newest.add_commits(commits)
        self.segments[-1].extend(starts, size)
        versions = self.versions.room()
        for commit in commits:
            for event in commit.events:
                versions[event.stream_id] = event.version
        last = commits[-1].events[-1]
        self.head = Head(last.event_id, last._timestamp)
