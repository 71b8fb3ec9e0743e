"""The real disk, on which something strikes at a chosen call: the process is killed, or the power goes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from enum import Enum
from typing import Any

from aiostore.engines.file.disk import Disk

WRITES = ("write_at", "write_log")
CHANGING = (
    *WRITES,
    "make_directory",
    "open_log",
    "open_write",
    "remove",
    "replace",
    "sync",
    "sync_directory",
    "truncate",
)


class Moment(Enum):
    """When it strikes. In the midst of a write, half of it is written; only writes count then."""

    BEFORE = "before the call"
    MIDST = "in the midst of the write"
    AFTER = "after the call"


def kill_myself() -> None:
    """What strikes a process."""
    os.kill(os.getpid(), signal.SIGKILL)


class StrikingDisk(Disk):
    """The real disk; ``strike`` is called once, at the ``at``-th call that changes something, from 1."""

    def __init__(self, at: int, moment: Moment, strike: Callable[[], None] = kill_myself) -> None:
        self._at = at
        self._moment = moment
        self._strike = strike
        self._mutex = threading.Lock()
        self.calls = 0

    def _meets(self, name: str) -> bool:
        if self._moment is Moment.MIDST and name not in WRITES:
            return False
        with self._mutex:  # seals and merges have threads of their own
            self.calls += 1
            return self.calls == self._at

    def _struck(self, name: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._moment is Moment.BEFORE:
            self._strike()
        elif self._moment is Moment.MIDST:
            file, data, *rest = args
            half = len(data) // 2
            original(self, file, data[:half], *rest, **kwargs)
            self._strike()
            if name == "write_log":
                return half
        result = original(self, *args, **kwargs)
        if self._moment is Moment.AFTER:
            self._strike()
        return result


def _striking(name: str) -> Callable[..., Any]:
    original = getattr(Disk, name)

    def call(self: StrikingDisk, *args: Any, **kwargs: Any) -> Any:
        if self._meets(name):
            return self._struck(name, original, *args, **kwargs)
        return original(self, *args, **kwargs)

    return call


for _name in CHANGING:
    setattr(StrikingDisk, _name, _striking(_name))
