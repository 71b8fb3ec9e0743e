"""Following a log that another process writes: what its head file says is durable is taken into the index."""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Final, NamedTuple, ParamSpec, TypeVar

from aiostore.engine import Head
from aiostore.engines.file.behind import Ended, News, look_behind, whole_commits
from aiostore.engines.file.blocks import Blocks
from aiostore.engines.file.disk import Disk, OpenFile
from aiostore.engines.file.format import HEAD_NAME, MANIFEST_NAME, Damaged
from aiostore.engines.file.head import HEAD_BYTES, decode_head
from aiostore.engines.file.index import Index, Part
from aiostore.engines.file.manifest import read_manifest
from aiostore.engines.file.newer_runs import NewerRuns
from aiostore.engines.file.run import Run
from aiostore.engines.file.run_format import run_first
from aiostore.engines.file.sealed import check_run
from aiostore.engines.file.segment import Segment
from aiostore.engines.file.watch import Watch
from aiostore.errors import EngineUnavailable, StoreClosed, StoreCorrupt

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger("aiostore")

POLL_SECONDS: Final = 0.1
"""Where the system does not tell of changes, so long is waited between looks."""

NOWAIT_BYTES: Final = 64 * 1024
"""So many bytes of lines are read and decoded in the loop; more of them, on a thread."""


class _Head(NamedTuple):
    """The head file, opened, and what it says; 0 where there is none."""

    file: OpenFile | None
    durable: int
    is_missing: bool
    """Whether there is no file of the name."""


class Follower:
    """Brings the index of a reader up to the writer's head, never beyond it. Its methods are called in the loop."""

    def __init__(
        self, disk: Disk, directory: str, index: Index, blocks: Blocks, threads: Executor, *, polls: bool = False
    ) -> None:
        """``polls``: the system does not tell of all changes, as on a network file system."""
        self._disk = disk
        self._directory = directory
        self._index = index
        self._threads = threads
        self._runs = NewerRuns(disk, directory, index.store_id, blocks)
        self._head_path = f"{directory}/{HEAD_NAME}"
        self._head: OpenFile | None = None
        self._head_is_new = True
        """Whether there may be another head file than the one that is open."""
        self._head_is_missing = False
        self._tail: tuple[Segment, OpenFile] | None = None
        self._watch: Watch | None = None
        self._polls = polls
        self._told = asyncio.Event()
        self._runs_are_new = True
        self._advancing = asyncio.Lock()
        self._opening_head = asyncio.Lock()
        self._reported = ""
        self._stopped = False

    # --- waiting for changes ---

    async def changed(self, after: int) -> None:
        """Return when there may be events above ``after``, or why there are none can be found out by `advance`."""
        while True:
            self._told.clear()  # before the look: what comes behind it is told
            try:
                if self._watch is None and not self._polls and not self._head_is_missing:
                    await self._begin_to_watch()
                if max(self._index.head.event_id, await self._durable()) > after:
                    return
                if self._runs_are_new:
                    await self._take_runs()
            except StoreCorrupt:
                return
            except EngineUnavailable as error:
                self._report(f"{error}; it is tried again every {POLL_SECONDS} s")
                await asyncio.sleep(POLL_SECONDS)
                continue
            if self._watch is not None:
                await self._told.wait()
            else:
                await asyncio.sleep(POLL_SECONDS)
                self._head_is_new = True
            self._check()

    async def _begin_to_watch(self) -> None:
        why = "this system does not tell of changes"
        watch = None
        try:
            watch = await self._in_thread(self._disk.watch, self._directory, self._head_path)
        except FileNotFoundError:
            return  # there is no directory, and so no head, which is looked for
        except OSError as error:  # no more watches are allowed
            why = str(error)
        if watch is None:
            self._polls = True
            _log.warning("%s is looked at every %s s: %s", self._head_path, POLL_SECONDS, why)
        elif self._watch is None and not self._stopped:
            self._watch = watch
            asyncio.get_running_loop().add_reader(watch.fileno(), self._look)
            self._head_is_new = self._runs_are_new = True

    def _look(self) -> None:
        """The system has something to tell."""
        if self._watch is None:
            return
        seen = self._watch.take()
        self._head_is_new |= seen.lost or seen.gone or HEAD_NAME in seen.names
        self._runs_are_new |= seen.lost or any(run_first(name) is not None for name in seen.names)
        if seen.gone:
            self._end_watch()
        if seen.written or self._head_is_new or self._runs_are_new:
            self._told.set()

    def _end_watch(self) -> None:
        if self._watch is not None:
            asyncio.get_running_loop().remove_reader(self._watch.fileno())
            self._watch = None  # not closed: a thread may be about to use it

    def _report(self, text: str) -> None:
        if text != self._reported:  # once, not at every look
            _log.warning("%s", text)
        self._reported = text

    # --- the head ---

    async def _durable(self) -> int:
        """The head that the writer's file says."""
        try:
            if self._head is not None and not self._head_is_new:
                data = self._disk.read_nowait(self._head.file, HEAD_BYTES, 0)
                if data is not None:
                    return decode_head(data, self._index.store_id)
            async with self._opening_head:  # one after another: an older file must not take the place of a newer one
                return await self._look_for_head()
        except OSError as error:
            raise EngineUnavailable(f"{self._head_path} cannot be read now: {error}") from error

    async def _look_for_head(self) -> int:
        renew, self._head_is_new = self._head_is_new, False
        try:
            found = await self._in_thread(self._read_head, self._head, self._watch, renew)
        except BaseException:
            self._head_is_new |= renew
            raise
        self._head_is_missing = found.is_missing
        if found.is_missing:  # nothing tells when it, or its directory, is there again
            self._report(f"{self._head_path} is missing, it is looked for every {POLL_SECONDS} s")
            self._head_is_new = True
            self._end_watch()
        self._head = found.file
        return found.durable

    def _read_head(self, head: OpenFile | None, watch: Watch | None, renew: bool) -> _Head:
        newest, is_missing = head, False
        if head is None or renew:
            newest = self._newest_head(watch)
            is_missing = newest is None
            if is_missing and self._disk.exists(self._directory):
                newest = head  # deleted, but the writer may still have it open, and go on
        if newest is None:
            return _Head(head, 0, is_missing)
        try:
            data = self._disk.read(newest.file, HEAD_BYTES, 0)
        except BaseException:
            if newest is not head:
                newest.close()  # now: who keeps the error keeps what its traceback refers to
            raise
        return _Head(newest, decode_head(data, self._index.store_id), is_missing)

    def _newest_head(self, watch: Watch | None) -> OpenFile | None:
        if watch is not None:
            watch.renew()
        try:
            newest = OpenFile(self._disk, self._head_path)
        except FileNotFoundError:
            return None
        try:
            self._check_store()
        except BaseException:
            newest.close()
            raise
        return newest

    def _check_store(self) -> None:
        path = f"{self._directory}/{MANIFEST_NAME}"
        if self._disk.exists(path) and read_manifest(self._disk, self._directory).store_id != self._index.store_id:
            raise StoreCorrupt(path, 0, "another store is there than when it was opened; open it anew")

    # --- the events ---

    async def catch_up(self) -> None:
        """Take in all that is durable as of now, as far as it can be read; what cannot is told by `advance`."""
        try:
            durable = await self._durable()
            while self._index.head.event_id < durable:
                await asyncio.sleep(0)
                if await self.advance() is None:
                    break
        except (StoreCorrupt, EngineUnavailable):
            pass

    async def advance(self) -> News | None:
        """Take in what is durable behind the head, a bounded number of bytes of it. Cancelled, nothing is half done.

        Returns what it took in, None if there was nothing. Raises `StoreCorrupt` where that is damaged, and
        `EngineUnavailable`.
        """
        async with self._advancing:
            index = self._index
            durable = await self._durable()
            while index.head.event_id < durable:
                if not index.segments:
                    index.add_segment(Segment(self._directory, index.store_id, index.head.event_id + 1))
                segment = index.segments[-1]
                found = self._read_on_nowait(segment, durable) or await self._read_on(segment, durable)
                if isinstance(found, News):
                    index.add_lines(segment, found.lines, found.starts[:-1], found.starts[-1])
                    return found
                segment.end = found.size  # with the padding, as the writer has it
                if index.add_segment(Segment(self._directory, index.store_id, segment.last_event_id + 1)) is not None:
                    for run in await self._take_runs():
                        await self._adopt(run, durable)
            return None

    def _read_on_nowait(self, segment: Segment, durable: int) -> News | None:
        """The next whole commits, if they are few and in memory."""
        if self._tail is None or self._tail[0] is not segment:
            return None
        file = self._tail[1].file
        try:
            size = min(self._disk.size(file) - segment.end, NOWAIT_BYTES)
            data = self._disk.read_nowait(file, size, segment.end) if size > 0 else None
        except OSError:
            return None  # if it comes again, it is told
        return None if data is None else whole_commits(data, segment, durable)

    async def _read_on(self, segment: Segment, durable: int) -> News | Ended:
        tail = self._tail[1] if self._tail is not None and self._tail[0] is segment else None
        look = functools.partial(look_behind, self._disk, self._directory, segment)
        try:
            try:
                opened, found = await self._in_thread(look, tail, durable)
            except StoreCorrupt:
                if tail is None:
                    raise
                self._tail = None  # a writer that recovered may have put another file in its place
                tail.close()
                opened, found = await self._in_thread(look, None, durable)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.ENOENT):  # too many open files, no memory, no rights…
                raise EngineUnavailable(f"{segment.path} cannot be read now: {error}") from error
            last = segment.last_event_id
            raise StoreCorrupt(segment.path, segment.end, f"cannot be read: {error}", last + 1, durable) from error
        self._tail = segment, opened
        return found

    # --- the index ---

    async def _take_runs(self) -> Sequence[Run]:
        """Exchange what is in memory, and small runs, for what the writer has put on disk. Returns what goes beyond."""
        self._runs_are_new = False
        try:
            runs = await self._in_thread(self._runs.find, self._index.sources)
        except OSError as error:
            self._report(f"{self._directory}: the index on disk cannot be read now: {error}")
            return ()
        for run in runs:
            old = [
                source
                for source in self._index.sources[:-1]
                if run.first_event_id <= source.first_event_id and source.last_event_id <= run.last_event_id
            ]
            if old and self._fits(run, old):  # if not, it is closed when it is forgotten
                self._index.exchange(old, [run])
        return [run for run in runs if run.last_event_id > self._index.head.event_id]

    async def _adopt(self, run: Run, durable: int) -> None:
        """Go on to the end of a run that begins with one of the sources; in memory, all up to there might be too much.

        Only in `advance`: the last segment becomes another.
        """
        index = self._index
        if run.last_event_id > durable or index.damages:
            return
        segments = [Segment(self._directory, index.store_id, sealed.first_event_id) for sealed in run.segments]
        try:
            last = await self._in_thread(check_run, self._disk, run, segments, run.last_event_id + 1)
        except (Damaged, OSError) as error:
            self._report(f"{run.path} does not fit: {error}")
            return
        begins = any(run.first_event_id == source.first_event_id for source in index.sources)
        known = index.segments_between(run.first_event_id, run.last_event_id)
        if begins and [mine.first_event_id for mine in known] == [
            each.first_event_id for each in segments[: len(known)]
        ]:
            index.adopt(run, segments, Head(last.event_id, last.timestamp))
            index.add_segment(Segment(self._directory, index.store_id, last.event_id + 1))

    def _fits(self, run: Run, old: Sequence[Part | Run]) -> bool:
        """Whether the run is the index of just what the sources are of, and another than they."""
        if old[0].first_event_id != run.first_event_id or old[-1].last_event_id != run.last_event_id:
            return False
        if len(old) == 1 and isinstance(old[0], Run):
            return False
        segments = [segment for source in old for segment in self._index.segments_of(source)]
        ours = [(segment.first_event_id, segment.end) for segment in segments]
        return ours == [(segment.first_event_id, segment.size) for segment in run.segments]

    # --- the end ---

    async def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        self._check()
        call = functools.partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def _check(self) -> None:
        if self._stopped:
            raise StoreClosed

    def stop(self) -> None:
        """Begin nothing more, before the threads are shut down: what waits for changes gets `StoreClosed`."""
        self._stopped = True
        self._end_watch()
        self._told.set()

    def close(self) -> None:
        """Let go of the files, after the last call has ended; also in a forked child, where no loop is."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._head is not None:
            self._head.close()
            self._head = None
        if self._tail is not None:
            self._tail[1].close()
            self._tail = None
