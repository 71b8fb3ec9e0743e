"""The contract between the store and an engine: what keeps the events, and what answers questions about them.

An engine knows nothing of tasks that wait, subscriptions or listeners. The store calls `Engine.commit` one at a time;
questions and reads may come at any time, also during a commit, and see only what was committed before.
"""

from __future__ import annotations

import asyncio
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, NamedTuple

from aiostore.drafts import Append
from aiostore.errors import EventStoreError, StoreCorrupt
from aiostore.events import Event
from aiostore.query import AppendCondition, Query

FIRST_TIMESTAMP = "0001-01-01T00:00:00.000000Z"
"""The timestamp of the head of an empty store."""

PAGE_EVENTS = 500
"""The default size of a page."""

DAMAGES_PASSED_MAX = 100
"""So many damaged places are gone past, on either side, to find an event that tells what time it was."""


class Head(NamedTuple):
    """The last committed event: its event_id (0 if there is none) and its timestamp as in the log."""

    event_id: int
    timestamp: str


class Selection(NamedTuple):
    """Which events to read, and in which order. All bounds hold at once; ``backwards`` only reverses the order."""

    up_to: int
    """event_id <= up_to; never beyond the head."""
    after: int = 0
    """event_id > after."""
    stream_id: str | None = None
    from_version: int = 1
    """version >= from_version; only with ``stream_id``."""
    to_version: int | None = None
    """version <= to_version; only with ``stream_id``."""
    query: Query | None = None
    backwards: bool = False


class Page(NamedTuple):
    """Some events of a selection, in its order.

    They are the reader's own. ``cursor`` goes into the next `Engine.read`; None says that nothing is left. Every event
    of the selection up to the cursor (from it, if backwards) was handed out, so that a page may well be empty.
    """

    events: list[Event]
    cursor: int | None


class Question(NamedTuple):
    """What an append must know to be judged."""

    streams: Sequence[str] = ()
    idempotency_key: tuple[str, str] | None = None
    """(stream_id, key)."""
    condition: AppendCondition | None = None


class Facts(NamedTuple):
    """The answers, as of the commit that ended with event ``head``."""

    head: int
    versions: Mapping[str, int] = MappingProxyType({})
    """The version of each stream asked for, 0 where there is none."""
    stored: Sequence[Event] | None = None
    """The commit that the idempotency key stands with, None where there is none."""
    match: int | None = None
    """The first event_id that matches the condition, None where there is none."""


class Commit(NamedTuple):
    """Events that are stored together or not at all; never empty."""

    events: Sequence[Event]
    idempotency_key: str | None
    """Its scope is the stream of the first event."""
    bytes_estimate: int = 0
    """Roughly what the events take in memory and in the log."""


class Plan(NamedTuple):
    """A group: commits to be written at once, in order, with their places in the log decided. Never empty."""

    commits: Sequence[Commit]


Outcome = Sequence[Event] | EventStoreError
"""What an append comes to: the events stored, now or with the same key before, or the reason why none are."""


class Proposal(NamedTuple):
    """An append that a shared engine is to judge, and what is known of its condition."""

    append: Append
    searched_up_to: int = 0
    """Its condition was compared with all events up to this one…"""
    match: int | None = None
    """…and this was the first to match, None if none did."""


class Committed(NamedTuple):
    """What a shared engine did with proposals."""

    previous_head: int
    """The head before the first commit of these."""
    commits: Sequence[Commit]
    """Those that passed and have events, in order, right above the previous head."""
    outcomes: Sequence[Outcome]
    """What each proposal came to, in order. Events are the store's own, as those of the commits."""


class State(NamedTuple):
    """Something derived from the events up to ``position``, kept beside them: a snapshot, a checkpoint."""

    position: int
    """An event_id, 0 for none: what the value was made of."""
    value: bytes
    revision: int = 0
    """How often it was saved."""
    fits: bool = True
    """Whether the log has the very event at the position that it had when this was saved; if not, it is worthless."""


class Saving(NamedTuple):
    """A state to be kept in place of what is kept under its key."""

    key: str
    value: bytes | None
    """None: nothing is kept any more."""
    expected_revision: int | None = None
    """That of what is replaced, 0 for nothing, None for whatever it is."""


def prefix_end(prefix: str) -> str | None:
    """The first text behind all that begin with the prefix, by code points; None if there is none."""
    for length in range(len(prefix), 0, -1):
        last = ord(prefix[length - 1])
        if last < sys.maxunicode:
            following = 0xE000 if last == 0xD7FF else last + 1  # what lies between is no text
            return prefix[: length - 1] + chr(following)
    return None


class Engine(ABC):
    """What keeps the events. Every method but `abandon` is called in the loop that opened it."""

    dense_positions: ClassVar[bool] = True
    """Whether event_ids have no gaps."""
    durable: ClassVar[bool] = True
    """Whether events outlive the process."""
    shared: ClassVar[bool] = False
    """Whether other processes append too: then it has `commit_shared`, and not `commit`."""

    @property
    @abstractmethod
    def location(self) -> str:
        """What a person would call this store: its path, its URL without a password, ``memory``."""

    @property
    def followed(self) -> bool:
        """Whether others append, while it is open: then it has `commits_after` and `changed`."""
        return self.shared

    @property
    def read_only(self) -> bool:
        """Whether `commit` is refused."""
        return False

    @abstractmethod
    async def open(self) -> Head:
        """Take hold of what is stored, recovering what a crash left; called once, before all else.

        A failed or cancelled `open` leaves nothing held. Raises `StoreLocked`, `StoreCorrupt`, `EngineUnsupported`, and
        `EngineUnavailable` for whatever else is in the way, a full disk too.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Let go of everything; after the last commit has ended. Again is nothing. Finishes even when cancelled."""

    @abstractmethod
    async def commit(self, plan: Plan) -> None:
        """Store all commits of the plan, durably, or none: when this returns, facts and reads show them.

        Raises `StoreFull` where nothing was stored and a later commit may work, `StoreFailed` where the outcome is
        unknown and no later commit will work. Cancellation never leaves it half done: where the write has begun, this
        returns (or raises) as if nothing were, and the cancellation is delivered at the task's next await;
        CancelledError out of here says that nothing was stored.
        """

    # Engines that are shared with other processes judge appends themselves.

    async def commit_shared(self, proposals: Sequence[Proposal], timestamp: str) -> Committed:
        """Judge the proposals in order and store what passes, durably; all in one step, as `commit`.

        None of them depends on what another one stores (`judging.depends_on`). Each is judged: key, then
        ``expected_version``, then condition, which is compared with what came after ``searched_up_to``.
        ``timestamp``: that of the new events, where it is not before the last one's.

        Raises what `commit` does, `OutcomeUnknown` where the connection went and it may or may not be stored, and
        `EngineUnavailable` where nothing was stored.
        """
        raise NotImplementedError

    # Engines that are followed tell what others have appended.

    async def commits_after(self, after: int) -> Sequence[Commit]:
        """The next whole commits above event ``after``, in order, of a bounded number of bytes; empty at the head.

        A commit of others may be cut where it is larger than that bound. Raises `EngineUnavailable`, `StoreClosed`,
        `StoreCorrupt`.
        """
        raise NotImplementedError

    async def changed(self, after: int) -> None:
        """Return when there may be commits above event ``after``, at once where it knows of some. May be cancelled.

        Spurious returns are allowed. Of this engine's own commits it need not tell.
        It copes with lost connections by itself, and raises nothing but `StoreClosed`.
        """
        raise NotImplementedError

    @abstractmethod
    async def facts(self, question: Question) -> Facts:
        """Answer the question as of the last commit."""

    @abstractmethod
    async def read(self, selection: Selection, cursor: int | None = None, max_events: int = PAGE_EVENTS) -> Page:
        """The next page of the selection, of at most ``max_events`` events and a bounded number of bytes.

        Work per call is bounded, so that a page may be empty without being the last. Raises `StoreCorrupt` instead of
        serving or skipping what is damaged.
        """

    async def first_match(self, condition: AppendCondition, up_to: int) -> int | None:
        """The first event_id up to ``up_to`` that matches the condition, found by reading; for `facts`."""
        selection = Selection(up_to=up_to, after=condition.after or 0, query=condition.query)
        page = await self.read(selection)
        while not page.events and page.cursor is not None:
            await asyncio.sleep(0)  # a long search must not keep the loop to itself
            page = await self.read(selection, page.cursor)
        return page.events[0].event_id if page.events else None

    async def first_since(self, timestamp: str, head: int) -> int:
        """The first event_id up to ``head`` whose event is not before the timestamp (as in the log); head + 1 if none.

        Timestamps never go back, so that it is found by halving. Raises `StoreCorrupt` only where the events that are
        whole leave it open, and what `read` raises.
        """
        low, high = 1, head + 1  # those below low are before the timestamp, those from high on are not
        while low < high:
            middle = (low + high) // 2
            try:
                event = await self.first(Selection(after=middle - 1, up_to=high - 1))
            except StoreCorrupt as error:
                low, high = await self._past_damage(timestamp, low, high, middle, error)
            else:
                if event is not None and event._timestamp < timestamp:
                    low = event.event_id + 1
                else:
                    high = middle
        return low

    async def _past_damage(
        self, timestamp: str, low: int, high: int, middle: int, error: StoreCorrupt
    ) -> tuple[int, int]:
        """`first_since` where the event in the middle is damaged: what its neighbours say."""
        first, last = min(middle, error.first_event_id or middle), max(middle, error.last_event_id)
        for _ in range(DAMAGES_PASSED_MAX):
            if last + 1 >= high:
                break
            try:
                event = await self.first(Selection(after=last, up_to=high - 1))
            except StoreCorrupt as further:
                last = max(last + 1, further.last_event_id)
                continue
            if event is not None and event._timestamp < timestamp:
                return event.event_id + 1, high
            high = last + 1
            break
        for _ in range(DAMAGES_PASSED_MAX):
            if first <= low:
                break
            try:
                event = await self.first(Selection(after=low - 1, up_to=first - 1, backwards=True))
            except StoreCorrupt as further:
                first = min(first - 1, further.first_event_id or first)
                continue
            if event is None or event._timestamp < timestamp:
                break
            return low, event.event_id
        raise error

    async def first(self, selection: Selection) -> Event | None:
        """The first event of the selection, None if it has none."""
        page = await self.read(selection, None, 1)
        while not page.events and page.cursor is not None:
            await asyncio.sleep(0)
            page = await self.read(selection, page.cursor, 1)
        return page.events[0] if page.events else None

    @abstractmethod
    async def load_state(self, key: str) -> State | None:
        """What was last saved under the key, None if nothing was.

        Raises `StoreCorrupt`, `EngineUnavailable`, `EngineUnsupported` (kept by a later version).
        """

    @abstractmethod
    async def load_states(self, prefix: str, *, after: str = "", limit: int = PAGE_EVENTS) -> dict[str, State]:
        """The states whose keys begin with the prefix and are above ``after``, by key, the first ``limit`` of them.

        Keys are ordered by their code points. Raises as `load_state` does.
        """

    async def save_state(self, key: str, position: int, value: bytes, *, expected_revision: int | None = None) -> int:
        """Keep one state, see `save_states`; returns its new revision."""
        return (await self.save_states(position, [Saving(key, value, expected_revision)]))[0]

    @abstractmethod
    async def save_states(self, position: int, savings: Sequence[Saving]) -> Sequence[int]:
        """Keep all these states, made of the events up to ``position``; returns their new revisions, 0 where none is.

        All of them or none, in one step, and as durably as events are; never before the events up to the position are
        as durable. Position 0 to the head. Each key once. `StateConflict` names the first of which another revision is
        kept than the expected one, and nothing is saved. Cancelled, they may or may not be saved.

        Raises `StoreFull`, `StoreFailed`, `StoreCorrupt`, `EngineUnavailable`, `EngineUnsupported` (opened to read).
        """

    def abandon(self) -> None:  # noqa: B027 (an engine that holds nothing has nothing to let go of)
        """Close this process's copies of whatever is held, in a forked child: synchronous, without a trace on disk."""
