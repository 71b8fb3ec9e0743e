"""Disks that fail: nothing acknowledged is lost, nothing unacknowledged is claimed, and every failure is told."""

from __future__ import annotations

import errno
import logging
from typing import Any

import pytest

from aiostore.engine import Question, Selection
from aiostore.errors import EngineUnavailable, StoreCorrupt, StoreFailed, StoreFull
from aiostore.events import Event
from tests.file.disks import CHANGES, MemoryDisk, WatchedDisk
from tests.file.driver import counted, everything, opened_to_write, read_now, started

NO_ROOM = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG]


def stored(disk: MemoryDisk) -> list[Event]:
    """What a healthy disk with these files holds, opened anew."""
    healthy = MemoryDisk(disk.files())
    writer = opened_to_write(healthy)
    events, error = read_now(healthy, writer.index)
    assert error is None
    writer.close()
    return events


@pytest.mark.parametrize("durability", ["fsync", "os"])
async def test_short_writes_are_gone_on_with(durability: str) -> None:
    disk = WatchedDisk()
    engine, driver = await started("/s", disk, durability=durability, segment_bytes=400)
    disk.calls.append_bytes_max = 7
    events = []
    for _ in range(4):
        plan = await driver.commit(counted(2), ("key", counted(1, "t")))
        events += [event for commit in plan.commits for event in commit.events]
    assert await everything(engine) == events
    await engine.aclose()
    assert stored(disk) == events
    assert disk.calls.made.count("write_log") > 50


@pytest.mark.parametrize("durability", ["fsync", "os"])
@pytest.mark.parametrize("number", NO_ROOM)
@pytest.mark.parametrize("at", [1, 2, 5])
async def test_no_room_leaves_the_store_as_it_was(number: int, at: int, durability: str) -> None:
    disk = WatchedDisk()
    engine, driver = await started("/s", disk, durability=durability)
    await driver.commit(counted(2))
    before, events = disk.files(), await everything(engine)
    before["/s/00000000000000000001.jsonl"] = before["/s/00000000000000000001.jsonl"].rstrip(b"\n") + b"\n"
    disk.calls.append_bytes_max = 100
    for _ in range(2):
        disk.calls.fail("write_log", number, at=at, times=10)  # also where it is tried without prepared space
        with pytest.raises(StoreFull, match="nothing was stored"):
            await driver.commit(counted(4, "t"), ("key", counted(1)))
        disk.calls.heal()
        assert disk.files() == before
        assert disk.calls.made[-2:] == ["truncate", "sync"], "a retry must not mix with the old tail"
        assert await everything(engine) == events
        facts = await engine.facts(Question(("s", "t"), ("s", "key")))
        assert (facts.head, facts.versions, facts.stored) == (2, {"s": 2, "t": 0}, None)
    await driver.commit(counted(3, "t"))  # there is room again
    events = await everything(engine)
    assert [event.version for event in events] == [1, 2, 1, 2, 3]
    await engine.aclose()
    assert stored(disk) == events


@pytest.mark.parametrize("fault", ["write", "undo", "sync after undo", "not a number at all"])
async def test_a_failed_write_is_final(fault: str) -> None:
    disk = WatchedDisk()
    engine, driver = await started("/s", disk)
    await driver.commit(counted(2))
    events = await everything(engine)
    if fault == "write":
        disk.calls.append_bytes_max = 100
        disk.calls.fail("write_log", errno.EIO, at=2)
    elif fault == "undo":
        disk.calls.fail("write_log", errno.ENOSPC)
        disk.calls.fail("truncate", errno.ENOSPC)
    elif fault == "sync after undo":
        disk.calls.fail("write_log", errno.ENOSPC)
        disk.calls.fail("sync", errno.ENOSPC)
    else:
        disk.write_log = lambda *_, **__: 1 // 0  # type: ignore[method-assign]
    with pytest.raises(StoreFailed, match="open it anew"):
        await driver.commit(counted(2))
    disk.calls.heal()
    made = len(disk.calls.made)
    with pytest.raises(StoreFailed):
        await driver.commit(counted(1))
    assert len(disk.calls.made) == made, "no retry"
    assert await everything(engine) == events, "reads go on"
    assert (await engine.facts(Question(("s",)))).versions == {"s": 2}
    await engine.aclose()
    assert disk.held == 0
    assert stored(disk)[:2] == events


async def test_nothing_written_is_an_error_not_an_endless_loop() -> None:
    disk = WatchedDisk()
    engine, driver = await started("/s", disk)
    disk.write_log = lambda *_, **__: 0  # type: ignore[method-assign]
    with pytest.raises(StoreFailed, match="nothing was written"):
        await driver.commit(counted(1))
    await engine.aclose()


@pytest.mark.parametrize("durability", ["fsync", "os"])
async def test_no_room_for_the_next_segment_can_be_retried(durability: str) -> None:
    disk = WatchedDisk()
    engine, driver = await started("/s", disk, durability=durability, segment_bytes=100)
    await driver.commit(counted(2))
    for _ in range(2):
        disk.calls.fail("open_log", errno.ENOSPC)
        with pytest.raises(StoreFull):
            await driver.commit(counted(1))
    disk.calls.fail("write_log", errno.ENOSPC)
    with pytest.raises(StoreFull):
        await driver.commit(counted(1))
    await driver.commit(counted(1))
    await engine.aclose()
    assert [event.event_id for event in stored(disk)] == [1, 2, 3]
    assert len([path for path in disk.files() if path.endswith(".jsonl")]) == 2


async def test_no_room_for_the_entry_of_a_new_segment_is_store_full_and_it_rolls_when_there_is() -> None:
    disk = WatchedDisk()
    engine, driver = await started("/s", disk, segment_bytes=100)
    await driver.commit(counted(2))
    disk.calls.fail("sync_directory", errno.ENOSPC)
    with pytest.raises(StoreFull):
        await driver.commit(counted(1))
    await driver.commit(counted(1))
    await engine.aclose()
    assert [event.event_id for event in stored(disk)] == [1, 2, 3]


@pytest.mark.parametrize("durability", ["fsync", "os"])
@pytest.mark.parametrize(
    ("call", "number"), [("sync", errno.EIO), ("sync", errno.ENOSPC), ("sync_directory", errno.EIO)]
)
async def test_a_failed_sync_while_rolling_is_final(call: str, number: int, durability: str) -> None:
    disk = WatchedDisk()
    engine, driver = await started("/s", disk, durability=durability, segment_bytes=100)
    await driver.commit(counted(2))
    disk.calls.fail(call, number)
    for _ in range(2):
        with pytest.raises(StoreFailed):
            await driver.commit(counted(1))
    assert len(await everything(engine)) == 2
    await engine.aclose()
    assert len(stored(disk)) == 2


async def test_the_idle_sync_of_os_mode_fails_for_good(caplog: pytest.LogCaptureFixture) -> None:
    disk = WatchedDisk()
    engine, driver = await started("/s", disk, durability="os")
    await driver.commit(counted(2))
    disk.calls.fail("sync", errno.EIO)
    assert engine._writer is not None
    assert engine._opened is not None
    log = engine._writer.log
    log._last_append -= 60
    log._idle()
    await engine._opened.thread.whole(engine._opened.thread.trip(int))  # the thread has done what came before
    with pytest.raises(StoreFailed), caplog.at_level(logging.ERROR, "aiostore"):
        await driver.commit(counted(1))
    await engine.aclose()
    assert "appends are stopped" in caplog.text


async def test_the_head_is_synced_when_idle() -> None:
    disk = WatchedDisk()
    engine, driver = await started("/s", disk)
    await driver.commit(counted(2))
    assert engine._writer is not None
    assert engine._opened is not None
    log = engine._writer.log
    timer = log._timer
    assert timer is not None
    timer.cancel()
    before = disk.calls.made.count("sync")
    log._idle()  # too early: waits for the rest of the time
    assert log._timer is not None
    log._timer.cancel()
    log._last_append -= 60
    log._idle()
    await engine._opened.thread.whole(engine._opened.thread.trip(int))
    assert disk.calls.made.count("sync") == before + 1
    assert disk.inodes["/s/head"].pending == []
    assert log._timer is None
    await engine.aclose()


async def test_a_head_that_cannot_be_written_does_not_fail_an_append(caplog: pytest.LogCaptureFixture) -> None:
    disk = WatchedDisk()
    engine, driver = await started("/s", disk)
    disk.calls.fail("write_at", errno.EIO, times=3)
    with caplog.at_level(logging.WARNING, "aiostore"):
        for _ in range(3):
            await driver.commit(counted(1))
    assert caplog.text.count("cannot be written") == 1
    await engine.aclose()
    assert len(stored(disk)) == 3


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("durability", ["fsync", "os"])
async def test_whatever_change_of_the_disk_fails_nothing_acknowledged_is_lost(durability: str, number: int) -> None:
    """From the first change of creating the store to its close, each is made to fail once."""
    outcomes = set()
    at = 0
    for at in range(1, 200):
        disk = WatchedDisk()
        disk.calls.fail_change(number, at=at)
        acknowledged: list[Event] = []
        unknown: list[Event] = []
        try:
            engine, driver = await started("/s", disk, durability=durability, segment_bytes=500)
        except EngineUnavailable:
            outcomes.add("not opened")
        else:
            for n in range(6):
                plan = driver.plan((f"key-{n}", counted(2, "t")), counted(1))
                try:
                    await engine.commit(plan)
                    acknowledged += [event for commit in plan.commits for event in commit.events]
                except StoreFull:
                    outcomes.add("full")
                    driver.head = len(acknowledged)
                    driver.versions = {event.stream_id: event.version for event in acknowledged}
                except StoreFailed:
                    outcomes.add("failed")
                    unknown = unknown or [event for commit in plan.commits for event in commit.events]
            assert await everything(engine) == acknowledged
            await engine.aclose()
        assert disk.held == 0
        found = stored(disk)
        assert found[: len(acknowledged)] == acknowledged
        assert found[len(acknowledged) :] in ([], unknown[:2], unknown)
        if sum(name in CHANGES for name in disk.calls.made) < at:
            break  # the story ended before
    assert 30 < at < 199
    assert outcomes == {"not opened", "failed", "full"} if number == errno.ENOSPC else {"not opened", "failed"}


async def test_a_line_damaged_while_open_is_reported_and_never_served() -> None:
    disk = WatchedDisk()
    engine, driver = await started("/s", disk)
    await driver.commit(counted(5), counted(3, "t"))
    path = "/s/00000000000000000001.jsonl"
    data = disk.inodes[path].data
    place = data.index(b'"n":3')
    data[place + 4] = ord("4")
    cases: list[tuple[dict[str, Any], list[int]]] = [
        ({}, [1, 2, 3]),
        ({"stream_id": "s"}, [1, 2, 3]),
        ({"backwards": True}, [8, 7, 6, 5]),
    ]
    for bounds, served in cases:
        page = await engine.read(Selection(up_to=8, **bounds))
        assert [event.event_id for event in page.events] == served
        assert page.cursor == served[-1]
        with pytest.raises(StoreCorrupt) as caught:
            await engine.read(Selection(up_to=8, **bounds), page.cursor)
        assert (caught.value.path, caught.value.first_event_id) == (path, 4)
        assert caught.value.offset == data.index(b'{"event_id":4')
    assert len(await everything(engine, stream_id="t")) == 3
    await engine.aclose()


async def test_a_device_that_cannot_be_read_is_reported() -> None:
    disk = WatchedDisk()
    engine, driver = await started("/s", disk)
    await driver.commit(counted(5))
    disk.calls.fail("open_read", errno.EIO)
    with pytest.raises(StoreCorrupt, match="cannot be read"):
        await everything(engine)
    assert len(await everything(engine)) == 5
    disk.calls.fail("read_nowait", errno.EIO)
    with pytest.raises(StoreCorrupt, match="cannot be read"):
        await everything(engine)
    await engine.aclose()
