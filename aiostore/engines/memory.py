"""The engine in memory: the reference that the others are held against."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from aiostore.engine import (
    FIRST_TIMESTAMP,
    PAGE_EVENTS,
    Engine,
    Facts,
    Head,
    Page,
    Plan,
    Question,
    Saving,
    Selection,
    State,
)
from aiostore.engines.postings import Postings, bounds, candidates, stream_places
from aiostore.errors import StateConflict
from aiostore.events import Event, copies, copy_event

EXAMINED_MAX = 2000
"""So many candidates are looked at for one page."""


class MemoryEngine(Engine):
    """Keeps the events in a list; they end with the process."""

    durable = False

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._postings = Postings()
        self._keys: dict[tuple[str, str], Sequence[Event]] = {}
        self._states: dict[str, State] = {}

    @property
    def location(self) -> str:
        return "memory"

    async def open(self) -> Head:
        return Head(0, FIRST_TIMESTAMP)

    async def aclose(self) -> None:
        self._events = []
        self._postings = Postings()
        self._keys = {}
        self._states = {}

    async def commit(self, plan: Plan) -> None:
        for commit in plan.commits:
            assert commit.events[0].event_id == len(self._events) + 1, "positions are dense"
            self._events.extend(commit.events)
            self._postings.add_all(commit.events)
            if commit.idempotency_key is not None:
                self._keys[commit.events[0].stream_id, commit.idempotency_key] = commit.events

    async def facts(self, question: Question) -> Facts:
        head = len(self._events)
        versions = {stream_id: self._postings.count(stream_id) for stream_id in question.streams}
        stored = match = None
        if question.idempotency_key is not None and question.idempotency_key in self._keys:
            stored = copies(self._keys[question.idempotency_key])
        if question.condition is not None:
            match = await self.first_match(question.condition, head)
        return Facts(head, versions, stored, match)

    async def read(self, selection: Selection, cursor: int | None = None, max_events: int = PAGE_EVENTS) -> Page:
        query = selection.query
        found: list[Event] = []
        for examined, event_id in enumerate(self._ids(selection, cursor)):
            if len(found) == max_events or examined == EXAMINED_MAX:
                return Page(found, cursor)
            event = self._events[event_id - 1]
            if query is None or query.matches(event):
                found.append(copy_event(event))
            cursor = event_id
        return Page(found, None)

    def _ids(self, selection: Selection, cursor: int | None) -> Iterable[int]:
        if selection.stream_id is None:
            low, high = bounds(selection, cursor)
            return candidates([self._postings], selection.query, low, high, backwards=selection.backwards)
        places = stream_places([self._postings], selection.stream_id, selection, cursor)
        return places.walk(selection.backwards)

    async def first_since(self, timestamp: str, head: int) -> int:
        return bisect_left(self._events, timestamp, hi=head, key=lambda event: event._timestamp) + 1

    async def load_state(self, key: str) -> State | None:
        return self._states.get(key)

    async def load_states(self, prefix: str, *, after: str = "", limit: int = PAGE_EVENTS) -> dict[str, State]:
        keys = sorted(key for key in self._states if key > after and key.startswith(prefix))
        return {key: self._states[key] for key in keys[:limit]}

    async def save_states(self, position: int, savings: Sequence[Saving]) -> Sequence[int]:
        assert 0 <= position <= len(self._events), "a state is made of events that are there"
        kept = [self._states.get(saving.key) for saving in savings]
        revisions = [state.revision if state else 0 for state in kept]
        for (key, _, expected), revision in zip(savings, revisions, strict=True):
            if expected not in (None, revision):
                raise StateConflict(key, expected, revision)
        saved = []
        for (key, value, _), revision in zip(savings, revisions, strict=True):
            if value is None:
                self._states.pop(key, None)
                saved.append(0)
            else:
                self._states[key] = State(position, bytes(value), revision + 1)
                saved.append(revision + 1)
        return saved
