"""A disk in memory that refuses what a real one does: sizes below nothing, places beyond a file's largest size."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from tests.file.disks import UnsharedDisk


class PickyDisk(UnsharedDisk):
    """For one thread; what it is asked is as it would be for the system."""

    def read(self, file: int, size: int, offset: int) -> bytes:
        if size < 0 or offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if offset >= 2**63 or size >= 2**63:
            raise OverflowError("Python int too large to convert to C long")
        return bytes(self._opened[file].data[offset : offset + size])

    def read_nowait(self, file: int, size: int, offset: int) -> bytes | None:
        if size < 0:
            raise ValueError("negative count")
        data = self.read(file, size, offset)
        return data if len(data) == size else None

    def read_each_nowait(self, file: int, spans: Sequence[tuple[int, int]]) -> list[bytes] | None:
        read: list[bytes] = []
        room = 0
        for start, end in spans:
            size = end - start
            if size > room:
                room = size + size // 8
            taken = size if size >= 0 else max(0, room + size)  # as a slice of the room has it
            data = self.read(file, taken, start)
            if len(data) < size:
                return None
            read.append(data)
        return read
