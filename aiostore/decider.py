"""Decisions: a state folded of events, a command, and the new events that are appended if nothing came in between."""

from __future__ import annotations

import asyncio
import copy
import inspect
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import methodcaller
from typing import Any, Generic, TypeVar, overload

import msgspec

from aiostore.boundary import Boundary, Folded, QueryBoundary, StreamBoundary
from aiostore.decision_snapshots import DecisionSnapshots
from aiostore.drafts import check_idempotency_key, check_stream_id
from aiostore.errors import AppendConditionFailed, ConcurrencyConflict, IdempotencyConflict
from aiostore.events import Event, EventLike, NewEvent, StreamAppend
from aiostore.limits import check_number
from aiostore.query import Query
from aiostore.reader import check_query
from aiostore.store import EventStore

ATTEMPTS = 10
"""So often a command is decided at most, unless told otherwise."""

BACKOFF_S = 0.001
"""After the first conflict, up to so long is waited; after each further one up to twice as long."""

BACKOFF_S_MAX = 0.25

C = TypeVar("C")
S = TypeVar("S")

Decided = EventLike | StreamAppend | Iterable[EventLike] | Iterable[StreamAppend] | None
"""What ``decide`` returns: events as `EventStore.append_batch` takes them, or over a query `StreamAppend`: one, several
or none."""


@dataclass(frozen=True, slots=True)
class Decision(Generic[S]):
    """What a command came to: the events that were stored, and the state after them."""

    events: tuple[Event, ...]
    """Those stored, in order; none where nothing was to be stored."""
    state: S
    """Made of all events of the boundary up to the last one stored; the caller's own."""
    version: int
    """That of the stream after them; 0 over a query."""
    position: int
    """The event_id up to which the state has every event of the boundary."""


class Decider(Generic[C, S]):
    """Decides commands on the state of a stream, or of all events of a query, and stores what is decided.

    ``initial()``, or a value (of which each execution has a copy of its own), is the state before the first event.
    ``evolve(state, event)``, plain, changes the state or returns the new one (None: it is still the same); with
    ``decoded=True`` it gets ``event.decode()`` instead, the typed object of the event. ``decide(command, state)``,
    plain or async, returns what is to be stored: events as `EventStore.append_batch` takes them, or for `execute_over`
    `StreamAppend`; a sequence, one alone, or None. It leaves the state as it is, and it is called again when others
    were faster: it must have no effects of its own. What it raises goes out as it is, and nothing is stored.

    ``snapshot_every``: after so many events that an execution had to read, the state is kept, and the next begins from
    there; then ``name`` says under which name, 1 to 200 bytes: give a new one when what ``evolve`` does changes.
    ``state_type``: what the state is, as of `Projection`; without it, it must be made of plain values. A snapshot that
    does not fit is discarded. They are saved in the background; where that fails, a log line says so.

    It holds nothing of a store: one decider may serve several stores and loops, for example as a constant of a module.

    Source: Jérémie Chassaing, "Functional Event Sourcing Decider" (2021).
    """

    @overload
    def __init__(
        self,
        initial: Callable[[], S],
        evolve: Callable[[S, Any], S | None],
        decide: Callable[[C, S], Decided | Awaitable[Decided]],
        *,
        name: str | None = None,
        state_type: Any = None,
        snapshot_every: int | None = None,
        decoded: bool = False,
    ) -> None: ...
    @overload
    def __init__(
        self,
        initial: S,
        evolve: Callable[[S, Any], S | None],
        decide: Callable[[C, S], Decided | Awaitable[Decided]],
        *,
        name: str | None = None,
        state_type: Any = None,
        snapshot_every: int | None = None,
        decoded: bool = False,
    ) -> None: ...
    def __init__(
        self,
        initial: Any,
        evolve: Callable[[S, Any], S | None],
        decide: Callable[[C, S], Any],
        *,
        name: str | None = None,
        state_type: Any = None,
        snapshot_every: int | None = None,
        decoded: bool = False,
    ) -> None:
        for role, function in (("evolve", evolve), ("decide", decide)):
            if not callable(function):
                raise TypeError(f"{role} must be callable, not {function!r}")
        if inspect.iscoroutinefunction(evolve):
            raise TypeError("evolve must be a plain function: what it needs to know must stand in the events")
        self._initial: Callable[[], Any] = initial if callable(initial) else lambda: copy.deepcopy(initial)
        self._evolve = evolve
        self._decide = decide
        self._decoded: Callable[[Event], Any] | None = methodcaller("decode") if decoded else None
        self._name = name
        self._snapshots: DecisionSnapshots | None = None
        if snapshot_every is not None:
            if name is None:
                raise TypeError("snapshot_every needs a name, under which the snapshots are kept")
            self._snapshots = DecisionSnapshots(name, state_type, check_number("snapshot_every", snapshot_every, 1))
            self._snapshots.encode(0, self._initial(), None)  # better now than at the first one that is due

    # --- what it is made of ---

    def initial(self) -> S:
        """The state before the first event, which nobody else has."""
        state: S = self._initial()
        return state

    def evolve(self, state: S, events: Iterable[Event]) -> S:
        """The state after the events; the one given may be changed."""
        evolve, decoded = self._evolve, self._decoded
        for event in events:
            new = evolve(state, event if decoded is None else decoded(event))
            if new is not None:
                state = new
        return state

    async def decide(self, command: C, state: S) -> list[Any]:
        """What the command comes to on the state, as a list; raises what ``decide`` raises."""
        decided: Any = self._decide(command, state)
        if hasattr(decided, "__await__"):
            decided = await decided
        return listed(decided)

    # --- executing ---

    async def execute(
        self,
        store: EventStore,
        stream_id: str,
        command: C,
        *,
        idempotency_key: str | None = None,
        attempts: int = ATTEMPTS,
        metadata: Mapping[str, Any] | None = None,
    ) -> Decision[S]:
        """Decide the command on the state of the stream, and store the events if the stream is still as it was read.

        If it is not, what came meanwhile is read and the command decided again, up to ``attempts`` times in all, each
        after a random pause of up to 1, 2, 4… 250 ms. Where nothing is decided, nothing is appended, and the answer is
        that of a moment during this call. ``metadata`` goes into that of each event, whose own keys stand above it.

        ``idempotency_key``: names the command; one whose key the stream has is not decided again, and the answer is
        that of the first time. Pass it where a command may be sent twice.

        Raises what ``decide`` and ``evolve`` raise, `ConcurrencyConflict` after the last attempt, and what reading and
        `EventStore.append_batch` raise. Cancelled, the events may or may not be stored, as with every append.
        """
        boundary = StreamBoundary(store, check_stream_id(stream_id))
        key = check_idempotency_key(idempotency_key)

        async def append(decided: list[Any], folded: Folded[S]) -> list[Event]:
            events = [_checked(event, metadata) for event in decided]
            return await store.append_batch(
                stream_id, events, expected_version=folded.version, idempotency_key=idempotency_key
            )

        return await self._execute(store, boundary, command, append, (stream_id, key) if key else None, attempts)

    async def execute_over(
        self,
        store: EventStore,
        query: Query,
        command: C,
        *,
        idempotency_key: tuple[str, str] | None = None,
        attempts: int = ATTEMPTS,
        metadata: Mapping[str, Any] | None = None,
    ) -> Decision[S]:
        """Decide the command on the state of all events of the query, whichever streams they stand in.

        The dynamic consistency boundary of https://dcb.events: ``decide`` returns `StreamAppend`, one or several, which
        are stored all or none, if no further event matches the query; else as `execute`. The new events need not match;
        those that do go into the state.

        ``idempotency_key``: ``(stream_id, key)``, where the stream must be the first that gets events, else ValueError;
        see `execute`.

        Raises what ``decide`` and ``evolve`` raise, `AppendConditionFailed` after the last attempt, and what reading
        and `EventStore.append_streams` raise, for example `ConcurrencyConflict` where ``decide`` expected a version.
        """
        if check_query(query) is None:
            raise TypeError("query must be a Query; Query() is every event")
        boundary = QueryBoundary(store, query)
        if idempotency_key is not None:
            scope, key = idempotency_key
            idempotency_key = check_stream_id(scope), check_idempotency_key(key) or ""

        async def append(decided: list[Any], folded: Folded[S]) -> list[Event]:
            appends = [_checked_append(part, metadata) for part in decided]
            first = next((part.stream_id for part in appends if part.events), None)
            if first is None:
                return []
            if idempotency_key is not None and idempotency_key[0] != first:
                raise ValueError(
                    f"idempotency_key is of stream {idempotency_key[0]!r}, but {first!r} gets events first"
                )
            return await store.append_streams(
                appends,
                condition=boundary.condition(folded),
                idempotency_key=None if idempotency_key is None else idempotency_key[1],
            )

        return await self._execute(store, boundary, command, append, idempotency_key, attempts)

    async def _execute(
        self,
        store: EventStore,
        boundary: Boundary,
        command: C,
        append: Callable[[list[Any], Folded[S]], Awaitable[list[Event]]],
        key: tuple[str, str] | None,
        attempts: int,
    ) -> Decision[S]:
        attempts_left = check_number("attempts", attempts, 1)
        folded = await self._begin(store, boundary)
        while True:
            await boundary.read_on(folded, self.evolve)
            # After the read: where the key stands nowhere by now, what was read is without the events of it.
            repeated = await self._repeated(boundary, key)
            if repeated is not None:
                return repeated
            decided = await self.decide(command, folded.state)
            try:
                stored = await append(decided, folded) if decided else []
                break
            except (ConcurrencyConflict, AppendConditionFailed) as conflict:
                attempts_left -= 1
                if not boundary.is_conflict(conflict):
                    raise
                if not attempts_left:
                    conflict.add_note(f"decided {attempts} times, and others were faster each time")
                    raise
                await asyncio.sleep(_pause_s(attempts - attempts_left))
            except IdempotencyConflict:  # the same command was stored meanwhile, decided otherwise
                repeated = await self._repeated(boundary, key)
                if repeated is None:
                    raise
                return repeated
        if key is not None and stored and not boundary.is_next(folded, stored[0]):
            # They may have been stored by the same command sent twice, with events of others before them.
            repeated = await self._repeated(boundary, key)
            assert repeated is not None, "it was just stored"
            return repeated
        return self._decision(store, boundary, folded, stored)

    async def _begin(self, store: EventStore, boundary: Boundary) -> Folded[S]:
        kept = None if self._snapshots is None else await self._snapshots.load(store, boundary)
        return Folded(self.initial()) if kept is None else Folded(*kept)

    async def _repeated(self, boundary: Boundary, key: tuple[str, str] | None) -> Decision[S] | None:
        """What the command of this key came to when it was stored; None if it was not."""
        stored = None if key is None else await boundary.stored(key)
        if not stored:
            return None
        folded = Folded(self.initial())
        await boundary.read_on(folded, self.evolve, stored[-1])
        return Decision(tuple(stored), folded.state, folded.version, folded.position)

    def _decision(
        self, store: EventStore, boundary: Boundary, folded: Folded[S], stored: Sequence[Event]
    ) -> Decision[S]:
        try:
            boundary.take(folded, self.evolve, stored)
        except Exception as error:
            error.add_note(f"the events were stored, the last as event {stored[-1].event_id}; evolve failed on them")
            raise
        if self._snapshots is not None:
            self._snapshots.save_if_due(store, boundary, folded)
        return Decision(tuple(stored), folded.state, folded.version, folded.position)

    async def flush(self, store: EventStore) -> None:
        """Return when the snapshots that are due in this store are saved, or could not be."""
        if self._snapshots is not None:
            await self._snapshots.flush(store)

    def __repr__(self) -> str:
        name = "" if self._name is None else f" {self._name!r}"
        return f"<Decider{name} of {getattr(self._decide, '__qualname__', self._decide)}>"


def _pause_s(attempt: int) -> float:
    """A random pause, up to a bound that doubles ("full jitter", M. Brooker, AWS Architecture Blog, 2015)."""
    bound = min(BACKOFF_S_MAX, BACKOFF_S * 2 ** (attempt - 1))
    return random.uniform(0, bound)  # noqa: S311 (chance has nothing to do with security here)


# What a decide function returns


def listed(decided: object) -> list[Any]:
    """What was decided as a list: of nothing, of one, or of several."""
    if decided is None:
        return []
    if isinstance(decided, tuple) and (hasattr(decided, "_fields") or (decided and isinstance(decided[0], str))):
        return [decided]  # one event, as (event_type, data)
    if isinstance(decided, Sequence | Iterator) and not isinstance(decided, str | bytes):
        return list(decided)
    return [decided]


def _checked(event: Any, metadata: Mapping[str, Any] | None) -> Any:
    """An event of a decision over a stream, with the metadata."""
    if isinstance(event, StreamAppend):
        raise TypeError("decide returned a StreamAppend: execute_over takes them, execute has one stream")
    if not metadata:
        return event
    if isinstance(event, NewEvent):
        return replace(event, metadata=_merged(metadata, event.metadata))
    if isinstance(event, tuple):
        if len(event) not in (2, 3):
            return event  # which the store refuses
        return event[0], event[1], _merged(metadata, event[2] if len(event) == 3 else None)
    return NewEvent(event, metadata=dict(metadata))  # an object; what is none is refused by the store


def _checked_append(part: Any, metadata: Mapping[str, Any] | None) -> StreamAppend:
    if not isinstance(part, StreamAppend):
        raise TypeError(f"for execute_over, decide returns StreamAppend, which name the stream, not {part!r:.80}")
    return StreamAppend(part.stream_id, [_checked(e, metadata) for e in listed(part.events)], part.expected_version)


def _merged(metadata: Mapping[str, Any], own: Any) -> dict[str, Any]:
    if own is None:
        return dict(metadata)
    return {**metadata, **(own if isinstance(own, Mapping) else msgspec.to_builtins(own))}
