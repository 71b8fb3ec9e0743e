"""Pages: the events of a selection, read from the segments in few pieces, each line checked."""

from __future__ import annotations

import errno
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

from aiostore.engine import Page, Selection
from aiostore.engines.file.format import Damaged, checksum_holds, checksum_of, decode_events
from aiostore.engines.file.index import Damage, Index
from aiostore.engines.file.segment import Segment, SegmentFiles
from aiostore.engines.postings import bounds
from aiostore.errors import EngineUnavailable, StoreCorrupt
from aiostore.events import Event
from aiostore.query import Query

PAGE_BYTES = 256 * 1024
"""A page reads about so many bytes; a single larger event comes alone."""

GAP_BYTES = 4096
"""Lines so near to each other are read as one piece."""

EXAMINED_MIN = 32
EXAMINED_MAX = 2000
"""So many candidates of a query are looked at for one page, at least and at most."""


class _Piece(NamedTuple):
    """Neighbouring lines to be read at once; ``ids`` are those that are wanted."""

    segment: Segment
    start: int
    end: int
    ids: Sequence[int]


class PageReader:
    """Reads what the index knows; any number of reads at a time."""

    def __init__(self, index: Index, files: SegmentFiles) -> None:
        self._index = index
        self._files = files

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

    async def crc(self, event_id: int) -> str | None:
        """The checksum that stands in the event's line; None where there is no such event, or its line is damaged."""
        lost = any(damage.first <= event_id <= damage.last for damage in self._index.damages)
        if lost or not 1 <= event_id <= self._index.head.event_id:
            return None
        segment = self._index.segment_of(event_id)
        start, end = segment.span(event_id, event_id)
        try:
            line = (await self._files.read(segment, start, end - start)).rstrip(b"\n")
        except OSError as error:
            raise EngineUnavailable(f"{segment.path} cannot be read now: {error}") from error
        return checksum_of(line) if checksum_holds(line, segment.seed) else None

    async def _undamaged(self, selection: Selection, cursor: int | None, max_events: int) -> Page:
        if selection.query and selection.query.items:
            return await self._query(selection, selection.query, cursor, max_events)
        first, last = bounds(selection, cursor)
        if selection.backwards:
            near, far = last, max(first, last - max_events + 1)
            events = await self._events(self._runs_down(far, near), backwards=True)
        else:
            near, far = first, min(last, first + max_events - 1)
            events = await self._events(self._runs_up(near, far), backwards=False)
        end = first if selection.backwards else last
        return Page(events, None if not events or events[-1].event_id == end else events[-1].event_id)

    async def _query(self, selection: Selection, query: Query, cursor: int | None, max_events: int) -> Page:
        count = min(max(max_events, EXAMINED_MIN), EXAMINED_MAX)
        ids = list(islice(self._index.postings.candidates(selection, cursor), count))
        examined = await self._events(self._scattered(ids), selection.backwards)
        found: list[Event] = []
        for event in examined:
            if query.matches(event):
                found.append(event)
                if len(found) == max_events:
                    return Page(found, event.event_id)
        if len(examined) == len(ids) < count:
            return Page(found, None)
        return Page(found, examined[-1].event_id)

    async def _stream(self, stream_id: str, selection: Selection, cursor: int | None, max_events: int) -> Page:
        """A page of a stream; that its versions are dense shows that nothing is missing between its events."""
        known, places = self._index.postings.places(stream_id, selection, cursor)
        lost = self._lost_behind(known, selection) if self._index.damages else None
        if lost is not None and selection.backwards and cursor is None:
            raise lost.error()
        asked = places[:max_events]
        ids = [known[place] for place in asked]
        examined = await self._events(self._scattered(ids), selection.backwards)
        for count, (place, event) in enumerate(zip(asked, examined, strict=False)):
            if event.version != place + 1 or event.stream_id != stream_id:
                if count:
                    return self._page(examined[:count], selection, examined[count - 1].event_id)
                raise self._wrong_version(stream_id, place + 1, event)
        if len(examined) < len(places):
            return self._page(examined, selection, examined[-1].event_id)
        if lost is not None and not selection.backwards:
            if not examined:
                raise lost.error()
            return self._page(examined, selection, examined[-1].event_id)
        return self._page(examined, selection, None)

    def _page(self, events: list[Event], selection: Selection, cursor: int | None) -> Page:
        query = selection.query
        return Page([event for event in events if query.matches(event)] if query else events, cursor)

    def _wrong_version(self, stream_id: str, version: int, event: Event) -> StoreCorrupt:
        for damage in self._index.damages:
            if damage.first < event.event_id:
                return damage.error()
        segment = self._index.segment_of(event.event_id)
        offset, _ = segment.span(event.event_id, event.event_id)
        found = f"stream {event.stream_id!r} version {event.version} stands where {stream_id!r} version {version} must"
        return StoreCorrupt(segment.path, offset, found, event.event_id, event.event_id)

    def _lost_behind(self, known: Sequence[int], selection: Selection) -> Damage | None:
        """Damage that may hold more of a stream than is known of it."""
        if selection.to_version is not None and selection.to_version <= len(known):
            return None
        behind = max(known[-1] if known else 0, selection.after)
        return next((d for d in self._index.damages if d.last > behind and d.first <= selection.up_to), None)

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

    # --- pieces ---

    def _runs_up(self, first: int, last: int) -> list[_Piece]:
        """The events from the first on, as far as a page goes."""
        pieces: list[_Piece] = []
        budget = PAGE_BYTES
        while first <= last:
            segment = self._index.segment_of(first)
            starts = segment.starts
            place = first - segment.first_event_id
            start = starts[place]
            after = bisect_right(starts, start + budget, place + 1) - 1  # before this place, lines end within
            if after == len(starts) - 1 and segment.end <= start + budget:
                after += 1
            if after == place:
                if pieces:
                    break
                after += 1
            until = min(last, segment.first_event_id + after - 1)
            start, end = segment.span(first, until)
            pieces.append(_Piece(segment, start, end, range(first, until + 1)))
            budget -= end - start
            if until < segment.last_event_id:
                break
            first = until + 1
        return pieces

    def _runs_down(self, first: int, last: int) -> list[_Piece]:
        """The events from the last down, as far as a page goes."""
        pieces: list[_Piece] = []
        budget = PAGE_BYTES
        while first <= last:
            segment = self._index.segment_of(last)
            place = last - segment.first_event_id
            _, end = segment.span(last, last)
            lowest = min(bisect_left(segment.starts, max(end - budget, 0), 0, place + 1), place)
            start = segment.starts[lowest]
            if end - start > budget and pieces:
                break
            until = max(first, segment.first_event_id + lowest)
            start, end = segment.span(until, last)
            pieces.append(_Piece(segment, start, end, range(until, last + 1)))
            budget -= end - start
            if until > segment.first_event_id:
                break
            last = until - 1
        return pieces

    def _scattered(self, ids: Sequence[int]) -> list[_Piece]:
        """These events, in their order, as far as a page goes: those near to each other in one piece."""
        pieces: list[_Piece] = []
        budget = PAGE_BYTES
        wanted: list[int] = []
        segment, low, high = None, 0, 0
        for event_id in ids:
            if segment is None or not segment.first_event_id <= event_id <= segment.last_event_id:
                segment, wanted = self._index.segment_of(event_id), []
            start, end = segment.span(event_id, event_id)
            if wanted and (start > high + GAP_BYTES or end < low - GAP_BYTES):
                wanted = []
            new_low, new_high = (min(low, start), max(high, end)) if wanted else (start, end)
            budget -= (new_high - new_low) - (high - low if wanted else 0)
            if budget < 0 and pieces:
                break
            low, high = new_low, new_high
            wanted.append(event_id)
            piece = _Piece(segment, low, high, wanted)
            if len(wanted) == 1:
                pieces.append(piece)
            else:
                pieces[-1] = piece
        return pieces

    # --- lines ---

    async def _events(self, pieces: list[_Piece], backwards: bool) -> list[Event]:
        """The events of the pieces, in the order of the selection; those before damage, or `StoreCorrupt` there."""
        events: list[Event] = []
        for piece in pieces:
            segment, start, end, ids = piece
            try:
                data = await self._files.read(segment, start, end - start)
            except OSError as error:
                if events:
                    return events
                if error.errno not in (errno.EIO, errno.ENOENT):  # too many open files, no memory, no rights…
                    raise EngineUnavailable(f"{segment.path} cannot be read now: {error}") from error
                raise StoreCorrupt(segment.path, start, f"cannot be read: {error}", min(ids), max(ids)) from error
            try:
                if isinstance(ids, range):
                    run = decode_events(data, segment.seed, ids[0], len(ids))
                    events.extend(reversed(run) if backwards else run)
                    continue
            except Damaged:
                ids = ids[::-1] if backwards else ids  # what comes before the damage is served, one by one
            for event_id in ids:
                at, after = segment.span(event_id, event_id)
                try:
                    events.extend(decode_events(data[at - start : after - start], segment.seed, event_id, 1))
                except Damaged as damaged:
                    if events:
                        return events
                    raise StoreCorrupt(segment.path, at, str(damaged), event_id, event_id) from damaged
        return events
