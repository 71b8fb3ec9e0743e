"""An engine as somebody else may write it: a list of events that outlives it, by its name."""

from aiostore import Engine, StateConflict
from aiostore.engine import FIRST_TIMESTAMP, PAGE_EVENTS, Facts, Head, Page, State
from aiostore.events import copies


class Shelf:
    """What is kept."""

    def __init__(self):
        self.events = []
        self.keys = {}
        self.states = {}


class TinyEngine(Engine):
    """Looks at every event, each time."""

    def __init__(self, shelf):
        self.shelf = shelf

    @property
    def location(self):
        return "tiny"

    async def open(self):
        events = self.shelf.events
        return Head(len(events), events[-1]._timestamp) if events else Head(0, FIRST_TIMESTAMP)

    async def aclose(self):
        pass

    async def commit(self, plan):
        for commit in plan.commits:
            self.shelf.events.extend(commit.events)
            if commit.idempotency_key is not None:
                self.shelf.keys[commit.events[0].stream_id, commit.idempotency_key] = commit.events

    async def facts(self, question):
        head = len(self.shelf.events)
        streams = [event.stream_id for event in self.shelf.events]
        versions = {stream_id: streams.count(stream_id) for stream_id in question.streams}
        stored = self.shelf.keys.get(question.idempotency_key)
        match = None if question.condition is None else await self.first_match(question.condition, head)
        return Facts(head, versions, None if stored is None else copies(stored), match)

    async def read(self, selection, cursor=None, max_events=PAGE_EVENTS):
        found = [event for event in self.shelf.events if self.selected(event, selection, cursor)]
        if selection.backwards:
            found.reverse()
        page = copies(found[:max_events])
        return Page(page, page[-1].event_id if len(found) > max_events else None)

    def selected(self, event, selection, cursor):
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

    async def load_state(self, key):
        return self.shelf.states.get(key)

    async def save_state(self, key, position, value, *, expected_revision=None):
        kept = self.shelf.states.get(key)
        revision = kept.revision if kept else 0
        if expected_revision not in (None, revision):
            raise StateConflict(key, expected_revision, revision)
        self.shelf.states[key] = State(position, bytes(value), revision + 1)
        return revision + 1
