"""Those who follow in a storm: each by one wish, in a way of its own, noting what it gets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiostore import END, Event, EventStore, Query, QueryItem, SlowSubscriber, Subscription
from aiostore.subscription import OnLive
from tests.scheduler.model import Following

if TYPE_CHECKING:
    from tests.scheduler.storm import Storm

COMMIT_EVENTS_MAX = 6
"""No append of a storm has more events."""


@dataclass(frozen=True)
class Wish:
    """What to follow, in the store's words and in plain ones."""

    name: str
    wants: Callable[[Event], bool]
    stream_id: str | None = None
    query: Query | None = None


WISHES = (
    Wish("everything", lambda event: True),
    Wish("everything", lambda event: True),
    Wish("stream", lambda event: event.stream_id == "red-0", stream_id="red-0"),
    Wish("type", lambda event: event.event_type == "A", query=Query.where(types="A")),
    Wish("tags", lambda event: {"x", "y"} <= set(event.tags), query=Query.where(tags=("x", "y"))),
    Wish("prefix", lambda event: event.stream_id.startswith("red-"), query=Query.where(stream_prefix="red-")),
    Wish(
        "items",
        lambda event: event.event_type == "B" or "z" in event.tags or event.stream_id.startswith("blue-1"),
        query=Query(QueryItem(types=("B",)), QueryItem(tags=("z",)), QueryItem(stream_prefix="blue-1")),
    ),
    Wish(
        "stream and type",
        lambda event: event.stream_id == "blue-0" and event.event_type in "AC",
        stream_id="blue-0",
        query=Query.where(types=("A", "C")),
    ),
)


class Chosen(Exception):
    """What a handler or ``on_live`` raises because the seed has it so."""


class Follower:
    """Follows by one wish, in a way that the seed has: to the end of the store, or of its patience."""

    def __init__(self, storm: Storm, wish: Wish) -> None:
        chance = storm.chance
        self.following = Following(f"{wish.name} #{len(storm.notes.followings)}", wish.wants)
        self._storm = storm
        self._wish = wish
        self._after: Any = chance.choice((0, 0, END, chance.randrange(storm.head + 4)))
        self._queue_size = chance.choice((1, 2, 5, 1024))
        self._on_slow: Any = chance.choice(("catch_up", "catch_up", "wait", "fail"))
        self._on_live: OnLive | None = chance.choice((None, None, _plain, _dawdling, _raising))
        self._batch = chance.choice((None, None, 1, 4))
        self._end = chance.choice(("never", "never", "steps", "break", "aclose"))
        self._left = chance.randrange(1, 12)
        self._to_append = chance.randrange(3)
        self._started = False
        self._count = 0

    async def follow_on(self, store: EventStore) -> bool:
        """Subscribe and follow; True if it was too slow and subscribes again."""
        subscription = store.subscribe(
            stream_id=self._wish.stream_id,
            query=self._wish.query,
            after=self._after,
            queue_size=self._queue_size,
            on_slow=self._on_slow,
            on_live=self._on_live,
        )
        self._storm.endless(subscription)
        if self._end == "aclose":
            self._storm.spawn(self._close_later(subscription))
        try:
            if self._on_slow == "wait" or self._end != "break":
                async with subscription:
                    await self._follow(subscription)
            else:
                await self._follow(subscription)
        except SlowSubscriber as error:
            self._look(subscription)
            check_slow(error, self.following)
            self._after, self._count = error.position, 0
            return True
        finally:
            self._look(subscription)
        return False

    async def _close_later(self, subscription: Subscription) -> None:
        await self._storm.pause()
        await self._storm.pause()
        await subscription.aclose()

    async def _follow(self, subscription: Subscription) -> None:
        if not self._started:  # END is fixed by now, or with the first step, before anything else happens
            self._started = True
            self.following.start = self.following.position = subscription.position
        while True:
            try:
                if self._end == "steps":
                    await self._step(subscription)
                elif await self._loop(subscription):
                    return
            except Chosen:
                continue
            except StopAsyncIteration:
                return

    async def _loop(self, subscription: Subscription) -> bool:
        """Run over it; True when it is over."""
        source: AsyncIterator[Any] = subscription if self._batch is None else subscription.batches(self._batch)
        async for got in source:
            for event in got if isinstance(got, list) else [got]:
                self._note(subscription, event)
            await self._body()
            if self._end == "break" and self._count >= self._left:
                break
        return True

    async def _step(self, subscription: Subscription) -> None:
        """Take a step, but maybe not to its end."""

        async def step() -> None:
            self._note(subscription, await anext(subscription))

        task = asyncio.create_task(step())
        for _ in range(self._storm.chance.choice((1, 3, 10, 30))):
            if task.done():
                break
            await asyncio.sleep(0)
        try:
            self._storm.notes.cancellations += task.cancel()
            await asyncio.wait([task])
        finally:
            if task.done() and not task.cancelled():
                task.result()
        await asyncio.sleep(0.0002)  # so that time passes

    async def _body(self) -> None:
        chance = self._storm.chance
        for _ in range(chance.choice((0, 0, 1, 4))):
            await asyncio.sleep(0)
        if chance.random() < 0.1:
            await asyncio.sleep(0.0005)
        if self._to_append and chance.random() < 0.2:
            self._to_append -= 1
            await self._storm.append_in_body()

    def _note(self, subscription: Subscription, event: Event) -> None:
        self._count += 1
        self.following.got.append(event)
        self._look(subscription)
        statistics = subscription.statistics()
        assert statistics.delivered_count >= self._count
        assert subscription.position >= event.event_id
        if subscription.is_live:
            more = self._storm.group_events_max if self._on_slow == "wait" else 0
            assert statistics.queued_count <= self._queue_size + max(more, COMMIT_EVENTS_MAX)

    def _look(self, subscription: Subscription) -> None:
        position = subscription.position
        assert position >= self.following.position, f"the position went back from {self.following.position}"
        assert subscription.lag == max(0, self._storm.head - position)
        self.following.position = position


def check_slow(error: SlowSubscriber, following: Following) -> None:
    """A subscription that was too slow says where to go on."""
    assert error.position == following.position


def _plain(subscription: Subscription) -> None:
    assert subscription.is_live


async def _dawdling(subscription: Subscription) -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def _raising(subscription: Subscription) -> None:
    raise Chosen
