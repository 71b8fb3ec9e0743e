"""A segment: one file of the log, where each of its events begins, and the files opened for reading it."""

from __future__ import annotations

import asyncio
import threading
from array import array
from collections import OrderedDict
from concurrent.futures import Executor

from aiostore.engines.file.disk import Disk
from aiostore.engines.file.format import line_seed, segment_name
from aiostore.errors import StoreClosed

NOWAIT_BYTES_MAX = 1024 * 1024
"""More than this is not copied in the loop."""

OPEN_FILES_MAX = 64
"""So many segments are held open for reading."""


class Segment:
    """The place of every event in one file. An event that is known to be missing has a place without bytes."""

    __slots__ = ("end", "first_event_id", "path", "seed", "starts")

    def __init__(self, directory: str, store_id: str, first_event_id: int) -> None:
        self.path = f"{directory}/{segment_name(first_event_id)}"
        self.first_event_id = first_event_id
        self.seed = line_seed(store_id, first_event_id)
        self.starts: array[int] = array("Q")
        self.end = 0
        """Where the last whole commit ends: the next line begins here."""

    @property
    def last_event_id(self) -> int:
        """The last event that has a place here; the one before the first if none has."""
        return self.first_event_id + len(self.starts) - 1

    def span(self, first_event_id: int, last_event_id: int) -> tuple[int, int]:
        """From where to where the bytes of these events go."""
        after = last_event_id - self.first_event_id + 1
        end = self.starts[after] if after < len(self.starts) else self.end
        return self.starts[first_event_id - self.first_event_id], end

    def extend(self, starts: list[int], size: int) -> None:
        """Take in lines of so many bytes that were written at the end."""
        end = self.end
        self.starts.extend([end + start for start in starts])
        self.end = end + size


class _Open:
    __slots__ = ("file", "users")

    def __init__(self, file: int) -> None:
        self.file = file
        self.users = 0


class SegmentFiles:
    """The segments' files, opened for reading when they are first read; the least recently used are closed again.

    A read is tried in the loop, where it takes only what is in memory already, and else done on the reading threads.
    """

    def __init__(self, disk: Disk, threads: Executor, open_max: int = OPEN_FILES_MAX) -> None:
        self._disk = disk
        self._threads = threads
        self._open_max = open_max
        self._mutex = threading.Lock()
        self._opened: OrderedDict[int, _Open] = OrderedDict()
        self._refusing = False

    async def read(self, segment: Segment, offset: int, size: int) -> bytes:
        """The bytes of the file from there on, fewer only at its end. Cancellation leaves nothing behind.

        Raises `StoreClosed` after `refuse`.
        """
        if self._refusing:
            raise StoreClosed
        opened = self._take(segment.first_event_id) if size <= NOWAIT_BYTES_MAX else None
        if opened is not None:
            try:
                data = self._disk.read_nowait(opened.file, size, offset)
            finally:
                self._give_back(opened)
            if data is not None:
                return data
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._read, segment, offset, size)

    def _read(self, segment: Segment, offset: int, size: int) -> bytes:
        opened = self._take(segment.first_event_id) or self._open(segment)
        try:
            return self._disk.read(opened.file, size, offset)
        finally:
            self._give_back(opened)

    def _take(self, first_event_id: int) -> _Open | None:
        with self._mutex:
            opened = self._opened.get(first_event_id)
            if opened is not None:
                opened.users += 1
                self._opened.move_to_end(first_event_id)
            return opened

    def _open(self, segment: Segment) -> _Open:
        mine = _Open(self._disk.open_read(segment.path))
        with self._mutex:
            opened = self._opened.setdefault(segment.first_event_id, mine)
            opened.users += 1
        if opened is not mine:
            self._disk.close(mine.file)
        return opened

    def _give_back(self, opened: _Open) -> None:
        with self._mutex:
            opened.users -= 1
            superfluous = []
            if len(self._opened) > self._open_max:
                idle = [first for first, other in self._opened.items() if not other.users]
                superfluous = [self._opened.pop(first) for first in idle[: len(self._opened) - self._open_max]]
        for other in superfluous:
            self._disk.close(other.file)

    def refuse(self) -> None:
        """Begin no further read, before the threads are shut down; a read of several pieces may come for the next."""
        self._refusing = True

    def close(self) -> None:
        """Close all files; after `refuse`, and after the last read has ended."""
        with self._mutex:
            opened = list(self._opened.values())
            self._opened.clear()
        for each in opened:
            self._disk.close(each.file)

    def abandon(self) -> None:
        """Close all files in a forked child, where the mutex may be held by a thread that is not there."""
        self._mutex = threading.Lock()
        self.close()
