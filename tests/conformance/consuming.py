"""What the tests of consumers share."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from aiostore import Consumer, Event, EventStore, Retry
from aiostore.consumer.group import FREE, Group
from aiostore.consumer.membership import Membership
from aiostore.engine import Saving

QUICKLY = Retry(attempts=3, first_s=0.001, max_s=0.002)
DEADLINE_S = 60.0


async def fill(store: EventStore, streams: int, each: int) -> None:
    """So many events in each of so many streams, one of each in turn."""
    for number in range(each):
        for stream in range(streams):
            await store.append(f"s{stream}", "E", {"n": number})


async def becomes(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 (it is seen, and not told)
            await asyncio.sleep(0.002)


async def idle(consumer: Consumer) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await consumer.wait_idle()


class Seen:
    """A handler that notes what it gets, and refuses what it is told to; no stream may be handled twice at once."""

    def __init__(self, refuses: Callable[[Event], object] = lambda event: False) -> None:
        self.refuses = refuses
        self.events: list[Event] = []
        self.tried: list[int] = []
        self.at_once: set[str] = set()
        self.at_once_max = 0

    async def __call__(self, event: Event) -> None:
        assert event.stream_id not in self.at_once, "events of one stream are handled one at a time"
        self.at_once.add(event.stream_id)
        self.at_once_max = max(self.at_once_max, len(self.at_once))
        self.tried.append(event.event_id)
        try:
            await self.work()
            if self.refuses(event):
                raise ValueError(f"event {event.event_id} is refused")
            self.events.append(event)
        finally:
            self.at_once.discard(event.stream_id)

    async def work(self) -> None:
        await asyncio.sleep(0)

    @property
    def ids(self) -> list[int]:
        return [event.event_id for event in self.events]

    def by_stream(self) -> dict[str, list[int]]:
        """The versions, as they were handled."""
        versions: dict[str, list[int]] = defaultdict(list)
        for event in self.events:
            versions[event.stream_id].append(event.version)
        return versions


class Gated(Seen):
    """It waits in each event until the gate is open."""

    def __init__(self, refuses: Callable[[Event], object] = lambda event: False) -> None:
        super().__init__(refuses)
        self.gate = asyncio.Event()

    async def work(self) -> None:
        await self.gate.wait()


@contextlib.asynccontextmanager
async def background(consumer: Consumer) -> AsyncIterator[asyncio.Task[None]]:
    """`Consumer.run` in a task, which has ended behind the block, well."""
    task = asyncio.create_task(consumer.run())
    try:
        yield task
    finally:
        await consumer.stop()
    await task


async def kill(consumer: Consumer) -> None:
    """End it as a crash would: it records nothing, and does not leave its group."""
    work, main = consumer._work, consumer._main

    async def lost() -> None:
        pass

    if work is not None:
        work._leave = lost  # type: ignore[method-assign]
    assert main is not None
    main.cancel()
    await asyncio.wait([main])


async def steal(store: EventStore, name: str = "mailer") -> None:
    """Have all workers of the group taken for dead, and their shares free."""
    engine, fanout = store._parts()
    membership = Membership(engine, name, home=fanout.opening, alone=False, lease_s=1, after=0)

    def change(group: Group) -> Sequence[Saving]:
        group.members.clear()
        for partition in group.partitions:
            partition.owner = FREE
        return ()

    await membership.update(change)


def consumer(store: EventStore, handler: Any = None, **options: Any) -> Consumer:
    """One that is quick in all it does."""
    return Consumer(
        store, "mailer", handler, **{"retry": QUICKLY, "checkpoint_every_s": 0.02, "lease_s": 0.4, **options}
    )
