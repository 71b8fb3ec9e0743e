"""An engine as somebody else may write it: a list of events on a shelf, which outlives it."""

from __future__ import annotations

from collections.abc import Sequence

from aiostore import Engine, Event, StateConflict
from aiostore.engine import FIRST_TIMESTAMP, PAGE_EVENTS, Facts, Head, Page, Plan, Question, Saving, Selection, State
from aiostore.events import copies


class Shelf:
    """What is kept."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.keys: dict[tuple[str, str], Sequence[Event]] = {}
        self.states: dict[str, State] = {}


class TinyEngine(Engine):
    """Looks at every event, each time."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf

    @property
    def location(self) -> str:
        return "tiny"

    async def open(self) -> Head:
        events = self.shelf.events
        return Head(len(events), events[-1]._timestamp) if events else Head(0, FIRST_TIMESTAMP)

    async def aclose(self) -> None:
        pass

    async def commit(self, plan: Plan) -> None:
        for commit in plan.commits:
            self.shelf.events.extend(commit.events)
            if commit.idempotency_key is not None:
                self.shelf.keys[commit.events[0].stream_id, commit.idempotency_key] = commit.events

    async def facts(self, question: Question) -> Facts:
        head = len(self.shelf.events)
        streams = [event.stream_id for event in self.shelf.events]
        versions = {stream_id: streams.count(stream_id) for stream_id in question.streams}
        stored = self.shelf.keys.get(question.idempotency_key) if question.idempotency_key else None
        match = None if question.condition is None else await self.first_match(question.condition, head)
        return Facts(head, versions, None if stored is None else copies(stored), match)

    async def read(self, selection: Selection, cursor: int | None = None, max_events: int = PAGE_EVENTS) -> Page:
        found = [event for event in self.shelf.events if self.selected(event, selection, cursor)]
        if selection.backwards:
            found.reverse()
        page = copies(found[:max_events])
        return Page(page, page[-1].event_id if len(found) > max_events else None)

    def selected(self, event: Event, selection: Selection, cursor: int | None) -> bool:
        if cursor is not None and (event.event_id >= cursor if selection.backwards else event.event_id <= cursor):
            return False
        if not selection.after < event.event_id <= selection.up_to:
            return False
        if selection.query is not None and not selection.query.matches(event):
            return False
        if selection.stream_id is None:
            return True
        to_version = event.version if selection.to_version is None else selection.to_version
        return event.stream_id == selection.stream_id and selection.from_version <= event.version <= to_version

    async def load_state(self, key: str) -> State | None:
        return self.shelf.states.get(key)

    async def load_states(self, prefix: str, *, after: str = "", limit: int = PAGE_EVENTS) -> dict[str, State]:
        found = sorted(key for key in self.shelf.states if key.startswith(prefix) and key > after)
        return {key: self.shelf.states[key] for key in found[:limit]}

    async def save_states(self, position: int, savings: Sequence[Saving]) -> Sequence[int]:
        states = dict(self.shelf.states)
        for key, value, expected_revision in savings:
            revision = states[key].revision if key in states else 0
            if expected_revision is not None and expected_revision != revision:
                raise StateConflict(key, expected_revision, revision)
            states.pop(key, None)
            if value is not None:
                states[key] = State(position, bytes(value), revision + 1)
        self.shelf.states = states
        return [states[saving.key].revision if saving.value is not None else 0 for saving in savings]
