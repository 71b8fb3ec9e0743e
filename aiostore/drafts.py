"""What a caller wants appended, checked and encoded before anything is staged: bad input fails alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import msgspec

from aiostore.context import FOLLOWING_KEYS
from aiostore.errors import IdempotencyConflict, InvalidEvent
from aiostore.events import (
    EVENT_OVERHEAD_BYTES,
    NO_METADATA,
    STREAM_EXISTS,
    Event,
    EventLike,
    NewEvent,
    StreamAppend,
    StreamState,
    Types,
)
from aiostore.limits import (
    EVENT_TYPE_BYTES_MAX,
    IDEMPOTENCY_KEY_BYTES_MAX,
    STREAM_ID_BYTES_MAX,
    TAG_BYTES_MAX,
    TAGS_MAX,
    Limits,
)
from aiostore.query import AppendCondition
from aiostore.strictjson import decode_object, encode_object, encode_objects, same_value

SCHEMA_VERSION: Final = "schema_version"
"""The key of metadata that says which version of its type an event is of; 1 where it is absent."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Draft(msgspec.Struct, frozen=True, gc=False):
    """An event without its place."""

    event_type: str
    data: msgspec.Raw
    metadata: msgspec.Raw
    tags: tuple[str, ...]
    size: int
    """Its approximate size in bytes, in memory and in the log."""

    def became(self, event: Event) -> bool:
        """Whether ``event`` is what this draft would be stored as."""
        return (
            self.event_type == event.event_type
            and self.tags == event.tags
            and same_value(bytes(self.data), bytes(event._data))
            and _same_metadata(bytes(self.metadata) or b"{}", bytes(event._metadata) or b"{}")
        )


def _same_metadata(first: bytes, second: bytes) -> bool:
    """Whether they are the same but for what follows the work: a repeat may be made in another request."""
    return same_value(first, second) or same_value(_own(first), _own(second))


def _own(metadata: bytes) -> bytes:
    kept = {key: value for key, value in decode_object(metadata).items() if key not in FOLLOWING_KEYS}
    return encode_object(kept, "metadata")


class StreamDrafts(NamedTuple):
    """The drafts for one stream."""

    stream_id: str
    drafts: Sequence[Draft]
    expected_version: int | StreamState | None

    def placed(self, event_id: int, version: int, timestamp: str) -> list[Event]:
        """The events that they become right above the last ``event_id``, and the last version of the stream."""
        stream_id = self.stream_id
        return [
            Event(
                event_id + place,
                stream_id,
                version + place,
                draft.event_type,
                timestamp,
                draft.data,
                draft.metadata,
                draft.tags,
            )
            for place, draft in enumerate(self.drafts, 1)
        ]


class Append(NamedTuple):
    """A checked append: one commit, all or nothing. ``size`` is its approximate number of bytes."""

    parts: Sequence[StreamDrafts]
    condition: AppendCondition | None
    idempotency_key: str | None
    size: int
    events_count: int

    @property
    def key_scope(self) -> tuple[str, str] | None:
        """(stream_id, key): the stream is the first that gets events, the one whose event the key stands with."""
        if self.idempotency_key is None or not self.parts:
            return None
        scope = next((part for part in self.parts if part.drafts), self.parts[0])
        return scope.stream_id, self.idempotency_key

    def repeated(self, stored: Sequence[Event]) -> Sequence[Event] | IdempotencyConflict:
        """What it comes to where its key stands with these events already: they, if they are what it would store."""
        asked = [(part.stream_id, draft) for part in self.parts for draft in part.drafts]
        same = len(asked) == len(stored) and all(
            stream_id == event.stream_id and draft.became(event)
            for (stream_id, draft), event in zip(asked, stored, strict=True)
        )
        scope = self.key_scope
        assert scope is not None, "what is repeated has a key"
        return stored if same else IdempotencyConflict(*scope, stored[0].event_id)


def check_name(value: object, where: str, bytes_max: int) -> str:
    """The name itself, if it is 1 to ``bytes_max`` bytes of UTF-8 without control characters; else `InvalidEvent`."""
    if not isinstance(value, str):
        raise InvalidEvent(where, f"must be a string, not {type(value).__name__}")
    if not (value.isascii() and value.isprintable() and 0 < len(value) <= bytes_max):
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            raise InvalidEvent(where, "has a lone surrogate, which is not text") from None
        if not 1 <= size <= bytes_max:
            raise InvalidEvent(where, f"must be 1 to {bytes_max} bytes of UTF-8, not {size}")
        if _CONTROL.search(value):
            raise InvalidEvent(where, f"{value[:80]!r} has a control character")
    # A plain str: a subclass could carry behaviour of its own into the store.
    return value if type(value) is str else str.__str__(value)


def check_stream_id(value: object, where: str = "stream_id") -> str:
    """The stream_id itself, if it is valid; else `InvalidEvent`."""
    return check_name(value, where, STREAM_ID_BYTES_MAX)


def check_idempotency_key(value: object) -> str | None:
    """The key itself, if it is valid or None; else `InvalidEvent`."""
    return None if value is None else check_name(value, "idempotency_key", IDEMPOTENCY_KEY_BYTES_MAX)


def check_expected_version(value: object) -> int | StreamState | None:
    """The expectation itself, if it is one; else ValueError."""
    if value is None or value is STREAM_EXISTS:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ValueError(f"expected_version must be 0 or more, NO_STREAM, STREAM_EXISTS or None, not {value!r}")


Row = tuple[Any, Any, Any, Any]
"""The parts of an event to append: event_type, data, metadata, tags."""


class Additions(NamedTuple):
    """What a store adds to what its callers give: the types that it knows, and metadata that follows the work."""

    types: Types | None = None
    metadata: Mapping[str, Any] = MappingProxyType({})

    def complete(self, event_type: str, data: bytes, metadata: bytes, tags: object) -> tuple[bytes, object]:
        """The metadata and the tags with what is added to them; the caller's own come first in a conflict."""
        given: dict[str, Any] = decode_object(metadata) if metadata else {}
        added: dict[str, Any] = {}
        if self.types is not None:
            admitted = self.types.admit(event_type, data, given.get(SCHEMA_VERSION, msgspec.UNSET))
            if admitted is not None:
                version, more_tags = admitted
                if version != 1:
                    added[SCHEMA_VERSION] = version
                if more_tags:
                    tags = (*_tags(tags), *_tags(more_tags))
        added.update(self.metadata)
        if added.keys() - given.keys():
            metadata = encode_object({**added, **given}, "metadata")
        return metadata, tags


NOTHING_ADDED: Final = Additions()


def draft_events(
    events: Iterable[EventLike],
    limits: Limits,
    where: str = "events",
    first: int = 0,
    additions: Additions = NOTHING_ADDED,
) -> list[Draft]:
    """The drafts of the events, of which the first has the index ``first``; `InvalidEvent` names one that is not valid.

    In one go, without giving way: what the caller changes meanwhile would be stored in part. See `batch.Batch`.
    """
    types = additions.types
    rows = [row_of(event, where, index, types) for index, event in enumerate(events, first)]
    return draft_rows(rows, limits, where, first, additions)


def draft_rows(
    rows: Sequence[Row], limits: Limits, where: str, first: int, additions: Additions = NOTHING_ADDED
) -> list[Draft]:
    """`draft_events` of their rows."""
    datas = encode_objects([row[1] for row in rows], lambda index: f"{where}[{first + index}].data")
    drafts: list[Draft] = []
    checked_type = ""
    # A type that was checked; most events of a batch are of few types, without more.
    plain_type: object = None
    nothing_added = additions is NOTHING_ADDED
    try:
        for (event_type, _, metadata, tags), data in zip(rows, datas, strict=True):
            if event_type is plain_type and metadata is None and tags == () and len(data) <= limits.event_bytes_max:
                size = EVENT_OVERHEAD_BYTES + len(data) + len(checked_type)
                drafts.append(Draft(checked_type, msgspec.Raw(data), NO_METADATA, (), size))
                continue
            checked_type = check_name(event_type, "event_type", EVENT_TYPE_BYTES_MAX)
            plain_type = event_type if nothing_added else None
            drafts.append(_draft(checked_type, data, metadata, tags, limits, additions))
    except InvalidEvent as error:
        raise InvalidEvent(f"{where}[{first + len(drafts)}].{error.where}", error.reason) from None
    return drafts


def row_of(event: EventLike, where: str, index: int, types: Types | None = None) -> Row:
    """The parts of the event; `InvalidEvent` where it is not one."""
    if isinstance(event, tuple):
        if len(event) == 2:
            return event[0], event[1], None, ()
        if len(event) == 3:
            return (*event, ())
    elif isinstance(event, NewEvent):
        if event.data is not msgspec.UNSET:
            return event.event_type, event.data, event.metadata, event.tags
        event_type, data = named(event.event_type, types, f"{where}[{index}].event_type")
        return event_type, data, event.metadata, event.tags
    elif isinstance(event, StreamAppend) or event is None or isinstance(event, str | bytes | dict | list | int | float):
        reason = f"must be (event_type, data), (event_type, data, metadata), NewEvent or an object, not {event!r:.80}"
        raise InvalidEvent(f"{where}[{index}]", reason)
    else:
        return (*named(event, types, f"{where}[{index}]"), None, ())
    reason = f"must be (event_type, data) or (event_type, data, metadata), not {event!r:.80}"
    raise InvalidEvent(f"{where}[{index}]", reason)


def named(event: object, types: Types | None, where: str) -> tuple[str, object]:
    """The event type and the data of an object that stands for both; `InvalidEvent` where its class is not known."""
    kind = type(event).__name__
    if isinstance(event, str):
        raise InvalidEvent(where, f"{event!r:.80} comes without data; give (event_type, data)")
    if types is None:
        raise InvalidEvent(
            where, f"must be an event type with data, not a {kind}: this store takes no objects, it has no types="
        )
    found = types.name(event)
    if found is None:
        raise InvalidEvent(where, f"{kind} is not among the store's types; add the class to its EventTypes")
    return found


def draft_event(
    event_type: object,
    data: object,
    metadata: object,
    tags: object,
    limits: Limits,
    additions: Additions = NOTHING_ADDED,
) -> Draft:
    """The draft of one event; `InvalidEvent` if a part is not valid."""
    if data is msgspec.UNSET:
        event_type, data = named(event_type, additions.types, "event_type")
    checked_type = check_name(event_type, "event_type", EVENT_TYPE_BYTES_MAX)
    return _draft(checked_type, encode_object(data, "data"), metadata, tags, limits, additions)


def _draft(event_type: str, data: bytes, metadata: object, tags: object, limits: Limits, additions: Additions) -> Draft:
    encoded = b"" if metadata is None or metadata == {} else encode_object(metadata, "metadata")
    if additions is not NOTHING_ADDED:
        encoded, tags = additions.complete(event_type, data, encoded, tags)
    size = len(data) + len(encoded)
    if size > limits.event_bytes_max:
        raise InvalidEvent(
            "data", f"has {size} bytes with its metadata, more than the {limits.event_bytes_max} allowed"
        )
    checked_tags = () if tags == () else _tags(tags)
    size += EVENT_OVERHEAD_BYTES + len(event_type) + sum(map(len, checked_tags))
    return Draft(event_type, msgspec.Raw(data), msgspec.Raw(encoded) if encoded else NO_METADATA, checked_tags, size)


def _tags(tags: object) -> tuple[str, ...]:
    if isinstance(tags, str):  # one tag may stand bare: its letters are never what was meant
        tags = (tags,)
    if not isinstance(tags, Iterable):
        raise InvalidEvent("tags", f"must be an iterable of strings, not {type(tags).__name__}")
    checked = tuple(dict.fromkeys(check_name(tag, f"tags[{i}]", TAG_BYTES_MAX) for i, tag in enumerate(tags)))
    if len(checked) > TAGS_MAX:
        raise InvalidEvent("tags", f"has {len(checked)} tags, more than the {TAGS_MAX} allowed")
    return checked


def make_append(
    parts: Sequence[StreamDrafts], condition: AppendCondition | None, idempotency_key: object, limits: Limits
) -> Append:
    """The append of these parts, checked as a whole; a stream named twice or too many bytes are `InvalidEvent`."""
    if condition is not None and not isinstance(condition, AppendCondition):
        raise TypeError(f"condition must be an AppendCondition, not {condition!r}")
    if len(parts) > 1:
        seen: set[str] = set()
        for index, part in enumerate(parts):
            if part.stream_id in seen:
                raise InvalidEvent(f"appends[{index}].stream_id", f"stream {part.stream_id!r} is named twice")
            seen.add(part.stream_id)
    size = events_count = 0
    for part in parts:
        events_count += len(part.drafts)
        size += len(part.stream_id) * len(part.drafts)
        for draft in part.drafts:
            size += draft.size
    if size > limits.append_bytes_max:
        raise InvalidEvent("events", f"have about {size} bytes, more than the {limits.append_bytes_max} allowed")
    return Append(parts, condition, check_idempotency_key(idempotency_key), size, events_count)
