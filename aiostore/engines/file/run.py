"""A run, opened: it says where the events are that a term was posted at, and where their lines begin."""

from __future__ import annotations

import contextlib
import errno
import functools
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from operator import ge
from typing import Final

from aiostore.engines.file.blocks import BLOCK_BYTES, Blocks, Typecode, decode_numbers
from aiostore.engines.file.checksum import crc32
from aiostore.engines.file.disk import Disk
from aiostore.engines.file.format import Damaged
from aiostore.engines.file.run_format import (
    BLOCK_KEYS,
    BLOCK_OFFSETS,
    HEADER_BYTES,
    Header,
    RunSegment,
    decode_header,
    decode_segments,
    level_of,
    run_name,
)
from aiostore.engines.file.segment import Segment
from aiostore.engines.file.terms import ORDINAL_MASK, Hashes
from aiostore.engines.postings import Term
from aiostore.errors import StoreClosed

SCAN_BLOCKS: Final = 64
"""So many blocks are read at once by a merge."""


class RunDamaged(Damaged):
    """Which run is damaged, and why."""

    def __init__(self, run: Run, reason: str) -> None:
        super().__init__(f"{run.path}: {reason}")
        self.run = run


class Run:
    """The index of neighbouring sealed segments, open for reading.

    Any number of threads may read. A block that is damaged, or that the device cannot read, raises `RunDamaged`, any
    other failure `OSError`; in a thread that must not wait, one that is not in memory raises `WouldBlock`: then the
    caller repeats the whole lookup in a thread that may. The file is closed with `close`, or when nothing refers to the
    run any more.
    """

    def __init__(
        self, disk: Disk, file: int, path: str, header: Header, tables: Tables, hashes: Hashes, blocks: Blocks
    ) -> None:
        self.path: Final = path
        self.first_event_id: Final = header.first_event_id
        self.last_event_id: Final = header.last_event_id
        self.events_count: Final = header.events
        self.keys_count: Final = header.keys
        self.size: Final = header.size
        """The file's bytes."""
        self.segments: Final = tables.segments
        self.level: Final = level_of(header.segments)
        self._disk = disk
        self._file = file
        self._blocks = blocks
        self._hashes = hashes
        self._number = blocks.number()
        self._key_number = self._number + header.offset_blocks
        self._blocks_at = header.blocks_at
        self._offset_blocks = header.offset_blocks
        self._fence = tables.fence
        self._crcs = tables.crcs
        blocks.runs.add(self)

    @classmethod
    def open(cls, disk: Disk, path: str, store_id: str, blocks: Blocks) -> Run:
        """Open the run and check all but its blocks; reads 12 bytes for each 512 keys. Waits for the device.

        Raises `Damaged` if it is not a run of this store with this name, and `OSError`.
        """
        file = disk.open_read(path)
        try:
            header = decode_header(disk.read(file, HEADER_BYTES, 0), store_id)
            if path.rpartition("/")[2] != run_name(header.first_event_id):
                raise Damaged(f"the run begins with event {header.first_event_id}, its name says another")
            if disk.size(file) != header.size:
                raise Damaged(f"the file has {disk.size(file)} bytes, and {header.size} must be")
            return cls(disk, file, path, header, Tables(disk, file, header), Hashes(store_id), blocks)
        except BaseException:
            disk.close(file)
            raise

    def close(self) -> None:
        """Close the file, after the last read has ended; a block that is not in memory is then `StoreClosed`."""
        file, self._file = self._file, -1
        if file >= 0:
            self._disk.close(file)

    def __del__(self) -> None:
        if getattr(self, "_file", -1) >= 0:
            # Where the file was removed meanwhile, this frees its blocks: not a moment's work if they are many.
            self._blocks.aside(functools.partial(_close, self._disk, self._file))

    def __repr__(self) -> str:
        return f"<Run {self.first_event_id}–{self.last_event_id}, {len(self.segments)} segments, {self.size} bytes>"

    @property
    def fence(self) -> Sequence[int]:
        """The first key of each block of keys, as the directory says it."""
        return self._fence

    # --- lookups ---

    def segment_of(self, event_id: int) -> RunSegment:
        """The segment that the event is in, which must be one of the run's."""
        return self.segments[bisect_right(self.segments, event_id, key=_first_event_id) - 1]

    def places(self, term: Term, low: int, high: int) -> range:
        """Where the postings of the term with low <= event_id <= high are: what `ids` takes, whole or sliced.

        Those of another term with the same hash may be among them.
        """
        base = self.first_event_id
        if low < base:
            low = base
        if high > self.last_event_id:
            high = self.last_event_id
        fence = self._fence
        if low > high or not fence:
            return range(0)
        least = (self._hashes.least(term) if term.hashed is None else term.hashed) + (low - base)
        most = least + (high - low)
        number = bisect_right(fence, least) - 1
        if number < 0:
            number = 0
        block = self._keys(number)
        start = bisect_left(block, least)
        place = number * BLOCK_KEYS
        if block[-1] > most:
            return range(place + start, place + bisect_right(block, most, start))
        last = bisect_right(fence, most, number) - 1
        if last <= number:
            return range(place + start, place + len(block))
        return range(place + start, last * BLOCK_KEYS + bisect_right(self._keys(last), most))

    def prefetch(self, term: Term) -> None:
        """Have the device read what `places` will look at: for a thread that is to look at several runs."""
        if self._fence:
            least = self._hashes.least(term) if term.hashed is None else term.hashed
            first = max(0, bisect_right(self._fence, least) - 1)
            last = max(first, bisect_right(self._fence, least + ORDINAL_MASK) - 1)
            for number in {self._offset_blocks + first, self._offset_blocks + last}:
                if not self._blocks.holds(self._number + number):
                    self.prefetch_block(number)

    def lacking(self, ids: Iterable[int]) -> list[int]:
        """Which blocks `spans` will look at, for those events that are of this run, and must read."""
        first, last = self.first_event_id, self.last_event_id
        numbers = {(event_id - first) // BLOCK_OFFSETS for event_id in ids if first <= event_id <= last}
        return [number for number in sorted(numbers) if not self._blocks.holds(self._number + number)]

    def prefetch_block(self, number: int) -> None:
        """Have the device read the block."""
        if self._file >= 0:
            start = self._blocks_at + number * BLOCK_BYTES
            self._disk.prefetch(self._file, start, start + BLOCK_BYTES)

    def load(self, number: int) -> None:
        """Read a block that `lacking` named."""
        self._starts(number)

    def ids(self, term: Term, places: range) -> list[int]:
        """The event_ids at neighbouring places, in their order, which may be descending."""
        if not places:
            return []
        if places.step < 0:
            found = self.ids(term, places[::-1])
            found.reverse()
            return found
        place, end = places.start, places[-1] + 1
        if places.step != 1 or place < 0 or end > self.keys_count:
            raise IndexError(f"{places} of {self.keys_count} keys")
        base = self.first_event_id
        found = []
        while place < end:
            number, at = divmod(place, BLOCK_KEYS)
            keys = self._keys(number)[at : at + end - place]
            found += [base + (key & ORDINAL_MASK) for key in keys]
            place += len(keys)
        if found[-1] > self.last_event_id or any(map(ge, found, islice(found, 1, None))):
            raise RunDamaged(self, "it names events that it does not have")  # no device does that, but what made it
        return found

    def offsets(self, first_event_id: int, last_event_id: int) -> array[int]:
        """Where the lines of these events begin, each in the file of its segment."""
        place, end = first_event_id - self.first_event_id, last_event_id - self.first_event_id + 1
        if place < 0 or end > self.events_count:
            raise IndexError(f"events {first_event_id} to {last_event_id} of {self!r}")
        found = array("I")
        while place < end:
            number, at = divmod(place, BLOCK_OFFSETS)
            starts = self._starts(number)[at : at + end - place]
            found += starts
            place += len(starts)
        return found

    def spans(self, ids: Sequence[int], segment: Segment) -> list[tuple[int, int]]:
        """Where the lines of these events of the segment begin and end."""
        base, blocks, first_number = self.first_event_id, self._blocks.recent, self._number
        last, end = segment.last_event_id, segment.end
        found: list[tuple[int, int]] = []
        for event_id in ids:
            number, at = divmod(event_id - base, BLOCK_OFFSETS)
            starts = blocks.get(first_number + number) or self._starts(number)
            if event_id == last:
                found.append((starts[at], end))
            elif at + 1 < BLOCK_OFFSETS:
                found.append((starts[at], starts[at + 1]))
            else:
                found.append((starts[at], self._starts(number + 1)[0]))
        return found

    # --- blocks ---

    def _keys(self, number: int) -> array[int]:
        block = self._blocks.recent.get(self._key_number + number)
        if block is None:
            block = self._load("Q", self._offset_blocks + number, self.keys_count - number * BLOCK_KEYS)
        return block

    def _starts(self, number: int) -> array[int]:
        block = self._blocks.recent.get(self._number + number)
        if block is None:
            block = self._load("I", number, self.events_count - number * BLOCK_OFFSETS)
        return block

    def _load(self, typecode: Typecode, number: int, count: int) -> array[int]:
        held = self._blocks.promoted(self._number + number)
        if held is not None:
            return held
        if self._file < 0:
            raise StoreClosed
        try:
            data = self._blocks.read(self._disk, self._file, self._blocks_at + number * BLOCK_BYTES)
        except OSError as error:
            raise self._unreadable(error, number) from error
        self._check(data, number)
        block = decode_numbers(typecode, data)
        del block[count:]  # the zeros that fill the last block
        self._blocks.put(self._number + number, block)
        return block

    def _check(self, data: bytes | memoryview, number: int) -> None:
        if len(data) != BLOCK_BYTES or crc32(data) != self._crcs[number]:
            raise RunDamaged(self, f"the checksum of block {number} does not hold")

    def _unreadable(self, error: OSError, number: int) -> Damaged | OSError:
        """What to raise: of a file that is derived, a bad sector is as good as damage, for it can be made anew."""
        return RunDamaged(self, f"block {number} cannot be read: {error}") if error.errno == errno.EIO else error

    # --- merging ---

    def scan_offsets(self) -> Iterator[bytes]:
        """The bytes of all offsets, in pieces, checked and not kept; waits for the device."""
        left = self.events_count * 4
        for data in self._scan(0, self._offset_blocks):
            yield data[:left]
            left -= len(data)

    def scan_keys(self) -> Iterator[array[int]]:
        """All keys, in pieces of `SCAN_BLOCKS` blocks, checked and not kept; waits for the device."""
        left = self.keys_count
        for data in self._scan(self._offset_blocks, len(self._crcs)):
            keys = decode_numbers("Q", data)
            del keys[left:]
            left -= len(keys)
            yield keys

    def _scan(self, first: int, end: int) -> Iterator[bytes]:
        for number in range(first, end, SCAN_BLOCKS):
            if self._file < 0:
                raise StoreClosed
            count = min(SCAN_BLOCKS, end - number)
            try:
                data = self._disk.read(self._file, count * BLOCK_BYTES, self._blocks_at + number * BLOCK_BYTES)
            except OSError as error:
                raise self._unreadable(error, number) from error
            view = memoryview(data)
            for i in range(count):
                self._check(view[i * BLOCK_BYTES : (i + 1) * BLOCK_BYTES], number + i)
            yield data


class Tables:
    """What a run holds in memory: its segments, the first key of each block of keys, the checksum of each block."""

    def __init__(self, disk: Disk, file: int, header: Header) -> None:
        table = disk.read(file, header.blocks_at - HEADER_BYTES, HEADER_BYTES)
        directory = disk.read(file, header.directory_size, header.directory_at)
        if crc32(directory, crc32(table)) != header.tables:
            raise Damaged("the checksum of the tables does not hold")
        self.segments = decode_segments(table, header)
        fence_size = header.key_blocks * 8
        self.fence = decode_numbers("Q", directory[:fence_size])
        self.crcs = decode_numbers("I", directory[fence_size:])


def _close(disk: Disk, file: int) -> None:
    with contextlib.suppress(OSError):
        disk.close(file)


def _first_event_id(segment: RunSegment) -> int:
    return segment.first_event_id
