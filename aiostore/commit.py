"""The commit path: appends are staged, and one task commits them in groups under the store's lock."""

from __future__ import annotations

import asyncio
import copy
import logging
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from aiostore.drafts import Append
from aiostore.engine import Commit, Engine, Facts, Plan, Proposal, Question
from aiostore.errors import EventStoreError, StoreClosed, StoreFailed
from aiostore.events import Event
from aiostore.fanout import Fanout
from aiostore.judging import NOTHING_KNOWN, Independents, judge, question_of, suffices
from aiostore.limits import Limits
from aiostore.tailer import Tailer
from aiostore.timestamps import timestamp_text
from aiostore.worker import Worker

logger = logging.getLogger("aiostore")

RECENT_EVENTS = 1000
"""So many events a shared engine compares with a condition by itself, while others wait."""

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The time of the system's clock."""
    return datetime.now(UTC)


class Staged:
    """An append that waits for its group. It is given up by cancelling its future."""

    __slots__ = ("append", "facts", "from_handler", "from_wait_body", "future")

    def __init__(
        self, append: Append, future: asyncio.Future[Sequence[Event]], *, from_handler: bool, from_wait_body: bool
    ) -> None:
        self.append = append
        self.facts: Facts = NOTHING_KNOWN
        self.future = future
        self.from_handler = from_handler
        self.from_wait_body = from_wait_body

    def fail(self, error: BaseException) -> None:
        """Let the append raise an error of its own, of which the traceback is its own too."""
        if not self.future.done():
            if isinstance(error, EventStoreError):
                own = copy.copy(error)
                own.__cause__ = error.__cause__
            else:
                own = EventStoreError(
                    f"the clock or the engine failed, whether this append is stored is unknown: {error!r}"
                )
                own.__cause__ = error
            self.future.set_exception(own)
            self.future.exception()  # a caller cancelled in this very moment will not look at it: that is no mistake


class Committer:
    """Takes staged appends in groups: judges them, has the engine store them at once, publishes, tells the callers.

    It runs in a task of its own, only while anything is staged: whatever becomes of the tasks that append, a write in
    hand goes on, and no two overlap.
    """

    def __init__(self, engine: Engine, limits: Limits, clock: Clock) -> None:
        self._engine = engine
        self._limits = limits
        self._clock = clock
        self._fanout: Fanout
        self._timestamp: str
        self._lock = asyncio.Lock()
        self._staged: deque[Staged] = deque()
        self._in_hand: Sequence[Staged] = ()
        self._gate = asyncio.Event()
        self._worker = Worker("aiostore committer", self._run, self._ended)
        self._tailer: Tailer | None = None
        self._given_up = 0
        self._failure: StoreFailed | None = None
        self._closed = False

    def start(self, fanout: Fanout, timestamp: str) -> None:
        """Begin to take appends: publish to ``fanout``, with timestamps not before ``timestamp``."""
        self._loop = asyncio.get_running_loop()
        self._fanout = fanout
        self._timestamp = timestamp
        if self._engine.followed:
            self._tailer = Tailer(self._engine, fanout, self._publish)

    @property
    def staged_count(self) -> int:
        """How many appends wait for their group."""
        return len(self._staged)

    async def submit(self, append: Append, *, from_wait_body: bool) -> Sequence[Event]:
        """Have the append committed; returns the stored events, which are the store's own.

        Cancelled before its group is formed, it is not stored; later, it may be.
        """
        future: asyncio.Future[Sequence[Event]] = self._loop.create_future()
        from_handler = self._fanout.listeners.calls_this_context()
        staged = Staged(append, future, from_handler=from_handler, from_wait_body=from_wait_body)
        if self._tailer is not None:
            staged.facts = await self._search(append)
        elif not suffices(staged.facts, append, self._fanout.ring):
            staged.facts = await self._engine.facts(question_of(append))
        if self._closed:
            raise StoreClosed
        if self._failure is not None:
            raise copy.copy(self._failure)
        self._staged.append(staged)
        self._worker.start()
        if self._may_pass(staged):  # if not, to wake the committer for each would cost it a look at all the others
            self.look_again()
        try:
            return await future
        except asyncio.CancelledError:
            self._given_up += 1
            if self._given_up > len(self._staged) // 2:  # while groups are held back, they must not pile up
                self.look_again()
            raise

    async def _search(self, append: Append) -> Facts:
        """What a shared engine need not search, under its lock, for the condition of an append."""
        condition = append.condition
        if condition is None:
            return NOTHING_KNOWN
        if condition.after is not None and condition.after >= self._fanout.head - RECENT_EVENTS:
            return Facts(condition.after)
        return await self._engine.facts(Question(condition=condition))

    def _may_pass(self, staged: Staged) -> bool:
        """Whether nothing holds the append back. What a handler appends never waits: the backlog waits for it."""
        fanout = self._fanout
        if staged.from_handler:
            return True
        return not fanout.backlog_full and (staged.from_wait_body or not fanout.held_by_subscriptions)

    def look_again(self) -> None:
        """Note that something was staged, or that what held groups back may be gone."""
        self._gate.set()
        if self._tailer is not None:
            self._tailer.look_again()

    async def aclose(self) -> None:
        """Refuse what is staged with `StoreClosed`, and wait until the write in hand is published."""
        self._closed = True
        self._refuse_staged()
        self.look_again()
        await self._worker.drain()
        if self._tailer is not None:
            await self._tailer.aclose()

    def _refuse_staged(self) -> None:
        while self._staged:
            self._staged.popleft().fail(StoreClosed())

    def _ended(self, task: asyncio.Task[None]) -> None:
        in_hand, self._in_hand = self._in_hand, ()
        self._fanout.turns.end()
        error = None if task.cancelled() else task.exception()
        if error is not None:
            logger.critical("the committer failed", exc_info=error)
            for staged in (*in_hand, *self._staged):
                staged.fail(self._failure or error)
            self._staged.clear()
            return
        # Cancelled, it had nothing half done: the engine finishes what it has begun. The appends were not cancelled, or
        # their futures say so.
        self._staged.extendleft(staged for staged in reversed(in_hand) if not staged.future.done())
        if self._closed:
            self._refuse_staged()
        elif self._staged:
            self._worker.start()

    async def _run(self) -> None:
        while self._staged:
            if self._tailer is not None:
                await self._tailer.shown()
            async with self._lock:
                self._in_hand = await self._form_group()
                await (self._commit(self._in_hand) if self._tailer is None else self._commit_shared(self._tailer))
                self._in_hand = ()
            # Callers that were just answered stage their next append before the next group is formed. Where listeners
            # hold them, they are answered one step later. Measured: without this, groups are half as large.
            await asyncio.sleep(0)
            if self._fanout.listeners.delivering:
                await asyncio.sleep(0)

    async def _form_group(self) -> Sequence[Staged]:
        """The staged appends, in order, that make up the next group; waits while they are held back."""
        while True:
            group = self._take_group()
            if group or not self._staged:
                self._fanout.turns.begin()
                return group
            self._fanout.turns.end()
            self._gate.clear()
            await self._gate.wait()

    def _take_group(self) -> Sequence[Staged]:
        limits = self._limits
        self._given_up = 0
        group: list[Staged] = []
        left: deque[Staged] = deque()
        size = events_count = 0
        independents = Independents() if self._tailer is not None else None
        while self._staged:
            staged = self._staged.popleft()
            if staged.future.cancelled():
                continue
            if not self._may_pass(staged):
                left.append(staged)
                continue
            size += staged.append.size
            events_count += staged.append.events_count
            full = size > limits.group_bytes_max or events_count > limits.group_events_max
            # A shared engine judges the appends of a group as if each were alone.
            if (group and full) or (independents is not None and not independents.admit(staged.append)):
                self._staged.appendleft(staged)
                break
            group.append(staged)
        self._staged.extendleft(reversed(left))
        return group

    async def _commit(self, staged_group: Sequence[Staged]) -> None:
        ring = self._fanout.ring
        group = [
            staged
            for staged in staged_group
            if suffices(staged.facts, staged.append, ring) or await self._ask_again(staged)
        ]
        try:
            timestamp = self._next_timestamp()
        except Exception as error:
            for staged in group:
                staged.fail(error)
            return
        judgement = judge([(staged.append, staged.facts) for staged in group], ring, timestamp)
        if judgement.commits:
            if len(judgement.commits[0].events) > self._limits.group_events_max:  # long to judge, and long to store
                await asyncio.sleep(0)
            try:
                self._fanout.turns.give()
                await self._engine.commit(Plan(judgement.commits))
            except Exception as error:
                for staged in group:
                    staged.fail(error)
                return
            self._timestamp = timestamp
            self._publish(judgement.commits)
        for staged, outcome in zip(group, judgement.outcomes, strict=True):
            self._answer(staged, outcome)

    async def _commit_shared(self, tailer: Tailer) -> None:
        group = self._in_hand
        proposals = [Proposal(staged.append, max(staged.facts.head, 0), staged.facts.match) for staged in group]
        if not proposals:
            return
        try:
            self._fanout.turns.give()
            with tailer.committing():
                committed = await self._engine.commit_shared(proposals, self._next_timestamp())
        except Exception as error:
            for staged in group:
                staged.fail(error)
            return
        if committed.commits:
            self._timestamp = committed.commits[-1].events[-1]._timestamp

        def answer() -> None:
            for staged, outcome in zip(group, committed.outcomes, strict=True):
                if self._failure is not None:  # it could not be shown
                    staged.fail(self._failure)
                else:
                    self._answer(staged, outcome)

        tailer.take(committed, answer)

    def _publish(self, commits: Sequence[Commit]) -> None:
        try:
            self._fanout.publish(commits)
        except BaseException as error:
            # What is stored and what was shown no longer agree: nothing more may be built on it.
            self._failure = StoreFailed(self._engine.location, f"a stored commit could not be shown ({error!r})")
            self._failure.__cause__ = error
            raise

    async def _ask_again(self, staged: Staged) -> bool:
        """Renew the facts, which are too old for the ring; an append that cannot be judged fails alone."""
        try:
            staged.facts = await self._engine.facts(question_of(staged.append, staged.facts))
        except Exception as error:
            staged.fail(error)
        return not staged.future.done()

    def _answer(self, staged: Staged, outcome: Sequence[Event] | EventStoreError) -> None:
        if isinstance(outcome, EventStoreError):
            staged.fail(outcome)
        elif staged.future.done():
            pass  # its caller gave up; the append is stored all the same
        elif staged.from_handler:
            staged.future.set_result(outcome)
        else:
            self._fanout.listeners.release(staged.future, outcome)

    def _next_timestamp(self) -> str:
        return max(timestamp_text(self._clock()), self._timestamp)
