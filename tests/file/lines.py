"""Lines of a log made one by one: also such as no writer writes, with checksums that hold."""

from __future__ import annotations

from typing import Any
from zlib import crc32

import msgspec

from aiostore.engines.file import format as fmt

STORE_ID = "000102030405060708090a0b0c0d0e0f"
TIME = "2026-11-23T04:50:00.{:06d}Z"
MANIFEST = fmt.Manifest(1, 1, STORE_ID, TIME.format(0), 1)


def with_crc(text: bytes, first: int = 1) -> bytes:
    """A line of what stands before its checksum, for the segment that begins with the event ``first``."""
    return b'%b,"crc":"%08x"}\n' % (text, crc32(text, fmt.line_seed(STORE_ID, first)))


def line(event_id: int, *, first: int = 1, **keys: Any) -> bytes:
    """The line of an event of stream s; ``keys`` are more keys, or other values."""
    usual = {
        "event_id": event_id,
        "stream_id": "s",
        "version": event_id,
        "event_type": "T",
        "timestamp": TIME.format(event_id),
        "data": {},
    }
    return with_crc(msgspec.json.encode({**usual, **keys})[:-1], first)


def lines(first: int, last: int, *, segment: int | None = None) -> bytes:
    """Those of events that are each a commit, from the first to the last; the segment begins with the first."""
    return b"".join(line(n, first=first if segment is None else segment) for n in range(first, last + 1))
