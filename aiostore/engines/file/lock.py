"""The lock file: one writer per directory, and a way to see whether there is one.

`fcntl.flock` is used directly (in disk.py): filelock knows no shared lock, falls back to a lock without a kernel behind
it where flock is missing, and leaves no room for the holder's pid or for closing a forked child's copy.
"""

from __future__ import annotations

import time

import msgspec

from aiostore.engines.file.disk import NO_ROOM, Disk
from aiostore.engines.file.format import UNDECODABLE
from aiostore.errors import StoreLocked

TRIES = 5
PAUSE_SECONDS = 0.01
"""A reader holds the lock for an instant, to see whether a writer lives: a writer tries again before it gives up."""


class _Holder(msgspec.Struct):
    pid: int
    host: str


class WriterLock:
    """The lock, held. It ends with the process, however that ends; closing a forked child's copy does not end it."""

    def __init__(self, disk: Disk, path: str) -> None:
        """Take the lock, or raise `StoreLocked`."""
        self._disk = disk
        self._file = disk.open_write(path)
        try:
            for attempt in range(TRIES):
                if disk.lock(self._file, shared=False):
                    break
                if attempt == TRIES - 1:
                    raise _locked(disk, self._file, path)
                time.sleep(PAUSE_SECONDS)  # on the writing thread
            self._name_holder()
        except BaseException:
            disk.close(self._file)
            raise

    def _name_holder(self) -> None:
        pid, host = self._disk.process()
        try:
            self._disk.truncate(self._file, 0)
            self._disk.write_at(self._file, msgspec.json.encode(_Holder(pid, host)) + b"\n", 0)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            # It is only for people; a store on a full disk can still be opened, and read.

    def close(self) -> None:
        """Let go of the lock, also of forked children's copies."""
        self._disk.unlock(self._file)
        self._disk.close(self._file)

    def abandon(self) -> None:
        """Close this forked child's copy; the parent's lock stays."""
        self._disk.close(self._file)


def _locked(disk: Disk, file: int, path: str) -> StoreLocked:
    directory = path.rpartition("/")[0]
    holder = _holder(disk, file)
    return StoreLocked(directory, holder.pid, own=(holder.pid, holder.host) == disk.process())


def _holder(disk: Disk, file: int) -> _Holder:
    try:
        return msgspec.json.decode(disk.read(file, 4096, 0), type=_Holder)
    except UNDECODABLE:  # what it says is only for people
        return _Holder(0, "")


def holder_of(disk: Disk, path: str) -> int:
    """The pid of the last process that took the lock, as it said; 0 if that is not known."""
    if not disk.exists(path):
        return 0
    file = disk.open_read(path)
    try:
        return _holder(disk, file).pid
    finally:
        disk.close(file)


def writer_lives(disk: Disk, path: str) -> bool:
    """Whether a process holds the writer's lock now. Takes it for an instant, writes nothing."""
    if not disk.exists(path):
        return False
    file = disk.open_read(path)
    try:
        if not disk.lock(file, shared=True):
            return True
        disk.unlock(file)
        return False
    finally:
        disk.close(file)
