"""The outside: the one file that touches `os` and aiofiles.

`Disk` has the primitives, each of which blocks; tests put a faulty, recording or in-memory one in its place.
`DiskThread` brings them to a thread of their own, and a trip there is seen through to its end also when cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import os
import re
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any, Final, ParamSpec, TypeVar, cast

from aiofiles.threadpool.binary import AsyncFileIO

from aiostore.engines.file.watch import Watch

P = ParamSpec("P")
T = TypeVar("T")

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the system says when there is no room."""

PREFETCHED_MAX: Final = 32
"""So much is asked of the device at once: one after another takes the time of each, all together hold up a commit."""

_NOT_THERE: Final = frozenset({errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY})
_WOULD_BLOCK: Final = _NOT_THERE | {errno.EAGAIN}
_DARWIN: Final = sys.platform == "darwin"
_FULL_SYNC: Final = 51  # fcntl.F_FULLFSYNC of macOS


class WouldBlock(Exception):
    """What was asked for in the event loop is not in memory: it must be asked for on a thread."""


class Disk:
    """The operating system's files. Every call blocks; a file is its descriptor; errors are `OSError`."""

    def open_read(self, path: str) -> int:
        """Open a file for reading."""
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def open_write(self, path: str, *, exclusive: bool = False) -> int:
        """Open a file for reading and writing anywhere in it; create it with mode 0600, necessarily if exclusive."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (os.O_EXCL if exclusive else 0)
        return os.open(path, flags, 0o600)

    def open_log(self, path: str, *, synced: bool) -> int:
        """Open a file for `write_log`, each write synced if asked for; create it with mode 0600."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        return os.open(path, flags | (os.O_DSYNC if synced and not _DARWIN else 0), 0o600)

    def close(self, file: int) -> None:
        """Close the file."""
        os.close(file)

    def write_log(self, file: int, data: memoryview, offset: int, *, synced: bool) -> int:
        """Write at the offset in a file opened for it; says how many bytes, maybe fewer than given."""
        written = os.pwrite(file, data, offset)
        if synced and _DARWIN:
            self.sync(file)  # O_DSYNC leaves the data in the drive's cache there
        return written

    def write_at(self, file: int, data: bytes, offset: int) -> None:
        """Write all of the data at the offset."""
        rest = memoryview(data)
        while rest:
            written = os.pwrite(file, rest, offset)
            rest = rest[written:]
            offset += written

    def read(self, file: int, size: int, offset: int) -> bytes:
        """Read so many bytes, fewer only at the end of the file."""
        data = os.pread(file, size, offset)
        if not data or len(data) == size:
            return data
        pieces = [data]
        while data:
            size -= len(data)
            offset += len(data)
            data = os.pread(file, size, offset)
            pieces.append(data)
        return b"".join(pieces)

    def read_nowait(self, file: int, size: int, offset: int) -> bytes | None:
        """Read so many bytes if all of them are in memory, else None: never waits for a device."""
        if _DARWIN:
            return None
        buffer = bytearray(size)
        try:
            if os.preadv(file, [buffer], offset, os.RWF_NOWAIT) < size:
                return None
        except OSError as error:
            if error.errno in _WOULD_BLOCK:
                return None
            raise
        return bytes(buffer)

    def read_each_nowait(self, file: int, spans: Sequence[tuple[int, int]]) -> list[bytes] | None:
        """The bytes from each start to its end if all of them are in memory, else None: never waits for a device."""
        if _DARWIN:
            return None
        room = 0
        buffer = memoryview(bytearray())
        preadv, nowait = os.preadv, os.RWF_NOWAIT
        read: list[bytes] = []
        try:
            for start, end in spans:
                size = end - start
                if size > room:
                    room = size + size // 8  # the next may be a little longer
                    buffer = memoryview(bytearray(room))
                view = buffer[:size]
                if preadv(file, [view], start, nowait) < size:
                    return None
                read.append(view.tobytes())
        except OSError as error:
            if error.errno in _WOULD_BLOCK:
                return None
            raise
        return read

    def prefetch(self, file: int, start: int, end: int) -> None:
        """Have the device begin to read from the start to the end; a hint, given on a thread that may wait."""
        if not _DARWIN:
            with contextlib.suppress(OSError):  # some file systems take none
                os.posix_fadvise(file, start, end - start, os.POSIX_FADV_WILLNEED)

    def size(self, file: int) -> int:
        """The size of the file in bytes."""
        return os.fstat(file).st_size

    def truncate(self, file: int, size: int) -> None:
        """Cut the file to the size."""
        os.ftruncate(file, size)

    def sync(self, file: int) -> None:
        """Bring the file's content and size to the device."""
        if not _DARWIN:
            os.fdatasync(file)
            return
        import fcntl

        try:
            fcntl.fcntl(file, _FULL_SYNC)
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
            os.fsync(file)  # not every file system has the other

    def drop_cache(self, file: int) -> None:
        """Forget what the system holds of the file in memory and could read again; a hint."""
        if not _DARWIN:
            with contextlib.suppress(OSError):  # it is a hint, and some file systems take none
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)

    def absolute(self, path: str) -> str:
        """The path from the root, without a slash at its end."""
        return os.path.abspath(path)

    def names(self, directory: str) -> list[str]:
        """The names in the directory, sorted."""
        return sorted(os.listdir(directory))

    def make_directory(self, path: str) -> bool:
        """Create the directory with mode 0700; False if it is there already."""
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            if not os.path.isdir(path):
                raise
            return False
        return True

    def remove_directory(self, path: str) -> None:
        """Delete the directory, which is empty."""
        os.rmdir(path)

    def exists(self, path: str) -> bool:
        """Whether there is anything of this name."""
        return os.path.lexists(path)

    def has_free_space(self, path: str) -> bool:
        """Whether the path's file system has room for a further file and something in it."""
        room = os.statvfs(path)
        return room.f_bavail > 0 and (room.f_favail > 0 or not room.f_files)  # some do not count their files

    def sync_directory(self, path: str) -> None:
        """Bring the directory's entries to the device."""
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def replace(self, source: str, target: str) -> None:
        """Rename the file over the other, at once."""
        os.replace(source, target)

    def remove(self, path: str) -> None:
        """Delete the file."""
        os.unlink(path)

    def watch(self, directory: str, path: str) -> Watch | None:
        """What tells of writes to the file, and of what comes to be in the directory; None where the system does not.

        FileNotFoundError where there is no such directory; the file need not be there yet.
        """
        return Watch(directory, path) if sys.platform == "linux" else None

    def lock(self, file: int, *, shared: bool) -> bool:
        """Take the file's lock if it is free; says whether it was."""
        import fcntl  # here, for a system without it gets an error that says so, not one of importing

        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def unlock(self, file: int) -> None:
        """Let go of the file's lock, also of copies that forked processes hold of it."""
        import fcntl

        fcntl.flock(file, fcntl.LOCK_UN)

    def process(self) -> tuple[int, str]:
        """This process: its id and the name of its machine."""
        return os.getpid(), os.uname().nodename

    def file_system(self, path: str) -> str:
        """The type of the file system that the path is on, empty where that cannot be told."""
        if _DARWIN:
            return ""
        path = os.path.realpath(path)
        try:
            with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
                return mounted_type(mounts.read(), path)
        except FileNotFoundError:  # a system without /proc
            return ""


_ESCAPED = re.compile(r"\\([0-7]{3})")
"""How the kernel writes spaces, tabs, newlines and backslashes in a path."""


def mounted_type(mountinfo: str, path: str) -> str:
    """The file system type of the mount that holds the absolute path, by the text of /proc/self/mountinfo."""
    best, found = "", ""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        point = _ESCAPED.sub(lambda octal: chr(int(octal[1], 8)), before.split(" ")[4])
        if (path + "/").startswith(point.rstrip("/") + "/") and len(point) >= len(best):  # a later mount covers
            best, found = point, after.split(" ")[0]
    return found


class OpenFile:
    """A file, open for reading. It is closed with `close`, or when nothing refers to it any more."""

    __slots__ = ("_disk", "file")

    def __init__(self, disk: Disk, path: str) -> None:
        self._disk = disk
        self.file = -1
        self.file = disk.open_read(path)

    def close(self) -> None:
        """Close it, after the last read has ended; again is nothing."""
        file, self.file = self.file, -1
        if file >= 0:
            self._disk.close(file)

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            self.close()


class DiskThread(Executor):
    """A thread for the disk, which remembers the last job that it was given.

    It is leaner than a pool of one: a durable append waits for the way there and back. For aiofiles, it is the executor
    and what of a loop is used to come to it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._shut = False
        self._last: Future[object] | None = None

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Give the thread a job, and remember it."""
        job = self.submit_aside(fn, *args, **kwargs)
        self._last = cast("Future[object]", job)
        return job

    def submit_aside(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Give the thread a job that no task waits for."""
        if self._shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if self._thread is None:
            # A daemon: what a process has not closed does not keep it from ending, and is as after a crash.
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        job: Future[T] = Future()

        def work() -> None:
            if job.set_running_or_notify_cancel():
                try:
                    result = fn(*args, **kwargs)
                except BaseException as error:
                    job.set_exception(error)
                else:
                    job.set_result(result)

        self._jobs.put(work)
        return job

    def _run(self) -> None:
        while (work := self._jobs.get()) is not None:
            work()
            del work  # it holds what the job was given, and its result

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more jobs, and end when those in hand are done."""
        if not self._shut:
            self._shut = True
            self._jobs.put(None)
        if wait and self._thread is not None:
            self._thread.join()

    def run_in_executor(self, _: Executor | None, fn: Callable[[], T]) -> Awaitable[None]:
        """Have the thread call the function: what aiofiles asks of a loop. The job has its result."""
        return self._done(self.submit(fn))

    def trip(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Callable[[], Awaitable[None]]:
        """What `settle` and `whole` take: have this thread call the function."""
        return lambda: self._done(self.submit(fn, *args, **kwargs))

    @staticmethod
    def _done(job: Future[T]) -> Awaitable[None]:
        """Ends when the job does. `asyncio.wrap_future` takes twice as long, and here nobody needs what it adds."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not waiter.done():
                waiter.set_result(None)

        def tell(_: Future[T]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(wake)

        job.add_done_callback(tell)
        return waiter

    async def settle(
        self, trip: Callable[[], Awaitable[object]], hurry: Callable[[], None] = lambda: None
    ) -> tuple[Future[Any], asyncio.CancelledError | None]:
        """The job that the trip gave this thread, done, and the cancellation that came meanwhile.

        CancelledError out of here says that the job was not begun and never will be; ``hurry`` is called when it was.
        """
        self._last = None
        cancelled: asyncio.CancelledError | None = None
        try:
            await trip()
        except asyncio.CancelledError as error:
            if self._last is None or self._last.cancel():
                raise
            cancelled = error
            hurry()
            await until_done(self._last)
        except Exception:
            if self._last is None or not self._last.done():
                raise  # it was not given to the thread; else the job has the error
        assert self._last is not None, "a trip gives this thread a job"
        return self._last, cancelled

    async def whole(self, trip: Callable[[], Awaitable[object]]) -> Any:
        """The result of the trip. Once begun it is waited for; a cancellation is then delivered at the next await."""
        job, cancelled = await self.settle(trip)
        if cancelled is not None:
            deliver_later(cancelled)
        return job.result()


def deliver_later(cancelled: asyncio.CancelledError) -> None:
    """Have the cancellation that this task caught raised at its next await, counted as it was."""
    task = asyncio.current_task()
    assert task is not None, "a coroutine of asyncio runs in a task"
    task.uncancel()
    task.cancel(*cancelled.args)


async def until_done(job: Future[T]) -> asyncio.CancelledError | None:
    """Wait for the job, however often this task is cancelled meanwhile; the first cancellation is returned."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    job.add_done_callback(lambda _: loop.call_soon_threadsafe(done.set))
    cancelled = None
    while not job.done():
        try:
            await done.wait()
        except asyncio.CancelledError as error:
            cancelled = cancelled or error
    return cancelled


def through_aiofiles(file: io.RawIOBase, thread: DiskThread) -> AsyncFileIO:
    """The file with methods to await, which run in the thread."""
    # aiofiles.open() only wraps files that it opened itself; this is the class that it wraps a raw file in.
    return AsyncFileIO(cast("io.FileIO", file), loop=cast("asyncio.AbstractEventLoop", thread), executor=thread)
