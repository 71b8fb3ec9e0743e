"""Snapshots of a projection: a state as bytes that give the same state again, and what must be so for them to fit."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection
from typing import Any

import msgspec

from aiostore.query import Query

_PLAIN = frozenset((type(None), bool, int, float, str, bytes))


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

    None stands for plain values: dict, list, str, bytes, int, float, bool, None, datetime. Else a type that msgspec
    knows (a Struct, dataclass, TypedDict, ``set[int]``…), a pydantic model, or a class that is made of one plain value
    (a Counter). TypeError if it is none of these.
    """

    def __init__(self, state_type: Any = None) -> None:
        self._fingerprint = "" if state_type is None else _fingerprint(state_type)
        self._encoder = msgspec.msgpack.Encoder(enc_hook=_dump)
        self._decoder = msgspec.msgpack.Decoder(Any if state_type is None else state_type, dec_hook=_restore)

    def encode(self, state: Any, query: Query | None, handled: frozenset[str], passed: set[str]) -> bytes:
        """A snapshot of the state; TypeError if it would not come back.

        It was made of the events of the query; of those that came, some are of types handled, the others were passed.
        The state is decoded and compared, so that what is loaded one day is what was saved.
        """
        try:
            piece = self._encoder.encode(state)
            restored = self._decoder.decode(piece)
        except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
            raise TypeError(f"the state cannot be kept in a snapshot: {error}") from error
        difference = _difference(state, restored, "state")
        if difference is not None:
            raise TypeError(
                f"the state would not come back from a snapshot as it is: {difference}; give its type as state_type, "
                "or keep it in plain values"
            )
        return msgspec.msgpack.encode(_Snapshot(self._fingerprint, repr(query), handled, passed, msgspec.Raw(piece)))

    def decode(
        self, value: bytes, query: Query | None, handlers: Collection[str]
    ) -> tuple[Any, frozenset[str], set[str]]:
        """The state, and the types handled and passed; `Unfit` if a replay with handlers of these types gives another.

        Where there are no handlers, they are still to come: what made the snapshot is taken for right.
        """
        try:
            snapshot = msgspec.msgpack.decode(value, type=_Snapshot)
            if snapshot.state_type != self._fingerprint:
                raise Unfit("its state_type is another")
            if snapshot.query != repr(query):
                raise Unfit("its query is another")
            missing, new = snapshot.handled.difference(handlers), snapshot.passed.intersection(handlers)
            if handlers and (missing or new):
                differ = " and ".join(sorted(missing | new))
                raise Unfit(f"the handlers of {differ} are {'not there any more' if missing else 'new'}")
            state = self._decoder.decode(snapshot.state)
        except Unfit:
            raise
        except Exception as error:  # what a state_type of its own makes of it
            raise Unfit(f"it cannot be read: {error}") from error
        return state, snapshot.handled, snapshot.passed


def _fingerprint(state_type: Any) -> str:
    """What changes when the type's fields do: a snapshot that lacks a field would be filled with its default."""
    try:
        schema = msgspec.json.encode(msgspec.json.schema(state_type, schema_hook=_describe), order="deterministic")
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"state_type must be a type of which snapshots can be made, not {state_type!r}: {error}"
        ) from error
    return hashlib.sha256(schema).hexdigest()


# What msgspec does not know by itself: pydantic models, and classes made of one plain value.


def _describe(kind: Any) -> dict[str, Any]:
    if hasattr(kind, "model_json_schema"):
        schema: dict[str, Any] = kind.model_json_schema()
        return schema
    if not callable(kind):
        raise NotImplementedError
    return {"title": getattr(kind, "__qualname__", repr(kind))}


def _dump(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__qualname__} is not a plain value, nor of a type that msgspec or pydantic knows")


def _restore(kind: Any, value: Any) -> Any:
    return kind.model_validate(value) if hasattr(kind, "model_validate") else kind(value)


def _difference(first: Any, second: Any, where: str) -> str | None:
    """Where two values are not equal, or not of the same types all through, and how; None if they are."""
    if type(first) is not type(second):
        return f"{where}, a {type(first).__qualname__}, would be a {type(second).__qualname__}"
    if isinstance(first, dict | list | tuple) and _is_plain(first) and first == second:
        return None
    if isinstance(first, dict):
        pairs = [(f"{where}[{key!r}]", value, second.get(key)) for key, value in first.items()]
        same = first.keys() == second.keys()
    elif isinstance(first, list | tuple):
        pairs = [(f"{where}[{index}]", *pair) for index, pair in enumerate(zip(first, second, strict=False))]
        same = len(first) == len(second)
    elif isinstance(first, msgspec.Struct) or dataclasses.is_dataclass(first):
        names = (
            first.__struct_fields__
            if isinstance(first, msgspec.Struct)
            else [f.name for f in dataclasses.fields(first)]
        )
        pairs = [(f"{where}.{name}", getattr(first, name, None), getattr(second, name, None)) for name in names]
        same = True
    else:
        pairs = []
        same = bool(first == second) or (first != first and second != second)  # NaN is NaN
    if not same:
        return f"{where}, {first!r:.80}, would be {second!r:.80}"
    return next(filter(None, (_difference(one, other, name) for name, one, other in pairs)), None)


def _is_plain(values: Collection[Any]) -> bool:
    """Whether a container holds only values that cannot differ in a type and yet be equal."""
    if isinstance(values, dict):
        return _PLAIN.issuperset(map(type, values)) and _PLAIN.issuperset(map(type, values.values()))
    return _PLAIN.issuperset(map(type, values))
