"""Children of a process without threads: each runs a coroutine, and tells its parent over a pipe."""

from __future__ import annotations

import asyncio
import ctypes
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import msgspec

Message = list[Any]
Say = Callable[..., None]

DEADLINE_SECONDS = 60.0
"""Nothing here takes so long: a child that is silent for it hangs."""

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


class ChildFailed(AssertionError):
    """A child ended in another way than it must; what it raised is on stderr."""


class Child:
    """A forked process. It dies with its parent."""

    def __init__(self, main: Callable[[Say], Coroutine[Any, Any, None]]) -> None:
        """Fork, and run the coroutine in the child; what it says comes out of `hear`."""
        self._pipe, writing = os.pipe()
        self._heard = b""
        self._ended = False
        self.status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._pipe)
            _run(main, writing)
        os.close(writing)

    def hear(self, messages_max: int | None = None) -> Iterator[Message]:
        """What it says next, at most so many messages; ends when it has ended. What was cut off is left out."""
        heard = 0
        while messages_max is None or heard < messages_max:
            line, found, rest = self._heard.partition(b"\n")
            if found:
                self._heard = rest
                heard += 1
                yield msgspec.json.decode(line)
            elif self._ended or not self._more():
                return

    def heard_so_far(self) -> list[Message]:
        """What it has said by now."""
        while not self._ended and select.select([self._pipe], [], [], 0)[0]:
            self._more()
        return list(self.hear(self._heard.count(b"\n")))

    def _more(self) -> bool:
        if not select.select([self._pipe], [], [], DEADLINE_SECONDS)[0]:
            self.kill()
            raise ChildFailed(f"a child was silent for {DEADLINE_SECONDS} s")
        data = os.read(self._pipe, 1 << 16)
        self._ended = not data
        self._heard += data
        return not self._ended

    def kill(self) -> None:
        """Kill it, if it still lives."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)

    def end(self) -> int:
        """Its exit status, negative if a signal ended it. Waits for that; call `hear` to the end before."""
        if self.status is None:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self._pipe)
        return self.status

    def result(self, *statuses: int) -> list[Message]:
        """All that it says to its end, which must be with one of these statuses, or 0."""
        try:
            messages = list(self.hear())
        except BaseException:
            self.kill()
            raise
        finally:
            status = self.end()
        if status not in (0, *statuses):
            raise ChildFailed(f"a child ended with {status}")
        return messages


def die_with_parent() -> None:
    """Have this process killed when the one that started it ends, however that ends; on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def _run(main: Callable[[Say], Coroutine[Any, Any, None]], pipe: int) -> None:
    """The child's life; does not return."""
    status = 1
    try:
        die_with_parent()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent sees to its end

        def say(*message: Any) -> None:
            line = memoryview(msgspec.json.encode(message) + b"\n")
            while line:
                line = line[os.write(pipe, line) :]

        asyncio.run(main(say))
        status = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def killed_after(child: Child, messages: int, pause_seconds: float) -> list[Message]:
    """What it said until it was killed, so many messages and then this pause later."""
    try:
        said = list(child.hear(messages))
        time.sleep(pause_seconds)
        child.kill()
        said += child.hear()
    finally:
        child.kill()
        child.end()
    return said
