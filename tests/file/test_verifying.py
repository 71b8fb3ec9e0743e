"""Verify tells every kind of damage by its place, changes nothing, and calls nothing damage that is none."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aiostore import EventStore, Projection
from aiostore.engine import Commit
from aiostore.engines.file import findings, version_check
from aiostore.engines.file import format as fmt
from aiostore.engines.file.disk import Disk
from aiostore.engines.file.findings import Severity
from aiostore.engines.file.repairing import Repair
from aiostore.engines.file.verifying import Report, verify
from aiostore.errors import EngineUnavailable, EngineUnsupported
from aiostore.events import Event
from tests.file.disks import MemoryDisk
from tests.file.driver import counted, opened_to_write
from tests.file.examined import KINDS, damaged, sound, verified
from tests.file.followed import STORE_ID, HandWritten

ORDER = [Severity.NOTE, Severity.DERIVED, Severity.TORN, Severity.DAMAGE]


def test_a_sound_store_has_no_findings() -> None:
    store = sound()
    report = verified(store.files)
    assert report.whole
    assert report.findings == []
    assert report.events == report.head_event_id == len(store.events)
    assert report.streams == len({event.stream_id for event in store.events})
    assert report.segments == len(store.segments)
    assert (report.first_timestamp, report.last_timestamp) == (store.events[0]._timestamp, store.events[-1]._timestamp)
    assert report.writer_pid is None


@pytest.mark.parametrize("name", KINDS)
def test_damage_is_told_by_its_kind_and_place(name: str) -> None:
    kind = KINDS[name]
    report = verified(damaged(name))
    found = [finding.severity for finding in report.findings]
    if kind.severity is None:
        assert found == []
    else:
        worst = max(found, key=ORDER.index)
        assert worst is kind.severity, report.findings
        first = next(finding for finding in report.findings if finding.severity is worst)
        assert re.fullmatch(kind.file, first.file)
        assert first.reason
    assert report.whole == (kind.severity is not Severity.DAMAGE)


def test_damage_names_the_events_that_are_lost() -> None:
    files = damaged("a segment is missing")
    (missing,) = set(sound().files) - set(files)
    (finding,) = verified(files).findings
    place = sound().segments.index(missing)
    before, following = sound().segments[place - 1], sound().segments[place + 1]
    assert f"/s/{finding.file}" == before
    assert finding.offset == len(files[before])
    assert finding.first_event_id == fmt.segment_first(missing[-26:])
    assert finding.last_event_id == (fmt.segment_first(following[-26:]) or 0) - 1
    assert finding.reason.endswith(f"or {missing[3:]} is missing")


def test_what_no_event_is_missing_at_names_none() -> None:
    (finding,) = verified(damaged("garbage between two lines")).findings
    assert (finding.first_event_id, finding.last_event_id) == (None, None)
    assert "no event is missing" in finding.reason


# --- lines that contradict each other ---


def event(event_id: int, stream_id: str, version: int, time: int = 0) -> Event:
    return Event(event_id, stream_id, version, "T", f"2026-11-23T04:50:00.{time:06d}Z", msgspec.Raw(b"{}"))


def of_commits(*commits: list[Event], change: Any = None) -> dict[str, bytes]:
    """A store of these commits, written one after the other."""
    made = HandWritten()
    for commit in commits:
        last = commit[0].event_id - 1
        for lines in fmt.encode_group([Commit(commit, None)], fmt.line_seed(STORE_ID, 1), last):
            made.put(lines.data)
        made.say(commit[-1].event_id)
    return made.disk.files()


CONTRADICTIONS: dict[str, tuple[list[list[Event]], int, int, str]] = {
    # commits, the line, the events that a repair keeps, why
    "a version twice": (
        [[event(1, "a", 1)], [event(2, "a", 1)]],
        2,
        1,
        "version 1 of stream 'a' stands where version 2",
    ),
    "a version left out": ([[event(1, "a", 1)], [event(2, "a", 3)]], 2, 1, "version 3 of stream 'a' stands where"),
    "a stream that begins late": ([[event(1, "a", 1)], [event(2, "b", 2)]], 2, 1, "version 2 of stream 'b'"),
    "in the midst of a commit": (
        [[event(1, "a", 1)], [event(2, "a", 2), event(3, "b", 1), event(4, "a", 2)], [event(5, "b", 2)]],
        4,
        1,
        "version 2 of stream 'a' stands where version 3",
    ),
    "a time that goes back": ([[event(1, "a", 1, 5)], [event(2, "a", 2, 4)]], 2, 1, "is earlier than the one before"),
    "no time": (
        [[event(1, "a", 1)], [Event(2, "a", 2, "T", "yesterday", msgspec.Raw(b"{}"))]],
        2,
        1,
        "'yesterday' is not a timestamp",
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_lines_that_contradict_others_are_damage(name: str) -> None:
    commits, event_id, kept, reason = CONTRADICTIONS[name]
    files = of_commits(*commits)
    (finding,) = verified(files).findings
    assert finding.severity is Severity.DAMAGE
    assert (finding.first_event_id, finding.last_event_id) == (event_id, event_id)
    assert reason in finding.reason
    assert finding.offset is not None
    assert files["/s/" + finding.file][finding.offset :].startswith(b'{"event_id":%d,' % event_id)
    disk = MemoryDisk(files)
    with Repair(disk, "/s") as work:
        plan = work.plan()
        assert plan.kept_event_id == kept
        assert plan.salvaged_events == plan.lost_events == commits[-1][-1].event_id - kept
        work.carry_out(plan)
    report = verified({path: data for path, data in disk.files().items() if path.startswith("/s/")})
    assert (report.whole, report.events) == (True, kept)


def test_versions_behind_lost_events_are_not_held_against_them() -> None:
    files = of_commits([event(1, "a", 1)], [event(2, "a", 2)], [event(3, "a", 3), event(4, "b", 1)])
    path = f"/s/{fmt.segment_name(1)}"
    start = files[path].index(b'{"event_id":2,')
    files[path] = files[path][:start] + b"!" + files[path][start + 1 :]
    (finding,) = verified(files).findings
    assert (finding.first_event_id, finding.last_event_id) == (2, 2)


@pytest.mark.parametrize("streams", [1, 2, 7, 100])
def test_versions_of_any_number_of_streams_are_judged_in_bounded_memory(
    streams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = 0
    halve = version_check.VersionCheck._halve

    def counted_halve(check: version_check.VersionCheck) -> None:
        nonlocal held
        held += 1
        halve(check)

    monkeypatch.setattr(version_check.VersionCheck, "_halve", counted_halve)
    monkeypatch.setattr(version_check.VersionCheck.__init__, "__defaults__", (10 * version_check.STREAM_BYTES,))
    commits = [[event(n + 1, f"s-{n % streams}", n // streams + 1)] for n in range(300)]
    assert verified(of_commits(*commits)).streams == streams
    wrong = {17: "s-16", 250: "s-49"} if streams == 100 else {}
    for event_id, stream_id in wrong.items():
        commits[event_id - 1] = [event(event_id, stream_id, 99)]
    report = verified(of_commits(*commits))
    assert {f.first_event_id for f in report.findings} >= set(wrong)
    assert report.whole == (not wrong)
    assert (held > 0) == (streams > 10)


def test_findings_are_bounded_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings.Findings.__init__, "__defaults__", (3,))
    report = verified(of_commits(*[[event(n + 1, "a", 1)] for n in range(10)]))
    assert (len(report.findings), report.findings_left_out) == (3, 6)


# --- what cannot be examined ---


def test_no_store_is_unavailable() -> None:
    disk = MemoryDisk({"/s/notes.txt": b"x"})
    for directory in ("/s", "/nowhere"):
        with pytest.raises(EngineUnavailable):
            verify(disk, directory)
    assert disk.held == 0


def test_a_format_of_the_future_is_unsupported() -> None:
    files = dict(sound().files)
    manifest = fmt.decode_manifest(files["/s/aiostore.json"])
    files["/s/aiostore.json"] = fmt.encode_manifest(msgspec.structs.replace(manifest, min_reader=2, min_writer=2))
    with pytest.raises(EngineUnsupported):
        verify(MemoryDisk(files), "/s")
    files["/s/aiostore.json"] = fmt.encode_manifest(msgspec.structs.replace(manifest, min_writer=2))
    assert verified(files).whole
    with Repair(MemoryDisk(files), "/s") as work, pytest.raises(EngineUnsupported):
        work.plan()


# --- beside a writer ---


def test_beside_a_writer_only_what_is_durable_is_judged() -> None:
    disk = MemoryDisk(dict(sound().files))
    writer = opened_to_write(disk)
    path = sound().segments[-1]
    disk.put(path, b'{"event_id":%d,"stream' % (len(sound().events) + 1))  # it is being written
    before = disk.files()
    report = verify(disk, "/s")
    assert disk.files() == before
    assert report.whole
    assert report.findings == []
    assert report.writer_pid == os.getpid()
    assert report.events == report.durable_event_id == len(sound().events)
    disk.put(path, b"!", 3)
    report = verify(disk, "/s")
    assert [finding.severity for finding in report.findings] == [Severity.DAMAGE]
    disk.put(path, sound().files[path][3:4], 3)
    writer.log.close()
    writer.index.close()
    writer.lock.close()


def test_a_writer_that_begins_meanwhile_is_noticed() -> None:
    disk = MemoryDisk(dict(sound().files))
    writers: list[Any] = []

    def begin(_done: int, _total: int, _what: str) -> None:
        if not writers:
            writers.append(opened_to_write(disk))

    report = verify(disk, "/s", progress=begin)
    assert report.writer_pid == os.getpid()
    assert report.whole
    writers[0].close()


async def test_beside_a_store_that_appends_seals_and_merges(tmp_path: Path) -> None:
    async with EventStore(tmp_path / "s", segment_bytes=20_000) as store:

        async def look() -> list[Report]:
            seen: list[Report] = []
            while len(seen) < 10 or seen[-1].events == seen[0].events:
                seen.append(await asyncio.to_thread(verify, Disk(), str(tmp_path / "s")))
            return seen

        looking = asyncio.create_task(look())
        number = 0
        while not looking.done():
            await store.append_batch(f"s-{number % 7}", [("T", {"n": n}) for n in range(50)])
            number += 1
        reports = await looking
    assert [report.findings for report in reports if not report.whole] == []
    assert {finding.severity for report in reports for finding in report.findings} <= {Severity.NOTE}


# --- bad sectors ---


class BadSector(MemoryDisk):
    """A byte of a file cannot be read."""

    def __init__(self, files: dict[str, bytes], path: str, offset: int) -> None:
        super().__init__(files)
        self.bad = self.inodes[path], offset

    def read(self, file: int, size: int, offset: int) -> bytes:
        inode, bad = self.bad
        if self._opened[file] is inode and offset <= bad < min(offset + size, len(inode.data)):
            raise OSError(errno.EIO, "bad sector")
        return super().read(file, size, offset)


def test_a_bad_sector_hides_only_its_own_events() -> None:
    made = HandWritten()
    made.write(*[counted(1) for _ in range(300)])
    files = made.disk.files()
    (path,) = [path for path in files if path.endswith(".jsonl")]
    disk = BadSector(files, path, 5000)
    report = verify(disk, "/s")
    damage, bad = report.findings
    assert not report.whole
    assert damage.first_event_id is not None
    assert damage.last_event_id is not None
    lost = damage.last_event_id - damage.first_event_id + 1
    assert 25 < lost < 45
    assert report.events == 300 - lost
    assert (bad.offset, bad.severity) == (4096, Severity.DAMAGE)
    with Repair(disk, "/s") as work:
        plan = work.plan()
        assert plan.salvaged_events == 300 - damage.last_event_id
        evidence = work.carry_out(plan).evidence
    after = disk.files()
    copied = after[f"{evidence}/{path.rpartition('/')[2]}"]
    assert copied == files[path][:4096] + bytes(4096) + files[path][8192:]
    told = msgspec.json.decode(after[f"{evidence}/repair.json"])["unreadable_bytes_as_zeros"]
    assert told == [{"file": path.rpartition("/")[2], "offset": 4096, "size": 4096}]


def test_a_bad_sector_in_an_index_is_damage_to_what_is_derived() -> None:
    path = next(path for path in sound().files if path.endswith(".idx"))
    disk = BadSector(dict(sound().files), path, 5000)
    (finding,) = verify(disk, "/s").findings
    assert (finding.severity, finding.file) == (Severity.DERIVED, path.rpartition("/")[2])


# --- state.db ---


async def store_with_snapshots(path: Path) -> None:
    async with EventStore(path) as store:
        await store.append_batch("a", [("T", {"n": n}) for n in range(10)])
        for name in ("first", "second"):
            made = Projection(name, store)
            made.when("T", lambda state, event: state)
            await made.catch_up()
            await made.save_snapshot()


async def test_saved_positions_are_compared_with_the_log(tmp_path: Path) -> None:
    path = tmp_path / "s"
    await store_with_snapshots(path)
    assert verify(Disk(), str(path)).findings == []
    with closing(sqlite3.connect(path / "state.db")) as connection:
        connection.execute("UPDATE states SET crc = '00000000' WHERE key LIKE '%second%'")
        connection.commit()
    (finding,) = verify(Disk(), str(path)).findings
    assert (finding.severity, finding.file) == (Severity.NOTE, "state.db")
    assert "second" in finding.reason


@pytest.mark.parametrize("damage", ["not a database", "a page"])
async def test_a_damaged_state_is_told_and_taken_away(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "s"
    await store_with_snapshots(path)
    state = path / "state.db"
    data = state.read_bytes()
    state.write_bytes(b"x" * 5000 if damage == "not a database" else data[:4096] + b"\xff" * 200 + data[4296:])
    (finding,) = verify(Disk(), str(path)).findings
    assert (finding.severity, finding.file) == (Severity.DERIVED, "state.db")
    bad = state.read_bytes()
    with Repair(Disk(), str(path)) as work:
        plan = work.plan()
        assert (plan.needed, plan.lost_events) == (True, 0)
        outcome = work.carry_out(plan)
    assert not state.exists()
    assert (Path(outcome.evidence) / "state.db").read_bytes() == bad
    assert [os.stat(made).st_mode & 0o777 for made in (outcome.evidence, f"{outcome.evidence}/head")] == [0o700, 0o600]
    assert verify(Disk(), str(path)).findings == []
