"""Listeners: handlers that are awaited with each commit, one after another, in the order of their registration."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import logging
import types
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from aiostore.engine import Commit
from aiostore.events import Event, copies
from aiostore.worker import Worker

SLOW_HANDLER_S = 5.0
"""After so many seconds in one handler, a warning names it."""

GIVE_WAY_COMMITS = 50
"""After so many commits in a row, the delivery gives way to other tasks."""

Handler = Callable[[list[Event]], Awaitable[None]]

logger = logging.getLogger("aiostore")


class Listener:
    """A registered handler. `close` ends it; ``error`` is what it raised, after which it gets nothing more."""

    def __init__(self, owner: Listeners, handler: Handler, *, wait: bool, after: int) -> None:
        self._owner = owner
        self.handler = handler
        self.wait = wait
        self.after = after
        self.error: BaseException | None = None

    @property
    def closed(self) -> bool:
        """Whether the handler gets nothing more: closed, or detached because it raised."""
        return self not in self._owner.registered

    def close(self) -> None:
        """Stop calling the handler; a call in progress goes on. Closing again does nothing."""
        self._owner.remove(self)

    def __repr__(self) -> str:
        state = f"error={self.error!r}" if self.error else "closed" if self.closed else "listening"
        return f"<Listener {_name(self.handler)} {state}>"


@dataclass(slots=True, eq=False)
class _Scope:
    """Stands for one call of a handler, in its context and in that of the tasks it starts."""

    owner: Listeners
    active: bool = True


_scope: contextvars.ContextVar[_Scope | None] = contextvars.ContextVar("aiostore_handler", default=None)


class Listeners:
    """Delivers commits to the handlers from a backlog, in one task, and lets the appends go that wait for that.

    ``changed`` is called when the backlog has shrunk.
    """

    def __init__(self, head: int, changed: Callable[[], None]) -> None:
        self.registered: list[Listener] = []
        self.backlog_bytes = 0
        self._changed = changed
        self._backlog: deque[Commit] = deque()
        self._delivered = head
        self._held: deque[tuple[int, asyncio.Future[Sequence[Event]], Sequence[Event]]] = deque()
        self._worker = Worker("aiostore delivery", self._deliver, self._ended)

    def add(self, handler: Handler, *, wait: bool, head: int) -> Listener:
        """Register a handler for the commits above ``head``."""
        if not callable(handler):
            raise TypeError(f"the handler must be callable, not {handler!r}")
        listener = Listener(self, handler, wait=wait, after=head)
        self.registered.append(listener)
        return listener

    def remove(self, listener: Listener) -> None:
        """Take a handler off the list; again is nothing."""
        if listener in self.registered:
            self.registered.remove(listener)
            if self._held and not any(other.wait for other in self.registered):
                self._let_go(self._held[-1][0])

    def calls_this_context(self) -> bool:
        """Whether the current task runs inside a handler of these, or was started by one that has not returned yet."""
        scope = _scope.get()
        return scope is not None and scope.active and scope.owner is self

    @property
    def delivering(self) -> bool:
        """Whether there is anything in the backlog."""
        return self._worker.running

    def put(self, commit: Commit) -> None:
        """Take a commit into the backlog."""
        if not self.registered and not self._backlog:
            self._delivered = commit.events[-1].event_id
            return
        self._backlog.append(commit)
        self.backlog_bytes += commit.bytes_estimate
        self._worker.start()

    def release(self, future: asyncio.Future[Sequence[Event]], events: Sequence[Event]) -> None:
        """Give ``events`` to the future when the handlers that hold appends have had them; at once if none has to."""
        last = events[-1].event_id if events else 0
        if last <= self._delivered or not any(listener.wait for listener in self.registered):
            future.set_result(events)
        else:
            self._held.append((last, future, events))

    async def drain(self) -> None:
        """Wait until the backlog is delivered."""
        await self._worker.drain()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            logger.critical("the delivery to listeners failed", exc_info=task.exception())
        if self._backlog:  # it was cancelled before its first step
            self._worker.start()

    async def _deliver(self) -> None:
        count = 0
        while self._backlog:
            commit = self._backlog[0]
            last = commit.events[-1].event_id
            due = [listener for listener in self.registered if listener.after < last]
            for place, listener in enumerate(due):
                if not any(later.wait and not later.closed for later in due[place:]):
                    self._let_go(last)
                if not listener.closed:
                    await self._call(listener, copies(commit.events))
            self._backlog.popleft()
            self.backlog_bytes -= commit.bytes_estimate
            self._let_go(last)
            self._changed()
            count += 1
            if count % GIVE_WAY_COMMITS == 0:
                await _give_way()

    def _let_go(self, last: int) -> None:
        self._delivered = max(self._delivered, last)
        while self._held and self._held[0][0] <= self._delivered:
            _, future, events = self._held.popleft()
            if not future.done():
                future.set_result(events)

    async def _call(self, listener: Listener, events: list[Event]) -> None:
        scope = _Scope(self)
        context = contextvars.Context()
        context.run(_scope.set, scope)
        try:
            result = context.run(listener.handler, events)
            if inspect.isawaitable(result):
                await _in_context(context, _coroutine(result), lambda: self._watch(listener))
        except (Exception, asyncio.CancelledError) as error:
            self.remove(listener)
            listener.error = error
            logger.error("handler %s is detached: it raised %r", _name(listener.handler), error, exc_info=error)
        finally:
            scope.active = False
        if _this_task().cancelling():
            await _give_way()

    def _watch(self, listener: Listener) -> asyncio.TimerHandle:
        def warn() -> None:
            logger.warning(
                "handler %s has not returned for %g s: appends wait for it, so it must not wait for another's append",
                _name(listener.handler),
                SLOW_HANDLER_S,
            )

        return asyncio.get_running_loop().call_later(SLOW_HANDLER_S, warn)


def _name(handler: Handler) -> str:
    return getattr(handler, "__qualname__", None) or repr(handler)


def _this_task() -> asyncio.Task[None]:
    task = asyncio.current_task()
    assert task is not None
    return task


async def _give_way() -> None:
    """Let other tasks run. Who cancels the delivery cancels the handler in hand; the others get the commit.

    What is absorbed here is a cancellation that came when no handler ran, or that a handler asked for and outran.
    """
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    while _this_task().cancelling():
        _this_task().uncancel()


def _coroutine(awaitable: Awaitable[None]) -> Coroutine[Any, Any, None]:
    async def wait() -> None:
        await awaitable

    return awaitable if inspect.iscoroutine(awaitable) else wait()


@types.coroutine
def _in_context(
    context: contextvars.Context, coroutine: Coroutine[Any, Any, None], watch: Callable[[], asyncio.TimerHandle]
) -> Generator[Any, Any, None]:
    """Run the coroutine in a context of its own, without the cost of a task; ``watch`` is called if it suspends."""
    timer: asyncio.TimerHandle | None = None
    step: Callable[[Any], Any] = coroutine.send
    value: Any = None
    try:
        while True:
            try:
                awaited = context.run(step, value)
            except StopIteration:
                return
            timer = timer or watch()
            try:
                value = yield awaited
                step = coroutine.send
            except BaseException as error:
                step, value = coroutine.throw, error
    finally:
        if timer is not None:
            timer.cancel()
