"""Making a manifest anew that is lost or damaged: what it must say follows from the other files.

All checksums of a store begin with that of its id: the seed of a segment's lines is ``crc32(id + first event_id)``, and
CRC-32 can be run backwards, from what a line's checksum is to what it began with. So each intact line says what
``crc32(id)`` is, and so do the slots of the head and the headers of runs. Where two of these agree, that is it: by
chance they do so once in 2**32 times. The id itself is not to be had so; but any other id with the same CRC-32 fits all
checksums, and one is found in a moment. (The index, whose hashes begin with the id, is then made anew.) Where the id is
still to be read in what is left of the manifest, and fits, it is that.
"""

from __future__ import annotations

import functools
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Final
from zlib import crc32 as plain_crc32

from aiostore.engine import FIRST_TIMESTAMP
from aiostore.engines.file.disk import Disk, OpenFile
from aiostore.engines.file.format import (
    CRC_BYTES,
    FORMAT,
    HEAD_NAME,
    MANIFEST_NAME,
    SLOT_BYTES,
    UNDECODABLE,
    Line,
    Manifest,
    decode_line,
    segment_first,
    segment_name,
)
from aiostore.engines.file.head import HEAD_BYTES
from aiostore.engines.file.manifest import MANIFEST_BYTES_MAX
from aiostore.engines.file.run_format import HEADER_BYTES, run_first

SEGMENTS_ASKED: Final = 8
BYTES_ASKED: Final = 256 * 1024
LINES_ASKED: Final = 64
"""So many lines are asked in each of the segments that are."""

WITNESSES_MIN: Final = 2
"""So many must agree on the checksum of the store's id."""

_STORE_ID = re.compile(rb"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
_CREATED = re.compile(rb'"created":"(\d{4}-\d\d-\d\dT[\d:.]+Z)"')
_FIRST_SEGMENT = re.compile(rb'"first_segment":([0-9]{1,19}),')
_TEXT_END = re.compile(rb',"crc":"([0-9a-f]{8})"\} *$')


def lost_manifest(disk: Disk, directory: str, names: Sequence[str]) -> Manifest | None:
    """What the manifest must have said, or None where too little is left to know it. Waits for the device."""
    votes: Counter[int] = Counter()
    created = FIRST_TIMESTAMP
    for witness, line in _witnesses(disk, directory, names):
        votes[witness] += 1
        if line is not None and created == FIRST_TIMESTAMP:
            created = line.timestamp
    if not votes:
        return None
    checksum, count = votes.most_common(1)[0]
    if count < WITNESSES_MIN:
        return None
    left = _left(disk, directory, names)
    store_id = next((each for each in _ids_in(left) if plain_crc32(each.encode()) == checksum), None)
    said = _CREATED.search(left)
    if said is not None:
        created = said[1].decode()
    first = _FIRST_SEGMENT.search(left)
    first_segment = int(first[1]) if first is not None and segment_name(int(first[1])) in names else 1
    return Manifest(FORMAT, FORMAT, store_id or id_with_checksum(checksum), created, first_segment)


def _left(disk: Disk, directory: str, names: Sequence[str]) -> bytes:
    """What there is in the place of the manifest."""
    return _read(disk, f"{directory}/{MANIFEST_NAME}", MANIFEST_BYTES_MAX) if MANIFEST_NAME in names else b""


def _ids_in(text: bytes) -> list[str]:
    return [match[0].decode() for match in _STORE_ID.finditer(text)]


def _witnesses(disk: Disk, directory: str, names: Sequence[str]) -> Iterator[tuple[int, Line | None]]:
    """What each says the checksum of the id is: those that are damaged all say something else."""
    segments = [name for name in names if segment_first(name)]
    for name in [*segments[:SEGMENTS_ASKED], *segments[SEGMENTS_ASKED:][-SEGMENTS_ASKED:]]:
        suffix = b"%020d" % (segment_first(name) or 0)
        lines = ((text, _decoded(text)) for text in _read(disk, f"{directory}/{name}", BYTES_ASKED).split(b"\n"))
        for text, line in islice((each for each in lines if each[1] is not None), LINES_ASKED):
            began = _began(text)
            if began is not None:
                yield rewound(suffix, began), line
    if HEAD_NAME in names:
        head = _read(disk, f"{directory}/{HEAD_NAME}", HEAD_BYTES)
        slots = {head[start : start + SLOT_BYTES].rstrip(b"\n") for start in (0, SLOT_BYTES)}
        yield from _of_texts(slots, b"head")
    headers = [_read(disk, f"{directory}/{name}", HEADER_BYTES) for name in names if run_first(name)]
    yield from _of_texts({header.rstrip(b"\n") for header in headers[:SEGMENTS_ASKED]}, b"index")


def _of_texts(texts: set[bytes], suffix: bytes) -> Iterator[tuple[int, None]]:
    for text in texts:
        began = _began(text)
        if began is not None:
            yield rewound(suffix, began), None


def _began(text: bytes) -> int | None:
    """With which seed the text's checksum began, if it ends in one."""
    match = _TEXT_END.search(text)
    return None if match is None else rewound(text[: match.start()], int(match[1], 16))


def _decoded(text: bytes) -> Line | None:
    try:
        return decode_line(text) if len(text) > CRC_BYTES else None
    except UNDECODABLE:
        return None


def _read(disk: Disk, path: str, size: int) -> bytes:
    opened = OpenFile(disk, path)
    try:
        return disk.read(opened.file, size, 0)
    finally:
        opened.close()


# --- CRC-32, backwards ---


@functools.cache
def _tables() -> tuple[list[int], list[int]]:
    """The table of CRC-32, and which of its entries has a given first byte: each has another."""
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ 0xEDB88320 if value & 1 else value >> 1
        table.append(value)
    backwards = [0] * 256
    for number, value in enumerate(table):
        backwards[value >> 24] = number
    return table, backwards


def rewound(data: bytes, checksum: int) -> int:
    """The seed with which ``crc32(data, seed)`` is the checksum."""
    state = checksum ^ 0xFFFFFFFF
    table, backwards = _tables()
    for byte in reversed(data):
        number = backwards[state >> 24]
        state = (state ^ table[number]) << 8 & 0xFFFFFFFF | number ^ byte
    return state ^ 0xFFFFFFFF


def id_with_checksum(checksum: int, draw: Callable[[int], str] = secrets.token_hex) -> str:
    """A store id whose CRC-32 is the checksum: 24 random digits, and eight that are looked for from both sides."""
    tails = [b"%04x" % number for number in range(1 << 16)]
    wanted = {rewound(tail, checksum): tail for tail in tails}
    while True:
        begin = draw(12).encode()
        seed = plain_crc32(begin)
        for middle in tails:
            tail = wanted.get(plain_crc32(middle, seed))
            if tail is not None:
                return (begin + middle + tail).decode()
