"""Publishing: one synchronous step after the write that shows a commit to readers, subscriptions and listeners."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from uuid import uuid4
from weakref import ref

from aiostore.engine import Commit
from aiostore.errors import EventStoreError
from aiostore.events import Event, Types, attach_types, event_size
from aiostore.inbox import Inbox, Interest
from aiostore.limits import Limits
from aiostore.listeners import Listeners
from aiostore.ring import Ring
from aiostore.turns import Turns

Defer = Callable[[Callable[[], None]], None]
"""Has a function called soon, in the loop: what is dropped is dropped anywhere, in any thread, by the collector."""


class _Ref(ref[Inbox]):
    """A weak reference that remembers where it is entered."""

    __slots__ = ("key", "places")

    key: int
    places: Sequence[tuple[_Terms, str]]


_Terms = dict[str, dict[int, _Ref]]


class InterestIndex:
    """Which live inboxes may want an event: by stream, by tag and by type, never by asking all.

    Inboxes are held weakly: a subscription that nobody holds any more is gone.
    """

    def __init__(self, defer: Defer) -> None:
        self._defer = defer
        self._streams: _Terms = {}
        self._tags: _Terms = {}
        self._types: _Terms = {}
        self._others: _Terms = {}
        self._entered: dict[int, _Ref] = {}

    def __len__(self) -> int:
        return len(self._entered)

    def add(self, inbox: Inbox) -> None:
        """Enter an inbox under the fewest terms of which every event it wants has one."""
        entry = _Ref(inbox, self._dropped)
        entry.key = id(inbox)
        entry.places = self._places(inbox.interest)
        for terms, term in entry.places:
            terms.setdefault(term, {})[entry.key] = entry
        self._entered[entry.key] = entry

    def remove(self, inbox: Inbox) -> None:
        """Take an inbox out; again is nothing."""
        entry = self._entered.get(id(inbox))
        if entry is not None:
            self._forget(entry)

    def _places(self, interest: Interest) -> Sequence[tuple[_Terms, str]]:
        if interest.stream_id is not None:
            return [(self._streams, interest.stream_id)]
        if interest.everything:
            return [(self._others, _EVERYTHING)]
        places = []
        for item in interest.query.items if interest.query else ():
            if item.tags:
                places.append((self._tags, item.tags[0]))
            elif item.types:
                places.extend((self._types, event_type) for event_type in item.types)
            else:
                places.append((self._others, _UNINDEXED))
        return places

    def _dropped(self, entry: ref[Inbox]) -> None:
        assert isinstance(entry, _Ref)
        self._defer(lambda: self._forget(entry))

    def _forget(self, entry: _Ref) -> None:
        # By now another inbox may have the address that is the key.
        for terms, term in entry.places:
            place = terms.get(term, {})
            if place.get(entry.key) is entry:
                del place[entry.key]
                if not place:
                    del terms[term]
        if self._entered.get(entry.key) is entry:
            del self._entered[entry.key]

    def inboxes(self) -> list[Inbox]:
        """All of them."""
        return _alive(self._entered)

    def wanting_everything(self) -> list[Inbox]:
        """The inboxes that want every event."""
        return _alive(self._others.get(_EVERYTHING, {}))

    @property
    def selective(self) -> bool:
        """Whether any of the inboxes wants some events only."""
        return bool(self._streams or self._types or self._tags or _UNINDEXED in self._others)

    def candidates(self, event: Event) -> list[Inbox]:
        """The other inboxes that may want the event, each once."""
        places = [self._streams.get(event.stream_id), self._types.get(event.event_type), self._others.get(_UNINDEXED)]
        if self._tags:
            places.extend(self._tags.get(tag) for tag in event.tags)
        found: dict[int, _Ref] = {}
        for place in places:
            if place:
                found.update(place)
        return _alive(found)


def _copy(error: EventStoreError) -> EventStoreError:
    own = copy.copy(error)
    own.__cause__ = error.__cause__
    return own


_EVERYTHING = "everything"
_UNINDEXED = "unindexed"


def _alive(entries: dict[int, _Ref]) -> list[Inbox]:
    # A copy: an inbox may leave while events are put into it.
    return [inbox for entry in list(entries.values()) if (inbox := entry()) is not None]


class Fanout:
    """What is published: the head, the ring, and what subscriptions and listeners get.

    ``opened`` is called when something that held back the forming of groups has changed. See `Defer` for ``defer``.
    ``types``: what is published can be decoded by these.
    """

    def __init__(
        self, head: int, limits: Limits, opened: Callable[[], None], defer: Defer, types: Types | None = None
    ) -> None:
        self._types = types
        self.opening = uuid4().hex
        """Tells this opening of the store from all others."""
        self.ring = Ring(head, limits.ring_bytes_max)
        self.listeners = Listeners(head, opened)
        self._defer = defer
        self.live = InterestIndex(defer)
        self.turns = Turns()
        # Inboxes whose reader waits: nothing else may hold the task that waits for them.
        self.waiting: dict[Inbox, None] = {}
        self.closed = False
        self.failure: EventStoreError | None = None
        """Why nothing more will be published, if so."""
        self._holding: dict[int, ref[Inbox]] = {}
        self._opened = opened
        self._group = 0
        self._backlog_bytes_max = limits.backlog_bytes_max

    @property
    def head(self) -> int:
        """The last event that anyone may see."""
        return self.ring.head

    @property
    def backlog_full(self) -> bool:
        """Whether the listeners are so far behind that no further group is formed."""
        return self.listeners.backlog_bytes > self._backlog_bytes_max

    @property
    def held_by_subscriptions(self) -> bool:
        """Whether a ``wait`` subscription with a full queue holds back the forming of groups."""
        return bool(self._holding)

    def publish(self, commits: Sequence[Commit]) -> None:
        """Show the commits of a group, which are stored, to everyone."""
        self._group += 1
        if self._types is not None:
            for commit in commits:
                attach_types(commit.events, self._types)
        for commit in commits:
            self.ring.add(commit)
        if self.live:
            self._put_everything(commits)
            for commit in commits:
                if not self.live.selective:
                    break
                self._put_wanted(commit)
        self.listeners.put(commits)

    def _put_everything(self, commits: Sequence[Commit]) -> None:
        inboxes = self.live.wanting_everything()
        if not inboxes:
            return
        events = commits[0].events if len(commits) == 1 else [event for commit in commits for event in commit.events]
        size = sum([commit.bytes_estimate for commit in commits])
        for inbox in inboxes:
            if len(commits) == 1 or inbox.has_room_for(len(events), size):  # a group at once: one step instead of many
                inbox.put(events, size, self._group)
                continue
            for commit in commits:
                if inbox.live:
                    inbox.put(commit.events, commit.bytes_estimate, self._group)

    def _put_wanted(self, commit: Commit) -> None:
        wanted: dict[Inbox, list[Event]] = {}
        stream_id = event_type = ""
        tags: Sequence[str] = ()
        candidates: list[Inbox] = []
        for event in commit.events:
            # Most events of a long commit are like the one before.
            if event.stream_id != stream_id or event.event_type != event_type or event.tags != tags:
                stream_id, event_type, tags = event.stream_id, event.event_type, event.tags
                candidates = self.live.candidates(event)
            for inbox in candidates:
                if inbox.interest.matches(event):
                    wanted.setdefault(inbox, []).append(event)
        for inbox, events in wanted.items():
            whole = len(events) == len(commit.events)
            inbox.put(events, commit.bytes_estimate if whole else sum(map(event_size, events)), self._group)

    def go_live(self, inbox: Inbox, events: Sequence[Event]) -> None:
        """Queue the wanted events between the inbox's position and the head, and from now on all that come."""
        inbox.go_live(events, self.head)
        self.live.add(inbox)

    def inbox_changed(self, inbox: Inbox) -> None:
        """Note that an inbox is no longer live, or holds back appends, or does not any more."""
        if not inbox.live:
            self.live.remove(inbox)
        if inbox.holds:
            # Weakly: a subscription that is dropped without being closed must not hold appends for ever.
            key = id(inbox)
            self._holding[key] = ref(inbox, lambda holding: self._defer(lambda: self._release(key, holding)))
        else:
            self._release(id(inbox), None)

    def _release(self, key: int, dropped: ref[Inbox] | None) -> None:
        if key in self._holding and dropped in (None, self._holding[key]):
            del self._holding[key]
            self._opened()

    def leave(self, inbox: Inbox) -> None:
        """Take an inbox out for good and drop its queue; its position stays what it is."""
        if inbox.live and not inbox.events:
            inbox.handed = max(inbox.held, self.head)
        inbox.close()

    def fail(self, error: Exception) -> None:
        """Publish nothing more: whoever has had all there is, and waits for more, is told why, now and later."""
        if self.failure is None:
            if not isinstance(error, EventStoreError):
                reason, error = error, EventStoreError(f"what others append can no longer be followed: {error!r}")
                error.__cause__ = reason
            self.failure = _copy(error)  # without a traceback, which refers to much that is to be freed
            self.listeners.fail(self.failure)
            for inbox in tuple(self.waiting):
                inbox.wake()

    def check(self) -> None:
        """Raise if nothing more will be published: an error of the caller's own."""
        if self.failure is not None:
            raise _copy(self.failure)

    def close(self) -> None:
        """Let every reader find out that the store is closed; nothing is put into a queue any more."""
        self.closed = True
        for inbox in (*self.waiting, *self.live.inboxes()):
            self.leave(inbox)
