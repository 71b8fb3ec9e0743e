"""What stands in the files, found without aiostore's own scan: each valid line anywhere, and how the log goes on."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated
from zlib import crc32

import msgspec

from aiostore.engines.file import format as fmt
from aiostore.engines.file.format import CRC_BYTES, SLOT_BYTES, UNDECODABLE, Damaged
from aiostore.events import Event
from tests.fuzz.seeds import HEAD, MANIFEST, Files, first_of, segments_of

_BEGIN = re.compile(rb'\{\s*"')
_END = re.compile(rb',"crc":"[0-9a-f]{8}"\}')
CACHED_MAX = 100_000
BEGINNINGS_MAX = 500
BYTES_LOOKED_AT_MAX = 4_000_000
CACHED_BYTES_MAX = 2000
NUMBER_MAX = 2**63 - 1


class Written(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line by the specification."""

    event_id: Annotated[int, msgspec.Meta(ge=1, le=NUMBER_MAX)]
    stream_id: str
    version: Annotated[int, msgspec.Meta(ge=1, le=NUMBER_MAX)]
    event_type: str
    timestamp: str
    data: msgspec.Raw
    crc: str
    metadata: msgspec.Raw = msgspec.Raw(b"")
    tags: tuple[str, ...] = ()
    key: str | None = None
    more: Annotated[int, msgspec.Meta(ge=0, le=NUMBER_MAX)] = 0
    unsynced: Annotated[int, msgspec.Meta(ge=0, le=NUMBER_MAX)] = msgspec.field(name="open", default=0)

    @property
    def event(self) -> Event:
        return Event(
            self.event_id,
            self.stream_id,
            self.version,
            self.event_type,
            self.timestamp,
            self.data,
            self.metadata,
            self.tags,
        )


_decode = msgspec.json.Decoder(Written).decode
_known: dict[tuple[int, bytes], Written | None] = {}


def written(text: bytes, seed: int) -> Written | None:
    """The line of the text, if it is valid by itself."""
    if len(text) > CACHED_BYTES_MAX:
        return _written(text, seed)
    known = (seed, text)
    if known not in _known:
        if len(_known) > CACHED_MAX:
            _known.clear()
        _known[known] = _written(text, seed)
    return _known[known]


_decode_event = msgspec.json.Decoder(Event).decode


def served(text: bytes, seed: int) -> Event | None:
    """What may be served of the text. Reading asks less of it than recovery, which has seen it before."""
    line = written(text, seed)
    if line is not None:
        return line.event
    if text[-CRC_BYTES:] != b',"crc":"%08x"}' % crc32(text[:-CRC_BYTES], seed):
        return None
    try:
        return _decode_event(text)
    except UNDECODABLE:
        return None


def _written(text: bytes, seed: int) -> Written | None:
    if text[-CRC_BYTES:] != b',"crc":"%08x"}' % crc32(text[:-CRC_BYTES], seed):
        return None
    try:
        return _decode(text)
    except UNDECODABLE:
        return None


@dataclass
class Standing:
    """What may be served of these files, and what must be."""

    store_id: str | None
    events: set[Event] = field(default_factory=set)
    """Of every valid line in a segment."""
    lines: list[Written] = field(default_factory=list)
    """Those of the whole commits that the log begins with, before anything is wrong."""
    ends: set[int] = field(default_factory=lambda: {0})
    """The last events of these commits."""
    whole: bool = True
    """Nothing is wrong, but maybe behind the last whole commit of the newest segment."""
    durable: int = 0
    """What is known to be durable at least: by the head, and by valid lines of the newest segment."""
    begins_anywhere: bool = False
    """The manifest says that the log does not begin with event 1, as nothing that writes has it yet."""
    clean: bool = True
    """Nothing at all is wrong, or left over."""

    @property
    def last_event_id(self) -> int:
        return max(self.ends)

    @property
    def must_open(self) -> bool:
        """There is no reason not to open it for writing."""
        return self.clean and self.durable <= self.last_event_id

    @classmethod
    def of(cls, files: Files) -> Standing:
        """Look at the files."""
        try:
            manifest = fmt.decode_manifest(files[MANIFEST])
        except (KeyError, Damaged):
            return cls(None, whole=False, clean=False)
        found = cls(manifest.store_id, begins_anywhere=manifest.first_segment != 1)
        found.clean = max(manifest.min_reader, manifest.min_writer) <= fmt.FORMAT and not found.begins_anywhere
        head = files.get(HEAD, b"")
        for start in (0, SLOT_BYTES):
            found.durable = max(
                found.durable, fmt.decode_slot(head[start : start + SLOT_BYTES], manifest.store_id) or 0
            )
        expected = manifest.first_segment
        found.ends = {expected - 1}
        paths = segments_of(files)
        for path in paths:
            first = first_of(path) or 0
            found.whole &= first == expected
            expected = found._take(files[path], fmt.line_seed(manifest.store_id, first), first, path == paths[-1])
        found.clean &= found.whole
        return found

    def _look_inside(self, text: bytes, seed: int) -> None:
        """Lines that begin in the midst of another, and those of which but the newline is lost."""
        for begin in islice(_BEGIN.finditer(text), max(5, min(BEGINNINGS_MAX, BYTES_LOOKED_AT_MAX // len(text)))):
            end = _END.search(text, begin.end())
            for piece in {text[begin.start() :], text[begin.start() : end.end() if end else None]}:
                inner = served(piece, seed)
                if inner is not None:
                    self.events.add(inner)

    def _take(self, data: bytes, seed: int, first: int, newest: bool) -> int:
        expected, more, pending, clean = first, 0, list[Written](), True
        texts = data.split(b"\n")
        for text in texts[:-1]:
            line = written(text, seed) if text else None
            if line is not None:
                self.events.add(line.event)
            elif text:
                clean = False
                self._look_inside(text, seed)
                continue
            if line is None:
                continue
            if not clean or line.event_id != expected or (more and (line.more != more - 1 or line.key is not None)):
                clean = False
                continue
            expected, more = expected + 1, line.more
            pending.append(line)
            if newest:
                self.durable = max(self.durable, line.event_id - 1 - line.unsynced)
            if not more and self.whole:
                self.lines += pending
                self.ends.add(line.event_id)
                pending = []
        clean &= not texts[-1] and not more
        self.clean &= clean
        if not newest:
            self.whole &= clean
        return expected
