"""Keeping evidence: what a repair will change is copied first, and is durable before anything is changed. Synchronous.

It lies in a directory beside the store, ``<store>.damaged-<time>``, which has mode 0700, and its files 0600: the files
as they were, ``salvaged.jsonl`` with the valid lines that stand behind the damage, and ``repair.json``, the plan. That
comes last, so where it is, the evidence is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, suppress
from itertools import count

from aiostore.engines.file.disk import Disk, OpenFile
from aiostore.engines.file.log_check import Extent
from aiostore.limits import MIB

COPIED_BYTES = MIB
"""So much is copied at once."""

SALVAGED_NAME = "salvaged.jsonl"
PLAN_NAME = "repair.json"


class Evidence:
    """The directory with the evidence, while it is made. `discard` takes it back, as long as nothing was changed."""

    def __init__(self, reading: Disk, disk: Disk, directory: str, stamp: str, copied: Callable[[int], None]) -> None:
        self._reading = reading
        self._disk = disk
        self._copied = copied
        self._files: list[str] = []
        self._parent = directory.rpartition("/")[0] or "/"
        for number in count(1):
            self.path = f"{directory}.damaged-{stamp}" + (f"-{number}" if number > 1 else "")
            if disk.make_directory(self.path):
                break

    def copy(self, path: str) -> None:
        """Copy the file."""
        opened = OpenFile(self._reading, path)
        try:
            size = self._reading.size(opened.file)
            self._write(path.rpartition("/")[2], self._pieces(opened.file, 0, size))
        finally:
            opened.close()

    def salvage(self, extents: Iterable[Extent]) -> None:
        """Write the lines of the extents, as they are."""
        with closing(self._lines(extents)) as lines:
            self._write(SALVAGED_NAME, lines)

    def _lines(self, extents: Iterable[Extent]) -> Generator[bytes, None, None]:
        for extent in extents:
            opened = OpenFile(self._reading, extent.path)
            try:
                yield from self._pieces(opened.file, extent.start, extent.end)
            finally:
                opened.close()

    def _pieces(self, file: int, start: int, end: int) -> Iterator[bytes]:
        while start < end:
            data = self._reading.read(file, min(COPIED_BYTES, end - start), start)
            if not data:
                return
            yield data
            start += len(data)
            self._copied(len(data))

    def complete(self, plan: bytes) -> None:
        """Write the plan, and have all of it on the device."""
        self._disk.sync_directory(self.path)
        self._write(PLAN_NAME, [plan])
        self._disk.sync_directory(self.path)
        self._disk.sync_directory(self._parent)

    def discard(self) -> None:
        """Delete what was made, as far as that can be done."""
        for path in self._files:
            with suppress(OSError):
                self._disk.remove(path)
        with suppress(OSError):
            self._disk.remove_directory(self.path)

    def _write(self, name: str, pieces: Iterable[bytes]) -> None:
        path = f"{self.path}/{name}"
        file = self._disk.open_write(path, exclusive=True)
        self._files.append(path)
        try:
            offset = 0
            for data in pieces:
                self._disk.write_at(file, data, offset)
                offset += len(data)
            self._disk.sync(file)
        finally:
            self._disk.close(file)
