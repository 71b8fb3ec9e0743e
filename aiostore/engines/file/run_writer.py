"""Writing runs: from the postings of sealed segments, or from runs that are merged.

It is done in a thread beside a busy event loop: between slices of well under a millisecond each it lets go of the GIL.
"""

from __future__ import annotations

import time
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice, pairwise
from typing import Final, NamedTuple, TypeAlias

from aiostore.engines.file.blocks import encode_numbers
from aiostore.engines.file.disk import Disk
from aiostore.engines.file.run import Run
from aiostore.engines.file.run_file import write_run
from aiostore.engines.file.run_format import RUN_EVENTS_MAX, SEGMENT_BYTES_MAX, RunSegment
from aiostore.engines.file.terms import Postings, hash_of, least_keys
from aiostore.engines.postings import Kind

SLICE_KEYS: Final = 4096
"""About so many keys are sorted at once."""

SLICE_TERMS: Final = 512
"""So many terms are hashed at once."""

BUCKET_BITS: Final = 6
"""Keys are distributed by so many of their first bits."""

FAN_IN_MAX: Final = 64
"""So many sorted slices are merged at once."""

PAUSE_SECONDS: Final = 50e-6

Pause: TypeAlias = Callable[[], None]
"""Called between slices. What it raises ends the work, and leaves the files as they were."""


def give_way() -> None:
    """Hand the GIL over: a shorter sleep, or one of 0, would keep it."""
    time.sleep(PAUSE_SECONDS)


class SealedSegment(NamedTuple):
    """A sealed segment and what is posted of it."""

    first_event_id: int
    size: int
    """The file's bytes."""
    crc: str
    """The 8 digits of its last line's checksum."""
    starts: array[int]
    """Where each event's line begins in the file."""
    postings: Iterable[tuple[Kind, Postings]]
    """Each of its terms once, with the segment's event_ids only."""


# --- build ---


def build_run(
    disk: Disk, directory: str, store_id: str, segments: Sequence[SealedSegment], pause: Pause = give_way
) -> str:
    """Write the run of neighbouring segments, durably, and return its path. Waits for the device.

    The file appears at once, in the place of any other of its name: a crash, an `OSError` and whatever ``pause`` raises
    leave what was there (after a failed sync of the directory, the new file). Runs that it covers otherwise are left to
    `choose_runs`. ValueError says that these segments cannot be one run: none at all, an empty one, one of more than
    `SEGMENT_BYTES_MAX`, more than `RUN_EVENTS_MAX` events, or segments that are no neighbours in order.
    """
    table = [RunSegment(segment.first_event_id, segment.size, segment.crc) for segment in segments]
    last = _check_segments(segments)
    offsets = chain.from_iterable(_offsets(segment.starts, pause) for segment in segments)
    buckets = _buckets(segments, store_id.encode(), pause)
    keys = _distinct(chain.from_iterable(_sorted_pieces(bucket, pause) for bucket in buckets))
    return write_run(disk, directory, store_id, table, last, offsets, keys, pause)


def _check_segments(segments: Sequence[SealedSegment]) -> int:
    """The last event_id."""
    if not segments:
        raise ValueError("a run has a segment at least")
    after = segments[0].first_event_id
    for segment in segments:
        if segment.first_event_id != after or not segment.starts:
            raise ValueError(f"segment {segment.first_event_id} is empty, or not the one that follows")
        if segment.size > SEGMENT_BYTES_MAX:
            raise ValueError(f"segment {segment.first_event_id} has more than {SEGMENT_BYTES_MAX} bytes")
        after += len(segment.starts)
    if after - segments[0].first_event_id > RUN_EVENTS_MAX:
        raise ValueError(f"a run has at most {RUN_EVENTS_MAX} events")
    return after - 1


def _offsets(starts: array[int], pause: Pause) -> Iterator[bytes]:
    for place in range(0, len(starts), SLICE_KEYS):
        yield encode_numbers(array("I", starts[place : place + SLICE_KEYS]))
        pause()


def _buckets(segments: Sequence[SealedSegment], salt: bytes, pause: Pause) -> list[array[int]]:
    """The keys of all postings, those of each bucket less than those of the next: so they are sorted each alone."""
    first = segments[0].first_event_id
    buckets = [array("Q") for _ in range(1 << BUCKET_BITS)]
    for kind, postings in chain.from_iterable(segment.postings for segment in segments):
        begun = hash_of(salt, kind)
        rest = iter(postings)
        while batch := list(islice(rest, SLICE_TERMS)):
            count = 0
            for least, (_, ids) in zip(least_keys(begun, [text for text, _ in batch]), batch, strict=True):
                append = buckets[least >> (64 - BUCKET_BITS)].append
                shift = least - first
                if len(ids) == 1:  # as most terms have
                    append(shift + ids[0])
                    continue
                for part in (ids,) if len(ids) <= SLICE_KEYS else _parts(ids):
                    for event_id in part:
                        append(shift + event_id)
                    count += len(part)
                    if count >= SLICE_KEYS:
                        pause()
                        count = 0
            pause()
    return buckets


def _parts(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    for place in range(0, len(numbers), SLICE_KEYS):
        yield numbers[place : place + SLICE_KEYS]


def _sorted_pieces(keys: array[int], pause: Pause) -> Iterator[list[int]]:
    """The keys in their order, in pieces of about `SLICE_KEYS`."""
    if len(keys) <= SLICE_KEYS:
        pause()
        yield sorted(keys)
        return
    slices = []
    for part in _parts(keys):
        pause()
        slices.append(array("Q", sorted(part)))
    while len(slices) > FAN_IN_MAX:
        slices = [
            _joined(_merged_slices(slices[place : place + FAN_IN_MAX], pause))
            for place in range(0, len(slices), FAN_IN_MAX)
        ]
    yield from _merged_slices(slices, pause)


def _merged_slices(slices: list[array[int]], pause: Pause) -> Iterator[list[int]]:
    share = max(1, SLICE_KEYS // len(slices))
    return merged([_pieces(keys, share) for keys in slices], pause)


def _pieces(keys: array[int], size: int) -> Iterator[list[int]]:
    for place in range(0, len(keys), size):
        yield keys[place : place + size].tolist()


def _joined(pieces: Iterable[list[int]]) -> array[int]:
    joined = array("Q")
    for piece in pieces:
        joined.extend(piece)
    return joined


def _distinct(pieces: Iterable[list[int]]) -> Iterator[list[int]]:
    """Leave out what stands there twice: an event may have two terms with one hash."""
    last = -1
    for keys in pieces:
        if not keys:
            continue
        distinct = keys if len(set(keys)) == len(keys) else list(dict.fromkeys(keys))
        if distinct[0] == last:
            del distinct[0]
        if distinct:
            last = distinct[-1]
            yield distinct


# --- merge ---


def merge_runs(disk: Disk, directory: str, store_id: str, runs: Sequence[Run], pause: Pause = give_way) -> str:
    """Write the run that takes the place of these neighbours, in order, and return its path; the others are removed.

    It replaces the file of the first. The runs given stay open and can still be read. It takes bounded memory. A crash
    leaves the old runs, or the new one with or without those it covers (see `choose_runs`). Otherwise as `build_run`;
    `Damaged` if a block of a run is.
    """
    first, last = runs[0].first_event_id, runs[-1].last_event_id
    if any(run.last_event_id + 1 != after.first_event_id for run, after in pairwise(runs)):
        raise ValueError(f"{runs} are not neighbours in order")
    if last - first >= RUN_EVENTS_MAX:
        raise ValueError(f"a run has at most {RUN_EVENTS_MAX} events")
    table = [segment for run in runs for segment in run.segments]
    offsets = chain.from_iterable(run.scan_offsets() for run in runs)
    size = SLICE_KEYS // len(runs) or 1
    keys = merged([_rebased(run, run.first_event_id - first, size) for run in runs], pause)
    path = write_run(disk, directory, store_id, table, last, offsets, keys, pause)
    for run in runs[1:]:
        with suppress(OSError):  # it is superfluous, and the next opener deletes it
            disk.remove(run.path)
    return path


def _rebased(run: Run, shift: int, size: int) -> Iterator[list[int]]:
    for keys in run.scan_keys():
        for place in range(0, len(keys), size):
            yield [key + shift for key in keys[place : place + size]]


def merged(sources: Iterable[Iterator[list[int]]], pause: Pause) -> Iterator[list[int]]:
    """Merge sources that are sorted each, and give their keys in pieces of about `SLICE_KEYS`; it pauses before each.

    No source may give more at once than its share of that.
    """
    heads = [(keys, source) for source in sources if (keys := next(source, []))]
    taken: list[int] = []
    while heads:
        bound = min([keys[-1] for keys, _ in heads])
        following: list[tuple[list[int], Iterator[list[int]]]] = []
        for head in heads:
            keys, source = head
            if keys[0] > bound:
                following.append(head)
                continue
            end = bisect_right(keys, bound)
            taken += keys[:end]
            if rest := keys[end:] or next(source, []):
                following.append((rest, source))
        heads = following
        # What is taken next is greater, so it can be sorted with this; where one source has a long row, it is little.
        if 2 * len(taken) >= SLICE_KEYS or not heads:
            taken.sort()
            pause()
            yield taken
            taken = []
