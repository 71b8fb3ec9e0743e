"""A recording disk of which one call fails, or all from that one on."""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import Enum
from typing import Any

from tests.crash.tape import Files, Forgotten, RecordingDisk
from tests.file.disks import CALLS, Inode

OPERATIONS = sorted(
    {*CALLS} - {"absolute", "file_system", "process", "watch", "lock", "unlock", "close", "drop_cache", "prefetch"}
)
"""What may fail. The others do not (hints among them), or their failure is for others to see (a lock that is held)."""


class Fault(Enum):
    """What goes wrong."""

    ONCE = "one call fails"
    FROM_THEN_ON = "all calls fail from that one on"
    SHORT = "one write is short"
    LOST = "one sync fails, and what it was to write reads back fine until it is read from the device"


class FaultyDisk(RecordingDisk):
    """Fails at the ``at``-th call of the operation with the error number."""

    def __init__(self, files: Files | None, operation: str, fault: Fault, number: int, at: int) -> None:
        self.operation = operation
        self.fault = fault
        self.error = number
        self.at = at
        self.calls = 0
        super().__init__(files)
        self.armed = True

    @property
    def has_failed(self) -> bool:
        """Whether the fault came."""
        return self.calls >= self.at

    def _meets(self, operation: str) -> bool:
        """Whether this call is one that fails."""
        if operation != self.operation or not getattr(self, "armed", False):
            return False
        self.calls += 1
        return self.calls == self.at or (self.fault is Fault.FROM_THEN_ON and self.calls > self.at)

    def _fail(self) -> None:
        raise OSError(self.error, os.strerror(self.error))

    def _forget(self, inode: Inode) -> None:
        """What is not synced is clean from now on, and not on the device."""
        inode.pending = []
        self.tape.append(Forgotten(self._number(inode)))


def _failing(name: str) -> Callable[..., Any]:
    original = getattr(RecordingDisk, name)

    def call(self: FaultyDisk, *args: Any, **kwargs: Any) -> Any:
        with self.mutex:
            if self._meets(name):
                if self.fault is Fault.SHORT and len(args[1]) > 1:
                    return original(self, args[0], args[1][: len(args[1]) // 2], *args[2:], **kwargs)
                if self.fault is Fault.LOST:
                    if name == "write_log":  # written, and not synced
                        original(self, *args, **{**kwargs, "synced": False})
                    if name in ("write_log", "sync"):
                        self._forget(self._opened[args[0]])
                if self.fault is not Fault.SHORT:
                    self._fail()
            return original(self, *args, **kwargs)

    return call


for _name in OPERATIONS:
    setattr(FaultyDisk, _name, _failing(_name))
