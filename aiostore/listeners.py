"""Listeners: handlers that are awaited with each commit, one after another, in the order of their registration."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import inspect
import logging
import types
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from aiostore.context import handling
from aiostore.engine import Commit
from aiostore.errors import EventStoreError, StoreClosed
from aiostore.events import Event, copies
from aiostore.worker import Worker

SLOW_HANDLER_S = 5.0
"""After so many seconds in one handler, a warning names it."""

GIVE_WAY_COMMITS = 128
"""After so many commits in a row, the delivery gives way to other tasks."""

Handler = Callable[[list[Event]], Awaitable[None]]
Ended = Callable[[BaseException], None]

logger = logging.getLogger("aiostore")


class Listener:
    """A registered handler. `close` ends it; ``error`` is what it raised, after which it gets nothing more."""

    def __init__(
        self,
        owner: Listeners,
        handler: Handler,
        *,
        wait: bool,
        after: int,
        name: str,
        in_bulk: bool,
        ended: Ended | None,
    ) -> None:
        self._owner = owner
        self.handler = handler
        self.wait = wait
        self.after = after
        self.name = name
        self.in_bulk = in_bulk
        self.error: BaseException | None = None
        self.closed = False
        """Whether the handler gets nothing more: closed, or detached because it raised."""
        self._ended = ended

    def close(self) -> None:
        """Stop calling the handler; a call in progress goes on. Closing again does nothing."""
        self._owner.remove(self)

    def end(self, reason: BaseException) -> None:
        """Take the handler off the list, and tell whoever wanted to know why."""
        self.close()
        if self._ended is not None:
            self._ended(reason)

    def __repr__(self) -> str:
        state = f"error={self.error!r}" if self.error else "closed" if self.closed else "listening"
        return f"<Listener {self.name} {state}>"


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
        self.registered: tuple[Listener, ...]
        """In the order of their registration; replaced, never changed."""
        self._register(())
        self.backlog_bytes = 0
        self._changed = changed
        self._backlog: deque[Commit | Listener] = deque()
        self._delivered = head
        self._held: deque[tuple[int, asyncio.Future[Sequence[Event]], Sequence[Event]]] = deque()
        self._suspended = True
        self._failure: EventStoreError | None = None
        self._worker = Worker("aiostore delivery", self._deliver, self._ended)

    def add(
        self,
        handler: Handler,
        *,
        wait: bool,
        head: int,
        name: str | None = None,
        in_bulk: bool = False,
        ended: Ended | None = None,
    ) -> Listener:
        """Register a handler for the commits above ``head``.

        ``in_bulk``: it takes the events of several commits at once, and drops those that it has. ``ended(error)`` is
        called when it is detached.
        """
        if not callable(handler):
            raise TypeError(f"the handler must be callable, not {handler!r}")
        name = name or str(getattr(handler, "__qualname__", repr(handler)))
        listener = Listener(self, handler, wait=wait, after=head, name=name, in_bulk=in_bulk, ended=ended)
        self._register((*self.registered, listener))
        if self._failure is not None:
            self._worker.start()
        return listener

    def call(self, listener: Listener) -> None:
        """Have the handler called without events, in its turn: behind what is in the backlog, before what comes."""
        self._backlog.append(listener)
        self._worker.start()

    def remove(self, listener: Listener) -> None:
        """Take a handler off the list; again is nothing."""
        if not listener.closed:
            listener.closed = True
            self._register(tuple(other for other in self.registered if other is not listener))
            if self._held and not self._any_waits:
                self._let_go(self._held[-1][0])

    def _register(self, listeners: tuple[Listener, ...]) -> None:
        self.registered = listeners
        self._any_waits = _any_waits(listeners)
        self._all_in_bulk = all(listener.in_bulk for listener in listeners)

    def calls_this_context(self) -> bool:
        """Whether the current task runs inside a handler of these, or was started by one that has not returned yet."""
        scope = _scope.get()
        return scope is not None and scope.active and scope.owner is self

    @property
    def task(self) -> asyncio.Task[None] | None:
        """The task that the handlers are called in, while there is one."""
        return self._worker.task

    @property
    def delivering(self) -> bool:
        """Whether there is anything in the backlog."""
        return self._worker.running

    def put(self, commits: Sequence[Commit]) -> None:
        """Take commits into the backlog."""
        if not self.registered and not self._backlog:
            self._delivered = commits[-1].events[-1].event_id
            return
        self._backlog.extend(commits)
        self.backlog_bytes += sum([commit.bytes_estimate for commit in commits])
        self._worker.start()

    def release(self, future: asyncio.Future[Sequence[Event]], events: Sequence[Event]) -> None:
        """Give ``events`` to the future when the handlers that hold appends have had them; at once if none has to."""
        last = events[-1].event_id if events else 0
        if last <= self._delivered or not self._any_waits:
            future.set_result(events)
        else:
            self._held.append((last, future, events))

    def fail(self, error: EventStoreError) -> None:
        """Detach all handlers with this error when they have had what is in the backlog, and those to come, too."""
        self._failure = error
        self._worker.start()

    async def aclose(self) -> None:
        """Wait until the backlog is delivered; then all handlers are detached with `StoreClosed`."""
        await self._worker.drain()
        for listener in tuple(self.registered):
            listener.end(StoreClosed())

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            logger.critical("the delivery to listeners failed", exc_info=task.exception())
        if self._backlog:  # it was cancelled before its first step
            self._worker.start()

    async def _deliver(self) -> None:
        count = 0
        while self._backlog:
            first = self._backlog[0]
            if isinstance(first, Listener):
                self._backlog.popleft()
                await self._call(first, [])
                continue
            commits = self._next_commits()
            events = (
                commits[0].events if len(commits) == 1 else [event for commit in commits for event in commit.events]
            )
            last = events[-1].event_id
            self._suspended = False
            due = [listener for listener in self.registered if listener.after < last]
            for place, listener in enumerate(due):
                if place and not _any_waits(due[place:]):
                    self._let_go(last)
                await self._call(listener, copies(events))
            for commit in commits:
                self._backlog.popleft()
                self.backlog_bytes -= commit.bytes_estimate
            self._let_go(last)
            self._changed()
            count += len(commits)
            if count >= GIVE_WAY_COMMITS:
                count = 0
                await _give_way()
        if self._failure is not None:
            for listener in self.registered:
                listener.error = copy.copy(self._failure)
                logger.error("handler %s is detached: %s", listener.name, self._failure)
                listener.end(listener.error)

    def _next_commits(self) -> Sequence[Commit]:
        """The next commit; or those that are there, where all handlers take them in bulk: none gets one out of turn.

        And not where a handler waited for something with the last ones: the first append would wait for all of that.
        """
        count = GIVE_WAY_COMMITS if self._all_in_bulk and not self._suspended else 1
        commits: list[Commit] = []
        for item in islice(self._backlog, count):
            if isinstance(item, Listener):
                break
            commits.append(item)
        return commits

    def _let_go(self, last: int) -> None:
        self._delivered = max(self._delivered, last)
        while self._held and self._held[0][0] <= self._delivered:
            _, future, events = self._held.popleft()
            if not future.done():
                future.set_result(events)

    async def _call(self, listener: Listener, events: list[Event]) -> None:
        if listener.closed:
            return
        scope = _Scope(self)
        context = contextvars.Context()
        context.run(_scope.set, scope)
        if not listener.in_bulk:  # a projection says so for each event
            context.run(handling, tuple(events))
        try:
            result = context.run(listener.handler, events)
            coroutine = result if type(result) is types.CoroutineType else _coroutine(result)
            if coroutine is not None:
                try:
                    awaited = context.run(coroutine.send, None)
                except StopIteration:
                    pass  # most handlers wait for nothing
                else:
                    self._suspended = True
                    timer = self._watch(listener)
                    try:
                        await _in_context(context, coroutine, awaited)
                    finally:
                        timer.cancel()
        except BaseException as error:
            listener.error = error
            listener.end(error)
            if isinstance(error, KeyboardInterrupt | SystemExit):  # it ends the loop, but not in mid-delivery
                asyncio.get_running_loop().call_soon(_raise, error)
            logger.error("handler %s is detached: it raised %r", listener.name, error, exc_info=error)
        finally:
            scope.active = False
        assert self._worker.task is not None
        if self._worker.task.cancelling():
            await _give_way()

    def _watch(self, listener: Listener) -> asyncio.TimerHandle:
        def warn() -> None:
            logger.warning(
                "handler %s has not returned for %g s: appends wait for it, so it must not wait for another's append",
                listener.name,
                SLOW_HANDLER_S,
            )

        return asyncio.get_running_loop().call_later(SLOW_HANDLER_S, warn)


def _raise(error: BaseException) -> None:
    raise error


def _any_waits(listeners: Iterable[Listener]) -> bool:
    """Whether one of them holds the appends whose events it has not had."""
    return any(listener.wait and not listener.closed for listener in listeners)


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


def _coroutine(result: object) -> Coroutine[Any, Any, None] | None:
    """The coroutine that a handler's result is, or is awaited in; None if it is nothing to await."""
    if inspect.iscoroutine(result):
        return result
    if not inspect.isawaitable(result):
        return None

    async def wait() -> None:
        await result

    return wait()


@types.coroutine
def _in_context(
    context: contextvars.Context, coroutine: Coroutine[Any, Any, None], awaited: Any
) -> Generator[Any, Any, None]:
    """Run the rest of a coroutine in a context of its own, without the cost of a task; it waits for ``awaited``."""
    while True:
        try:
            step, value = coroutine.send, (yield awaited)
        except BaseException as error:
            step, value = coroutine.throw, error
        try:
            awaited = context.run(step, value)
        except StopIteration:
            return
