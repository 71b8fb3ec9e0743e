"""A database in memory, as a target of projections: transactions, a row lock, and answers that are lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from aiostore import Checkpoint


class Down(Exception):
    """What a database raises that is not there."""


class Table:
    """A transaction: the rows as it sees them."""

    def __init__(self, rows: list[int], checkpoints: dict[str, Checkpoint]) -> None:
        self.rows = list(rows)
        self.checkpoints = dict(checkpoints)


class MemoryTarget:
    """Rows (event_ids) and checkpoints that are replaced as one when a transaction commits."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.checkpoints: dict[str, Checkpoint] = {}
        self.commits_count = 0
        self.loads_count = 0
        self.begin_fails: Callable[[], bool] = lambda: False
        self.answer_is_lost: Callable[[], bool] = lambda: False
        self._lock = asyncio.Lock()

    async def load(self, name: str) -> Checkpoint | None:
        self.loads_count += 1
        await asyncio.sleep(0)
        return self.checkpoints.get(name)

    @contextlib.asynccontextmanager
    async def begin(self) -> AsyncIterator[Table]:
        if self.begin_fails():
            raise Down("no connection")
        async with self._lock:  # as BEGIN IMMEDIATE
            await asyncio.sleep(0)
            transaction = Table(self.rows, self.checkpoints)
            yield transaction
            await asyncio.sleep(0)
            self.rows, self.checkpoints = transaction.rows, transaction.checkpoints
            self.commits_count += 1
            if self.answer_is_lost():
                raise Down("the connection went")
            await asyncio.sleep(0)  # committed, but nobody knows yet

    async def save(self, transaction: Table, name: str, checkpoint: Checkpoint, previous: Checkpoint | None) -> bool:
        await asyncio.sleep(0)
        if transaction.checkpoints.get(name) != previous:
            return False
        transaction.checkpoints[name] = checkpoint
        return True
