"""A storm over several stores on one database: all append, listen, follow and project; what they see is compared."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

from aiostore import AppendCondition, Event, EventStore, EventStoreError, Limits, LiveProjection, Query
from tests.conformance import ids
from tests.shared.database import Database, SharedEngine

STORES = 3
CALM_S = 60.0
"""Of virtual time: longer, and something is stuck."""


class Witness:
    """One store, and what its listener, its subscription and its projection had."""

    def __init__(self, store: EventStore, chance: random.Random) -> None:
        self.store = store
        self.heard: list[int] = []
        self.seen: list[int] = []
        self.projection: LiveProjection[list[int]] = LiveProjection("p", store, initial=list)
        for event_type in "EF":
            self.projection.when(event_type, lambda state, event: state.append(event.event_id))
        self._chance = chance
        self._projecting = False
        store.on_commit(self._hear)

    async def _hear(self, events: list[Event]) -> None:
        self.heard += ids(events)
        if self._chance.random() < 0.1:
            await asyncio.sleep(0)

    async def follow(self) -> None:
        """To the end of the task."""
        on_slow: Any = self._chance.choice(("catch_up", "wait"))
        async with self.store.subscribe(queue_size=self._chance.choice((1, 100)), on_slow=on_slow) as events:
            async for event in events:
                self.seen.append(event.event_id)
                if self._chance.random() < 0.2:
                    await asyncio.sleep(0)

    async def append_some(self) -> Sequence[Event]:
        """Append in several ways; returns what was acknowledged."""
        acknowledged: list[Event] = []
        for _ in range(self._chance.randrange(3, 10)):
            try:
                events = await self._append(self._chance.choice("abc"))
            except EventStoreError:
                events = []
            if events:
                assert self.heard[-1] >= events[-1].event_id, "what has returned was heard"
                if self._projecting and self.projection.is_live:
                    assert self.projection.position >= events[-1].event_id, "and is in the projection"
            acknowledged += events
            for _ in range(self._chance.choice((0, 2))):
                await asyncio.sleep(0)
        return acknowledged

    async def project(self) -> None:
        """Enter the projection."""
        await self.projection.__aenter__()
        self._projecting = True

    async def _append(self, stream_id: str) -> list[Event]:
        store, chance = self.store, self._chance
        way = chance.randrange(4)
        if way == 0:
            version = await store.stream_version(stream_id)
            return [await store.append(stream_id, "E", {}, expected_version=version)]
        if way == 1:
            condition = AppendCondition(Query.where(types="F"), await store.head())
            return [await store.append(stream_id, "F", {}, condition=condition)]
        if way == 2:
            return [await store.append(stream_id, "E", {}, idempotency_key=f"k-{chance.randrange(5)}")]
        return await store.append_batch(stream_id, [("E", {"n": n}) for n in range(chance.randrange(1, 4))])

    def has_all(self, total: int) -> bool:
        """Whether it is up to date."""
        return len(self.heard) == len(self.seen) == total and self.projection.position >= total


async def rage(chance: random.Random) -> None:
    """One storm, to its end."""
    database = Database()
    limits = Limits(ring_bytes_max=chance.choice((1, 100_000)), backlog_bytes_max=chance.choice((1, 100_000)))
    witnesses = []
    for _ in range(STORES):
        engine = SharedEngine(database, chance, chance.choice((0, 0.1)))
        witnesses.append(Witness(await EventStore.open(engine, limits=limits), chance))
    followers = [asyncio.create_task(witness.follow()) for witness in witnesses]
    appenders = [asyncio.create_task(witness.append_some()) for witness in witnesses for _ in range(3)]
    for witness in witnesses:
        await witness.project()
    acknowledged = [event for task in appenders for event in await task]

    log = [event for commit in database.commits for event in commit.events]
    everything = list(range(1, database.head + 1))
    assert ids(log) == everything
    assert all(log[event.event_id - 1] == event for event in acknowledged)
    while not all(witness.has_all(database.head) for witness in witnesses):
        await asyncio.sleep(0.01)
        assert asyncio.get_running_loop().time() < CALM_S, [vars(witness) for witness in witnesses]
    for task in followers:
        task.cancel()
    await asyncio.gather(*followers, return_exceptions=True)
    for witness in witnesses:
        assert witness.heard == witness.seen == witness.projection.state == everything
        await witness.projection.aclose()
        await witness.store.aclose()
