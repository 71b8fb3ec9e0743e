"""What the segments of a directory come to, what is told of damage, and how a torn tail is put right: call by call."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import Any

import pytest

from aiostore.engine import Head
from aiostore.engines.file import format as fmt
from aiostore.engines.file import recovery
from aiostore.engines.file.blocks import Blocks
from aiostore.engines.file.disk import Disk
from aiostore.engines.file.index import Index, Part
from aiostore.engines.file.recovery import Survey, repair, scan_again, survey
from aiostore.engines.file.run import Run
from aiostore.engines.file.sealed import seal
from aiostore.errors import StoreCorrupt
from tests.file.disks import CHANGES, MemoryDisk, WatchedDisk
from tests.file.driver import nothing
from tests.file.lines import MANIFEST, STORE_ID, TIME, line, lines

BAD = "the checksum does not hold"
SIZE = len(line(1))


def path(first: int) -> str:
    return f"/s/{first:020d}.jsonl"


def head(event_id: int) -> dict[str, bytes]:
    return {"/s/head": fmt.encode_slot(event_id, STORE_ID) * 2}


def segments(**parts: bytes) -> dict[str, bytes]:
    """Files by the numbers of their first events: ``_1``, ``_4``."""
    return {path(int(name[1:])): data for name, data in parts.items()}


Told = tuple[str, int, str, int, int]


def damages(found: Survey) -> list[Told]:
    return [(each.path, each.offset, each.reason, each.first, each.last) for each in found.damages]


def missing(first: int, last: int) -> Told:
    return (path(first), 0, "the segment is missing", first, last)


THREE = segments(_1=lines(1, 2), _3=lines(3, 4), _5=lines(5, 6))

CASES: dict[str, tuple[dict[str, bytes], list[Told], int, int]] = {
    # the files; what is told, with tolerance; the head of the index without it and with it
    "whole": (THREE, [], 6, 6),
    "no segments": ({}, [], 0, 0),
    "an empty one": (segments(_1=b""), [], 0, 0),
    "other files": (THREE | {"/s/notes.txt": b"", "/s/00000000000000000000.jsonl": b""}, [], 6, 6),
    "all missing": (head(5), [(path(1), 0, "all segments are missing", 1, 5)], 0, 0),
    "the first missing": (segments(_3=lines(3, 4)), [missing(1, 2)], 0, 4),
    "one missing": (
        segments(_1=lines(1, 2), _5=lines(5, 6)),
        [(path(1), 2 * SIZE, "the segment ends with event 2 where 4 must", 3, 4)],
        2,
        6,
    ),
    "one outside of the chain": (
        THREE | segments(_2=lines(2, 4, segment=2)),
        [(path(2), 0, "the segment is outside of the chain", 2, 1)],
        2,
        6,
    ),
    "sealed, and shorter by one": (
        segments(_1=line(1), _3=lines(3, 4)),
        [(path(1), SIZE, "the segment ends with event 1 where 2 must", 2, 2)],
        1,
        4,
    ),
    "sealed, and torn": (
        segments(_1=lines(1, 2) + b"torn", _4=lines(4, 5)),
        [(path(1), 2 * SIZE, "the line has no end", 3, 3)],
        2,
        5,
    ),
    "sealed, and damaged": (
        segments(_1=line(1) + b"x\n" + line(2) + line(3), _4=lines(4, 5)),
        [(path(1), SIZE, BAD, 2, 1)],
        3,
        5,
    ),
    "sealed, and cut off": (
        segments(_1=line(1) + line(2, more=1), _3=lines(3, 4)),
        [(path(1), SIZE + len(line(2, more=1)), "the commit of event 2 has no end", 3, 2)],
        2,
        4,
    ),
    "torn": (segments(_1=lines(1, 2) + b"torn"), [], 2, 2),
    "torn, with an open commit": (segments(_1=line(1) + line(2, more=1)), [], 1, 1),
    "the end is missing": (
        segments(_1=lines(1, 2)) | head(4),
        [(path(1), 2 * SIZE, "the log ends with event 2, but events up to 4 were stored", 3, 4)],
        2,
        2,
    ),
    "the end is damaged": (
        segments(_1=lines(1, 2) + b"torn") | head(4),
        [(path(1), 2 * SIZE, "the line has no end", 3, 4)],
        2,
        2,
    ),
    "a later line vouches": (
        segments(_1=line(1, data={"pad": "p" * 100}) + b"x\n" + line(3)),
        [(path(1), len(line(1, data={"pad": "p" * 100})), BAD, 2, 2)],
        3,
        3,
    ),
    "an open commit that must be there": (
        segments(_1=line(1) + line(2, more=2) + line(3, more=1)) | head(4),
        [
            (
                path(1),
                SIZE + len(line(2, more=2) + line(3, more=1)),
                "the log ends with event 3, but events up to 4 were stored",
                4,
                4,
            )
        ],
        3,
        3,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_told_of_a_directory(name: str) -> None:
    files, told, kept, kept_with_tolerance = CASES[name]
    disk = MemoryDisk(files)
    disk.directories.add("/s")
    strict = survey(disk, "/s", MANIFEST)
    assert (damages(strict), strict.index.head.event_id) == (told[:1], kept)
    tolerant = survey(disk, "/s", MANIFEST, tolerant=True)
    assert (damages(tolerant), tolerant.index.head.event_id) == (told, kept_with_tolerance)
    assert disk.held == 0
    assert disk.files() == files


@pytest.mark.parametrize(
    ("data", "durable", "size", "end"),
    [
        (lines(1, 3), 2, 3 * SIZE, 3 * SIZE),
        (lines(1, 3) + b"\n\n", 2, 3 * SIZE, 3 * SIZE),  # prepared space, which the next lines replace
        (lines(1, 3) + b"torn", 2, 3 * SIZE + 4, 3 * SIZE),
        (line(1) + (begun := line(2, more=1)), 1, SIZE + len(begun), SIZE),
        (lines(1, 3) + line(4, open=3), 2, 3 * SIZE + len(line(4, open=3)), 3 * SIZE + len(line(4, open=3))),
    ],
)
def test_up_to_where_the_last_segment_has_lines_and_whole_commits(
    data: bytes, durable: int, size: int, end: int
) -> None:
    found = survey(MemoryDisk(segments(_1=data)), "/s", MANIFEST)
    assert (found.durable, found.size, found.index.segments[-1].end, found.damages) == (durable, size, end, [])


def test_a_sealed_segment_ends_with_its_padding_and_a_damaged_one_with_its_last_line() -> None:
    files = segments(_1=lines(1, 2) + b"\n\n", _3=lines(3, 4) + b"\n\nx\n", _5=line(5, first=5))
    found = survey(MemoryDisk(files), "/s", MANIFEST, tolerant=True)
    assert [segment.end for segment in found.index.segments] == [2 * SIZE + 2, 2 * SIZE, SIZE]


@pytest.mark.parametrize("durable", range(7))
def test_beside_a_writer_only_what_is_durable_is_taken(durable: int) -> None:
    data = line(1) + line(2, open=1, more=1) + line(3, open=2) + line(4, open=3, more=1) + line(5, open=4)
    found = survey(MemoryDisk(segments(_1=data) | head(durable)), "/s", MANIFEST, watching=True)
    taken = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 5}[durable]
    assert found.index.head.event_id == taken
    assert damages(found) == (
        [] if durable < 6 else [(path(1), len(data), "the log ends with event 5, but events up to 6 were stored", 6, 6)]
    )


def test_beside_a_writer_what_is_behind_damage_counts_when_it_is_durable() -> None:
    files = segments(_1=line(1, data={"pad": "p" * 100}) + b"x\n" + line(3))
    for durable, watching, taken in ((0, False, 3), (0, True, 1), (2, True, 1), (3, True, 3)):
        found = survey(MemoryDisk(files | head(durable)), "/s", MANIFEST, watching=watching)
        assert {(each.first, each.last) for each in found.damages} == {(2, 2)}
        assert found.index.head.event_id == taken


def test_lines_are_entered_into_the_index_that_is_given_or_a_new_one_of_the_store() -> None:
    mine = Index(STORE_ID)
    found = survey(MemoryDisk(THREE), "/s", MANIFEST, index=mine)
    assert found.index is mine
    assert mine.head.event_id == 6
    assert survey(MemoryDisk(THREE), "/s", MANIFEST).index.store_id == STORE_ID


def test_of_a_cut_off_commit_what_is_durable_is_kept_and_told_to_have_no_end() -> None:
    data = line(1) + line(2, more=3) + line(3, more=2) + line(4, more=1)
    found = survey(MemoryDisk(segments(_1=data) | head(3)), "/s", MANIFEST)
    assert found.index.head.event_id == 3
    assert found.durable == 3
    assert damages(found) == [(path(1), len(data), "the commit of event 3 has no end", 4, 3)]


def test_a_writer_reads_the_last_segment_from_the_device_and_a_reader_does_not() -> None:
    for tolerant in (False, True):
        disk = WatchedDisk(THREE)
        survey(disk, "/s", MANIFEST, tolerant=tolerant)
        assert disk.calls.made.count("drop_cache") == (not tolerant)
        assert disk.held == 0


def test_opening_can_be_ended_anywhere() -> None:
    class Stopped(Exception):
        pass

    def stop() -> None:
        raise Stopped

    for files in (segments(_1=lines(1, 2)), THREE):
        disk = MemoryDisk(files)
        with pytest.raises(Stopped):
            survey(disk, "/s", MANIFEST, going_on=stop)
        assert disk.held == 0


# --- sealed segments, and their runs ---


def sealed_parts(files: dict[str, bytes], *, tolerant: bool = False, part_bytes_min: int = 1) -> list[tuple[int, int]]:
    told = []

    def sealed(index: Index, part: Part) -> None:
        assert index.sources[-2] is part
        told.append((part.first_event_id, part.last_event_id))

    survey(MemoryDisk(files), "/s", MANIFEST, sealed=sealed, tolerant=tolerant, part_bytes_min=part_bytes_min)
    return told


def test_each_part_is_told_of_when_it_is_complete_and_whole() -> None:
    assert sealed_parts(THREE) == [(1, 2), (3, 4)]
    assert sealed_parts(THREE, part_bytes_min=2 * SIZE + 1) == [(1, 4)]
    assert sealed_parts(THREE, part_bytes_min=2 * SIZE) == [(1, 2), (3, 4)]
    assert sealed_parts(THREE, part_bytes_min=10**6) == []
    damaged = THREE | {path(3): line(3, first=3) + b"x\n"}
    assert sealed_parts(damaged, tolerant=True) == [(1, 2)]
    assert sealed_parts(damaged) == [(1, 2)]


def run_of(disk: Disk, last: int = 1) -> Run:
    """The run of the first part, made of so many segments."""
    made: list[Run] = []

    def sealed(_index: Index, part: Part) -> None:
        if not made:
            made.append(seal(disk, "/s", STORE_ID, part, Blocks()))

    survey(disk, "/s", MANIFEST, sealed=sealed, part_bytes_min=1 if last == 1 else 2 * SIZE + 1)
    return made[0]


def surveyed(disk: Disk, run: Run, **options: Any) -> tuple[Survey, list[tuple[int, int]]]:
    told: list[tuple[int, int]] = []

    def sealed(index: Index, part: Part) -> None:
        assert index.sources[-2] is part
        told.append((part.first_event_id, part.last_event_id))

    return survey(disk, "/s", MANIFEST, runs=[run], part_bytes_min=1, sealed=sealed, **options), told


@pytest.mark.parametrize("count", [1, 2])
def test_what_a_run_is_the_index_of_is_not_scanned(count: int) -> None:
    disk = WatchedDisk(THREE)
    run = run_of(disk, count)
    disk.calls.made.clear()
    found, told = surveyed(disk, run)
    assert found.index.sources[0] is run
    assert [segment.first_event_id for segment in found.index.segments] == [1, 3, 5]
    assert (found.index.head, found.durable) == (Head(6, TIME.format(6)), 5)
    assert told == [(3, 4)][count - 1 :]
    assert found.damages == []
    lookups = 1 + count  # a block of the run, and the last line of each of its segments
    assert disk.calls.made.count("read") == lookups + (3 - count) * 2
    run.close()
    assert disk.held == 0


def sealed_runs(disk: MemoryDisk, manifest: fmt.Manifest) -> list[Run]:
    """A run of each segment but the newest."""
    made: list[Run] = []
    survey(
        disk,
        "/s",
        manifest,
        sealed=lambda _index, part: made.append(seal(disk, "/s", STORE_ID, part, Blocks())),
        part_bytes_min=1,
    )
    return made


def test_several_runs_are_taken_one_after_another() -> None:
    disk = MemoryDisk(THREE | segments(_7=b""))
    made = sealed_runs(disk, MANIFEST)
    found = survey(disk, "/s", MANIFEST, runs=made, part_bytes_min=1)
    assert list(found.index.sources[:3]) == made
    assert (len(made), found.index.head.event_id, len(found.index.segments)) == (3, 6, 4)


def test_the_segments_of_a_run_are_durable_and_its_head_is_known() -> None:
    disk = MemoryDisk(segments(_1=lines(1, 2), _3=b""))
    run = run_of(disk)
    found, _ = surveyed(disk, run)
    assert (found.index.head, found.durable) == (Head(2, TIME.format(2)), 2)
    disk.put("/s/head", fmt.encode_slot(2, STORE_ID) * 2)
    assert surveyed(disk, run)[0].durable == 2


def test_a_part_before_a_run_is_complete() -> None:
    disk = MemoryDisk(segments(_3=lines(3, 4), _5=lines(5, 6)))
    later = fmt.Manifest(1, 1, STORE_ID, TIME.format(0), 3)
    made = sealed_runs(disk, later)
    disk.put(path(1), lines(1, 2))
    found, told = surveyed(disk, made[0])
    assert told == [(1, 2)]
    assert found.index.sources[1] is made[0]
    disk.put(path(1), b"x", SIZE)
    found, told = surveyed(disk, made[0], tolerant=True)
    assert (told, found.index.sources[1] is made[0], found.index.head.event_id) == ([], True, 6)


def test_a_run_of_the_newest_segment_is_not_taken() -> None:
    disk = MemoryDisk(THREE)
    run = run_of(disk)
    disk.remove(path(3))
    disk.remove(path(5))
    found, _ = surveyed(disk, run)
    assert run not in found.index.sources
    assert (found.index.head.event_id, found.durable) == (2, 1)


def test_a_run_that_does_not_fit_is_told_and_made_anew(caplog: pytest.LogCaptureFixture) -> None:
    disk = MemoryDisk(THREE)
    run = run_of(disk)
    disk.put(path(1), b"\n")
    with caplog.at_level(logging.WARNING, "aiostore"):
        found, told = surveyed(disk, run)
    assert told == [(1, 2), (3, 4)]
    assert found.index.head.event_id == 6
    assert caplog.messages == [
        f"{run.path} does not fit, the index is made anew: {path(1)} has {2 * SIZE + 1} bytes where {2 * SIZE} must be"
    ]


def test_a_run_whose_segment_is_not_where_it_was_is_not_taken() -> None:
    disk = MemoryDisk(THREE)
    run = run_of(disk, 2)
    disk.remove(path(3))
    found, _ = surveyed(disk, run, tolerant=True)
    assert run not in found.index.sources
    assert [(told[2], told[3:]) for told in damages(found)] == [("the segment ends with event 2 where 4 must", (3, 4))]


def scanned_again(disk: Disk, run: Run, going_on: Callable[[], None] = nothing) -> tuple[Any, list[tuple[int, int]]]:
    told: list[tuple[int, int]] = []

    def sealed(index: Index, part: Part) -> None:
        assert part in index.sources
        told.append((part.first_event_id, part.last_event_id))

    return scan_again(disk, "/s", STORE_ID, run, 1, going_on, sealed), told


def test_what_takes_the_place_of_a_run_is_found_in_its_segments() -> None:
    disk = MemoryDisk(THREE)
    sources, told = scanned_again(disk, run_of(disk, 2))
    assert told == [(1, 2), (3, 4)]
    assert [(part.first_event_id, part.last_event_id) for part in sources] == told
    assert [segment.end for part in sources for segment in part.segments] == [2 * SIZE, 2 * SIZE]


@pytest.mark.parametrize(("damaged", "told_before"), [(1, []), (3, [(1, 2)])])
def test_a_run_is_not_made_anew_of_damaged_segments(damaged: int, told_before: list[tuple[int, int]]) -> None:
    disk = MemoryDisk(THREE)
    run = run_of(disk, 2)
    disk.put(path(damaged), b"x", 0)
    told: list[tuple[int, int]] = []
    with pytest.raises(StoreCorrupt) as caught:
        scan_again(
            disk,
            "/s",
            STORE_ID,
            run,
            1,
            nothing,
            lambda _index, part: told.append((part.first_event_id, part.last_event_id)),
        )
    error = caught.value
    assert (error.path, error.offset) == (path(damaged), 0)
    assert (error.first_event_id, error.last_event_id) == (damaged, damaged)
    assert told == told_before


@pytest.mark.parametrize(("short", "last"), [(1, 2), (3, 4)])
def test_a_run_is_not_made_anew_of_segments_that_end_before_it(short: int, last: int) -> None:
    disk = MemoryDisk(THREE)
    run = run_of(disk, 2)
    del disk.inodes[path(short)].data[SIZE:]
    with pytest.raises(StoreCorrupt, match=f"the segment ends with event {short} where {last} must") as caught:
        scanned_again(disk, run)
    assert (caught.value.path, caught.value.offset) == (path(short), SIZE)
    assert (caught.value.first_event_id, caught.value.last_event_id) == (last, last)


def test_making_anew_can_be_ended() -> None:
    class Stopped(Exception):
        pass

    def stop() -> None:
        raise Stopped

    disk = MemoryDisk(THREE)
    with pytest.raises(Stopped):
        scanned_again(disk, run_of(disk, 2), stop)


# --- putting right ---


def repaired(disk: Disk, stamp: str = "now") -> Survey:
    found = survey(disk, "/s", MANIFEST)
    assert found.damages == []
    repair(disk, "/s", found, stamp)
    return found


@pytest.mark.parametrize("data", [lines(1, 3), lines(1, 3) + b"\n\n", b""])
def test_what_is_right_is_not_touched(data: bytes) -> None:
    disk = WatchedDisk(segments(_1=data) | head(3))
    if not data:
        disk.remove("/s/head")
    disk.calls.made.clear()
    repaired(disk)
    assert not set(disk.calls.made) & set(CHANGES)


def test_a_torn_tail_behind_what_is_durable_is_set_aside_and_cut(caplog: pytest.LogCaptureFixture) -> None:
    disk = WatchedDisk(segments(_1=lines(1, 3) + b"torn") | head(3))
    with caplog.at_level(logging.WARNING, "aiostore"):
        repaired(disk)
    assert disk.files() == segments(_1=lines(1, 3)) | head(3) | {"/s/torn-4-now.bin": b"torn"}
    changes = [name for name in disk.calls.made if name in CHANGES]
    assert changes == ["open_write", "open_write", "write_at", "sync", "sync_directory", "truncate", "sync"]
    assert disk.crashed().files() == disk.files()
    assert disk.held == 0
    assert caplog.messages == [
        f"{path(1)}: the 4 bytes behind event 3 are what a crash left of an append that was not acknowledged; "
        "now in /s/torn-4-now.bin"
    ]


@pytest.mark.parametrize("before", [1, 2, 3])
def test_what_was_set_aside_before_is_not_written_over(before: int) -> None:
    names = [f"/s/torn-4-now{number}.bin" for number in ("", "-2", "-3", "-4")]
    kept = dict.fromkeys(names[:before], b"kept")
    disk = MemoryDisk(segments(_1=lines(1, 3) + b"torn") | head(3) | kept)
    repaired(disk)
    assert disk.files() == segments(_1=lines(1, 3)) | head(3) | kept | {names[before]: b"torn"}


def test_a_file_that_comes_into_being_meanwhile_is_not_written_over() -> None:
    class Late(MemoryDisk):
        def exists(self, path: str) -> bool:
            return not path.startswith("/s/torn") and super().exists(path)

    disk = Late(segments(_1=lines(1, 3) + b"torn") | head(3) | {"/s/torn-4-now.bin": b"kept"})
    before = disk.files()
    with pytest.raises(FileExistsError):
        repaired(disk)
    assert (disk.files(), disk.held) == (before, 0)


@pytest.mark.parametrize("call", ["write_at", "sync"])
def test_a_tail_that_cannot_be_set_aside_stays_where_it_is(call: str) -> None:
    disk = WatchedDisk(segments(_1=lines(1, 3) + b"torn") | head(3))
    before = disk.files()
    disk.calls.fail(call, errno.ENOSPC)
    with pytest.raises(OSError, match="No space"):
        repaired(disk)
    assert (disk.files(), disk.held) == (before, 0)


@pytest.mark.parametrize("copied_bytes", [1, SIZE, SIZE + 1, 10**6])
@pytest.mark.parametrize("torn", [b"", b"torn"])
def test_what_is_kept_and_not_known_to_be_durable_is_copied(
    torn: bytes, copied_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "CHUNK_BYTES", copied_bytes)
    data = b"\n" + lines(1, 3) + b"\n" + line(4, open=1) + line(5, open=2)
    disk = MemoryDisk(segments(_1=data + torn) | {f"{path(1)}.tmp": b"left" * 1000})
    found = repaired(disk)
    assert found.durable == 5
    files = disk.files()
    assert files.pop("/s/torn-6-now.bin", b"") == torn
    assert files == segments(_1=data)
    assert disk.crashed().files()[path(1)] == data
    assert disk.held == 0


def test_what_changed_since_it_was_scanned_is_not_made_durable() -> None:
    disk = MemoryDisk(segments(_1=lines(1, 3)))
    found = survey(disk, "/s", MANIFEST)
    disk.put(path(1), b"X", 2 * SIZE + 40)
    before = disk.files()
    with pytest.raises(StoreCorrupt) as caught:
        repair(disk, "/s", found, "now")
    error = caught.value
    assert (error.path, error.offset) == (path(1), 2 * SIZE)
    assert (error.first_event_id, error.last_event_id) == (3, 3)
    assert BAD in str(error)
    assert (disk.files(), disk.held) == (before, 0)
