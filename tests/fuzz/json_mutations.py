"""Changes of a line that know what a line is made of: its numbers, its keys, its values."""

from __future__ import annotations

import random
import re
from typing import Any

import msgspec

from aiostore.engines.file.format import CRC_BYTES

NESTED = 100_000

_NUMBERS = re.compile(rb'"(event_id|version|more|open)":(-?[0-9]{1,40})')
_VALUE = re.compile(rb'"(data|metadata|tags|key|stream_id|event_type|timestamp)":')

ODD_NUMBERS = (
    b"0", b"1", b"2", b"-1", b"-0", b"1.0", b"1e3", b"4294967295", b"9223372036854775807", b"9223372036854775808",
    b"18446744073709551615", b"18446744073709551616", b"9" * 40, b"9" * 5000, b"null", b"true", b'"1"', b"NaN",
    b"Infinity", b"01", b"+1", b"[]",
)  # fmt: skip

ODD_VALUES = (
    b"{}", b"[]", b"null", b"1", b'""', b"NaN", b"-Infinity", b'"\\ud800"', b'"\\udc00\\ud800"', b'"\xed\xa0\x80"',
    b'"\xff"', b'"\\u0000"', b'{"a":1,"a":2}', b"1e999", b"9" * 400, b'{"":{}}', b"[1,]", b"{", b'"', b"tru",
    b'["x","x","y"]', b'["\\u0000"]', b'"' + b"k" * 2000 + b'"', b"[" * 99 + b"]" * 99, b"[" * 2000 + b"]" * 2000,
    b'{"event_id":2,"stream_id":"x"}', b'"2026-13-45T99:99:99.000000Z"', b'"0000-00-00"', b'"one"', b'"key-0"',
)  # fmt: skip


def changed(line: bytes, dice: random.Random) -> bytes:
    """The line, without its newline, changed in one way; its checksum is not made anew."""
    body, end = line[:-CRC_BYTES], line[-CRC_BYTES:]
    return dice.choice(_WAYS)(body, dice) + end


def _number(body: bytes, dice: random.Random) -> bytes:
    """Another number, often near to what it was."""
    found = list(_NUMBERS.finditer(body))
    if not found:
        return body
    match = dice.choice(found)
    was = int(match[2])
    near = b"%d" % (was + dice.choice((-2, -1, 1, 2, 3, 100, -was - 1)))
    return body[: match.start(2)] + dice.choice((near, near, near, dice.choice(ODD_NUMBERS))) + body[match.end(2) :]


def _count(body: bytes, dice: random.Random) -> bytes:
    """``more`` or ``open`` put in, or out."""
    name = dice.choice((b"more", b"open"))
    without = re.sub(rb',"%b":-?[0-9]+' % name, b"", body)
    if without != body and dice.random() < 0.5:
        return without
    number = dice.choice((b"1", b"2", b"3", b"7", b"-1", b"0", dice.choice(ODD_NUMBERS)))
    return b'%b,"%b":%b' % (without, name, number)


def _value(body: bytes, dice: random.Random) -> bytes:
    """Another value in the place of one: the rest of the text up to the next key of a line."""
    found = list(_VALUE.finditer(body))
    if not found:
        return body
    match = dice.choice(found)
    after = re.compile(rb',"(event_type|timestamp|data|metadata|tags|key|more|open|version)":').search(
        body, match.end()
    )
    return body[: match.end()] + dice.choice(ODD_VALUES) + (body[after.start() :] if after else b"")


def _swap_values(body: bytes, dice: random.Random) -> bytes:
    """Another stream, type, key or tag: as good as what it was, but not what it was."""
    try:
        line: dict[str, Any] = msgspec.json.decode(body + b"}")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return body
    if not isinstance(line, dict):
        return body
    name = dice.choice(("stream_id", "event_type", "tags", "key"))
    line[name] = {
        "stream_id": dice.choice(("a", "b", "one", "late", "new")),
        "event_type": dice.choice("ABT"),
        "tags": dice.sample(["x", "y", "rare", "a:1"], 2),
        "key": dice.choice(("key-0", "key-1", "k0", "new")),
    }[name]
    order = ["event_id", "stream_id", "version", "event_type", "timestamp", "data", "metadata", "tags", "key"]
    line = {key: line[key] for key in [*order, *(each for each in line if each not in order)] if key in line}
    return msgspec.json.encode(line)[:-1]


def _extra(body: bytes, dice: random.Random) -> bytes:
    """A key that is unknown, or stands twice."""
    return body + dice.choice((
        b',"erased":true', b',"":0', b',"event_id":1', b',"version":2', b',"more":0', b',"key":"k0"', b',"key":null',
        b',"crc":"00000000"', b',"data":{}', b',"x":' + b"[" * NESTED + b"]" * NESTED, b',"\xff":1',
        b',"more":1,"more":0',
    ))  # fmt: skip


def _nested(body: bytes, dice: random.Random) -> bytes:
    """Data nested deeper than anything may be."""
    depth = dice.choice((101, 700, 1100, NESTED))
    opening, closing = dice.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"[", b"")))
    inner = b"1" if opening != b"[" else b""
    return re.sub(rb'"data":\{[^}]*\}', lambda _: b'"data":' + opening * depth + inner + closing * depth, body, count=1)


def _space(body: bytes, dice: random.Random) -> bytes:
    """Whitespace that JSON allows, and some that it does not."""
    found = [match.start() for match in re.finditer(rb"[:,{\[]", body)] or [0]
    at = dice.choice(found) + 1
    return body[:at] + dice.choice((b" ", b"\t", b"\r", b"\0", b"\x0b", b"  ", b"/**/")) + body[at:]


def _utf8(body: bytes, dice: random.Random) -> bytes:
    """A byte in a text that is no UTF-8."""
    at = dice.randrange(len(body) + 1)
    return body[:at] + dice.choice((b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80")) + body[at:]


_WAYS = (
    *(_number, _number, _number, _count, _count, _value, _value, _swap_values, _swap_values, _extra, _space, _utf8) * 3,
    _nested,
)
