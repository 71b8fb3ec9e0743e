"""Pieces: which bytes of which segments hold the events of a page. Synchronous; they are found, not read."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from aiostore.engines.file.format import LINE_BYTES_MIN
from aiostore.engines.file.index import Index
from aiostore.engines.file.segment import Segment

PAGE_BYTES = 256 * 1024
"""A page reads about so many bytes; a single larger event comes alone."""

PAGE_LINES_MAX = PAGE_BYTES // LINE_BYTES_MIN

GAP_BYTES = 4096
"""Lines so near to each other are read as one piece."""


class Run(NamedTuple):
    """Lines that follow one another."""

    first_event_id: int
    last_event_id: int
    starts: Sequence[int]
    """Where each begins in the file, and at last where the last one ends."""


class Piece(NamedTuple):
    """What is read from a segment at once; its runs stand in the order of the selection."""

    segment: Segment
    start: int
    end: int
    runs: list[Run]


def runs_up(index: Index, first: int, last: int) -> list[Piece]:
    """The events from the first on, as far as a page goes."""
    pieces: list[Piece] = []
    budget = PAGE_BYTES
    while first <= last:
        segment = index.segment_of(first)
        starts = segment.starts(first, min(last, segment.last_event_id, first + PAGE_LINES_MAX))
        count = bisect_right(starts, starts[0] + budget) - 1
        if count <= 0:  # below it, a larger event came last in the segment before
            if pieces:
                break
            count = 1
        end = starts[count]
        pieces.append(Piece(segment, starts[0], end, [Run(first, first + count - 1, starts[: count + 1])]))
        budget -= end - starts[0]
        first += count
        if first <= segment.last_event_id:
            break
    return pieces


def runs_down(index: Index, first: int, last: int) -> list[Piece]:
    """The events from the last down, as far as a page goes."""
    pieces: list[Piece] = []
    budget = PAGE_BYTES
    while first <= last:
        segment = index.segment_of(last)
        low = max(first, segment.first_event_id, last - PAGE_LINES_MAX)
        starts = segment.starts(low, last)
        end = starts[-1]
        place = min(bisect_left(starts, end - budget), len(starts) - 2)
        if end - starts[place] > budget and pieces:
            break
        pieces.append(Piece(segment, starts[place], end, [Run(low + place, last, starts[place:])]))
        budget -= end - starts[place]
        last = low + place - 1
        if last >= segment.first_event_id:
            break
    return pieces


def scattered(index: Index, ids: Sequence[int]) -> list[Piece]:
    """These events, which go up or down, in their order, as far as a page goes; those near to each other in one."""
    pieces: list[Piece] = []
    budget = PAGE_BYTES
    at = 0
    while at < len(ids):
        segment = index.segment_of(ids[at])
        until = _neighbours(ids, at, segment)
        low, high = (ids[at], ids[until - 1]) if ids[at] <= ids[until - 1] else (ids[until - 1], ids[at])
        run = Run(low, high, segment.starts(low, high))
        start, end = run.starts[0], run.starts[-1]
        near = pieces[-1] if pieces and pieces[-1].segment is segment else None
        if near is not None and near.start - GAP_BYTES <= end and start <= near.end + GAP_BYTES:
            joined = Piece(segment, min(start, near.start), max(end, near.end), [*near.runs, run])
            budget -= (joined.end - joined.start) - (near.end - near.start)
        else:
            near, joined = None, Piece(segment, start, end, [run])
            budget -= end - start
        if budget < 0 and pieces:
            break
        if budget < 0 and high > low:  # more than a page by itself
            return runs_up(index, low, high) if ids[at] == low else runs_down(index, low, high)
        if near is not None:
            pieces[-1] = joined
        else:
            pieces.append(joined)
        at = until
    return pieces


def _neighbours(ids: Sequence[int], at: int, segment: Segment) -> int:
    """Up to which place the ids go on one by one, up or down, in the segment."""
    until = at + 1
    if until == len(ids):
        return until
    step = 1 if ids[until] > ids[at] else -1
    following = ids[at] + step
    while until < len(ids) and ids[until] == following and segment.first_event_id <= following <= segment.last_event_id:
        following += step
        until += 1
    return until
