"""Waiting: for one's turn with a projection, and for an event to be in it."""

from __future__ import annotations

import asyncio
import contextlib
from bisect import bisect_right, insort
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

SEAM_EVENTS = 500
"""So few events behind, a projection goes live, or its rebuilt version takes over: what comes meanwhile waits."""


async def draw_near(step: Callable[[], Awaitable[None]], behind: Callable[[], int]) -> None:
    """Step until few events lie between, or no fewer than before: then appends are faster, and have to wait."""
    left = behind()
    while left > SEAM_EVENTS:
        before = left
        await step()
        left = behind()
        if left >= before:
            return


class Turn:
    """One task at a time works on a projection; one that comes again while it does would wait for itself."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[Any] | None = None

    @property
    def mine(self) -> bool:
        """Whether the current task has the turn: it runs in a handler."""
        return self._task is not None and self._task is asyncio.current_task()

    async def take(self, task: asyncio.Task[Any] | None) -> None:
        """Wait for the turn, for this task, which is the current one."""
        if self._task is not None and self._task is task:
            raise RuntimeError("a handler cannot wait for its own projection: it would wait for itself")
        await self._lock.acquire()
        self._task = task

    def give_back(self) -> None:
        """Let the next one work."""
        self._task = None
        self._lock.release()

    async def __aenter__(self) -> None:
        await self.take(asyncio.current_task())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.give_back()


_Waiter = tuple[int, int, asyncio.Future[None]]
"""The event_id that is waited for, a number that no other waiter has, and what is done when the event is there."""


class Waiters:
    """Those who wait until a position has come to an event."""

    def __init__(self) -> None:
        self._waiters: list[_Waiter] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._waiters)

    async def wait(self, event_id: int) -> None:
        """Wait until woken for this event, or with an error."""
        self._count += 1
        waiter = (event_id, self._count, asyncio.get_running_loop().create_future())
        insort(self._waiters, waiter)
        try:
            await waiter[2]
        except asyncio.CancelledError:
            with contextlib.suppress(ValueError):  # it was woken in this very moment
                self._waiters.remove(waiter)
            raise

    def wake(self, position: int, error: BaseException | None = None) -> None:
        """Let those go whose event is there, and with an error all others too."""
        due = bisect_right(self._waiters, position, key=lambda waiter: waiter[0])
        count = len(self._waiters) if error else due
        woken, self._waiters[:count] = self._waiters[:count], []
        for number, (_, _, future) in enumerate(woken):
            if future.done():
                continue
            if error is None or number < due:
                future.set_result(None)
            else:
                future.set_exception(error)
                future.exception()  # one that is cancelled in this very moment will not look at it
