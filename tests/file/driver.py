"""Drives an engine without the store: makes plans, and reads everything back."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from concurrent.futures import Executor
from typing import Any, TypeVar, cast

import msgspec

from aiostore.engine import Commit, Engine, Head, Plan, Selection
from aiostore.engines.file.disk import Disk
from aiostore.engines.file.engine import FileEngine
from aiostore.engines.file.index import Index
from aiostore.engines.file.lookups import Lookups
from aiostore.engines.file.opening import Options, Writer, open_to_write
from aiostore.engines.file.pages import PageReader
from aiostore.engines.file.segment_files import SegmentFiles
from aiostore.errors import StoreCorrupt
from aiostore.events import NO_METADATA, Event

T = TypeVar("T")

TIME = "2026-11-23T04:50:00.{:06d}Z"

New = tuple[str, str, dict[str, Any]] | tuple[str, str, dict[str, Any], dict[str, Any], tuple[str, ...]]
"""stream_id, event_type, data, and maybe metadata and tags."""


class Driver:
    """Decides the places of events as the store would."""

    def __init__(self, engine: Engine | None, head: Head) -> None:
        self._engine = engine
        self.head = head.event_id
        self.versions: dict[str, int] = {}

    def events(self, news: Sequence[New]) -> list[Event]:
        """The next events; they count as stored."""
        made = []
        for new in news:
            stream_id, event_type, data = new[:3]
            metadata, tags = new[3:] if len(new) == 5 else ({}, ())
            self.head += 1
            version = self.versions[stream_id] = self.versions.get(stream_id, 0) + 1
            raw = msgspec.Raw(msgspec.json.encode(metadata)) if metadata else NO_METADATA
            time = TIME.format(self.head % 1_000_000)
            encoded = msgspec.Raw(msgspec.json.encode(data))
            made.append(Event(self.head, stream_id, version, event_type, time, encoded, raw, tags))
        return made

    def plan(self, *commits: list[New] | tuple[str, list[New]]) -> Plan:
        """A group of commits; one with an idempotency key is a tuple of it and the events."""
        made = []
        for commit in commits:
            if isinstance(commit, tuple):
                made.append(Commit(self.events(commit[1]), commit[0]))
            else:
                made.append(Commit(self.events(commit), None))
        return Plan(made)

    async def commit(self, *commits: list[New] | tuple[str, list[New]]) -> Plan:
        """Commit such a group; if that fails, the places are free again."""
        head, versions = self.head, dict(self.versions)
        plan = self.plan(*commits)
        try:
            assert self._engine is not None
            await self._engine.commit(plan)
        except BaseException:
            self.head, self.versions = head, versions
            raise
        return plan


async def started(path: object, disk: Disk | None = None, **options: Any) -> tuple[FileEngine, Driver]:
    """An open engine and its driver, which knows the versions of what is stored."""
    engine = FileEngine(str(path), disk=disk, **options)
    driver = Driver(engine, await engine.open())
    for event in await everything(engine):
        driver.versions[event.stream_id] = event.version
    return engine, driver


async def everything(engine: Engine, **bounds: Any) -> list[Event]:
    """All events of a selection, by default of the whole log."""
    selection = Selection(**{"up_to": 10**12, **bounds})
    found: list[Event] = []
    cursor = None
    while True:
        page = await engine.read(selection, cursor)
        found.extend(page.events)
        if page.cursor is None:
            return found
        cursor = page.cursor


def counted(count: int, stream_id: str = "s") -> list[New]:
    """So many simple events of one stream."""
    return [(stream_id, "Counted", {"n": n}) for n in range(count)]


def run_now(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits, as reads of a disk in memory don't."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return cast("T", stop.value)
    raise AssertionError("the coroutine waits")


def nothing() -> None:
    """What recovery calls again and again."""


def opened_to_write(disk: Disk, path: str = "/s", synced: bool = True, segment_bytes: int = 10**6) -> Writer:
    """Open a store synchronously."""
    return open_to_write(disk, path, Options(synced, segment_bytes), nothing)


def read_now(disk: Disk, index: Index, **bounds: Any) -> tuple[list[Event], StoreCorrupt | None]:
    """What a reader gets of a selection, and the error that ends it."""
    files = SegmentFiles(disk, cast("Executor", None))
    for segment in index.segments:  # a read in the loop needs the file to be open
        files._give_back([files._open(segment)])
    reader = PageReader(index, files, Lookups(cast("Executor", None), cast("Any", None)))
    selection = Selection(**{"up_to": index.head.event_id, **bounds})
    found: list[Event] = []
    cursor = None
    try:
        while True:
            page = run_now(reader.read(selection, cursor, 7))
            found.extend(page.events)
            if page.cursor is None:
                return found, None
            cursor = page.cursor
    except StoreCorrupt as error:
        return found, error
    finally:
        files.close()
