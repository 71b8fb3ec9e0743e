"""What a caller wants appended, checked and encoded before anything is staged: bad input fails alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from aiostore.errors import IdempotencyConflict, InvalidEvent
from aiostore.events import EVENT_OVERHEAD_BYTES, NO_METADATA, STREAM_EXISTS, Event, EventLike, NewEvent, StreamState
from aiostore.limits import (
    EVENT_TYPE_BYTES_MAX,
    IDEMPOTENCY_KEY_BYTES_MAX,
    STREAM_ID_BYTES_MAX,
    TAG_BYTES_MAX,
    TAGS_MAX,
    Limits,
)
from aiostore.query import AppendCondition
from aiostore.strictjson import encode_object, encode_objects, same_value

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
            and same_value(bytes(self.metadata) or b"{}", bytes(event._metadata) or b"{}")
        )


class StreamDrafts(NamedTuple):
    """The drafts for one stream."""

    stream_id: str
    drafts: Sequence[Draft]
    expected_version: int | StreamState | None


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


def draft_events(events: Iterable[EventLike], limits: Limits, where: str = "events", first: int = 0) -> list[Draft]:
    """The drafts of the events, of which the first has the index ``first``; `InvalidEvent` names one that is not valid.

    In one go, without giving way: what the caller changes meanwhile would be stored in part. See `batch.Batch`.
    """
    return draft_rows([row_of(event, where, index) for index, event in enumerate(events, first)], limits, where, first)


def draft_rows(rows: Sequence[Row], limits: Limits, where: str, first: int) -> list[Draft]:
    """`draft_events` of their rows."""
    datas = encode_objects([row[1] for row in rows], lambda index: f"{where}[{first + index}].data")
    drafts: list[Draft] = []
    checked_type = ""
    plain_type: object = None  # a type that was checked; most events of a batch are of few types, without more
    try:
        for (event_type, _, metadata, tags), data in zip(rows, datas, strict=True):
            if event_type is plain_type and metadata is None and tags == () and len(data) <= limits.event_bytes_max:
                size = EVENT_OVERHEAD_BYTES + len(data) + len(checked_type)
                drafts.append(Draft(checked_type, msgspec.Raw(data), NO_METADATA, (), size))
                continue
            checked_type = check_name(event_type, "event_type", EVENT_TYPE_BYTES_MAX)
            plain_type = event_type
            drafts.append(_draft(checked_type, data, metadata, tags, limits))
    except InvalidEvent as error:
        raise InvalidEvent(f"{where}[{first + len(drafts)}].{error.where}", error.reason) from None
    return drafts


def row_of(event: EventLike, where: str, index: int) -> Row:
    """The parts of the event; `InvalidEvent` where it is not one."""
    if isinstance(event, tuple):
        if len(event) == 2:
            return event[0], event[1], None, ()
        if len(event) == 3:
            return (*event, ())
    if isinstance(event, NewEvent):
        return event.event_type, event.data, event.metadata, event.tags
    reason = f"must be (event_type, data), (event_type, data, metadata) or NewEvent, not {event!r:.80}"
    raise InvalidEvent(f"{where}[{index}]", reason)


def draft_event(event_type: object, data: object, metadata: object, tags: object, limits: Limits) -> Draft:
    """The draft of one event; `InvalidEvent` if a part is not valid."""
    checked_type = check_name(event_type, "event_type", EVENT_TYPE_BYTES_MAX)
    return _draft(checked_type, encode_object(data, "data"), metadata, tags, limits)


def _draft(event_type: str, data: bytes, metadata: object, tags: object, limits: Limits) -> Draft:
    size = len(data)
    if metadata is None or metadata == {}:
        encoded_metadata = NO_METADATA
    else:
        encoded = encode_object(metadata, "metadata")
        encoded_metadata = msgspec.Raw(encoded)
        size += len(encoded)
    if size > limits.event_bytes_max:
        raise InvalidEvent(
            "data", f"has {size} bytes with its metadata, more than the {limits.event_bytes_max} allowed"
        )
    checked_tags = () if tags == () else _tags(tags)
    size += EVENT_OVERHEAD_BYTES + len(event_type) + sum(map(len, checked_tags))
    return Draft(event_type, msgspec.Raw(data), encoded_metadata, checked_tags, size)


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
