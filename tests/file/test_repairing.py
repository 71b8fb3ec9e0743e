"""Repair leaves a store that opens and is whole, with the beginning of its log, and keeps all else as evidence."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from functools import partial

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiostore.engines.file.findings import Severity
from aiostore.engines.file.repair_plan import Plan
from aiostore.engines.file.repairing import Outcome, Repair
from aiostore.errors import EngineUnavailable, EngineUnsupported, StoreCorrupt, StoreLocked
from tests.file.disks import MemoryDisk, WatchedDisk, left_after_power_loss
from tests.file.driver import opened_to_write
from tests.file.examined import KINDS, Files, damaged, lines_in, opened, segments_of, sound, store_id_of, verified
from tests.file.sealed_stores import flipped


def repaired(disk: MemoryDisk) -> tuple[Plan, Outcome | None]:
    with Repair(disk, "/s") as work:
        plan = work.plan()
        outcome = work.carry_out(plan) if plan.needed else None
    assert disk.held == 0
    return plan, outcome


def check_whole(disk: MemoryDisk, head: int | None = None) -> int:
    """The store is whole, opens, and has the first events of the sound one; how many."""
    files = disk.files()
    own = {path: data for path, data in files.items() if path.startswith("/s/")}
    report = verified(own)
    assert report.whole, report.findings
    events = opened(MemoryDisk(own))
    assert events == sound().events[: len(events)]
    assert head is None or len(events) == head
    return len(events)


def check_kept(before: Files, after: Files) -> None:
    """Every file of the log is as it was, or lies so in the evidence; each valid line is still in one of them."""
    kept = [data for path, data in after.items() if path.startswith("/s.damaged-")]
    for path, data in before.items():
        if path.endswith(".idx") or ".idx." in path or path == "/s/lock":
            continue
        now = after.get(path, b"")
        aside = b"".join(data for name, data in after.items() if name.startswith("/s/torn-"))
        assert data in (now, *kept) or data.rstrip(b"\n") == now.rstrip(b"\n") or data == now + aside, path
    store_id = store_id_of(sound().files)
    assert lines_in(before, store_id).items() <= lines_in(after, store_id).items()


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_damage_is_repaired(name: str) -> None:
    kind = KINDS[name]
    files = damaged(name)
    disk = MemoryDisk(files)
    plan, outcome = repaired(disk)
    assert plan.needed == (kind.severity in (Severity.DAMAGE, Severity.DERIVED))
    assert (plan.lost_events > 0) == kind.lost
    if not plan.needed:
        assert {**disk.files(), "/s/lock": b""} == {**files, "/s/lock": b""}, "what is whole is not changed"
        return
    assert outcome is not None
    head = check_whole(disk, plan.kept_event_id)
    assert outcome.head_event_id == head
    check_kept(files, disk.files())
    again, nothing_more = repaired(disk)
    assert not again.needed
    assert nothing_more is None


def test_the_plan_says_exactly_what_is_lost() -> None:
    files = damaged("two segments are damaged")
    original = lines_in(sound().files, store_id_of(files))
    readable = lines_in(files, store_id_of(files))
    disk = MemoryDisk(files)
    plan, outcome = repaired(disk)
    assert outcome is not None
    assert outcome.salvaged_file is not None
    assert (plan.lost_first_event_id, plan.lost_last_event_id) == (plan.kept_event_id + 1, len(original))
    gone = {n for span in plan.unreadable for n in range(span.first_event_id, span.last_event_id + 1)}
    assert gone == set(original) - set(readable)
    salvaged = disk.files()[outcome.salvaged_file].splitlines()
    expected = [readable[n] for n in sorted(readable) if n > plan.kept_event_id]
    assert salvaged == expected
    assert plan.salvaged_events == len(expected) == len(plan.salvaged)
    for line, told in zip(map(msgspec.json.decode, salvaged), plan.salvaged, strict=True):
        assert msgspec.to_builtins(told) == {
            name: line[name] for name in ("event_id", "stream_id", "version", "event_type")
        }
    assert plan.salvaged_events + len(gone) == plan.lost_events


def test_the_evidence_names_what_was_done() -> None:
    disk = MemoryDisk(damaged("a bit in a sealed segment"))
    plan, outcome = repaired(disk)
    assert outcome is not None
    assert outcome.evidence.startswith("/s.damaged-2")
    told = msgspec.json.decode(disk.files()[f"{outcome.evidence}/repair.json"])
    assert told == {"plan": msgspec.to_builtins(plan), "unreadable_bytes_as_zeros": []}
    names = {path.rpartition("/")[2] for path in disk.files() if path.startswith(outcome.evidence)}
    assert {"aiostore.json", "head", "salvaged.jsonl", "repair.json"} < names


def test_events_can_be_appended_behind_the_cut_and_are_found() -> None:
    disk = MemoryDisk(damaged("a bit in a sealed segment"))
    plan, _ = repaired(disk)
    writer = opened_to_write(disk, segment_bytes=1000)
    assert writer.index.head.event_id == plan.kept_event_id
    writer.close()


def test_a_store_that_is_written_to_is_refused() -> None:
    disk = MemoryDisk(damaged("a bit in an index's block"))
    writer = opened_to_write(disk)
    files = disk.files()
    with pytest.raises(StoreLocked):
        Repair(disk, "/s")
    assert disk.files() == files
    writer.close()


def test_what_is_no_store_is_left_alone() -> None:
    disk = MemoryDisk({"/s/notes.txt": b"x"})
    with pytest.raises(EngineUnavailable):
        Repair(disk, "/s")
    with pytest.raises(EngineUnavailable):
        Repair(disk, "/nowhere")
    assert disk.files() == {"/s/notes.txt": b"x"}


def test_a_store_whose_id_cannot_be_known_is_refused() -> None:
    disk = MemoryDisk({segments_of(sound().files)[0]: b"nothing that is a line\n"})
    with Repair(disk, "/s") as work, pytest.raises(EngineUnavailable, match="the store's id"):
        work.plan()


# --- ends half-way ---


class Stop(Exception):
    pass


def test_ended_before_anything_is_changed_it_leaves_nothing() -> None:
    files = damaged("two segments are damaged")
    steps = 0
    while True:
        disk = MemoryDisk(files)
        calls = iter(range(10**6))

        def tell(_done: int, _total: int, what: str, calls: Iterator[int] = calls, steps: int = steps) -> None:
            if what == "copying the evidence" and next(calls) == steps:
                raise Stop

        with Repair(disk, "/s") as work:
            plan = work.plan()
            try:
                work.carry_out(plan, tell)
            except Stop:
                pass
            else:
                break
        assert {**disk.files(), "/s/lock": b""} == {**files, "/s/lock": b""}
        assert disk.directories == {"/", "/s"}
        steps += 1
    assert steps > 10
    check_whole(disk, plan.kept_event_id)


@pytest.mark.parametrize("name", ["two segments are damaged", "no manifest and a bit", "the newest segment is cut"])
def test_a_disk_that_fails_at_any_change_leaves_what_can_be_repaired(name: str) -> None:
    files = damaged(name)
    at = 1
    while True:
        disk = WatchedDisk(files)
        with Repair(disk, "/s") as work:
            plan = work.plan()
            disk.calls.fail_change(errno.ENOSPC if at % 2 else errno.EIO, at=at)
            try:
                work.carry_out(plan)
            except (OSError, StoreCorrupt):
                pass
            else:
                break
        assert disk.held == 0
        disk.calls.heal()
        check_kept(files, disk.files())
        repaired(disk)
        assert check_whole(disk) == plan.kept_event_id
        check_kept(files, disk.files())
        at += 3 if name == "no manifest and a bit" else 1  # to make a manifest anew takes long
    assert at > 15


@pytest.mark.parametrize(
    "name",
    [
        "two segments are damaged",
        "no manifest and a bit",
        "the newest segment is cut",
        "a segment outside of the chain",
    ],
)
@pytest.mark.parametrize("loses", ["everything unsynced", "nothing", "some of it"])
def test_a_crash_at_any_change_leaves_what_can_be_repaired(name: str, loses: str) -> None:
    files = damaged(name)
    disk = MemoryDisk(files)
    dice = random.Random(name + loses)
    crashed: list[MemoryDisk] = []

    def crash() -> None:
        if loses == "everything unsynced":
            crashed.append(disk.crashed())
        elif loses == "nothing":
            crashed.append(MemoryDisk(disk.files()))
        else:
            crashed.append(disk.crashed(partial(left_after_power_loss, dice, None), entries=dice.random() < 0.5))

    with Repair(disk, "/s") as work:
        plan = work.plan()
        disk.on_step = crash
        work.carry_out(plan)
    disk.on_step = lambda: None
    assert len(crashed) > 10
    for after in crashed:
        check_kept(files, after.files())
        try:
            found = opened(MemoryDisk(after.files()))
        except StoreCorrupt:
            pass
        else:
            assert found == sound().events[: plan.kept_event_id], "half repaired, it is refused, or as it will be"
        repaired(after)
        check_whole(after, plan.kept_event_id)
        check_kept(files, after.files())


# --- any damage ---


def _damages() -> st.SearchStrategy[list[tuple[str, int, float, bytes]]]:
    one = st.tuples(
        st.sampled_from(["flip", "cut", "remove", "write", "insert", "zero"]),
        st.integers(0, 10**6),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=40),
    )
    return st.lists(one, min_size=1, max_size=4)


def apply(files: Files, kind: str, which: int, where: float, data: bytes) -> None:
    paths = sorted(files)
    path = paths[which % len(paths)]
    content = files[path]
    place = int(where * len(content))
    if kind == "flip" and content:
        files[path] = flipped(content, place, data[0] % 8)
    elif kind == "cut":
        files[path] = content[:place]
    elif kind == "remove":
        del files[path]
    elif kind == "write":
        files[path] = content[:place] + data + content[place + len(data) :]
    elif kind == "insert":
        files[path] = content[:place] + data + content[place:]
    else:
        files[path] = content[:place] + bytes(512) + content[place + 512 :]


@settings(max_examples=150, deadline=None)
@given(_damages())
def test_any_damage_is_repaired(damages: list[tuple[str, int, float, bytes]]) -> None:
    files = dict(sound().files)
    for damage in damages:
        apply(files, *damage)
    disk = MemoryDisk(files)
    plan, _ = repaired(disk)
    assert check_whole(disk) >= plan.kept_event_id if not plan.needed else True
    if plan.needed:
        check_whole(disk, plan.kept_event_id)
    check_kept(files, disk.files())


def test_a_network_file_system_is_refused_unless_it_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = MemoryDisk(damaged("a bit in a sealed segment"))
    monkeypatch.setattr(MemoryDisk, "file_system", lambda disk, path: "nfs4")
    with pytest.raises(EngineUnsupported, match="network file system"):
        Repair(disk, "/s")
    with Repair(disk, "/s", force_network=True) as work:
        assert work.plan().needed
