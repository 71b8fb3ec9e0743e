"""The errors of aiostore: one tree, each built from typed fields that it also carries.

``args`` are the fields, so every error copies and pickles as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiostore.events import StreamState


class EventStoreError(Exception):
    """What every error of this package is."""


class ConcurrencyConflict(EventStoreError):
    """The stream is not at the expected version; nothing was stored. Read it again, decide again, retry."""

    def __init__(self, stream_id: str, expected: int | StreamState, actual: int) -> None:
        super().__init__(stream_id, expected, actual)
        self.stream_id = stream_id
        self.expected = expected
        self.actual = actual

    def __str__(self) -> str:
        wanted = f"at version {self.expected}" if isinstance(self.expected, int) else "to exist"
        return f"stream {self.stream_id!r} was expected {wanted} but is at version {self.actual}"


class AppendConditionFailed(EventStoreError):
    """An event matches the append condition; nothing was stored. ``event_id`` is the first match."""

    def __init__(self, event_id: int) -> None:
        super().__init__(event_id)
        self.event_id = event_id

    def __str__(self) -> str:
        return f"event {self.event_id} matches the append condition; read again up to it, decide again, retry"


class InvalidEvent(EventStoreError, ValueError):
    """What was to be stored (or a name to be read) is not valid; nothing was stored.

    ``where`` names the element, for example ``events[3].data.price``; ``reason`` says why.
    """

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where = where
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class IdempotencyConflict(EventStoreError):
    """The idempotency key already stands in this stream, with other events; nothing was stored."""

    def __init__(self, stream_id: str, idempotency_key: str, event_id: int) -> None:
        super().__init__(stream_id, idempotency_key, event_id)
        self.stream_id = stream_id
        self.idempotency_key = idempotency_key
        self.event_id = event_id

    def __str__(self) -> str:
        return (
            f"idempotency key {self.idempotency_key!r} of stream {self.stream_id!r} was used at event "
            f"{self.event_id} for other events; use a new key for a new request"
        )


class NoEventTypes(EventStoreError):
    """An event was to be decoded, and its store has no types."""

    def __init__(self, event_id: int, event_type: str) -> None:
        super().__init__(event_id, event_type)
        self.event_id = event_id
        self.event_type = event_type

    def __str__(self) -> str:
        return (
            f"event {self.event_id} ({self.event_type!r}) cannot be decoded: its store has no types; open it with "
            "EventStore(…, types=EventTypes(…)), or read event.data"
        )


class UnknownEventType(EventStoreError):
    """A stored event is of a type that the store's types do not know, or of a version of it (`UnknownEventVersion`)."""

    def __init__(self, event_id: int, event_type: str, schema_version: int) -> None:
        super().__init__(event_id, event_type, schema_version)
        self.event_id = event_id
        self.event_type = event_type
        self.schema_version = schema_version

    def __str__(self) -> str:
        return (
            f"event {self.event_id} is of type {self.event_type!r}, which the store's types do not know; add it, or "
            'choose EventTypes(unknown="skip") or "raw"'
        )


class UnknownEventVersion(UnknownEventType):
    """A stored event is of a newer schema version than the store's types know: later code wrote it."""

    def __init__(self, event_id: int, event_type: str, schema_version: int, known_version: int) -> None:
        super().__init__(event_id, event_type, schema_version)
        self.args = (event_id, event_type, schema_version, known_version)
        self.known_version = known_version

    def __str__(self) -> str:
        return (
            f"event {self.event_id} is {self.event_type!r} of version {self.schema_version}, and this program knows "
            f"it up to version {self.known_version}: deploy the version that knows it, or choose "
            'EventTypes(unknown="skip") or "raw"'
        )


class EventNotDecodable(EventStoreError):
    """The data of a stored event does not fit its type, or an upcaster failed. ``reason`` says why."""

    def __init__(self, event_id: int, event_type: str, schema_version: int, reason: str) -> None:
        super().__init__(event_id, event_type, schema_version, reason)
        self.event_id = event_id
        self.event_type = event_type
        self.schema_version = schema_version
        self.reason = reason

    def __str__(self) -> str:
        return f"event {self.event_id} ({self.event_type!r} version {self.schema_version}): {self.reason}"


class StateConflict(EventStoreError):
    """What is kept under ``key`` was saved by somebody else meanwhile; nothing was saved. Revisions, 0 for none."""

    def __init__(self, key: str, expected: int, actual: int) -> None:
        super().__init__(key, expected, actual)
        self.key = key
        self.expected = expected
        self.actual = actual

    def __str__(self) -> str:
        return f"state {self.key!r} was expected at revision {self.expected} but is at {self.actual}; load it again"


class ProjectionStopped(EventStoreError):
    """The projection does not follow the store: not started, closed, or cut off. It has all up to ``position``."""

    def __init__(self, name: str, position: int, reason: str) -> None:
        super().__init__(name, position, reason)
        self.name = name
        self.position = position
        self.reason = reason

    def __str__(self) -> str:
        return f"projection {self.name!r} is at event {self.position} and goes no further: {self.reason}"


class Fenced(EventStoreError):
    """Another reads under this ``name`` by now: what this one has not recorded, that one has again."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"{self.name!r} was taken over by another that reads under this name: this one records nothing more"


class ConsumerHalted(EventStoreError):
    """The consumer's handler failed with an event, and all later ones wait: it comes first at the next start."""

    def __init__(self, name: str, event_id: int, stream_id: str, attempts: int, reason: str) -> None:
        super().__init__(name, event_id, stream_id, attempts, reason)
        self.name = name
        self.event_id = event_id
        self.stream_id = stream_id
        self.attempts = attempts
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"consumer {self.name!r} halted at event {self.event_id} of stream {self.stream_id!r}, tried "
            f"{self.attempts} times: {self.reason}; it comes first at the next start (on_error='park' sets its stream "
            "aside and goes on)"
        )


class ProjectionConflict(ProjectionStopped):
    """Another process has moved this projection on, and what this one did was undone. `catch_up` goes on from there."""


class StoreClosed(EventStoreError):
    """The store is not open: not yet, or not any more."""

    def __init__(self, reason: str = "the store is closed") -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class StoreLocked(EventStoreError):
    """Another store object writes to this directory; ``pid`` is its process, 0 if unknown."""

    def __init__(self, path: str, pid: int, own: bool = False) -> None:
        super().__init__(path, pid, own)
        self.path = path
        self.pid = pid
        self.own = own

    def __str__(self) -> str:
        holder = "this same process" if self.own else f"process {self.pid}" if self.pid else "another process"
        hint = "share that store object" if self.own else "one process writes; open with mode='r' to read beside it"
        return f"{self.path} is locked for writing by {holder}: {hint}"


class StoreFailed(EventStoreError):
    """A write or sync failed in a way that leaves the disk in doubt: no more appends, reads go on.

    The outcome of the appends that get this error is unknown. Open the store anew to recover.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}; appends are stopped, close the store and open it anew to recover"


class StoreFull(EventStoreError):
    """No room on the device: the append was undone as a whole. Appends work again when there is room."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: no room to append ({self.reason}); nothing was stored, free some space and retry"


class StoreCorrupt(EventStoreError):
    """Stored bytes are damaged, at ``offset`` in the file ``path`` (-1: it is not known where).

    ``first_event_id`` to ``last_event_id`` are the events that it may concern, 0 where that is not known.
    """

    def __init__(self, path: str, offset: int, reason: str, first_event_id: int = 0, last_event_id: int = 0) -> None:
        super().__init__(path, offset, reason, first_event_id, last_event_id)
        self.path = path
        self.offset = offset
        self.reason = reason
        self.first_event_id = first_event_id
        self.last_event_id = last_event_id

    def __str__(self) -> str:
        if self.offset < 0:
            return f"{self.path} is corrupt: {self.reason}"
        ids = ""
        if self.first_event_id:
            ids = f", events {self.first_event_id} to {self.last_event_id or 'unknown'}"
        return f"{self.path} is corrupt at byte {self.offset}{ids}: {self.reason}; mode='r' reads what is whole"


class OutcomeUnknown(EventStoreError):
    """The connection went while an append was under way: it may or may not be stored. Retry with a key."""


class SlowSubscriber(EventStoreError):
    """A subscription with ``on_slow="fail"`` did not keep up. It was handed every event up to ``position``."""

    def __init__(self, position: int, queue_size: int) -> None:
        super().__init__(position, queue_size)
        self.position = position
        self.queue_size = queue_size

    def __str__(self) -> str:
        return (
            f"the subscription fell more than {self.queue_size} events (or its bytes) behind after event "
            f"{self.position}; subscribe again with after={self.position}"
        )


class EngineUnavailable(EventStoreError):
    """The engine cannot be reached or loaded now: a missing driver, a server that is down."""


class EngineUnsupported(EventStoreError):
    """The engine does not do this: another system, a network file system, a store opened for reading only."""


class WrongLoop(EventStoreError):
    """The store belongs to the event loop that opened it and was called from elsewhere."""

    def __init__(self) -> None:
        super().__init__()

    def __str__(self) -> str:
        return "the store was opened in another event loop; open one store per loop, or call it from its own loop"
