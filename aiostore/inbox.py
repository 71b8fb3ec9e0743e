"""A subscription's place in the fan-out: what it wants, and the bounded queue of what it has not had yet."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any
from weakref import WeakMethod

from aiostore.events import Event
from aiostore.query import Query

STALLED_S = 30.0
"""After so many seconds without a step of a full ``wait`` subscription, it no longer holds appends."""

logger = logging.getLogger("aiostore")


@dataclass(frozen=True, slots=True)
class Interest:
    """Which events a subscription wants: those of the stream, if one is named, AND of the query, if there is one."""

    stream_id: str | None = None
    query: Query | None = None

    @property
    def everything(self) -> bool:
        """Whether every event is wanted."""
        return self.stream_id is None and not (self.query and self.query.items)

    def matches(self, event: Event) -> bool:
        """Whether the event is wanted."""
        if self.stream_id is not None and event.stream_id != self.stream_id:
            return False
        return self.query is None or self.query.matches(event)


class OnSlow(Enum):
    """What happens when a queue is full."""

    CATCH_UP = "catch_up"
    WAIT = "wait"
    FAIL = "fail"


class Inbox:
    """The queue of one subscription. Live, the fan-out puts events in; otherwise the subscription does, from history.

    A commit enters any queue that is not yet full, so that it holds at most one commit more than its bounds; a ``wait``
    queue at most one group, since what is in a group can be held back no more.
    ``changed(inbox)`` is called when it is live no more, and when it starts or stops to hold appends back.
    """

    __slots__ = (
        "__weakref__",
        "_bytes_max",
        "_changed",
        "_filled_by",
        "_lumps",
        "_stalled",
        "bytes",
        "events",
        "fell_behind_count",
        "handed",
        "held",
        "holds",
        "interest",
        "live",
        "on_slow",
        "overflowed",
        "queue_size",
        "shared",
        "waiter",
    )

    def __init__(
        self,
        interest: Interest,
        queue_size: int,
        bytes_max: int,
        on_slow: OnSlow,
        changed: Callable[[Inbox], Any],
    ) -> None:
        self.interest = interest
        self.queue_size = queue_size
        self.on_slow = on_slow
        self.events: deque[Event] = deque()
        self.shared = False
        """Whether the events queued are the store's own, of which a receiver must get copies."""
        self.live = False
        self.held = 0
        """Every wanted event up to this one was queued; live, the fan-out moves it on."""
        self.handed = 0
        """Every wanted event up to this one was handed out."""
        self.holds = False
        """Whether it holds back the forming of groups."""
        self.overflowed = False
        """Whether a ``fail`` subscription was too slow."""
        self.fell_behind_count = 0
        self.bytes = 0
        self.waiter: asyncio.Future[None] | None = None
        self._bytes_max = bytes_max
        self._changed = changed
        self._filled_by = 0  # the group with which it became full
        self._lumps: deque[tuple[int, int]] = deque()  # (the last event_id of what came in at once, its bytes)
        self._stalled: asyncio.TimerHandle | None = None

    @property
    def full(self) -> bool:
        """Whether no further commit goes in."""
        return len(self.events) >= self.queue_size or self.bytes >= self._bytes_max

    def has_room_for(self, count: int, size: int) -> bool:
        """Whether so many events, of so many bytes, go in without passing a bound."""
        return len(self.events) + count <= self.queue_size and self.bytes + size <= self._bytes_max

    def fill(self, events: Iterable[Event], held: int, *, shared: bool) -> None:
        """Queue events from history: all that are wanted above the last ones, up to ``held``."""
        self.events.extend(events)
        self.held = held
        self.shared = shared
        if not self.events:
            self.handed = held

    def go_live(self, events: Iterable[Event], head: int) -> None:
        """Queue the last events before the head; from the next commit on the fan-out puts in what comes."""
        self.fill(events, max(head, self.held), shared=True)
        self.live = True
        if self.on_slow is OnSlow.WAIT and self.full:
            self._hold()

    def put(self, events: Sequence[Event], size: int, group: int) -> None:
        """Queue wanted events of one commit of a group, ``size`` bytes, just published; called only while live."""
        last = events[-1].event_id
        if last <= self.held:
            return
        if self.full and not (self.on_slow is OnSlow.WAIT and self._filled_by == group):
            self.fall_behind()
            return
        if events[0].event_id <= self.held:
            events = [event for event in events if event.event_id > self.held]
        if not self.events:
            self.handed = events[0].event_id - 1
        self.events.extend(events)
        self.held = last
        self.bytes += size
        self._lumps.append((last, size))
        if self.on_slow is OnSlow.WAIT and self.full:
            self._filled_by = group
            self._hold()
        self.wake()

    def fall_behind(self) -> None:
        """Drop the queue; what it held is read from the log again, or not at all where the subscription fails."""
        self.fell_behind_count += 1
        self.overflowed = self.on_slow is OnSlow.FAIL
        self.held = self.handed
        self.close()

    def take(self) -> Event:
        """The next event, which is now handed out; the queue must not be empty."""
        event = self.events.popleft()
        self._hand_out_up_to(event.event_id)
        return event

    def take_some(self, count_max: int) -> list[Event]:
        """The next events, which are now handed out; none if the queue is empty."""
        events = self.events
        if not events:
            return []
        if len(events) <= count_max:
            taken = list(events)
            events.clear()
        else:
            taken = [events.popleft() for _ in range(count_max)]
        self._hand_out_up_to(taken[-1].event_id)
        return taken

    def _hand_out_up_to(self, event_id: int) -> None:
        self.handed = event_id
        lumps = self._lumps
        while lumps and lumps[0][0] <= event_id:
            self.bytes -= lumps.popleft()[1]
        if not self.events and not self.live:
            self.handed = self.held
        if self.holds:
            if self.full:
                self._restart_watch()
            else:
                self._let_go()

    def wake(self) -> None:
        """Let the reader that waits look again."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def close(self) -> None:
        """Drop the queue, be live no more and hold nothing back."""
        self.live = False
        self.events.clear()
        self._lumps.clear()
        self.bytes = 0
        self._let_go()
        self._changed(self)
        self.wake()

    def _hold(self) -> None:
        if not self.holds:
            self.holds = True
            self._changed(self)
            self._restart_watch()

    def _let_go(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        if self.holds:
            self.holds = False
            self._changed(self)

    def _restart_watch(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
        stall = WeakMethod(self._stall)

        def stalled() -> None:
            method = stall()
            if method is not None:
                method()

        self._stalled = asyncio.get_running_loop().call_later(STALLED_S, stalled)

    def _stall(self) -> None:
        logger.warning(
            "a subscription with on_slow='wait' made no step for %g s with a full queue after event %d; "
            "it no longer holds appends back and catches up from the log",
            STALLED_S,
            self.handed,
        )
        self.on_slow = OnSlow.CATCH_UP
        self.fall_behind()
