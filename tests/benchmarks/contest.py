"""What a contest is: a few contenders that do the same work in turn, round by round, and what is wanted of them.

A contender is an async context manager over a directory of its own; it yields a function that does the work once and
returns one number. Where a row has a goal, it is for the ratio of ours to the peer's; without a peer, for our number.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

S = TypeVar("S")

TASKS = 64
BATCH_EVENTS = 1_000
WARM_UP = 20
IDLE_LOOKS = 3
IDLE_LOOK_S = 0.1
"""A process is idle when it was found so, this many times in a row, over so long."""

Measure = Callable[[], Awaitable[float]]
Contender = Callable[[Path], AbstractAsyncContextManager[Measure]]
Opener = Callable[[Path], AbstractAsyncContextManager[S]]


@dataclass(frozen=True)
class Goal:
    """What the ratio of ours to the peer's is to be: at most ``bound`` for latencies, at least for rates."""

    bound: float
    at_most: bool

    def met(self, ratio: float) -> bool:
        """Whether it is."""
        return ratio <= self.bound if self.at_most else ratio >= self.bound

    def __str__(self) -> str:
        bound = f"{self.bound:g}" if self.bound < 10_000 else f"{self.bound:,.0f}"
        return f"{'≤' if self.at_most else '≥'} {bound}"


@dataclass(frozen=True)
class Row:
    """One line of the result: two contenders of a contest, by name, or one alone; without a goal, for information."""

    ours: str
    peer: str | None = None
    goal: Goal | None = None


@dataclass(frozen=True)
class Contest:
    """Contenders that are measured in turn."""

    name: str
    unit: str
    more_is_better: bool
    contenders: dict[str, Contender]
    rows: Sequence[Row]


def contender(open_subject: Opener[S], measure: Callable[[S], Awaitable[float]]) -> Contender:
    """The contender that measures its subject, a store or a file, which stays open over the rounds."""

    @asynccontextmanager
    async def opened(directory: Path) -> AsyncIterator[Measure]:
        async with open_subject(directory) as subject:
            yield lambda: measure(subject)

    return opened


def shared(open_subject: Opener[S]) -> Opener[S]:
    """The subject that several contenders of one contest measure: the first of them opens it, and closes it last."""
    subjects: list[S] = []

    @asynccontextmanager
    async def opened(directory: Path) -> AsyncIterator[S]:
        if subjects:
            yield subjects[0]
            return
        async with open_subject(directory) as subject:
            subjects.append(subject)
            try:
                yield subject
            finally:
                subjects.clear()

    return opened


def payload(number: int) -> dict[str, Any]:
    """About 150 bytes of JSON."""
    return {
        "order": f"order-{number:08}",
        "customer": {"name": "Ada Lovelace", "country": "GB"},
        "item": "teapot, blue",
        "quantity": number % 7 + 1,
        "price": 24.5,
        "express": number % 3 == 0,
        "paid": True,
    }


def batch_of_payloads(events_count: int = BATCH_EVENTS) -> list[tuple[str, Any]]:
    """Events for one batch."""
    return [("OrderPlaced", payload(number)) for number in range(events_count)]


def stream(number: int) -> str:
    """The stream that an event goes to."""
    return f"order-{number % 100}"


def median_us(earlier: Sequence[float], later: Sequence[float]) -> float:
    """The median of the differences, in microseconds, without the first few."""
    return median(b - a for a, b in list(zip(earlier, later, strict=True))[WARM_UP:]) * 1e6


async def latency(work: Callable[[int], Awaitable[object]], times: int) -> float:
    """The median time of one call, in microseconds."""
    started: list[float] = []
    ended: list[float] = []
    for number in range(WARM_UP + times):
        started.append(time.perf_counter())
        await work(number)
        ended.append(time.perf_counter())
    return median_us(started, ended)


async def rate(work: Awaitable[int]) -> float:
    """How many events a second the work does, which returns their number."""
    started = time.perf_counter()
    events_count = await work
    return events_count / (time.perf_counter() - started)


async def together(append: Callable[[str, int], Awaitable[object]], times: int) -> int:
    """Have 64 tasks append, each to a stream of its own and one event after the other; returns how many there were."""
    each = max(1, times // TASKS)

    async def task(name: str) -> None:
        for number in range(each):
            await append(name, number)

    async with asyncio.TaskGroup() as group:
        for index in range(TASKS):
            group.create_task(task(f"order-{index}"))
    return each * TASKS


async def in_threads(append: Callable[[str, str, Any], object], times: int) -> int:
    """Have 64 threads append, each to a stream of its own and one event after the other; returns how many."""
    each = max(1, times // TASKS)

    def work(index: int) -> None:
        for number in range(each):
            append(f"order-{index}", "OrderPlaced", payload(number))

    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(TASKS) as pool:
        await asyncio.gather(*(loop.run_in_executor(pool, work, index) for index in range(TASKS)))
    return each * TASKS


async def idle() -> None:
    """Wait until this process does nothing beside: what a store does in its threads must not be measured with us."""
    quiet = 0
    while quiet < IDLE_LOOKS:
        before = time.process_time()
        await asyncio.sleep(IDLE_LOOK_S)
        quiet = quiet + 1 if time.process_time() - before < IDLE_LOOK_S / 10 else 0
