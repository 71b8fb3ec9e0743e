"""A disk that reads past bad sectors: one must not hide the rest of a file from whoever examines or saves it."""

from __future__ import annotations

import errno
from typing import Final, NamedTuple

from aiostore.engines.file.disk import Disk
from aiostore.engines.file.format import segment_first

SECTOR_BYTES: Final = 4096


class Unreadable(NamedTuple):
    """Bytes that the device could not read."""

    path: str
    offset: int
    size: int


class PatientDisk(Disk):
    """Another disk, for reading. In a segment, what cannot be read is zeros, and is noted in ``unreadable``.

    Zeros are not valid lines, so what is lost is told as damage by those who scan. The rest of the calls are the
    disk's; those that write are not handed on.
    """

    def __init__(self, disk: Disk) -> None:
        self.unreadable: dict[tuple[str, int], Unreadable] = {}
        self._disk = disk
        self._segments: dict[int, str] = {}

    def open_read(self, path: str) -> int:
        """See `Disk`."""
        file = self._disk.open_read(path)
        if segment_first(path.rpartition("/")[2]) is not None:
            self._segments[file] = path
        return file

    def close(self, file: int) -> None:
        """See `Disk`."""
        self._segments.pop(file, None)
        self._disk.close(file)

    def read(self, file: int, size: int, offset: int) -> bytes:
        """See `Disk`; zeros where a segment cannot be read."""
        try:
            return self._disk.read(file, size, offset)
        except OSError as error:
            if error.errno != errno.EIO or file not in self._segments:
                raise
        end = min(offset + size, self._disk.size(file))
        pieces: list[bytes] = []
        while offset < end:
            after = min(end, (offset // SECTOR_BYTES + 1) * SECTOR_BYTES)
            pieces.append(self._sector(file, after - offset, offset))
            offset = after
        return b"".join(pieces)

    def _sector(self, file: int, size: int, offset: int) -> bytes:
        try:
            return self._disk.read(file, size, offset)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
        path = self._segments[file]
        sector = offset // SECTOR_BYTES * SECTOR_BYTES
        self.unreadable[path, sector] = Unreadable(path, sector, SECTOR_BYTES)
        return bytes(size)

    def size(self, file: int) -> int:
        """See `Disk`."""
        return self._disk.size(file)

    def names(self, directory: str) -> list[str]:
        """See `Disk`."""
        return self._disk.names(directory)

    def exists(self, path: str) -> bool:
        """See `Disk`."""
        return self._disk.exists(path)

    def drop_cache(self, file: int) -> None:
        """See `Disk`."""
        self._disk.drop_cache(file)

    def lock(self, file: int, *, shared: bool) -> bool:
        """See `Disk`."""
        return self._disk.lock(file, shared=shared)

    def unlock(self, file: int) -> None:
        """See `Disk`."""
        self._disk.unlock(file)
