"""Projections that are kept outside of memory: they take events in steps that are kept whole or not at all."""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from anyio.abc import AsyncResource

from aiostore.drafts import check_name
from aiostore.errors import EngineUnsupported, EventStoreError, ProjectionStopped, StoreClosed
from aiostore.events import Event
from aiostore.fold import add_handler
from aiostore.limits import NAME_BYTES_MAX, check_number
from aiostore.listeners import Listener
from aiostore.query import Query
from aiostore.reader import check_query
from aiostore.store import EventStore
from aiostore.waiting import Turn, Waiters
from aiostore.worker import Worker

PASSED_EVENTS_MAX = 10_000
"""After so many events without a handler, the position is kept all the same: no more are read again by a restart."""

BACKOFF_S = 0.1
BACKOFF_S_MAX = 30.0
"""A step that failed is tried again after so long, doubled each time, up to the second of these."""

_FINAL = (ProjectionStopped, StoreClosed, EngineUnsupported)
"""What does not get better when it is tried again."""

logger = logging.getLogger("aiostore")


class HandlerFailed(Exception):
    """What a handler raised at an event of a step, the ``place``-th of it, from 0 on."""

    def __init__(self, place: int, error: Exception) -> None:
        super().__init__(place, error)
        self.place = place
        self.error = error


class KeptProjection(AsyncResource):
    """What `DatabaseProjection` and `KeyedProjection` share: how they come by events, follow the store, and stop."""

    def __init__(self, name: str, store: EventStore, *, query: Query | None, batch_events: int, attempts: int) -> None:
        self._name = check_name(name, "name", NAME_BYTES_MAX)
        if not isinstance(store, EventStore):
            raise TypeError(f"a projection is of an EventStore, not {store!r}")
        self._store = store
        self._query = check_query(query)
        self._batch_events = check_number("batch_events", batch_events, 1)
        self._attempts = check_number("attempts", attempts, 1)
        self._handlers: dict[str, Callable[..., Any]] = {}
        self._passed: set[str] = set()  # types of events that were passed over
        self._position = 0
        self._kept_position = 0
        self._loaded = False  # whether what is known here is what is kept
        self._error: BaseException | None = None
        self._traceback: TracebackType | None = None  # of the error as it was raised: to raise it again adds to its own
        self._turn = Turn()
        self._waiters = Waiters()
        self._entered = False
        self._listener: Listener | None = None  # while it follows
        self._changed = asyncio.Event()
        self._worker = Worker(f"projection {name!r}", self._follow, self._ended)

    # --- what kinds differ in; all of it is called in one's turn ---

    @abstractmethod
    async def _load(self) -> None:
        """Find out what is kept."""

    @abstractmethod
    async def _apply(self, events: Sequence[Event]) -> int:
        """Take the first of these events and keep that with the position, in one step; returns how many, 1 or more.

        Where it raises, nothing of it counts: `HandlerFailed` for what a handler raised.
        """

    def _begin(self) -> None:
        """It is loaded, and about to take events: the last moment to raise."""

    async def _tidy(self) -> bool:
        """Do a bounded part of what is left to do when all events are taken; whether there is more."""
        return False

    # --- what its users see ---

    @property
    def name(self) -> str:
        """The name under which its position is kept."""
        return self._name

    @property
    def position(self) -> int:
        """Every matching event up to this event_id was taken, and that is kept; 0 before it was first loaded."""
        return self._position

    @property
    def lag(self) -> int:
        """How many events of the store, matching or not, lie between the position and the head."""
        _, fanout = self._store._parts()
        return max(0, fanout.head - self._position)

    @property
    def error(self) -> BaseException | None:
        """What stopped it, or what it is trying again after (see `is_live`); None if nothing."""
        return self._error

    @property
    def is_live(self) -> bool:
        """Whether it follows the store: entered, and not stopped."""
        return self._listener is not None

    def _register(self, event_type: str, handler: Callable[..., Any]) -> None:
        add_handler(self._handlers, self._passed, event_type, handler, name=self._name, position=self._position)

    async def catch_up(self) -> int:
        """Take all matching events up to the head as of now; returns how many. Stopped, it goes on, and follows again.

        Raises what a handler raised: then all before that event is kept, nothing of it, and the next call goes on there
        (also `error`). Raises what keeping raised, and `ProjectionConflict` where another process runs it too: then
        nothing of the last step is kept. Cancelled, the last step may or may not be kept; the next call finds out. One
        call at a time, others wait. RuntimeError in a handler of its own.
        """
        async with self._turn:
            count = await self._read_on(lambda: True)
            if self._entered and self._listener is None:
                self._listen()
            return count

    async def wait_for(self, event_id: int, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 (as promised)
        """Return when every matching event up to ``event_id`` was taken and that is kept; ``timeout`` in seconds.

        Raises TimeoutError; what stopped the projection before, or `ProjectionStopped` where it is not entered or is
        closed, or `StoreClosed`; RuntimeError in a handler of the store or of its own, which it could wait for.
        """
        check_number("event_id", event_id, 0)
        _, fanout = self._store._parts()
        if self._turn.mine or fanout.listeners.calls_this_context():
            raise RuntimeError(
                "wait_for() inside a handler would wait for that handler; call it from a task of its own"
            )
        async with asyncio.timeout(timeout):
            if self._position >= event_id:
                return
            if self._listener is None:
                if self._error is not None:
                    raise self._error.with_traceback(self._traceback)
                raise self._stopped('it follows only within "async with"')
            await self._waiters.wait(event_id)

    async def __aenter__(self) -> Self:
        if self._entered:
            raise RuntimeError(f"projection {self._name!r} follows the store already")
        self._entered = True
        try:
            async with self._turn:
                await self._load_anew()
                self._listen()
        except BaseException:
            self._leave()
            raise
        return self

    async def aclose(self) -> None:
        """Follow no more; returns when the step in hand has ended. From any task, again is nothing.

        Inside a handler of its own, it does not wait. `wait_for` raises `ProjectionStopped`. Entered again, it goes on.
        """
        self._leave()
        if not self._turn.mine:
            await self._worker.drain()

    def __repr__(self) -> str:
        error = f" error={self._error!r}" if self._error else ""
        return f"<{type(self).__name__} {self._name!r} position={self._position}{error}>"

    # --- reading on ---

    def _stopped(self, reason: str) -> ProjectionStopped:
        return ProjectionStopped(self._name, self._position, reason)

    async def _load_anew(self) -> None:
        await self._load()
        self._loaded = True

    async def _read_on(self, going_on: Callable[[], bool]) -> int:
        """Take what the store has, while ``going_on()``; returns how many events were taken. In one's turn."""
        count = 0
        try:
            if not self._loaded:
                await self._load_anew()
            self._begin()
            reader = self._store.read_all(after=self._position, query=self._query)
            async for events in reader.batches(self._batch_events):
                await self._take(events)
                count += len(events)
                if not going_on():
                    return count
            self._moved(reader.head)
            if await self._tidy():
                self._changed.set()
        except BaseException as error:
            self._loaded = False
            if isinstance(error, Exception):
                self._error, self._traceback = error, error.__traceback__
            raise
        self._error = None
        return count

    async def _take(self, events: Sequence[Event]) -> None:
        """Take these events; where a handler raises, those before it, and then raise that."""
        while events:
            if self._may_pass(events):
                self._moved(events[-1].event_id)
                return
            try:
                taken = await self._apply(events)
            except HandlerFailed as failed:
                failure = failed
                break
            self._kept_position = events[taken - 1].event_id
            self._moved(self._kept_position)
            events = events[taken:]
        else:
            return
        if failure.place:
            await self._take(events[: failure.place])
        raise failure.error

    def _may_pass(self, events: Sequence[Event]) -> bool:
        """Whether nothing is to be done with these events, and the position need not be kept for them yet."""
        types = {event.event_type for event in events}
        self._passed |= types - self._handlers.keys()
        return types.isdisjoint(self._handlers) and events[-1].event_id - self._kept_position < PASSED_EVENTS_MAX

    def _moved(self, position: int) -> None:
        self._position = max(self._position, position)
        if self._waiters:
            self._waiters.wake(self._position)

    # --- following, in a task of its own: what it waits for holds no append up ---

    def _listen(self) -> None:
        _, fanout = self._store._parts()
        if not self._entered:
            raise self._stopped("it was closed")
        self._listener = fanout.listeners.add(
            self._note,
            wait=False,
            head=fanout.head,
            name=f"of projection {self._name!r}",
            in_bulk=True,
            ended=self._stop,
        )
        self._changed.set()
        self._worker.start()

    async def _note(self, events: list[Event]) -> None:
        self._changed.set()

    async def _follow(self) -> None:
        failures_count = 0
        while self._listener is not None:
            self._changed.clear()
            before = self._position
            try:
                async with self._turn:
                    await self._read_on(lambda: self._listener is not None)
            except Exception as error:
                failures_count = 1 if self._position > before else failures_count + 1
                if isinstance(error, _FINAL) or failures_count >= self._attempts:
                    self._stop(error)
                    return
                delay = min(BACKOFF_S * 2 ** (failures_count - 1), BACKOFF_S_MAX)
                logger.warning("%r tries again in %g s, having failed %d times", self, delay, failures_count)
                await self._pause(delay)
            else:
                failures_count = 0
                await self._changed.wait()

    async def _pause(self, delay_s: float) -> None:
        """Wait so long, or until it is closed; what is appended meanwhile does not hurry it."""
        loop = asyncio.get_running_loop()
        end = loop.time() + delay_s
        while self._listener is not None and loop.time() < end:
            self._changed.clear()
            try:
                async with asyncio.timeout_at(end):
                    await self._changed.wait()
            except TimeoutError:
                return

    def _stop(self, reason: BaseException) -> None:
        """Go no further until `catch_up`: it failed too often, was cancelled, or the store was closed."""
        if self._listener is None:
            return
        self._end_following()
        if not isinstance(reason, Exception):
            reason = self._stopped("it was cancelled; catch_up() goes on")
        self._error, self._traceback = reason, reason.__traceback__
        if not isinstance(reason, StoreClosed):
            logger.error("%r is stopped", self, exc_info=None if isinstance(reason, EventStoreError) else reason)
        self._waiters.wake(self._position, reason)

    def _leave(self) -> None:
        if self._entered:
            self._entered = False
            self._end_following()
            self._waiters.wake(self._position, self._stopped("it was closed"))

    def _end_following(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        self._changed.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self._stop(asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            self._stop(error)
        elif self._listener is not None:  # it was left and entered again before this was noted
            self._worker.start()
