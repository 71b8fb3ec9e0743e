"""The bytes of the embedded log. This docstring specifies the format (number 1); the code takes and gives bytes.

All files are UTF-8 and are read as JSON or JSON Lines. Checksums are CRC-32 (`zlib.crc32`, IEEE), written as 8
lowercase hexadecimal digits. A checksummed text ends in ``,"crc":"1a2b3c4d"}`` (18 bytes) and a newline; the checksum
covers everything before that comma. So a line, its newline counted, is valid with ``crc32(line[:-19], seed)``.

**aiostore.json**, the manifest, is one such text, with seed 0::

    {"min_reader":1,"min_writer":1,"store_id":"<32 hex digits>","created":"<time>","first_segment":1,"crc":"…"}

A reader (writer) whose format number is below ``min_reader`` (``min_writer``) must not read (write). Other keys are
left alone. ``first_segment`` is the first event_id of the oldest segment. The file is only replaced as a whole.

**head** is two slots of 512 bytes, each ``{"durable":<event_id>,"crc":"…"}``, spaces, and a newline as the last byte;
the seed is ``crc32(store_id + "head")``. A slot is valid if and only if it is, byte for byte, what an event_id gives.
The durable head is the greater of the valid slots, 0 if there is none; it is a true lower bound of what is durable.
The slots are written in turn.

**<first event_id, 20 digits>.jsonl**, a segment. A line is an event, with its keys in this order::

    {"event_id":7,"stream_id":"cart-42","version":2,"event_type":"ItemAdded","timestamp":"2026-11-23T04:50:00.123456Z",
    "data":{…}[,"metadata":{…}][,"tags":["…"]][,"key":"…"][,"more":k][,"open":k],"crc":"1a2b3c4d"}

- ``key``: the idempotency key, on the first line of its commit.
- ``more``: how many events of the same commit follow (absent: 0); the next line says one less.
- ``open``: how many events before this one were not known durable when its write began (absent: 0). So each valid
  line vouches that the events up to event_id - 1 - open are durable.
- ``crc``: its seed is ``crc32(store_id + first event_id as 20 digits)``: no line of another store or segment counts.

A line is valid if and only if it ends in its checksum and a newline, the checksum holds, it has the keys above (those
in brackets may be absent) and no others, with values of their types, its event_id is that of the line before plus one
(in the first line: the number in the file's name), its ``more`` is one less than that of the line before where that was
not 0, and ``key`` stands on no line but the first of a commit. Empty lines are padding; behind the last event of the
newest segment they are space that was prepared, and the next lines take their place. A segment that is not the newest
ends with the last event of a commit, and the name of the next is that event's id plus one.

Example: a group of two commits, the second of two events and with a key, written to the new store
``000102030405060708090a0b0c0d0e0f`` (the seed of its first segment is 0xdd1d97ce). Each is on one line::

    {"event_id":1,"stream_id":"cart-1","version":1,"event_type":"Opened","timestamp":"2026-11-23T04:50:00.123456Z",
    "data":{},"crc":"1a4fc882"}
    {"event_id":2,"stream_id":"cart-1","version":2,"event_type":"ItemAdded","timestamp":"2026-11-23T04:50:00.123456Z",
    "data":{"sku":"a"},"tags":["sku:a"],"key":"k-1","more":1,"open":1,"crc":"fb4b4b2d"}
    {"event_id":3,"stream_id":"stock-a","version":1,"event_type":"Reserved","timestamp":"2026-11-23T04:50:00.123456Z",
    "data":{"n":1},"metadata":{"by":"cart-1"},"open":2,"crc":"f72bef58"}
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, repeat
from operator import add, itemgetter
from sys import byteorder
from typing import Annotated, Final, NamedTuple, TypeVar, cast

import msgspec

from aiostore.engine import Commit
from aiostore.engines.file.checksum import crc32
from aiostore.events import NO_METADATA, Event

FORMAT: Final = 1
"""The number of the format that this code reads and writes."""

MANIFEST_NAME: Final = "aiostore.json"
HEAD_NAME: Final = "head"
LOCK_NAME: Final = "lock"
SLOT_BYTES: Final = 512
CRC_BYTES: Final = 18
"""The length of ``,"crc":"1a2b3c4d"}``."""

LINE_BYTES_MIN: Final = 100
"""No line is shorter: the keys that every line has, with the shortest values, take more."""

ENCODE_EVENTS: Final = 512
"""So many events are encoded in one go, about half a millisecond of the loop's time."""

ENDS_MAX: Final = 4096
"""Up to this number, the short texts that count events are kept: those of every usual group."""

_SEGMENT_NAME = re.compile(r"([0-9]{20})\.jsonl")
_encoder = msgspec.json.Encoder()


class Damaged(Exception):
    """Bytes that are not what they must be, and why."""


UNDECODABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding raises where bytes are not what they must be; the last, where they are nested without end."""


# --- names and seeds ---


def segment_name(first_event_id: int) -> str:
    """The file name of the segment that begins with this event."""
    return f"{first_event_id:020d}.jsonl"


def segment_first(name: str) -> int | None:
    """The first event_id of the segment with this file name, None if it is not the name of a segment."""
    match = _SEGMENT_NAME.fullmatch(name)
    return int(match[1]) if match and int(match[1]) > 0 else None


def line_seed(store_id: str, first_event_id: int) -> int:
    """The seed of the checksums in one segment."""
    return crc32(b"%b%020d" % (store_id.encode(), first_event_id))


# --- lines ---


Number = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """A line as recovery reads it: every key, and no other."""

    event_id: Number
    stream_id: str
    version: Number
    event_type: str
    timestamp: str
    data: msgspec.Raw
    crc: str
    metadata: msgspec.Raw = NO_METADATA
    tags: tuple[str, ...] = ()
    key: str | None = None
    more: Count = 0
    unsynced: Count = msgspec.field(name="open", default=0)


class Lines(NamedTuple):
    """Encoded lines: their bytes, each with its newline, and where each begins in them."""

    data: bytes
    starts: list[int]


E = TypeVar("E", Event, Line)

decode_line = msgspec.json.Decoder(Line).decode
_decode_event = msgspec.json.Decoder(Event).decode


def encode_group(commits: Sequence[Commit], seed: int, durable: int) -> Iterator[Lines]:
    """The lines of a group, in pieces of `ENCODE_EVENTS`; ``durable`` is the last event known durable before it."""
    events = [event for commit in commits for event in commit.events] if len(commits) > 1 else commits[0].events
    ends = _ends(commits, events[0].event_id - 1 - durable)
    for start in range(0, len(events), ENCODE_EVENTS):
        until = start + ENCODE_EVENTS
        yield _encode_chunk(events[start:until], ends[start:until], seed)


def _ends(commits: Sequence[Commit], unsynced: int) -> list[bytes]:
    """What stands between each event's own keys and its checksum."""
    mores: list[bytes] = []
    for commit in commits:
        count = len(commit.events)
        last = len(mores)
        mores += _MORES[count - 1 :: -1] if count <= ENDS_MAX else _counting(b',"more":', 0, count - 1)[::-1]
        if commit.idempotency_key is not None:
            mores[last] = b',"key":%b%b' % (_encoder.encode(commit.idempotency_key), mores[last])
    after = unsynced + len(mores)
    opens = _OPENS[unsynced:after] if after <= ENDS_MAX else _counting(b',"open":', unsynced, after - 1)
    return list(map(add, mores, opens))


def _encode_chunk(events: Sequence[Event], ends: Sequence[bytes], seed: int) -> Lines:
    pieces = _encoder.encode_lines(events).split(b"\n")  # no event has a newline inside
    pieces.pop()  # what follows the last newline: nothing
    # Without its last brace, each is what comes before its end.
    bodies = [piece[:-1] + end for piece, end in zip(pieces, ends, strict=True)]
    lines = [b'%b,"crc":"%08x"}\n' % pair for pair in zip(bodies, map(crc32, bodies, repeat(seed)), strict=True)]
    starts = list(accumulate(map(len, lines), initial=0))
    starts.pop()
    return Lines(b"".join(lines), starts)


def _counting(text: bytes, first: int, last: int) -> list[bytes]:
    """The text with each of these numbers behind it; without either where the number is 0."""
    return [text + b"%d" % number if number else b"" for number in range(first, last + 1)]


_MORES: Final = _counting(b',"more":', 0, ENDS_MAX)
_OPENS: Final = _counting(b',"open":', 0, ENDS_MAX)


def checksum_holds(line: bytes, seed: int) -> bool:
    """Whether a line, without its newline, ends in its checksum."""
    return line[-CRC_BYTES:] == b',"crc":"%08x"}' % crc32(line[:-CRC_BYTES], seed)


_checked_part: Final = cast("Callable[[bytes], bytes]", itemgetter(slice(None, -CRC_BYTES)))
_checksum_part: Final = cast("Callable[[bytes], bytes]", itemgetter(slice(-CRC_BYTES, None)))
# Twice as quick as to write the slices in a comprehension.


def checksums_hold(lines: Sequence[bytes], seeds: Iterable[int]) -> bool:
    """Whether each of the lines, without its newline, ends in its checksum; cheaper than to ask for each."""
    if not lines:
        return True
    sums = array("I", map(crc32, map(_checked_part, lines), seeds))
    if byteorder == "little":
        sums.byteswap()
    # The ends that they must have, made as one text: ,"crc":"1a2b3c4d"},"crc":"…
    ends = b',"crc":"%b"}' % sums.tobytes().hex(",", 4).encode().replace(b",", b'"},"crc":"')
    return b"".join(map(_checksum_part, lines)) == ends


def decode_checked_line(line: bytes, seed: int) -> Line:
    """The line of these bytes, without its newline, or `Damaged`."""
    if not checksum_holds(line, seed):
        raise Damaged("the checksum does not hold")
    try:
        return decode_line(line)
    except UNDECODABLE as error:
        raise Damaged(f"the checksum holds, but it is not a line: {error}") from error


def lines_of(data: bytes) -> list[bytes]:
    """The lines of the bytes, without their newlines and without padding; what has no newline is left out."""
    lines = data.split(b"\n")
    lines.pop()
    return [line for line in lines if line] if b"" in lines else lines


def decode_events(lines: Sequence[bytes], seeds: Sequence[int], ids: Sequence[int]) -> list[Event]:
    """The events of lines, without their newlines, each checked with its seed; each holds only its own line.

    Raises `Damaged`.
    """
    return _checked(lines, seeds, ids, _decode_event)


def decode_lines(lines: Sequence[bytes], seeds: Sequence[int], ids: Sequence[int]) -> list[Line]:
    """The same as lines."""
    return _checked(lines, seeds, ids, decode_line)


def _checked(lines: Sequence[bytes], seeds: Iterable[int], ids: Sequence[int], decode: Callable[[bytes], E]) -> list[E]:
    if len(lines) != len(ids):
        raise Damaged(f"{len(lines)} lines where {len(ids)} must be")
    if not checksums_hold(lines, seeds):
        raise Damaged("the checksum does not hold")
    try:
        events = list(map(decode, lines))
    except UNDECODABLE as error:
        raise Damaged(f"the checksum holds, but it is not a line: {error}") from error
    if [event.event_id for event in events] != list(ids):
        raise Damaged(f"event {ids[0]} is not where it must be")
    return events


# --- manifest and head ---


class Manifest(msgspec.Struct, frozen=True):
    """What aiostore.json says."""

    min_reader: int
    min_writer: int
    store_id: str
    created: str
    first_segment: int


def encode_manifest(manifest: Manifest) -> bytes:
    """The content of aiostore.json."""
    text = _encoder.encode(manifest)[:-1]
    return b'%b,"crc":"%08x"}\n' % (text, crc32(text))


def decode_manifest(data: bytes) -> Manifest:
    """The manifest of these bytes, or `Damaged`."""
    if data[-1:] != b"\n" or not checksum_holds(data[:-1], 0):
        raise Damaged("the checksum of the manifest does not hold")
    try:
        return msgspec.json.decode(data, type=Manifest)
    except UNDECODABLE as error:
        raise Damaged(f"the checksum holds, but it is not a manifest: {error}") from error


def encode_slot(event_id: int, store_id: str) -> bytes:
    """A slot of the head file."""
    text = b'{"durable":%d' % event_id
    return (b'%b,"crc":"%08x"}' % (text, crc32(text, crc32(store_id.encode() + b"head")))).ljust(SLOT_BYTES - 1) + b"\n"


def decode_slot(slot: bytes, store_id: str) -> int | None:
    """The event_id that the slot holds, None if it is not valid."""
    match = re.match(rb'\{"durable":([0-9]{1,20}),', slot)
    if match is None or slot != encode_slot(int(match[1]), store_id):
        return None
    return int(match[1])
