"""The segments' files, opened for reading, and the lines of pieces read from them."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor

from aiostore.engines.file.disk import PREFETCHED_MAX, Disk
from aiostore.engines.file.format import lines_of
from aiostore.engines.file.pieces import Piece, Span, Spans
from aiostore.engines.file.segment import Segment
from aiostore.errors import StoreClosed

GAP_BYTES = 1024
"""Lines so near to each other are read at once."""

NOWAIT_BYTES_MAX = 1024 * 1024
"""More than this is not copied in the loop."""

PIECES_AT_ONCE = 32
"""Of so many pieces the files are held open at once."""


OPEN_FILES_MAX = 256
"""So many segments are held open for reading."""


ReadLines = tuple[list[list[bytes]], OSError | None]
"""The lines of each piece; where one cannot be read, those before it, and the error."""


class _Open:
    __slots__ = ("file", "outdated", "users")

    def __init__(self, file: int) -> None:
        self.file = file
        self.users = 0
        self.outdated = False


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

    async def read_all(self, pieces: Sequence[Piece]) -> ReadLines:
        """The lines of each piece, without their newlines; where one cannot be read, those before it, and the error.

        Cancellation leaves nothing behind. Raises `StoreClosed` after `refuse`.
        """
        if self._refusing:
            raise StoreClosed
        read: list[list[bytes]] = []
        error = self._read_nowait(pieces, read)
        if error is not None or len(read) == len(pieces):
            return read, error
        loop = asyncio.get_running_loop()
        further, error = await loop.run_in_executor(self._threads, self.read_waiting, pieces[len(read) :])
        return read + further, error

    def read_waiting(self, pieces: Sequence[Piece]) -> ReadLines:
        """The same on a thread, which waits for the device."""
        read: list[list[bytes]] = []
        for start in range(0, len(pieces), PIECES_AT_ONCE):
            error = self._read_some(pieces[start : start + PIECES_AT_ONCE], read)
            if error is not None:
                return read, error
        return read, None

    def _read_nowait(self, pieces: Sequence[Piece], read: list[list[bytes]]) -> OSError | None:
        """Read as many as are in memory."""
        held = self._take(pieces)
        try:
            for piece, opened in zip(pieces, held, strict=False):
                if piece.spans is None and piece.end - piece.start > NOWAIT_BYTES_MAX:
                    return None
                spans = _spans_read(piece)
                data = self._disk.read_each_nowait(opened.file, spans)
                if data is None:
                    return None
                read.append(_lines(piece, spans, data))
        except OSError as error:
            return error
        finally:
            self._give_back(held)
        return None

    def _read_some(self, pieces: Sequence[Piece], read: list[list[bytes]]) -> OSError | None:
        held = self._take(pieces)
        not_opened: OSError | None = None
        try:
            try:
                for piece in pieces[len(held) :]:
                    held += self._take([piece]) or [self._open(piece.segment)]
            except OSError as error:  # those before it are read all the same
                not_opened = error
            spans = [_spans_read(piece) for piece in pieces[: len(held)]]
            wanted = [(opened.file, span) for opened, own in zip(held, spans, strict=True) for span in own]
            data, not_read = self._read_prefetched(wanted)
        finally:
            self._give_back(held)
        at = 0
        for piece, own in zip(pieces, spans, strict=False):
            if at + len(own) > len(data):
                break
            read.append(_lines(piece, own, data[at : at + len(own)]))
            at += len(own)
        return not_read or not_opened

    def _read_prefetched(self, wanted: Sequence[tuple[int, Span]]) -> tuple[list[bytes], OSError | None]:
        """The bytes of spans of files; where one cannot be read, those before it, and the error."""
        data: list[bytes] = []
        for first in range(0, len(wanted), PREFETCHED_MAX):
            some = wanted[first : first + PREFETCHED_MAX]
            if len(some) > 1:
                for file, (start, end) in some:
                    self._disk.prefetch(file, start, end)
            try:
                for file, (start, end) in some:
                    data.append(self._disk.read(file, max(end - start, 0), start))  # an index may say anything
            except OSError as error:
                return data, error
        return data, None

    def _take(self, pieces: Sequence[Piece]) -> list[_Open]:
        """The files of the pieces, up to the first that is not open."""
        taken: list[_Open] = []
        with self._mutex:
            for piece in pieces:
                first = piece.segment.first_event_id
                opened = self._opened.get(first)
                if opened is None:
                    break
                opened.users += 1
                self._opened.move_to_end(first)
                taken.append(opened)
        return taken

    def _open(self, segment: Segment) -> _Open:
        mine = _Open(self._disk.open_read(segment.path))
        with self._mutex:
            opened = self._opened.setdefault(segment.first_event_id, mine)
            opened.users += 1
        if opened is not mine:
            self._disk.close(mine.file)
        return opened

    def _give_back(self, taken: Sequence[_Open]) -> None:
        with self._mutex:
            superfluous = []
            for opened in taken:
                opened.users -= 1
                if opened.outdated and not opened.users:
                    superfluous.append(opened)
            if len(self._opened) > self._open_max:
                idle = [first for first, other in self._opened.items() if not other.users]
                superfluous += [self._opened.pop(first) for first in idle[: len(self._opened) - self._open_max]]
        for other in superfluous:
            self._disk.close(other.file)

    def renew(self, segments: Iterable[Segment]) -> None:
        """Open their files anew for the next read: others may have been put in their places."""
        with self._mutex:
            gone = {
                first: self._opened.pop(first) for each in segments if (first := each.first_event_id) in self._opened
            }
            for opened in gone.values():
                opened.outdated = True
            idle = [opened for opened in gone.values() if not opened.users]
        for opened in idle:
            self._disk.close(opened.file)

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


def _spans_read(piece: Piece) -> Spans:
    """From where to where the piece is read."""
    return [(piece.start, piece.end)] if piece.spans is None else _grouped(piece.spans)


def _lines(piece: Piece, groups: Spans, data: list[bytes]) -> list[bytes]:
    """The lines of the piece, without their newlines, out of what was read."""
    if piece.spans is None:
        return lines_of(data[0])
    if len(groups) == len(piece.spans):
        return data
    lines: list[bytes] = []
    place, group = -1, (0, -1)
    for start, end in piece.spans:
        if not group[0] <= start < group[1]:
            place += 1
            if place == len(groups):
                return []  # an index may say anything, also places that go back and forth: no lines are there
            group = groups[place]
        lines.append(data[place][start - group[0] : end - group[0] - 1])
    return lines


def _grouped(spans: Spans) -> Spans:
    """What to read for lines that go up or down: those near to each other at once, without the last newline."""
    groups: list[tuple[int, int]] = []
    low, high = spans[0]
    for start, end in spans:
        if start > high + GAP_BYTES or end < low - GAP_BYTES:
            groups.append((low, high - 1 if high > low else high))
            low, high = start, end
        elif start < low:
            low = start
        elif end > high:
            high = end
    groups.append((low, high - 1 if high > low else high))  # an event that is missing has no bytes
    return groups
