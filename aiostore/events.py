"""What is stored and what is asked for: events, new events, and the words for versions and positions."""

from __future__ import annotations

import copy
import html
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, cast, overload

import msgspec

from aiostore.errors import NoEventTypes
from aiostore.strictjson import decode_object

NO_STREAM: Final = 0
"""As ``expected_version``: the stream has no events yet."""


class StreamState(Enum):
    """The sentinel of ``expected_version``."""

    EXISTS = "exists"

    def __repr__(self) -> str:
        return "STREAM_EXISTS"


class Position(Enum):
    """The sentinel of ``after``."""

    END = "end"

    def __repr__(self) -> str:
        return "END"


STREAM_EXISTS: Final = StreamState.EXISTS
"""As ``expected_version``: the stream has at least one event."""

END: Final = Position.END
"""As ``after``: only what is appended from now on."""


def version_matches(expected: int | StreamState | None, actual: int) -> bool:
    """Whether a stream of ``actual`` events is as expected; None expects nothing."""
    if expected is None:
        return True
    if expected is STREAM_EXISTS:
        return actual > 0
    return expected == actual


NO_METADATA: Final = msgspec.Raw(b"")


class _DataclassObject(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


class _ModelObject(Protocol):
    def model_dump_json(self) -> str: ...


EventObject = msgspec.Struct | _DataclassObject | _ModelObject
"""An object of a class that the store's types know: a msgspec Struct, a dataclass or a pydantic model."""


class Types(Protocol):
    """What a store asks of a registry of event types. `schema.EventTypes` is one."""

    def check(self) -> None:
        """Raise ValueError or TypeError where the registry is not whole; called when a store opens."""
        ...

    def name(self, value: object) -> tuple[str, object] | None:
        """The event type of an object, and what of it becomes JSON; None if its class is not known."""
        ...

    def admit(self, event_type: str, data: bytes, schema_version: object) -> tuple[int, Iterable[str]] | None:
        """Check data that is to be stored; returns its schema version and tags, None for a type that is not known.

        ``schema_version``: what the caller says of it, UNSET for the current one. Raises `InvalidEvent`.
        """
        ...

    def decode(self, event: Event) -> Any:
        """The object that a stored event stands for; see `Event.decode`."""
        ...


class Event(
    msgspec.Struct,
    frozen=True,
    eq=False,
    gc=False,  # half as many collections in a replay; only an event put into its own data would never be freed
    omit_defaults=True,
    rename={"_timestamp": "timestamp", "_data": "data", "_metadata": "metadata"},
):
    """A stored event, read-only. A light shell over its encoded bytes: each receiver has its own.

    ``event_id``: the global position, 1-based, strictly increasing. ``stream_id``. ``version``: the 1-based number in
    its stream. ``event_type``. ``timestamp``: aware UTC, never before that of an earlier event. ``data``, ``metadata``:
    dicts, decoded on first access; to change them changes nothing but this shell. ``tags``: a tuple of strings.
    """

    # The fields stand in the order of the log's keys: encoding an Event gives them in that order.
    event_id: int
    stream_id: str
    version: int
    event_type: str
    _timestamp: str
    _data: msgspec.Raw
    _metadata: msgspec.Raw = NO_METADATA
    tags: tuple[str, ...] = ()
    _data_decoded: Any = None
    _metadata_decoded: Any = None
    # Last, and only in what is handed out: encoding an Event that has them would fail.
    _types: Any = None

    @property
    def timestamp(self) -> datetime:
        """When the event was stored: an aware datetime in UTC."""
        return datetime.fromisoformat(self._timestamp)

    @property
    def data(self) -> dict[str, Any]:
        """The payload, a dict of JSON values."""
        decoded: dict[str, Any] | None = self._data_decoded
        if decoded is None:
            decoded = decode_object(self._data)
            msgspec.structs.force_setattr(self, "_data_decoded", decoded)
        return decoded

    @property
    def metadata(self) -> dict[str, Any]:
        """What was stored beside the payload, a dict of JSON values; empty if there was none."""
        decoded: dict[str, Any] | None = self._metadata_decoded
        if decoded is None:
            decoded = self._decode_metadata()
            msgspec.structs.force_setattr(self, "_metadata_decoded", decoded)
        return decoded

    def decode(self) -> Any:
        """The object that ``data`` stands for, as the store's ``types`` say; a new one at each call.

        Data of an older schema version goes through the upcasters first. Of a type that is not known, or of a newer
        version: None with ``unknown="skip"``, ``data`` with ``unknown="raw"``.

        Raises `NoEventTypes` where the store has none, `UnknownEventType`, `UnknownEventVersion`, `EventNotDecodable`.
        """
        types: Types | None = self._types
        if types is None:
            raise NoEventTypes(self.event_id, self.event_type)
        return types.decode(self)

    def _decode_metadata(self) -> dict[str, Any]:
        return decode_object(self._metadata) if len(bytes(self._metadata)) else {}

    def to_dict(self) -> dict[str, Any]:
        """A new dict of the eight public fields, ``timestamp`` as a datetime."""
        return {
            "event_id": self.event_id,
            "stream_id": self.stream_id,
            "version": self.version,
            "event_type": self.event_type,
            "timestamp": self.timestamp,
            "data": decode_object(self._data),
            "metadata": self._decode_metadata(),
            "tags": self.tags,
        }

    def to_json(self) -> bytes:
        """The eight public fields as one line of JSON, named as in the log."""
        fields: dict[str, Any] = {
            "event_id": self.event_id,
            "stream_id": self.stream_id,
            "version": self.version,
            "event_type": self.event_type,
            "timestamp": self._timestamp,
            "data": self._data,
            "metadata": self._metadata if len(bytes(self._metadata)) else {},
            "tags": self.tags,
        }
        return msgspec.json.encode(fields)

    def _stored(self) -> tuple[object, ...]:
        return (
            self.event_id,
            self.stream_id,
            self.version,
            self.event_type,
            self._timestamp,
            bytes(self._data),
            bytes(self._metadata),
            self.tags,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Event) and self._stored() == other._stored()

    def __ne__(self, other: object) -> bool:
        return not self == other  # the Struct's own would compare identities

    def __hash__(self) -> int:
        return hash((self.event_id, self.stream_id))

    def __reduce__(self) -> tuple[Any, ...]:
        # Without the types: they belong to the store, and may be of functions that do not pickle.
        return Event, tuple(getattr(self, name) for name in self.__struct_fields__ if name != "_types")

    def __deepcopy__(self, memo: dict[int, Any]) -> Event:
        event_class, fields = self.__reduce__()
        copied: Event = event_class(*copy.deepcopy(fields, memo))
        if self._types is not None:
            attach_types((copied,), self._types)
        return copied

    def __repr__(self) -> str:
        more = f", metadata={_as_python(self._metadata)}" if len(memoryview(self._metadata)) else ""
        more += f", tags={_cut(repr(self.tags), _REPR_CHARACTERS_MAX)}" if self.tags else ""
        return (
            f"Event({self.event_id}, {self.stream_id!r} v{self.version}, {self.event_type!r}, "
            f"{self._timestamp}, data={_as_python(self._data)}{more})"
        )

    def _repr_html_(self) -> str:
        cells = {
            "event_id": str(self.event_id),
            "stream_id": html.escape(self.stream_id),
            "version": str(self.version),
            "event_type": html.escape(self.event_type),
            "timestamp": html.escape(self._timestamp.replace("T", " ").replace("Z", " UTC")),
            "data": _as_html(self._data),
        }
        if len(memoryview(self._metadata)):
            cells["metadata"] = _as_html(self._metadata)
        if self.tags:
            cells["tags"] = html.escape(_cut(", ".join(self.tags), _HTML_CHARACTERS_MAX))
        style = "text-align:left; vertical-align:top; padding:0.1em 0.6em"
        rows = (
            f"<tr><th style='{style}'>{name}</th><td style='{style}'>{cell}</td></tr>" for name, cell in cells.items()
        )
        return f"<table>{''.join(rows)}</table>"


_REPR_CHARACTERS_MAX = 200
_HTML_CHARACTERS_MAX = 3000
# Of more than this only the beginning is looked at: a line of text must not cost the decoding of 16 MiB.
_SHOWN_WHOLE_BYTES_MAX = 16 * 1024


def _as_python(raw: msgspec.Raw) -> str:
    """The value as Python shows it, cut; of a large one its first bytes, as a string of JSON."""
    size = len(memoryview(raw))
    shown = decode_object(raw) if size <= _SHOWN_WHOLE_BYTES_MAX else _beginning(raw, _REPR_CHARACTERS_MAX)
    return _cut(repr(shown), _REPR_CHARACTERS_MAX, f" ({size:,} bytes of JSON)")


def _as_html(raw: msgspec.Raw) -> str:
    """The value as indented JSON, cut; of a large one its first bytes, as they are."""
    size = len(memoryview(raw))
    if size <= _SHOWN_WHOLE_BYTES_MAX:
        text = msgspec.json.format(bytes(raw), indent=2).decode()
    else:
        text = _beginning(raw, _HTML_CHARACTERS_MAX)
    text = _cut(text, _HTML_CHARACTERS_MAX, f" ({size:,} bytes of JSON)")
    style = "margin:0; text-align:left; white-space:pre-wrap; overflow-wrap:anywhere"
    return f"<pre style='{style}'>{html.escape(text)}</pre>"


def _beginning(raw: msgspec.Raw, characters: int) -> str:
    """More than so many characters, if there are; one that the end would cut is left out."""
    return bytes(memoryview(raw)[: 4 * (characters + 1)]).decode(errors="ignore")


def _cut(text: str, characters_max: int, more: str = "") -> str:
    return text if len(text) <= characters_max else f"{text[:characters_max]}…{more}"


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to append: ``data`` and ``metadata`` are JSON objects, ``tags`` at most 64 strings.

    With an object of a class that the store's ``types`` know in place of ``event_type``, there is no ``data``.
    """

    event_type: str
    data: Any = msgspec.UNSET
    metadata: Any = None
    tags: Iterable[str] = ()

    if TYPE_CHECKING:

        @overload
        def __init__(self, event_type: str, data: Any, metadata: Any = None, tags: Iterable[str] = ()) -> None: ...

        @overload
        def __init__(self, event_type: EventObject, *, metadata: Any = None, tags: Iterable[str] = ()) -> None: ...

        def __init__(self, *args: Any, **kwargs: Any) -> None: ...


EventLike = NewEvent | tuple[str, Any] | tuple[str, Any, Any] | EventObject
"""What `append_batch` takes: ``(event_type, data)``, ``(event_type, data, metadata)``, `NewEvent`, or an object."""


@dataclass(frozen=True, slots=True)
class StreamAppend:
    """The part of an `append_streams` that goes to one stream; see `EventStore.append` for ``expected_version``."""

    stream_id: str
    events: Iterable[EventLike]
    expected_version: int | StreamState | None = None


copy_event: Callable[[Event], Event] = cast("Any", Event).__copy__
"""A new shell over the same bytes; the event given must be the store's own, whose dicts nobody has decoded."""


def untouched(event: Event) -> Event:
    """A shell of its own over the same bytes, whatever was done to the dicts of the one given."""
    return msgspec.structs.replace(event, _data_decoded=None, _metadata_decoded=None)


def attach_types(events: Iterable[Event], types: Types) -> None:
    """Let the events be decoded by these types. Only of events that are stored: an engine could not encode them."""
    for event in events:
        _set(event, "_types", types)


_set = msgspec.structs.force_setattr

EVENT_OVERHEAD_BYTES: Final = 200
"""What an event is reckoned to take beside its data, metadata and names."""


def event_size(event: Event) -> int:
    """The approximate size of an event in bytes, in memory and in the log."""
    names = len(event.stream_id) + len(event.event_type) + sum(map(len, event.tags))
    return EVENT_OVERHEAD_BYTES + len(bytes(event._data)) + len(bytes(event._metadata)) + names


def copies(events: Sequence[Event]) -> list[Event]:
    """A shell of its own for each event (`copy_event`): no receiver sees what another does to its dicts."""
    return [copy_event(event) for event in events]
