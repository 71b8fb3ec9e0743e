"""A worker's life in its group: it joins, reads its share, records how far that came, and leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any

from aiostore.consumer.group import Group, Progress, join, leave, owned, partition_of, share_of, stay, take_part
from aiostore.consumer.lanes import Lane, Lanes, Share
from aiostore.consumer.membership import Membership
from aiostore.consumer.parked import Kept, ParkedRows, parked_events
from aiostore.engine import PAGE_EVENTS, Saving
from aiostore.errors import EngineUnavailable, EventStoreError, OutcomeUnknown, StoreClosed, StoreFull
from aiostore.events import Event
from aiostore.finishing import finished
from aiostore.query import Query
from aiostore.store import EventStore
from aiostore.subscription import RETRY_S, Subscription

logger = logging.getLogger("aiostore")

Key = Callable[[Event], str]

PASSING = (EngineUnavailable, OutcomeUnknown, StoreFull)
"""What keeps a record from being saved, and may not the next time."""


class Work:
    """One membership of a worker, from joining the group to leaving it."""

    def __init__(
        self,
        store: EventStore,
        name: str,
        membership: Membership,
        rows: ParkedRows,
        *,
        query: Query | None,
        order_by: Key | None,
        checkpoint_every_s: float,
        window_events: int,
    ) -> None:
        self.lanes = Lanes(order_by, window_events, self._refill, self._told)
        self.failure: Exception | None = None
        """Why it ends, if not because it was asked to."""
        self._store = store
        self._fanout = store._parts()[1]
        self._name = name
        self._membership = membership
        self._rows = rows
        self._query = query
        self._order_by = order_by
        self._every_s = checkpoint_every_s
        self._window_events = window_events
        self._begun_count = self._done_count = 0  # of steps
        self._news = asyncio.Event()
        self._due = asyncio.Event()
        self._parked_revision = 0
        self._saving: dict[str, Saving] = {}
        self._ending: list[int] = []
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._workers: set[asyncio.Task[None]] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._subscription: Subscription | None = None  # while it is waited for, and nothing of it is in hand
        self._position = 0
        self._warned = ""

    # --- from the beginning to the end ---

    async def run(
        self,
        stopping: asyncio.Event,
        handle: Callable[[], Coroutine[Any, Any, None]],
        count: int,
        joined: Callable[[], None],
    ) -> None:
        """Join, have ``handle()`` run so many times at once until ``stopping``, and leave.

        Raises what any of it raised, and `failure`; `Fenced` if its place was taken from it.
        """
        try:
            await self._join()
            joined()
            self._keeper = self._spawn(self._keep(), "records")
            self._spawn(self._watch(stopping), "stops")
            self._workers = {self._spawn(handle(), f"handles ({number})") for number in range(count)}
            await self._end
            await self._finish_in_hand()
        except BaseException as error:
            self.lanes.close()
            await finished(self._cancel(self._tasks))
            if not isinstance(error, StoreClosed):
                await finished(self._leave())
            raise
        await finished(self._leave())
        if self.failure is not None:
            raise self.failure

    async def _finish_in_hand(self) -> None:
        """It takes as long as it takes: meanwhile the worker is seen to be alive, and records how far it comes."""
        self.lanes.close()
        await self._cancel(self._tasks - self._workers - {self._keeper})
        while self._workers or self.lanes.busy_count:
            await self.news()
        await self._cancel(self._tasks)

    async def _cancel(self, tasks: Collection[asyncio.Task[None]]) -> None:
        tasks = list(tasks)
        for task in tasks:
            task.remove_done_callback(self._ended)
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._tasks.difference_update(tasks)

    def _spawn(self, coroutine: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine, name=f"consumer {self._name!r} {what}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._workers.discard(task)
        self._news.set()
        error = None if task.cancelled() else task.exception()
        if self._end.done():
            return
        if task.cancelled():  # by somebody else: then it cannot go on
            self._end.cancel()
        elif error is not None:
            self._end.set_exception(error)

    async def _watch(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        self._stop()

    def halt(self, error: Exception) -> None:
        """Finish what is in hand, leave, and raise the error."""
        self.failure = self.failure or error
        self.lanes.close()
        self._stop()

    def _stop(self) -> None:
        if not self._end.done():
            self._end.set_result(None)

    def has(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether the task is one that handles events."""
        return task in self._workers

    # --- the record ---

    async def _join(self) -> None:
        membership = self._membership
        rows: list[Saving] = []

        async def before(group: Group) -> None:
            rows.clear()
            if membership.begins:
                membership.check_beginning(self._fanout.head)
                # What was parked before is of events that are not there any more.
                rows.extend(self._rows.saving(kept.key, None) for kept in await self._rows.load())

        def change(group: Group) -> Sequence[Saving]:
            join(group, membership.worker, membership.home)
            take_part(group, membership.worker, {}, ended=(), is_alive=membership.is_alive)
            return rows

        await membership.update(change, before=before)
        await self._settle()

    async def step(self) -> None:
        """Record how far it came, see what others did, and take or give up partitions."""
        self._begun_count += 1
        await self._membership.update(self._change, before=self._look_at)
        for key, saving in self._saving.items():
            if key in self.lanes.changed_rows and self._row_saving(key) == saving:
                del self.lanes.changed_rows[key]
        await self._settle()
        self._done_count = self._begun_count
        self._news.set()

    async def _look_at(self, group: Group) -> None:
        if group.parked_revision != self._parked_revision:
            self._know_parked(await self._rows.load(self.lanes.shares))
            self._parked_revision = group.parked_revision

    def _change(self, group: Group) -> Sequence[Saving]:
        worker, lanes = self._membership.worker, self.lanes
        lanes.taken(self._read_position())
        if worker in group.members and not lanes.closed:
            kept = [share for share in lanes.shares.values() if not share.releasing]
            for share in kept[share_of(group, worker) :]:
                lanes.release(share.number, self._read_position())
        self._ending = []
        for share in list(lanes.shares.values()):
            if share.releasing and not share.running_count:
                if group.partitions[share.number].owner == worker:
                    self._ending.append(share.number)
                else:  # it was given up in a step of which the outcome was unknown
                    lanes.drop(share.number)
        if lanes.closed:
            self._ending = []
            stay(group, worker, lanes.progress())
        else:
            take_part(group, worker, lanes.progress(), ended=self._ending, is_alive=self._membership.is_alive)
        self._saving = {key: self._row_saving(key) for key in lanes.changed_rows}
        return list(self._saving.values())

    def _row_saving(self, key: str) -> Saving:
        return self._rows.saving(key, self.lanes.changed_rows[key])

    async def _settle(self) -> None:
        """Begin with the partitions that the record says are this worker's, and end with those that it gave up."""
        for number in self._ending:
            self.lanes.drop(number)
        self._ending = []
        group = self._membership.group
        new = [number for number in owned(group, self._membership.worker) if number not in self.lanes.shares]
        if not new:
            return
        parked = await self._rows.load(new)
        # From here to the end of the reader in one step: of what it reads, the new ones lack what came before.
        self.lanes.taken(self._read_position())
        for number in new:
            partition = group.partitions[number]
            self.lanes.gain(Share(number, Progress(partition.position, partition.handled)))
        self._know_parked(parked)
        await self._read_from(min(self.lanes.shares[number].taken for number in new))

    def _know_parked(self, parked: Sequence[Kept]) -> None:
        for key, row, number in parked:
            seen = self._membership.group.partitions[number].last_position
            self.lanes.know_parked(key, row, number, seen)

    async def _keep(self) -> None:
        """Take a step every so often, and at once when something is to be given up."""
        while True:
            try:
                async with asyncio.timeout(min(self._every_s, self._membership.beat_s)):
                    await self._due.wait()
            except TimeoutError:
                pass
            self._due.clear()
            self._membership.look_again_if_due()
            try:
                await self.step()
            except PASSING as error:
                self._warn(f"its checkpoint cannot be recorded now, it is tried again: {error}")
            else:
                self._warned = ""

    def _warn(self, text: str) -> None:
        if text != self._warned:  # once, not at every step
            logger.warning("consumer %r: %s", self._name, text)
        self._warned = text

    async def _leave(self) -> None:
        """Record how far it came, and free its share for others at once."""
        self.lanes.taken(self._read_position())
        membership = self._membership

        def change(group: Group) -> Sequence[Saving]:
            still = leave(group, membership.worker, self.lanes.progress())
            return [self._row_saving(key) for key in self.lanes.changed_rows if partition_of(key) in still]

        try:
            await membership.update(change)
        except EventStoreError as error:
            logger.warning(
                "consumer %r ends without a checkpoint, what it handled last comes again: %s", self._name, error
            )

    def look(self) -> None:
        """See at once what others have asked for."""
        self._membership.forget()
        self._due.set()

    # --- how far it is ---

    @property
    def position(self) -> int:
        """Every event of its share up to this one is handled or parked."""
        self.lanes.taken(self._read_position())
        return min((progress.position for progress in self.lanes.progress().values()), default=self._position)

    @property
    def lag(self) -> int:
        """How many events of the store lie between that and the head."""
        return max(0, self._fanout.head - self.position)

    async def is_idle(self, target: int) -> bool:
        """Whether the whole group has handled or parked all events up to this one, and this is recorded."""
        if not self.lanes.calm:
            return False
        begun = self._begun_count
        self.look()
        while self._done_count <= begun:
            if self._end.done():
                return False
            await self.news()
        if not self.lanes.calm or any(each.position < target for each in self._membership.group.partitions):
            return False
        return not any(kept.row.retry for kept in await self._rows.load())

    async def news(self) -> None:
        """Return when something may have changed, or after some time."""
        self._news.clear()
        try:
            async with asyncio.timeout(min(self._every_s, self._membership.beat_s)):
                await self._news.wait()
        except TimeoutError:
            pass

    def _told(self) -> None:
        self._news.set()
        if any(share.releasing and not share.running_count for share in self.lanes.shares.values()):
            self._due.set()

    # --- reading ---

    async def _read_from(self, after: int) -> None:
        """Have what comes after this event read: by who reads already, if that is not beyond it."""
        reader = self._reader
        if reader is not None and after >= self._position:
            return
        self._position, self._subscription = after, None  # at once: from here on, nothing above it counts as taken
        if reader is not None:
            await self._cancel([reader])
        self._reader = self._spawn(self._read(after), "reads")

    async def _read(self, after: int) -> None:
        async with self._store.subscribe(query=self._query, after=after) as subscription:
            batches = subscription.batches(min(PAGE_EVENTS, self._window_events))
            while True:
                await self.lanes.room()
                self._subscription = subscription
                try:
                    events = await anext(batches)
                finally:
                    self._subscription = None
                self.lanes.take(events)
                self._position = events[-1].event_id
                self.lanes.expect(events)

    def _read_position(self) -> int:
        """Every event up to this one was taken into the lanes, or is not asked for."""
        if self._subscription is None:
            return self._position
        return max(self._position, self._subscription.position)

    async def _refill(self, lane: Lane) -> Sequence[Event]:
        """The next events of a parked stream that is to be tried again; none where there are no more."""
        marker = lane.parked
        assert marker is not None
        while True:
            try:
                events = await parked_events(
                    self._store, lane.key, marker.row, marker.seen, self._query, self._order_by, PAGE_EVENTS
                )
            except EngineUnavailable as error:
                if self.lanes.closed:
                    return ()
                self._warn(f"what is parked cannot be read now, it is tried again: {error}")
                await asyncio.sleep(RETRY_S)
                continue
            wanted = [event for event in events if event.event_id not in marker.row.skipped]
            for event in events:
                if wanted and event.event_id >= wanted[0].event_id:
                    return wanted
                marker.passed(event)
                self.lanes.changed_rows[lane.key] = marker.row
            if not events:
                return ()
