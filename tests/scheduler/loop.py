"""An event loop whose order and clock are chosen: every run with the same seed is the same.

Time jumps to the next timer when nothing is ready. Threads are none: what executors are given runs as a callback.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from enum import Enum
from typing import Any, TypeVar
from unittest import mock

from aiostore.engines.file.disk import DiskThread

T = TypeVar("T")


class Order(Enum):
    """In which order what is ready runs."""

    AS_ASYNCIO = "first come, first served"
    SHUFFLED = "each round shuffled"
    ONE_BY_ONE = "any of what is ready, one at a time"


def whereabouts(task: asyncio.Task[Any]) -> str:
    """The task's name, and the names of the coroutines that it is in."""
    names = []
    awaited: Any = task.get_coro()
    while awaited is not None:
        names.append(getattr(awaited, "__qualname__", type(awaited).__name__))
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    return f"{task.get_name()}: {' > '.join(names)}"


ROUNDS_MAX = 1_000_000
"""A run that takes so many rounds of the loop never ends."""


class Deadlock(AssertionError):
    """Nothing is ready, no timer runs, and the main task is not done; or it never will be."""


class SeededLoop(asyncio.BaseEventLoop):
    """The loop. ``noise`` is what reached its exception handler: tasks destroyed, errors never retrieved."""

    # Of the standard library's class, which knows nothing of selectors but `select`.
    _ready: deque[asyncio.Handle]
    _selector: SeededLoop
    _clock_resolution: float

    def __init__(self, seed: int = 0, order: Order = Order.AS_ASYNCIO) -> None:
        super().__init__()
        self.random = random.Random(seed)
        self.order = order
        self.noise: list[dict[str, Any]] = []
        self._now = 0.0
        self._rounds = 0
        self._selector = self
        self._clock_resolution = 1e-9
        self._jobs: dict[Executor, deque[Callable[[], Callable[[], None] | None]]] = {}
        self._shut: set[Executor] = set()
        self.set_exception_handler(lambda _, context: self.noise.append(context))

    def time(self) -> float:
        """The virtual time, in seconds since the loop was made."""
        return self._now

    def select(self, timeout: float | None) -> list[Any]:
        """Called by the loop when it would look for input: there is none, time passes."""
        self._rounds += 1
        if timeout is None or self._rounds > ROUNDS_MAX:
            what = "nothing will ever happen again" if timeout is None else "this never ends"
            raise Deadlock(f"{what}; waiting are: {sorted(map(whereabouts, asyncio.all_tasks(self)))}")
        self._now += timeout
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def _run_once(self) -> None:
        ready = self._ready
        if self.order is Order.ONE_BY_ONE and len(ready) > 1:
            ready.rotate(-self.random.randrange(len(ready)))
            chosen, *others = ready
            ready.clear()
            ready.append(chosen)
            super()._run_once()  # type: ignore[misc]
            ready.extend(others)
            return
        if self.order is Order.SHUFFLED:
            self.random.shuffle(ready)
        super()._run_once()  # type: ignore[misc]

    # Executors

    def give(self, executor: Executor, fn: Callable[..., T], *args: Any, **kwargs: Any) -> Future[T]:
        """What `ThreadPoolExecutor.submit` does here: the jobs of an executor run in order, as callbacks."""
        if executor in self._shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        job: Future[T] = Future()

        def run() -> Callable[[], None] | None:
            if not job.set_running_or_notify_cancel():
                return None
            asyncio._set_running_loop(None)  # there is none in a thread
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:
                failure = error
                return lambda: job.set_exception(failure)
            finally:
                asyncio._set_running_loop(self)
            return lambda: job.set_result(result)

        self._jobs.setdefault(executor, deque()).append(run)
        self.call_soon(self._run_job, executor)
        return job

    def _run_job(self, executor: Executor) -> None:
        jobs = self._jobs[executor]
        if jobs:
            # What a job did is there before anyone is told; meanwhile it is running and cannot be cancelled.
            tell = jobs.popleft()()
            if tell is not None:
                self.call_soon(tell)

    def shut(self, executor: Executor, *, wait: bool = True) -> None:
        """What `ThreadPoolExecutor.shutdown` does here."""
        self._shut.add(executor)
        while wait and self._jobs.get(executor):
            self._run_job(executor)

    @contextmanager
    def without_threads(self) -> Iterator[None]:
        """In the block, executors of threads give what they get to this loop."""

        def submit(executor: Executor, fn: Callable[..., T], *args: Any, **kwargs: Any) -> Future[T]:
            return self.give(executor, fn, *args, **kwargs)

        def shutdown(executor: Executor, wait: bool = True, *, cancel_futures: bool = False) -> None:
            self.shut(executor, wait=wait)

        with (
            mock.patch.multiple(ThreadPoolExecutor, submit=submit, shutdown=shutdown),
            mock.patch.multiple(DiskThread, submit_aside=submit, shutdown=shutdown),
        ):
            yield

    def play(self, scenario: Coroutine[Any, Any, T]) -> T:
        """Run the scenario to its end; nothing may be left over and nothing may have been noisy."""
        asyncio.set_event_loop(self)
        try:
            with self.without_threads():
                result = self.run_until_complete(scenario)
                left = sorted(map(whereabouts, asyncio.all_tasks(self)))
            assert not left, f"tasks are left over: {left}"
            assert not self.noise, self.noise
            return result
        finally:
            asyncio.set_event_loop(None)
            self.close()
