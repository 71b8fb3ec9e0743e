"""The head file: the last event known to be durable, in two slots written in turn."""

from __future__ import annotations

import logging

from aiostore.engines.file.disk import Disk
from aiostore.engines.file.format import SLOT_BYTES, decode_slot, encode_slot

_log = logging.getLogger("aiostore")

_NOTHING = -1


HEAD_BYTES = 2 * SLOT_BYTES


def read_head(disk: Disk, path: str, store_id: str) -> int:
    """The durable head by the file, 0 where that says nothing: always a true lower bound."""
    if not disk.exists(path):
        return 0
    file = disk.open_read(path)
    try:
        return decode_head(disk.read(file, HEAD_BYTES, 0), store_id)
    finally:
        disk.close(file)


def decode_head(data: bytes, store_id: str) -> int:
    """The durable head by the bytes of the file."""
    return max(0, *_slots(data, store_id))


def decode_slots(data: bytes, store_id: str) -> list[int | None]:
    """What the two slots say, None where one is not valid."""
    return [decode_slot(data[start : start + SLOT_BYTES], store_id) for start in (0, SLOT_BYTES)]


def _slots(data: bytes, store_id: str) -> list[int]:
    """The same, `_NOTHING` where one is not valid."""
    return [_NOTHING if slot is None else slot for slot in decode_slots(data, store_id)]


class HeadFile:
    """The head file, held open for writing. Its methods run one at a time, on the writing thread."""

    def __init__(self, disk: Disk, path: str, store_id: str) -> None:
        self._disk = disk
        self._path = path
        self._store_id = store_id
        self._failing = False
        self._unsynced = False
        self._file = disk.open_write(path)
        try:
            slots = _slots(disk.read(self._file, HEAD_BYTES, 0), store_id)
            self.event_id = max(0, *slots)
            self._slot = slots.index(min(slots))
            for slot in (0, 1):
                if slots[slot] == _NOTHING:  # room for both is taken now, not when the disk may be full
                    disk.write_at(self._file, encode_slot(self.event_id, store_id), slot * SLOT_BYTES)
        except BaseException:
            disk.close(self._file)
            raise

    def advance(self, event_id: int) -> None:
        """Say, unsynced, that all up to the event is durable.

        Where that fails, the head stays what it is, a true lower bound, and the log is none the worse; it is logged.
        """
        if event_id <= self.event_id:
            return
        try:
            self._disk.write_at(self._file, encode_slot(event_id, self._store_id), self._slot * SLOT_BYTES)
        except OSError as error:
            self._report(error)
            return
        self.event_id = event_id
        self._slot = 1 - self._slot
        self._unsynced = True

    def sync(self) -> None:
        """Bring what `advance` wrote to the device; a failure is logged."""
        if not self._unsynced:
            return
        try:
            self._disk.sync(self._file)
        except OSError as error:
            self._report(error)
            return
        self._unsynced = False
        self._failing = False

    def _report(self, error: OSError) -> None:
        if not self._failing:  # once, not at every commit
            _log.warning("%s cannot be written: %s; what is stored is not affected", self._path, error)
        self._failing = True

    def close(self) -> None:
        """Close the file."""
        self._disk.close(self._file)
