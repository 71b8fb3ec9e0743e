"""Looking at every line of the log once: what a scan does not judge, and whether the runs say the same."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from aiostore.engine import FIRST_TIMESTAMP
from aiostore.engines.file.disk import Disk
from aiostore.engines.file.format import Line
from aiostore.engines.file.index import Part
from aiostore.engines.file.line_walk import Breaks, LineWalk
from aiostore.engines.file.recovery import forget
from aiostore.engines.file.run_check import RunCheck
from aiostore.engines.file.segment import Segment
from aiostore.engines.file.version_check import VersionCheck

_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


class Extent(NamedTuple):
    """Valid lines, one right behind the other."""

    path: str
    start: int
    end: int
    first_event_id: int
    last_event_id: int


class LogCheck(LineWalk):
    """Judges timestamps and ``open`` too, compares the runs, and notes where valid lines stand.

    Its memory is that of one segment's terms, and of a bounded number of streams' versions.
    """

    def __init__(
        self,
        disk: Disk,
        store_id: str,
        first_event_id: int,
        runs: Sequence[RunCheck],
        positions: Iterable[int],
        advanced: Callable[[int], None],
        *,
        from_device: bool,
    ) -> None:
        self.of_streams = VersionCheck()
        self.of_streams.begin()
        self.breaks = Breaks()
        super().__init__(store_id, first_event_id, self.of_streams, self.breaks, advanced)
        self.extents: list[Extent] = []
        self.events_count = 0
        self.first_timestamp = ""
        self.last_timestamp = FIRST_TIMESTAMP
        self.crcs: dict[int, str] = {}
        """Of the lines at the positions that were asked for."""
        self.uncovered: list[Segment] = []
        """Segments that no run is the index of; the newest is one."""
        self._disk = disk
        self._runs = {check.run.first_event_id: check for check in runs}
        self._run: RunCheck | None = None
        self._part = Part(1)
        self._positions = sorted(positions)
        self._from_device = from_device
        self._crc = ""

    def add_segment(self, segment: Segment) -> Part | None:
        """See `Index`; what is here is done with the segment before."""
        super().add_segment(segment)
        if self._run is not None and segment.first_event_id > self._run.run.last_event_id:
            self._end_run()
        if self._run is None:
            self._run = self._runs.pop(segment.first_event_id, None)
        self._part = Part(segment.first_event_id)
        if self._from_device:
            forget(self._disk, segment)
        return None

    def end_segment(self) -> None:
        """See `LineWalk`."""
        if self.segments:
            if self._run is None:
                self.uncovered.append(self.segments[-1])
            else:
                self._run.take(self.segments[-1], self._part, self._crc)
        super().end_segment()

    def finish(self) -> None:
        """The survey has ended: look at what is still open."""
        self.end_segment()
        self._end_run()
        for check in self._runs.values():
            check.check_blocks()
            check.reason = check.reason or "it is not the index of the segments that are there"

    def _end_run(self) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None

    def look(
        self,
        segment: Segment,
        lines: Sequence[Line],
        offsets: Sequence[int],
        end: int,
        wrong: Callable[[int, str], None],
    ) -> None:
        """See `LineWalk`."""
        first, last = lines[0].event_id, lines[-1].event_id
        self._note_extent(Extent(segment.path, offsets[0], end, first, last))
        for place in range(bisect_left(self._positions, first), bisect_right(self._positions, last)):
            position = self._positions[place]
            self.crcs[position] = lines[position - first].crc
        self._look_at_times(lines, wrong)
        for place, line in enumerate(lines):
            if not 0 <= line.unsynced < line.event_id:
                wrong(place, f"{line.unsynced} events before it are said to be open where there are not so many")
        if self._run is not None:
            self._part.add_all(lines)
            for line in lines:
                if line.key is not None:
                    self._part.add_key(line.stream_id, line.key, line.event_id)
        self._crc = lines[-1].crc
        self.events_count += len(lines)

    def _note_extent(self, extent: Extent) -> None:
        if self.extents:
            before = self.extents[-1]
            follows = (before.path, before.end, before.last_event_id + 1)
            if follows == (extent.path, extent.start, extent.first_event_id):
                self.extents[-1] = before._replace(end=extent.end, last_event_id=extent.last_event_id)
                return
        self.extents.append(extent)

    def _look_at_times(self, lines: Sequence[Line], wrong: Callable[[int, str], None]) -> None:
        before = self.last_timestamp
        for place, line in enumerate(lines):
            timestamp = line.timestamp
            if timestamp != before:  # a group has one
                if _TIMESTAMP.fullmatch(timestamp) is None:
                    wrong(place, f"{timestamp!r:.60} is not a timestamp")
                    continue
                if timestamp < before:
                    wrong(place, f"the timestamp {timestamp} is earlier than the one before it, {before}")
                before = timestamp
        self.first_timestamp = self.first_timestamp or lines[0].timestamp
        self.last_timestamp = before
