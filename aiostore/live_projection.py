"""Live projections: up to date before an append in this process returns."""

from __future__ import annotations

import asyncio
from bisect import bisect_right, insort
from typing import Self

from anyio.abc import AsyncResource

from aiostore.errors import ProjectionStopped
from aiostore.events import Event
from aiostore.fanout import Fanout
from aiostore.limits import check_number
from aiostore.listeners import Listener
from aiostore.projection import Projection, S, logger
from aiostore.worker import Worker

SEAM_EVENTS = 500
"""So few events behind the head, a projection goes live: appends that come meanwhile wait until it has had these."""


class LiveProjection(Projection[S], AsyncResource):
    """A `Projection` that follows the store in ``async with``: it has each event before the append of it returns.

    Entered, it takes all there is, and from then on what is appended, without a gap and once (`EventStore.on_commit`):
    after ``await store.append(…)``, `state` has it. In a handler that appends, the append returns first, and comes
    after the commit in hand. Snapshots of ``snapshot_interval`` are written in the background.

    A handler that raises stops it at that event; the appends and the other projections go on. `error` has what it
    raised, and so has `wait_for`; `catch_up` goes on at that event and then follows again. It needs a store that can
    be followed (not ``mode="r"``), and is up to date only with appends of this process and those that it has seen.
    """

    _listener: Listener | None = None
    _entered = False
    _seam = 0  # the head when it began to listen: what comes before is read, not listened to
    _pending: tuple[int, bytes] | None = None  # the newest snapshot that is not written yet

    async def __aenter__(self) -> Self:
        if self._entered:
            raise RuntimeError(f"projection {self._name!r} follows the store already")
        self._waiters: list[tuple[int, int, asyncio.Future[None]]] = []
        self._waiters_count = 0
        self._saver = Worker(f"snapshots of projection {self._name!r}", self._save_pending, self._saved)
        self._entered = True
        try:
            await self._go_live()
        except BaseException:
            self._leave()
            raise
        return self

    async def aclose(self) -> None:
        """Follow no more, when the commit in hand is taken and the snapshot in hand is saved. Again is nothing.

        From any task; inside a handler, it does not wait. `wait_for` raises `ProjectionStopped`. Its state stays, and
        entered again it goes on.
        """
        if not self._entered:
            return
        self._leave()
        self._wake(self._closed())
        if not self._turn.mine:
            async with self._turn:
                pass
            await self._saver.drain()

    def _leave(self) -> None:
        self._entered = False
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    @property
    def is_live(self) -> bool:
        """Whether it follows the store: entered, and not stopped."""
        return self._listener is not None

    async def catch_up(self) -> int:
        """Take all matching events up to the head as of now; returns how many. Stopped, it goes on and follows again.

        Live, it is up to date with what has returned, and this waits for what is on its way. See `Projection.catch_up`
        for the rest. RuntimeError in a handler of the store.
        """
        if not self._entered:
            return await super().catch_up()
        count = self._fold.taken_count
        if self._listener is None:
            await self._go_live()
        else:
            await self.wait_for(self._store._followed().head)
        return self._fold.taken_count - count

    async def load_snapshot(self) -> bool:
        """As `Projection.load_snapshot`; RuntimeError while it follows the store, of which it would lose events."""
        if self._entered:
            raise RuntimeError(f"projection {self._name!r} follows the store: load its snapshot before entering it")
        return await super().load_snapshot()

    async def wait_for(self, event_id: int, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 (as promised)
        """Return when every matching event up to ``event_id`` is in the state; ``timeout`` is in seconds.

        Raises TimeoutError; what stopped the projection before, if it is stopped or closed (`ProjectionStopped`), or
        `StoreClosed`; RuntimeError in a handler of the store, which it would wait for.
        """
        check_number("event_id", event_id, 0)
        self._refuse_in_handler("wait_for()")
        async with asyncio.timeout(timeout):
            await self._reach(event_id)

    def _refuse_in_handler(self, what: str) -> None:
        if self._turn.mine or self._store._followed().listeners.calls_this_context():
            raise RuntimeError(f"{what} inside a handler would wait for that handler; call it from a task of its own")

    async def _reach(self, event_id: int) -> None:
        if self.position >= event_id:
            return
        if self._listener is None:
            raise self._error or ProjectionStopped(self._name, self.position, 'it follows only within "async with"')
        self._waiters_count += 1
        waiter = (event_id, self._waiters_count, asyncio.get_running_loop().create_future())
        insort(self._waiters, waiter)
        try:
            await waiter[2]
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def _wake(self, error: BaseException | None = None) -> None:
        """Let those go whose event is there, or all of them with an error."""
        count = (
            len(self._waiters) if error else bisect_right(self._waiters, self.position, key=lambda waiter: waiter[0])
        )
        woken, self._waiters[:count] = self._waiters[:count], []
        for event_id, _, future in woken:
            if future.done():
                continue
            if error is None or event_id <= self.position:
                future.set_result(None)
            else:
                future.set_exception(error)
                future.exception()  # one that is cancelled in this very moment will not look at it

    # --- from history to what is live ---

    async def _go_live(self) -> None:
        """Read up to near the head, then listen, and wait until what lies between is taken."""
        fanout = self._store._followed()
        self._listeners = fanout.listeners
        self._refuse_in_handler("to begin to follow")
        async with self._turn:
            if self._listener is None:  # nobody else was faster
                await self._approach(fanout)
                self._store._followed()  # it may have been closed meanwhile
                self._seam = fanout.head
                self._listener = fanout.listeners.add(
                    self._take_commits,
                    wait=True,
                    head=self._seam,
                    name=f"of projection {self._name!r}",
                    in_bulk=True,
                    ended=self._ended,
                )
                if self.position < self._seam:
                    fanout.listeners.call(self._listener)
        await self._reach(self._seam)

    async def _approach(self, fanout: Fanout) -> None:
        """Read until few events lie before the head, or more than were just read: then appends are faster, and wait."""
        while True:
            before = self.position
            await self._read_on(going_on=lambda: self._entered)
            if not self._entered:
                raise self._closed()
            behind = fanout.head - self.position
            if behind <= SEAM_EVENTS or behind >= self.position - before:
                return

    def _closed(self) -> ProjectionStopped:
        return ProjectionStopped(self._name, self.position, "it was closed")

    async def _take_commits(self, events: list[Event]) -> None:
        """The listener: takes what was committed next, or (without events) only what lies before it."""
        await self._turn.take(self._listeners.task)
        try:
            fold = self._fold
            if fold.position < self._seam:
                # In the delivery's task, so that what a handler appends here does not wait for this very projection.
                await self._read_on(self._seam, going_on=lambda: self._entered)
            if events and self._entered:
                last = events[-1].event_id
                if events[0].event_id <= fold.position or self._query is not None:
                    query, position = self._query, fold.position
                    events = [e for e in events if e.event_id > position and (query is None or query.matches(e))]
                await self._take(events)
                fold.position = max(fold.position, last)
        finally:
            self._turn.give_back()
        if self._waiters:
            self._wake()

    def _ended(self, reason: BaseException) -> None:
        """The listener was detached: a handler raised, the delivery was cancelled, or the store was closed."""
        self._listener = None
        if isinstance(reason, asyncio.CancelledError):
            reason = ProjectionStopped(self._name, self.position, "it was cancelled; catch_up() goes on")
        self._error = reason
        self._wake(reason)

    # --- snapshots in the background ---

    async def _snapshot_due(self) -> None:
        if self._listener is None:
            await super()._snapshot_due()
        else:
            self._pending = self.position, self._encode()
            self._saver.start()

    async def _save_pending(self) -> None:
        while self._pending is not None:
            position, value = self._pending
            self._pending = None
            await self._save_or_warn(position, value)

    def _saved(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            logger.critical("saving snapshots of projection %r failed", self._name, exc_info=task.exception())
