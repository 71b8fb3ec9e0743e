"""Segments, their runs, and what runs must answer by the plainest index there is."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

from aiostore.engines.file.blocks import Blocks
from aiostore.engines.file.compaction import choose_runs
from aiostore.engines.file.disk import Disk
from aiostore.engines.file.format import Damaged
from aiostore.engines.file.run import Run
from aiostore.engines.file.run_format import RunSegment, is_temporary, run_first
from aiostore.engines.file.run_writer import SealedSegment, build_run
from aiostore.engines.postings import Kind, Term, key_text
from tests.file.disks import MemoryDisk

STORE_ID = "000102030405060708090a0b0c0d0e0f"
OTHER_ID = "ff0102030405060708090a0b0c0d0e0f"
DIRECTORY = "/s"


class Entry(NamedTuple):
    """What of an event is indexed."""

    stream_id: str
    event_type: str = "T"
    tags: tuple[str, ...] = ()
    key: str | None = None


Found = dict[tuple[Kind, str], list[int]]


def naive(first_event_id: int, entries: Sequence[Entry]) -> Found:
    """The event_ids of each term."""
    found: Found = {}
    for event_id, entry in enumerate(entries, first_event_id):
        texts = [(Kind.STREAM, entry.stream_id), (Kind.TYPE, entry.event_type)]
        texts += [(Kind.TAG, tag) for tag in dict.fromkeys(entry.tags)]
        texts += [(Kind.KEY, key_text(entry.stream_id, entry.key))] if entry.key is not None else []
        for text in texts:
            found.setdefault(text, []).append(event_id)
    return found


def sealed(first_event_id: int, entries: Sequence[Entry]) -> SealedSegment:
    """A segment of these events."""
    starts = array("Q", [place * 150 + place % 7 for place in range(len(entries))])
    terms = naive(first_event_id, entries).items()
    postings = [(kind, [(text, ids) for (of, text), ids in terms if of == kind]) for kind in Kind]
    return SealedSegment(first_event_id, len(entries) * 150 + 99, f"{first_event_id % 2**32:08x}", starts, postings)


def segments_of(sizes: Iterable[int], entries: Sequence[Entry], first_event_id: int = 1) -> list[SealedSegment]:
    """The log cut into segments of so many events."""
    found = []
    place = 0
    for size in sizes:
        found.append(sealed(first_event_id + place, entries[place : place + size]))
        place += size
    assert place == len(entries)
    return found


def some_entries(count: int) -> list[Entry]:
    """Events with many terms of few events, and few terms of many."""
    return [
        Entry(f"s-{n * 7 % (count // 2 + 1)}", f"T{n % 3}", (f"g-{n // 5}", "all"), f"k-{n}" if n % 4 == 0 else None)
        for n in range(count)
    ]


def no_pause() -> None:
    """Go on at once."""


def new_disk() -> MemoryDisk:
    disk = MemoryDisk()
    disk.make_directory(DIRECTORY)
    return disk


def built(disk: Disk, segments: Sequence[SealedSegment], blocks: Blocks | None = None) -> Run:
    """Write the run of these segments and open it."""
    path = build_run(disk, DIRECTORY, STORE_ID, segments, no_pause)
    return Run.open(disk, path, STORE_ID, blocks or Blocks())


def check_answers(run: Run, first_event_id: int, segments: Sequence[SealedSegment], entries: Sequence[Entry]) -> None:
    """The run says what the log says; ``entries`` are all of the log, from the event on."""
    place = run.first_event_id - first_event_id
    mine = entries[place : place + run.events_count]
    for (kind, text), expected in naive(run.first_event_id, mine).items():
        term = Term(kind, text)
        assert run.ids(term, run.places(term, 1, 2**63)) == expected
        assert run.ids(term, run.places(term, 1, 2**63)[::-1]) == expected[::-1]
        assert run.ids(term, run.places(term, expected[0] + 1, expected[-1])) == expected[1:]
        assert run.ids(term, run.places(term, expected[0], expected[-1] - 1)) == expected[:-1]
    for kind in Kind:
        assert not run.places(Term(kind, "nowhere\0"), 1, 2**63)
    for segment in segments:
        last = segment.first_event_id + len(segment.starts) - 1
        if run.first_event_id <= segment.first_event_id <= run.last_event_id:
            assert list(run.offsets(segment.first_event_id, last)) == list(segment.starts)
            assert run.segment_of(last) == run.segment_of(segment.first_event_id)
            assert run.segment_of(last) == RunSegment(segment.first_event_id, segment.size, segment.crc)
            assert run.segment_of(last) in run.segments


def opened(disk: Disk) -> list[Run]:
    """The runs that are there, as an opener finds them: what is left over is deleted."""
    found = []
    for name in disk.names(DIRECTORY):
        path = f"{DIRECTORY}/{name}"
        if is_temporary(name):
            disk.remove(path)
        elif run_first(name) is not None:
            with suppress(Damaged):
                found.append(Run.open(disk, path, STORE_ID, Blocks()))
    runs, superfluous = choose_runs(found)
    for run in superfluous:
        run.close()
        disk.remove(run.path)
    return runs
