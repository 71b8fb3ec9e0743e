"""A task that the store owns: started when there is work, ended when there is none, whoever's call began it."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any


class Worker:
    """Runs ``run()`` in a task of its own, at most one at a time, and calls ``ended(task)`` when that is done.

    ``ended`` may start it again: a task cancelled before its first step has not even begun.
    """

    def __init__(
        self, name: str, run: Callable[[], Coroutine[Any, Any, None]], ended: Callable[[asyncio.Task[None]], None]
    ) -> None:
        self._name = name
        self._run = run
        self._ended = ended
        self._task: asyncio.Task[None] | None = None

    @property
    def task(self) -> asyncio.Task[None] | None:
        """The task, while it runs."""
        return self._task

    @property
    def running(self) -> bool:
        """Whether the task was started and its end is not yet noted."""
        return self._task is not None

    def start(self) -> None:
        """Start the task, unless it runs."""
        if self._task is None:
            # A context of its own, so that nothing of the call that happens to start it lives on in it.
            loop = asyncio.get_running_loop()
            self._task = loop.create_task(self._run(), name=self._name, context=contextvars.Context())
            self._task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._task = None
        self._ended(task)

    def cancel(self) -> None:
        """Cancel the task, if it runs."""
        if self._task is not None:
            self._task.cancel()

    async def drain(self) -> None:
        """Wait until the task has ended, and was not started again. Cancelled, this leaves the task alone."""
        while self._task is not None:
            await asyncio.wait([self._task])
            await asyncio.sleep(0)  # its end is noted by a callback
