"""Engines that give the scheduler something to choose: they suspend here and there, and are full now and then."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from aiostore import Engine, StoreClosed, StoreFull
from aiostore.engine import FIRST_TIMESTAMP, PAGE_EVENTS, Facts, Head, Page, Plan, Question, Saving, Selection, State
from aiostore.engines.file.disk import Disk
from aiostore.engines.file.engine import FileEngine
from aiostore.engines.memory import MemoryEngine

T = TypeVar("T")

THREAD = "stands for a thread"
"""The name of tasks that cannot be cancelled, as what runs in a thread cannot."""

FULL_EVERY = 20
"""In a storm, one commit of so many finds no room."""


class RestlessEngine(Engine):
    """A store in memory that takes its time: any number of suspensions before and after each thing it does."""

    def __init__(self, inner: MemoryEngine, chance: random.Random, full_every: int | None = None) -> None:
        self._inner = inner
        self._chance = chance
        self._full_every = full_every
        self._committing = False

    @property
    def location(self) -> str:
        return "restless memory"

    async def open(self) -> Head:
        self._closed = False
        count = (await self._inner.facts(Question())).head
        last = (await self._inner.read(Selection(up_to=count, backwards=True), None, 1)).events
        return Head(last[0].event_id, last[0]._timestamp) if last else Head(0, FIRST_TIMESTAMP)

    async def aclose(self) -> None:
        assert not self._committing, "the last commit has ended"
        self._closed = True

    async def _dawdle(self) -> None:
        if self._closed:
            raise StoreClosed
        for _ in range(self._chance.choice((0, 0, 1, 3))):
            await asyncio.sleep(0)

    async def commit(self, plan: Plan) -> None:
        assert not self._committing, "one commit at a time"
        self._committing = True
        try:
            await self._dawdle()  # cancelled here, nothing is stored
            if self._full_every and self._chance.randrange(self._full_every) == 0:
                raise StoreFull(self.location, "so it was chosen")
            await whole(self._commit(plan))
        finally:
            self._committing = False

    async def _commit(self, plan: Plan) -> None:
        await self._dawdle()
        await self._inner.commit(plan)
        await self._dawdle()  # it is stored, but the store does not know yet

    async def facts(self, question: Question) -> Facts:
        await self._dawdle()
        facts = await self._inner.facts(question)
        await self._dawdle()
        return facts

    async def read(self, selection: Selection, cursor: int | None = None, max_events: int = PAGE_EVENTS) -> Page:
        await self._dawdle()
        page = await self._inner.read(selection, cursor, self._chance.choice((1, 3, max_events)))
        await self._dawdle()
        return page

    async def load_state(self, key: str) -> State | None:
        await self._dawdle()
        return await self._inner.load_state(key)

    async def load_states(self, prefix: str, *, after: str = "", limit: int = PAGE_EVENTS) -> dict[str, State]:
        await self._dawdle()
        return await self._inner.load_states(prefix, after=after, limit=limit)

    async def save_states(self, position: int, savings: Sequence[Saving]) -> Sequence[int]:
        await self._dawdle()
        if self._full_every and self._chance.randrange(self._full_every) == 0:
            raise StoreFull(self.location, "so it was chosen")
        revisions = await self._inner.save_states(position, savings)
        await self._dawdle()
        return revisions


async def whole(work: Coroutine[Any, Any, T]) -> T:
    """The result of the work, which goes on when this task is cancelled; the cancellation comes at its next await."""
    task, cancelled = asyncio.create_task(work, name=THREAD), False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        current = asyncio.current_task()
        assert current is not None
        current.uncancel()
        current.cancel()
    return task.result()


class RestlessDisk(Disk):
    """A disk that must be waited for now and then, that is full now and then, and that does not sync."""

    def __init__(self, chance: random.Random, full_every: int | None = None) -> None:
        self._chance = chance
        self._full_every = full_every

    def open_log(self, path: str, *, synced: bool) -> int:
        return super().open_log(path, synced=False)

    def write_log(self, file: int, data: memoryview, offset: int, *, synced: bool) -> int:
        if self._full_every and self._chance.randrange(self._full_every) == 0:
            super().write_log(file, data[: len(data) // 2], offset, synced=False)
            raise OSError(errno.ENOSPC, "so it was chosen")
        return super().write_log(file, data[: self._chance.randrange(len(data)) + 1], offset, synced=False)

    def read_each_nowait(self, file: int, spans: Sequence[tuple[int, int]]) -> list[bytes] | None:
        return None if self._chance.randrange(2) else super().read_each_nowait(file, spans)

    def sync(self, file: int) -> None:
        pass

    def sync_directory(self, path: str) -> None:
        pass


Place = Callable[[], Engine]
"""Makes an engine over the same events each time it is called."""

MakePlace = Callable[[random.Random, Path, int | None], Place]
"""Makes a place that holds no events, in the directory if it needs one; with how often it is to be full."""


def plain_memory(chance: random.Random, directory: Path, full_every: int | None = None) -> Place:
    """Memory as it is, which never suspends; closed, it is empty."""
    engine = MemoryEngine()
    return lambda: engine


def restless_memory(chance: random.Random, directory: Path, full_every: int | None = None) -> Place:
    """Memory."""
    inner = MemoryEngine()
    return lambda: RestlessEngine(inner, chance, full_every)


def restless_files(chance: random.Random, directory: Path, full_every: int | None = None) -> Place:
    """An embedded log in the directory, with segments of which a storm fills several, or one."""
    segment_bytes = chance.choice((3_000, 16_000_000))
    return lambda: FileEngine(directory, disk=RestlessDisk(chance, full_every), segment_bytes=segment_bytes)
