"""That a run says what the log says: all of it, compared while the log is read, in the memory of one segment.

The run is a function of the segments, so it could be made anew and compared byte for byte; but for a run of millions of
events that takes the disk that it lies on. Instead: the segments' table, the offsets and the order of the keys are
compared as they are. Of the keys, a set that may stand in another order here than there, what is compared is the value
of their polynomial, the product of (x - key) modulo a prime, at a point x that is drawn for each check: for different
sets of n keys the values are equal with a probability of n / 2**127 at most.
"""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Iterable
from itertools import islice
from operator import ge
from typing import Final

from aiostore.engines.file.format import Damaged
from aiostore.engines.file.index import Part
from aiostore.engines.file.run import Run
from aiostore.engines.file.run_format import BLOCK_KEYS
from aiostore.engines.file.run_writer import SLICE_TERMS
from aiostore.engines.file.segment import LinePlaces, Segment
from aiostore.engines.file.terms import hash_of, least_keys

PRIME: Final = 2**127 - 1


class RunCheck:
    """A run and what of the log was compared with it so far. Why they differ is told once, by `reason`."""

    def __init__(self, run: Run, store_id: str) -> None:
        self.run = run
        self.reason = ""
        """Why the run is not what it must be; empty as long as it is."""
        self._salt = store_id.encode()
        self._point = secrets.randbelow(PRIME)
        self._value = 1
        self._count = 0
        self._segments = iter(run.segments)

    def take(self, segment: Segment, part: Part, crc: str) -> None:
        """Compare the next segment, which is whole: where its lines are, what is posted of it, its last checksum."""
        if self.reason:
            return
        try:
            self._take(segment, part, crc)
        except Damaged as damaged:
            self.reason = str(damaged)

    def _take(self, segment: Segment, part: Part, crc: str) -> None:
        sealed = next(self._segments, None)
        if sealed != (segment.first_event_id, segment.end, crc):
            raise Damaged(f"its table of segments is not that of the log at event {segment.first_event_id}")
        if segment.last_event_id > self.run.last_event_id:
            raise Damaged(f"it ends with event {self.run.last_event_id}, in the midst of a segment")
        assert isinstance(segment.places, LinePlaces), "the segment was scanned"
        said = self.run.offsets(segment.first_event_id, segment.last_event_id)
        if said != array("I", segment.places.starts):
            raise Damaged(f"it says other places for the lines from event {segment.first_event_id} on")
        keys = self._keys(part)
        self._count += len(keys)
        self._value = _multiplied(self._value, keys, self._point)

    def _keys(self, part: Part) -> set[int]:
        """The keys of a segment; an event may have two terms with one hash, which are one key."""
        keys: set[int] = set()
        base = self.run.first_event_id
        for kind, postings in part.by_kind.items():
            begun = hash_of(self._salt, kind)
            rest = iter(postings.items())
            while batch := list(islice(rest, SLICE_TERMS)):
                for least, (_, ids) in zip(least_keys(begun, [text for text, _ in batch]), batch, strict=True):
                    keys.update([least + event_id - base for event_id in ids])
        return keys

    def finish(self) -> None:
        """Compare the keys, after the last segment."""
        if self.reason:
            return
        try:
            if next(self._segments, None) is not None:
                raise Damaged("it is the index of segments that are not there")
            if self.run.keys_count != self._count or self._said() != self._value:
                raise Damaged("it does not say what the log says: its keys are others")
        except Damaged as damaged:
            self.reason = str(damaged)

    def check_blocks(self) -> None:
        """Check the blocks alone, where the log cannot be compared."""
        try:
            for _ in self.run.scan_offsets():
                pass
            for _ in self.run.scan_keys():
                pass
        except Damaged as damaged:
            self.reason = str(damaged)

    def _said(self) -> int:
        """The value of the polynomial of the run's keys, which must increase, with the first of each block as said."""
        value = 1
        place = 0
        last = -1
        fence = self.run.fence
        for keys in self.run.scan_keys():
            firsts = keys[::BLOCK_KEYS]
            if list(firsts) != list(fence[place : place + len(firsts)]):
                raise Damaged("its directory is not that of its blocks")
            if keys[0] <= last or any(map(ge, keys, keys[1:])):
                raise Damaged("its keys do not increase")
            place += len(firsts)
            last = keys[-1]
            value = _multiplied(value, keys, self._point)
        return value


def _multiplied(value: int, keys: Iterable[int], point: int) -> int:
    for key in keys:
        value = value * (point - key) % PRIME
    return value
