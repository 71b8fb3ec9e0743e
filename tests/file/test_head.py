"""The head file: a true lower bound of what is durable, whatever becomes of its two slots."""

from __future__ import annotations

import errno
import logging

import pytest

from aiostore.engines.file.format import encode_slot
from aiostore.engines.file.head import HEAD_BYTES, HeadFile, decode_head, read_head
from tests.file.disks import WatchedDisk
from tests.file.lines import STORE_ID

PATH = "/s/head"


def slots(*event_ids: int) -> bytes:
    return b"".join(encode_slot(event_id, STORE_ID) for event_id in event_ids)


def new_disk(data: bytes | None = None) -> WatchedDisk:
    disk = WatchedDisk({} if data is None else {PATH: data})
    disk.directories.add("/s")
    return disk


@pytest.mark.parametrize(
    ("data", "event_id"),
    [
        (b"", 0),
        (slots(3, 5), 5),
        (slots(5, 3), 5),
        (slots(4), 4),
        (b"x" * 512 + slots(4), 4),
        (slots(4) + b"x" * 512, 4),
        (b"x" * HEAD_BYTES, 0),
        (slots(0, 0), 0),
    ],
)
def test_the_greater_of_the_valid_slots_is_the_head(data: bytes, event_id: int) -> None:
    disk = new_disk(data)
    assert decode_head(data, STORE_ID) == read_head(disk, PATH, STORE_ID) == event_id
    assert decode_head(data, "f" * 32) == 0
    assert disk.held == 0


def test_without_a_file_it_says_nothing() -> None:
    assert read_head(new_disk(), PATH, STORE_ID) == 0


def test_the_slots_are_written_in_turn_the_lesser_first() -> None:
    disk = new_disk(slots(5, 3))
    head = HeadFile(disk, PATH, STORE_ID)
    assert head.event_id == 5
    for event_id, expected in ((5, (5, 3)), (4, (5, 3)), (6, (5, 6)), (9, (9, 6)), (10, (9, 10))):
        head.advance(event_id)
        assert disk.files()[PATH] == slots(*expected)
    head.close()
    assert disk.held == 0


@pytest.mark.parametrize("data", [None, b"", slots(7), slots(7) + b"x"])
def test_room_for_both_is_taken_at_once(data: bytes | None) -> None:
    disk = new_disk(data)
    event_id = 7 if data else 0
    HeadFile(disk, PATH, STORE_ID).close()
    assert disk.files()[PATH] == slots(event_id, event_id)


def test_it_is_synced_only_when_it_was_written() -> None:
    disk = new_disk(slots(1, 1))
    head = HeadFile(disk, PATH, STORE_ID)
    for event_id, syncs in ((1, 0), (2, 1), (2, 1), (3, 2)):
        head.advance(event_id)
        head.sync()
        assert disk.calls.made.count("sync") == syncs
    assert disk.inodes[PATH].stable == slots(2, 3)


def test_where_it_cannot_be_written_it_stays_and_that_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    disk = new_disk(slots(1, 1))
    head = HeadFile(disk, PATH, STORE_ID)
    told = "/s/head cannot be written: [Errno 5] Input/output error; what is stored is not affected"
    with caplog.at_level(logging.WARNING, "aiostore"):
        disk.calls.fail("write_at", errno.EIO, times=2)
        head.advance(2)
        head.advance(2)
        head.sync()
        assert (head.event_id, disk.files()[PATH], caplog.messages) == (1, slots(1, 1), [told])
        assert disk.calls.made.count("sync") == 0
        head.advance(3)
        disk.calls.fail("sync", errno.EIO)
        head.sync()
        assert (head.event_id, caplog.messages) == (3, [told])
        head.sync()  # what failed is tried again; from then on it is told again
        assert disk.calls.made.count("sync") == 2
        disk.calls.fail("write_at", errno.EIO)
        head.advance(4)
        assert caplog.messages == [told, told]


def test_a_head_that_cannot_be_opened_leaves_nothing_open() -> None:
    for call in ("read", "write_at"):
        disk = new_disk(b"")
        disk.calls.fail(call, errno.EIO)
        with pytest.raises(OSError, match="Input/output"):
            HeadFile(disk, PATH, STORE_ID)
        assert disk.held == 0
