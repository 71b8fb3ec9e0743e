"""Event types: names and versions of events, the classes that they are in a program, and the way from old to new."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from typing import Any, Literal, NamedTuple, TypeVar, get_args, overload

import msgspec

from aiostore.codecs import Codec, codec_of, is_model, is_struct
from aiostore.drafts import SCHEMA_VERSION, check_name
from aiostore.errors import EventNotDecodable, InvalidEvent, UnknownEventType, UnknownEventVersion
from aiostore.events import NO_METADATA, Event
from aiostore.limits import EVENT_TYPE_BYTES_MAX
from aiostore.strictjson import decode_object

C = TypeVar("C", bound=type)
U = TypeVar("U", bound=Callable[..., Any])

Unknown = Literal["raise", "skip", "raw"]
TagsOf = Callable[[Any], Iterable[str]]
Data = dict[str, Any]


class _Version(msgspec.Struct):
    schema_version: int = 1


_version_of = msgspec.json.Decoder(_Version).decode


class _Kind(NamedTuple):
    """A class as it was registered."""

    name: str
    kind: type
    version: int
    tags: TagsOf | None


class _Current:
    """A type as it is used: prepared when all is registered."""

    __slots__ = ("codec", "decode", "kind", "name", "steps", "tags", "version")

    def __init__(self, kind: _Kind, steps: Mapping[int, Callable[[Data, Event], Any]]) -> None:
        self.name = kind.name
        self.kind = kind.kind
        self.version = kind.version
        self.tags = kind.tags
        self.steps = steps
        self.codec: Codec = codec_of(kind.kind)
        self.decode = self.codec.decode


class EventTypes:
    """Which class an event is in this program, by its type and schema version; for `EventStore`'s ``types``.

    A class is a msgspec Struct, a dataclass or a pydantic model, registered with `add` or the decorator `event`. The
    schema version of an event stands in its metadata as ``schema_version`` (1 where it is absent); `upcast` says how
    data of an older version becomes that of the next.

    ``unknown``: what becomes of stored events of a type that is not registered, or of a newer version than is: they
    ``"raise"`` `UnknownEventType` or `UnknownEventVersion`, or `Event.decode` gives None and ``decoded()`` leaves them
    out (``"skip"``), or gives ``data``, a dict (``"raw"``).

    Whatever is registered is prepared, and checked as a whole, when it is first used: by a store that opens, or by
    `check`. Several stores may share it.
    """

    def __init__(self, *, unknown: Unknown = "raise") -> None:
        if unknown not in get_args(Unknown):
            raise ValueError(f"unknown must be one of {', '.join(get_args(Unknown))}, not {unknown!r}")
        self._unknown = unknown
        self._kinds: dict[str, _Kind] = {}
        self._names: dict[type, str] = {}
        self._renamed: dict[str, str] = {}
        self._upcasters: dict[tuple[str, int], Callable[[Data, Event], Any]] = {}
        # Both are empty where something was registered since they were made.
        self._by_name: dict[str, _Current] = {}
        self._by_class: dict[type, _Current] = {}

    def add(self, kind: type, name: str | None = None, *, version: int = 1, tags: TagsOf | None = None) -> None:
        """Register a class as the event type ``name`` (its own name, if None) of the schema version ``version``.

        ``tags(event)``: gives more tags for each event that is appended, made of its object.

        Raises TypeError where it is no Struct, dataclass or pydantic model, ValueError where the name or the class is
        registered already, or ``version`` is not an integer of 1 or more; `InvalidEvent` for a name that is not one.
        """
        if not (is_struct(kind) or is_model(kind)):
            raise TypeError(f"must be a msgspec Struct, a dataclass or a pydantic model class, not {kind!r:.80}")
        name = check_name(kind.__name__ if name is None else name, "event_type", EVENT_TYPE_BYTES_MAX)
        if not _is_version(version):
            raise ValueError(f"version must be an integer of 1 or more, not {version!r}")
        if tags is not None and not callable(tags):
            raise TypeError(f"tags must be a function of the event, not {tags!r:.80}")
        if name in self._kinds or name in self._renamed:
            raise ValueError(f"the event type {name!r} is registered already; for a new version, give one class alone")
        if kind in self._names:
            raise ValueError(f"{kind.__qualname__} is registered already, as {self._names[kind]!r}")
        self._kinds[name] = _Kind(name, kind, version, tags)
        self._names[kind] = name
        self._changed()

    @overload
    def event(self, name: C) -> C: ...

    @overload
    def event(self, name: str | None = None, *, version: int = 1, tags: TagsOf | None = None) -> Callable[[C], C]: ...

    def event(
        self, name: C | str | None = None, *, version: int = 1, tags: TagsOf | None = None
    ) -> C | Callable[[C], C]:
        """Register the class below: `add` as a decorator, ``@types.event`` or ``@types.event("Name", version=2)``."""
        if isinstance(name, type):
            self.add(name)
            return name

        def register(kind: C) -> C:
            self.add(kind, name, version=version, tags=tags)
            return kind

        return register

    def upcast(self, name: str, *, from_version: int) -> Callable[[U], U]:
        """Register the function below as the step of the type ``name`` from one schema version to the next.

        ``function(data)`` or ``function(data, event)`` gets the data of ``from_version``, a dict of its own that it may
        change, and returns that of the version above. Steps are chained; one is needed from each version below the
        class's. What is stored stays as it is.

        Raises ValueError where there is a step from this version already.
        """
        if not _is_version(from_version):
            raise ValueError(f"from_version must be an integer of 1 or more, not {from_version!r}")
        if (name, from_version) in self._upcasters:
            raise ValueError(f"there is an upcaster of {name!r} from version {from_version} already")

        def register(function: U) -> U:
            self._upcasters[name, from_version] = _with_event(function)
            self._changed()
            return function

        return register

    def renamed(self, old: str, new: str) -> None:
        """Have events that are stored as ``old`` decoded as ``new``, of the same schema version.

        Only what decodes: queries, and handlers that go by ``event_type``, still tell the two names apart.
        """
        old = check_name(old, "event_type", EVENT_TYPE_BYTES_MAX)
        if old in self._kinds or old in self._renamed:
            raise ValueError(f"the event type {old!r} is registered already")
        self._renamed[old] = new
        self._changed()

    def _changed(self) -> None:
        self._by_name, self._by_class = {}, {}

    def check(self) -> None:
        """Raise ValueError where a step between two versions, or a type that a name leads to, is missing.

        And TypeError for a class that cannot be made of JSON.
        """
        by_name: dict[str, _Current] = {}
        for name, kind in self._kinds.items():
            missing = [version for version in range(1, kind.version) if (name, version) not in self._upcasters]
            if missing:
                raise ValueError(
                    f"{name!r} is of version {kind.version}, and events of version {missing[0]} may be stored: give "
                    f"the step, @types.upcast({name!r}, from_version={missing[0]})"
                )
            by_name[name] = _Current(kind, {v: self._upcasters[name, v] for v in range(1, kind.version)})
        for name, version in self._upcasters:
            if name not in by_name:
                raise ValueError(f"there is an upcaster of {name!r}, and no class for it")
            if version >= by_name[name].version:
                raise ValueError(
                    f"there is an upcaster of {name!r} from version {version}, and its class is of version "
                    f"{by_name[name].version}: raise that to {version + 1}"
                )
        for old, new in self._renamed.items():
            if new not in by_name:
                raise ValueError(f"{old!r} is renamed to {new!r}, and there is no class for that")
            by_name[old] = by_name[new]
        self._by_class = {current.kind: current for current in by_name.values()}
        self._by_name = by_name

    def _prepared(self) -> dict[str, _Current]:
        if not self._by_name:
            self.check()
        return self._by_name

    def name(self, value: object) -> tuple[str, object] | None:
        """The event type of an object, and what of it becomes JSON; None if its class is not registered."""
        self._prepared()
        current = self._by_class.get(type(value))
        return None if current is None else (current.name, current.codec.json_value(value))

    def admit(self, event_type: str, data: bytes, schema_version: object) -> tuple[int, Iterable[str]] | None:
        """Check data that is to be stored; returns its schema version and tags, None for a type that is not known.

        ``schema_version``: what the caller says of it, UNSET for the current one. Raises `InvalidEvent`.
        """
        current = self._prepared().get(event_type)
        if current is None:
            return None
        version = current.version if schema_version is msgspec.UNSET else schema_version
        if event_type != current.name and schema_version is msgspec.UNSET:
            raise InvalidEvent("event_type", f"{event_type!r} is an old name; it is {current.name!r} now")
        if not isinstance(version, int) or not _is_version(version) or version > current.version:
            raise InvalidEvent(
                f"metadata.{SCHEMA_VERSION}", f"must be 1 to {current.version} for {event_type!r}, not {version!r:.80}"
            )
        if version != current.version:  # as an import of old events has it
            return version, ()
        try:
            value = current.decode(data)
        except Exception as error:
            place, why = current.codec.misfit(error)
            raise InvalidEvent(f"data{place}", f"does not fit {event_type!r} version {version}: {why}") from error
        return version, () if current.tags is None else current.tags(value)

    def decode(self, event: Event) -> Any:
        """The object that a stored event stands for; see `Event.decode`."""
        current = self._by_name.get(event.event_type)
        if current is None:
            current = self._prepared().get(event.event_type)
            if current is None:
                return self._not_known(event, self._stored_version(event), None)
        metadata = event._metadata
        version = 1 if metadata is NO_METADATA else self._stored_version(event)
        if version != current.version:
            return self._decode_other(event, version, current)
        try:
            return current.decode(event._data)
        except Exception as error:
            raise self._misfit(event, version, current, error) from error

    def _stored_version(self, event: Event) -> int:
        metadata = bytes(event._metadata)
        if not metadata:
            return 1
        try:
            return _version_of(metadata).schema_version
        except msgspec.ValidationError as error:
            raise EventNotDecodable(
                event.event_id, event.event_type, 0, f"metadata.{SCHEMA_VERSION} is not an integer"
            ) from error

    def _not_known(self, event: Event, version: int, known_version: int | None) -> Any:
        if self._unknown == "skip":
            return None
        if self._unknown == "raw":
            return event.data
        if known_version is None:
            raise UnknownEventType(event.event_id, event.event_type, version)
        raise UnknownEventVersion(event.event_id, event.event_type, version, known_version)

    def _decode_other(self, event: Event, version: int, current: _Current) -> Any:
        """Decode data of another version than the current one."""
        if version > current.version:
            return self._not_known(event, version, current.version)
        if version < 1:
            raise EventNotDecodable(event.event_id, event.event_type, version, "there is no such version")
        data: Any = decode_object(event._data)
        for step in range(version, current.version):
            try:
                data = current.steps[step](data, event)
            except Exception as error:
                reason = f"the upcaster from version {step} raised {error!r}"
                raise EventNotDecodable(event.event_id, event.event_type, version, reason) from error
            if not isinstance(data, dict):
                reason = f"the upcaster from version {step} returned {data!r:.80}, which is no dict"
                raise EventNotDecodable(event.event_id, event.event_type, version, reason)
        try:
            return current.decode(msgspec.json.encode(data))
        except Exception as error:
            raise self._misfit(event, version, current, error) from error

    def _misfit(self, event: Event, version: int, current: _Current, error: Exception) -> EventNotDecodable:
        place, why = current.codec.misfit(error)
        upcast = "" if version == current.version else f", upcast to version {current.version},"
        reason = f"data{place}{upcast} does not fit {current.kind.__qualname__}: {why}"
        return EventNotDecodable(event.event_id, event.event_type, version, reason)

    def json_schema(self) -> dict[str, Any]:
        """One JSON Schema (draft 2020-12) of the events as `Event.to_json` gives them: any of the registered types.

        ``$defs`` has the schema of each class's data. Only of the current versions.
        """
        from aiostore.schemadocs import document

        self._prepared()
        return document([(each.name, each.version, each.kind) for each in self._by_class.values()])

    def check_samples(self, samples: str | PathLike[str] | Mapping[str, Mapping[int, Any]]) -> None:
        """Check, in a test, that data as it was stored in each version of each type is still decoded.

        ``samples``: a directory with a file ``OrderPlaced.v1.json`` for each (in the name, what is not a letter, digit
        or one of ``_.-~`` is percent-encoded), or ``{"OrderPlaced": {1: data}}``. Keep one of each version when it is
        new, and never change it: what the store holds does not change either.

        Raises AssertionError, which names every version without a sample, every sample that is not decoded (or not of
        a type and version that are known), and why.
        """
        from aiostore.samples import check

        check(self, {each.name: each.version for each in self._prepared().values()}, samples)

    def __repr__(self) -> str:
        told = ", ".join(f"{kind.name} v{kind.version}" for kind in self._kinds.values())
        return f"<EventTypes unknown={self._unknown!r}: {told or 'none'}>"


def _is_version(version: object) -> bool:
    return isinstance(version, int) and not isinstance(version, bool) and version >= 1


def _with_event(function: Callable[..., Any]) -> Callable[[Data, Event], Any]:
    """The function as one of data and event; it takes the event where it asks for a second argument."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # of a builtin that does not tell
        parameters = ()  # type: ignore[assignment]
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    asked = [each for each in parameters if each.kind in positional and each.default is each.empty]
    return function if len(asked) >= 2 else lambda data, event: function(data)
