"""Pieces: which bytes of which segments hold the events of a page. Synchronous; they are found, not read."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from operator import neg
from typing import NamedTuple

from aiostore.engines.file.format import LINE_BYTES_MIN
from aiostore.engines.file.index import Index
from aiostore.engines.file.segment import Segment

PAGE_BYTES = 256 * 1024
"""A page reads about so many bytes; a single larger event comes alone."""

PAGE_LINES_MAX = PAGE_BYTES // LINE_BYTES_MIN

Span = tuple[int, int]

Spans = Sequence[Span]
"""From where to where in their file lines go, each with its newline."""


class Piece(NamedTuple):
    """Events of one segment."""

    segment: Segment
    ids: Sequence[int]
    """In the order of the selection; upwards where the lines are neighbours."""
    start: int
    end: int
    spans: Spans | None = None
    """Of the line of each; None where they follow one another from the start to the end."""


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
        pieces.append(Piece(segment, range(first, first + count), starts[0], end))
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
        pieces.append(Piece(segment, range(low + place, last + 1), starts[place], end))
        budget -= end - starts[place]
        last = low + place - 1
        if last >= segment.first_event_id:
            break
    return pieces


def scattered(index: Index, ids: Sequence[int]) -> list[Piece]:
    """These events, which go up or down, in their order, as far as a page goes."""
    pieces: list[Piece] = []
    left = PAGE_BYTES
    at = 0
    up = len(ids) < 2 or ids[0] < ids[-1]
    while at < len(ids):
        segment = index.segment_of(ids[at])
        if up:
            until = bisect_right(ids, segment.last_event_id, at)
        else:
            until = bisect_right(ids, -segment.first_event_id, at, key=neg)
        own = ids[at:until]
        low, high = (own[0], own[-1]) if up else (own[-1], own[0])
        starts = segment.starts(low, high) if high - low < len(own) else ()
        if starts and starts[-1] - starts[0] <= left:  # one after another, and all of them
            pieces.append(Piece(segment, range(low, high + 1), starts[0], starts[-1]))
            left -= starts[-1] - starts[0]
        else:
            spans = segment.places.spans(own, segment)
            size = 0
            for start, end in spans:
                size += end - start
            if size > left:
                count = _count_within(spans, left)
                own, spans = own[:count], spans[:count]
            if own:
                start, end = (spans[0][0], spans[-1][1]) if up else (spans[-1][0], spans[0][1])
                pieces.append(Piece(segment, own, start, end, spans))
            elif not pieces:  # larger than a page
                pieces.append(Piece(segment, range(ids[at], ids[at] + 1), *segment.span(ids[at])))
            left -= size
            if left < 0:
                break
        at = until
    return pieces


def _count_within(spans: Spans, size: int) -> int:
    """How many of the lines have so many bytes at most."""
    ends = list(accumulate([end - start for start, end in spans]))
    return bisect_right(ends, size)
