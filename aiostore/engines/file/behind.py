"""What stands behind the end of a segment, as far as that is durable: the next whole commits, its end, or damage."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate, islice
from typing import NamedTuple

from aiostore.engines.file.disk import Disk, OpenFile
from aiostore.engines.file.format import Damaged, Line, decode_checked_line, segment_name
from aiostore.engines.file.scan import CHUNK_BYTES, take_valid
from aiostore.engines.file.segment import Segment
from aiostore.errors import StoreCorrupt


class News(NamedTuple):
    """Whole commits behind the end of the last segment."""

    lines: Sequence[Line]
    starts: Sequence[int]
    """Where each begins in the file, and at last where the last one ends."""


class Ended(NamedTuple):
    """Nothing more comes in this segment, and there is another."""

    size: int


def look_behind(
    disk: Disk, directory: str, segment: Segment, file: OpenFile | None, durable: int
) -> tuple[OpenFile, News | Ended]:
    """What comes next, up to the durable event, about `CHUNK_BYTES` of it; and the segment's file, opened.

    Waits for the device. Raises `StoreCorrupt` where nothing whole comes before what is damaged, and `OSError`.
    """
    opened = file or OpenFile(disk, segment.path)
    try:
        return opened, _look_behind(disk, directory, segment, opened, durable)
    except BaseException:
        if file is None:
            opened.close()  # now: who keeps the error keeps what its traceback refers to
        raise


def _look_behind(disk: Disk, directory: str, segment: Segment, file: OpenFile, durable: int) -> News | Ended:
    size = CHUNK_BYTES
    ended = False
    while True:
        data = disk.read(file.file, size, segment.end)
        news = whole_commits(data, segment, durable)
        if news is not None:
            return news
        damage = _damage(data, segment, durable)
        if damage is not None:
            raise damage
        if len(data) == size:
            size *= 4  # a commit may have 64 MiB
        elif not ended and _is_followed(disk, directory, segment):
            ended = True  # the next was made after the last write here: what is not there now never will be
        else:
            break
    if ended and not data.strip(b"\n"):
        return Ended(segment.end + len(data))
    last = segment.last_event_id
    reason = f"events up to {durable} are durable, but not all of them stand behind event {last}"
    raise StoreCorrupt(segment.path, segment.end, reason, last + 1, durable)


def _is_followed(disk: Disk, directory: str, segment: Segment) -> bool:
    """Whether there is a next segment. One without events would have its own name."""
    following = segment.last_event_id + 1
    return following > segment.first_event_id and disk.exists(f"{directory}/{segment_name(following)}")


def whole_commits(data: bytes, segment: Segment, durable: int) -> News | None:
    """The whole commits that the bytes behind the segment's end begin with, up to the durable event; None if none."""
    texts, starts = _split(data, segment, durable)
    lines = take_valid(texts, segment.seed, segment.last_event_id + 1)
    if not lines:
        lines, _ = _take_singly(texts, segment)
        while lines and lines[-1].more:
            lines.pop()
    if not lines:
        return None
    end = starts[len(lines) - 1] + len(texts[len(lines) - 1]) + 1
    return News(lines, [*starts[: len(lines)], end])


def _split(data: bytes, segment: Segment, durable: int) -> tuple[list[bytes], list[int]]:
    """The lines up to the durable event, without their newlines, and where each begins in the file."""
    wanted = min(durable - segment.last_event_id, len(data))  # what a head says may be beyond all measure
    if b"\n\n" in data or data[:1] == b"\n":  # there may be megabytes of padding
        # Not beyond the last newline: in a long line without its end, it would be looked for from each byte on.
        found = list(islice(_LINE.finditer(data, 0, data.rfind(b"\n") + 1), wanted))
        return [match[0] for match in found], [segment.end + match.start() for match in found]
    texts = data.split(b"\n", wanted)
    texts.pop()
    return texts, list(accumulate([len(text) + 1 for text in texts], initial=segment.end))[: len(texts)]


_LINE = re.compile(rb"[^\n]+(?=\n)")


def _take_singly(texts: Sequence[bytes], segment: Segment) -> tuple[list[Line], str]:
    """The valid lines that these begin with, and why the next one is not; no why where they all are."""
    lines: list[Line] = []
    for text in texts:
        event_id = segment.last_event_id + 1 + len(lines)
        more = lines[-1].more if lines else 0
        line = _decoded(text, segment.seed)
        if line is None:
            return lines, "the checksum does not hold, or it is not a line"
        if line.event_id != event_id:
            return lines, f"event {line.event_id} stands where {event_id} must"
        if more and (line.more != more - 1 or line.key is not None):
            return lines, f"another commit begins where {more} more events of the last one must be"
        lines.append(line)
    return lines, ""


def _decoded(text: bytes, seed: int) -> Line | None:
    try:
        return decode_checked_line(text, seed)
    except Damaged:
        return None


def _damage(data: bytes, segment: Segment, durable: int) -> StoreCorrupt | None:
    """The first damage in the bytes, up to the next valid line, or else to the durable event."""
    texts, starts = _split(data, segment, durable)
    lines, reason = _take_singly(texts, segment)
    if not reason:
        return None
    first = segment.last_event_id + 1 + len(lines)
    later = (line.event_id for text in texts[len(lines) + 1 :] if (line := _decoded(text, segment.seed)) is not None)
    last = next((event_id - 1 for event_id in later if event_id > first), durable)
    return StoreCorrupt(segment.path, starts[len(lines)], reason, first, min(last, durable))
