"""Subscriptions: every matching event once, in order, from history into what is live."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Self

from anyio.abc import AsyncResource

from aiostore.checkpoint import Checkpoint
from aiostore.engine import PAGE_EVENTS, Engine, Selection
from aiostore.errors import EngineUnavailable, EventStoreError, SlowSubscriber, StoreClosed
from aiostore.events import END, Event, Position, Types, attach_types, copies, copy_event
from aiostore.fanout import Fanout
from aiostore.inbox import Inbox, OnSlow
from aiostore.reader import Batches, Decoded
from aiostore.turns import TURN_EVENTS

RING_STEP_EVENTS = 1000
"""So many events of the ring are looked at in one go."""

RETRY_S = 0.2
"""So long after a server was unavailable, history is asked for again."""

IDLE_S = 1.0
"""So long nothing comes, and what was handled is recorded before ``checkpoint_every`` events are."""

UNMATCHED_MAX = 10_000
"""After so many events that do not match, the checkpoint is moved on while nothing else is to do."""

_NEVER = sys.maxsize

logger = logging.getLogger("aiostore")

OnLive = Callable[["Subscription"], Awaitable[None] | None]


@dataclass(frozen=True, slots=True)
class SubscriptionStatistics:
    """How a subscription is doing: event_ids, counts of events, bytes."""

    position: int
    """Every matching event up to this event_id was handed out."""
    lag: int
    """How many events of the store, matching or not, lie between the position and the head."""
    is_live: bool
    """Whether it gets events as they are published, not from the log."""
    delivered_count: int
    """How many events were handed out."""
    queued_count: int
    """How many events wait in its queue."""
    queued_bytes: int
    """Roughly what these take; what was read from the log is not counted."""
    fell_behind_count: int
    """How often its full queue was dropped."""
    checkpoint: int | None = None
    """What it has recorded of its position; None without a name, or before its start."""


@dataclass(slots=True, eq=False)
class _Body:
    """Stands for one turn of the body of a loop over a ``wait`` subscription, maybe inside that of another."""

    outer: _Body | None
    active: bool = True


_body: contextvars.ContextVar[_Body | None] = contextvars.ContextVar("aiostore_wait_body", default=None)


def in_wait_body() -> bool:
    """Whether the current task runs in the body of a loop over a ``wait`` subscription, or was started there."""
    return _active_body() is not None


def _active_body() -> _Body | None:
    """The innermost body that the current task runs in, or was started in."""
    body = _body.get()
    while body is not None and not body.active:
        body = body.outer
    return body


class Subscription(AsyncResource, AsyncIterator[Event]):
    """Every matching event after its start, once, in order: first from history, then as it is published.

    Use it with ``async with`` (required for ``on_slow="wait"``) and ``async for``, or `batches`; one reader at a time.
    With ``on_slow="wait"``, step it in the task that appends in the loop's body: another's steps do not let those pass.
    It does not end by itself. A cancelled step loses nothing: the next one goes on where it was. When the store closes,
    it raises `StoreClosed`; after its own `aclose`, it just ends. Where damage lies in its way, all before it comes,
    and then `StoreCorrupt`.
    """

    def __init__(
        self,
        engine: Engine,
        fanout: Fanout,
        inbox: Inbox,
        after: int | Position,
        on_live: OnLive | None,
        check: Callable[[], None],
        types: Types | None = None,
        checkpoint: Checkpoint | None = None,
        checkpoint_every: int | None = None,
    ) -> None:
        self._types = types
        self._engine = engine
        self._fanout = fanout
        self._inbox = inbox
        self._from_end = after is END
        if isinstance(after, int):
            inbox.held = inbox.handed = after
        self._on_live = on_live
        self._check = check
        self._entered = False
        self._closed = False
        self._reading = False
        self._body: _Body | None = None
        self._delivered_count = 0
        self._checkpoint = checkpoint
        self._checkpoint_every = checkpoint_every
        self._checkpoint_due = _NEVER if checkpoint is None or checkpoint_every is None else checkpoint_every
        """A checkpoint is due when so many events were delivered, and the last of them handled."""
        self._in_hand = 0
        """The first event_id of what was handed out last and may not be handled yet; 0 for none."""
        # The head as of going live: `on_live` is due when all up to it was handed out.
        self._live_due: int | None = None

    async def __aenter__(self) -> Self:
        self._check()
        self._entered = True
        await self._find_start()
        return self

    async def aclose(self) -> None:
        """End the subscription: its reader just stops, and nothing of it is left. From any task; again is nothing.

        With ``checkpoint_every``, what was handled is recorded: all but what was handed out last.
        """
        first, self._closed = not self._closed, True
        self._end_body()
        handled = self._handled
        self._fanout.leave(self._inbox)
        checkpoint = self._checkpoint
        if first and checkpoint is not None and checkpoint.claimed and self._checkpoint_every is not None:
            try:
                await checkpoint.move(handled)
            except EventStoreError as error:  # what was not recorded comes again
                logger.warning("subscription %r ends without a checkpoint at %d: %s", checkpoint.name, handled, error)

    async def checkpoint(self) -> None:
        """Record that all that was handed out is handled: call it behind the handling of the event, or batch, in hand.

        The next subscription of this name goes on behind it. Durable when it returns; cancelled, it may or may not be
        recorded. RuntimeError where the subscription has no name, `Fenced` where another has taken the name over, and
        what `Engine.save_states` raises.
        """
        if self._checkpoint is None:
            raise RuntimeError("only a subscription with a name has checkpoints: subscribe(name=…)")
        self._check()
        if not self._checkpoint.claimed:
            raise RuntimeError("nothing was handed out yet")
        self._in_hand = 0
        await self._record()

    async def _record(self) -> None:
        assert self._checkpoint is not None
        await self._checkpoint.move(self._handled)
        if self._checkpoint_every is not None:
            self._checkpoint_due = self._delivered_count + self._checkpoint_every

    @property
    def _handled(self) -> int:
        return self._in_hand - 1 if self._in_hand else self.position

    @property
    def position(self) -> int:
        """Every matching event up to this event_id was handed out. Live and with an empty queue, it is the head."""
        inbox = self._inbox
        if self._from_end or (inbox.live and not inbox.events):
            return max(inbox.held, self._fanout.head)
        return inbox.handed

    @property
    def lag(self) -> int:
        """How many events of the store, matching or not, lie between the position and the head."""
        return max(0, self._fanout.head - self.position)

    @property
    def is_live(self) -> bool:
        """Whether it gets events as they are published, not from the log."""
        return self._inbox.live

    def statistics(self) -> SubscriptionStatistics:
        """How it is doing, as of now."""
        inbox, checkpoint = self._inbox, self._checkpoint
        return SubscriptionStatistics(
            position=self.position,
            lag=self.lag,
            is_live=inbox.live,
            delivered_count=self._delivered_count,
            queued_count=len(inbox.events),
            queued_bytes=inbox.bytes,
            fell_behind_count=inbox.fell_behind_count,
            checkpoint=checkpoint.position if checkpoint is not None and checkpoint.claimed else None,
        )

    def __repr__(self) -> str:
        state = "closed" if self._closed else "live" if self.is_live else "catching up"
        return f"<Subscription {state} position={self.position} lag={self.lag} queued={len(self._inbox.events)}>"

    def batches(self, max_events: int = PAGE_EVENTS) -> AsyncIterator[list[Event]]:
        """The same events as lists of 1 to ``max_events``: whatever is there, without waiting for more."""
        return Batches(self._take, max_events)

    def decoded(self) -> AsyncIterator[tuple[Event, Any]]:
        """The same events as pairs of an event and its object (`Event.decode`); see `Reader.decoded`."""
        return Decoded(self)

    async def __anext__(self) -> Event:
        self._in_hand = 0
        if (
            not self._inbox.events
            or self._reading
            or self._live_due is not None
            or self._fanout.closed
            or self._delivered_count >= self._checkpoint_due
        ):
            await self._fill()
            if self._closed:
                raise StopAsyncIteration
        self._end_body()
        event = self._hand_out()
        if self._inbox.on_slow is OnSlow.WAIT:
            self._begin_body()
        return event

    async def _take(self, max_events: int) -> list[Event]:
        self._in_hand = 0
        await self._fill()
        shared = self._inbox.shared
        events = self._inbox.take_some(max_events)
        self._delivered_count += len(events)
        if events:
            self._in_hand = events[0].event_id
        if shared:
            events = copies(events)
        if events and self._inbox.on_slow is OnSlow.WAIT:
            self._begin_body()
        return events

    def _hand_out(self) -> Event:
        shared = self._inbox.shared
        event = self._inbox.take()
        self._delivered_count += 1
        self._in_hand = event.event_id
        return copy_event(event) if shared else event

    def _begin_body(self) -> None:
        self._body = _Body(_active_body())
        _body.set(self._body)

    def _end_body(self) -> None:
        if self._body is not None:
            self._body.active = False
            self._body = None

    async def _find_start(self) -> None:
        checkpoint, inbox = self._checkpoint, self._inbox
        if checkpoint is not None and not checkpoint.claimed:
            head = self._fanout.head
            position = await checkpoint.claim(head if self._from_end else inbox.held, head)
            if not checkpoint.claimed or self._closed:
                return
            self._from_end = False
            inbox.held = inbox.handed = position
        elif self._from_end:
            self._from_end = False
            inbox.held = inbox.handed = self._fanout.head

    async def _fill(self) -> None:
        """Wait until the queue has an event, or the subscription is closed. Cancelled, it has lost nothing."""
        if self._reading:
            raise RuntimeError("another task is reading this subscription; subscribe once for each reader")
        if self._inbox.on_slow is OnSlow.WAIT and not self._entered:
            raise RuntimeError('a subscription with on_slow="wait" holds appends back: use it with "async with"')
        self._end_body()
        inbox = self._inbox
        self._reading = True
        try:
            await self._find_start()
            while not self._closed:
                self._check()
                if inbox.overflowed:
                    raise SlowSubscriber(inbox.handed, inbox.queue_size)
                if self._delivered_count >= self._checkpoint_due:
                    await self._record()
                    continue
                if self._is_live_due():
                    await self._tell_live()
                elif inbox.events:
                    return
                elif inbox.live:
                    self._fanout.check()
                    await self._idle()
                else:
                    await self._read_history()
        finally:
            self._reading = False

    async def _idle(self) -> None:
        """Wait for what comes; what was handled before is recorded when nothing has come for a moment."""
        checkpoint = self._checkpoint
        if self._checkpoint_every is None or checkpoint is None or not self._is_behind(checkpoint):
            await self._wait()
            return
        try:
            async with asyncio.timeout(IDLE_S):
                await self._wait()
        except TimeoutError:
            await self._record()

    def _is_behind(self, checkpoint: Checkpoint) -> bool:
        """Whether the checkpoint lacks an event that was handled, or many of other readers."""
        every = self._checkpoint_every or 0
        unrecorded = self._delivered_count > self._checkpoint_due - every
        return unrecorded or self.position - checkpoint.position > UNMATCHED_MAX

    async def _wait(self) -> None:
        inbox, waiting = self._inbox, self._fanout.waiting
        inbox.waiter = asyncio.get_running_loop().create_future()
        waiting[inbox] = None
        try:
            await inbox.waiter
        finally:
            inbox.waiter = None
            waiting.pop(inbox, None)

    async def _read_history(self) -> None:
        inbox = self._inbox
        turns = self._fanout.turns
        if turns.busy:
            turns.enter(inbox)
            try:
                await self._wait()
            finally:
                turns.leave(inbox)
        else:
            await asyncio.sleep(0)  # history that is in memory must not keep the loop to itself
        if self._closed or self._fanout.closed:
            return
        if self._fanout.ring.after <= inbox.held:
            self._read_ring()
            return
        selection = Selection(
            up_to=self._fanout.head,
            after=inbox.held,
            stream_id=inbox.interest.stream_id,
            query=inbox.interest.query,
        )
        try:
            page = await self._engine.read(selection, None, TURN_EVENTS if turns.busy else PAGE_EVENTS)
        except StoreClosed:
            if self._closed:  # before the store was: that ends it quietly
                return
            raise
        except EngineUnavailable as error:
            if not self._engine.followed:
                raise
            # A live one outlives the outage of a server, too.
            logger.warning("a subscription at event %d cannot read on now, it is tried again: %s", inbox.held, error)
            await asyncio.sleep(RETRY_S)
            return
        if not (self._closed or self._fanout.closed):
            if self._types is not None:
                attach_types(page.events, self._types)
            inbox.fill(page.events, selection.up_to if page.cursor is None else page.cursor, shared=False)

    def _read_ring(self) -> None:
        """Queue what the ring holds above the position; if that is all of it, go live in the same step."""
        inbox, ring = self._inbox, self._fanout.ring
        wanted: list[Event] = []
        for examined, event in enumerate(ring.since(inbox.held)):
            if len(wanted) == inbox.queue_size or examined == RING_STEP_EVENTS:
                inbox.fill(wanted, event.event_id - 1, shared=True)
                return
            if inbox.interest.matches(event):
                wanted.append(event)
        self._fanout.go_live(inbox, wanted)
        self._live_due = self._fanout.head

    def _is_live_due(self) -> bool:
        """Whether all that there was on going live is handed out, and nobody was told."""
        events, due = self._inbox.events, self._live_due
        return due is not None and self._inbox.live and not (events and events[0].event_id <= due)

    async def _tell_live(self) -> None:
        due, self._live_due = self._live_due, None
        if self._on_live is not None:
            if self._inbox.on_slow is OnSlow.WAIT:  # what it appends must pass, as in the body of the loop
                self._begin_body()
            try:
                told = self._on_live(self)
                if inspect.isawaitable(told):
                    await told
            except asyncio.CancelledError:
                self._live_due = due
                raise
            finally:
                self._end_body()
