"""The index of sealed segments as a whole: opening the runs that fit, and making one of a part. Synchronous."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from aiostore.engines.file.blocks import Blocks
from aiostore.engines.file.compaction import choose_runs, next_merge
from aiostore.engines.file.disk import Disk
from aiostore.engines.file.format import Damaged, Line, checksum_holds, decode_checked_line
from aiostore.engines.file.index import Index, Part, runs_of
from aiostore.engines.file.run import Run
from aiostore.engines.file.run_format import is_temporary, run_first
from aiostore.engines.file.run_writer import Pause, SealedSegment, build_run, give_way, merge_runs
from aiostore.engines.file.segment import LinePlaces, Segment
from aiostore.engines.postings import Kind
from aiostore.errors import StoreCorrupt

_log = logging.getLogger("aiostore")

LOOKS_MAX = 100
"""So often the runs are looked for beside a process that merges them; then what they would say is read from the log."""

RUNS_OPEN_MAX = 64
"""While an index is made anew, runs are merged in between where more are open: each takes a file descriptor."""


def open_runs(disk: Disk, directory: str, store_id: str, blocks: Blocks) -> tuple[list[Run], list[str]]:
    """The runs that are whole, in order, and the paths of what else there is, which is of no use."""
    for _ in range(LOOKS_MAX):
        found = _look_for_runs(disk, directory, store_id, blocks)
        if found is not None:
            break
    else:
        found = [], []
    runs, useless = found
    used, superfluous = choose_runs(runs)
    for run in superfluous:
        run.close()
    return used, [*useless, *(run.path for run in superfluous if run.path not in {kept.path for kept in used})]


def _look_for_runs(disk: Disk, directory: str, store_id: str, blocks: Blocks) -> tuple[list[Run], list[str]] | None:
    """All of them, in any order; None where one went away in between."""
    runs: list[Run] = []
    useless: list[str] = []
    for name in disk.names(directory):
        path = f"{directory}/{name}"
        if is_temporary(name):
            useless.append(path)
        elif run_first(name) is not None:
            try:
                runs.append(Run.open(disk, path, store_id, blocks))
            except FileNotFoundError:  # merged meanwhile, by the process that writes: it stands in another one now
                for run in runs:
                    run.close()
                return None
            except (Damaged, OSError) as error:
                _log.warning("%s cannot be used, the index is made anew: %s", path, str(error))
                useless.append(path)
    return runs, useless


def check_run(disk: Disk, run: Run, segments: Sequence[Segment], following: int) -> Line:
    """That the run is the index of these segments, ``following`` being the next one's first event; or `Damaged`.

    The segments are told where they end. Returns the last line.
    """
    if [segment.first_event_id for segment in segments] != [sealed.first_event_id for sealed in run.segments]:
        raise Damaged("it is not the index of the segments that are there")
    if run.last_event_id != following - 1:
        raise Damaged(f"the run ends with event {run.last_event_id} where {following - 1} must be")
    line = None
    ends = [*(segment.first_event_id for segment in segments[1:]), following]
    for segment, sealed, end in zip(segments, run.segments, ends, strict=True):
        segment.last_event_id = end - 1
        segment.end = sealed.size
        (start,) = run.offsets(end - 1, end - 1)
        file = disk.open_read(segment.path)
        try:
            size = disk.size(file)
            data = disk.read(file, sealed.size - start, start) if size == sealed.size else b""
        finally:
            disk.close(file)
        if size != sealed.size:
            raise Damaged(f"{segment.path} has {size} bytes where {sealed.size} must be")
        line = decode_checked_line(data.strip(b"\n"), segment.seed)
        if line.crc != sealed.crc or line.event_id != end - 1 or line.more:
            raise Damaged(f"the last line of {segment.path} is another")
    assert line is not None, "a run has a segment at least"
    return line


def seal(disk: Disk, directory: str, store_id: str, part: Part, blocks: Blocks, pause: Pause = give_way) -> Run:
    """Write the index of a part, to which nothing is added any more, and open it."""
    postings = [(kind, part.by_kind[kind].items()) for kind in Kind]
    sealed: list[SealedSegment] = []
    for segment in part.segments:
        assert isinstance(segment.places, LinePlaces), "a part has the places of its lines"
        start, end = segment.span(segment.last_event_id)
        file = disk.open_read(segment.path)
        try:
            last = disk.read(file, end - start, start).strip(b"\n")
        finally:
            disk.close(file)
        if not checksum_holds(last, segment.seed):
            raise StoreCorrupt(segment.path, start, "the checksum does not hold", *[segment.last_event_id] * 2)
        crc = last[-10:-2].decode()
        sealed.append(SealedSegment(segment.first_event_id, segment.end, crc, segment.places.starts, postings))
        postings = []  # those of the whole part stand with its first segment
    return Run.open(disk, build_run(disk, directory, store_id, sealed, pause), store_id, blocks)


def too_many(index: Index) -> Sequence[Run]:
    """The runs to merge before another part gets its index, while one is made anew; none while few are open."""
    runs = runs_of(index)
    following = next_merge(runs) if len(runs) > RUNS_OPEN_MAX else None
    return () if following is None else runs[following]


def merge(
    disk: Disk, directory: str, store_id: str, runs: Sequence[Run], blocks: Blocks, pause: Pause = give_way
) -> Run:
    """Write the run that takes the place of these neighbours, and open it; they stay open."""
    return Run.open(disk, merge_runs(disk, directory, store_id, runs, pause), store_id, blocks)
