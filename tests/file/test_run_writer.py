"""Building and merging runs: the same bytes by every way, crashes and faults on the way, and which runs are merged."""

from __future__ import annotations

import errno
import os
import random
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiostore.engines.file import run_file, run_writer
from aiostore.engines.file.blocks import Blocks
from aiostore.engines.file.compaction import choose_runs, next_merge
from aiostore.engines.file.disk import Disk
from aiostore.engines.file.format import Damaged
from aiostore.engines.file.run import Run
from aiostore.engines.file.run_format import FAN_OUT, RUN_EVENTS_MAX, level_of
from aiostore.engines.file.run_writer import SealedSegment, build_run, give_way, merge_runs, merged
from aiostore.engines.postings import Kind, Term
from tests.file.disks import Inode, MemoryDisk, WatchedDisk, left_after_power_loss
from tests.file.runs import (
    DIRECTORY,
    STORE_ID,
    Entry,
    built,
    check_answers,
    new_disk,
    no_pause,
    opened,
    sealed,
    segments_of,
    some_entries,
)


def merge(disk: Disk, runs: Sequence[Run], pause: Callable[[], None] = no_pause) -> Run:
    return Run.open(disk, merge_runs(disk, DIRECTORY, STORE_ID, runs, pause), STORE_ID, Blocks())


# --- the same bytes, and true answers, by every way ---


words = st.sampled_from(["a", "b", "c", "long-" * 20, "ü", "d", "e", "f"])
entries_of_any_kind = st.lists(
    st.builds(Entry, words, words, st.lists(words, max_size=3, unique=True).map(tuple), st.none() | words), min_size=1
)


@settings(deadline=None, max_examples=60)
@given(st.lists(entries_of_any_kind, min_size=1, max_size=8), st.data(), st.integers(1, 2**40), st.booleans())
def test_runs_say_what_the_log_says_however_they_were_made(
    logs: list[list[Entry]], data: st.DataObject, first_event_id: int, small: bool
) -> None:
    entries = [entry for log in logs for entry in log]
    segments = segments_of(map(len, logs), entries, first_event_id)
    disk = new_disk()
    with pytest.MonkeyPatch.context() as patch:
        if small:
            patch.setattr(run_writer, "SLICE_KEYS", 8)
            patch.setattr(run_writer, "SLICE_TERMS", 3)
            patch.setattr(run_writer, "FAN_IN_MAX", 2)
            patch.setattr(run_file, "WRITE_BYTES", 4096)
        runs = [built(disk, [segment]) for segment in segments]
        while len(runs) > 1:
            start = data.draw(st.integers(0, len(runs) - 2))
            end = data.draw(st.integers(start + 2, len(runs)))
            runs[start:end] = [merge(disk, runs[start:end])]
            for run in runs:
                check_answers(run, first_event_id, segments, entries)
        assert disk.names(DIRECTORY) == [runs[0].path.rpartition("/")[2]]
        check_answers(runs[0], first_event_id, segments, entries)
    directly = new_disk()
    built(directly, segments)
    assert disk.files() == directly.files()


def test_large_runs_have_the_same_bytes_built_or_merged() -> None:
    entries = some_entries(60_000)
    segments = segments_of([15_000] * 4, entries)
    disk, directly = new_disk(), new_disk()
    run = merge(disk, [built(disk, [segment]) for segment in segments])
    check_answers(built(directly, segments), 1, segments, entries)
    assert disk.files() == directly.files()
    assert run.level == 1
    assert run.keys_count > 4 * run_writer.SLICE_KEYS


def test_the_order_of_the_postings_makes_no_difference() -> None:
    segment = sealed(1, some_entries(9000))
    disk, other = new_disk(), new_disk()
    built(disk, [segment])
    built(other, [segment._replace(postings=[(kind, list(items)[::-1]) for kind, items in segment.postings][::-1])])
    assert disk.files() == other.files()


def test_dicts_of_arrays_are_postings() -> None:
    streams = {"a": array("Q", [7, 9]), "b": array("Q", [8])}
    run = built(
        new_disk(), [SealedSegment(7, 300, "00000001", array("Q", [0, 9, 99]), [(Kind.STREAM, streams.items())])]
    )
    terms = [Term(Kind.STREAM, name) for name in "abc"]
    assert [run.ids(term, run.places(term, 1, 99)) for term in terms] == [[7, 9], [8], []]


def test_on_the_real_disk(tmp_path: Path) -> None:
    entries = some_entries(3000)
    segments = segments_of([1000, 2000], entries)
    disk = Disk()
    paths = [build_run(disk, str(tmp_path), STORE_ID, [segment]) for segment in segments]
    runs = [Run.open(disk, path, STORE_ID, Blocks()) for path in paths]
    merged_path = merge_runs(disk, str(tmp_path), STORE_ID, runs)
    assert [path.name for path in tmp_path.iterdir()] == ["00000000000000000001.idx"]
    run = Run.open(disk, merged_path, STORE_ID, Blocks())
    check_answers(run, 1, segments, entries)
    for old in runs:  # what was merged can still be read
        check_answers(old, 1, segments, entries)
        old.close()
    run.close()


# --- what cannot be one run ---


def test_what_cannot_be_one_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, three = segments_of([2, 3, 4], [Entry("s")] * 9)
    disk = new_disk()
    runs = [built(disk, [segment]) for segment in (one, two, three)]
    before = disk.files()
    refused: list[Sequence[SealedSegment]] = [
        [],
        [one, three],
        [two, one],
        [one._replace(starts=array("Q"))],
        [one._replace(size=2**32)],
    ]
    for segments in refused:
        with pytest.raises(ValueError, match="segment"):
            built(disk, segments)
    with pytest.raises(ValueError, match="neighbours"):
        merge(disk, [runs[0], runs[2]])
    monkeypatch.setattr(run_writer, "RUN_EVENTS_MAX", 8)
    with pytest.raises(ValueError, match="at most"):
        built(disk, [one, two, three])
    with pytest.raises(ValueError, match="at most"):
        merge(disk, runs)
    assert disk.files() == before


# --- crashes and faults ---


ENTRIES = some_entries(400)
SEGMENTS = segments_of([100] * 4, ENTRIES)


def disk_with_runs(kind: type[MemoryDisk] = MemoryDisk) -> MemoryDisk:
    """Four runs, durable."""
    disk = new_disk()
    for segment in SEGMENTS:
        built(disk, [segment])
    return kind(disk.files())


def check_whole(disk: MemoryDisk, firsts: list[list[int]]) -> None:
    """What is there says all that must be; the runs begin with one of these lists of event_ids."""
    runs = opened(disk)
    assert [run.first_event_id for run in runs] in firsts
    for run in runs:
        check_answers(run, 1, SEGMENTS, ENTRIES)
    kept = [run.path for run in runs]
    assert list(disk.files()) == kept, "nothing is left over"


OLD = [1, 101, 201, 301]
WAYS: dict[str, tuple[Callable[[MemoryDisk], object], list[list[int]]]] = {
    "merge": (lambda disk: merge(disk, opened(disk)), [OLD, [1]]),
    "merge two": (lambda disk: merge(disk, opened(disk)[1:3]), [OLD, [1, 101, 301]]),
    "build over": (lambda disk: built(disk, SEGMENTS), [OLD, [1]]),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_crash_at_any_step_leaves_the_old_runs_or_the_new(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_file, "WRITE_BYTES", 4096)
    monkeypatch.setattr(run_file, "SYNC_BYTES", 8192)
    write, firsts = WAYS[way]
    disk = disk_with_runs()
    states: list[MemoryDisk] = []
    disk.on_step = lambda: states.append(disk.snapshot())
    write(disk)
    states.append(disk.snapshot())
    assert len(states) >= 10
    for state in states:
        left: list[Callable[[Inode], bytes]] = [partial(left_after_power_loss, random.Random(n), None) for n in (1, 2)]
        left += [partial(left_after_power_loss, None, count) for count in (0, 1, 2)]
        for choose in left:
            for entries in (False, True):
                check_whole(state.crashed(choose, entries), firsts)
        check_whole(state, firsts)  # the process was killed


def test_a_crash_while_a_first_run_is_built_leaves_it_or_nothing() -> None:
    disk = new_disk()
    states: list[MemoryDisk] = []
    disk.on_step = lambda: states.append(disk.snapshot())
    built(disk, SEGMENTS)
    for state in states:
        for entries in (False, True):
            check_whole(state.crashed(None, entries), [[], [1]])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("way", WAYS)
def test_a_fault_at_any_change_leaves_the_old_runs_or_the_new(way: str, number: int) -> None:
    write, firsts = WAYS[way]
    for at in range(1, 100):
        disk = disk_with_runs(WatchedDisk)
        assert isinstance(disk, WatchedDisk)
        before = disk.files()
        disk.calls.fail_change(number, at=at)
        error = raised_by(partial(write, disk))
        if error is None:
            assert at > 5
            return
        assert isinstance(error, OSError)
        assert error.errno == number
        assert not [name for name in disk.names(DIRECTORY) if name.endswith(".tmp")]
        if "sync_directory" not in disk.calls.made:
            assert disk.files() == before
        disk.calls.heal()
        check_whole(disk, firsts)
    pytest.fail("there is no end of changes")


def raised_by(call: Callable[[], object]) -> BaseException | None:
    try:
        call()
    except BaseException as error:
        return error
    return None


def test_nothing_is_removed_before_the_new_run_is_durable() -> None:
    disk = disk_with_runs(WatchedDisk)
    assert isinstance(disk, WatchedDisk)
    merge_runs(disk, DIRECTORY, STORE_ID, opened(disk), no_pause)
    changes = [name for name in disk.calls.made if name in ("write_at", "sync", "replace", "sync_directory", "remove")]
    assert changes[-6:] == ["sync", "replace", "sync_directory", "remove", "remove", "remove"]
    assert set(changes[:-6]) == {"write_at"}


def test_a_large_run_is_synced_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_file, "WRITE_BYTES", 4096)
    monkeypatch.setattr(run_file, "SYNC_BYTES", 8192)
    disk = WatchedDisk({f"{DIRECTORY}/x": b""})
    build_run(disk, DIRECTORY, STORE_ID, [sealed(1, some_entries(6000))], no_pause)
    changes = [name for name in disk.calls.made if name in ("write_at", "sync")]
    unsynced = "".join(name[0] for name in changes).split("s")
    assert len(unsynced) > 20
    assert max(map(len, unsynced)) <= 3


def test_a_run_that_was_merged_and_cannot_be_removed_is_left_to_the_next_opener() -> None:
    disk = disk_with_runs(WatchedDisk)
    assert isinstance(disk, WatchedDisk)
    disk.calls.fail("remove", errno.EIO, times=3)
    assert merge(disk, opened(disk)).events_count == 400
    assert len(disk.files()) == 4
    check_whole(disk, [[1]])


@pytest.mark.parametrize(("number", "error"), [(errno.EIO, Damaged), (errno.ENOMEM, OSError)])
def test_a_fault_when_reading_is_raised(number: int, error: type[Exception]) -> None:
    disk = disk_with_runs(WatchedDisk)
    assert isinstance(disk, WatchedDisk)
    runs = opened(disk)
    before = disk.files()
    disk.calls.fail("read", number)
    with pytest.raises(error, match=os.strerror(number)):
        merge(disk, runs)
    assert disk.files() == before


def test_damage_is_not_merged() -> None:
    size = len(disk_with_runs().files()[f"{DIRECTORY}/00000000000000000101.idx"])
    for place in range(4096, size - 100, 401):
        disk = disk_with_runs()
        runs = opened(disk)
        disk.inodes[runs[1].path].data[place] ^= 4
        before = disk.files()
        with pytest.raises(Damaged):
            merge(disk, runs)
        assert disk.files() == before


def test_a_temporary_file_of_a_crash_is_written_over() -> None:
    disk, clean = new_disk(), new_disk()
    disk.inodes[f"{DIRECTORY}/00000000000000000001.idx.tmp"] = Inode(bytearray(b"x" * 100_000))
    built(disk, SEGMENTS)
    built(clean, SEGMENTS)
    assert disk.files() == clean.files()


# --- giving way ---


class Stopped(BaseException):
    pass


def stopping(at: int) -> Callable[[], None]:
    """A pause that ends the work when it is called so often."""
    left = iter(range(at - 1))

    def pause() -> None:
        if next(left, None) is None:
            raise Stopped

    return pause


@pytest.mark.parametrize("way", ["build", "merge"])
def test_the_work_can_be_ended_at_every_pause(way: str) -> None:
    disk = disk_with_runs()
    before = disk.files()
    runs = opened(disk)

    def write(pause: Callable[[], None]) -> None:
        if way == "build":
            build_run(disk, DIRECTORY, STORE_ID, SEGMENTS, pause)
        else:
            merge_runs(disk, DIRECTORY, STORE_ID, runs, pause)

    for at in range(1, 1000):
        pause = stopping(at)
        error = raised_by(partial(write, pause))
        if error is None:
            assert at > 2
            return
        assert isinstance(error, Stopped)
        assert disk.files() == before
        assert disk.held == 4
    pytest.fail("there is no end of pauses")


def test_it_pauses_between_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two pauses nothing longer than a slice is hashed, sorted, copied or written."""
    work: list[int] = [0]

    def pause() -> None:
        work.append(0)

    def counting(name: str, cost: Callable[[object], int]) -> None:
        original = getattr(run_writer, name)

        def counted(*args: object) -> object:
            work[-1] += cost(args[-1])
            return original(*args)

        monkeypatch.setattr(run_writer, name, counted)

    counting("least_keys", lambda texts: 8 * len(texts))  # type: ignore[arg-type]
    counting("array", lambda numbers: len(numbers))  # type: ignore[arg-type]
    entries = [Entry("one", "T", (f"g-{n}",)) for n in range(20_000)]
    disk = new_disk()
    segments = segments_of([10_000] * 2, entries)
    paths = [build_run(disk, DIRECTORY, STORE_ID, [segment], pause) for segment in segments]
    assert len(work) >= 2 * (30_000 // run_writer.SLICE_KEYS * 2 + 10_000 // run_writer.SLICE_TERMS)
    assert max(work) <= 3 * run_writer.SLICE_KEYS
    work[:] = [0]
    merge_runs(disk, DIRECTORY, STORE_ID, [Run.open(disk, path, STORE_ID, Blocks()) for path in paths], pause)
    assert len(work) >= 60_000 // run_writer.SLICE_KEYS


def test_a_pause_hands_over(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    give_way()
    assert slept == [run_writer.PAUSE_SECONDS]


@given(st.lists(st.lists(st.integers(0, 60)), max_size=6), st.integers(1, 9))
def test_merged_gives_bounded_pieces(sources: list[list[int]], size: int) -> None:
    keys = [sorted(source) for source in sources]
    share = max(1, size // max(1, len(sources)))
    pieces = [iter([source[at : at + share] for at in range(0, len(source), share)]) for source in keys]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_writer, "SLICE_KEYS", size)
        found = list(merged(pieces, no_pause))
    assert [key for piece in found for key in piece] == sorted(key for source in keys for key in source)
    assert all(0 < len(piece) < size / 2 + max(size, len(sources)) for piece in found)
    assert all(len(piece) >= size / 2 for piece in found[:-1])


# --- which runs to use, and which to merge ---


class Span(NamedTuple):
    first_event_id: int
    last_event_id: int
    level: int = 0


def spans(*levels: int, events: int = 10, first: int = 1) -> list[Span]:
    """Neighbouring runs of these levels, those of level 0 with so many events."""
    sizes = [events * FAN_OUT**level for level in levels]
    ends = list(accumulate(sizes, initial=first))
    return [Span(start, end - 1, level) for (start, end), level in zip(pairwise(ends), levels, strict=True)]


@pytest.mark.parametrize(
    ("found", "used"),
    [
        ([], []),
        ([Span(1, 9), Span(10, 19)], [Span(1, 9), Span(10, 19)]),
        ([Span(10, 19), Span(1, 40), Span(20, 30), Span(31, 40), Span(41, 50)], [Span(1, 40), Span(41, 50)]),
        ([Span(1, 9), Span(20, 29)], [Span(1, 9), Span(20, 29)]),
        ([Span(1, 9), Span(1, 40)], [Span(1, 40)]),
        ([Span(1, 20), Span(10, 40), Span(30, 40)], [Span(1, 20), Span(30, 40)]),
    ],
)
def test_choose_runs(found: list[Span], used: list[Span]) -> None:
    for order in (found, found[::-1]):
        chosen, superfluous = choose_runs(order)
        assert chosen == used
        assert sorted(chosen + superfluous) == sorted(found)


HUGE = RUN_EVENTS_MAX // FAN_OUT


@pytest.mark.parametrize(
    ("runs", "merge"),
    [
        ([], None),
        (spans(0, 0, 0), None),
        (spans(0, 0, 0, 0), slice(0, 4)),
        (spans(1, 0, 0, 0, 0, 0), slice(1, 5)),
        (spans(1, 1, 1, 0, 0, 0), None),
        (spans(1, 1, 1, 1, 0, 0, 0, 0), slice(0, 4)),
        (spans(0, 0, 1, 0, 0), slice(0, 4)),
        ([*spans(0, 0), *spans(0, 0, first=22)], None),
        (spans(0, 0, 0, 0, events=HUGE), slice(0, 4)),
        (spans(0, 0, 0, 0, 0, events=HUGE + 1), None),
        ([*spans(0, 0, 0, 0, events=HUGE + 1), *spans(0, 0, 0, 0, first=4 * HUGE + 5)], slice(4, 8)),
    ],
)
def test_next_merge(runs: list[Span], merge: slice | None) -> None:
    assert next_merge(runs) == merge


def settled(runs: list[Span]) -> list[Span]:
    while found := next_merge(runs):
        four = runs[found]
        runs[found] = [Span(four[0].first_event_id, four[-1].last_event_id, four[0].level + 1)]
    return runs


@given(st.lists(st.integers(1, 2**23), max_size=200))
def test_the_same_runs_result_whether_segments_come_one_by_one_or_at_once(sizes: list[int]) -> None:
    ends = list(accumulate(sizes, initial=1))
    segments = [Span(start, end - 1) for start, end in pairwise(ends)]
    one_by_one: list[Span] = []
    for segment in segments:
        one_by_one = settled([*one_by_one, segment])
    assert settled(segments) == one_by_one
    assert all(run.last_event_id - run.first_event_id < RUN_EVENTS_MAX for run in one_by_one)


def test_few_runs_are_searched() -> None:
    runs: list[Span] = []
    for number in range(1000):
        runs = settled([*runs, Span(number * 10 + 1, number * 10 + 10)])
        assert len(runs) <= 3 * 5
    assert [run.level for run in runs] == [4, 4, 4, 3, 3, 3, 2, 2, 1, 1]


def test_levels() -> None:
    assert [level_of(count) for count in (1, 3, 4, 15, 16, 63, 64)] == [0, 0, 1, 1, 2, 2, 3]
    disk = new_disk()
    assert built(disk, SEGMENTS).level == 1
    assert built(disk, SEGMENTS[:3]).level == 0
