"""Space prepared behind the last event: blank lines, which the next small groups take the place of."""

from __future__ import annotations

import errno
import logging
from functools import partial

import pytest

from aiostore.engines.file.log import PADDED_BYTES_MAX, PREPARED_BYTES
from aiostore.errors import StoreFull
from tests.file.disks import MemoryDisk, WatchedDisk, left_after_power_loss
from tests.file.driver import counted, everything, opened_to_write, read_now, started

SEGMENT = "/s/00000000000000000001.jsonl"


def lines(disk: MemoryDisk, path: str = SEGMENT) -> bytes:
    return disk.files()[path].rstrip(b"\n") + b"\n"


def blank(disk: MemoryDisk, path: str = SEGMENT) -> int:
    return len(disk.files()[path]) - len(lines(disk, path))


async def test_small_groups_take_the_place_of_blank_lines() -> None:
    disk = WatchedDisk()
    engine, driver = await started("/s", disk)
    await driver.commit(counted(1))
    assert blank(disk) == PREPARED_BYTES
    size = len(disk.files()[SEGMENT])
    begun = len(disk.calls.made)
    for n in range(1, 11):
        await driver.commit(counted(2))
        assert len(disk.files()[SEGMENT]) == size
        assert lines(disk).count(b"\n") == 1 + 2 * n
    assert disk.calls.made[begun:] == ["write_log", "write_at"] * 10, "one write each, and the head"
    while lines(disk).count(b"\n") < 1000:  # on into the next, and the next
        await driver.commit(counted(5))
    assert 0 <= blank(disk) <= PREPARED_BYTES
    events = await everything(engine)
    await engine.aclose()
    assert blank(disk) == 0, "what is not used is given back"
    assert read_now(disk, opened_to_write(disk).index) == (events, None)


@pytest.mark.parametrize(("durability", "count"), [("os", 1), ("fsync", PADDED_BYTES_MAX // 100)])
async def test_where_it_saves_nothing_no_space_is_prepared(durability: str, count: int) -> None:
    disk = MemoryDisk()
    engine, driver = await started("/s", disk, durability=durability)
    await driver.commit(counted(count))
    assert blank(disk) == 0
    await engine.aclose()


@pytest.mark.parametrize("lost", [False, True])
async def test_after_a_crash_the_next_writer_goes_on_in_it(lost: bool) -> None:
    disk = MemoryDisk()
    engine, driver = await started("/s", disk)
    for _ in range(3):
        await driver.commit(counted(2))
    crashed = disk.crashed() if lost else MemoryDisk(disk.files())
    prepared = blank(crashed)
    assert prepared > 0
    events = await everything(engine)
    await engine.aclose()
    again, driver = await started("/s", crashed)
    assert await everything(again) == events
    driver.head, driver.versions = len(events), {"s": len(events)}
    plan = await driver.commit(counted(2))
    assert await everything(again) == [*events, *plan.commits[0].events]
    assert len(crashed.files()[SEGMENT]) == len(lines(crashed)) + blank(crashed)
    assert 0 < blank(crashed) <= PREPARED_BYTES
    assert lost or blank(crashed) < prepared, "right behind the last event"
    assert not [path for path in crashed.files() if "torn" in path]
    await again.aclose()


async def test_a_group_torn_in_prepared_space_is_set_aside() -> None:
    disk = MemoryDisk()
    engine, driver = await started("/s", disk)
    await driver.commit(counted(2))
    events = await everything(engine)
    plan = driver.plan(counted(3, "long" * 100))
    states: list[MemoryDisk] = []
    disk.on_step = lambda: states.extend(disk.crashed(partial(left_after_power_loss, None, n)) for n in (0, 1))
    await engine.commit(plan)
    disk.on_step = lambda: None
    await engine.aclose()
    heads = set()
    for state in states:
        writer = opened_to_write(state)
        found, error = read_now(state, writer.index)
        assert error is None
        assert found in (events, [*events, *plan.commits[0].events])
        heads.add(len(found))
        writer.close()
        assert blank(state) == 0
        torn = [data for path, data in state.files().items() if "torn" in path]
        assert bool(torn) == (b'{"event_id":3' in b"".join(torn))
    assert heads == {2, 5}
    assert any("torn" in path for state in states for path in state.files())


async def test_it_ends_with_the_segment_and_what_is_sealed_has_none() -> None:
    disk = MemoryDisk()
    engine, driver = await started("/s", disk, segment_bytes=2000)
    for _ in range(40):
        await driver.commit(counted(1))
        files = {path: data for path, data in disk.files().items() if path.endswith(".jsonl")}
        newest = max(files)
        assert len(files[newest].rstrip(b"\n")) + blank(disk, newest) <= 2000 + 200
        for path, inode in disk.inodes.items():
            if path in files and path != newest:
                assert not inode.data.endswith(b"\n\n")
                assert inode.stable == inode.data, "a power loss does not bring it back"
    assert len(files) > 2
    await engine.aclose()


async def test_without_room_for_it_the_group_is_stored_all_the_same() -> None:
    disk = WatchedDisk()
    engine, driver = await started("/s", disk)
    disk.calls.fail("write_log", errno.ENOSPC)
    await driver.commit(counted(1))
    assert blank(disk) == 0
    assert len(await everything(engine)) == 1
    await driver.commit(counted(1))
    assert blank(disk) == PREPARED_BYTES
    await engine.aclose()


async def test_a_roll_that_cannot_give_it_back_can_be_tried_again() -> None:
    before = MemoryDisk()
    killed, driver = await started("/s", before)
    await driver.commit(counted(4))
    disk = WatchedDisk(before.files())
    await killed.aclose()
    engine, driver = await started("/s", disk, segment_bytes=100)  # full, before its prepared space is used up
    assert blank(disk) > 0
    disk.calls.fail("truncate", errno.ENOSPC)
    with pytest.raises(StoreFull):
        await driver.commit(counted(1))
    await driver.commit(counted(1))
    assert blank(disk) == 0
    assert [event.event_id for event in await everything(engine)] == [1, 2, 3, 4, 5]
    await engine.aclose()


async def test_what_cannot_be_given_back_at_the_end_does_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    disk = WatchedDisk()
    engine, driver = await started("/s", disk)
    await driver.commit(counted(1))
    disk.calls.fail("truncate", errno.EIO)
    with caplog.at_level(logging.WARNING, "aiostore"):
        await engine.aclose()
    assert "prepared behind the last event stays" in caplog.text
    assert disk.held == 0
    events, error = read_now(disk, opened_to_write(disk).index)
    assert (len(events), error) == (1, None)
