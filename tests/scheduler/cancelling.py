"""Cancellation at every point: a scenario is run again and again, each time with one task cancelled somewhere else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from itertools import count
from typing import Any

from tests.scheduler.engines import RestlessEngine
from tests.scheduler.loop import SeededLoop


class _Counted(Coroutine[Any, Any, Any]):
    """A coroutine that tells the probe of each of its suspensions."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], suspended: Callable[[Any], None]) -> None:
        self._coroutine = coroutine
        self._suspended = suspended

    def send(self, value: Any) -> Any:
        awaited = self._coroutine.send(value)
        self._suspended(awaited)
        return awaited

    def throw(self, *error: Any) -> Any:
        awaited = self._coroutine.throw(*error)
        self._suspended(awaited)
        return awaited

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        raise NotImplementedError

    @property
    def cr_await(self) -> Any:
        return self._coroutine


class Probe:
    """Cancels the ``task``-th task of a loop at its ``suspension``-th suspension (both from 0 on).

    At once, or ``late``: when what the task waits for is done, but before the task goes on.
    """

    def __init__(self, task: int, suspension: int, *, late: bool) -> None:
        self.hit: str | None = None
        """The names of the task that was cancelled and of its coroutine."""
        self.tasks_count = 0
        self._task = task
        self._suspension = suspension
        self._late = late
        self._suspensions_count = 0

    def __str__(self) -> str:
        return f"task {self._task} ({self.hit}) at suspension {self._suspension}{', late' if self._late else ''}"

    def make_task(
        self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any
    ) -> asyncio.Task[Any]:
        """The loop's task factory."""
        name = getattr(coroutine, "__qualname__", "")
        if name.startswith(RestlessEngine.__name__):
            return asyncio.Task(coroutine, loop=loop, **options)  # it stands for a thread
        number = self.tasks_count
        self.tasks_count += 1
        if number == self._task:
            self._coroutine_name = name
            coroutine = _Counted(coroutine, self._suspended)
        return asyncio.Task(coroutine, loop=loop, **options)

    def _suspended(self, awaited: Any) -> None:
        number = self._suspensions_count
        self._suspensions_count += 1
        if number != self._suspension:
            return
        task = asyncio.current_task()
        assert task is not None
        self.hit = f"{task.get_name()}: {self._coroutine_name}"
        if self._late and asyncio.isfuture(awaited):
            awaited.add_done_callback(lambda _: task.cancel())
        else:
            task.cancel()


def cancel_everywhere(scenario: Callable[[int], Coroutine[Any, Any, None]]) -> list[str]:
    """Play the scenario with each task but its first cancelled at each suspension; the names of those that were.

    It gets a new number each time, and checks by itself that all is well in the end.
    """
    numbers = count()
    names: list[str] = []
    for task in count(1):
        for suspension in count():
            probes = [Probe(task, suspension, late=late) for late in (False, True)]
            for probe in probes:
                loop = SeededLoop()
                loop.set_task_factory(probe.make_task)  # type: ignore[arg-type]
                try:
                    loop.play(scenario(next(numbers)))
                except BaseException as error:
                    raise AssertionError(f"cancelled: {probe}: {error!r}") from error
            names += [probe.hit for probe in probes if probe.hit is not None]
            if all(probe.hit is None for probe in probes):
                break
        if all(probe.tasks_count <= task for probe in probes):
            return names
    raise AssertionError
