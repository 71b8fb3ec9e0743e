"""Lanes: the events that a worker has in memory, each stream's in order, and which of them are handled.

Nothing here waits for anything but `Lanes.next_lane` and `Lanes.room`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any, Final

from aiostore.consumer.group import Progress, partition_of
from aiostore.consumer.parked import Marker, Row
from aiostore.events import Event

LANES_MAX = 10_000
"""So many streams are remembered that have nothing to do."""

QUEUED_BYTES_MAX = 16 * 1024 * 1024
"""So many bytes of data wait in memory, as far as a batch tells what the next one will be like."""


class Share:
    """A partition that the worker has: which of its events were taken into memory, and which are handled."""

    __slots__ = ("done", "handled_before", "number", "releasing", "running_count", "taken", "window")

    def __init__(self, number: int, progress: Progress) -> None:
        self.number = number
        self.taken = progress.position
        """Every event of the partition up to this one was taken."""
        self.handled_before = set(progress.handled)
        """Those above that were handled before this worker had it."""
        self.window: deque[int] = deque()
        """The events that were taken, from the first that is not handled on."""
        self.done: set[int] = set()
        """Those of the window that are handled."""
        self.running_count = 0
        """How many of its lanes are being worked at."""
        self.releasing = False
        """Whether it is to be given up, and nothing of it is begun any more."""

    def advance(self) -> int:
        """Let go of what is handled at the beginning of the window; returns how many events that were."""
        window, done = self.window, self.done
        count = len(window)
        while window and window[0] in done:
            done.discard(window.popleft())
        return count - len(window)

    def progress(self) -> Progress:
        """How far it has come."""
        position = self.window[0] - 1 if self.window else self.taken
        handled = sorted(self.done)
        if self.handled_before:
            self.handled_before = {event_id for event_id in self.handled_before if event_id > position}
            handled = sorted(self.handled_before.union(handled))
        return Progress(position, handled)


# What becomes of a lane next. (Plain numbers: members of an Enum take several times as long to get at.)
IDLE: Final = 0  # there is nothing to do
READY: Final = 1  # it waits for somebody who works at it
BUSY: Final = 2  # somebody works at it
WAITING: Final = 3  # it waits before it is tried again


class Lane:
    """The events of a stream that are to be handled, one after another."""

    __slots__ = ("attempts_count", "events", "key", "parked", "share", "state", "timer")

    def __init__(self, key: str, share: Share) -> None:
        self.key = key
        self.share = share
        self.events: deque[Event] = deque()
        self.state = IDLE
        self.attempts_count = 0
        """How often the first of the events was tried."""
        self.parked: Marker | None = None
        self.timer: asyncio.TimerHandle | None = None


_data_of: Callable[[Event], Any] = attrgetter("_data")


class Lanes:
    """All lanes of a worker. Closed, it gives out nothing more."""

    def __init__(
        self,
        key_of: Callable[[Event], str] | None,
        window_max: int,
        refill: Callable[[Lane], Awaitable[Sequence[Event]]],
        told: Callable[[], None],
    ) -> None:
        """``key_of``: what is kept in order; None for streams. ``refill(lane)`` reads what is parked of it.

        ``told()`` is called when there is nothing to do any more, and when a share that is to be given up has ended.
        """
        self.shares: dict[int, Share] = {}
        self.closed = False
        self.busy_count = 0
        """How many events are being handled."""
        self.queued_count = 0
        """How many were taken, and are not handled."""
        self.parked: dict[str, Lane] = {}
        """The lanes of streams that are parked."""
        self.changed_rows: dict[str, Row | None] = {}
        """What is to be kept of parked streams; None: nothing any more."""
        self._key_of = key_of
        self._window_max = window_max
        self._window_count = 0
        self._queued_max = window_max
        self._refill = refill
        self._told = told
        self._lanes: dict[str, Lane] = {}
        self._ready: deque[Lane] = deque()
        self._unread: deque[Lane] = deque()  # ready, but their events must be read first
        self._lanes_max = LANES_MAX
        self._idle: deque[asyncio.Future[None]] = deque()
        self._waking = False
        self._room: asyncio.Future[None] | None = None

    @property
    def calm(self) -> bool:
        """Whether nothing is to be done, is being done, or is to be tried again."""
        retrying = any(lane.parked is not None and lane.parked.row.retry for lane in self.parked.values())
        return self.queued_count == 0 and self.busy_count == 0 and not retrying

    # --- what comes in ---

    def gain(self, share: Share) -> None:
        """Have a partition."""
        self.shares[share.number] = share

    def drop(self, number: int) -> None:
        """Have a partition no more, of which nothing is being worked at."""
        share = self.shares.pop(number)
        self._window_count -= len(share.window)
        for key, lane in list(self._lanes.items()):
            if lane.share is share:
                self._forget(lane)
                del self._lanes[key]
                self.parked.pop(key, None)
                self.changed_rows.pop(key, None)
        self._make_room()

    def release(self, number: int, position: int) -> None:
        """Begin nothing more of a partition; ``position``: every event up to this one was taken."""
        share = self.shares[number]
        share.taken = max(share.taken, position)
        share.releasing = True
        for lanes in (self._ready, self._unread):
            others: list[Lane] = []
            for lane in lanes:
                if lane.share is share:
                    lane.state = IDLE
                else:
                    others.append(lane)
            lanes.clear()
            lanes.extend(others)

    def _forget(self, lane: Lane) -> None:
        if lane.parked is None:
            self.queued_count -= len(lane.events)
        lane.events.clear()
        if lane.timer is not None:
            lane.timer.cancel()

    def taken(self, position: int) -> None:
        """Every event up to this one was given to `take`, or does not concern the consumer."""
        for share in self.shares.values():
            if not share.releasing and share.taken < position:
                share.taken = position

    def progress(self) -> dict[int, Progress]:
        """How far each partition has come."""
        return {number: share.progress() for number, share in self.shares.items()}

    def take(self, events: Iterable[Event]) -> None:
        """Take the events that come next, in order, of all partitions; those of others, or handled before, are left."""
        lanes, key_of, ready = self._lanes, self._key_of, self._ready
        window_count = queued_count = 0
        for event in events:
            key = event.stream_id if key_of is None else key_of(event)
            lane = lanes.get(key)
            if lane is None:
                share = self.shares.get(partition_of(key))
                if share is None:
                    continue
                lane = lanes[key] = Lane(key, share)
            share = lane.share
            event_id = event.event_id
            if event_id <= share.taken or share.releasing:
                continue
            if lane.parked is not None or (share.handled_before and event_id in share.handled_before):
                if lane.parked is not None and lane.parked.seen < event_id:  # it may be read once more
                    lane.parked.seen = event_id
                if share.window:
                    share.window.append(event_id)
                    share.done.add(event_id)
                    window_count += 1
                continue
            share.window.append(event_id)
            lane.events.append(event)
            window_count += 1
            queued_count += 1
            if lane.state == IDLE:
                lane.state = READY
                ready.append(lane)
        self._window_count += window_count
        self.queued_count += queued_count
        if ready:
            self._wake()
        if len(lanes) > self._lanes_max:
            self._tidy()

    def _tidy(self) -> None:
        self._lanes = {
            key: lane for key, lane in self._lanes.items() if lane.parked or lane.events or lane.state != IDLE
        }
        self._lanes_max = max(LANES_MAX, 2 * len(self._lanes))

    def expect(self, events: Sequence[Event]) -> None:
        """The next batch will be like this one: fewer of it may wait if it is large."""
        views: Iterable[Any] = map(memoryview, map(_data_of, events))
        size = sum(map(len, views))
        self._queued_max = max(1, min(self._window_max, QUEUED_BYTES_MAX * len(events) // max(1, size)))

    async def room(self) -> None:
        """Wait until a further batch may come in."""
        while not self._has_room():
            self._room = asyncio.get_running_loop().create_future()
            try:
                await self._room
            finally:
                self._room = None

    def _has_room(self) -> bool:
        return self._window_count < self._window_max and self.queued_count < self._queued_max

    def _make_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    # --- what is worked at ---

    def begin(self) -> Lane | None:
        """A lane that has an event to handle, the caller's until `give_back`; None if there is none just now."""
        ready = self._ready
        while ready and not self.closed:
            lane = ready.popleft()
            if lane.events:
                lane.state = BUSY
                lane.share.running_count += 1
                self.busy_count += 1
                if ready and self._idle and not self._waking:
                    self._wake()
                return lane
            self._unread.append(lane)
        return None

    def go_on(self, lane: Lane, event: Event, *, stays: bool) -> Lane | None:
        """The first event of the lane is handled. The lane to go on with: if it ``stays``, the same; else see `begin`.

        It comes to `done`, `give_back` and `begin`; what is nearly always the case takes a third of the time here.
        """
        share, events = lane.share, lane.events
        window = share.window
        usual = not (share.done or share.releasing or self.closed) and self._room is None and lane.parked is None
        if not usual or window[0] != event.event_id:
            self.done(lane, event)
            if stays and events and not (share.releasing or self.closed):
                return lane
            self.give_back(lane)
            return self.begin()
        events.popleft()
        window.popleft()
        self._window_count -= 1
        self.queued_count -= 1
        lane.attempts_count = 0
        ready = self._ready
        if not events:
            lane.state = IDLE
        elif stays:
            return lane
        else:
            lane.state = READY
            ready.append(lane)
        share.running_count -= 1
        if ready and ready[0].events:
            lane = ready.popleft()
            lane.state = BUSY
            lane.share.running_count += 1
            if ready and self._idle and not self._waking:
                self._wake()
            return lane
        self.busy_count -= 1
        return self.begin()

    async def next_lane(self) -> Lane | None:
        """Wait for such a lane; None when closed."""
        while not self.closed:
            lane = self.begin()
            if lane is not None:
                return lane
            if self._unread:
                await self._read_parked(self._unread.popleft())
            else:
                await self._sleep()
        return None

    async def _read_parked(self, lane: Lane) -> None:
        """Have the next of the parked events in the lane."""
        assert lane.parked is not None
        lane.state = BUSY
        lane.share.running_count += 1
        self.busy_count += 1
        try:
            await self._work_off(lane, lane.parked)
        finally:
            self.give_back(lane)

    async def _work_off(self, lane: Lane, marker: Marker) -> None:
        """Have the next of the parked events in the lane; where there are none any more, it is parked no longer."""
        while True:
            seen = marker.seen
            events = await self._refill(lane)
            if events:
                lane.events.extend(events)
                return
            if self.closed:  # then it may be that they were not read
                return
            if marker.seen == seen:  # and in the same step nothing can come in
                lane.parked = None
                self.parked.pop(lane.key, None)
                self.changed_rows[lane.key] = None
                return

    async def _sleep(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self._idle.append(future)
        if self.queued_count == 0:
            self._told()
        try:
            await future
        except asyncio.CancelledError:
            if future in self._idle:
                self._idle.remove(future)
            elif not future.cancelled():  # it was woken for something that another must do now
                self._wake()
            raise

    def _wake(self) -> None:
        """Have one more who sleeps work, when the loop comes to it.

        Whoever begins with a lane has the next one woken for the rest; while handlers do not wait, one does nearly all.
        """
        if self._idle and not self._waking:
            self._waking = True
            asyncio.get_running_loop().call_soon(self._wake_one)

    def _wake_one(self) -> None:
        self._waking = False
        while self._idle and (self._ready or self._unread or self.closed):
            future = self._idle.popleft()
            if not future.done():
                future.set_result(None)
                if not self.closed:
                    return

    def done(self, lane: Lane, event: Event) -> None:
        """The first event of the lane is handled."""
        events = lane.events
        events.popleft()
        lane.attempts_count = 0
        share = lane.share
        if lane.parked is None:
            window = share.window
            if window[0] == event.event_id:
                window.popleft()
                self._window_count -= 1 + (share.advance() if share.done else 0)
            else:
                share.done.add(event.event_id)
            self.queued_count -= 1
            if self._room is not None and self._has_room():
                self._make_room()
        else:
            lane.parked.passed(event)
            self.changed_rows[lane.key] = lane.parked.row

    def give_back(self, lane: Lane) -> None:
        """Nobody works at the lane any more."""
        share = lane.share
        share.running_count -= 1
        self.busy_count -= 1
        if lane.state == BUSY:
            wanted = lane.events or (lane.parked is not None and lane.parked.row.retry)
            if wanted and not share.releasing:
                lane.state = READY
                self._ready.append(lane)
                self._wake()
            else:
                lane.state = IDLE
        if self.closed or (share.releasing and not share.running_count):
            self._told()

    def wait(self, lane: Lane, seconds: float) -> None:
        """Try the first event of the lane again after so long."""
        if self.closed:
            return
        if lane.parked is not None:  # many may wait at once; what comes behind it is read again
            first = lane.events[0]
            lane.events.clear()
            lane.events.append(first)
        lane.state = WAITING
        lane.timer = asyncio.get_running_loop().call_later(seconds, self._again, lane)

    def _again(self, lane: Lane) -> None:
        lane.timer = None
        lane.state = IDLE if lane.share.releasing else READY
        if lane.state == READY:
            self._ready.append(lane)
            self._wake()

    # --- what is parked ---

    def park(self, lane: Lane, row: Row) -> None:
        """Park the lane: its first event, and all behind it, those that are still to come too."""
        lane.attempts_count = 0
        if lane.parked is None:
            lane.parked = Marker(lane.key, row, lane.events[-1].event_id)
            self.parked[lane.key] = lane
            self.queued_count -= len(lane.events)
            lane.share.done.update(event.event_id for event in lane.events)
            self._window_count -= lane.share.advance()
        else:
            lane.parked.row = row
        lane.events.clear()
        self.changed_rows[lane.key] = row
        if self._has_room():
            self._make_room()

    def know_parked(self, key: str, row: Row, number: int, seen: int) -> None:
        """What is kept of a parked stream of one of the shares, and what others have asked for."""
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(key, self.shares[number])
        if lane.parked is None:
            if key in self.changed_rows:  # it was worked off, and this is not kept yet
                return
            lane.parked = Marker(key, row, seen)
            self.parked[key] = lane
        else:
            lane.parked.row.retry |= row.retry
            self._skip(lane, lane.parked.row, row.skipped)
            if key in self.changed_rows:
                self.changed_rows[key] = lane.parked.row
        if lane.parked.row.retry and lane.state == IDLE and not lane.share.releasing:
            lane.state = READY
            self._ready.append(lane)
            self._wake()

    def _skip(self, lane: Lane, row: Row, skipped: Iterable[int]) -> None:
        """Pass over what somebody asked for, also of what was read; but not what is in hand."""
        row.skipped = sorted({*row.skipped, *skipped})
        in_hand = lane.events[0] if lane.events and lane.state == BUSY else None
        left = [event for event in lane.events if event is in_hand or event.event_id not in row.skipped]
        if left[:1] != list(lane.events)[:1]:
            lane.attempts_count = 0
        lane.events.clear()
        lane.events.extend(left)

    def close(self) -> None:
        """Give out nothing more; what is being worked at may be brought to its end."""
        self.closed = True
        for lane in self._lanes.values():
            if lane.timer is not None:
                lane.timer.cancel()
        self._wake_one()
        self._make_room()
