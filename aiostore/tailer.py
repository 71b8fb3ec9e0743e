"""The tailer of a shared engine: publishes what all processes append, in the engine's order."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from aiostore.engine import Commit, Committed, Engine
from aiostore.errors import EventStoreError, StoreClosed, StoreCorrupt
from aiostore.fanout import Fanout
from aiostore.worker import Worker

RETRY_S = 0.2
"""So long after the engine could not say what others appended, it is asked again."""

logger = logging.getLogger("aiostore")


class _Own(NamedTuple):
    committed: Committed
    answer: Callable[[], None]


class Tailer:
    """Publishes each commit once, in order: own ones as they are where nothing lies between, else that first.

    One worker watches the engine, another publishes while there is anything to publish. ``publish`` shows commits.

    What the watcher hears is news until something is published: then it asks again, and hears at once if there is more.
    So each piece of news costs one read, and none where an own group, which shows all that lay before it, came first.
    """

    def __init__(self, engine: Engine, fanout: Fanout, publish: Callable[[Sequence[Commit]], None]) -> None:
        self._engine = engine
        self._fanout = fanout
        self._publish = publish
        self._own: deque[_Own] = deque()
        self._shown = asyncio.Event()
        self._shown.set()
        self._committing = False
        self._news = False
        self._gate = asyncio.Event()
        self._closed = False
        self._watcher = Worker("aiostore watcher", self._watch, self._watcher_ended)
        self._publisher = Worker("aiostore tailer", self._publish_all, self._publisher_ended)
        self._watcher.start()

    @contextmanager
    def committing(self) -> Iterator[None]:
        """While the engine commits an own group, nothing else is read: it might be a part of that group.

        Where that fails, it may be stored all the same, and nobody tells us: so it is looked for.
        """
        self._committing = True
        try:
            yield
        except BaseException:
            self._news = True
            self._publisher.start()
            raise
        finally:
            self._committing = False
            self.look_again()

    def take(self, committed: Committed, answer: Callable[[], None]) -> None:
        """Have an own group published in its turn, and then its callers answered; at once where that is now."""
        if not committed.commits:
            answer()
        elif not self._publisher.running and self._fanout.head == committed.previous_head:
            self._publish(committed.commits)
            answer()
        else:
            self._own.append(_Own(committed, answer))
            self._shown.clear()
            self._publisher.start()
            self.look_again()

    async def shown(self) -> None:
        """Wait until all own groups are published, so that what they bring about holds the next one back."""
        await self._shown.wait()

    def look_again(self) -> None:
        """Note that what held the publishing of others' commits back may be gone."""
        self._gate.set()

    async def aclose(self) -> None:
        """Publish what is in hand of the own commits, as far as it can be, and end."""
        self._closed = True
        self._watcher.cancel()
        self.look_again()
        await self._watcher.drain()
        await self._publisher.drain()

    async def _watch(self) -> None:
        while not self._ended:
            await self._engine.changed(self._fanout.head)
            self._news = True
            self._publisher.start()
            await self._publisher.drain()

    @property
    def _ended(self) -> bool:
        return self._closed or self._fanout.failure is not None

    def _watcher_ended(self, task: asyncio.Task[None]) -> None:
        self._report(task)
        if not self._ended:
            self._watcher.start()

    async def _publish_all(self) -> None:
        """Publish until all own commits are, and what there was news of, once nothing holds that back."""
        fanout = self._fanout
        while True:
            if self._own:
                committed = self._own[0].committed
                if committed.previous_head <= fanout.head:
                    if committed.previous_head == fanout.head:
                        self._publish(committed.commits)
                        self._news = False
                    self._answer_next()  # where it is below, it was read with what lay before it
                    continue
            elif self._closed or not self._news:
                return
            elif self._committing or fanout.backlog_full or fanout.held_by_subscriptions:
                self._gate.clear()
                await self._gate.wait()
                continue
            try:
                commits = await self._engine.commits_after(fanout.head)
            except (StoreClosed, StoreCorrupt):
                raise
            except EventStoreError as error:
                await self._give_up(error)
                continue
            # Own groups are published whole: a queue that waits has room for a group.
            if self._committing:
                continue  # among these may be a part of the one that is under way
            if self._own:
                commits = [
                    commit for commit in commits if commit.events[0].event_id <= self._own[0].committed.previous_head
                ]
            self._news = False
            if commits:
                self._publish(commits)

    async def _give_up(self, error: EventStoreError) -> None:
        """Let the callers go whose commits are stored; they are published when they can be read."""
        logger.warning("what others appended cannot be read now, it is tried again: %s", error)
        self._let_go()
        self._news = True
        if not self._closed:
            await asyncio.sleep(RETRY_S)

    def _publisher_ended(self, task: asyncio.Task[None]) -> None:
        self._report(task)
        if not task.cancelled() and task.exception() is not None:
            self._closed = True  # it would fail again and again: the store is to be opened anew
            self._watcher.cancel()
            self._let_go()
        elif self._own or (self._news and not self._closed):
            self._publisher.start()  # it was cancelled, or what is new came when it had just ended

    def _let_go(self) -> None:
        while self._own:
            self._answer_next()

    def _answer_next(self) -> None:
        self._own.popleft().answer()
        if not self._own:
            self._shown.set()

    def _report(self, task: asyncio.Task[None]) -> None:
        """Where a worker has failed, let those know who wait for what it would bring: to try again would fail again."""
        error = None if task.cancelled() or self._closed else task.exception()
        if isinstance(error, StoreCorrupt):
            logger.error("%s; nothing behind it is followed", error)
        elif error is not None:
            logger.critical("%s failed", task.get_name(), exc_info=error)
        if isinstance(error, Exception):
            self._fanout.fail(error)
