"""A storm: many tasks append, follow, listen, give up and close, all as a seed has it; what they see is noted."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Coroutine, Sequence
from typing import Any

from aiostore import (
    STREAM_EXISTS,
    AppendCondition,
    Event,
    EventStore,
    EventStoreError,
    Limits,
    NewEvent,
    Query,
    StoreClosed,
    StreamAppend,
    Subscription,
)
from tests.scheduler.engines import Place
from tests.scheduler.followers import COMMIT_EVENTS_MAX, WISHES, Chosen, Follower
from tests.scheduler.loop import whereabouts
from tests.scheduler.model import Attempt, Content, Hearing, Notes, Reading, check
from tests.scheduler.projectors import Projector

STREAMS = ("red-0", "red-1", "blue-0", "blue-1")
TYPES = ("A", "B", "C")
TAGS = ("x", "y", "z")
CALM_S = 4.0
"""A storm is over before; longer, and something waited for one of the store's own alarms (5 s and 30 s)."""


class Storm:
    """One storm over the engines of a place; in some the store closes in the middle of it."""

    def __init__(self, chance: random.Random, place: Place) -> None:
        self.chance = chance
        self.notes = Notes()
        self.group_events_max = chance.choice((1, 5, 2048))
        self._place = place
        self._tasks: list[asyncio.Task[Any]] = []
        self._endless: dict[asyncio.Task[Any], Subscription] = {}
        self._contents = 0
        self._handler_runs = False
        self._store: EventStore

    # Its course

    async def run(self) -> Sequence[Event]:
        """Let it rage, wait until it is over, close, and check everything against the log, which is returned."""
        chance = self.chance
        limits = Limits(
            ring_bytes_max=chance.choice((1, 2_000, 1_000_000)),
            backlog_bytes_max=chance.choice((1, 3_000, 1_000_000)),
            queue_bytes_max=chance.choice((500, 1_000_000)),
            group_events_max=self.group_events_max,
        )
        self._store = await EventStore.open(self._place(), limits=limits)
        actors = [self._append_some, self._append_some, self._append_some, self._race, self._decide]
        actors += [
            self._follow,
            self._follow,
            self._follow,
            self._listen,
            self._listen,
            self._project,
            self._read,
            self._cancel_some,
        ]
        for actor in actors:
            for _ in range(chance.randrange(5)):
                self.spawn(actor())
        if chance.random() < 0.4:
            await asyncio.sleep(chance.random() * 0.03)  # it closes in the middle
        else:
            await self._calm()
        await asyncio.gather(*(self._store.aclose() for _ in range(chance.choice((1, 2)))))
        own = [task for task in asyncio.all_tasks() if task.get_name().startswith("aiostore")]
        assert (own, self._store._fanout.listeners.backlog_bytes) == ([], 0), "closed, and yet it goes on"
        return await self._look_back()

    async def _look_back(self) -> Sequence[Event]:
        for task in self._tasks:  # some of which start others meanwhile
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()
        for hearing in self.notes.hearings:
            error = hearing.listener.error if hearing.listener is not None else None
            assert isinstance(error, Chosen | EventStoreError | asyncio.CancelledError | None), error
        now = asyncio.get_running_loop().time()
        assert now < CALM_S, f"it took {now:g} s of virtual time"
        fanout = self._store._fanout
        assert (len(fanout.live), len(fanout.waiting), fanout.held_by_subscriptions) == (0, 0, False)
        async with EventStore(self._place()) as again:
            log = await again.read_all().to_list()
        check(self.notes, log)
        return log

    async def _calm(self) -> None:
        """Wait until all have ended that end by themselves, and the others have seen all that there is."""
        loop = asyncio.get_running_loop()
        while busy := [task for task in self._tasks if self._is_busy(task)]:
            assert loop.time() < CALM_S, f"no calm: {[whereabouts(task) for task in busy]}"
            await asyncio.sleep(0.01)

    def _is_busy(self, task: asyncio.Task[Any]) -> bool:
        subscription = self._endless.get(task)
        return not task.done() and (subscription is None or subscription.lag > 0)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.append(task)
        return task

    async def pause(self) -> None:
        if self.chance.random() < 0.3:
            await asyncio.sleep(self.chance.random() * 0.01)
        for _ in range(self.chance.choice((0, 1, 4))):
            await asyncio.sleep(0)

    async def _cancel_some(self) -> None:
        """Cancel other tasks, now and then one of the store's own."""
        for _ in range(self.chance.randrange(1, 6)):
            await self.pause()
            victims = [task for task in self._tasks if not task.done()]
            if self.chance.random() < 0.2:
                victims = sorted(
                    (task for task in asyncio.all_tasks() if task.get_name().startswith("aiostore")),
                    key=asyncio.Task.get_name,
                )
            if victims:
                self.notes.cancellations += self.chance.choice(victims).cancel()

    # Those who append

    @property
    def head(self) -> int:
        return self._store._fanout.head

    def _parts(self, depth: int, *, count_max: int = 3) -> list[StreamAppend]:
        """What an append may consist of."""
        chance = self.chance
        self._contents += 1
        number, part = self._contents, 0
        parts = []
        for stream_id in chance.sample(STREAMS, chance.choice((1, 1, count_max))):
            events = []
            for _ in range(chance.randrange(1, COMMIT_EVENTS_MAX // count_max + 1)):
                data = {"content": number, "part": part, "depth": depth}
                tags = chance.sample(TAGS, chance.randrange(3))
                events.append(NewEvent(chance.choice(TYPES), data, tags=tags))
                part += 1
            parts.append(StreamAppend(stream_id, events))
        return parts

    def _expecting(self, parts: list[StreamAppend]) -> list[StreamAppend]:
        """The same, with expectations here and there, which are met or not."""
        likely = self._contents // len(STREAMS)
        choices = (None, None, 0, STREAM_EXISTS, likely, likely + 1)
        return [StreamAppend(part.stream_id, part.events, self.chance.choice(choices)) for part in parts]

    async def _append_some(self) -> None:
        for _ in range(self.chance.randrange(2, 8)):
            await self.pause()
            parts = self._expecting(self._parts(0)) if self.chance.random() < 0.4 else self._parts(0)
            condition = None
            if self.chance.random() < 0.2:
                after = self.chance.choice((None, max(0, self.head - self.chance.randrange(4))))
                condition = AppendCondition(Query.where(tags=self.chance.choice(TAGS), types="A"), after)
            key = f"key-{self.chance.randrange(12)}" if self.chance.random() < 0.3 else None
            for _ in range(2 if key and self.chance.random() < 0.5 else 1):  # what has a key may be sent again
                attempting = self._attempt(parts, condition=condition, key=key)
                if self.chance.random() < 0.25:
                    await self._give_up(self.spawn(attempting))
                else:
                    await attempting

    async def _give_up(self, task: asyncio.Task[None]) -> None:
        for _ in range(self.chance.randrange(12)):
            await asyncio.sleep(0)
        self.notes.cancellations += task.cancel()

    async def _race(self) -> None:
        """Append at the version that was read, again if another was faster."""
        stream_id = self.chance.choice(STREAMS[:2])
        for _ in range(self.chance.randrange(2, 6)):
            try:
                version = await self._store.stream_version(stream_id)
            except StoreClosed:
                return
            events = self._parts(0)[0].events
            await self._attempt([StreamAppend(stream_id, events, version)])

    async def _decide(self) -> None:
        """Append on condition that what a decision was based on is still all that there is."""
        query = Query.where(types=self.chance.choice(TYPES), tags=self.chance.choice(TAGS))
        for _ in range(self.chance.randrange(2, 5)):
            try:
                reader = self._store.read_all(query=query)
                await reader.to_list()
            except StoreClosed:
                return
            await self.pause()
            await self._attempt(self._parts(0), condition=AppendCondition(query, reader.head))

    async def _attempt(
        self,
        parts: list[StreamAppend],
        *,
        condition: AppendCondition | None = None,
        key: str | None = None,
        in_handler: bool = False,
    ) -> None:
        """Append, and note what became of it."""
        events = [(part.stream_id, event) for part in parts for event in part.events]
        first = events[0][1]
        assert isinstance(first, NewEvent)
        content = Content(first.data["content"], tuple(stream_id for stream_id, _ in events), key)
        expected = {part.stream_id: part.expected_version for part in parts if part.expected_version is not None}
        attempt = Attempt(content, expected, condition, self.head)
        self.notes.attempts.append(attempt)
        try:
            attempt.outcome = await self._send(parts, condition, key)
        except EventStoreError as error:
            attempt.outcome = error
        attempt.head_after = self.head
        if isinstance(attempt.outcome, list) and not in_handler:
            for hearing in self.notes.hearings:
                hearing.must_have_had(attempt.outcome)
            for projecting in self.notes.projectings:
                projecting.must_have_had(attempt.outcome)

    async def _send(self, parts: list[StreamAppend], condition: AppendCondition | None, key: str | None) -> list[Event]:
        store = self._store
        if len(parts) > 1 or self.chance.random() < 0.2:
            return await store.append_streams(parts, condition=condition, idempotency_key=key)
        (part,) = parts
        expected, events = part.expected_version, list(part.events)
        if len(events) > 1 or self.chance.random() < 0.2:
            return await store.append_batch(
                part.stream_id, events, expected_version=expected, condition=condition, idempotency_key=key
            )
        (event,) = events
        assert isinstance(event, NewEvent)
        stored = await store.append(
            part.stream_id,
            event.event_type,
            event.data,
            tags=event.tags,
            expected_version=expected,
            condition=condition,
            idempotency_key=key,
        )
        return [stored]

    # Those who listen

    async def _listen(self) -> None:
        await self.pause()
        hearing = Hearing(len(self.notes.hearings), wait=self.chance.random() < 0.7, start=self.head)
        try:
            hearing.listener = self._store.on_commit(lambda events: self._handle(hearing, events), wait=hearing.wait)
        except StoreClosed:
            return
        self.notes.hearings.append(hearing)
        if self.chance.random() < 0.3:
            await self.pause()
            await self.pause()
            hearing.listener.close()

    async def _handle(self, hearing: Hearing, events: list[Event]) -> None:
        assert not self._handler_runs, "handlers are called one after another"
        self._handler_runs = True
        try:
            self.notes.calls.append((events[-1].event_id, hearing.number))
            hearing.commits.append(list(events))
            for _ in range(self.chance.choice((0, 0, 1, 3))):
                await asyncio.sleep(0)
            if self.chance.random() < 0.05:
                await asyncio.sleep(0.001)
            if self.chance.random() < 0.25:
                await self._answer(events[-1])
            if self.chance.random() < 0.02:
                raise Chosen
        finally:
            self._handler_runs = False
        hearing.had = events[-1].event_id

    async def _answer(self, event: Event) -> None:
        """Append inside of a handler, in one of the ways that there are; not without end."""
        depth = event.data["depth"] + 1
        if depth > 2:
            return
        count = self.chance.randrange(1, 3)
        way = self.chance.choice(("directly", "gather", "task", "left behind"))
        if way == "gather":
            await asyncio.gather(*(self._attempt(self._parts(depth), in_handler=True) for _ in range(count)))
            return
        for _ in range(count):
            answer = self._attempt(self._parts(depth), in_handler=True)
            if way == "directly":
                await answer
            elif way == "task":
                await asyncio.create_task(answer)
            else:
                self.spawn(answer)

    async def answer(self, event: Event) -> None:
        """What a handler of a projection appends."""
        if event.data["depth"] < 2:
            await self._attempt(self._parts(event.data["depth"] + 1), in_handler=True)

    # Those who keep projections

    async def _project(self) -> None:
        await self.pause()
        wish = self.chance.choice([wish for wish in WISHES if wish.stream_id is None])
        projector = Projector(self, wish, TYPES)
        self.notes.projectings.append(projector.projecting)
        with contextlib.suppress(StoreClosed):
            await projector.project(self._store)

    # Those who read and follow

    async def _read(self) -> None:
        for _ in range(self.chance.randrange(1, 4)):
            await self.pause()
            wish = self.chance.choice(WISHES[:-1])
            backwards = self.chance.random() < 0.5
            try:
                if wish.stream_id is not None:
                    reader = self._store.read_stream(wish.stream_id, backwards=backwards)
                else:
                    reader = self._store.read_all(query=wish.query, backwards=backwards)
                events = await reader.to_list()
            except StoreClosed:
                return
            self.notes.readings.append(Reading(wish.name, wish.wants, reader.head, events[:: -1 if backwards else 1]))

    async def _follow(self) -> None:
        await self.pause()
        wish = self.chance.choice(WISHES)
        follower = Follower(self, wish)
        self.notes.followings.append(follower.following)
        try:
            while await follower.follow_on(self._store):
                pass
        except StoreClosed:
            pass

    def endless(self, subscription: Subscription) -> None:
        """Note that the current task may end only when the subscription does."""
        task = asyncio.current_task()
        assert task is not None
        self._endless[task] = subscription

    async def append_in_body(self) -> None:
        """An append in the body of a loop over a subscription."""
        await self._attempt(self._parts(1, count_max=2))
