"""Power losses and failing disks while segments are sealed and runs are merged beside the log."""

from __future__ import annotations

import asyncio
import errno
import logging
import random
import threading
from typing import Any

import pytest

from aiostore.engines.file.index import runs_of
from aiostore.errors import EventStoreError, StoreFailed, StoreFull
from tests.file.disks import CHANGES, MemoryDisk, WatchedDisk
from tests.file.driver import counted, everything, started
from tests.file.sealed_stores import (
    SMALL,
    Model,
    check_answers,
    check_facts,
    commit_some,
    index_of,
    indexes,
    log_of,
    sealer_of,
    settled,
    some_commit,
)
from tests.file.test_recovery import CrashingDisk, after_power_loss


async def crashing_store(settle: bool, durability: str) -> tuple[CrashingDisk, Model]:
    disk, model, dice = CrashingDisk(), Model(), random.Random(1)
    engine, driver = await started("/s", disk, **SMALL, durability=durability)
    for number in range(30):
        plan = driver.plan(some_commit(dice, number))
        model.note(plan)
        await engine.commit(plan)
        disk.acknowledged = len(model.events)
        if settle:
            await settled(engine)
    await settled(engine)
    await engine.aclose()
    assert any(b'"segments":4,' in run for run in indexes(disk).values()), "there was a merge"
    return disk, model


@pytest.mark.parametrize("durability", ["fsync", "os"])
@pytest.mark.parametrize("settle", [True, False])
async def test_a_power_loss_at_every_change_leaves_a_store_that_answers_right(settle: bool, durability: str) -> None:
    disk, model = await crashing_store(settle, durability)
    whole = MemoryDisk(disk.files())
    tried: set[tuple[tuple[str, bytes], ...]] = set()
    for number, (acknowledged, crashed) in enumerate(disk.crashes):
        if number % 3 and not any(".idx" in path and inode.pending for path, inode in crashed.inodes.items()):
            continue  # test_recovery tries those of the log
        for state in after_power_loss(crashed)[number % 4 :: 4]:
            files = tuple(sorted((path, data) for path, data in state.files().items() if path != "/s/lock"))
            if files in tried:
                continue
            tried.add(files)
            engine, _ = await started("/s", state, **SMALL)
            head = index_of(engine).head.event_id
            assert head >= acknowledged or durability == "os"
            await check_facts(engine, model.up_to(head))
            assert await everything(engine) == model.events[:head]
            await settled(engine)
            await engine.aclose()
            assert state.held == 0
            assert not [path for path in state.files() if path.endswith(".tmp")]
            if len(tried) % 25 == 0:
                await check_rebuilt(state)
    assert len(tried) > 60
    await check_rebuilt(whole)


async def check_rebuilt(disk: MemoryDisk) -> None:
    """The index is what it becomes when it is made anew."""
    fresh = MemoryDisk(log_of(disk))
    engine, _ = await started("/s", fresh, **SMALL)
    await settled(engine)
    await engine.aclose()
    assert indexes(fresh) == indexes(disk)


# --- faults ---


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
async def test_whatever_call_of_the_index_fails_appends_go_on_and_it_is_brought_up_to_date(
    number: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Each call that what seals and what merges make fails once: first all that come to the disk are counted."""

    class IndexFails(WatchedDisk):
        at = 0
        count = 0

        def fail_now(self) -> None:
            if threading.current_thread().name.startswith(("aiostore-seal", "aiostore-merge")):
                self.count += 1
                if self.count == self.at:
                    raise OSError(number, "fails once")

    def failing(name: str) -> Any:
        original = getattr(WatchedDisk, name)

        def call(self: IndexFails, *args: Any, **kwargs: Any) -> Any:
            if name not in ("close", "remove"):
                self.fail_now()
            return original(self, *args, **kwargs)

        return call

    for name in (*CHANGES, "open_read", "read", "size"):
        setattr(IndexFails, name, failing(name))

    at = 0
    while True:
        at += 1
        disk, model, dice = IndexFails(), Model(), random.Random(1)
        disk.at = at
        caplog.clear()
        engine, driver = await started("/s", disk, **SMALL)
        for _ in range(26):
            await commit_some(driver, model, dice, 1)
            await settled(engine)
        failed = disk.count >= at
        await check_facts(engine, model)
        assert await everything(engine) == model.events
        warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(warnings) == failed, (at, [record.getMessage() for record in warnings])
        sealer_of(engine).look()
        await settled(engine)
        await engine.aclose()
        assert disk.held == 0
        assert not [path for path in disk.files() if path.endswith(".tmp")], at
        if at % 8 == 1 or not failed:
            disk.at = 0
            engine, _ = await started("/s", disk, **SMALL)
            await settled(engine)
            await check_facts(engine, model)
            await engine.aclose()
            await check_rebuilt(disk)
        if not failed:
            break
    assert at > 80


async def test_a_disk_without_room_for_the_index_holds_up_nothing_and_is_told_of_each_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class NoIndex(MemoryDisk):
        full = True

        def open_write(self, path: str, *, exclusive: bool = False) -> int:
            if self.full and ".idx" in path:
                raise OSError(errno.ENOSPC, "no room")
            return super().open_write(path, exclusive=exclusive)

    disk, model, dice = NoIndex(), Model(), random.Random(1)
    engine, driver = await started("/s", disk, **SMALL)
    await commit_some(driver, model, dice, 60)
    await settled(engine)
    assert not runs_of(index_of(engine))
    segments = len(index_of(engine).segments)
    assert 0 < len(caplog.records) < segments
    assert sealer_of(engine)._room.is_set()
    await check_answers(engine, model, pages=(500,))
    disk.full = False
    await commit_some(driver, model, dice, 10)
    await settled(engine)
    assert len(runs_of(index_of(engine))) == len(index_of(engine).sources) - 1
    await check_answers(engine, model, pages=(500,))
    await engine.aclose()
    assert disk.held == 0
    await check_rebuilt(disk)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
async def test_whatever_change_fails_with_everything_going_on_at_once_nothing_acknowledged_is_lost(number: int) -> None:
    for at in range(1, 160, 5):
        disk = WatchedDisk()
        disk.calls.fail_change(number, at=at)
        model, dice = Model(), random.Random(at)
        try:
            engine, driver = await started("/s", disk, **SMALL)
        except EventStoreError:
            pass
        else:
            for number_ in range(40):
                try:
                    await commit_some(driver, model, dice, 1)
                except StoreFull:
                    continue
                except StoreFailed:
                    break
                if number_ % 8 == 0:
                    await settled(engine)
            assert await everything(engine) == model.events
            await engine.aclose()
        assert disk.held == 0
        healthy = MemoryDisk(disk.files())
        engine, _ = await started("/s", healthy, **SMALL)
        kept = await everything(engine)
        assert kept[: len(model.events)] == model.events
        if len(kept) == len(model.events):
            await check_facts(engine, model)
        await settled(engine)
        await engine.aclose()
        await check_rebuilt(healthy)


@pytest.mark.parametrize("steps", range(6))
async def test_tasks_that_are_cancelled_at_any_step_disturb_nothing(steps: int) -> None:
    disk, model, dice = MemoryDisk(), Model(), random.Random(steps)
    engine, driver = await started("/s", disk, **SMALL)
    for _ in range(60):
        head, versions = driver.head, dict(driver.versions)
        plan = driver.plan(counted(dice.choice((1, 4)), dice.choice("abc")))
        committing = asyncio.create_task(engine.commit(plan))
        reading = asyncio.create_task(everything(engine, stream_id="a"))
        for _ in range(steps):
            await asyncio.sleep(0)
        committing.cancel()
        reading.cancel()
        await asyncio.wait([committing, reading])
        if index_of(engine).head.event_id > head:
            model.note(plan)
        else:
            driver.head, driver.versions = head, versions
    await commit_some(driver, model, dice, 20)
    await check_answers(engine, model, pages=(500,))
    await settled(engine)
    await engine.aclose()
    assert disk.held == 0
    await check_rebuilt(disk)
