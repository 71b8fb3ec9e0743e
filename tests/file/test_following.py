"""A reader beside a log that the test writes byte by byte: it shows what the head says, and nothing else."""

from __future__ import annotations

import pytest

from aiostore import EngineUnavailable, Event, EventStore, Query, StoreCorrupt
from aiostore.engine import Question
from aiostore.engines.file.engine import FileEngine
from aiostore.engines.file.format import HEAD_NAME, encode_slot
from aiostore.engines.file.opening import Options, open_to_write
from aiostore.engines.file.scan import CHUNK_BYTES
from tests.file.disks import MemoryDisk, WatchedDisk
from tests.file.driver import counted, everything, nothing
from tests.file.followed import STORE_ID, Following, HandWritten


def ids(events: list[Event]) -> list[int]:
    return [event.event_id for event in events]


async def test_only_what_the_head_says_is_shown() -> None:
    log = HandWritten()
    follower = await Following.open(disk=log.disk)
    log.put(log.lines(counted(2), counted(1)))
    assert await follower.look() == []
    assert await everything(follower.engine) == []
    assert (await follower.engine.facts(Question(["s"]))).versions["s"] == 0
    log.say(2)
    assert [ids(list(commit.events)) for commit in await follower.look()] == [[1, 2]]
    await follower.check(log.made)
    assert (await follower.engine.facts(Question(["s"]))).versions["s"] == 2
    log.say(3)
    await follower.look()
    await follower.check(log.made)
    await follower.aclose()
    assert log.disk.held == 0


async def test_a_line_at_a_time_in_every_state_of_its_writing() -> None:
    """Cut at each byte, what is written is not seen, and disturbs nothing."""
    log = HandWritten()
    log.write(counted(1))
    follower = await Following.open(disk=log.disk)
    group = log.lines(counted(2))
    for size in range(len(group)):
        log.put(group[size : size + 1])
        assert await follower.look() == []
        if size % 50 == 0:
            late = await Following.open(disk=log.disk)
            await late.check(log.made[: late.start])
            await late.aclose()
    log.say(3)
    await follower.look()
    await follower.check(log.made)
    await follower.aclose()


async def test_the_commits_keep_their_bounds_keys_and_sizes() -> None:
    log = HandWritten()
    follower = await Following.open(disk=log.disk)
    data = log.lines(counted(2), counted(1))
    log.put(data)
    log.say(3)
    commits = await follower.look()
    assert [len(commit.events) for commit in commits] == [2, 1]
    assert len(data) / 2 < sum(commit.bytes_estimate for commit in commits) <= len(data)
    await follower.aclose()


@pytest.mark.parametrize("next_writer", ["cuts the tail", "appends over it"])
async def test_a_torn_tail_that_the_next_writer_cuts_is_never_seen(next_writer: str) -> None:
    log = HandWritten()
    log.write(counted(3))
    follower = await Following.open(disk=log.disk)
    torn = log.lines(counted(3, "lost"))
    log.put(torn[:-30])
    log.forget(3)
    assert await follower.look() == []
    late = await Following.open(disk=log.disk)
    assert late.start == 3
    writer = open_to_write(log.disk, "/s", Options(True, 10**6), nothing)
    writer.close()
    assert await follower.look() == await late.look() == []
    if next_writer == "appends over it":
        log.write(counted(2, "kept"), counted(4))
        for each in (follower, late):
            await each.look()
    for each in (follower, late):
        await each.check(log.made)
        await each.aclose()
    assert log.disk.held == 0


async def test_what_a_dead_writer_had_not_synced_is_synced_before_it_is_shown() -> None:
    """A reader that has seen it would else be wrong after a power loss."""
    disk = MemoryDisk()
    log = HandWritten(disk)
    log.write(counted(1))
    file = disk.open_log(log.path, synced=False)
    disk.write_log(file, memoryview(log.lines(counted(2))), disk.size(file), synced=False)
    disk.close(file)
    follower = await Following.open(disk=disk)
    shown = follower.start
    await follower.aclose()
    after = await Following.open(disk=disk.crashed())
    assert after.start >= shown
    await after.aclose()


@pytest.mark.parametrize("read_before", [False, True])
@pytest.mark.parametrize("looked_before", [False, True])
async def test_a_segment_whose_copy_recovery_put_in_its_place_is_opened_anew(
    read_before: bool, looked_before: bool
) -> None:
    log = HandWritten()
    log.write(counted(2))
    follower = await Following.open(disk=log.disk)
    log.write(counted(2), counted(2, "t"))
    if looked_before:
        await follower.look()
    if read_before:
        await everything(follower.engine)
    log.disk.put(f"{log.path}.tmp", log.disk.files()[log.path])
    log.disk.replace(f"{log.path}.tmp", log.path)
    log.write(counted(3), counted(2, "u"))
    await follower.look()
    assert (await follower.engine.facts(Question(["u"]))).versions == {"u": 2}
    await follower.check(log.made)
    assert len(follower.seen) == 9
    await follower.aclose()
    assert log.disk.held == 0


async def test_a_segment_that_someone_cuts_off_under_a_reader_is_damage() -> None:
    log = HandWritten()
    log.write(counted(1), counted(1, "t"))
    follower = await Following.open(disk=log.disk)
    assert len(await everything(follower.engine)) == 2
    del log.disk.inodes[log.path].data[-40:]
    for bounds in ({}, {"stream_id": "t"}, {"backwards": True}):
        with pytest.raises(StoreCorrupt, match=r"file ends|checksum|lines where"):
            await everything(follower.engine, **bounds)
    await follower.aclose()


async def test_what_a_failed_sync_lost_is_not_shown_from_memory() -> None:
    """The next writer does not have it, and writes others in its place."""
    disk = MemoryDisk()
    log = HandWritten(disk)
    log.write(counted(1))
    disk.inodes[log.path].data.extend(log.lines(counted(2, "lost")))  # clean in memory, and not on the device
    log.forget(2)
    follower = await Following.open(disk=disk)
    log.write(counted(2, "kept"))
    await follower.look()
    await follower.check(log.made)
    await follower.aclose()


async def test_where_it_cannot_be_synced_only_what_is_known_to_be_durable_is_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    disk = WatchedDisk()
    log = HandWritten(disk)
    log.write(counted(1))
    log.put(log.lines(counted(2)))
    disk.calls.fail("sync", 5)
    follower = await Following.open(disk=disk)
    assert follower.start == 1
    assert "cannot be synced" in caplog.text
    log.say(3)
    await follower.look()
    await follower.check(log.made)
    await follower.aclose()
    disk.calls.fail("sync", 30)  # a read-only file system has nothing to sync
    follower = await Following.open(disk=disk)
    assert follower.start == 3
    await follower.aclose()


# --- rolls ---


async def test_many_rolls_between_two_looks_and_one_whose_segment_is_empty() -> None:
    log = HandWritten()
    follower = await Following.open(disk=log.disk, part_bytes_min=1)
    for number in range(40):
        log.write(counted(1 + number % 3))
        log.roll()
    late = await Following.open(disk=log.disk)
    for each in (follower, late):
        await each.look()
        await each.check(log.made)
    log.write(counted(1))
    for each in (follower, late):
        await each.look()
        await each.check(log.made)
        await each.aclose()
    assert log.disk.held == 0


@pytest.mark.parametrize("padding", [1, 7, CHUNK_BYTES - 1, CHUNK_BYTES, 5 * CHUNK_BYTES])
@pytest.mark.parametrize("where", ["before the roll", "in the midst", "behind the durable end"])
async def test_blank_lines_are_padding(padding: int, where: str) -> None:
    log = HandWritten()
    follower = await Following.open(disk=log.disk)
    log.write(counted(2))
    if where == "before the roll":
        await follower.look()
        log.put(b"\n" * padding)
        log.roll()
        log.write(counted(1))
    elif where == "in the midst":
        log.put(b"\n" * padding)
        log.write(counted(1))
    else:
        log.put(log.lines(counted(1)) + b"\n" * padding)
        await follower.look()
        log.say(3)
    await follower.look()
    await follower.check(log.made)
    await follower.aclose()


@pytest.mark.parametrize("size", [CHUNK_BYTES // 2, CHUNK_BYTES, 3 * CHUNK_BYTES, 40 * 1024 * 1024])
async def test_a_commit_that_is_larger_than_what_is_read_at_once(size: int) -> None:
    log = HandWritten()
    follower = await Following.open(disk=log.disk)
    log.write(counted(1))
    log.write([("s", "Large", {"n": n, "fill": "x" * (size // 3)}) for n in range(3)])
    log.write(counted(1))
    commits = await follower.look()
    assert [len(commit.events) for commit in commits] == [1, 3, 1]
    await follower.check(log.made)
    await follower.aclose()


async def test_a_commit_of_many_events_is_taken_whole() -> None:
    log = HandWritten()
    follower = await Following.open(disk=log.disk)
    log.write(counted(20_000))
    (commit,) = await follower.look()
    assert len(commit.events) == 20_000
    await follower.check(log.made)
    await follower.aclose()


# --- a store that is being made ---


async def test_a_store_that_has_no_segment_yet() -> None:
    log = HandWritten(head=False, segment=False)
    follower = await Following.open(disk=log.disk)
    assert await follower.look() == await everything(follower.engine) == []
    assert await everything(follower.engine, stream_id="s") == []
    assert await everything(follower.engine, query=Query.where(types="T"), backwards=True) == []
    log.say(0)
    assert await follower.look() == []
    log.roll()
    assert await follower.look() == []
    log.write(counted(2))
    await follower.look()
    await follower.check(log.made)
    await follower.aclose()


@pytest.mark.parametrize("left", [0, 1, 511, 512, 1000])
async def test_a_head_file_that_is_being_made(left: int) -> None:
    log = HandWritten(head=False)
    log.put(log.lines(counted(2)))
    log.disk.put(f"/s/{HEAD_NAME}", encode_slot(0, STORE_ID)[:left] + b"?" * max(0, left - 512))
    writer = log.disk.open_write("/s/lock")
    log.disk.lock(writer, shared=False)  # else all is read that there is
    follower = await Following.open(disk=log.disk)
    assert follower.start == 0
    assert await follower.look() == []
    log.say(1)
    log.say(2)
    await follower.look()
    await follower.check(log.made)
    await follower.aclose()


async def test_a_slot_that_is_torn_leaves_the_other() -> None:
    log = HandWritten()
    log.write(counted(1))
    follower = await Following.open(disk=log.disk)
    log.put(log.lines(counted(1)))
    slot = encode_slot(2, STORE_ID)
    for size in (1, 12, 20):
        log.disk.put(f"/s/{HEAD_NAME}", slot[:size], log.slot * 512)
        assert await follower.look() == []
    log.say(2)
    await follower.look()
    await follower.check(log.made)
    await follower.aclose()


# --- damage ---


def damaged(log: HandWritten, event_id: int, at: int = 30) -> int:
    """Change a byte of the event's line in the segment that is written; returns where the line begins."""
    data = bytes(log.disk.inodes[log.path].data)
    start = data.index(b'{"event_id":%d,' % event_id)
    log.disk.put(log.path, bytes([data[start + at] ^ 1]), start + at)
    return start


@pytest.mark.parametrize("nowait", [False, True])
@pytest.mark.parametrize("event_id", [5, 6, 9, 12])
async def test_what_stands_before_damage_is_delivered_and_then_it_is_named(event_id: int, nowait: bool) -> None:
    log = HandWritten()
    log.write(counted(3))
    follower = await Following.open(disk=log.disk)
    if nowait:  # the segment is open by then, and what is little is taken in the loop
        log.write(counted(1))
        await follower.look()
    log.write(*(counted(1) for _ in range(12 - len(log.made))))
    start = damaged(log, event_id)
    for _ in range(2):
        with pytest.raises(StoreCorrupt) as caught:
            await follower.look()
        error = caught.value
        assert (error.path, error.offset) == (log.path, start)
        assert (error.first_event_id, error.last_event_id) == (event_id, event_id)
        assert follower.position == event_id - 1
    await follower.check(log.made[: follower.position])
    await follower.aclose()
    assert log.disk.held == 0


async def test_of_a_commit_that_is_damaged_nothing_is_delivered() -> None:
    log = HandWritten()
    follower = await Following.open(disk=log.disk)
    log.write(counted(2), counted(3), counted(1))
    start = damaged(log, 4)
    with pytest.raises(StoreCorrupt) as caught:
        await follower.look()
    assert (caught.value.offset, caught.value.first_event_id, caught.value.last_event_id) == (start, 4, 4)
    assert follower.position == 2
    await follower.check(log.made[:2])
    await follower.aclose()


@pytest.mark.parametrize("how", ["cut", "zeros", "missing", "next missing", "another commit", "unreadable"])
async def test_damage_of_other_kinds(how: str) -> None:
    disk = WatchedDisk()
    log = HandWritten(disk)
    log.write(counted(2))
    follower = await Following.open(disk=disk)
    if how == "cut":
        log.write(counted(2))
        del disk.inodes[log.path].data[-20:]
    elif how == "zeros":
        log.put(b"\0" * 3 * CHUNK_BYTES)
        log.say(4)
    elif how == "missing":
        log.write(counted(2))
        del disk.inodes[log.path]
    elif how == "next missing":
        log.roll()
        log.write(counted(2))
        del disk.inodes[log.path]
    elif how == "another commit":
        first = log.lines(counted(3)).splitlines(keepends=True)
        log.forget(2)
        log.put(first[0] + log.lines(counted(1)))
        log.say(4)
    else:
        log.write(counted(2))
        disk.calls.fail("read", 5, times=100)
        await look_fails(follower, EngineUnavailable)  # of the head
        disk.calls.heal()
        disk.calls.fail("open_read", 5, times=100)
        await look_fails(follower, EngineUnavailable)
        disk.calls.heal()
        await follower.engine.commits_after(4)  # the head is open now
        await follower.aclose()
        return
    await look_fails(follower, StoreCorrupt)
    assert follower.position == 2
    await follower.aclose()
    assert disk.held == 0


async def look_fails(follower: Following, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        await follower.look()


async def test_too_many_open_files_pass() -> None:
    disk = WatchedDisk()
    log = HandWritten(disk)
    follower = await Following.open(disk=disk)
    log.write(counted(2))
    for at in (1, 2):
        disk.calls.fail("open_read", 24, at=at)
        with pytest.raises(EngineUnavailable, match="cannot be read now"):
            await follower.look()
        disk.calls.heal()
    await follower.look()
    await follower.check(log.made)
    await follower.aclose()
    assert disk.held == 0


@pytest.mark.parametrize("event_id", [1, 3, 4, 5])
async def test_damage_to_what_was_indexed_before_it_was_handed_on(event_id: int) -> None:
    """A read had taken it in; what comes before is handed on all the same."""
    log = HandWritten()
    follower = await Following.open(disk=log.disk)
    log.write(counted(1), counted(2), counted(2))
    assert (await follower.engine.facts(Question())).head == 5
    start = damaged(log, event_id)
    with pytest.raises(StoreCorrupt) as caught:
        await follower.look()
    assert (caught.value.offset, caught.value.first_event_id) == (start, event_id)
    assert follower.position == (0 if event_id == 1 else 1 if event_id == 3 else 3)
    await follower.aclose()
    assert log.disk.held == 0


# --- questions and reads ---


async def test_a_reader_that_begins_sees_what_another_process_was_told_is_stored() -> None:
    """Without waiting for anything to be published here."""
    log = HandWritten()
    async with EventStore(FileEngine("/s", mode="r", disk=log.disk)) as store:
        log.write(counted(700))
        assert await store.head() == 700
        assert await store.stream_version("s") == 700
        log.write(counted(1))
        assert len(await store.read_all().to_list()) == 701
        log.write(counted(1))
        assert len(await store.read_stream("s").to_list()) == 702
        log.write(counted(1), counted(1))
        damaged(log, 704)
        assert len(await store.read_all().to_list()) == 703
        assert await store.head() == await store.stream_version("s") == 703
