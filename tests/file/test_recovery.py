"""Crashes and damage, tried in memory: every cut, every flipped bit, a power loss at every change of the disk."""

from __future__ import annotations

import contextlib
import errno
import logging
import random
from dataclasses import dataclass, field
from functools import partial

import pytest

from aiostore.engine import Commit, Head, Plan
from aiostore.engines.file import format as fmt
from aiostore.engines.file import scan
from aiostore.engines.file.opening import open_to_read
from aiostore.engines.file.recovery import is_torn
from aiostore.engines.postings import Kind, Term, key_text
from aiostore.errors import EngineUnavailable, EngineUnsupported, EventStoreError, StoreCorrupt
from aiostore.events import Event
from tests.crash.tape import Moment, RecordingDisk, Renamed, Written
from tests.file.disks import CHANGES, Inode, MemoryDisk, WatchedDisk, left_after_power_loss
from tests.file.driver import Driver, counted, nothing, opened_to_write, read_now, started


@dataclass
class Story:
    """A store in memory, what was written to it, and where its whole commits end."""

    disk: MemoryDisk
    events: list[Event] = field(default_factory=list)
    ends: list[int] = field(default_factory=lambda: [0])
    driver: Driver | None = None

    def note(self, plan: Plan) -> None:
        for commit in plan.commits:
            self.events.extend(commit.events)
            self.ends.append(len(self.events))


async def told(durability: str, segment_bytes: int = 1500, rounds: int = 4) -> Story:
    """A store of several segments and commits of all kinds, closed cleanly."""
    story = Story(MemoryDisk())
    engine, driver = await started("/s", story.disk, durability=durability, segment_bytes=segment_bytes)
    for n in range(rounds):
        story.note(await driver.commit(counted(1, "one")))
        story.note(await driver.commit((f"key-{n}", counted(3, "three")), counted(1), counted(2)))
        story.note(await driver.commit([("tagged", "T", {"n": n}, {"by": "ü"}, ("a:1", "b:2"))]))
    await engine.aclose()
    assert story.disk.held == 0
    return story


def recovered(story: Story, disk: MemoryDisk, at_least: int, synced: bool = True) -> int:
    """Open the disk for writing: it must hold a prefix of whole commits, at least so many events. How many it holds."""
    writer = opened_to_write(disk, synced=synced)
    try:
        head = writer.index.head.event_id
        assert head in story.ends, "only whole commits"
        assert head >= at_least, "what was acknowledged is there"
        events, error = read_now(disk, writer.index)
        assert error is None
        assert events == story.events[:head]
        for stream_id in ("one", "three", "s", "tagged"):
            mine = [event for event in events if event.stream_id == stream_id]
            assert read_now(disk, writer.index, stream_id=stream_id) == (mine, None)
    finally:
        writer.close()
    assert disk.held == 0
    return head


def recovered_or_corrupt(story: Story, disk: MemoryDisk, at_least: int) -> tuple[int, StoreCorrupt | None]:
    try:
        return recovered(story, disk, at_least), None
    except StoreCorrupt as error:
        return 0, error


def last_segment(disk: MemoryDisk) -> str:
    return max(path for path in disk.inodes if path.endswith(".jsonl"))


@pytest.mark.parametrize("durability", ["fsync", "os"])
@pytest.mark.parametrize("head", ["closed", "lost", "old"])
async def test_a_cut_at_every_byte_of_the_last_segment(durability: str, head: str) -> None:
    story = await told(durability)
    files = story.disk.files()
    path = last_segment(story.disk)
    first = fmt.segment_first(path[-26:])
    assert first is not None
    assert first > 10
    if head == "lost":
        del files["/s/head"]
    elif head == "old":
        store_id = fmt.decode_manifest(files["/s/aiostore.json"]).store_id
        files["/s/head"] = fmt.encode_slot(first + 3, store_id) * 2
    outcomes = set()
    for size in range(len(files[path]) + 1):
        disk = MemoryDisk({**files, path: files[path][:size]})
        kept, error = recovered_or_corrupt(story, disk, at_least=first - 1)
        if error is not None:
            assert head != "lost", "nothing says that more was there"
            assert error.path == path
            assert error.first_event_id <= error.last_event_id <= len(story.events)
            assert disk.held == 0
            assert disk.files() == {**files, path: files[path][:size], "/s/lock": disk.files()["/s/lock"]}
            outcomes.add("corrupt")
        else:
            assert not (head == "closed" and kept < len(story.events)), "the head says that all was durable"
            assert not (head == "old" and kept < first + 3)
            torn = [data for name, data in disk.files().items() if name.startswith("/s/torn-")]
            cut = disk.files()[path]
            assert b"".join([cut, *torn]) == files[path][:size], "what is cut is kept aside"
            outcomes.add("opened")
            assert recovered(story, disk, at_least=kept) == kept
    assert outcomes == ({"opened"} if head == "lost" else {"opened", "corrupt"})


@pytest.mark.parametrize("durability", ["fsync", "os"])
async def test_a_flipped_bit_of_any_byte_is_reported_or_harmless(durability: str) -> None:
    story = await told(durability, segment_bytes=800, rounds=2)
    files = story.disk.files()
    assert len(files) >= 6
    for path, data in files.items():
        for place in range(len(data)):
            if path == "/s/head" and data[place] == data[place - 1] == ord(" ") and place % 16:
                continue  # the padding of the slots is all alike
            for bit in (place % 8, (place + 3) % 8):  # tests/fuzz flips all of them, of a larger store
                flipped = bytearray(data)
                flipped[place] ^= 1 << bit
                _check_flip(story, {**files, path: bytes(flipped)}, path, full=bit == place % 8)


def _check_flip(story: Story, files: dict[str, bytes], path: str, full: bool) -> None:
    disk = MemoryDisk(files)
    _, error = recovered_or_corrupt(story, disk, at_least=len(story.events))
    if error is None:
        assert path in ("/s/head", "/s/lock"), "a flip in the log or the manifest is reported"
    else:
        assert error.path == path
        assert "/s/torn" not in str(list(disk.files()))
        assert disk.files()[path] == files[path]
    if full and path.endswith(".jsonl"):
        _check_reading_beside_damage(story, MemoryDisk(files), path)


def _check_reading_beside_damage(story: Story, disk: MemoryDisk, path: str) -> None:
    """mode="r" serves what is before the damage, says so there, and serves what is behind."""
    index = open_to_read(disk, "/s", nothing)
    assert index.head.event_id == len(story.events)
    events, error = read_now(disk, index)
    assert events == story.events[: len(events)]
    if error is None:  # two lines became one, or one two: nothing is lost
        assert events == story.events
        return
    assert error.path == path
    assert error.first_event_id == len(events) + 1
    for stream_id in ("one", "three", "s", "tagged"):
        mine = [event for event in story.events if event.stream_id == stream_id]
        known, missing = read_now(disk, index, stream_id=stream_id)
        assert known == mine[: len(known)]
        assert missing is not None or known == mine, "an event that is lost is not skipped"
        if missing is not None:
            assert error.first_event_id <= mine[-1].event_id or error.last_event_id > mine[-1].event_id
        late = [event for event in mine if event.event_id > error.last_event_id]
        for event in late[:1]:
            assert read_now(disk, index, stream_id=stream_id, from_version=event.version) == (late, None)
    behind, again = read_now(disk, index, after=error.last_event_id)
    assert again is None
    assert behind == story.events[error.last_event_id :]
    down, error_down = read_now(disk, index, backwards=True)
    assert error_down is not None
    assert down == list(reversed(behind))


async def test_a_log_that_was_closed_opens_without_a_write() -> None:
    story = await told("fsync")
    before = story.disk.files()
    assert recovered(story, story.disk, at_least=len(story.events)) == len(story.events)
    assert story.disk.files() == before


@pytest.mark.parametrize("chunk_bytes", [1, 50, 137, 400, 1000])
async def test_it_is_all_the_same_where_a_chunk_of_the_scan_ends(
    chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = await told("fsync")
    monkeypatch.setattr(scan, "CHUNK_BYTES", chunk_bytes)
    assert recovered(story, story.disk, at_least=len(story.events)) == len(story.events)
    writer = opened_to_write(story.disk)
    newest = writer.index.newest
    keys = [Term(Kind.KEY, key_text("three", f"key-{n}")) for n in range(4)]
    assert [list(newest.ids(key, newest.places(key, 1, 100))) for key in keys] == [[2], [10], [18], [26]]
    writer.close()


class CrashingDisk(MemoryDisk):
    """Notes, at every change, what a power loss would leave, and what was acknowledged by then."""

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        super().__init__(files)
        self.acknowledged = 0
        self.crashes: list[tuple[int, MemoryDisk]] = []
        self.on_step = lambda: self.crashes.append((self.acknowledged, self.snapshot()))


async def crashing_story(durability: str) -> Story:
    disk = CrashingDisk()
    story = Story(disk)
    engine, driver = await started("/s", disk, durability=durability, segment_bytes=1500)
    for n in range(3):
        for plan in (
            driver.plan(counted(1, "one")),
            driver.plan((f"key-{n}", counted(3, "three")), counted(1), counted(2)),
            driver.plan([("tagged", "T", {"n": n, "long": "x" * 600}, {"by": "ü"}, ("a:1", "b:2"))]),
        ):
            story.note(plan)
            await engine.commit(plan)
            disk.acknowledged = len(story.events)
    await engine.aclose()
    return story


def after_power_loss(disk: MemoryDisk) -> list[MemoryDisk]:
    """What may be left: for the unsynced changes of each file all, none, the first few, or any sectors of any."""
    most = max(len(inode.pending) for inode in disk.inodes.values())
    states: list[MemoryDisk] = []
    for entries in (False, True):
        states += [disk.crashed(partial(left_after_power_loss, None, count), entries) for count in range(most + 1)]
        states += [disk.crashed(partial(left_after_power_loss, random.Random(n), None), entries) for n in range(4)]
    return states


@pytest.mark.parametrize("durability", ["fsync", "os"])
async def test_a_power_loss_at_every_change_keeps_what_was_acknowledged(durability: str) -> None:
    story = await crashing_story(durability)
    assert isinstance(story.disk, CrashingDisk)
    tried = 0
    for number, (acknowledged, crashed) in enumerate(story.disk.crashes):
        for state in after_power_loss(crashed):
            state = CrashingDisk(state.files())
            kept = recovered(story, state, at_least=acknowledged if durability == "fsync" else 0)
            tried += 1
            if number % 3 == 0:  # and another while recovering: what was acknowledged or served stays
                for _, again in state.crashes:
                    for second in after_power_loss(again)[-4:]:
                        recovered(story, second, at_least=acknowledged if durability == "fsync" else 0)
                        tried += 1
            assert recovered(story, state, at_least=kept) == kept
    assert tried > 500


@pytest.mark.parametrize("durability", ["fsync", "os"])
async def test_a_killed_process_loses_nothing_acknowledged(durability: str) -> None:
    story = await crashing_story(durability)
    assert isinstance(story.disk, CrashingDisk)
    for acknowledged, crashed in story.disk.crashes:
        recovered(story, MemoryDisk(crashed.files()), at_least=acknowledged)


async def test_after_a_failed_sync_what_is_kept_is_written_again() -> None:
    """The cache shows what the disk lost: after recovery a power loss must not lose it."""
    story = await told("fsync", segment_bytes=10**6)
    files = story.disk.files()
    path = last_segment(story.disk)
    del files["/s/head"]
    disk = MemoryDisk(files)
    last = files[path].splitlines(keepends=True)[-1]
    disk.inodes[path].stable = files[path][: -len(last)]  # reads show more than the device has,
    disk.drops_cache = False  # and go on to
    kept = recovered(story, disk, at_least=0)
    assert kept == len(story.events)
    assert recovered(story, disk.crashed(), at_least=kept) == kept


async def test_after_a_failed_sync_the_log_is_read_from_the_device() -> None:
    story = await told("fsync", segment_bytes=10**6)
    disk = MemoryDisk(story.disk.files())
    inode = disk.inodes[last_segment(disk)]
    driver = Driver(None, Head(len(story.events), ""))
    plan = driver.plan(counted(2, "lost"))
    store_id = fmt.decode_manifest(disk.files()["/s/aiostore.json"]).store_id
    inode.data += encoded(plan, fmt.line_seed(store_id, 1), len(story.events))
    assert recovered(story, disk, at_least=len(story.events)) == len(story.events), "the device does not have them"
    assert recovered(story, disk.crashed(), at_least=len(story.events)) == len(story.events)


def encoded(plan: Plan, seed: int, durable: int) -> bytes:
    return b"".join(lines.data for lines in fmt.encode_group(plan.commits, seed, durable))


async def test_a_torn_tail_is_set_aside_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    story = await told("fsync")
    path = last_segment(story.disk)
    tail = b'{"event_id":29,"stream_id":"x","vers'
    disk = MemoryDisk({**story.disk.files(), path: story.disk.files()[path] + tail})
    with caplog.at_level(logging.WARNING, "aiostore"):
        assert recovered(story, disk, at_least=len(story.events)) == len(story.events)
    [torn] = [name for name in disk.files() if is_torn(name.removeprefix("/s/"))]
    assert torn.startswith(f"/s/torn-{len(story.events) + 1}-20")
    assert disk.files()[torn] == tail
    assert disk.files()[path] == story.disk.files()[path]
    assert torn in caplog.text


async def test_a_commit_without_its_end_is_torn_as_a_whole() -> None:
    story = await told("fsync")
    store_id = fmt.decode_manifest(story.disk.files()["/s/aiostore.json"]).store_id
    path = last_segment(story.disk)
    first = fmt.segment_first(path[-26:])
    assert first is not None
    driver = Driver(None, Head(len(story.events), ""))
    data = encoded(driver.plan(counted(3, "new")), fmt.line_seed(store_id, first), len(story.events))
    whole = data.splitlines(keepends=True)
    disk = MemoryDisk({**story.disk.files(), path: story.disk.files()[path] + whole[0] + whole[1]})
    assert recovered(story, disk, at_least=len(story.events)) == len(story.events)
    assert whole[0] + whole[1] in disk.files().values()


async def test_a_later_line_shows_that_a_lost_one_was_durable() -> None:
    """Without the head file, the next line's `open` tells damage from a torn tail, also when its newline is gone."""
    story = await told("fsync", segment_bytes=10**6)
    files = story.disk.files()
    del files["/s/head"]
    path = last_segment(story.disk)
    lines = files[path].splitlines(keepends=True)
    for lost in range(len(lines) - 7):  # behind the last lines there is no later group
        for damaged in (b"\0" * len(lines[lost]), b"", lines[lost][:-1] + b"\0"):
            data = b"".join(lines[:lost]) + damaged + b"".join(lines[lost + 1 :])
            with pytest.raises(StoreCorrupt) as caught:
                opened_to_write(MemoryDisk({**files, path: data}))
            assert caught.value.first_event_id == lost + 1
            assert caught.value.offset == sum(map(len, lines[:lost]))


async def test_a_line_glued_to_a_damaged_one_still_shows_that_that_was_durable() -> None:
    disk = MemoryDisk()
    engine, driver = await started("/s", disk)
    for _ in range(3):
        await driver.commit(counted(1))
    await engine.aclose()
    files = disk.files()
    del files["/s/head"]
    path = last_segment(disk)
    lines = files[path].splitlines(keepends=True)
    with pytest.raises(StoreCorrupt) as caught:
        opened_to_write(MemoryDisk({**files, path: lines[0] + lines[1][:-1] + b"\0" + lines[2]}))
    assert caught.value.first_event_id == caught.value.last_event_id == 2


async def test_a_version_that_is_left_out_is_reported_by_a_read_of_the_stream() -> None:
    disk = MemoryDisk()
    writer = opened_to_write(disk)
    writer.close()
    store_id = fmt.decode_manifest(disk.files()["/s/aiostore.json"]).store_id
    driver = Driver(None, Head(0, ""))
    events = driver.events([*counted(2), ("other", "T", {}), *counted(2)])
    del events[1]
    moved = [
        Event(place, event.stream_id, event.version, "T", event._timestamp, event._data)
        for place, event in enumerate(events, 1)
    ]
    lines = encoded(Plan([Commit(moved, None)]), fmt.line_seed(store_id, 1), 0)
    disk = MemoryDisk({**disk.files(), last_segment(disk): lines})
    index = open_to_read(disk, "/s", nothing)
    found, error = read_now(disk, index, stream_id="s")
    assert found == moved[:1]
    assert error is not None
    assert "version 3 of stream 's' stands where version 2 must" in str(error)
    assert read_now(disk, index, stream_id="s", from_version=3) == (moved[2:], None)
    assert read_now(disk, index, stream_id="s", from_version=2)[1] is not None
    assert read_now(disk, index)[0] == moved


async def test_a_stream_that_may_go_on_in_lost_bytes_is_not_said_to_end_before() -> None:
    story = await told("fsync", segment_bytes=10**6)
    files = story.disk.files()
    path = last_segment(story.disk)
    disk = MemoryDisk({**files, path: files[path][:-100]})
    index = open_to_read(disk, "/s", nothing)
    lost = len(story.events)
    assert index.head.event_id == lost
    for bounds in ({"stream_id": "one"}, {"stream_id": "tagged"}, {"stream_id": "new"}, {}):
        known = [event for event in story.events[:-1] if event.stream_id == bounds.get("stream_id", event.stream_id)]
        found, error = read_now(disk, index, **bounds)
        assert found == known
        assert error is not None
        assert error.first_event_id == error.last_event_id == lost
        found, error = read_now(disk, index, backwards=True, **bounds)
        assert found == []
        assert error is not None
        assert read_now(disk, index, **{**bounds, "up_to": lost - 1}) == (known, None)
    one = [event for event in story.events if event.stream_id == "one"]
    assert read_now(disk, index, stream_id="one", to_version=len(one)) == (one, None)


async def test_setting_a_torn_tail_aside_is_durable_at_each_step() -> None:
    story = await told("fsync")
    path = last_segment(story.disk)
    disk = WatchedDisk({**story.disk.files(), path: story.disk.files()[path] + b"torn"})
    del disk.inodes["/s/head"]
    opened_to_write(disk).close()
    changes = [name for name in disk.calls.made if name in CHANGES]
    lock = ["open_write", "truncate", "write_at"]
    aside = ["open_write", "write_at", "sync", "sync_directory"]
    copied = ["open_write", "truncate", "write_at", "write_at", "sync", "replace", "sync_directory"]
    head = ["open_write", "write_at", "write_at", "write_at"]
    log = ["open_log", "sync_directory"]
    assert changes == [*lock, "open_write", *aside, *copied, *head, *log, "sync"]


@pytest.mark.parametrize("torn", [b"", b"torn"])
async def test_what_may_be_acknowledged_is_never_written_over(torn: bytes) -> None:
    """Without the head, nothing vouches for the last group: a crash in the midst of its rewriting must not lose it."""
    story = await told("fsync", segment_bytes=10**6)
    files = {
        **story.disk.files(),
        (path := last_segment(story.disk)): story.disk.files()[last_segment(story.disk)] + torn,
    }
    del files["/s/head"]
    disk = RecordingDisk(files)
    assert recovered(story, disk, at_least=len(story.events)) == len(story.events)
    segment = disk.numbers[path]
    assert not [entry for entry in disk.tape if isinstance(entry, Written) and entry.inode == segment]
    assert Renamed(f"{path}.tmp", path) in disk.tape
    moment = Moment(disk)
    for entry in disk.tape:
        moment.play(entry)
        for state in moment.states(random.Random(1), 64):
            left = MemoryDisk(state)
            assert recovered(story, left, at_least=len(story.events)) == len(story.events)
            assert not [name for name in left.files() if name.endswith(".tmp")]


async def test_without_room_for_the_copy_the_store_is_as_it_was() -> None:
    story = await told("fsync", segment_bytes=10**6)
    files = story.disk.files()
    del files["/s/head"]
    disk = WatchedDisk(files)
    disk.calls.fail("write_at", errno.ENOSPC, at=3)  # behind the lock's, and the first of the copy
    with pytest.raises(OSError, match="No space"):
        opened_to_write(disk)
    assert disk.held == 0
    assert {name: data for name, data in disk.files().items() if name != "/s/lock"} == {
        name: data for name, data in files.items() if name != "/s/lock"
    }
    assert recovered(story, disk, at_least=len(story.events)) == len(story.events)


def test_every_directory_that_is_made_is_made_durable() -> None:
    disk = WatchedDisk()
    opened_to_write(disk, "/a/b/s").close()
    made = [name for name in disk.calls.made if name in ("make_directory", "sync_directory", "replace", "open_log")]
    directories = ["make_directory", "sync_directory"] * 3
    assert made == [*directories, "replace", "sync_directory", "sync_directory", "open_log", "sync_directory"]


async def test_a_writer_that_began_while_a_reader_opened_is_taken_into_account() -> None:
    story = await told("os", segment_bytes=10**6)
    files = story.disk.files()
    del files["/s/head"]

    class TakenMeanwhile(MemoryDisk):
        looked = 0

        def lock(self, file: int, *, shared: bool) -> bool:
            self.looked += 1
            return self.looked == 1

    disk = TakenMeanwhile(files)
    assert open_to_read(disk, "/s", nothing).head.event_id == 0
    assert disk.looked == 2


@pytest.mark.parametrize("what", ["missing", "emptied", "shortened", "lengthened", "doubled", "outside", "commit cut"])
async def test_damage_of_a_sealed_segment_is_reported(what: str) -> None:
    story = await told("fsync")
    files = story.disk.files()
    first, second, third = sorted(path for path in files if path.endswith(".jsonl"))[:3]
    if what == "missing":
        del files[second]
    elif what == "emptied":
        files[second] = b""
    elif what == "shortened":
        files[second] = files[second].rpartition(b'{"event_id"')[0]
    elif what == "lengthened":
        files[second] += b"x"
    elif what == "doubled":
        files[second] += files[second].splitlines(keepends=True)[-1]
    elif what == "outside":
        files["/s/00000000000000000003.jsonl"] = files[second]
    else:
        number = fmt.segment_first(third[-26:])
        assert number is not None
        files[third] = b""
        files = {path: data for path, data in files.items() if path <= third or not path.endswith(".jsonl")}
        files["/s/00000000000000000003.jsonl"] = b""
        files[first] = b"".join(files[first].splitlines(keepends=True)[:2])
        del files[second], files[third], files["/s/head"]
    with pytest.raises(StoreCorrupt) as caught:
        opened_to_write(MemoryDisk(files))
    assert caught.value.path in (first, second, "/s/00000000000000000003.jsonl")
    if what in ("missing", "emptied", "shortened", "outside"):
        assert caught.value.first_event_id > 0


async def test_a_valid_checksum_over_something_else_is_corruption_not_a_torn_tail() -> None:
    from zlib import crc32

    story = await told("fsync")
    files = story.disk.files()
    path = last_segment(story.disk)
    first = fmt.segment_first(path[-26:])
    assert first is not None
    seed = fmt.line_seed(fmt.decode_manifest(files["/s/aiostore.json"]).store_id, first)
    text = b'{"event_id":%d,"unknown":true' % (len(story.events) + 1)
    files[path] += b'%b,"crc":"%08x"}\n' % (text, crc32(text, seed))
    with pytest.raises(StoreCorrupt, match="unknown"):
        opened_to_write(MemoryDisk(files))


async def test_padding_is_kept() -> None:
    story = await told("fsync")
    path = last_segment(story.disk)
    data = story.disk.files()[path].replace(b"}\n{", b"}\n\n\n{") + b"\n\n"
    disk = MemoryDisk({**story.disk.files(), path: data})
    assert recovered(story, disk, at_least=len(story.events)) == len(story.events)
    assert disk.files()[path] == data[:-2], "but for what is behind the last line, where the next one comes"


async def test_many_beginnings_of_lines_in_a_torn_write_do_not_hold_up_opening() -> None:
    story = await told("fsync")
    path = last_segment(story.disk)
    event_id = len(story.events) + 1
    nested = b'{"event_id":%d,"stream_id":"a"},' % event_id * 200_000
    tail = b'{"event_id":%d,"data":[%b],"crc":"00000000"}\n' % (event_id, nested)
    disk = MemoryDisk({**story.disk.files(), path: story.disk.files()[path] + tail})
    assert recovered(story, disk, at_least=len(story.events)) == len(story.events)


# --- creation, and what is not a store ---


async def test_a_crash_at_any_moment_of_creation_can_be_opened() -> None:
    disk = CrashingDisk()
    opened_to_write(disk).close()
    empty = Story(disk)
    for _, crashed in disk.crashes:
        for state in [MemoryDisk(crashed.files()), *after_power_loss(crashed)]:
            assert recovered(empty, state, at_least=0) == 0


@pytest.mark.parametrize(
    "names", [[], ["aiostore.json.tmp"], ["lock", ".DS_Store"], ["aiostore.json.tmp", "lost+found"]]
)
def test_what_a_crash_or_the_system_leaves_does_not_stand_in_the_way(names: list[str]) -> None:
    disk = MemoryDisk({f"/s/{name}": b"{" for name in names})
    opened_to_write(disk).close()
    assert "/s/aiostore.json" in disk.files()


def test_files_are_not_scattered_into_a_directory_of_something_else() -> None:
    files = {"/s/notes.txt": b"", "/s/photo.jpg": b""}
    disk = MemoryDisk(files)
    with pytest.raises(EngineUnsupported, match=r"notes\.txt"):
        opened_to_write(disk)
    assert disk.files() == files


@pytest.mark.parametrize("mode", ["rw", "r"])
async def test_segments_without_a_manifest_are_corrupt(mode: str) -> None:
    story = await told("fsync")
    files = story.disk.files()
    del files["/s/aiostore.json"]
    disk = MemoryDisk(files)
    with pytest.raises(StoreCorrupt, match="manifest is missing"):
        opened_to_write(disk) if mode == "rw" else open_to_read(disk, "/s", nothing)
    assert disk.files() == files


def test_all_segments_missing_is_corrupt_where_the_head_knows_of_them() -> None:
    disk = MemoryDisk()
    opened_to_write(disk).close()
    files = disk.files()
    del files["/s/00000000000000000001.jsonl"]
    opened_to_write(MemoryDisk(files)).close()
    store_id = fmt.decode_manifest(files["/s/aiostore.json"]).store_id
    files["/s/head"] = fmt.encode_slot(5, store_id) * 2
    with pytest.raises(StoreCorrupt, match="all segments are missing"):
        opened_to_write(MemoryDisk(files))


@pytest.mark.parametrize(("reader", "writer", "mode"), [(2, 2, "r"), (2, 2, "rw"), (1, 3, "rw")])
def test_a_later_format_is_refused_by_its_number(reader: int, writer: int, mode: str) -> None:
    disk = MemoryDisk()
    opened_to_write(disk).close()
    files = disk.files()
    manifest = fmt.decode_manifest(files["/s/aiostore.json"])
    later = fmt.Manifest(reader, writer, manifest.store_id, manifest.created, 1)
    files["/s/aiostore.json"] = fmt.encode_manifest(later)
    with pytest.raises(EngineUnsupported, match=f"format {max(reader, writer)}.*format 1"):
        opened_to_write(MemoryDisk(files)) if mode == "rw" else open_to_read(MemoryDisk(files), "/s", nothing)
    if (reader, writer) == (1, 3):
        assert open_to_read(MemoryDisk(files), "/s", nothing).head.event_id == 0


@pytest.mark.parametrize("files", [{}, {"/s/notes.txt": b""}])
def test_reading_what_is_not_a_store_is_refused(files: dict[str, bytes]) -> None:
    disk = MemoryDisk(files)
    with pytest.raises(EngineUnavailable, match="no store in /s"):
        open_to_read(disk, "/s", nothing)
    assert disk.files() == files


async def test_every_error_of_opening_leaves_nothing_open() -> None:
    story = await told("fsync")
    files = story.disk.files()
    for path in files:
        disk = MemoryDisk({**files, path: files[path][: len(files[path]) // 2]})
        with contextlib.suppress(EventStoreError):
            opened_to_write(disk).close()
        assert disk.held == 0


def test_the_inode_of_a_power_loss_is_a_model_that_loses_something() -> None:
    """The tests above would show nothing on a disk that never tears."""
    inode = Inode(bytearray(b"a" * 2000), b"a" * 400, [(400, b"a" * 1600)])
    left = {left_after_power_loss(random.Random(seed), None, inode) for seed in range(20)}
    assert len(left) > 3
    assert any(b"\0" in data for data in left)
