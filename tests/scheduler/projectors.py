"""Those who keep live projections in a storm: enter, fail, go on, leave, come back with a snapshot."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aiostore import Event, EventStore, EventStoreError, LiveProjection, StoreClosed
from tests.scheduler.followers import Chosen, Wish
from tests.scheduler.model import Projecting

if TYPE_CHECKING:
    from tests.scheduler.storm import Storm


class Projector:
    """Keeps one projection of the events of a wish, whose state is the list of those that its handlers had."""

    def __init__(self, storm: Storm, wish: Wish, types: tuple[str, ...]) -> None:
        chance = storm.chance
        self._storm = storm
        self._wish = wish
        self._types = types
        self._interval = chance.choice((None, None, 1, 4))
        self._fails = chance.choice((0.0, 0.0, 0.03))
        self._answers = chance.choice((0.0, 0.0, 0.1))
        self._number = len(storm.notes.projectings)
        self.projecting = Projecting(f"{wish.name} #{self._number}", wish.wants)

    async def project(self, store: EventStore) -> None:
        """Keep it, maybe again and again, until the store is closed or it is enough."""
        chance = self._storm.chance
        projection = self._made(store)
        for _ in range(chance.randrange(1, 4)):
            await self._storm.pause()
            if chance.random() < 0.3:
                projection = self._made(store)  # as after a restart
                await self._retrying(projection.load_snapshot)
            await self._enter(projection)

    def _made(self, store: EventStore) -> LiveProjection[list[int]]:
        projection: LiveProjection[list[int]] = LiveProjection(
            f"p-{self._number}", store, initial=list, query=self._wish.query, snapshot_interval=self._interval
        )
        for event_type in self._types:
            projection.when(event_type, self._handle)
        self.projecting.projection = projection
        return projection

    async def _enter(self, projection: LiveProjection[list[int]]) -> None:
        chance = self._storm.chance
        try:
            if not await self._retrying(projection.__aenter__):
                return
            self.projecting.must_be_live = True
            for _ in range(chance.randrange(6)):
                await self._storm.pause()
                if chance.random() < 0.2:
                    await self._retrying(projection.save_snapshot)
                if not projection.is_live:
                    self.projecting.must_be_live = False
                    await self._retrying(projection.catch_up)
                    self.projecting.must_be_live = projection.is_live
                elif chance.random() < 0.3:
                    await self._retrying(lambda: projection.wait_for(self._storm.head))
        finally:
            self.projecting.must_be_live = False
            await projection.aclose()
            assert not projection.is_live

    async def _retrying(self, call: Any) -> bool:
        """Whether it went well; what a handler raises, and what stops a projection, is no surprise here."""
        try:
            await call()
        except StoreClosed:
            raise
        except (Chosen, EventStoreError):
            return False
        return True

    async def _handle(self, state: list[int], event: Event) -> list[int] | None:
        chance = self._storm.chance
        for _ in range(chance.choice((0, 0, 0, 2))):
            await asyncio.sleep(0)
        if chance.random() < self._answers:
            await self._storm.answer(event)
        if chance.random() < self._fails:
            raise Chosen
        if chance.random() < 0.5:
            return [*state, event.event_id]
        state.append(event.event_id)
        return None
