"""What fuzzing found: each of these failed."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import pytest

from aiostore import Event, EventStore, Query, StoreCorrupt, StoreLocked
from aiostore.engines.file import format as fmt
from aiostore.engines.file.behind import whole_commits
from aiostore.engines.file.blocks import BLOCK_BYTES
from aiostore.engines.file.disk import Disk
from aiostore.engines.file.engine import FileEngine
from aiostore.engines.file.lock import holder_of, writer_lives
from aiostore.engines.file.opening import open_to_read
from aiostore.engines.file.repairing import Repair
from aiostore.engines.file.run_format import Header
from aiostore.engines.file.segment import Segment
from aiostore.engines.file.verifying import verify
from tests.file.disks import MemoryDisk
from tests.file.driver import counted, nothing, opened_to_write, read_now
from tests.file.followed import DEADLINE_S, STORE_ID, Following, HandWritten
from tests.fuzz.mending import header_of, mended_text, with_header
from tests.fuzz.picky import PickyDisk
from tests.fuzz.seeds import DIRECTORY, LOCK, MANIFEST, Files, Store, first_of, segments_of, store_named, stores, wide

NESTED = b"[" * 100_000 + b"]" * 100_000


@pytest.fixture(autouse=True, scope="module")
def _made_before_there_is_a_loop() -> None:
    stores()
    wide()


def nested_at(place: int) -> tuple[Files, str]:
    """A store of which a segment's last line is nested so deeply that no decoder goes there, and its checksum holds."""
    store = store_named("plain")
    path = segments_of(store.files)[place]
    lines = store.files[path].rstrip(b"\n").split(b"\n")
    line = lines[-1].replace(b'"data":{', b'"data":{"x":' + NESTED + b",", 1).replace(b",}", b"}")
    lines[-1] = mended_text(line, fmt.line_seed(store.store_id, first_of(path) or 0))
    return {**store.files, path: b"\n".join(lines) + b"\n"}, path


@pytest.mark.parametrize("place", [0, -1])
def test_a_line_that_is_nested_too_deeply_is_damage(place: int) -> None:
    files, path = nested_at(place)
    with pytest.raises(StoreCorrupt) as caught:
        opened_to_write(PickyDisk(files))
    assert caught.value.path == path
    disk = PickyDisk(files)
    _, error = read_now(disk, open_to_read(disk, DIRECTORY, nothing))
    assert error is not None
    assert error.path == path
    assert not verify(PickyDisk(files), DIRECTORY).whole


def test_a_manifest_that_is_nested_too_deeply_is_damaged() -> None:
    files = dict(store_named("plain").files)
    files[MANIFEST] = mended_text(files[MANIFEST][: -fmt.CRC_BYTES - 1] + b',"x":' + NESTED, 0) + b"\n"
    with pytest.raises(StoreCorrupt, match="manifest"):
        opened_to_write(PickyDisk(files))


def test_a_lost_manifest_is_looked_for_in_lines_that_are_nested_too_deeply() -> None:
    """These are decoded before anything is known of their checksums: any bytes may stand there."""
    files, _ = nested_at(0)
    del files[MANIFEST]
    report = verify(PickyDisk(files), DIRECTORY)
    assert not report.whole
    assert report.events


def test_what_the_lock_says_may_be_anything() -> None:
    files = {**store_named("plain").files, LOCK: b'{"x":' + b"[" * 4000}
    disk = PickyDisk(files)
    assert holder_of(disk, LOCK) == 0
    disk.lock(disk.open_write(LOCK), shared=False)
    assert writer_lives(disk, LOCK)
    with pytest.raises(StoreLocked):
        opened_to_write(disk)


def test_no_lines_are_all_valid() -> None:
    """It was raised, and caught, and the files of no segments opened anew, for each page without events."""
    assert fmt.decode_events([], [], []) == []
    assert fmt.decode_lines([], [], []) == []


def test_what_stands_before_event_1_does_not_take_its_segment_away() -> None:
    """Damage up to event 0 was taken for damage without an end: to read was to be told that all events are lost."""
    store = store_named("plain")
    path = segments_of(store.files)[0]
    disk = PickyDisk({**store.files, path: b"garbage\n" + store.files[path]})
    index = open_to_read(disk, DIRECTORY, nothing)
    assert [(damage.first, damage.last) for damage in index.damages] == []
    events, error = read_now(disk, index)
    assert error is None
    assert len(events) == store.acknowledged
    with pytest.raises(StoreCorrupt):
        opened_to_write(PickyDisk(disk.files()))


@pytest.mark.parametrize("count", ['"more":-1', '"open":-1', '"version":-1', '"version":0'])
def test_counts_below_nothing_are_damage(count: str) -> None:
    store = store_named("plain")
    path = segments_of(store.files)[0]
    lines = store.files[path].split(b"\n")
    line = lines[0][: -fmt.CRC_BYTES]
    name = count.partition(":")[0].encode()
    line = line.replace(b'"version":1', count.encode()) if name in line else line + b"," + count.encode()
    lines[0] = mended_text(line + b"}", fmt.line_seed(store.store_id, 1))
    with pytest.raises(StoreCorrupt) as caught:
        opened_to_write(PickyDisk({**store.files, path: b"\n".join(lines)}))
    assert (caught.value.path, caught.value.offset) == (path, 0)


def test_a_segment_under_another_name_does_not_hide_that_it_is_lost() -> None:
    """What stands outside of the chain was the newest: that events behind the last one are durable was not told."""
    files = dict(store_named("plain").files)
    newest = max(segments_of(files))
    first = first_of(newest) or 0
    files[f"{DIRECTORY}/{fmt.segment_name(first - 1)}"] = files.pop(newest)
    disk = PickyDisk(files)
    index = open_to_read(disk, DIRECTORY, nothing)
    lost = [(damage.first, damage.last) for damage in index.damages]
    assert lost == [(first, store_named("plain").acknowledged)]
    with Repair(disk, DIRECTORY) as repair:
        assert repair.carry_out(repair.plan()).head_event_id == first - 1
    assert verify(disk, DIRECTORY).whole


def hand_written_with_a_cut_commit(durable: int) -> tuple[HandWritten, list[bytes]]:
    """Five events, and two of the next commit's three, which vouch for the durable event."""
    hand = HandWritten()
    lines = [hand.lines(counted(1)) for _ in range(5)]
    plan = hand._driver.plan(counted(3))
    pieces = fmt.encode_group(plan.commits, fmt.line_seed(STORE_ID, 1), durable)
    lines += b"".join(piece.data for piece in pieces).splitlines(keepends=True)[:2]
    return hand, lines


@pytest.mark.parametrize("durable", [3, 4, 5])
def test_damage_before_a_commit_that_was_cut_off_is_read_past_down_too(durable: int) -> None:
    """What was lost was told twice, not alike: down from the end, events were looked for that are in no segment."""
    hand, lines = hand_written_with_a_cut_commit(durable)
    hand.put(b"".join([*lines[:2], b"\0" * len(b"".join(lines[2:5])) + b"\n", *lines[5:]]))
    hand.say(durable)
    index = open_to_read(hand.disk, DIRECTORY, nothing)
    assert [(damage.first, damage.last) for damage in index.damages] == [(3, durable)]
    assert read_now(hand.disk, index)[0] == hand.made[:2]
    events, error = read_now(hand.disk, index, backwards=True)
    assert not events
    assert error is not None
    assert (error.first_event_id, error.last_event_id) == (3, durable)
    with pytest.raises(StoreCorrupt):
        opened_to_write(hand.disk)


def test_what_is_lost_of_a_commit_that_was_cut_off_is_not_lost() -> None:
    """It was told as damage, up to which readers went on, over lines that had been left out: IndexError."""
    hand = HandWritten()
    lines = [hand.lines(counted(1)) for _ in range(3)]
    unfinished = hand.lines(counted(4)).splitlines(keepends=True)
    lost = b"x" * 150 + b"\n"
    hand.put(b"".join([*lines[:2], lost, unfinished[0], lost, unfinished[2]]))
    hand.say(3)
    index = open_to_read(hand.disk, DIRECTORY, nothing)
    assert [(damage.first, damage.last) for damage in index.damages] == [(3, 3)]
    for backwards, expected in ((False, hand.made[:2]), (True, [])):
        events, error = read_now(hand.disk, index, backwards=backwards)
        assert events == expected
        assert error is not None
        assert (error.first_event_id, error.last_event_id) == (3, 3)
    assert read_now(hand.disk, index, after=3) == ([], None)
    with pytest.raises(StoreCorrupt):
        opened_to_write(hand.disk)


def test_a_commit_that_is_durable_in_part_is_damage() -> None:
    """Its next event would have been taken for the rest of it."""
    hand, lines = hand_written_with_a_cut_commit(5)
    hand.put(b"".join(lines))
    hand.say(6)
    with pytest.raises(StoreCorrupt, match=r"event 7|event 6"):
        opened_to_write(hand.disk)


# --- followers ---


async def test_a_follower_of_an_emptied_segment_says_so() -> None:
    """It took the segment for ended, and for the next one, for ever: each look made its index longer."""
    hand = HandWritten()
    hand.write(counted(2))
    hand.roll()
    following = await Following.open(disk=hand.disk)
    hand.say(3)
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(StoreCorrupt) as caught:
            await following.look()
    assert caught.value.path == hand.path
    assert (caught.value.first_event_id, caught.value.last_event_id) == (3, 3)
    await following.aclose()


@pytest.mark.parametrize("durable", [2**63, 2**64, 10**20 - 1])
async def test_a_head_that_is_beyond_all_measure_is_told(durable: int) -> None:
    hand = HandWritten()
    hand.write(counted(2))
    following = await Following.open(disk=hand.disk)
    hand.say(durable)
    with pytest.raises(StoreCorrupt):
        await following.look()
    await following.aclose()


def test_blank_lines_before_a_long_one_without_its_end_take_no_time() -> None:
    """For each byte of it, the rest was gone over: half a megabyte took an hour."""
    segment = Segment(DIRECTORY, "", 1)
    assert whole_commits(b"\n\n" + b"x" * 500_000, segment, 5) is None


async def test_what_is_followed_is_where_it_must_be() -> None:
    """Lines of one length that are exchanged leave a sealed segment as its index has it, and each checksum holds."""
    files, event_id = exchanged()
    engine = FileEngine(DIRECTORY, mode="r", disk=MemoryDisk(files))
    await engine.open()
    commits = await engine.commits_after(event_id - 3)
    assert [event.event_id for commit in commits for event in commit.events] == [event_id - 2, event_id - 1]
    with pytest.raises(StoreCorrupt) as caught:
        await engine.commits_after(event_id - 1)
    assert caught.value.first_event_id == event_id
    await engine.aclose()


def exchanged() -> tuple[Files, int]:
    """A store of which two events in a sealed segment have changed places, and the first of them."""
    store = wide()
    path = segments_of(store.files)[5]
    lines = store.files[path].split(b"\n")
    at = next(at for at in range(3, len(lines) - 4) if len(lines[at]) == len(lines[at + 2]))
    lines[at], lines[at + 2] = lines[at + 2], lines[at]
    return {**store.files, path: b"\n".join(lines)}, (first_of(path) or 0) + at


# --- an index that says what the log does not, with checksums that hold ---


async def test_an_index_that_names_events_beyond_its_own_is_made_anew() -> None:
    store = store_named("merged")
    path, header = a_run(store)
    right = await read_as_users_do(store.files, types=["A", "B"])
    whole = 0
    for place in range(0, header.keys, 2):
        data = bytearray(store.files[path])
        at = header.blocks_at + header.offset_blocks * BLOCK_BYTES + 8 * place
        data[at : at + 3] = (2**24 - 1).to_bytes(3, "little")
        files = {**store.files, path: with_header(bytes(data), header, store.store_id)}
        found = await read_as_users_do(files, types=["A", "B"])
        assert [event for event in right if event in found] == found
        whole += found == right
    assert whole


async def test_an_index_whose_places_go_back_is_damage() -> None:
    store = store_named("merged")
    path, header = a_run(store)
    data = bytearray(store.files[path])
    data[header.blocks_at : header.blocks_at + 4] = (2**32 - 1).to_bytes(4, "little")
    files = {**store.files, path: with_header(bytes(data), header, store.store_id)}
    with pytest.raises(StoreCorrupt):
        await read_as_users_do(files)
    assert [finding.file for finding in verify(PickyDisk(files), DIRECTORY).findings] == [path.rpartition("/")[2]]


def a_run(store: Store) -> tuple[str, Header]:
    path = min(path for path in store.files if path.endswith(".idx"))
    header = header_of(store.files[path], store.store_id)
    assert header is not None
    return path, header


async def read_as_users_do(files: Files, **query: Any) -> list[Event]:
    with tempfile.TemporaryDirectory() as folder:
        for path, data in files.items():
            (Path(folder) / path.rpartition("/")[2]).write_bytes(data)
        async with EventStore(folder, mode="r") as store:
            return await store.read_all(query=Query.where(**query) if query else None).to_list()


def test_nothing_is_read_of_a_line_that_is_missing(tmp_path: Path) -> None:
    """Lost events have places without bytes: asked for first, it was BufferError."""
    path = tmp_path / "a"
    path.write_bytes(b"0123456789")
    disk = Disk()
    file = disk.open_read(str(path))
    disk.read(file, 10, 0)
    assert disk.read_each_nowait(file, [(3, 3)]) in ([b""], None)
    assert disk.read_each_nowait(file, [(5, 3), (2, 4)]) in ([b"", b"23"], None)
    disk.close(file)
