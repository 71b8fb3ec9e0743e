"""A database in memory that several engines share, as processes share a server: the reference of shared engines."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from aiostore import EngineUnavailable, StoreClosed, StoreFull
from aiostore.engine import (
    PAGE_EVENTS,
    Commit,
    Committed,
    Engine,
    Facts,
    Head,
    Outcome,
    Page,
    Plan,
    Proposal,
    Question,
    Saving,
    Selection,
    State,
)
from aiostore.engines.memory import MemoryEngine
from aiostore.events import copies
from aiostore.judging import judge
from aiostore.ring import Ring
from tests.scheduler.engines import whole

COMMITS_MAX = 5
"""So many commits are told of at once."""


class Database:
    """What all share: the events, who waits for more, and a lock that makes commits come one after another."""

    def __init__(self) -> None:
        self.memory = MemoryEngine()
        self.commits: list[Commit] = []
        self.lock = asyncio.Lock()
        self.waiting: list[asyncio.Future[None]] = []
        self.timestamp = ""

    @property
    def head(self) -> int:
        """The last event_id."""
        return self.commits[-1].events[-1].event_id if self.commits else 0

    async def commit(self, proposals: Sequence[Proposal], timestamp: str) -> Committed:
        """Judge each proposal as if it were alone in its group, on the state as it is now."""
        self.timestamp = max(timestamp, self.timestamp)
        previous_head, commits, outcomes = self.head, list[Commit](), list[Outcome]()
        for proposal in proposals:
            facts = await self.memory.facts(
                Question(
                    [part.stream_id for part in proposal.append.parts],
                    proposal.append.key_scope,
                    proposal.append.condition,
                )
            )
            judgement = judge([(proposal.append, facts)], Ring(self.head, 1), self.timestamp)
            if judgement.commits:
                await self.memory.commit(Plan(judgement.commits))
                self.commits += judgement.commits
                commits += judgement.commits
            outcomes += judgement.outcomes
        for future in self.waiting:
            if not future.done():
                future.set_result(None)
        self.waiting.clear()
        return Committed(previous_head, commits, outcomes)


class SharedEngine(Engine):
    """One process's view of a database. With ``chance`` it takes its time, and is unavailable now and then."""

    shared = True
    durable = False

    def __init__(self, database: Database, chance: random.Random | None = None, failing: float = 0.0) -> None:
        self._database = database
        self._chance = chance
        self._failing = failing
        self._closed = True

    @property
    def location(self) -> str:
        return "a database in memory"

    async def _dawdle(self, *, may_fail: bool = False) -> None:
        if self._closed:
            raise StoreClosed
        if self._chance is None:
            return
        for _ in range(self._chance.choice((0, 0, 1, 3))):
            await asyncio.sleep(0)
        if self._closed:
            raise StoreClosed
        if may_fail and self._chance.random() < self._failing:
            raise EngineUnavailable("so it was chosen")

    async def open(self) -> Head:
        self._closed = False
        return Head(self._database.head, self._database.timestamp)

    async def aclose(self) -> None:
        self._closed = True

    async def commit(self, plan: Plan) -> None:
        raise AssertionError("a shared engine judges")

    async def commit_shared(self, proposals: Sequence[Proposal], timestamp: str) -> Committed:
        await self._dawdle()
        if self._chance is not None and self._chance.random() < self._failing:
            raise StoreFull(self.location, "so it was chosen")
        return await whole(self._commit(proposals, timestamp))

    async def _commit(self, proposals: Sequence[Proposal], timestamp: str) -> Committed:
        async with self._database.lock:
            await self._dawdle()
            committed = await self._database.commit(proposals, timestamp)
        await self._dawdle()  # others may be told before we are
        return committed

    async def commits_after(self, after: int) -> Sequence[Commit]:
        await self._dawdle(may_fail=True)
        later = [commit for commit in self._database.commits if commit.events[0].event_id > after]
        found = later[: COMMITS_MAX if self._chance is None else self._chance.randrange(1, COMMITS_MAX + 1)]
        await self._dawdle()
        return [Commit(copies(commit.events), commit.idempotency_key, commit.bytes_estimate) for commit in found]

    async def changed(self, after: int) -> None:
        await self._dawdle()
        if self._database.head <= after:
            future = asyncio.get_running_loop().create_future()
            self._database.waiting.append(future)
            await future
        if self._closed:
            raise StoreClosed

    async def facts(self, question: Question) -> Facts:
        await self._dawdle()
        facts = await self._database.memory.facts(question)
        await self._dawdle()
        return facts

    async def read(self, selection: Selection, cursor: int | None = None, max_events: int = PAGE_EVENTS) -> Page:
        await self._dawdle()
        some = max_events if self._chance is None else min(max_events, self._chance.choice((1, 3, max_events)))
        page = await self._database.memory.read(selection, cursor, some)
        await self._dawdle()
        return page

    async def load_state(self, key: str) -> State | None:
        await self._dawdle()
        return await self._database.memory.load_state(key)

    async def load_states(self, prefix: str, *, after: str = "", limit: int = PAGE_EVENTS) -> dict[str, State]:
        await self._dawdle()
        return await self._database.memory.load_states(prefix, after=after, limit=limit)

    async def save_states(self, position: int, savings: Sequence[Saving]) -> Sequence[int]:
        await self._dawdle()
        return await self._database.memory.save_states(position, savings)
