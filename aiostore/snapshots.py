"""Snapshots of a projection: a state as bytes that give the same state again, and what must be so for them to fit."""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
from collections.abc import Collection, Iterable, Iterator, Sized
from typing import Any

import msgspec

from aiostore.query import Query

_PLAIN = frozenset((type(None), bool, int, float, str, bytes))
_CONTAINERS = (dict, list, tuple, set, frozenset, msgspec.Struct)
_DESCRIPTIONS = frozenset(("default", "description", "title"))


class Unfit(Exception):
    """A snapshot that is not for this projection as it is now, and why."""


class _Snapshot(msgspec.Struct, array_like=True, frozen=True):
    state_type: str
    query: str
    handled: frozenset[str]
    passed: set[str]
    state: msgspec.Raw


class SnapshotCodec:
    """Encodes states of ``state_type`` in MessagePack, and decodes them.

    None stands for plain values: dict, list, str, bytes, int, float, bool, None, datetime in UTC. Else a type that
    msgspec knows (a Struct, dataclass, TypedDict, ``set[int]``…), a pydantic model, or a class that is made of one
    plain value (a Counter). TypeError if it is none of these.
    """

    def __init__(self, state_type: Any = None) -> None:
        self._fingerprint = "" if state_type is None else _fingerprint(state_type)
        self._encoder = msgspec.msgpack.Encoder(enc_hook=_dump)
        self._decoder = msgspec.msgpack.Decoder(Any if state_type is None else state_type, dec_hook=_restore)

    def encode_state(self, state: Any, *, verify: bool = True) -> bytes:
        """The state alone, for `decode_state`.

        To ``verify`` takes longer: the state is decoded and compared, and TypeError names what would not come back.
        """
        try:
            piece = self._encoder.encode(state)
            difference = _difference(state, self._decoder.decode(piece), {}) if verify else None
        except Exception as error:  # what the types of an application's own make of it
            raise TypeError(f"the state cannot be kept in a snapshot: {error!r}") from error
        if difference is not None:
            raise TypeError(
                f"the state would not come back from a snapshot as it is: state{difference}; give its type as "
                "state_type, or keep it in plain values"
            )
        return piece

    def decode_state(self, piece: bytes) -> Any:
        """The state that `encode_state` was given."""
        return self._decoder.decode(piece)

    def encode(
        self, state: Any, query: Query | None, handled: frozenset[str], passed: set[str], *, verify: bool = True
    ) -> bytes:
        """A snapshot of the state, see `encode_state` and `wrap`."""
        return self.wrap(self.encode_state(state, verify=verify), query, handled, passed)

    def wrap(self, piece: bytes, query: Query | None, handled: frozenset[str], passed: set[str]) -> bytes:
        """What is encoded, and what it was made of: events of the query.

        Of those that came, some are of types handled, the others were passed.
        """
        return msgspec.msgpack.encode(
            _Snapshot(self._fingerprint, key_of_query(query), handled, passed, msgspec.Raw(piece))
        )

    def decode(
        self, value: bytes, query: Query | None, handlers: Collection[str]
    ) -> tuple[Any, frozenset[str], set[str]]:
        """The state of a snapshot, and the types handled and passed; `Unfit` as in `unwrap`."""
        piece, handled, passed = self.unwrap(value, query, handlers)
        try:
            return self.decode_state(piece), handled, passed
        except Exception as error:  # what a state_type of its own makes of it
            raise Unfit(f"it cannot be read: {error!r}") from error

    def unwrap(
        self, value: bytes, query: Query | None, handlers: Collection[str]
    ) -> tuple[bytes, frozenset[str], set[str]]:
        """What was wrapped, and the types handled and passed.

        `Unfit` if a replay with handlers of these types gives another. Where there are no handlers, they are still to
        come: what made the snapshot is taken for right.
        """
        try:
            snapshot = msgspec.msgpack.decode(value, type=_Snapshot)
        except Exception as error:
            raise Unfit(f"it cannot be read: {error!r}") from error
        if snapshot.state_type != self._fingerprint:
            raise Unfit("its state_type is another")
        if snapshot.query != key_of_query(query):
            raise Unfit("its query is another")
        missing, new = snapshot.handled.difference(handlers), snapshot.passed.intersection(handlers)
        if handlers and (missing or new):
            differ = " and ".join(sorted(missing | new))
            raise Unfit(f"the handlers of {differ} are {'not there any more' if missing else 'new'}")
        return bytes(snapshot.state), snapshot.handled, snapshot.passed


def key_of_query(query: Query | None) -> str:
    """The same for queries that match the same events by the same items, in whatever order they are named."""
    items = [(sorted(item.types), sorted(item.tags), item.stream_prefix) for item in query.items] if query else []
    return repr(sorted(items, key=repr))


def _fingerprint(state_type: Any) -> str:
    """What changes when the type's fields do: a snapshot that lacks a field would be filled with its default."""
    try:
        schema = _structure(msgspec.json.schema(state_type, schema_hook=_describe))
        encoded = msgspec.json.encode(schema, order="deterministic")
    except Exception as error:  # pydantic has errors of its own for this
        raise TypeError(
            f"state_type must be a type of which snapshots can be made, not {state_type!r}: {error}"
        ) from error
    return hashlib.sha256(encoded).hexdigest()


def _structure(schema: Any) -> Any:
    """A JSON Schema without what only describes: a docstring may change, and a default set has no order."""
    if isinstance(schema, list):
        return [_structure(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: _structure(each) for name, each in value.items()}
        if key in ("properties", "$defs")
        else _structure(value)
        for key, value in schema.items()
        if key not in _DESCRIPTIONS
    }


# What msgspec does not know by itself: pydantic models, and classes made of one plain value.


def _describe(kind: Any) -> dict[str, Any]:
    if hasattr(kind, "model_json_schema"):
        schema: dict[str, Any] = kind.model_json_schema()
        return schema
    if not callable(kind):
        raise NotImplementedError
    return {"class": getattr(kind, "__qualname__", repr(kind))}


def _dump(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__qualname__} is not a plain value, nor of a type that msgspec or pydantic knows")


def _restore(kind: Any, value: Any) -> Any:
    return kind.model_validate(value) if hasattr(kind, "model_validate") else kind(value)


# What would not come back. The path to it is put together on the way back, when there is something to tell.


def _difference(first: Any, second: Any, seen: dict[int, Any]) -> str | None:
    """Where two values are not equal, or not of the same types all through, and how; None if they are.

    ``seen``: the mutable values met so far. One that stands in two places would come back as two.
    """
    kind = type(first)
    if kind is not type(second):
        if {kind, type(second)} == {int, float} and first == second:
            return None  # an int where a float may stand
        if second is msgspec.UNSET:
            return ", would not be there"
        return f", of type {kind.__qualname__}, would be of type {type(second).__qualname__}"
    if kind in _PLAIN:
        return None if first == second or (first != first and second != second) else _unequal(first, second)
    if not isinstance(first, _CONTAINERS) and not dataclasses.is_dataclass(first):
        if isinstance(first, dt.datetime) and first.tzinfo is not None and first.utcoffset():
            return f", {first.isoformat()}, would be in UTC"
        return None if first == second else _unequal(first, second)
    if not isinstance(first, tuple | frozenset):
        if id(first) in seen:
            return f" is the same {kind.__qualname__} as in another place, and would be one of its own"
        seen[id(first)] = first
    if isinstance(first, Sized) and len(first) != len(second):
        return _unequal(first, second)
    for form, name, value, other in _parts(first, second):
        difference = _difference(value, other, seen)
        if difference is not None:
            return form.format(name) + difference
    return None


def _parts(first: Any, second: Any) -> Iterator[tuple[str, Any, Any, Any]]:
    """What is to be compared inside of two values of one type: how to name it, its name, and the two of it."""
    if isinstance(first, dict):
        if not (_are_plain(first) and _are_plain(first.values()) and first == second):
            for (key, value), (other_key, other) in zip(first.items(), second.items(), strict=True):  # in their order
                yield ", in it the key {!r}", key, key, other_key
                yield "[{!r}]", key, value, other
    elif isinstance(first, list | tuple):
        if not (_are_plain(first) and first == second):
            for index, (value, other) in enumerate(zip(first, second, strict=True)):
                yield "[{}]", index, value, other
    elif isinstance(first, set | frozenset):
        others = {value: value for value in second}
        for value in first:
            yield ", in it {!r}", value, value, others.get(value, msgspec.UNSET)
    attributes: Iterable[str] = getattr(first, "__dict__", ())
    if isinstance(first, msgspec.Struct):
        attributes = first.__struct_fields__
    elif dataclasses.is_dataclass(first):
        attributes = {field.name: None for field in dataclasses.fields(first)} | dict.fromkeys(attributes)
    for name in attributes:
        yield ".{}", name, getattr(first, name, None), getattr(second, name, None)


def _unequal(first: Any, second: Any) -> str:
    return f", {first!r:.80}, would be {second!r:.80}"


def _are_plain(values: Iterable[Any]) -> bool:
    """Whether all are of types that cannot differ and yet be equal."""
    return _PLAIN.issuperset(map(type, values))
