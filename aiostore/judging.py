"""Judging: which appends of a group pass, and what becomes of their events. Plain functions, no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

from aiostore.drafts import Append, StreamDrafts
from aiostore.engine import Commit, Facts, Outcome, Question
from aiostore.errors import AppendConditionFailed, ConcurrencyConflict, EventStoreError
from aiostore.events import Event, version_matches
from aiostore.query import AppendCondition, Query
from aiostore.ring import Ring

NOTHING_KNOWN = Facts(head=-1)


def question_of(append: Append, known: Facts = NOTHING_KNOWN) -> Question:
    """What must be known to judge the append; what is known of its condition already is not searched again."""
    condition = append.condition
    if condition is not None and known.match is None:
        condition = AppendCondition(condition.query, max(condition.after or 0, known.head))
    return Question([part.stream_id for part in append.parts], append.key_scope, condition)


def suffices(facts: Facts, append: Append, ring: Ring) -> bool:
    """Whether the facts, with what the ring holds, are enough to judge the append now."""
    if facts.head >= ring.after:
        return True
    if append.idempotency_key is not None or append.condition is not None:
        return False
    for part in append.parts:  # noqa: SIM110 (it runs twice for every append: all() takes three times as long)
        if ring.version(part.stream_id) is None:
            return False
    return True


class Independents:
    """Appends of a group none of which depends on what another one of them stores."""

    def __init__(self) -> None:
        self._streams: set[str] = set()
        self._scopes: set[tuple[str, str]] = set()
        self._parts: list[StreamDrafts] = []

    def admit(self, append: Append) -> bool:
        """Take the append in; False if it depends on an earlier one, and is not taken in."""
        scope = append.key_scope
        if scope in self._scopes or any(
            part.expected_version is not None and part.stream_id in self._streams for part in append.parts
        ):
            return False
        if append.condition is not None and self._match(append.condition.query):
            return False
        if scope is not None:
            self._scopes.add(scope)
        self._streams.update(part.stream_id for part in append.parts if part.drafts)
        self._parts.extend(append.parts)
        return True

    def _match(self, query: Query) -> bool:
        return any(
            query.matches(Event(0, part.stream_id, 0, draft.event_type, "", draft.data, draft.metadata, draft.tags))
            for part in self._parts
            for draft in part.drafts
        )


@dataclass(slots=True)
class Judgement:
    """What a group comes to, given that its commits are stored: one outcome for each append, in order."""

    commits: list[Commit] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)


def judge(group: Sequence[tuple[Append, Facts]], ring: Ring, timestamp: str) -> Judgement:
    """Judge each append of the group against the state that the earlier ones leave: key, then version, then condition.

    The facts of each must suffice (`suffices`). An append without events is checked all the same and comes to ``[]``.
    """
    court = _Court(ring, timestamp)
    for append, facts in group:
        court.judge(append, facts)
    return court.judgement


class _Court:
    def __init__(self, ring: Ring, timestamp: str) -> None:
        self.judgement = Judgement()
        self._ring = ring
        self._timestamp = timestamp
        self._next_id = ring.head + 1
        self._versions: dict[str, int] = {}
        self._keys: dict[tuple[str, str], Sequence[Event]] = {}

    def judge(self, append: Append, facts: Facts) -> None:
        outcome = None
        if append.idempotency_key is not None:
            outcome = self._duplicate(append, facts)
        outcome = outcome or self._refusal(append, facts)
        if outcome is None:
            outcome = self._pass(append, facts)
        self.judgement.outcomes.append(outcome)

    def _duplicate(self, append: Append, facts: Facts) -> Outcome | None:
        scope = append.key_scope
        if scope is None:
            return None
        stored = self._keys.get(scope) or self._ring.stored(scope) or facts.stored
        if not stored:
            return None
        return append.repeated(stored)

    def _refusal(self, append: Append, facts: Facts) -> EventStoreError | None:
        for part in append.parts:
            if part.expected_version is not None:
                actual = self._version(part.stream_id, facts)
                if not version_matches(part.expected_version, actual):
                    return ConcurrencyConflict(part.stream_id, part.expected_version, actual)
        if append.condition is not None:
            match = facts.match or self._match(append.condition, facts.head)
            if match is not None:
                return AppendConditionFailed(match)
        return None

    def _match(self, condition: AppendCondition, above: int) -> int | None:
        """The first match that was committed after the facts, or in this group."""
        after = max(above, condition.after or 0)
        earlier: Iterator[Event] = chain.from_iterable(commit.events for commit in self.judgement.commits)
        for event in chain(self._ring.since(above), earlier):
            if event.event_id > after and condition.query.matches(event):
                return event.event_id
        return None

    def _version(self, stream_id: str, facts: Facts) -> int:
        version = self._versions.get(stream_id)
        if version is None:
            version = self._ring.version(stream_id)
        return facts.versions[stream_id] if version is None else version

    def _pass(self, append: Append, facts: Facts) -> Sequence[Event]:
        events: list[Event] = []
        for part in append.parts:
            version = self._version(part.stream_id, facts)
            placed = part.placed(self._next_id - 1 + len(events), version, self._timestamp)
            events = events + placed if events else placed
            self._versions[part.stream_id] = version + len(placed)
        if events:
            self._next_id += len(events)
            if append.idempotency_key is not None and (scope := append.key_scope) is not None:
                self._keys[scope] = events
            self.judgement.commits.append(Commit(events, append.idempotency_key, append.size))
        return events
