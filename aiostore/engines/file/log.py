"""The log's writing end: the active segment, groups written to it in one trip to the thread, the roll to the next."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import logging
from collections.abc import Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING

from aiostore.engine import Plan
from aiostore.engines.file.disk import NO_ROOM, Disk, DiskThread, deliver_later, through_aiofiles
from aiostore.engines.file.format import encode_group
from aiostore.engines.file.head import HeadFile
from aiostore.engines.file.index import Index
from aiostore.engines.file.sealing import Sealer
from aiostore.engines.file.segment import Segment
from aiostore.errors import StoreFailed, StoreFull

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_log = logging.getLogger("aiostore")

IDLE_SECONDS = 1.0
"""So long after the last commit the head is synced."""

PREPARED_BYTES = 64 * 1024
"""So much space is prepared behind a group, at most."""

PADDED_BYTES_MAX = 8 * 1024
"""Behind a larger group no space is prepared: what it saves is little beside the group's own bytes."""


class GroupFile(io.RawIOBase):
    """The active segment's file. A `write` is a whole group, or nothing: what aiofiles carries to the thread.

    In sync mode a small group that does not fit into the prepared space brings new one along: blank lines behind it.
    To take the place of bytes that are there costs a fifth less than to make the file longer (measured on ext4).
    """

    _file = -1  # none: an object whose file could not be opened is closed by its finalizer, too

    def __init__(self, disk: Disk, path: str, head: HeadFile, end: int, *, synced: bool, segment_bytes: int) -> None:
        """Open the segment, whose last commit ends at ``end`` and behind which are blank lines at most."""
        self._disk = disk
        self._path = path
        self._head = head
        self._synced = synced
        self._segment_bytes = segment_bytes
        self._failed: BaseException | None = None
        self.group_last_event_id = 0
        """The last event of the group that the next `write` gets."""
        self.end = end
        """Where the last group ended."""
        file = disk.open_log(path, synced=synced)
        try:
            self._size = disk.size(file)
            assert self._size >= end, "nothing cuts a segment off while its writer's lock is held"
        except BaseException:
            disk.close(file)
            raise
        super().__init__()
        self._file = file

    def write(self, group: ReadableBuffer, /) -> int:
        """Write the group, in sync mode to the device, then the head; `StoreFull` if nothing of it stays.

        After any other error nothing is written any more.
        """
        self._check()
        try:
            self._write(memoryview(group))
        except StoreFull:
            raise
        except BaseException as error:
            self._failed = error
            raise
        self.end += memoryview(group).nbytes
        if self._synced:
            self._head.advance(self.group_last_event_id)
        return memoryview(group).nbytes

    def _write(self, group: memoryview) -> None:
        end = self.end + group.nbytes
        if self._synced and end > self._size and group.nbytes <= PADDED_BYTES_MAX:
            padding = min(PREPARED_BYTES, self._segment_bytes - end)
            if padding > 0:
                try:
                    self._put(memoryview(b"".join((group, b"\n" * padding))))
                except StoreFull:
                    pass  # for the group alone there may be room
                else:
                    return
        self._put(group)

    def _put(self, rest: memoryview) -> None:
        """Write at the end of the last group; `StoreFull` if nothing of it stays."""
        at = self.end
        try:
            while rest:
                written = self._disk.write_log(self._file, rest, at, synced=self._synced)
                if written == 0:
                    raise OSError(errno.EIO, "nothing was written")
                rest = rest[written:]
                at += written
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            # Unsynced, a retry of the same shape could later mix with what is left of this one.
            self._disk.truncate(self._file, self.end)
            self._disk.sync(self._file)
            self._size = self.end
            raise StoreFull(self._path, str(error)) from error
        self._size = max(self._size, at)

    def _check(self) -> None:
        if self._failed is not None:
            raise OSError(errno.EIO, f"an earlier write or sync failed: {self._failed}")

    def sync(self, last_event_id: int) -> None:
        """Bring what was written, up to this event, to the device, and say so in the head."""
        self._check()
        try:
            self._disk.sync(self._file)
        except BaseException as error:
            self._failed = error
            raise
        self._head.advance(last_event_id)

    def trim(self) -> None:
        """Give back the prepared space, unsynced."""
        if self._size > self.end:
            self._disk.truncate(self._file, self.end)
            self._size = self.end

    def close(self) -> None:
        """Close the file, unsynced; again is nothing."""
        super().close()
        if self._file >= 0:
            file, self._file = self._file, -1
            self._disk.close(file)


@contextlib.contextmanager
def _room(path: str) -> Iterator[None]:
    """`StoreFull` where there is no room to do this, which can be tried again."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise StoreFull(path, str(error)) from error


class Log:
    """The end of the log. What it did shows in the index only after it succeeded; one `append` at a time."""

    def __init__(
        self,
        disk: Disk,
        directory: str,
        store_id: str,
        index: Index,
        head: HeadFile,
        *,
        durable: int,
        synced: bool,
        segment_bytes: int,
    ) -> None:
        """Open the last segment, or make the first; on the writing thread."""
        self._disk = disk
        self._directory = directory
        self._store_id = store_id
        self._index = index
        self._head = head
        self._durable = durable
        self._synced = synced
        self._segment_bytes = segment_bytes
        self._failed: str | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._last_append = 0.0
        self._in_use = asyncio.Lock()  # by an append or a sync: neither may find the other's file closed
        if not index.segments:
            index.add_segment(Segment(directory, store_id, index.head.event_id + 1))
        self._file = self._open(index.segments[-1])  # and syncs the head's entry as well

    def attach(self, thread: DiskThread, sealer: Sealer) -> None:
        """Begin to work in this loop, through this thread; the sealer is told of parts that are complete."""
        self._sealer = sealer
        self._loop = asyncio.get_running_loop()
        self._thread = thread
        self._writer = through_aiofiles(self._file, thread)

    async def append(self, plan: Plan) -> None:
        """Write a group; see `Engine.commit`."""
        if self._failed is not None:
            raise StoreFailed(self._directory, self._failed)
        assert plan.commits[0].events[0].event_id == self._index.head.event_id + 1, "positions are dense"
        async with self._in_use:
            if self._index.segments[-1].end >= self._segment_bytes:
                await self._sealer.room()
                await self._roll()
            group, starts = await self._encode(plan)
            await self._write(plan, group, starts)
        self._last_append = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(IDLE_SECONDS, self._idle)

    async def _encode(self, plan: Plan) -> tuple[bytes, list[int]]:
        """The lines of the group, and where each begins; gives way every so often."""
        pieces: list[bytes] = []
        starts: list[int] = []
        size = 0
        for data, starts_in_data in encode_group(plan.commits, self._index.segments[-1].seed, self._durable):
            if pieces:
                await asyncio.sleep(0)
            pieces.append(data)
            starts.extend([size + start for start in starts_in_data] if size else starts_in_data)
            size += len(data)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces), starts

    async def _write(self, plan: Plan, group: bytes, starts: list[int]) -> None:
        last = plan.commits[-1].events[-1].event_id
        self._file.group_last_event_id = last
        try:
            await self._thread.whole(lambda: self._writer.write(group))
            if self._synced:
                self._durable = last
            self._index.add_commits(plan.commits, starts, len(group))
        except (StoreFull, asyncio.CancelledError):
            raise
        except Exception as error:
            raise self._fail(error) from error
        except BaseException as error:  # the coroutine is thrown away, or the thread was interrupted
            self._fail(error)
            raise

    async def _roll(self) -> None:
        """Go on in a new segment. Cancelled, it is done, or not begun: the group is not written."""
        job, cancelled = await self._thread.settle(self._thread.trip(self._next_segment))
        error = job.exception()
        if error is not None:
            if cancelled is not None:
                deliver_later(cancelled)
            if isinstance(error, StoreFull):
                raise error
            raise self._fail(error) from error
        segment, file = job.result()
        complete = self._index.add_segment(segment)
        self._durable = segment.first_event_id - 1
        self._file = file
        self._writer = through_aiofiles(file, self._thread)
        if complete is not None:
            self._sealer.look()
        if cancelled is not None:
            raise cancelled

    def _next_segment(self) -> tuple[Segment, GroupFile]:
        last = self._index.head.event_id
        segment = Segment(self._directory, self._store_id, last + 1)
        with _room(segment.path):
            self._file.trim()
        self._file.sync(last)
        with _room(segment.path):
            file = self._open(segment)  # if it is there already, it is empty
        self._file.close()
        return segment, file

    def _open(self, segment: Segment) -> GroupFile:
        """Open the segment, or make it; its entry is durable then."""
        file = GroupFile(
            self._disk,
            segment.path,
            self._head,
            segment.end,
            synced=self._synced,
            segment_bytes=self._segment_bytes,
        )
        try:
            self._disk.sync_directory(self._directory)
        except BaseException:
            file.close()
            raise
        return file

    def _fail(self, error: BaseException) -> StoreFailed:
        self._failed = self._failed or f"a write or sync failed ({error})"
        return StoreFailed(self._directory, self._failed)

    def _idle(self) -> None:
        """The timer: if nothing was appended for a while, have the head synced."""
        self._timer = None
        wait = self._last_append + IDLE_SECONDS - self._loop.time()
        if self._in_use.locked() or wait > 0:
            self._timer = self._loop.call_later(IDLE_SECONDS if self._in_use.locked() else wait, self._idle)
        elif self._failed is None:
            job = self._thread.submit_aside(self._sync, self._index.head.event_id)
            job.add_done_callback(lambda job: self._loop.call_soon_threadsafe(self._idled, job))

    def _idled(self, job: Future[int]) -> None:
        error = job.exception()
        if error is not None:
            _log.error("%s", self._fail(error))
        else:
            self._durable = max(self._durable, job.result())

    def _sync(self, last_event_id: int) -> int:
        """Have everything up to this event, the last one, durable, and the head saying so."""
        if not self._synced:
            self._file.sync(last_event_id)
        self._head.sync()
        return last_event_id

    async def sync(self, event_id: int) -> None:
        """Have everything up to this event durable; `StoreFailed` if that cannot be."""
        async with self._in_use:
            if event_id <= self._durable:
                return
            if self._failed is not None:
                raise StoreFailed(self._directory, self._failed)
            last = self._index.head.event_id
            try:
                await self._thread.whole(self._thread.trip(self._file.sync, last))
            except OSError as error:
                raise self._fail(error) from error
            self._durable = last

    def stop(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """Sync what is not, and close the files; on the writing thread, after the last append."""
        try:
            if self._failed is None:
                self._sync(self._index.head.event_id)
                self._trim()
        except OSError as error:
            _log.error("%s: the last appends may not be durable: %s", self._directory, error)
        finally:
            self.abandon()

    def _trim(self) -> None:
        try:
            self._file.trim()
        except OSError as error:
            _log.warning("%s: the space prepared behind the last event stays: %s", self._directory, error)

    def abandon(self) -> None:
        """Close the files as they are."""
        self._file.close()
        self._head.close()
