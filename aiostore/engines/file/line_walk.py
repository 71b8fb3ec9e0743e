"""A walk over every valid line of the log, in the place of an index: it looks at each and keeps none. Synchronous."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from aiostore.engines.file.format import Line
from aiostore.engines.file.index import Index, Part
from aiostore.engines.file.segment import LinePlaces, Segment
from aiostore.engines.file.version_check import VersionCheck

BREAKS_MAX = 1000
"""So many lines that contradict others are kept, the earliest; the very first decides what a repair does."""


class Break(NamedTuple):
    """A line that is valid and contradicts those before it, and where its commit begins."""

    path: str
    offset: int
    event_id: int
    reason: str
    commit_offset: int
    commit_event_id: int


class Breaks:
    """The breaks that were found, of all walks."""

    def __init__(self) -> None:
        self.kept: list[Break] = []
        self.count = 0

    def add(self, found: Break) -> None:
        """Take in one more."""
        self.count += 1
        self.kept.append(found)
        if len(self.kept) > BREAKS_MAX:
            self.kept.remove(max(self.kept, key=lambda each: each.event_id))


class LineWalk(Index):
    """What `survey` enters lines into. It has the versions judged, and knows where commits begin and lines are missing.

    ``first_event_id`` is the log's. ``advanced`` is told how many bytes of the log were gone over.
    """

    def __init__(
        self,
        store_id: str,
        first_event_id: int,
        of_streams: VersionCheck,
        breaks: Breaks,
        advanced: Callable[[int], None],
    ) -> None:
        super().__init__(store_id)
        self._of_streams = of_streams
        self._breaks = breaks
        self._advanced = advanced
        self._last_event_id = first_event_id - 1
        self._commit: tuple[int, int] | None = None
        """Where the commit begins that goes on in the next lines: the offset and the event_id."""
        self._bytes_before = 0

    def add_segment(self, segment: Segment) -> Part | None:
        """See `Index`."""
        self.end_segment()
        self.segments.append(segment)
        return None

    def end_segment(self) -> None:
        """The last segment has all its lines."""
        if self.segments:
            segment = self.segments[-1]
            self._bytes_before += segment.end
            segment.places = LinePlaces(segment.first_event_id)  # an offset for each event of the log would be much

    def add_lines(self, segment: Segment, lines: Sequence[Line], offsets: Sequence[int], end: int) -> None:
        """See `Index`."""
        segment.add(offsets, end)
        if lines[0].event_id != self._last_event_id + 1:
            self._of_streams.lose()
            self._commit = None

        def wrong(place: int, reason: str) -> None:
            self._break(segment, lines, offsets, place, reason)

        self.look(segment, lines, offsets, end, wrong)
        self._of_streams.take(lines, wrong)
        self._remember_commit(lines, offsets)
        self._last_event_id = lines[-1].event_id
        self._advanced(self._bytes_before + end)

    def look(
        self,
        segment: Segment,
        lines: Sequence[Line],
        offsets: Sequence[int],
        end: int,
        wrong: Callable[[int, str], None],
    ) -> None:
        """Look at the lines; ``wrong`` is called with the place of one that contradicts others, and why."""

    def _break(self, segment: Segment, lines: Sequence[Line], offsets: Sequence[int], place: int, reason: str) -> None:
        start = _begin(lines, place)
        commit = (offsets[start], lines[start].event_id)
        if not start and self._commit is not None:
            commit = self._commit
        self._breaks.add(Break(segment.path, offsets[place], lines[place].event_id, reason, *commit))

    def _remember_commit(self, lines: Sequence[Line], offsets: Sequence[int]) -> None:
        if not lines[-1].more:
            self._commit = None
            return
        start = _begin(lines, len(lines) - 1)
        if start or self._commit is None:
            self._commit = (offsets[start], lines[start].event_id)


def _begin(lines: Sequence[Line], place: int) -> int:
    """Where the commit of the line at the place begins, as far as it is in these."""
    while place and lines[place - 1].more:
        place -= 1
    return place
