"""What must have been, given what the log holds in the end: plain functions over what was noted during a storm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise

from aiostore import (
    STREAM_EXISTS,
    AppendCondition,
    AppendConditionFailed,
    ConcurrencyConflict,
    Event,
    EventStoreError,
    IdempotencyConflict,
    Listener,
    LiveProjection,
    StoreClosed,
    StoreFull,
)
from aiostore.events import StreamState

Log = Sequence[Event]


@dataclass(frozen=True)
class Content:
    """What an append is about: its events have ``data["content"] == number`` and ``data["part"]`` 0, 1, …"""

    number: int
    streams: tuple[str, ...]
    """The stream of each event."""
    key: str | None = None


@dataclass
class Attempt:
    """An append. ``outcome`` stays None where it was cancelled."""

    content: Content
    expected: dict[str, int | StreamState]
    condition: AppendCondition | None
    head_before: int
    outcome: list[Event] | EventStoreError | None = None
    head_after: int = -1

    @property
    def uncertain(self) -> bool:
        """Whether it may or may not be stored."""
        if isinstance(self.outcome, EventStoreError):
            return type(self.outcome) is EventStoreError and "not known" in str(self.outcome)
        return self.outcome is None


@dataclass
class Following:
    """A subscription, or several that continue one another."""

    name: str
    wants: Callable[[Event], bool]
    start: int = 0
    got: list[Event] = field(default_factory=list)
    position: int = 0
    """As of its end."""


@dataclass
class Hearing:
    """A listener. ``had`` is the last event that its handler returned for."""

    number: int
    wait: bool
    start: int
    commits: list[list[Event]] = field(default_factory=list)
    had: int = 0
    listener: Listener | None = None

    def must_have_had(self, events: Log) -> None:
        """An append returned these: raise AssertionError if it should have waited for this listener."""
        if self.wait and self.listener is not None and not self.listener.closed and events:
            last = events[-1].event_id
            assert last <= self.start or self.had >= last, f"{last} returned before listener {self.number} had it"


@dataclass
class Reading:
    """What a read gave, in the log's order."""

    name: str
    wants: Callable[[Event], bool]
    head: int
    got: list[Event]


@dataclass
class Projecting:
    """A live projection whose state is the list of the event_ids that it had."""

    name: str
    wants: Callable[[Event], bool]
    projection: LiveProjection[list[int]] | None = None
    must_be_live: bool = False
    """Whether it has been entered, and not left."""

    def must_have_had(self, events: Sequence[Event]) -> None:
        """Check, as an append of the events has returned."""
        projection = self.projection
        if self.must_be_live and projection is not None and projection.is_live:
            assert projection.position >= events[-1].event_id, f"{self.name} is at {projection.position}: {events}"


@dataclass
class Notes:
    """All that was noted."""

    attempts: list[Attempt] = field(default_factory=list)
    followings: list[Following] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    hearings: list[Hearing] = field(default_factory=list)
    projectings: list[Projecting] = field(default_factory=list)
    calls: list[tuple[int, int]] = field(default_factory=list)
    """(last event_id of the commit, number of the listener) of each call of a handler, as it began."""
    cancellations: int = 0
    """Of tasks that had not ended."""


def check(notes: Notes, log: Log) -> None:
    """Raise AssertionError where what was noted cannot have been."""
    check_log(notes, log)
    for attempt in notes.attempts:
        check_attempt(notes, log, attempt)
    for following in notes.followings:
        check_following(log, following)
    for reading in notes.readings:
        assert reading.got == [event for event in log[: reading.head] if reading.wants(event)], reading
    for hearing in notes.hearings:
        check_hearing(log, hearing)
    for projecting in notes.projectings:
        check_projecting(log, projecting)
    assert all(one < two for one, two in pairwise(notes.calls)), "handlers are called in order, commit by commit"


def commits_of(log: Log) -> list[list[Event]]:
    """The log's events by the append that they came with."""
    return [list(events) for _, events in groupby(log, key=content_number)]


def content_number(event: Event) -> int:
    """Which append it came with."""
    number: int = event.data["content"]
    return number


def check_log(notes: Notes, log: Log) -> None:
    """Dense ids and versions, rising times, whole commits, each key once."""
    assert [event.event_id for event in log] == list(range(1, len(log) + 1))
    versions: dict[str, int] = {}
    for event in log:
        versions[event.stream_id] = versions.get(event.stream_id, 0) + 1
        assert event.version == versions[event.stream_id], event
    assert all(one.timestamp <= two.timestamp for one, two in pairwise(log))
    contents = {attempt.content.number: attempt.content for attempt in notes.attempts}
    commits = [(contents[content_number(events[0])], events) for events in commits_of(log)]
    for content, events in commits:
        assert [event.data["part"] for event in events] == list(range(len(content.streams))), f"{content} is not whole"
        assert tuple(event.stream_id for event in events) == content.streams
    numbers = [content.number for content, _ in commits]
    assert len(numbers) == len(set(numbers)), "an append is stored twice"
    keys = [(content.streams[0], content.key) for content, _ in commits if content.key is not None]
    assert len(keys) == len(set(keys)), "a key is stored twice"


def check_attempt(notes: Notes, log: Log, attempt: Attempt) -> None:
    """What it said is what happened, and its expectations held exactly."""
    outcome, content = attempt.outcome, attempt.content
    stored = [event for event in log if content_number(event) == content.number]
    if isinstance(outcome, list):
        assert outcome == stored, f"{attempt}: acknowledged is not what is stored"
        check_expectations(log, attempt, stored)
    elif outcome is not None:
        twins = [other for other in notes.attempts if other.content.number == content.number]
        excused = any(isinstance(twin.outcome, list) or twin.uncertain for twin in twins)
        assert excused or not stored, f"{attempt}: refused but stored"
        check_refusal(notes, log, attempt, outcome)


def version_at(log: Log, stream_id: str, head: int) -> int:
    """The version of the stream when ``head`` was the last event."""
    return sum(event.stream_id == stream_id for event in log[:head])


def check_expectations(log: Log, attempt: Attempt, stored: Log) -> None:
    """The versions were as expected, and nothing matched the condition, when it was stored."""
    for stream_id, expected in attempt.expected.items():
        if stored:
            actual = version_at(log, stream_id, stored[0].event_id - 1)
            assert actual > 0 if expected is STREAM_EXISTS else actual == expected, attempt
        else:  # without events of its own: at some moment of the call
            least, most = (version_at(log, stream_id, head) for head in (attempt.head_before, attempt.head_after))
            assert most > 0 if isinstance(expected, StreamState) else least <= expected <= most, attempt
    if attempt.condition is not None and stored:
        assert first_match(log, attempt.condition, stored[0].event_id) is None, attempt


def first_match(log: Log, condition: AppendCondition, before: int) -> int | None:
    """The first event below ``before`` that the condition forbids."""
    after = condition.after or 0
    return next((event.event_id for event in log[after : before - 1] if condition.query.matches(event)), None)


def check_refusal(notes: Notes, log: Log, attempt: Attempt, error: EventStoreError) -> None:
    """The reason given was one."""
    content = attempt.content
    if isinstance(error, ConcurrencyConflict):
        expected = attempt.expected[error.stream_id]
        assert error.expected == expected
        assert error.actual == 0 if expected is STREAM_EXISTS else error.actual != expected, attempt
        least, most = (version_at(log, error.stream_id, head) for head in (attempt.head_before, attempt.head_after))
        assert least <= error.actual <= most, f"{attempt}: version {error.actual} never was during the call"
    elif isinstance(error, AppendConditionFailed):
        assert attempt.condition is not None
        assert error.event_id <= attempt.head_after, f"{attempt}: refused for what was not yet there"
        assert first_match(log, attempt.condition, error.event_id + 1) == error.event_id, attempt
    elif isinstance(error, IdempotencyConflict):
        other = log[error.event_id - 1]
        assert error.event_id <= attempt.head_after
        assert content_number(other) != content.number, attempt
        keys = {each.content.key for each in notes.attempts if each.content.number == content_number(other)}
        assert keys == {content.key}, attempt
        assert other.stream_id == content.streams[0], attempt
    else:
        assert isinstance(error, StoreFull | StoreClosed) or "committer" in str(error), attempt
        return
    if content.key is not None and not isinstance(error, IdempotencyConflict):
        twins = [each.content for each in notes.attempts if each.content.key == content.key]
        numbers = {twin.number for twin in twins if twin.streams[0] == content.streams[0]}
        known = {content_number(event) for event in log[: attempt.head_before]}
        assert not numbers & known, f"{attempt}: its key was there"


def check_following(log: Log, following: Following) -> None:
    """Every event it wants, once, in order, up to its position."""
    wanted = [event for event in log if following.start < event.event_id <= following.position]
    wanted = [event for event in wanted if following.wants(event)]
    ids = [event.event_id for event in following.got]
    assert ids == [event.event_id for event in wanted], f"{following.name} from {following.start}: got {ids}"
    assert following.got == wanted


def check_hearing(log: Log, hearing: Hearing) -> None:
    """Every commit above its start, whole, once, in order."""
    owed = [commit for commit in commits_of(log) if commit[0].event_id > hearing.start]
    assert hearing.commits == owed[: len(hearing.commits)], f"listener {hearing.number} from {hearing.start}"
    if hearing.listener is not None and not hearing.listener.closed:
        assert len(hearing.commits) == len(owed), f"listener {hearing.number} did not get all"


def check_projecting(log: Log, projecting: Projecting) -> None:
    """Every event it wants, once, in order, up to its position."""
    projection = projecting.projection
    if projection is not None:
        wanted = [event.event_id for event in log[: projection.position] if projecting.wants(event)]
        assert projection.state == wanted, f"{projecting.name} at {projection.position} has {projection.state}"
