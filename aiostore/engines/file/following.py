"""Following a log that another process writes: what its head file says is durable is taken into the index."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Final, NamedTuple, ParamSpec, TypeVar

from aiostore.engines.file.blocks import Blocks
from aiostore.engines.file.disk import Disk
from aiostore.engines.file.format import HEAD_NAME, Line, segment_name
from aiostore.engines.file.head import HEAD_BYTES, decode_head
from aiostore.engines.file.index import Index, Part
from aiostore.engines.file.run import Run
from aiostore.engines.file.scan import CHUNK_BYTES, take_valid
from aiostore.engines.file.sealed import open_runs
from aiostore.engines.file.segment import Segment
from aiostore.errors import EngineUnavailable, StoreCorrupt

if TYPE_CHECKING:
    from asyncinotify import Inotify

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger("aiostore")

POLL_SECONDS: Final = 0.1
"""Where the system does not tell of changes, so long is waited between looks."""


class _News(NamedTuple):
    """Whole commits behind the end of the last segment."""

    lines: Sequence[Line]
    offsets: Sequence[int]
    end: int


class Follower:
    """Brings the index of a reader up to the writer's head, never beyond it. Its methods are called in the loop."""

    def __init__(self, disk: Disk, directory: str, index: Index, blocks: Blocks, threads: Executor) -> None:
        self._disk = disk
        self._directory = directory
        self._index = index
        self._blocks = blocks
        self._threads = threads
        self._head_path = f"{directory}/{HEAD_NAME}"
        self._head_file: int | None = None
        self._watch: Inotify | None = None
        self._polls = False
        self._advancing = asyncio.Lock()

    async def changed(self, after: int) -> None:
        """Return when there may be events above ``after``."""
        while True:
            self._begin_to_watch()  # before the look: what comes behind it is told
            if max(self._index.head.event_id, await self._durable()) > after:
                return
            if self._watch is None:
                await asyncio.sleep(POLL_SECONDS)
            else:
                event = await self._watch.get()
                if event.name is not None:  # an index, not the head
                    await self._take_runs()

    def _begin_to_watch(self) -> None:
        if self._watch is None and not self._polls:
            try:
                self._watch = self._disk.watch(self._directory, self._head_path)
                self._polls = self._watch is None
            except OSError as error:  # no more watches are allowed, or there is no head yet
                self._polls = not isinstance(error, FileNotFoundError)
                if self._polls:
                    _log.warning("%s is looked at every %s s: %s", self._head_path, POLL_SECONDS, error)

    async def _durable(self) -> int:
        """The head that the writer's file says."""
        data = None
        if self._head_file is not None:
            data = self._disk.read_nowait(self._head_file, HEAD_BYTES, 0)
        if data is None:
            try:
                data = await self._in_thread(self._read_head)
            except FileNotFoundError:
                return 0
            except OSError as error:
                raise EngineUnavailable(f"{self._head_path} cannot be read now: {error}") from error
        return decode_head(data, self._index.store_id)

    def _read_head(self) -> bytes:
        if self._head_file is None:
            self._head_file = self._disk.open_read(self._head_path)
        return self._disk.read(self._head_file, HEAD_BYTES, 0)

    async def advance(self) -> None:
        """Take in what is durable behind the head, a bounded number of bytes of it. Cancelled, nothing is half done.

        Raises `StoreCorrupt` where that is damaged, and `EngineUnavailable`.
        """
        async with self._advancing:
            durable = await self._durable()
            while self._index.head.event_id < durable:
                segment = self._index.segments[-1]
                try:
                    news = await self._in_thread(self._read_on, segment, durable)
                except OSError as error:
                    raise EngineUnavailable(f"{segment.path} cannot be read now: {error}") from error
                if news is not None:
                    self._index.add_lines(segment, *news)
                    return
                self._index.add_segment(Segment(self._directory, self._index.store_id, self._index.head.event_id + 1))
                await self._take_runs()

    def _read_on(self, segment: Segment, durable: int) -> _News | None:
        """The next whole commits up to the durable event; None where the segment has ended and there is another."""
        last = segment.last_event_id
        following = f"{self._directory}/{segment_name(last + 1)}"
        size = CHUNK_BYTES
        file = self._disk.open_read(segment.path)
        try:
            while True:
                ended = self._disk.exists(following)  # looked for first: it is made after the last write here
                data = self._disk.read(file, size, segment.end)
                news = _whole(data, segment, durable)
                if news is not None:
                    return news
                if len(data) < size:
                    break
                size *= 4  # a commit may have 64 MiB
        finally:
            self._disk.close(file)
        if ended and not data.strip(b"\n"):
            return None
        reason = f"events up to {durable} are durable, but what stands behind event {last} is not the next"
        raise StoreCorrupt(segment.path, segment.end, reason, last + 1, durable)

    async def _take_runs(self) -> None:
        """Exchange what is in memory, and small runs, for what the writer has put on disk."""
        runs, _ = await self._in_thread(open_runs, self._disk, self._directory, self._index.store_id, self._blocks)
        for run in runs:
            old = [
                source
                for source in self._index.sources[:-1]
                if run.first_event_id <= source.first_event_id and source.last_event_id <= run.last_event_id
            ]
            if not (old and self._fits(run, old)):
                continue  # it is closed when it is forgotten
            self._index.exchange(old, [run])

    def _fits(self, run: Run, old: Sequence[Part | Run]) -> bool:
        """Whether the run is the index of just what the sources are of, and another than they."""
        if old[0].first_event_id != run.first_event_id or old[-1].last_event_id != run.last_event_id:
            return False
        if len(old) == 1 and isinstance(old[0], Run):
            return False
        segments = [segment for source in old for segment in self._index.segments_of(source)]
        ours = [(segment.first_event_id, segment.end) for segment in segments]
        return ours == [(segment.first_event_id, segment.size) for segment in run.segments]

    async def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        call = functools.partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def close(self) -> None:
        """Let go of the files, after the last call has ended."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._head_file is not None:
            self._disk.close(self._head_file)
            self._head_file = None


def _whole(data: bytes, segment: Segment, durable: int) -> _News | None:
    """The whole commits in the bytes behind the segment's end, up to the durable event; None if there are none."""
    lines: list[bytes] = []
    offsets: list[int] = []
    at = segment.end
    for line in data.split(b"\n")[:-1]:
        if line and len(lines) < durable - segment.last_event_id:
            lines.append(line)
            offsets.append(at)
        at += len(line) + 1
    taken = take_valid(lines, segment.seed, segment.last_event_id + 1)
    if not taken:
        return None
    end = offsets[len(taken) - 1] + len(lines[len(taken) - 1]) + 1
    return _News(taken, offsets[: len(taken)], end)
