"""The boundary of a decision: the events that it is made on, and what must not come in between."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

from aiostore.engine import Question
from aiostore.errors import AppendConditionFailed, ConcurrencyConflict, EventStoreError
from aiostore.events import Event, attach_types
from aiostore.query import AppendCondition, Query
from aiostore.store import EventStore

S = TypeVar("S")

Evolve = Callable[[S, Iterable[Event]], S]


class Folded(Generic[S]):
    """A state, and how far it has come."""

    __slots__ = ("position", "state", "taken_count", "version")

    def __init__(self, state: S, version: int = 0, position: int = 0) -> None:
        self.state = state
        self.version = version
        """Of the stream; 0 over a query."""
        self.position = position
        """Every event of the boundary up to this event_id is in the state."""
        self.taken_count = 0
        """So many events were taken since the beginning or the snapshot."""

    def take(self, evolve: Evolve[S], events: Sequence[Event]) -> None:
        """Take the events, in order."""
        self.state = evolve(self.state, events)
        self.taken_count += len(events)


class Boundary(ABC):
    """Which events a decision is made on."""

    def __init__(self, store: EventStore, query: Query | None = None) -> None:
        self.store = store
        self.query = query

    @property
    @abstractmethod
    def key(self) -> str:
        """What tells it from others of its decider."""

    @abstractmethod
    async def read_on(self, folded: Folded[Any], evolve: Evolve[Any], last: Event | None = None) -> None:
        """Take what is new: all there is as of now, or up to the ``last`` event."""

    @abstractmethod
    def take(self, folded: Folded[Any], evolve: Evolve[Any], stored: Sequence[Event]) -> None:
        """Take what was just stored on condition that nothing came in between."""

    @abstractmethod
    def is_next(self, folded: Folded[Any], event: Event) -> bool:
        """Whether the event surely is the next after those taken."""

    @abstractmethod
    def is_conflict(self, error: EventStoreError) -> bool:
        """Whether the error says that something came in between."""

    async def stored(self, key: tuple[str, str]) -> Sequence[Event] | None:
        """The events that an idempotency key stands with, as (stream_id, key)."""
        engine, _ = self.store._parts()
        events = (await engine.facts(Question(idempotency_key=key))).stored
        if events is not None and self.store._types is not None:
            attach_types(events, self.store._types)
        return events


class StreamBoundary(Boundary):
    """A stream."""

    def __init__(self, store: EventStore, stream_id: str) -> None:
        super().__init__(store)
        self.stream_id = stream_id

    @property
    def key(self) -> str:
        """By the stream."""
        return f"stream/{self.stream_id}"

    async def read_on(self, folded: Folded[Any], evolve: Evolve[Any], last: Event | None = None) -> None:
        """Read the stream on."""
        to_version = None if last is None else last.version
        reader = self.store.read_stream(self.stream_id, from_version=folded.version + 1, to_version=to_version)
        async for events in reader.batches():
            self.take(folded, evolve, events)

    def take(self, folded: Folded[Any], evolve: Evolve[Any], stored: Sequence[Event]) -> None:
        """Take all of them."""
        if stored:
            folded.take(evolve, stored)
            folded.version = stored[-1].version
            folded.position = stored[-1].event_id

    def is_next(self, folded: Folded[Any], event: Event) -> bool:
        """By the version."""
        return event.version == folded.version + 1

    def is_conflict(self, error: EventStoreError) -> bool:
        """The stream has another version."""
        return isinstance(error, ConcurrencyConflict)


class QueryBoundary(Boundary):
    """All events that match a query."""

    def __init__(self, store: EventStore, query: Query) -> None:
        super().__init__(store, query)
        self._query = query

    @property
    def key(self) -> str:
        """The query itself makes the difference, see `query`."""
        return "query"

    def condition(self, folded: Folded[Any]) -> AppendCondition:
        """That nothing new matches."""
        return AppendCondition(self._query, after=folded.position)

    async def read_on(self, folded: Folded[Any], evolve: Evolve[Any], last: Event | None = None) -> None:
        """Read the log on by the query; the position is the head that the read saw."""
        up_to = None if last is None else last.event_id
        reader = self.store.read_all(after=folded.position, up_to=up_to, query=self._query)
        async for events in reader.batches():
            folded.take(evolve, events)
            folded.position = events[-1].event_id
        folded.position = max(folded.position, reader.head if up_to is None else up_to)

    def take(self, folded: Folded[Any], evolve: Evolve[Any], stored: Sequence[Event]) -> None:
        """Take those that match."""
        if stored:
            folded.take(evolve, [event for event in stored if self._query.matches(event)])
            folded.position = stored[-1].event_id

    def is_next(self, folded: Folded[Any], event: Event) -> bool:
        """By the event_id: then nothing at all came in between."""
        return event.event_id == folded.position + 1

    def is_conflict(self, error: EventStoreError) -> bool:
        """A further event matches."""
        return isinstance(error, AppendConditionFailed)
