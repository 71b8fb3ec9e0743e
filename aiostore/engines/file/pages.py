"""Pages: the events of a selection, found by the index and read from the segments in few pieces, each line checked."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from itertools import islice
from typing import NamedTuple, ParamSpec, TypeVar

from aiostore.engine import Commit, Page, Selection
from aiostore.engines.file.disk import PREFETCHED_MAX
from aiostore.engines.file.format import (
    LINE_BYTES_MIN,
    Damaged,
    Line,
    decode_checked_line,
    decode_events,
    decode_lines,
)
from aiostore.engines.file.gaps import Gaps
from aiostore.engines.file.index import Index, runs_of
from aiostore.engines.file.lookups import Lookups
from aiostore.engines.file.pieces import Piece, runs_down, runs_up, scattered
from aiostore.engines.file.segment_files import ReadLines, SegmentFiles
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

P = ParamSpec("P")
T = TypeVar("T")

TERMS_PREFETCHED_MAX = 4
"""Of a query that names more, the others are read when it is their turn: a query may name thousands."""

EXAMINED_MIN = 32
EXAMINED_MAX = 2000
"""So many candidates of a query are looked at for one page, at least and at most."""


class _StreamPage(NamedTuple):
    """Which events a page of a stream has."""

    found: StreamPlaces
    asked: range
    """The places that are asked for, in the order of the selection."""


class PageReader:
    """Reads what the index knows; any number of reads at a time."""

    def __init__(self, index: Index, files: SegmentFiles, lookups: Lookups) -> None:
        self._index = index
        self._files = files
        self._ask = lookups.ask
        self._may_wait = lookups.may_wait

    async def read(self, selection: Selection, cursor: int | None, max_events: int) -> Page:
        """See `Engine.read`."""
        head = self._index.head.event_id
        if selection.up_to > head:
            selection = selection._replace(up_to=head)
        if selection.stream_id is not None:
            return await self._stream(selection.stream_id, selection, cursor, max_events)
        if self._index.damages:
            return await self._up_to_damage(selection, cursor, max_events)
        return await self._undamaged(selection, cursor, max_events)

    # --- where they are, and their lines ---

    async def _find(
        self, find: Callable[P, tuple[T, list[Piece]]], *args: P.args, **kwargs: P.kwargs
    ) -> tuple[T, list[Piece], ReadLines]:
        """What the function finds in the index, its pieces, and their lines. Where it needs a thread, one trip does."""

        def here() -> tuple[T, list[Piece], ReadLines | None]:
            found, pieces = find(*args, **kwargs)
            return found, pieces, self._files.read_waiting(pieces) if self._may_wait() else None

        found, pieces, read = await self._ask(here)
        return found, pieces, await self._files.read_all(pieces) if read is None else read

    def _scattered(self, ids: Sequence[int]) -> tuple[Sequence[int], list[Piece]]:
        if self._may_wait():
            lacking = [(run, number) for run in runs_of(self._index) for number in run.lacking(ids)]
            for first in range(0, len(lacking), PREFETCHED_MAX):
                some = lacking[first : first + PREFETCHED_MAX]
                for run, number in some if len(some) > 1 else ():
                    run.prefetch_block(number)
                for run, number in some:
                    run.load(number)
        return ids, scattered(self._index, ids)

    def _run(self, first: int, last: int, backwards: bool) -> tuple[range, list[Piece]]:
        return range(first, last + 1), (runs_down if backwards else runs_up)(self._index, first, last)

    def _prefetch(self, terms: Sequence[Term]) -> None:
        """On a thread: have the device read at once what each run says of the terms."""
        if self._may_wait():
            for run in runs_of(self._index):
                for term in terms[:TERMS_PREFETCHED_MAX]:
                    run.prefetch(term)

    # --- single lines ---

    async def line(self, event_id: int) -> Line | None:
        """The event's line; None where there is no such event, or its line is damaged."""
        lost = any(damage.first <= event_id <= damage.last for damage in self._index.damages)
        if lost or not 1 <= event_id <= self._index.head.event_id:
            return None
        try:
            return await self._line(event_id)
        except StoreCorrupt:
            return None

    async def _line(self, event_id: int) -> Line:
        return await self._single(*await self._find(self._scattered, (event_id,)))

    async def _single(self, ids: Sequence[int], pieces: list[Piece], lines: ReadLines) -> Line:
        """The line of the one event that was found."""
        try:
            return self._only(ids, pieces, lines)
        except StoreCorrupt:
            self._files.renew([piece.segment for piece in pieces])
            return self._only(*await self._find(self._scattered, ids))

    def _only(self, ids: Sequence[int], pieces: list[Piece], lines: ReadLines) -> Line:
        (event_id,), (piece,), (read, error) = ids, pieces, lines
        if error is not None:
            raise EngineUnavailable(f"{piece.segment.path} cannot be read now: {error}") from error
        try:
            line = decode_checked_line(_single_line(read), piece.segment.seed)
            if line.event_id != event_id:
                raise Damaged(f"event {line.event_id} stands where {event_id} must")
            return line
        except Damaged as damaged:
            raise StoreCorrupt(piece.segment.path, piece.start, str(damaged), event_id, event_id) from damaged

    async def version(self, stream_id: str, head: int) -> int:
        """The version of the stream as of the head, or of a later one if it is remembered."""
        version = self._index.versions.get(stream_id)
        if version is not None:
            return version
        as_of = head
        term = Term(Kind.STREAM, stream_id)
        version = 0
        while not version:
            ids, pieces, read = await self._find(self._newest, term, head)
            if not ids:
                break
            event = (await self._events(pieces, read, backwards=True))[0]
            version = event.version if event.stream_id == stream_id else 0
            head = min(head, event.event_id) - 1  # down in any case, whatever the index says
        if version and as_of == self._index.head.event_id:  # else an event that it had since may be forgotten already
            self._index.versions.room()[stream_id] = version
        return version

    def _newest(self, term: Term, high: int) -> tuple[Sequence[int], list[Piece]]:
        self._prefetch([term])
        for source in reversed(self._index.sources):
            places = source.places(term, source.first_event_id, high)
            if places:
                return self._scattered(source.ids(term, places[-1:]))
        return (), []

    async def stored(self, stream_id: str, key: str, head: int) -> range | None:
        """The events of the commit that the key stands with, None if there is none."""
        term = Term(Kind.KEY, key_text(stream_id, key))
        while (found := await self._find(self._newest, term, head))[0]:
            line = await self._single(*found)
            if line.stream_id == stream_id and line.key == key:
                return range(line.event_id, line.event_id + line.more + 1)
            head = min(head, line.event_id) - 1
        return None

    async def commits(self, after: int) -> list[Commit]:
        """The next whole commits above ``after``, as far as a page goes; one that is larger is cut."""
        _, pieces, (read, error) = await self._find(self._run, after + 1, self._index.head.event_id, False)
        lines: list[Line] = []
        if error is not None and not read:
            raise _unreadable(pieces[0], error) from error
        for piece, texts in zip(pieces, read, strict=False):
            try:
                lines += decode_lines(texts, [piece.segment.seed] * len(texts), piece.ids)
            except Damaged:
                return await self._commits_before_damage([*(line.event_id for line in lines), *piece.ids])
        return commits_of(lines)

    async def _commits_before_damage(self, ids: Sequence[int]) -> list[Commit]:
        """The whole commits that come before the damage, read one by one; where there are none, it is raised."""
        lines: list[Line] = []
        for event_id in ids:
            try:
                lines.append(await self._line(event_id))
            except StoreCorrupt:
                while lines and lines[-1].more:
                    lines.pop()
                if not lines:
                    raise
                break
        return commits_of(lines)

    # --- pages ---

    async def _undamaged(self, selection: Selection, cursor: int | None, max_events: int) -> Page:
        if selection.query and selection.query.items:
            return await self._query(selection, selection.query, cursor, max_events)
        first, last = bounds(selection, cursor)
        if selection.backwards:
            asked = max(first, last - max_events + 1), last
        else:
            asked = first, min(last, first + max_events - 1)
        _, pieces, read = await self._find(self._run, *asked, selection.backwards)
        events = await self._events(pieces, read, selection.backwards)
        end = first if selection.backwards else last
        return Page(events, None if not events or events[-1].event_id == end else events[-1].event_id)

    async def _query(self, selection: Selection, query: Query, cursor: int | None, max_events: int) -> Page:
        count = min(max(max_events, EXAMINED_MIN), EXAMINED_MAX)
        ids, pieces, read = await self._find(self._find_candidates, selection, query, cursor, count)
        examined = await self._events(pieces, read, selection.backwards)
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
        self._prefetch([Term(Kind.TAG, tag) for item in query.items for tag in item.tags])
        walk = candidates(self._index.sources, query, low, high, backwards=selection.backwards)
        return self._scattered(list(islice(walk, count)))

    async def _stream(self, stream_id: str, selection: Selection, cursor: int | None, max_events: int) -> Page:
        """A page of a stream; that its versions are dense shows that nothing is missing between its events."""
        if self._index.damages:
            return await self._stream_by_lines(stream_id, selection, cursor, max_events)
        page, pieces, read = await self._find(self._find_stream, stream_id, selection, cursor, max_events)
        found, asked = page
        events = await self._events(pieces, read, selection.backwards)
        # Events of others count like versions where they have the same hash: with a bound above, no place may be left.
        is_sure = found.selected or selection.to_version is None or bounds(selection, cursor)[0] == 1
        count = len(events)
        versions = [place + 1 for place in asked[:count]]
        if not (
            is_sure
            and [event.version for event in events] == versions
            and [event.stream_id for event in events].count(stream_id) == count
        ):
            return await self._stream_by_lines(stream_id, selection, cursor, max_events)
        return _page(events, selection, None if len(events) == len(found.selected) else events[-1].event_id)

    def _find_stream(
        self, stream_id: str, selection: Selection, cursor: int | None, max_events: int
    ) -> tuple[_StreamPage, list[Piece]]:
        self._prefetch([Term(Kind.STREAM, stream_id)])
        found = stream_places(self._index.sources, stream_id, selection, cursor)
        asked = (found.selected[::-1] if selection.backwards else found.selected)[:max_events]
        return _StreamPage(found, asked), self._scattered(found.ids(asked))[1]

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
            if gaps.ended(event):
                return _page(page, selection, None)
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
            ids, pieces, read = await self._find(self._find_ids, term, low, high, backwards, count)
            examined = await self._events(pieces, read, backwards)
            events.extend(event for event in examined if event.stream_id == stream_id)
            if len(examined) == len(ids) < count:
                return events, True
            if events:
                return events, False
            last = examined[-1].event_id
            low, high = (low, min(last, high) - 1) if backwards else (max(last, low) + 1, high)
        return events, True

    def _find_ids(
        self, term: Term, low: int, high: int, backwards: bool, count: int
    ) -> tuple[Sequence[int], list[Piece]]:
        self._prefetch([term])
        return self._scattered(list(islice(posted(self._index.sources, term, low, high, backwards=backwards), count)))

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
            clear, stop = selection._replace(after=damage.last), damage.last + 1
            is_there = damage.last >= high
        else:
            clear, stop = selection._replace(up_to=damage.first - 1), damage.first - 1
            is_there = damage.first <= low
        if is_there:
            raise damage.error()
        page = await self._undamaged(clear, cursor, max_events)
        return page if page.cursor is not None else Page(page.events, stop)

    # --- lines ---

    async def _events(self, pieces: list[Piece], lines_read: ReadLines, backwards: bool) -> list[Event]:
        """The events of the pieces, in the order of the selection; those before damage, or `StoreCorrupt` there."""
        read, error = lines_read
        if error is not None and not read:
            raise _unreadable(pieces[0], error) from error
        lines: list[bytes] = []
        seeds: list[int] = []
        ids: list[int] = []
        for piece, own in zip(pieces, read, strict=False):
            turned = backwards and piece.spans is None
            lines += reversed(own) if turned else own
            ids += reversed(piece.ids) if turned else piece.ids
            seeds += [piece.segment.seed] * len(own)
        try:
            return decode_events(lines, seeds, ids)
        except Damaged:
            self._files.renew([piece.segment for piece in pieces])
            return await self._before_damage(ids)

    async def _before_damage(self, ids: Sequence[int]) -> list[Event]:
        """What comes before the damage is served, one by one; where nothing does, it is raised."""
        events: list[Event] = []
        for event_id in ids:
            _, (piece,), (read, error) = await self._find(self._scattered, (event_id,))
            try:
                if error is not None:
                    raise _unreadable(piece, error) from error
                line = _single_line(read)
                events += decode_events([line], [piece.segment.seed], [event_id])
            except (Damaged, EngineUnavailable, StoreCorrupt) as here:
                if events:
                    return events
                if not isinstance(here, Damaged):
                    raise
                start, _ = await self._ask(piece.segment.span, event_id)
                raise StoreCorrupt(piece.segment.path, start, str(here), event_id, event_id) from here
        return events


def _single_line(read: list[list[bytes]]) -> bytes:
    """The line that was read alone, without its newline and the padding behind it."""
    if not read[0]:
        raise Damaged("the file ends before it")
    return read[0][0].rstrip(b"\n")


def _unreadable(piece: Piece, error: OSError) -> EngineUnavailable | StoreCorrupt:
    path = piece.segment.path
    if error.errno not in (errno.EIO, errno.ENOENT):  # too many open files, no memory, no rights…
        return EngineUnavailable(f"{path} cannot be read now: {error}")
    start = min(piece.spans)[0] if piece.spans else piece.start
    return StoreCorrupt(path, start, f"cannot be read: {error}", min(piece.ids), max(piece.ids))


def commits_of(lines: Sequence[Line]) -> list[Commit]:
    """The whole commits that the lines begin with; where the first does not end in them, what there is of it."""
    commits: list[Commit] = []
    first = 0
    for place, line in enumerate(lines):
        if not line.more:
            commits.append(_commit(lines[first : place + 1]))
            first = place + 1
    if lines and not commits:
        commits.append(_commit(lines))
    return commits


def _commit(lines: Sequence[Line]) -> Commit:
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
    size = sum([LINE_BYTES_MIN + len(memoryview(line.data)) for line in lines])
    return Commit(events, lines[0].key, size)


def _page(events: list[Event], selection: Selection, cursor: int | None) -> Page:
    query = selection.query
    return Page([event for event in events if query.matches(event)] if query else events, cursor)
