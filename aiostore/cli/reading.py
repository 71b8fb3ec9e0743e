"""Running a command's coroutine: a signal ends it, also while it writes to a pipe that nobody reads from."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import select
import signal
import stat
import sys
import threading
from collections.abc import Coroutine, Iterator
from types import FrameType
from typing import Any, TypeVar

from aiostore.cli.console import Interrupted, OutputClosed, put

T = TypeVar("T")


class Output:
    """Stdout, written to in the event loop: this process has nothing else to do meanwhile."""

    def __init__(self) -> None:
        self.writing = False

    def put(self, data: bytes) -> None:
        """Write the bytes; `OutputClosed` if nobody reads them."""
        self.writing = True
        try:
            put(data)
        finally:
            self.writing = False


def run(work: Coroutine[Any, Any, T], output: Output) -> T:
    """Run the coroutine and return its result.

    SIGINT cancels it, or ends what it writes just then, and raises `Interrupted`.
    """
    caught: list[int] = []

    async def supervised() -> T:
        task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        assert task is not None, "a coroutine of asyncio runs in a task"

        def interrupt(number: int, _: FrameType | None) -> None:
            caught.append(number)
            if output.writing:
                raise Interrupted(number)
            loop.call_soon_threadsafe(task.cancel)

        in_main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGINT, interrupt) if in_main else None
        try:
            return await work
        finally:
            if in_main:
                signal.signal(signal.SIGINT, before)

    try:
        return asyncio.run(supervised())
    except asyncio.CancelledError:
        if not caught:
            raise
        raise Interrupted(caught[0]) from None


@contextlib.contextmanager
def ended_when_closed() -> Iterator[None]:
    """Where nothing is written for a while, a pipe that nobody reads from any more ends the task: `OutputClosed`."""
    file = _pipe()
    if file is None:
        yield
        return
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None, "a coroutine of asyncio runs in a task"
    closed = False

    def look() -> None:
        nonlocal closed
        loop.remove_reader(file)
        poll = select.poll()
        poll.register(file, 0)  # an end of a pipe that is written to is never ready to be read, but for this
        closed = any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
        if closed:
            task.cancel()

    loop.add_reader(file, look)
    try:
        yield
    except asyncio.CancelledError:
        if closed:
            raise OutputClosed from None
        raise
    finally:
        loop.remove_reader(file)


def _pipe() -> int | None:
    """Stdout's descriptor, if it is a pipe."""
    try:
        file = sys.stdout.fileno()
    except io.UnsupportedOperation:
        return None
    return file if stat.S_ISFIFO(os.fstat(file).st_mode) else None
