"""Pages: the events of a selection, found by the index and read from the segments in few pieces, each line checked."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice, pairwise
from typing import NamedTuple

from aiostore.engine import Commit, Page, Selection
from aiostore.engines.file.format import Damaged, Line, decode_checked_line, decode_events, decode_lines
from aiostore.engines.file.gaps import Gaps
from aiostore.engines.file.index import Index
from aiostore.engines.file.lookups import Lookups
from aiostore.engines.file.pieces import Piece, Run, runs_down, runs_up, scattered
from aiostore.engines.file.segment import SegmentFiles
from aiostore.engines.postings import (
    Kind,
    StreamPlaces,
    Term,
    bounds,
    candidates,
    key_text,
    posted,
    stream_places,
)
from aiostore.errors import EngineUnavailable, StoreCorrupt
from aiostore.events import Event
from aiostore.query import Query

EXAMINED_MIN = 32
EXAMINED_MAX = 2000
"""So many candidates of a query are looked at for one page, at least and at most."""


class _StreamPage(NamedTuple):
    """Where a page of a stream is."""

    found: StreamPlaces
    asked: range
    """The places that are asked for, in the order of the selection."""
    pieces: list[Piece]


class PageReader:
    """Reads what the index knows; any number of reads at a time."""

    def __init__(self, index: Index, files: SegmentFiles, lookups: Lookups) -> None:
        self._index = index
        self._files = files
        self._ask = lookups.ask

    async def read(self, selection: Selection, cursor: int | None, max_events: int) -> Page:
        """See `Engine.read`."""
        head = self._index.head.event_id
        if selection.up_to > head:
            selection = replace(selection, up_to=head)
        if selection.stream_id is not None:
            return await self._stream(selection.stream_id, selection, cursor, max_events)
        if self._index.damages:
            return await self._up_to_damage(selection, cursor, max_events)
        return await self._undamaged(selection, cursor, max_events)

    # --- single lines ---

    async def line(self, event_id: int) -> Line | None:
        """The event's line; None where there is no such event, or its line is damaged."""
        lost = any(damage.first <= event_id <= damage.last for damage in self._index.damages)
        if lost or not 1 <= event_id <= self._index.head.event_id:
            return None
        (piece,) = await self._ask(scattered, self._index, (event_id,))
        (data,) = await self._files.read_all([piece])
        if isinstance(data, OSError):
            raise EngineUnavailable(f"{piece.segment.path} cannot be read now: {data}") from data
        try:
            return decode_checked_line(data.strip(b"\n"), piece.segment.seed)
        except Damaged:
            return None

    async def version(self, stream_id: str, head: int) -> int:
        """The version of the stream as of the head, or of a later one if it is remembered."""
        version = self._index.versions.get(stream_id)
        if version is not None:
            return version
        now = self._index.head.event_id
        term = Term(Kind.STREAM, stream_id)
        version = 0
        while not version and (ids := await self._ask(self._newest, term, head)):
            event = (await self._events(await self._ask(scattered, self._index, ids), backwards=True))[0]
            version = event.version if event.stream_id == stream_id else 0
            head = event.event_id - 1
        if version and now == self._index.head.event_id:
            self._index.versions.room()[stream_id] = version
        return version

    def _newest(self, term: Term, high: int) -> Sequence[int]:
        for source in reversed(self._index.sources):
            places = source.places(term, source.first_event_id, high)
            if places:
                return source.ids(term, places[-1:])
        return ()

    async def stored(self, stream_id: str, key: str, head: int) -> range | None:
        """The events of the commit that the key stands with, None if there is none."""
        term = Term(Kind.KEY, key_text(stream_id, key))
        while ids := await self._ask(self._newest, term, head):
            line = await self.line(ids[0])
            if line is None:
                raise StoreCorrupt(self._index.segment_of(ids[0]).path, 0, "a line is damaged", ids[0], ids[0])
            if line.stream_id == stream_id and line.key == key:
                return range(line.event_id, line.event_id + line.more + 1)
            head = ids[0] - 1
        return None

    async def commits(self, after: int) -> list[Commit]:
        """The next whole commits above ``after``, as far as a page goes; one that is larger is cut."""
        pieces = await self._ask(runs_up, self._index, after + 1, self._index.head.event_id)
        lines: list[Line] = []
        starts = [0]
        for piece, data in zip(pieces, await self._files.read_all(pieces), strict=False):
            if isinstance(data, OSError):
                if not lines:
                    raise _unreadable(piece, data) from data
                break
            (run,) = piece.runs
            whole, damage = _lines_before_damage(piece, data, run)
            lines += whole
            starts += [starts[-1] + start - run.starts[0] for start in run.starts[1 : len(whole) + 1]]
            if damage is not None:
                if not lines:
                    raise damage
                break
        return commits_of(lines, starts)

    # --- pages ---

    async def _undamaged(self, selection: Selection, cursor: int | None, max_events: int) -> Page:
        if selection.query and selection.query.items:
            return await self._query(selection, selection.query, cursor, max_events)
        first, last = bounds(selection, cursor)
        if selection.backwards:
            pieces = await self._ask(runs_down, self._index, max(first, last - max_events + 1), last)
        else:
            pieces = await self._ask(runs_up, self._index, first, min(last, first + max_events - 1))
        events = await self._events(pieces, selection.backwards)
        end = first if selection.backwards else last
        return Page(events, None if not events or events[-1].event_id == end else events[-1].event_id)

    async def _query(self, selection: Selection, query: Query, cursor: int | None, max_events: int) -> Page:
        count = min(max(max_events, EXAMINED_MIN), EXAMINED_MAX)
        ids, pieces = await self._ask(self._find_candidates, selection, query, cursor, count)
        examined = await self._events(pieces, selection.backwards)
        found: list[Event] = []
        for event in examined:
            if query.matches(event):
                found.append(event)
                if len(found) == max_events:
                    return Page(found, event.event_id)
        if len(examined) == len(ids) < count:
            return Page(found, None)
        return Page(found, examined[-1].event_id)

    def _find_candidates(
        self, selection: Selection, query: Query, cursor: int | None, count: int
    ) -> tuple[Sequence[int], list[Piece]]:
        low, high = bounds(selection, cursor)
        walk = candidates(self._index.sources, query, low, high, backwards=selection.backwards)
        ids = list(islice(walk, count))
        return ids, scattered(self._index, ids)

    async def _stream(self, stream_id: str, selection: Selection, cursor: int | None, max_events: int) -> Page:
        """A page of a stream; that its versions are dense shows that nothing is missing between its events."""
        if self._index.damages:
            return await self._stream_by_lines(stream_id, selection, cursor, max_events)
        found, asked, pieces = await self._ask(self._find_stream, stream_id, selection, cursor, max_events)
        events = await self._events(pieces, selection.backwards)
        for place, event in zip(asked, events, strict=False):
            if event.version != place + 1 or event.stream_id != stream_id:
                return await self._stream_by_lines(stream_id, selection, cursor, max_events)
        return _page(events, selection, None if len(events) == len(found.selected) else events[-1].event_id)

    def _find_stream(self, stream_id: str, selection: Selection, cursor: int | None, max_events: int) -> _StreamPage:
        found = stream_places(self._index.sources, stream_id, selection, cursor)
        asked = (found.selected[::-1] if selection.backwards else found.selected)[:max_events]
        return _StreamPage(found, asked, scattered(self._index, found.ids(asked)))

    async def _stream_by_lines(self, stream_id: str, selection: Selection, cursor: int | None, max_events: int) -> Page:
        """The same where the index cannot tell the versions: events are lost, or others have the same hash."""
        low, high = bounds(selection, cursor)
        head, up = self._index.head.event_id, not selection.backwards
        events, whole = await self._of_stream(stream_id, low, high, not up, max(max_events, EXAMINED_MIN))
        gaps = Gaps(stream_id, selection, self._index)
        if up or whole:
            gaps.below = await self._next_to(stream_id, 1, low - 1, backwards=True)
        if not up or whole:
            gaps.above = await self._next_to(stream_id, high + 1, head, backwards=False)
        page: list[Event] = []
        for event in events:
            error = gaps.before(event)
            if error is not None:
                if not page:
                    raise error
                return _page(page, selection, page[-1].event_id)
            if gaps.selected(event.version):
                page.append(event)
                if len(page) == max_events:
                    return _page(page, selection, event.event_id)
        if not whole:
            return _page(page, selection, events[-1].event_id)
        error = gaps.at_end()
        if error is not None and not page:
            raise error
        return _page(page, selection, None if error is None else page[-1].event_id)

    async def _of_stream(
        self, stream_id: str, low: int, high: int, backwards: bool, count: int
    ) -> tuple[list[Event], bool]:
        """The stream's events from low to high, or the first of them, and whether it is all; `StoreCorrupt`."""
        events: list[Event] = []
        term = Term(Kind.STREAM, stream_id)
        while low <= high:
            ids, pieces = await self._ask(self._find_ids, term, low, high, backwards, count)
            examined = await self._events(pieces, backwards)
            events.extend(event for event in examined if event.stream_id == stream_id)
            if len(examined) == len(ids) < count:
                return events, True
            if events:
                return events, False
            low, high = (low, examined[-1].event_id - 1) if backwards else (examined[-1].event_id + 1, high)
        return events, True

    def _find_ids(
        self, term: Term, low: int, high: int, backwards: bool, count: int
    ) -> tuple[Sequence[int], list[Piece]]:
        ids = list(islice(posted(self._index.sources, term, low, high, backwards=backwards), count))
        return ids, scattered(self._index, ids)

    async def _next_to(self, stream_id: str, low: int, high: int, backwards: bool) -> Event | None:
        """The stream's first event from low to high, backwards the last one."""
        events, _ = await self._of_stream(stream_id, low, high, backwards, 1)
        return events[0] if events else None

    async def _up_to_damage(self, selection: Selection, cursor: int | None, max_events: int) -> Page:
        """A page that ends before the damage that lies in the way; there is an error where it would begin."""
        low, high = bounds(selection, cursor)
        inside = [damage for damage in self._index.damages if damage.last >= low and damage.first <= high]
        if not inside:
            return await self._undamaged(selection, cursor, max_events)
        damage = inside[-1] if selection.backwards else inside[0]
        if selection.backwards:
            clear, stop = replace(selection, after=damage.last), damage.last + 1
            is_there = damage.last >= high
        else:
            clear, stop = replace(selection, up_to=damage.first - 1), damage.first - 1
            is_there = damage.first <= low
        if is_there:
            raise damage.error()
        page = await self._undamaged(clear, cursor, max_events)
        return page if page.cursor is not None else Page(page.events, stop)

    # --- lines ---

    async def _events(self, pieces: list[Piece], backwards: bool) -> list[Event]:
        """The events of the pieces, in the order of the selection; those before damage, or `StoreCorrupt` there."""
        events: list[Event] = []
        for piece, data in zip(pieces, await self._files.read_all(pieces), strict=False):
            if isinstance(data, OSError):
                if not events:
                    raise _unreadable(piece, data) from data
                return events
            for first, last, starts in piece.runs:
                lines = data[starts[0] - piece.start : starts[-1] - piece.start]
                try:
                    run = decode_events(lines, piece.segment.seed, first, last - first + 1)
                except Damaged as damaged:
                    return self._before_damage(events, piece, lines, Run(first, last, starts), backwards, damaged)
                if backwards:
                    run.reverse()
                events.extend(run)
        return events

    def _before_damage(
        self, events: list[Event], piece: Piece, lines: bytes, run: Run, backwards: bool, damaged: Damaged
    ) -> list[Event]:
        """What comes before the damage is served, one by one; where nothing does, it is raised."""
        places = range(len(run.starts) - 1)
        for place in reversed(places) if backwards else places:
            start, end = run.starts[place], run.starts[place + 1]
            event_id = run.first_event_id + place
            line = lines[start - run.starts[0] : end - run.starts[0]]
            try:
                events.extend(decode_events(line, piece.segment.seed, event_id, 1))
            except Damaged as here:
                if events:
                    return events
                raise StoreCorrupt(piece.segment.path, start, str(here), event_id, event_id) from here
        raise AssertionError(f"each line by itself is whole, but together they are not: {damaged}")


def _unreadable(piece: Piece, error: OSError) -> EngineUnavailable | StoreCorrupt:
    path = piece.segment.path
    if error.errno not in (errno.EIO, errno.ENOENT):  # too many open files, no memory, no rights…
        return EngineUnavailable(f"{path} cannot be read now: {error}")
    ids = [event_id for run in piece.runs for event_id in (run.first_event_id, run.last_event_id)]
    return StoreCorrupt(path, piece.start, f"cannot be read: {error}", min(ids), max(ids))


def _lines_before_damage(piece: Piece, data: bytes, run: Run) -> tuple[list[Line], StoreCorrupt | None]:
    """The lines of the piece; where one is damaged, those before it, and the error that says so."""
    seed = piece.segment.seed
    try:
        return decode_lines(data, seed, run.first_event_id, run.last_event_id - run.first_event_id + 1), None
    except Damaged as damaged:
        lines: list[Line] = []
        for event_id, (start, end) in enumerate(pairwise(run.starts), run.first_event_id):
            try:
                lines += decode_lines(data[start - piece.start : end - piece.start], seed, event_id, 1)
            except Damaged as here:
                error = StoreCorrupt(piece.segment.path, start, str(here), event_id, event_id)
                error.__cause__ = here
                return lines, error
        raise AssertionError(f"each line by itself is whole, but together they are not: {damaged}") from damaged


def commits_of(lines: Sequence[Line], starts: Sequence[int]) -> list[Commit]:
    """The whole commits that the lines begin with; where the first does not end in them, what there is of it.

    ``starts``: where each line begins, and at last where the last one ends.
    """
    commits: list[Commit] = []
    first = 0
    for place, line in enumerate(lines):
        if not line.more:
            commits.append(_commit(lines[first : place + 1], starts[place + 1] - starts[first]))
            first = place + 1
    if lines and not commits:
        commits.append(_commit(lines, starts[-1] - starts[0]))
    return commits


def _commit(lines: Sequence[Line], size: int) -> Commit:
    events = [
        Event(
            line.event_id,
            line.stream_id,
            line.version,
            line.event_type,
            line.timestamp,
            line.data,
            line.metadata,
            line.tags,
        )
        for line in lines
    ]
    return Commit(events, lines[0].key, size)


def _page(events: list[Event], selection: Selection, cursor: int | None) -> Page:
    query = selection.query
    return Page([event for event in events if query.matches(event)] if query else events, cursor)
