"""Every way of reading, at once and without a loop: what it gives, and what it says is lost."""

from __future__ import annotations

import random
from collections.abc import Coroutine
from typing import Any, TypeVar, cast

from aiostore.engine import Engine, Selection
from aiostore.engines.file.disk import Disk
from aiostore.engines.file.index import Index
from aiostore.engines.file.lookups import Lookups
from aiostore.engines.file.pages import PageReader
from aiostore.engines.file.pieces import Piece
from aiostore.engines.file.recovery import scan_again
from aiostore.engines.file.run import RunDamaged
from aiostore.engines.file.segment_files import ReadLines, SegmentFiles
from aiostore.errors import EngineUnavailable, StoreCorrupt
from aiostore.events import Event
from aiostore.query import Query, QueryItem
from tests.file.driver import nothing, run_now
from tests.fuzz.seeds import DIRECTORY
from tests.fuzz.standing import Standing

T = TypeVar("T")

GONE_PAST_MAX = 60
"""So many damaged places are gone past."""

QUERIES = [
    Query.where(types=["A"]),
    Query.where(types=["Counted", "T"]),
    Query.where(tags=["x"]),
    Query.where(tags=["x", "y"]),
    Query(QueryItem(types=("A",), tags=("x",)), QueryItem(tags=("rare",)), QueryItem(types=("B",), stream_prefix="c-")),
]


class Wrong(AssertionError):
    """A promise that was broken."""


def of_stream(events: set[Event], stream_id: str) -> list[Event]:
    """Those of the stream, in order."""
    return sorted((event for event in events if event.stream_id == stream_id), key=lambda event: event.event_id)


class _Files(SegmentFiles):
    """Waits where it is."""

    async def read_all(self, pieces: Any) -> ReadLines:
        read: list[list[bytes]] = []
        error = self._read_nowait(pieces, read)
        if error is not None or len(read) == len(pieces):
            return read, error
        further, error = self.read_waiting(cast("list[Piece]", pieces)[len(read) :])
        return read + further, error


class Ways:
    """Reads an index in every way, and compares."""

    def __init__(self, disk: Disk, index: Index, dice: random.Random) -> None:
        self.index = index
        self._disk = disk
        self._dice = dice
        self._lies = False
        self._files = _Files(disk, cast("Any", None))
        self.pages = PageReader(index, self._files, Lookups(cast("Any", None), self._mend))
        # What the engine's own ways of asking need of an engine.
        self.read = self.pages.read
        self.first = lambda selection: Engine.first(cast("Any", self), selection)
        self._past_damage = lambda *args: Engine._past_damage(cast("Any", self), *args)

    async def _mend(self, damaged: RunDamaged) -> None:
        if damaged.run in self.index.sources:
            try:
                made = scan_again(
                    self._disk,
                    DIRECTORY,
                    self.index.store_id,
                    damaged.run,
                    self.index.part_bytes_min,
                    nothing,
                    lambda _index, _part: None,
                )
            except OSError as error:  # a segment was deleted: EngineUnavailable, in the engine
                raise StoreCorrupt(damaged.run.path, -1, str(error), 1, self.index.head.event_id) from error
            self.index.exchange([damaged.run], made)

    def close(self) -> None:
        self._files.close()

    def now(self, asked: Coroutine[Any, Any, T]) -> T | StoreCorrupt:
        """The answer, or that it is damaged."""
        try:
            return run_now(asked)
        except StoreCorrupt as error:
            return error

    def page_by_page(self, **bounds: Any) -> tuple[list[Event], StoreCorrupt | None]:
        """What a reader gets, and the error that ends it."""
        selection = Selection(**{"up_to": self.index.head.event_id, **bounds})
        events: list[Event] = []
        cursor = None
        count = self._dice.choice((1, 7, 500, 500))
        if len(self.index.segments) > 60:
            count = 500
        while True:
            page = self.now(self.read(selection, cursor, count))
            if isinstance(page, StoreCorrupt):
                return events, page
            if len(page.events) > count:
                raise Wrong(f"a page of {len(page.events)} where {count} were asked for")
            events += page.events
            if page.cursor is None:
                return events, None
            if cursor is not None and (page.cursor >= cursor if selection.backwards else page.cursor <= cursor):
                if self._lies:
                    return events, StoreCorrupt("", -1, "an index that lies may lead in a circle", 1, 10**6)
                raise Wrong(f"the cursor {page.cursor} comes behind {cursor}")
            cursor = page.cursor

    def through(self, backwards: bool = False, query: Query | None = None) -> tuple[list[Event], list[range]]:
        """All that there is, past what is damaged, and which events that is."""
        events: list[Event] = []
        lost: list[range] = []
        after, up_to = 0, self.index.head.event_id
        for _ in range(GONE_PAST_MAX):
            got, error = self.page_by_page(after=after, up_to=up_to, backwards=backwards, query=query)
            events += got
            if error is None:
                return events, lost
            first, last = error.first_event_id, error.last_event_id
            if last < first:  # the index cannot be made anew, for a commit in its segments has no end
                last = up_to
            if first <= 0:
                raise Wrong(f"an error in the way of reading does not say of which events: {error}")
            if query is not None:  # damage in the log may keep the index from being made anew for those around it
                first, last = (
                    (min(first, up_to), max(last, up_to))
                    if backwards
                    else (min(first, after + 1), max(last, after + 1))
                )
            lost.append(range(first, last + 1))
            if backwards:
                up_to = min(first - 1, (got[-1].event_id if got else up_to + 1) - 1, up_to - 1)
            else:
                after = max(last, got[-1].event_id if got else after, after + 1)
            if after >= up_to:
                return events, lost
        lost.append(range(after + 1, up_to + 1))
        return events, lost

    # --- comparing ---

    def check(self, standing: Standing, *, lies: bool, whole: bool) -> dict[int, Event]:
        """Read in every way. ``lies``: the index may not say all. ``whole``: nothing may be missing."""
        self._lies = lies
        if standing.begins_anywhere:
            return {}  # nothing reads such a log yet
        events, lost = self.through()
        known = {event.event_id: event for event in events}
        ids = [event.event_id for event in events]
        if ids != sorted(known):
            raise Wrong(f"not in order: {ids}")
        for event in events:
            if event not in standing.events:
                raise Wrong(f"{event._stored()} was served, and does not stand in the files")
        head = self.index.head.event_id
        begin = self.index.segments[0].first_event_id if self.index.segments else 1
        if not lies:
            for event_id in range(begin, min(head, begin + 5000) + 1):
                if event_id not in known and not any(event_id in each for each in lost):
                    raise Wrong(f"event {event_id} of {head} is left out, and nothing says so; lost are {lost}")
        if whole and lost:
            raise Wrong(f"nothing is wrong, but reading says that {lost} are lost")
        down, lost_down = self.through(backwards=True)
        if not set(down) <= standing.events if lies else down != [known.get(event.event_id) for event in down]:
            raise Wrong("down, other events come than up")
        if [e.event_id for e in down] != sorted({e.event_id for e in down}, reverse=True):
            raise Wrong("down, the events are not in order")
        for event_id in known.keys() - {event.event_id for event in down}:
            if not any(event_id in each for each in lost_down):
                raise Wrong(f"down, event {event_id} is left out")
        complete = not lost and not lies
        self._check_streams(known, standing.events, lies, complete)
        self._check_queries(known, standing.events, lies)
        self._check_keys(known, standing, lies, complete)
        self._check_the_rest(known, standing.events, lies, complete)
        return known

    def _check_streams(self, known: dict[int, Event], events: set[Event], lies: bool, complete: bool) -> None:
        streams = sorted({event.stream_id for event in known.values()})
        for stream_id in self._dice.sample(streams, min(3, len(streams))):
            mine = [event for event in known.values() if event.stream_id == stream_id]
            dense = [event.version for event in mine] == list(range(1, len(mine) + 1))
            got, error = self.page_by_page(stream_id=stream_id)
            if lies or not set(got) <= set(mine):  # one whose newline is lost is found by one way, and not by another
                mine = of_stream(events, stream_id)
            if (not set(got) <= set(mine)) if lies else got != mine[: len(got)]:
                raise Wrong(f"stream {stream_id!r} is not what the log has: {got}")
            if not lies and [event.version for event in got] != list(range(1, len(got) + 1)):
                raise Wrong(f"the versions of {stream_id!r} are not dense: {got}")
            if error is None and not lies and len(got) != len(mine):
                raise Wrong(f"of stream {stream_id!r}, events are left out")
            if error is not None and complete and dense:
                raise Wrong(f"stream {stream_id!r} is whole, but {error}")
            down, _ = self.page_by_page(stream_id=stream_id, backwards=True)
            if not set(down) <= set(mine):
                mine = of_stream(events, stream_id)
            if (not set(down) <= set(mine)) if lies else down != mine[::-1][: len(down)]:
                raise Wrong(f"stream {stream_id!r}, down, is not what the log has")
            low = self._dice.randrange(1, len(mine) + 2)
            high = self._dice.randrange(low, len(mine) + 2)
            some, error = self.page_by_page(stream_id=stream_id, from_version=low, to_version=high)
            if not set(some) <= set(of_stream(events, stream_id)):
                raise Wrong(f"versions {low} to {high} of {stream_id!r} are not what the log has")
            if any(not low <= event.version <= high for event in some):
                raise Wrong(f"versions {low} to {high} of {stream_id!r} have others")
            if complete and dense and (error is not None or some != mine[low - 1 : high]):
                raise Wrong(f"versions {low} to {high} of {stream_id!r} are not all there: {some}, {error}")
            version = self.now(self.pages.version(stream_id, self.index.head.event_id))
            if complete and dense and version != len(mine):
                raise Wrong(f"{stream_id!r} is at version {len(mine)}, not {version}")
        nowhere = self.now(self.pages.version("nowhere", self.index.head.event_id))
        if not lies and nowhere != 0 and (complete or not isinstance(nowhere, StoreCorrupt)):
            raise Wrong("a stream that is not there has a version")

    def _check_queries(self, known: dict[int, Event], events: set[Event], lies: bool) -> None:
        for query in self._dice.sample(QUERIES, 2):
            for backwards in (False, True):
                got, lost = self.through(backwards, query)
                matching = [event for event in known.values() if query.matches(event)]
                if not set(got) <= events or not all(map(query.matches, got)):
                    raise Wrong(f"{query} gives what does not match, or is not what the log has: {got}")
                ids = [event.event_id for event in got]
                if not lies and ids != sorted(set(ids), reverse=backwards):
                    raise Wrong(f"{query} gives {ids}")
                for event in matching:
                    if event not in got and not lies and not any(event.event_id in each for each in lost):
                        raise Wrong(f"{query} leaves out {event}")

    def _check_keys(self, known: dict[int, Event], standing: Standing, lies: bool, complete: bool) -> None:
        keyed = [line for line in standing.lines if line.key is not None and known.get(line.event_id) == line.event]
        for line in self._dice.sample(keyed, min(2, len(keyed))):
            found = self.now(self.pages.stored(line.stream_id, line.key or "", self.index.head.event_id))
            if isinstance(found, StoreCorrupt):
                if complete:
                    raise Wrong(f"key {line.key!r}: {found}")
                continue
            if not lies and found is None:
                raise Wrong(f"key {line.key!r} of {line.stream_id!r} is not found")
            if found is not None:
                first = next((each for each in standing.lines if each.event_id == found.start), None)
                if first is not None and (first.key, first.stream_id) != (line.key, line.stream_id) and not lies:
                    raise Wrong(f"key {line.key!r} is found at {found}")
        nowhere = self.now(self.pages.stored("one", "nowhere", self.index.head.event_id))
        if not lies and nowhere is not None and (complete or not isinstance(nowhere, StoreCorrupt)):
            raise Wrong("a key that is not there is found")

    def _check_the_rest(self, known: dict[int, Event], events: set[Event], lies: bool, complete: bool) -> None:
        head = self.index.head.event_id
        ids = list(known)
        for event_id in self._dice.sample(ids, min(2, len(ids))):
            try:
                line = run_now(self.pages.line(event_id))
            except EngineUnavailable:  # its segment was deleted
                if complete:
                    raise
                continue
            if complete and line is None:
                raise Wrong(f"the line of event {event_id} is not there")
            if (
                not lies
                and line is not None
                and (line.event_id, line.stream_id, line.version)
                != (
                    event_id,
                    known[event_id].stream_id,
                    known[event_id].version,
                )
            ):
                raise Wrong(f"the line of event {event_id} is {line}")
            commits = self.now(self.pages.commits(event_id - 1))
            if isinstance(commits, list):
                taken = [event for commit in commits for event in commit.events]
                if not set(taken) <= events or (
                    not lies and any(known.get(event.event_id, event) != event for event in taken)
                ):
                    raise Wrong(f"the commits after {event_id - 1} are not what is read")
                if [event.event_id for event in taken] != list(range(event_id, event_id + len(taken))):
                    raise Wrong(f"the commits after {event_id - 1} are not one after another")
            times = [event._timestamp for event in known.values()]
            since = self.now(Engine.first_since(cast("Any", self), known[event_id]._timestamp, head))
            if complete and times == sorted(times):
                first = next(each.event_id for each in known.values() if each._timestamp >= known[event_id]._timestamp)
                if since != first:
                    raise Wrong(f"the first since {known[event_id]._timestamp} is {first}, not {since}")
