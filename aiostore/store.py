"""The store: what an application holds. It checks, and hands on to the committer, the readers and the fan-out."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import Any, Literal, NamedTuple, Self, overload
from weakref import WeakSet

import msgspec
from anyio.abc import AsyncResource

from aiostore.batch import Batch
from aiostore.checkpoint import Checkpoint
from aiostore.commit import Clock, Committer, utc_now
from aiostore.context import following
from aiostore.drafts import (
    NOTHING_ADDED,
    Additions,
    StreamDrafts,
    check_expected_version,
    check_stream_id,
    draft_event,
    make_append,
)
from aiostore.engine import Engine, Question, Selection
from aiostore.engines.connect import connect
from aiostore.errors import EngineUnsupported, InvalidEvent, StoreClosed, WrongLoop
from aiostore.events import (
    END,
    Event,
    EventLike,
    EventObject,
    Position,
    StreamAppend,
    StreamState,
    Types,
    attach_types,
    copies,
)
from aiostore.fanout import Fanout
from aiostore.inbox import Inbox, Interest, OnSlow
from aiostore.limits import Limits, check_bound, check_number
from aiostore.listeners import Handler, Listener
from aiostore.query import AppendCondition, Query
from aiostore.reader import Reader, check_query
from aiostore.states import states_of
from aiostore.subscription import OnLive, Subscription, in_wait_body
from aiostore.timestamps import check_moment
from aiostore.tracing import UNTRACED, Sending, Tracing
from aiostore.worker import Worker

Location = str | os.PathLike[str] | Engine | None


class _State(Enum):
    NEW = "not open yet"
    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"
    FORKED = "open in another process"


@functools.cache
def _open_stores() -> WeakSet[EventStore]:
    """The stores of this process that are open, so that a forked child lets go of its copies of them."""
    stores: WeakSet[EventStore] = WeakSet()

    def abandon() -> None:
        for store in tuple(stores):
            store._abandon()
        stores.clear()

    os.register_at_fork(after_in_child=abandon)
    return stores


class EventStore(AsyncResource):
    """An event store that lives in the event loop: durable appends, and subscribers that read with ``async for``.

    ``EventStore()`` keeps events in memory; ``EventStore("orders/")`` in a directory, the embedded log. Use it with
    ``async with``, or `open` and `aclose`. It belongs to the loop that opened it (`WrongLoop`).

    ``types``: an `EventTypes`, so that objects can be appended and `Event.decode` gives them; None: only dicts.
    ``tracing``: what is told of appends and handlers, such as an `otel.OpenTelemetry`; None: nothing is.
    ``limits``: bounds, see `Limits`. ``clock``: gives the time of new events, aware; for tests. Options of the embedded
    log: ``durability="fsync"`` (an append returns when its events survive a power loss) or ``"os"`` (when they survive
    the process), ``mode="rw"`` or ``"r"`` (takes no lock and no appends; reads and follows what another process
    appends, as soon as it is durable), ``segment_bytes`` (16 MiB).
    """

    def __init__(
        self,
        location: Location = None,
        *,
        types: Types | None = None,
        tracing: Tracing | None = None,
        limits: Limits | None = None,
        clock: Clock = utc_now,
        **options: Any,
    ) -> None:
        self._limits = limits or Limits()
        self._types = types
        self._tracing = UNTRACED if tracing is None else tracing
        self._engine = connect(location, options)
        self._committer = Committer(self._engine, self._limits, clock)
        self._fanout: Fanout
        self._state = _State.NEW
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening: asyncio.Future[None] | None = None
        self._closing: asyncio.Future[None] | None = None
        self._closer = Worker("aiostore closing", self._close, self._closed)

    @classmethod
    async def open(
        cls,
        location: Location = None,
        *,
        types: Types | None = None,
        tracing: Tracing | None = None,
        limits: Limits | None = None,
        clock: Clock = utc_now,
        **options: Any,
    ) -> Self:
        """A store that is open; the parameters are those of the class. Close it with `aclose` or ``async with``.

        Raises `StoreLocked`, `StoreCorrupt`, `EngineUnsupported`, `EngineUnavailable`; ValueError or TypeError where
        the ``types`` are not whole.
        """
        return await cls(location, types=types, tracing=tracing, limits=limits, clock=clock, **options).__aenter__()

    async def __aenter__(self) -> Self:
        if self._state is _State.OPEN:  # as `async with await EventStore.open(…)` finds it
            self._check_loop()
            return self
        if self._state is not _State.NEW:
            raise StoreClosed(f"this store is {self._state.value}; a store object is opened once, make another")
        if self._types is not None:
            self._types.check()
        self._state = _State.OPENING
        self._loop = asyncio.get_running_loop()
        self._opening = self._loop.create_future()
        try:
            head = await self._engine.open()
            if self._state is not _State.OPENING:
                await self._engine.aclose()
                raise StoreClosed("the store was closed while it opened")
            self._fanout = Fanout(head.event_id, self._limits, self._committer.look_again, self._defer, self._types)
            self._committer.start(self._fanout, head.timestamp)
            self._state = _State.OPEN
        except BaseException:
            self._state = _State.CLOSED
            raise
        finally:
            self._opening.set_result(None)
        _open_stores().add(self)
        return self

    async def aclose(self) -> None:
        """Close the store: the write in hand finishes and is delivered, all other appends get `StoreClosed`.

        Subscriptions and reads get `StoreClosed` too. From any task of the store's loop, any number of times; each call
        returns when the store is closed, and cancelling a call does not stop the closing. Raises RuntimeError inside a
        handler (which it would wait for).
        """
        if self._state in (_State.NEW, _State.FORKED):
            self._state = _State.CLOSED
        if self._state is _State.CLOSED:
            if self._closing is not None:
                self._closing.result()
            return
        self._check_loop()
        if self._opening is not None and not self._opening.done():
            self._state = _State.CLOSING
            await asyncio.shield(self._opening)
            return
        if self._fanout.listeners.calls_this_context():
            raise RuntimeError("aclose() inside a handler would wait for that handler; call it from a task of its own")
        if self._closing is None:
            self._state = _State.CLOSING
            self._closing = asyncio.get_running_loop().create_future()
            self._closer.start()
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self._fanout.close()
        for step in (self._committer.aclose, self._fanout.listeners.aclose, self._engine.aclose):
            await _finish(step)

    def _closed(self, task: asyncio.Task[None]) -> None:
        assert self._closing is not None
        if task.cancelled():  # before its first step
            self._closer.start()
            return
        self._state = _State.CLOSED
        _open_stores().discard(self)
        error = task.exception()
        if error is None:
            self._closing.set_result(None)
        else:
            self._closing.set_exception(error)

    def _defer(self, function: Callable[[], None]) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function)

    def _abandon(self) -> None:
        self._state = _State.FORKED
        self._opening = self._closing = None
        self._engine.abandon()

    def _check_loop(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise WrongLoop from None
        if loop is not self._loop:
            raise WrongLoop

    def _check(self) -> None:
        """Raise unless the store is open and called from its loop."""
        if self._state is not _State.OPEN:
            if self._state is _State.FORKED:
                raise StoreClosed("the store is open in the process that forked this one; open a store of your own")
            raise StoreClosed(f"the store is {self._state.value}")
        self._check_loop()

    def _check_append(self) -> None:
        self._check()
        if self._engine.read_only:
            raise EngineUnsupported(f"{self._engine.location} was opened with mode='r': it takes no appends")

    def _parts(self) -> tuple[Engine, Fanout]:
        """What the layer above builds on, checked as every call is."""
        self._check()
        return self._engine, self._fanout

    @overload
    async def append(
        self,
        stream_id: str,
        event_type: str,
        data: Any,
        *,
        metadata: Any = None,
        tags: Iterable[str] = (),
        expected_version: int | StreamState | None = None,
        condition: AppendCondition | None = None,
        idempotency_key: str | None = None,
    ) -> Event: ...

    @overload
    async def append(
        self,
        stream_id: str,
        event_type: EventObject,
        *,
        metadata: Any = None,
        tags: Iterable[str] = (),
        expected_version: int | StreamState | None = None,
        condition: AppendCondition | None = None,
        idempotency_key: str | None = None,
    ) -> Event: ...

    async def append(
        self,
        stream_id: str,
        event_type: str | EventObject,
        data: Any = msgspec.UNSET,
        *,
        metadata: Any = None,
        tags: Iterable[str] = (),
        expected_version: int | StreamState | None = None,
        condition: AppendCondition | None = None,
        idempotency_key: str | None = None,
    ) -> Event:
        """Store one event; returns it when it is durable and the listeners have had it.

        ``stream_id``: 1 to 1,024 bytes of UTF-8 without control characters. ``event_type``, each of at most 64 ``tags``
        and ``idempotency_key``: 1 to 256. ``data`` and ``metadata``: JSON objects, as dicts (or dataclasses or msgspec
        Structs that become them), 16 MiB in all. ``expected_version``: the number of events that the stream must have
        (`NO_STREAM` is 0), `STREAM_EXISTS`, or None for any. ``condition``: see `AppendCondition`.
        ``idempotency_key``: an append whose key the stream already has returns the events stored then and stores
        nothing, for ever.

        Where the store has ``types``, an object of a class that they know may stand in place of ``event_type`` and
        ``data``; data given under a name that they know must fit it. What `correlate` and handlers say is put into the
        metadata; of ``correlation_id`` and ``causation_id`` a repeat with the same key may have others.

        Raises `InvalidEvent`, `ConcurrencyConflict`, `AppendConditionFailed`, `IdempotencyConflict` (the key, with
        other events), `StoreFull`, `StoreClosed`, `WrongLoop`, `EngineUnsupported` (opened for reading): nothing is
        stored. After `StoreFailed`, or cancelled or timed out, it may or may not be stored: retry with a key.
        """
        self._check_append()
        with self._tracing.send(stream_id, batch=False) as sending:
            draft = draft_event(event_type, data, metadata, tags, self._limits, self._additions(sending))
            part = StreamDrafts(check_stream_id(stream_id), (draft,), check_expected_version(expected_version))
            return self._own(await self._append((part,), condition, idempotency_key), sending)[0]

    async def append_batch(
        self,
        stream_id: str,
        events: Iterable[EventLike],
        *,
        expected_version: int | StreamState | None = None,
        condition: AppendCondition | None = None,
        idempotency_key: str | None = None,
    ) -> list[Event]:
        """Store several events in one stream, all or none; returns them in order. See `append`.

        ``events``: ``(event_type, data)``, ``(event_type, data, metadata)``, `NewEvent`, or an object of a class that
        the store's ``types`` know, 64 MiB in all. Where it is empty, the checks are made all the same and ``[]``
        returns. All events are taken as they are now, in one step (of 100,000 small ones, some 20 ms), and checked bit
        by bit, so that other tasks run meanwhile; those that have values beyond plain JSON, such as datetimes, and
        objects are checked in that step (10 to 20 times as long).
        """
        self._check_append()
        with self._tracing.send(stream_id, batch=True) as sending:
            part = self._take(StreamAppend(stream_id, events, expected_version), "", self._additions(sending))
            return self._own(await self._append([await part.drafted()], condition, idempotency_key), sending)

    async def append_streams(
        self,
        appends: Sequence[StreamAppend],
        *,
        condition: AppendCondition | None = None,
        idempotency_key: str | None = None,
    ) -> list[Event]:
        """Store events in several streams, all or none; returns them in order. See `append_batch`.

        A stream named twice is `InvalidEvent`. The ``idempotency_key`` stands in the first stream that gets events.
        """
        self._check_append()
        with self._tracing.send("streams", batch=True) as sending:
            additions = self._additions(sending)
            parts = []
            for index, part in enumerate(appends):
                if not isinstance(part, StreamAppend):
                    raise InvalidEvent(f"appends[{index}]", f"must be a StreamAppend, not {part!r:.80}")
                parts.append(self._take(part, f"appends[{index}].", additions))
            drafted = [await part.drafted() for part in parts]
            return self._own(await self._append(drafted, condition, idempotency_key), sending)

    def _additions(self, sending: Sending) -> Additions:
        """What the store adds to what is appended now."""
        metadata: Mapping[str, Any] | None = following()
        if sending.metadata:
            metadata = {**(metadata or {}), **sending.metadata}
        if metadata is None:
            return NOTHING_ADDED if self._types is None else Additions(self._types)
        return Additions(self._types, metadata)

    def _own(self, events: Sequence[Event], sending: Sending) -> list[Event]:
        """The stored events as the caller's own."""
        sending.sent(events)
        own = copies(events)
        if self._types is not None:
            attach_types(own, self._types)
        return own

    def _take(self, part: StreamAppend, where: str, additions: Additions) -> _Part:
        stream_id = check_stream_id(part.stream_id, f"{where}stream_id")
        expected_version = check_expected_version(part.expected_version)
        return _Part(stream_id, Batch(part.events, self._limits, f"{where}events", additions), expected_version)

    def _append(
        self, parts: Sequence[StreamDrafts], condition: AppendCondition | None, idempotency_key: str | None
    ) -> Awaitable[Sequence[Event]]:
        """The stored events, which are the store's own."""
        append = make_append(parts, condition, idempotency_key, self._limits)
        return self._committer.submit(append, from_wait_body=in_wait_body())

    def read_stream(
        self,
        stream_id: str,
        *,
        from_version: int = 1,
        to_version: int | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        backwards: bool = False,
        limit: int | None = None,
    ) -> Reader:
        """Read a stream from ``from_version`` to ``to_version``, both included, at most ``limit`` events.

        ``since`` and ``until``: aware datetimes, as in `read_all`. All bounds hold at once. ``backwards`` only reverses
        the order: with a limit, the last events of the range come. No stream, no events.
        """
        self._check()
        selection = Selection(
            up_to=_NO_BOUND,
            stream_id=check_stream_id(stream_id),
            from_version=check_number("from_version", from_version, 1),
            to_version=check_bound("to_version", to_version),
            backwards=backwards,
        )
        return Reader(
            self._engine, selection, check_bound("limit", limit), self._check, *_window(since, until), self._types
        )

    def read_all(
        self,
        *,
        after: int = 0,
        up_to: int | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        query: Query | None = None,
        backwards: bool = False,
        limit: int | None = None,
    ) -> Reader:
        """Read all streams in the order of event_id: after < event_id <= up_to, at most ``limit`` events.

        ``since`` and ``until``: aware datetimes of any zone, since <= timestamp < until, so that windows side by side
        have each event once. They are found by search, not by reading what is before them. ``query``: only what it
        matches. All bounds hold at once; ``backwards`` only reverses the order.

        Raises ValueError for a naive datetime.
        """
        self._check()
        bound = check_bound("up_to", up_to)
        selection = Selection(
            up_to=_NO_BOUND if bound is None else bound,
            after=check_number("after", after, 0),
            query=check_query(query),
            backwards=backwards,
        )
        return Reader(
            self._engine, selection, check_bound("limit", limit), self._check, *_window(since, until), self._types
        )

    async def stream_version(self, stream_id: str) -> int:
        """The version of the stream's last event, which is the number of its events; 0 when it has none."""
        self._check()
        stream_id = check_stream_id(stream_id)
        return (await self._engine.facts(Question([stream_id]))).versions[stream_id]

    async def head(self) -> int:
        """The last event_id, 0 when the store is empty; also of what other processes appended."""
        self._check()
        if self._engine.followed:  # others append too, and what they did is seen a moment later
            return (await self._engine.facts(Question())).head
        return self._fanout.head

    def subscribe(
        self,
        *,
        stream_id: str | None = None,
        query: Query | None = None,
        after: int | Position = 0,
        queue_size: int = 1024,
        on_slow: Literal["catch_up", "wait", "fail"] = "catch_up",
        on_live: OnLive | None = None,
        name: str | None = None,
        checkpoint_every: int | None = None,
        state: str | os.PathLike[str] | None = None,
    ) -> Subscription:
        """Every matching event after the event_id ``after`` (`END`: after the head as of the start), once, in order.

        ``stream_id`` AND ``query`` choose the events; without either, all. ``queue_size``: so many events (and 16 MiB)
        are held for a reader that is live but slow. Then, ``on_slow``: ``"catch_up"`` drops the queue and reads on from
        the log; ``"wait"`` holds appends back until there is room (those made in the loop's own body pass; after 30 s
        without a step it becomes ``"catch_up"``); ``"fail"`` raises `SlowSubscriber`. ``on_live(subscription)``, plain
        or async, is called each time it has come from history to live and handed out all there was.

        With a ``name`` (1 to 200 bytes) it starts where the last one of that name left off; ``after`` counts for the
        first, and is not beyond the head then. `Subscription.checkpoint` records how far it has come, or
        ``checkpoint_every`` so many events (and when nothing has come for a second, and at its end), each when the next
        is asked for: at least once, never ahead of the work. Entered, or at its first step, it takes the name over: an
        earlier one that records anything gets `Fenced`. ``state``: a file of its own for checkpoints, where the store
        is opened with ``mode="r"``.
        """
        engine, fanout = self._parts()
        if after is not END:
            after = check_number("after", after, 0)
        if on_live is not None and not callable(on_live):
            raise TypeError(f"on_live must be callable, not {on_live!r}")
        inbox = Inbox(
            Interest(None if stream_id is None else check_stream_id(stream_id), check_query(query)),
            check_number("queue_size", queue_size, 1),
            self._limits.queue_bytes_max,
            OnSlow(on_slow),
            fanout.inbox_changed,
        )
        if name is None and (checkpoint_every is not None or state is not None):
            raise ValueError("checkpoint_every and state are for subscriptions with a name")
        return Subscription(
            engine,
            fanout,
            inbox,
            after,
            on_live,
            self._check,
            self._types,
            None if name is None else Checkpoint(states_of(engine, state, "a subscription with a name"), name),
            None if checkpoint_every is None else check_number("checkpoint_every", checkpoint_every, 1),
        )

    def on_commit(self, handler: Handler, *, wait: bool = True, name: str | None = None) -> Listener:
        """Have ``await handler(events)`` called with each commit from now on, one after another, in order.

        Handlers are called in the order of their registration. An append returns after all those with ``wait=True``
        have had its events. Inside a handler, an append returns once it is durable, and its events come after the
        commit in hand. A handler that raises gets nothing more: the error is logged and kept on the `Listener`, the
        append succeeds, and the others get the commit. A handler must not wait for another task's append.

        What a handler appends follows from the commit in hand (see `correlate`): from its event; where it has several,
        it gets the correlation_id that these have in common, if any, and no causation_id. With a ``name``, the store's
        ``tracing`` is told of each call.
        """
        _, fanout = self._parts()
        if name is not None and self._tracing is not UNTRACED:
            handler = _traced(handler, name, self._tracing)
        return fanout.listeners.add(handler, wait=wait, head=fanout.head, name=name)

    def __repr__(self) -> str:
        state = self._state.value
        if self._state is _State.OPEN:
            fanout = self._fanout
            state += f", head={fanout.head}"
            state += ", mode='r'" if self._engine.read_only else f", staged={self._committer.staged_count}"
            state += f", live subscriptions={len(fanout.live)}, listeners={len(fanout.listeners.registered)}"
        return f"<EventStore {self._engine.location!r} {state}>"


class _Part(NamedTuple):
    """The part of an append that goes to one stream, as the caller had it when it was made."""

    stream_id: str
    batch: Batch
    expected_version: int | StreamState | None

    async def drafted(self) -> StreamDrafts:
        return StreamDrafts(self.stream_id, await self.batch.drafts(), self.expected_version)


def _traced(handler: Handler, name: str, tracing: Tracing) -> Handler:
    async def handle(events: list[Event]) -> None:
        with tracing.process(name, events):
            await handler(events)

    return handle


_NO_BOUND = 2**63 - 1


def _window(since: datetime | None, until: datetime | None) -> tuple[str | None, str | None]:
    """The bounds in time as timestamps."""
    return (
        None if since is None else check_moment("since", since),
        None if until is None else check_moment("until", until),
    )


async def _finish(step: Callable[[], Awaitable[None]]) -> None:
    """Take a step that can be taken again to its end: cancelling all tasks must not leave a store half closed."""
    while True:
        try:
            return await step()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
