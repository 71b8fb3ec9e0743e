"""The engine over a directory: a durable log in JSON Lines, embedded in the process."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, ParamSpec, TypeVar

from aiostore.engine import (
    PAGE_EVENTS,
    Commit,
    Engine,
    Facts,
    Head,
    Page,
    Plan,
    Question,
    Saving,
    Selection,
    State,
)
from aiostore.engines.file.blocks import Blocks
from aiostore.engines.file.disk import Disk, DiskThread, deliver_later, until_done
from aiostore.engines.file.following import Follower
from aiostore.engines.file.index import PART_BYTES_MIN, Index
from aiostore.engines.file.lookups import Lookups
from aiostore.engines.file.opening import Options, Writer, check_place, open_to_read, open_to_write
from aiostore.engines.file.pages import PageReader, commits_of
from aiostore.engines.file.sealing import Sealer
from aiostore.engines.file.segment_files import SegmentFiles
from aiostore.engines.file.state import STATE_NAME, Row, StateFile
from aiostore.errors import EngineUnavailable, EngineUnsupported, StoreClosed, StoreCorrupt
from aiostore.events import Event
from aiostore.limits import MIB

if TYPE_CHECKING:
    from os import PathLike

P = ParamSpec("P")
T = TypeVar("T")

SEGMENT_BYTES = 16 * MIB
SEGMENT_BYTES_MAX = 1024 * MIB
READ_THREADS = 4


@dataclass(frozen=True, slots=True)
class _Opened:
    thread: DiskThread
    readers: ThreadPoolExecutor
    files: SegmentFiles
    index: Index
    sealer: Sealer
    lookups: Lookups
    pages: PageReader
    state: StateFile
    state_thread: ThreadPoolExecutor
    follower: Follower | None


class FileEngine(Engine):
    """Keeps the events in the directory ``path``, which one process at a time opens for writing.

    ``durability``: "fsync" (an acknowledged event survives a power loss) or "os" (it survives the process; the system
    writes it to the device in its own time). ``mode``: "rw", or "r" to read and follow what another process writes, or
    to read a damaged store. ``segment_bytes``: where a file of the log is full, 1 to 1 GiB. ``force_network``: use a
    network file system all the same. ``disk``, ``part_bytes_min``: for tests. ValueError if an option is not one of
    these.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        durability: Literal["fsync", "os"] = "fsync",
        mode: Literal["rw", "r"] = "rw",
        segment_bytes: int = SEGMENT_BYTES,
        force_network: bool = False,
        disk: Disk | None = None,
        part_bytes_min: int = PART_BYTES_MIN,
    ) -> None:
        if durability not in ("fsync", "os"):
            raise ValueError(f"durability must be 'fsync' or 'os', not {durability!r}")
        if mode not in ("rw", "r"):
            raise ValueError(f"mode must be 'rw' or 'r', not {mode!r}")
        if isinstance(segment_bytes, bool) or not isinstance(segment_bytes, int):
            raise ValueError(f"segment_bytes must be an int, not {segment_bytes!r}")
        if not 1 <= segment_bytes <= SEGMENT_BYTES_MAX:
            raise ValueError(f"segment_bytes must be 1 to {SEGMENT_BYTES_MAX}, not {segment_bytes}")
        if not isinstance(force_network, bool):
            raise ValueError(f"force_network must be True or False, not {force_network!r}")
        self._path = _checked_path(path)
        self._read_only = mode == "r"
        self._options = Options(durability == "fsync", segment_bytes, part_bytes_min)
        self._blocks = Blocks()
        self._force_network = force_network
        self._disk = disk or Disk()
        self._directory = ""  # from the root; known when it is opened
        self._opened: _Opened | None = None
        self._writer: Writer | None = None
        self._closing: Future[None] | None = None

    @property
    def location(self) -> str:
        return self._path

    @property
    def read_only(self) -> bool:
        return self._read_only

    def __repr__(self) -> str:
        return f"FileEngine({self._path!r}, mode={'r' if self._read_only else 'rw'!r})"

    async def open(self) -> Head:
        thread = DiskThread("aiostore-write")
        stop = threading.Event()

        def going_on() -> None:
            if stop.is_set():
                raise EngineUnavailable(f"opening {self._path} was cancelled")

        try:
            job, cancelled = await thread.settle(thread.trip(self._open, going_on), stop.set)
            if cancelled is not None:
                if job.exception() is None:
                    await until_done(thread.submit(job.result().close))
                raise cancelled
            opened = job.result()
        except BaseException:
            thread.shutdown(wait=False)
            raise
        index = opened.index if isinstance(opened, Writer) else opened
        directory = self._directory
        sealer = Sealer(self._disk, directory, index, self._blocks, writing=isinstance(opened, Writer))
        if isinstance(opened, Writer):
            self._writer = opened
            self._writer.log.attach(thread, sealer)
        readers = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="aiostore-read")
        files = SegmentFiles(self._disk, readers)
        lookups = Lookups(readers, sealer.mend)
        self._blocks.may_block = lookups.may_wait
        state_thread = ThreadPoolExecutor(1, thread_name_prefix="aiostore-state")
        state = StateFile(self._disk, f"{directory}/{STATE_NAME}", read_only=self._read_only)
        pages = PageReader(index, files, lookups)
        follower = None
        if self._read_only:  # a network file system tells only of what this machine does
            follower = Follower(self._disk, directory, index, self._blocks, readers, polls=self._force_network)
        self._opened = _Opened(thread, readers, files, index, sealer, lookups, pages, state, state_thread, follower)
        sealer.look()
        return index.head

    def _open(self, going_on: Callable[[], None]) -> Writer | Index:
        try:
            directory = self._directory = self._disk.absolute(self._path)
            check_place(self._disk, directory, force_network=self._force_network)
            if self._read_only:
                return open_to_read(self._disk, directory, going_on, self._blocks, self._options.part_bytes_min)
            return open_to_write(self._disk, directory, self._options, going_on, self._blocks)
        except OSError as error:
            raise EngineUnavailable(f"{self._path} cannot be opened: {error}") from error

    async def aclose(self) -> None:
        if self._opened is None:
            return
        if self._closing is None:
            if self._writer is not None:
                self._writer.log.stop()
            self._opened.sealer.stop()
            self._opened.lookups.refuse()
            self._opened.files.refuse()
            if self._opened.follower is not None:
                self._opened.follower.stop()
            self._closing = self._opened.thread.submit_aside(self._close, self._opened)
            self._opened.thread.shutdown(wait=False)
        cancelled = await until_done(self._closing)
        if cancelled is not None:
            deliver_later(cancelled)
        self._closing.result()

    def _close(self, opened: _Opened) -> None:
        opened.readers.shutdown()
        opened.state_thread.shutdown()
        opened.sealer.close()
        opened.files.close()
        if opened.follower is not None:
            opened.follower.close()
        if self._writer is not None:
            self._writer.close()
        else:
            opened.index.close()
        self._blocks.close_runs()

    def abandon(self) -> None:
        if self._opened is not None and not (self._closing is not None and self._closing.done()):
            self._opened.files.abandon()
            if self._writer is not None:
                self._writer.abandon()
            else:
                self._opened.index.close()
            self._blocks.close_runs()
            if self._opened.follower is not None:
                self._opened.follower.close()
            self._opened = None

    def _held(self) -> _Opened:
        if self._opened is None or self._closing is not None:
            raise StoreClosed
        return self._opened

    async def commit(self, plan: Plan) -> None:
        await self._writing().log.append(plan)

    def _writing(self) -> Writer:
        self._held()
        if self._writer is None:
            raise EngineUnsupported(f"{self._path} was opened with mode='r': open it with mode='rw' to write")
        return self._writer

    @property
    def followed(self) -> bool:
        return self._read_only

    async def commits_after(self, after: int) -> Sequence[Commit]:
        opened = self._held()
        if opened.index.head.event_id <= after:
            await asyncio.sleep(0)  # news that are in memory, one after another, must not keep the loop to themselves
            news = await self._following().advance()
            if news is not None and news.lines[0].event_id == after + 1:
                return commits_of(news.lines)
        return await opened.pages.commits(after) if opened.index.head.event_id > after else ()

    async def changed(self, after: int) -> None:
        await self._following().changed(after)

    def _following(self) -> Follower:
        follower = self._held().follower
        assert follower is not None, "only a reader follows"
        return follower

    async def facts(self, question: Question) -> Facts:
        opened = self._held()
        if opened.follower is not None:  # what another process was told is stored is seen here, too
            await opened.follower.catch_up()
            self._held()
        pages, head = opened.pages, opened.index.head.event_id
        versions = {stream_id: await pages.version(stream_id, head) for stream_id in question.streams}
        stored = match = None
        if question.idempotency_key is not None:
            ids = await pages.stored(*question.idempotency_key, head)
            if ids is not None:
                stored = await self._all(Selection(up_to=ids[-1], after=ids[0] - 1))
        if question.condition is not None:
            match = await self.first_match(question.condition, head)
        return Facts(head, versions, stored, match)

    async def _all(self, selection: Selection) -> list[Event]:
        page = await self.read(selection)
        events = page.events
        while page.cursor is not None:
            await asyncio.sleep(0)  # what is read from memory must not keep the loop to itself
            page = await self.read(selection, page.cursor)
            events.extend(page.events)
        return events

    async def read(self, selection: Selection, cursor: int | None = None, max_events: int = PAGE_EVENTS) -> Page:
        return await self._held().pages.read(selection, cursor, max_events)

    async def load_state(self, key: str) -> State | None:
        opened = self._held()
        row: Row | None = await self._in_state_thread(opened.state.load, key)
        return None if row is None else await self._state(row)

    async def load_states(self, prefix: str, *, after: str = "", limit: int = PAGE_EVENTS) -> dict[str, State]:
        rows = await self._in_state_thread(self._held().state.load_some, prefix, after, limit)
        return {key: await self._state(row) for key, row in rows.items()}

    async def _state(self, row: Row) -> State:
        fits = row.crc == await self._crc(row.position)
        return State(row.position, row.value, row.revision, fits)

    async def save_states(self, position: int, savings: Sequence[Saving]) -> Sequence[int]:
        log = self._writing().log
        opened = self._held()
        crc = await self._crc(position)
        if crc is None:
            raise StoreCorrupt(self._path, 0, "the event that a state was made of cannot be read", position, position)
        await log.sync(position)
        return await self._in_state_thread(opened.state.save, position, crc, savings)

    async def _crc(self, position: int) -> str | None:
        """The checksum of the line at the position, "" at 0; None where there is no whole line."""
        if not position:
            return ""
        line = await self._held().pages.line(position)
        return line.crc if line else None

    async def _in_state_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        call = functools.partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._held().state_thread, call)


def _checked_path(path: str | PathLike[str]) -> str:
    try:
        text = str(Path(path)) if path != "" else ""
    except TypeError:
        text = ""
    if not text or "\0" in text:
        raise ValueError(f"path must name a directory, not {path!r}")
    return text
