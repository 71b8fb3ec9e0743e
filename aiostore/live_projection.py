"""Live projections: up to date before an append in this process returns."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from anyio.abc import AsyncResource

from aiostore.errors import ProjectionStopped
from aiostore.events import Event
from aiostore.fanout import Fanout
from aiostore.limits import check_number
from aiostore.listeners import Listener, Listeners
from aiostore.projection import Projection, S, logger
from aiostore.waiting import SEAM_EVENTS, Waiters
from aiostore.worker import Worker


class LiveProjection(Projection[S], AsyncResource):
    """A `Projection` that follows the store in ``async with``: it has each event before the append of it returns.

    Entered, it takes all there is, and from then on what is appended, without a gap and once (`EventStore.on_commit`):
    after ``await store.append(…)``, `state` has it. In a handler that appends, the append returns first, and comes
    after the commit in hand. Every commit calls on every live projection, also where its query matches nothing of it.

    A handler that raises stops it at that event; the appends and the other projections go on. `error` has what it
    raised, and so has `wait_for`; `catch_up` goes on at that event and then follows again. Snapshots of
    ``snapshot_interval`` are written in the background; to encode one takes the loop about 0.1 s for 10 MB of state.

    What other processes append, on a shared engine or beside a store opened with ``mode="r"``, it has a moment later:
    `wait_for` waits for that.
    """

    _entry: object | None = None  # a new one for each `async with`
    _listener: Listener | None = None
    _listeners: Listeners | None = None
    _saver: Worker | None = None
    _seam = 0  # the head when it began to listen: what comes before is read, not listened to
    _pending: tuple[int, bytes] | None = None  # the newest snapshot that is not written yet
    _effects_pending = False  # whether effects were had since that was last written
    _traceback: TracebackType | None = None  # of the error as it was raised: to raise it again adds to its own
    _waiters: Waiters

    async def __aenter__(self) -> Self:
        if self._entry is not None:
            raise RuntimeError(f"projection {self._name!r} follows the store already")
        self._waiters = Waiters()
        self._saver = self._saver or Worker(f"snapshots of projection {self._name!r}", self._save_pending, self._saved)
        entry = self._entry = object()
        try:
            await self._go_live()
        except BaseException:
            if self._entry is entry:
                self._leave()
            raise
        return self

    async def aclose(self) -> None:
        """Follow no more; returns when the handler in hand has returned and the snapshot in hand is saved.

        From any task, again and at once; inside a handler of the store, it does not wait. `wait_for` raises
        `ProjectionStopped`. Its state stays, and entered again it goes on.
        """
        self._leave()
        if not self._in_handler():
            async with self._turn:
                pass
            self._begin_to_save_effects()
            if self._saver is not None:
                await self._saver.drain()

    def _leave(self) -> None:
        if self._entry is None:
            return
        self._entry = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self._waiters.wake(self.position, self._stopped("it was closed"))

    @property
    def is_live(self) -> bool:
        """Whether it follows the store: entered, and not stopped."""
        return self._listener is not None

    async def catch_up(self) -> int:
        """Take all matching events up to the head as of now; returns how many. Stopped, it goes on and follows again.

        Live, it is up to date with the appends of this process that have returned; this waits for those that are on
        their way, and on a shared engine for those of other processes. See `Projection.catch_up` for the rest.
        RuntimeError in a handler of the store.
        """
        if self._entry is None:
            return await super().catch_up()
        count = self._fold.taken_count
        if self._listener is None:
            await self._go_live()
        else:
            await self.wait_for(await self._store.head())
        return self._fold.taken_count - count

    async def load_snapshot(self) -> bool:
        """As `Projection.load_snapshot`; RuntimeError while it follows the store, of which it would lose events."""
        if self._entry is not None:
            raise RuntimeError(f"projection {self._name!r} follows the store: load its snapshot before entering it")
        return await super().load_snapshot()

    async def wait_for(self, event_id: int, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 (as promised)
        """Return when every matching event up to ``event_id`` is in the state; ``timeout`` is in seconds.

        Raises TimeoutError; what stopped the projection before, or `ProjectionStopped` where it is not entered or is
        closed, or `StoreClosed`; RuntimeError in a handler of the store, which it would wait for.
        """
        check_number("event_id", event_id, 0)
        self._refuse_in_handler("wait_for()")
        async with asyncio.timeout(timeout):
            await self._reach(event_id)

    def _in_handler(self) -> bool:
        return self._turn.mine or (self._listeners is not None and self._listeners.calls_this_context())

    def _refuse_in_handler(self, what: str) -> None:
        _, fanout = self._store._parts()
        self._listeners = fanout.listeners
        if self._in_handler():
            raise RuntimeError(f"{what} inside a handler would wait for that handler; call it from a task of its own")

    async def _reach(self, event_id: int) -> None:
        if self.position >= event_id:
            return
        if self._error is not None:
            raise self._error.with_traceback(self._traceback)
        if self._entry is None:
            raise self._stopped('it follows only within "async with"')
        await self._waiters.wait(event_id)

    def _stopped(self, reason: str) -> ProjectionStopped:
        return ProjectionStopped(self._name, self.position, reason)

    def _stop(self, reason: BaseException) -> None:
        """Go no further until `catch_up`: a handler raised, it was cancelled, or the store was closed."""
        self._listener = None
        if not isinstance(reason, Exception):
            reason = self._stopped("it was cancelled; catch_up() goes on")
        self._error, self._traceback = reason, reason.__traceback__
        self._waiters.wake(self.position, reason)

    # --- from history to what is live ---

    async def _go_live(self) -> None:
        """Read up to near the head, then listen, and wait until what lies between is taken."""
        self._refuse_in_handler("to begin to follow")
        async with self._turn:
            if self._listener is None:  # nobody else was faster
                try:
                    fanout = await self._approach()
                except BaseException as error:
                    self._stop(error)
                    raise
                self._seam = fanout.head
                self._listener = fanout.listeners.add(
                    self._take_commits,
                    wait=True,
                    head=self._seam,
                    name=f"of projection {self._name!r}",
                    in_bulk=not any(map(inspect.iscoroutinefunction, self._all_handlers())),
                    ended=self._stop,
                )
                if self.position < self._seam:
                    fanout.listeners.call(self._listener)
        await self._reach(self._seam)

    def _all_handlers(self) -> list[Callable[..., Any]]:
        return [*self._fold.handlers.values(), *self._effects.handlers.values()]

    async def _approach(self) -> Fanout:
        """Read until few events lie before the head, or more than were just read: then appends are faster, and wait."""
        self._fold.going_on = self._look_around
        try:
            while True:
                before = self.position
                await self._read_on()
                _, fanout = self._store._parts()  # the store may have been closed meanwhile
                if self._entry is None:
                    raise self._stopped("it was closed")
                behind = fanout.head - self.position
                if behind <= SEAM_EVENTS or behind >= self.position - before:
                    return fanout
        finally:
            self._fold.going_on = None

    def _look_around(self) -> bool:
        """Between events: wake who waits for them; whether to take more."""
        if self._waiters:
            self._waiters.wake(self.position)
        return self._entry is not None

    async def _take_commits(self, events: list[Event]) -> None:
        """The listener: takes what was committed next, or (without events) only what lies before it."""
        assert self._listeners is not None
        await self._turn.take(self._listeners.task)
        fold = self._fold
        fold.going_on = self._look_around
        try:
            if fold.position < self._seam:
                # In the delivery's task, so that what a handler appends here does not wait for this very projection.
                await self._read_on(self._seam)
            if events and self._entry is not None:
                last = events[-1].event_id
                if events[0].event_id <= fold.position or self._query is not None:
                    query, position = self._query, fold.position
                    events = [e for e in events if e.event_id > position and (query is None or query.matches(e))]
                await self._take(events)
                if self._entry is not None:
                    fold.position = max(fold.position, last)
        finally:
            fold.going_on = None
            self._turn.give_back()
        if self._waiters:
            self._waiters.wake(self.position)

    # --- snapshots, and how far effects have come, in the background ---

    async def _snapshot_due(self) -> None:
        if self._listener is None:
            await super()._snapshot_due()
            return
        value = self._encode_due()
        if value is not None and self._saver is not None:
            self._pending = self.position, value
            self._saver.start()

    async def _effects_had(self) -> None:
        if self._listener is None:
            await super()._effects_had()
        else:
            self._begin_to_save_effects()

    def _begin_to_save_effects(self) -> None:
        if self._effects.unsaved and self._saver is not None:
            self._effects_pending = True
            self._saver.start()

    async def _save_pending(self) -> None:
        while self._effects_pending or self._pending is not None:
            self._effects_pending = False
            await super()._effects_had()
            if self._pending is not None:
                position, value = self._pending
                self._pending = None
                await self._save_or_warn(position, value)

    def _saved(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            logger.critical("saving snapshots of projection %r failed", self._name, exc_info=task.exception())
