"""The bytes of a run: the index of neighbouring sealed segments. This docstring specifies the format (number 1).

**<first event_id, 20 digits>.idx** is derived from the segments (see `format`) and may be deleted at any time. It is a
function of them alone: the same segments give the same bytes, also when runs of some of them were merged. Numbers are
little-endian and unsigned. With n events, s segments, k keys, and a block being 4,096 bytes, the file is:

- the **header**, 512 bytes: a checksummed text like a slot of the head file, spaces, and a newline as the last byte::

    {"format":1,"first_event_id":1,"last_event_id":4,"segments":2,"keys":10,"tables":"1018b872","crc":"99a9577c"}

  The seed of ``crc`` is ``crc32(store_id + "index")``. ``tables`` is the checksum of the segments' table and, going on
  from that, of the directory, each with all its bytes. The first event_id is that of the file's name; n is at most
  2**24, and s at most n.
- the **segments' table**: for each segment its first event_id (u64), its size in bytes (u64, below 2**32), the checksum
  in its last line (u32), and a zero (u32). Zeros follow up to a multiple of the block, the 512 bytes before counted.
  The first event_ids increase, from that of the run.
- the **offsets**: for each event, in order, where its line begins in its segment's file (u32). Zeros follow up to a
  whole block.
- the **keys**: u64, strictly increasing: ``hash40(term) << 24 | event_id - first event_id of the run``, for each event
  and each of its terms. Zeros follow up to a whole block. The terms of an event are its stream_id (of kind ``s``), its
  event_type (``t``), each of its tags (``g``) and, where its line has a key, stream_id + NUL + key (``k``). hash40 is
  BLAKE2b of 5 bytes of store_id + kind + text in UTF-8, as a little-endian number. Different terms may have one hash:
  what is found must be checked against the line.
- the **directory**: the first key of each block of keys (u64), then the CRC-32 of each block of offsets and of each
  block of keys (u32). It ends the file.

A run is valid if and only if its header is, byte for byte, what the numbers in it give, the file has exactly the size
that follows from them, ``tables`` holds, and the checksum of every block does. A block is only checked when it is read.
A run belongs to a store's segments if and only if the table has their names, sizes and last checksums.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from aiostore.engines.file.blocks import BLOCK_BYTES
from aiostore.engines.file.checksum import crc32
from aiostore.engines.file.format import Damaged
from aiostore.engines.file.terms import ORDINAL_BITS

RUN_FORMAT: Final = 1
RUN_EVENTS_MAX: Final = 1 << ORDINAL_BITS
SEGMENT_BYTES_MAX: Final = (1 << 32) - 1
"""The size of the largest segment that a run can cover."""

HEADER_BYTES: Final = 512
BLOCK_OFFSETS: Final = BLOCK_BYTES // 4
BLOCK_KEYS: Final = BLOCK_BYTES // 8
FAN_OUT: Final = 4
"""So many neighbouring runs of a level make one of the next."""

TEMPORARY_SUFFIX: Final = ".tmp"
"""What a run's name ends in while it is written."""

_RUN_NAME = re.compile(r"([0-9]{20})\.idx")
_HEADER = re.compile(
    rb'\{"format":([0-9]{1,20}),"first_event_id":([0-9]{1,20}),"last_event_id":([0-9]{1,20}),"segments":([0-9]{1,20}),'
    rb'"keys":([0-9]{1,20}),"tables":"([0-9a-f]{8})",'
)
_SEGMENT = struct.Struct("<QQII")


# --- names ---


def run_name(first_event_id: int) -> str:
    """The file name of the run that begins with this event."""
    return f"{first_event_id:020d}.idx"


def run_first(name: str) -> int | None:
    """The first event_id of the run with this file name, None if it is not the name of a run."""
    match = _RUN_NAME.fullmatch(name)
    return int(match[1]) if match and int(match[1]) > 0 else None


def is_temporary(name: str) -> bool:
    """Whether this is the name of a run that was being written; such a file may be deleted if nobody writes."""
    return name.endswith(TEMPORARY_SUFFIX) and run_first(name[: -len(TEMPORARY_SUFFIX)]) is not None


# --- the segments' table ---


class RunSegment(NamedTuple):
    """A sealed segment: what says that a file is it."""

    first_event_id: int
    size: int
    """The file's bytes."""
    crc: str
    """The 8 digits of its last line's checksum."""


def encode_segments(segments: Sequence[RunSegment]) -> bytes:
    """The segments' table, and the zeros behind it."""
    table = b"".join(_SEGMENT.pack(first, size, int(crc, 16), 0) for first, size, crc in segments)
    return table + bytes(-(HEADER_BYTES + len(table)) % BLOCK_BYTES)


def decode_segments(table: bytes, header: Header) -> tuple[RunSegment, ...]:
    """The segments of a table whose checksum holds, or `Damaged`."""
    rows = _SEGMENT.iter_unpack(table[: header.segments * _SEGMENT.size])
    segments = tuple(RunSegment(first, size, f"{crc:08x}") for first, size, crc, _ in rows)
    firsts = [segment.first_event_id for segment in segments]
    if firsts[0] != header.first_event_id or firsts[-1] > header.last_event_id or sorted(set(firsts)) != firsts:
        raise Damaged("the table of segments is not in order")
    return segments


# --- the header ---


class Header(NamedTuple):
    """The numbers that the header says, and the places that follow from them."""

    first_event_id: int
    last_event_id: int
    segments: int
    keys: int
    tables: int

    @property
    def events(self) -> int:
        """How many events the run has."""
        return self.last_event_id - self.first_event_id + 1

    @property
    def offset_blocks(self) -> int:
        """How many blocks of offsets there are."""
        return -(-self.events // BLOCK_OFFSETS)

    @property
    def key_blocks(self) -> int:
        """How many blocks of keys there are."""
        return -(-self.keys // BLOCK_KEYS)

    @property
    def blocks(self) -> int:
        """How many blocks there are in all: those of offsets, then those of keys."""
        return self.offset_blocks + self.key_blocks

    @property
    def blocks_at(self) -> int:
        """Where the first block begins in the file."""
        return -(-(HEADER_BYTES + self.segments * _SEGMENT.size) // BLOCK_BYTES) * BLOCK_BYTES

    @property
    def directory_at(self) -> int:
        """Where the directory begins in the file."""
        return self.blocks_at + self.blocks * BLOCK_BYTES

    @property
    def directory_size(self) -> int:
        """The size of the directory in bytes."""
        return self.key_blocks * 8 + self.blocks * 4

    @property
    def size(self) -> int:
        """The size of the file in bytes."""
        return self.directory_at + self.directory_size


def encode_header(header: Header, store_id: str) -> bytes:
    """The header's bytes."""
    text = b'{"format":%d,"first_event_id":%d,"last_event_id":%d,"segments":%d,"keys":%d,"tables":"%08x"' % (
        RUN_FORMAT,
        *header,
    )
    seed = crc32(store_id.encode() + b"index")
    return (b'%b,"crc":"%08x"}' % (text, crc32(text, seed))).ljust(HEADER_BYTES - 1) + b"\n"


def decode_header(data: bytes, store_id: str) -> Header:
    """The header of these bytes, or `Damaged`."""
    match = _HEADER.match(data)
    if match is None:
        raise Damaged("there is no header of a run")
    if int(match[1]) != RUN_FORMAT:
        raise Damaged(f"the run has format {int(match[1])}, and this version reads format {RUN_FORMAT}")
    header = Header(int(match[2]), int(match[3]), int(match[4]), int(match[5]), int(match[6], 16))
    if data != encode_header(header, store_id):
        raise Damaged("the checksum of the header does not hold")
    if not (header.first_event_id > 0 and 0 < header.segments <= header.events <= RUN_EVENTS_MAX):
        raise Damaged("the numbers in the header cannot be")
    return header


def level_of(segments_count: int) -> int:
    """The level of a run of so many segments: level k has `FAN_OUT` ** k or more, but fewer than the next."""
    level = 0
    while segments_count >= FAN_OUT:
        segments_count //= FAN_OUT
        level += 1
    return level
