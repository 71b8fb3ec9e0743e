"""Strict JSON: what can be stored, and the bytes it is stored as.

A value is encoded, decoded and compared. Only where that shows a difference (or where a number or the nesting might be
out of bounds) is it walked. What the walk allows beyond plain JSON values becomes its JSON form, as msgspec defines it:
tuples, datetimes, dates, times, timedeltas, UUIDs, Decimals, enums, dataclasses and msgspec Structs. It refuses NaN,
infinities, lone surrogates, integers beyond 64 bits, keys that are not strings, bytes, sets, cycles and anything else.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import msgspec

from aiostore.errors import InvalidEvent
from aiostore.limits import INTEGER_MAX, INTEGER_MIN, NESTING_MAX

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder()

decode_object: Callable[[bytes | msgspec.Raw], dict[str, Any]] = _decoder.decode
"""The value of bytes that `encode_objects` made: a new one at every call."""

# Every digit becomes a 0, so that one search finds a number that may not fit in 64 bits (19 digits or more).
_DIGITS_TO_ZERO = bytes(ord("0") if ord("0") <= byte <= ord("9") else byte for byte in range(256))
_NINETEEN_DIGITS = b"0" * 19
_BRACE = ord("{")
# Each level takes two bytes.
_SHALLOW_BYTES_MAX = 2 * NESTING_MAX

_JSON_FORM = (dt.datetime, dt.date, dt.time, dt.timedelta, UUID)
# What msgspec may raise for a value that it cannot encode; ValueError is an int of thousands of digits.
_ENCODE_ERRORS = (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError)


def encode_object(value: Any, where: str) -> bytes:
    """The JSON bytes of a value, without a newline; `InvalidEvent`, which names it ``where``, if it is not valid.

    A value must be a JSON object: a dict, or a dataclass or Struct that becomes one.
    """
    try:
        piece = _encoder.encode(value)
        same = _decoder.decode(piece) == value
    except _ENCODE_ERRORS:
        return _encode_walked(value, where)
    if not same or piece[0] != _BRACE or _may_have_long_number(piece) or _may_be_too_deep(piece):
        return _encode_walked(value, where)
    return piece


def encode_objects(values: Sequence[Any], where: Callable[[int], str]) -> list[bytes]:
    """As `encode_object`, for many at once, in half the time; ``where(i)`` names ``values[i]``."""
    try:
        lines = _encoder.encode_lines(values)
        same = _decoder.decode_lines(lines) == values
    except _ENCODE_ERRORS:
        lines, same = b"", False
    if not same or _may_have_long_number(lines):
        return [_encode_walked(value, where(index)) for index, value in enumerate(values)]
    pieces = lines.split(b"\n")
    pieces.pop()  # what follows the last newline: nothing
    # A list of dicts, none of them long enough to be too deep, is what there is nearly always.
    if set(map(type, values)) != {dict} or max(map(len, pieces)) > _SHALLOW_BYTES_MAX:
        for index, piece in enumerate(pieces):
            if piece[0] != _BRACE or _may_be_too_deep(piece):
                _encode_walked(values[index], where(index))
    return pieces


def same_value(first: bytes, second: bytes) -> bool:
    """Whether two encodings stand for the same value: the order of keys does not count, true and 1 are not the same."""
    return first == second or _sorted(first) == _sorted(second)


def _sorted(encoded: bytes) -> bytes:
    return msgspec.json.encode(_decoder.decode(encoded), order="deterministic")


def _may_have_long_number(encoded: bytes) -> bool:
    return _NINETEEN_DIGITS in encoded.translate(_DIGITS_TO_ZERO)


def _may_be_too_deep(piece: bytes) -> bool:
    # Each level takes an opening bracket; brackets in strings only cost a needless walk.
    return len(piece) > _SHALLOW_BYTES_MAX and piece.count(b"{") + piece.count(b"[") > NESTING_MAX


def _encode_walked(value: Any, where: str) -> bytes:
    _check(value, where, 1)
    try:
        piece = _encoder.encode(value)
        _decoder.decode(piece)
    except _ENCODE_ERRORS as error:
        raise InvalidEvent(where, f"cannot be stored as JSON: {error}") from error
    if piece[:1] != b"{":
        raise InvalidEvent(where, f"must be a JSON object (a dict), not {type(value).__name__}")
    return piece


def _check(value: Any, where: str, depth: int) -> None:
    """Raise `InvalidEvent` for the first thing in ``value`` that is not allowed."""
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, Enum):
        _check(value.value, where, depth)
    elif isinstance(value, str):
        _check_text(value, where)
    elif isinstance(value, int):
        if not INTEGER_MIN <= value <= INTEGER_MAX:
            raise InvalidEvent(where, "an integer beyond 64 bits; store it as a string")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidEvent(where, f"{value} is not a JSON number")
    elif isinstance(value, Decimal):
        if not value.is_finite():
            raise InvalidEvent(where, f"Decimal {value} is not a number")
    elif isinstance(value, _JSON_FORM):
        return
    else:
        children = _children(value, where)
        if depth > NESTING_MAX:
            raise InvalidEvent(where[:200] + "…", f"nested deeper than {NESTING_MAX} levels, or a cycle")
        for name, child in children:
            _check(child, name, depth + 1)


def _children(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        return _items(value, where)
    # The encoder takes what a container holds, whatever a subclass says of itself; so does this.
    if isinstance(value, list | tuple):
        held = list.__iter__(value) if isinstance(value, list) else tuple.__iter__(value)
        return ((f"{where}[{index}]", child) for index, child in enumerate(held))
    if isinstance(value, msgspec.Struct):
        names: Sequence[str] = value.__struct_fields__
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
    else:
        raise InvalidEvent(where, f"{type(value).__name__} is not a JSON value")
    present = ((name, getattr(value, name, msgspec.UNSET)) for name in names)
    return ((f"{where}.{name}", child) for name, child in present if child is not msgspec.UNSET)


def _items(value: dict[Any, Any], where: str) -> Iterator[tuple[str, Any]]:
    for key, child in dict.items(value):
        if not isinstance(key, str):
            raise InvalidEvent(where, f"the key {key!r} is not a string")
        _check_text(key, where)
        yield f"{where}.{key}", child


def _check_text(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidEvent(where, "a string with a lone surrogate, which is not text") from None
