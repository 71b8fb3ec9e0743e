"""What a directory holds, and putting right what a crash left. Synchronous, so that tests can try crash upon crash.

A torn tail is what a crash leaves of a write that nobody was told of: it is set aside and cut. Anything else that is
not as it must be is damage: a writer refuses it, a reader keeps clear of it.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from aiostore.engine import Head
from aiostore.engines.file.disk import Disk
from aiostore.engines.file.format import (
    HEAD_NAME,
    Damaged,
    Manifest,
    decode_events,
    lines_of,
    segment_first,
    segment_name,
)
from aiostore.engines.file.head import read_head
from aiostore.engines.file.index import PART_BYTES_MIN, Damage, Index, Part
from aiostore.engines.file.run import Run
from aiostore.engines.file.scan import CHUNK_BYTES, EVENT_ID_MAX, UNKNOWN, Scan
from aiostore.engines.file.sealed import check_run
from aiostore.engines.file.segment import Segment
from aiostore.errors import StoreCorrupt

_log = logging.getLogger("aiostore")

COPY_SUFFIX = ".tmp"
"""Behind the name of a segment: a copy that a crash left half-way."""


@dataclass(slots=True)
class Survey:
    """What the segments hold. ``index`` has the whole commits; the rest is told of the last segment."""

    index: Index
    durable: int = 0
    """The last event known to be durable."""
    size: int = 0
    """Up to where the last segment's file has lines; what is behind its segment's ``end`` is torn, if not damaged."""
    damages: list[Damage] = field(default_factory=list)


Sealed = Callable[[Index, Part], None]
"""Called with a part that is complete, and whole."""


def survey(
    disk: Disk,
    directory: str,
    manifest: Manifest,
    *,
    runs: Sequence[Run] = (),
    watching: bool = False,
    tolerant: bool = False,
    going_on: Callable[[], None] = lambda: None,
    sealed: Sealed = lambda _index, _part: None,
    part_bytes_min: int = PART_BYTES_MIN,
    index: Index | None = None,
) -> Survey:
    """Scan all segments but those that runs are the index of. ``tolerant`` goes on behind damage; else it ends there.

    ``watching``, beside a writer, takes only what is known to be durable. ``going_on`` is called again and again, and
    may raise to end it. ``index``: what the lines are entered into; without it, a new one.
    """
    head = read_head(disk, f"{directory}/{HEAD_NAME}", manifest.store_id)
    found = Survey(Index(manifest.store_id, part_bytes_min) if index is None else index, head)
    firsts = [first for name in disk.names(directory) if (first := segment_first(name))]
    runs_by_first = {run.first_event_id: run for run in runs}
    expected = manifest.first_segment
    place = 0
    newest = False
    while place < len(firsts):
        first = firsts[place]
        if first != expected:
            found.damages.append(_outside(directory, expected, first))
            if not tolerant:
                return found
            if first < expected:
                place += 1
                continue
        run = runs_by_first.get(first)
        if run is not None and _take_run(disk, directory, manifest.store_id, found, run, firsts[place:], sealed):
            place += len(run.segments)
            expected = run.last_event_id + 1
            continue
        segment = Segment(directory, manifest.store_id, first)
        complete = found.index.add_segment(segment)
        if complete is not None and not found.damages:
            sealed(found.index, complete)
        if place < len(firsts) - 1:
            _sealed(disk, found, segment, firsts[place + 1], going_on)
            expected = max(firsts[place + 1], segment.last_event_id + 1)
        else:
            if not tolerant:
                forget(disk, segment)
            newest = True
            _newest(disk, found, segment, watching=watching, going_on=going_on)
        if found.damages and not tolerant:
            return found
        place += 1
    if not newest and found.durable >= expected:  # there are none, or the last is outside of the chain
        reason = "the segment is missing" if firsts else "all segments are missing"
        found.damages.append(Damage(f"{directory}/{segment_name(expected)}", 0, reason, expected, found.durable))
    return found


def _take_run(
    disk: Disk, directory: str, store_id: str, found: Survey, run: Run, firsts: Sequence[int], sealed: Sealed
) -> bool:
    """Take in the segments that the run is the index of; False if it is not, or one of them is the newest."""
    count = len(run.segments)
    if count >= len(firsts):
        return False
    segments = [Segment(directory, store_id, first) for first in firsts[:count]]
    try:
        last = check_run(disk, run, segments, firsts[count])
    except (Damaged, OSError) as error:
        _log.warning("%s does not fit, the index is made anew: %s", run.path, str(error))
        return False
    complete = found.index.add_sealed(segments, run)
    if complete is not None and not found.damages:
        sealed(found.index, complete)
    found.index.head = Head(last.event_id, last.timestamp)
    found.durable = max(found.durable, last.event_id)
    return True


def scan_again(
    disk: Disk,
    directory: str,
    store_id: str,
    run: Run,
    part_bytes_min: int,
    going_on: Callable[[], None],
    sealed: Sealed,
) -> Sequence[Part | Run]:
    """What takes the place of a run that is damaged, found by scanning its segments; `StoreCorrupt` if they are."""
    found = Survey(Index(store_id, part_bytes_min))
    firsts = [segment.first_event_id for segment in run.segments]
    for first, following in zip(firsts, [*firsts[1:], run.last_event_id + 1], strict=True):
        segment = Segment(directory, store_id, first)
        complete = found.index.add_segment(segment)
        if complete is not None:
            sealed(found.index, complete)
        _sealed(disk, found, segment, following, going_on)
        if found.damages:
            raise found.damages[0].error()
    sealed(found.index, found.index.newest)
    return found.index.sources


def _outside(directory: str, expected: int, first: int) -> Damage:
    if first > expected:
        return Damage(f"{directory}/{segment_name(expected)}", 0, "the segment is missing", expected, first - 1)
    return Damage(f"{directory}/{segment_name(first)}", 0, "the segment is outside of the chain", first, first - 1)


def forget(disk: Disk, segment: Segment) -> None:
    """Have the segment read from the device: after a failed sync, memory may show what the device lost."""
    file = disk.open_read(segment.path)
    try:
        disk.drop_cache(file)
    finally:
        disk.close(file)


def _sealed(disk: Disk, found: Survey, segment: Segment, following: int, going_on: Callable[[], None]) -> None:
    """Scan a segment that was finished: it must be whole and end where the next begins."""
    scan = Scan(disk, segment, found.index, going_on)
    scan.run()
    damages = scan.damages
    if damages and damages[-1].last == UNKNOWN:
        damages[-1] = damages[-1]._replace(last=following - 1)
    elif scan.last_event_id < following - 1:
        reason = f"the segment ends with event {scan.last_event_id} where {following - 1} must"
        damages.append(Damage(segment.path, scan.size, reason, scan.last_event_id + 1, following - 1))
    elif scan.has_open_commit:
        reason = f"the commit of event {scan.last_event_id} has no end"
        damages.append(Damage(segment.path, scan.size, reason, scan.last_event_id + 1, scan.last_event_id))
    scan.enter_later()
    if not damages:
        segment.end = scan.size  # with the padding, as its index has it
    found.damages.extend(damages)


def _newest(disk: Disk, found: Survey, segment: Segment, *, watching: bool, going_on: Callable[[], None]) -> None:
    """Scan the segment that was written last, and tell a torn tail from damage."""
    scan = Scan(disk, segment, found.index, going_on, found.durable if watching else EVENT_ID_MAX)
    scan.run()
    # Without damage, and with no commit open, there are blank lines behind the end, which the next ones will replace.
    found.size = scan.size if scan.damages or scan.later else segment.end
    found.durable = durable = max(found.durable, scan.durable)
    if durable <= scan.last_whole_event_id and not scan.undecodable:
        if watching:
            scan.enter_later(durable)
        return
    while scan.later and scan.later[-1].line.more and scan.later[-1].line.event_id > durable:
        scan.later.pop()  # the commit was cut off before it ended
    unfinished = bool(scan.later) and scan.later[-1].line.more > 0
    scan.enter_later(durable if watching else EVENT_ID_MAX)
    last = max(segment.last_event_id, durable)
    damages = _up_to(last, scan.damages)
    told = max(segment.last_event_id, damages[-1].last if damages else 0)
    if last > told:
        reason = f"the log ends with event {segment.last_event_id}, but events up to {last} were stored"
        damages.append(Damage(segment.path, scan.size, reason, told + 1, last))
    elif unfinished:
        reason = f"the commit of event {segment.last_event_id} has no end"
        damages.append(Damage(segment.path, scan.size, reason, last + 1, last))
    found.damages.extend(damages)


def _up_to(last: int, damages: Sequence[Damage]) -> list[Damage]:
    """The damages without what comes behind the last event: that was never acknowledged. The first one is kept."""
    kept = [damage for place, damage in enumerate(damages) if not place or damage.first <= last]
    return [damage._replace(last=last if damage.last == UNKNOWN else min(damage.last, last)) for damage in kept]


def repair(disk: Disk, directory: str, found: Survey, stamp: str) -> None:
    """Set a torn tail of the last segment aside and cut it, and make durable what is kept but not known to be."""
    segment = found.index.segments[-1]
    last = segment.last_event_id
    if found.size <= segment.end and found.durable >= last:
        return
    file = disk.open_write(segment.path)
    try:
        if found.size > segment.end:
            _set_aside(disk, directory, file, found.size, segment, stamp)
        if found.durable < last:
            _write_again(disk, directory, file, segment, found.durable + 1)
            found.durable = last
        else:
            disk.truncate(file, segment.end)
            disk.sync(file)
    finally:
        disk.close(file)


def _write_again(disk: Disk, directory: str, file: int, segment: Segment, first: int) -> None:
    """Put a copy of the segment, synced, in its place; the events from the first on are checked once more.

    Where a sync failed, what is read may be in memory only, and clean: it must be written to be synced. It may be
    acknowledged, too, so that it is not written over: a crash could damage what it writes.
    """
    start, last = segment.starts(first, first)[0], segment.last_event_id
    path = f"{segment.path}{COPY_SUFFIX}"
    copy = disk.open_write(path)
    try:
        disk.truncate(copy, 0)
        for offset in range(0, start, CHUNK_BYTES):
            disk.write_at(copy, disk.read(file, min(CHUNK_BYTES, start - offset), offset), offset)
        data = disk.read(file, segment.end - start, start)
        try:
            decode_events(lines_of(data), [segment.seed] * (last - first + 1), range(first, last + 1))
        except Damaged as damaged:
            raise StoreCorrupt(segment.path, start, str(damaged), first, last) from damaged
        disk.write_at(copy, data, start)
        disk.sync(copy)
    except BaseException:
        disk.remove(path)
        raise
    finally:
        disk.close(copy)
    disk.replace(path, segment.path)
    disk.sync_directory(directory)


def is_copy(name: str) -> bool:
    """Whether the file of the name is a copy of a segment that was to take its place."""
    return name.endswith(COPY_SUFFIX) and segment_first(name.removesuffix(COPY_SUFFIX)) is not None


def is_torn(name: str) -> bool:
    """Whether the file of the name has a tail that was set aside."""
    return name.startswith("torn-") and name.endswith(".bin")


def _set_aside(disk: Disk, directory: str, file: int, size: int, segment: Segment, stamp: str) -> None:
    """Save what is behind the end of the segment's last commit, durably."""
    name = f"torn-{segment.last_event_id + 1}-{stamp}"
    tries = itertools.count(2)
    path = f"{directory}/{name}.bin"
    while disk.exists(path):
        path = f"{directory}/{name}-{next(tries)}.bin"
    torn = disk.open_write(path, exclusive=True)
    try:
        disk.write_at(torn, disk.read(file, size - segment.end, segment.end), 0)
        disk.sync(torn)
    except BaseException:
        disk.remove(path)  # not whole; the tail is where it was
        raise
    finally:
        disk.close(torn)
    disk.sync_directory(directory)
    _log.warning(
        "%s: the %d bytes behind event %d are what a crash left of an append that was not acknowledged; now in %s",
        segment.path,
        size - segment.end,
        segment.last_event_id,
        path,
    )
