"""Writing the file of a run: sections in blocks, synced in portions, and in its place at once."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final

from aiostore.engines.file.blocks import BLOCK_BYTES, encode_numbers
from aiostore.engines.file.checksum import crc32
from aiostore.engines.file.disk import Disk
from aiostore.engines.file.run_format import (
    HEADER_BYTES,
    TEMPORARY_SUFFIX,
    Header,
    RunSegment,
    encode_header,
    encode_segments,
    run_name,
)
from aiostore.limits import MIB

WRITE_BYTES: Final = 64 * BLOCK_BYTES
SYNC_BYTES: Final = 4 * MIB
"""So much is written between syncs: a larger one would hold up those of the log."""


def write_run(
    disk: Disk,
    directory: str,
    store_id: str,
    segments: Sequence[RunSegment],
    last_event_id: int,
    offsets: Iterable[bytes],
    keys: Iterable[list[int]],
    pause: Callable[[], None],
) -> str:
    """Write the run of these segments and return its path. It is there whole and durable, or, on any error, not."""
    path = f"{directory}/{run_name(segments[0].first_event_id)}"
    temporary = path + TEMPORARY_SUFFIX
    file = disk.open_write(temporary)
    try:
        try:
            disk.truncate(file, 0)
            _write(disk, file, store_id, segments, last_event_id, offsets, keys, pause)
        finally:
            disk.close(file)
        disk.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            disk.remove(temporary)
        raise
    disk.sync_directory(directory)
    return path


def _write(
    disk: Disk,
    file: int,
    store_id: str,
    segments: Sequence[RunSegment],
    last_event_id: int,
    offsets: Iterable[bytes],
    keys: Iterable[list[int]],
    pause: Callable[[], None],
) -> None:
    table = encode_segments(segments)
    blocks = _BlockWriter(disk, file, HEADER_BYTES + len(table), pause)
    for data in offsets:
        blocks.write(data)
    blocks.end_section()
    offset_blocks = len(blocks.firsts)
    keys_count = 0
    for piece in keys:
        keys_count += len(piece)
        blocks.write(encode_numbers(array("Q", piece)))
    blocks.end_section()
    directory = encode_numbers(blocks.firsts[offset_blocks:]) + encode_numbers(blocks.crcs)
    header = Header(segments[0].first_event_id, last_event_id, len(segments), keys_count, 0)
    assert header.directory_at == blocks.position, "there is an offset for each event"
    header = header._replace(tables=crc32(directory, crc32(table)))
    disk.write_at(file, directory, header.directory_at)
    disk.write_at(file, encode_header(header, store_id) + table, 0)
    disk.sync(file)


class _BlockWriter:
    """Writes sections of blocks one after the other, and remembers of each block its first number and its checksum."""

    def __init__(self, disk: Disk, file: int, position: int, pause: Callable[[], None]) -> None:
        self.position = position
        self.firsts = array("Q")
        self.crcs = array("I")
        self._disk = disk
        self._file = file
        self._pause = pause
        self._pending = bytearray()
        self._unsynced = 0

    def write(self, data: bytes) -> None:
        self._pending += data
        while len(self._pending) >= WRITE_BYTES:
            self._flush(WRITE_BYTES)

    def end_section(self) -> None:
        """Fill the last block of the section."""
        self._pending += bytes(-len(self._pending) % BLOCK_BYTES)
        if self._pending:
            self._flush(len(self._pending))

    def _flush(self, size: int) -> None:
        data = bytes(self._pending[:size])
        del self._pending[:size]
        view = memoryview(data)
        for start in range(0, size, BLOCK_BYTES):
            self.firsts.append(int.from_bytes(view[start : start + 8], "little"))
            self.crcs.append(crc32(view[start : start + BLOCK_BYTES]))
        self._disk.write_at(self._file, data, self.position)
        self.position += size
        self._unsynced += size
        if self._unsynced >= SYNC_BYTES:
            self._disk.sync(self._file)
            self._unsynced = 0
        self._pause()
