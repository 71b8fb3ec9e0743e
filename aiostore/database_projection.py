"""Projections into a database of the user's: the position moves in the transaction that has what the events did."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, overload

from aiostore.context import in_hand
from aiostore.errors import ProjectionConflict
from aiostore.events import Event
from aiostore.kept_projection import HandlerFailed, KeptProjection
from aiostore.query import Query
from aiostore.store import EventStore

X = TypeVar("X")

DatabaseHandler = Callable[[X, Event], Awaitable[None] | None]
"""``handler(transaction, event)``, plain or async."""

F = TypeVar("F", bound=DatabaseHandler[Any])


class Checkpoint(NamedTuple):
    """How far a projection has come, as its database keeps it: one row for each name."""

    position: int
    """An event_id: every matching event up to it is in the database."""
    mark: str
    """What tells that event from any other at its place, at most 27 characters of ASCII."""


class Target(Protocol[X]):
    """What a `DatabaseProjection` writes into; made by whoever knows the database, in a few lines.

    It keeps a row for each projection: its name (primary key), the position (an integer of 64 bits), the mark (text).
    """

    async def load(self, name: str) -> Checkpoint | None:
        """What was last saved and committed under the name, None if nothing was."""
        ...

    def begin(self) -> AbstractAsyncContextManager[X]:
        """A transaction, as what the handlers get: committed behind the block, undone where that raises."""
        ...

    async def save(self, transaction: X, name: str, checkpoint: Checkpoint, previous: Checkpoint | None) -> bool:
        """Replace ``previous`` (None: no row yet) within the transaction; False, and nothing, if it is not there.

        It is the first thing done in a transaction: where that locks the row, another process waits for the commit, and
        then gets False. ``UPDATE … SET position = …, mark = … WHERE name = … AND position = …`` does it.
        """
        ...


class DatabaseProjection(KeptProjection, Generic[X]):
    """Writes what events come to into a database, exactly once: in one transaction with the position.

    ``name``: under which the target keeps the position; for a new version, give a new name and new tables, and switch
    over when its `lag` is 0. ``target``: see `Target`. ``query``: only these events are read; without it all are, and
    those of types without a handler passed over. ``batch_events``: at most so many events in one transaction.

    `catch_up` takes what there is. ``async with`` follows the store, in a task of its own: appends never wait for the
    database. Entered, it has loaded the position, and begins; `wait_for` returns when an event is committed. What fails
    there, the database or a handler, is undone and tried again after 0.1 s, 0.2 s, 0.4 s… (30 s at most), up to
    ``attempts`` times without a step forward; then it stops, with the error logged and kept as `error`, and `catch_up`
    goes on.

    Exactly once holds for what is done through the transaction. Two processes may run the same projection: one of them
    gets `ProjectionConflict`, and what it did in that transaction is undone. A target whose checkpoint is not of this
    log (it was set back, or is another one) is `ProjectionStopped`; nothing is written.
    """

    def __init__(
        self,
        name: str,
        store: EventStore,
        target: Target[X],
        *,
        query: Query | None = None,
        batch_events: int = 100,
        attempts: int = 10,
    ) -> None:
        super().__init__(name, store, query=query, batch_events=batch_events, attempts=attempts)
        for method in ("load", "begin", "save"):
            if not callable(getattr(target, method, None)):
                raise TypeError(f"the target must have load, begin and save (see Target), not {target!r}")
        self._target = target
        self._checkpoint: Checkpoint | None = None

    @overload
    def when(self, event_type: str, handler: DatabaseHandler[X]) -> DatabaseHandler[X]: ...
    @overload
    def when(self, event_type: str, handler: None = None) -> Callable[[F], F]: ...
    def when(self, event_type: str, handler: Any = None) -> Any:
        """Have ``handler(transaction, event)`` called with each event of the type; also a decorator.

        Plain or async. What it raises undoes the transaction; those before the event are taken in one of their own, and
        the projection stops at the event. One handler for each type, else ValueError; RuntimeError if events of the
        type were passed over already. Returns the handler.
        """
        if handler is None:
            return lambda function: self.when(event_type, function)
        self._register(event_type, handler)
        return handler

    async def _load(self) -> None:
        checkpoint = await self._target.load(self._name)
        if checkpoint is None:
            self._position = self._kept_position = 0
        else:
            checkpoint = Checkpoint(*checkpoint)
            found = await self._store.read_all(after=checkpoint.position - 1, up_to=checkpoint.position).to_list()
            if [event._timestamp for event in found] != [checkpoint.mark]:
                raise self._stopped(
                    f"its target is at event {checkpoint.position} of a log that had another one there, or that went "
                    "further: the log was set back, or is another one; make the tables anew from the first event"
                )
            if checkpoint != self._checkpoint:
                self._position = checkpoint.position
            self._kept_position = checkpoint.position
        self._checkpoint = checkpoint

    async def _apply(self, events: Sequence[Event]) -> int:
        checkpoint = Checkpoint(events[-1].event_id, events[-1]._timestamp)
        failed: HandlerFailed | None = None
        done = False
        try:
            async with self._target.begin() as transaction:
                if not await self._target.save(transaction, self._name, checkpoint, self._checkpoint):
                    raise ProjectionConflict(
                        self._name, self._position, "its target has moved on: another process runs it too"
                    )
                for place, event in enumerate(events):
                    handler = self._handlers.get(event.event_type)
                    if handler is None:
                        continue
                    try:
                        result = handler(transaction, event)
                        if inspect.isawaitable(result):
                            await in_hand(event, result)
                    except Exception as error:
                        failed = HandlerFailed(place, error)
                        raise
                done = True
        except Exception:
            if failed is None:
                raise
        if failed is not None:
            raise failed
        if not done:
            raise RuntimeError("what is raised in a transaction must come out of the target's begin()")
        self._checkpoint = checkpoint
        return len(events)
