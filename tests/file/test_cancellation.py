"""Cancelled at every step: a commit is stored or not, the next one works, and nothing stays held."""

from __future__ import annotations

import asyncio
import errno

import pytest

from aiostore.engine import Head, Plan
from aiostore.engines.file.engine import FileEngine
from aiostore.errors import StoreFailed, StoreFull
from tests.file.disks import CHANGES, WatchedDisk, WatchedRealDisk
from tests.file.driver import Driver, counted, everything, opened_to_write, started


class Attempt:
    """A task that commits, and says how that went and whether a cancellation came at its next await."""

    def __init__(self, engine: FileEngine, plan: Plan) -> None:
        self.stored = self.cancelled_later = False
        self.cancelling = 0
        self.task = asyncio.create_task(self._run(engine, plan))

    async def _run(self, engine: FileEngine, plan: Plan) -> None:
        await engine.commit(plan)
        self.stored = True
        task = asyncio.current_task()
        assert task is not None
        self.cancelling = task.cancelling()
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.cancelled_later = True
            raise

    async def over(self) -> None:
        await asyncio.wait([self.task])


async def until_held(disk: WatchedDisk | WatchedRealDisk) -> None:
    assert await asyncio.to_thread(disk.calls.wait_until_held)


ROLL = ["sync", "write_at", "open_log", "sync_directory"]
"""The changes of a roll; `write_log` follows."""


@pytest.mark.parametrize("cancels", [1, 3])
@pytest.mark.parametrize("step", range(5))
async def test_cancelled_at_each_change_of_a_commit_that_rolls(step: int, cancels: int) -> None:
    disk = WatchedDisk()
    engine, driver = await started("/s", disk, durability="os", segment_bytes=100)
    await driver.commit(counted(2))
    head, versions = driver.head, dict(driver.versions)
    plan = driver.plan(counted(2, "t"))
    begun = len(disk.calls.made)
    with disk.calls.hold(step + 1):
        attempt = Attempt(engine, plan)
        await until_held(disk)
        for _ in range(cancels):
            attempt.task.cancel()
            await asyncio.sleep(0)
        assert not attempt.task.done(), "it is seen through"
        disk.calls.let_go()
        await attempt.over()
    if step < 4:  # rolling: the write had not begun
        assert attempt.task.cancelled()
        assert not attempt.stored
        driver.head, driver.versions = head, versions
    else:
        assert attempt.task.cancelled()
        assert attempt.stored
        assert attempt.cancelled_later
        assert attempt.cancelling == cancels, "counted as often as it came"
    made = [name for name in disk.calls.made[begun:] if name in CHANGES]
    assert made[:4] == ROLL, "what a roll is made of"
    assert made[4:] == ([] if step < 4 else ["write_log"])
    await driver.commit(counted(1, "after"))
    events = await everything(engine)
    assert [event.stream_id for event in events] == ["s", "s", *(["t", "t"] if attempt.stored else []), "after"]
    await engine.aclose()
    writer = opened_to_write(disk)
    assert writer.index.head.event_id == len(events)
    writer.close()


async def test_a_cancellation_during_a_roll_that_fails_is_not_lost() -> None:
    disk = WatchedDisk()
    engine, driver = await started("/s", disk, segment_bytes=100)
    await driver.commit(counted(2))
    cancelled = False

    async def committing() -> None:
        nonlocal cancelled
        with pytest.raises(StoreFull):
            await driver.commit(counted(1))
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            cancelled = True

    disk.calls.fail("open_log", errno.ENOSPC)
    with disk.calls.hold():
        task = asyncio.create_task(committing())
        await until_held(disk)
        task.cancel()
        await asyncio.sleep(0)
        disk.calls.let_go()
        await task
    assert cancelled
    await driver.commit(counted(1))
    assert len(await everything(engine)) == 3
    await engine.aclose()


async def test_a_commit_whose_coroutine_is_thrown_away_stops_the_log() -> None:
    disk = WatchedDisk()
    engine, driver = await started("/s", disk)
    with disk.calls.hold():
        coroutine = engine.commit(driver.plan(counted(1)))
        coroutine.send(None)
        await until_held(disk)
        coroutine.close()
    with pytest.raises(StoreFailed):
        await driver.commit(counted(1))
    await engine.aclose()


async def test_a_commit_that_waits_for_the_thread_is_not_begun_when_cancelled() -> None:
    disk = WatchedDisk()
    engine, driver = await started("/s", disk)
    await driver.commit(counted(1))
    head, versions = driver.head, dict(driver.versions)
    assert engine._opened is not None
    with disk.calls.hold():
        assert engine._writer is not None
        busy = engine._opened.thread.submit_aside(engine._writer.log._file.sync, 1)
        await until_held(disk)
        attempt = Attempt(engine, driver.plan(counted(2)))
        await asyncio.sleep(0)
        attempt.task.cancel()
        await attempt.over()
        assert attempt.task.cancelled()
        assert not attempt.stored
    await asyncio.wrap_future(busy)
    driver.head, driver.versions = head, versions
    assert "write_log" not in disk.calls.made[-2:]
    await driver.commit(counted(1))
    assert len(await everything(engine)) == 2
    await engine.aclose()


@pytest.mark.parametrize("steps", range(6))
async def test_cancelled_after_some_steps_of_the_loop(steps: int) -> None:
    disk = WatchedDisk()
    engine, driver = await started("/s", disk, segment_bytes=300)
    for _ in range(20):
        head, versions = driver.head, dict(driver.versions)
        attempt = Attempt(engine, driver.plan(counted(1), counted(2, "t")))
        for _ in range(steps):
            await asyncio.sleep(0)
        attempt.task.cancel()
        await attempt.over()
        if not attempt.stored:
            driver.head, driver.versions = head, versions
        assert len(await everything(engine)) == driver.head
    events = await everything(engine)
    await engine.aclose()
    engine, driver = await started("/s", disk)
    assert await everything(engine) == events
    await engine.aclose()


async def test_a_large_group_gives_way_while_it_is_encoded_and_can_be_cancelled_there() -> None:
    disk = WatchedDisk()
    engine, driver = await started("/s", disk)
    attempt = Attempt(engine, driver.plan(counted(1500)))
    await asyncio.sleep(0)
    assert not attempt.task.done()
    made = len(disk.calls.made)
    attempt.task.cancel()
    await attempt.over()
    assert not attempt.stored
    assert len(disk.calls.made) == made
    driver = Driver(engine, await _head(engine))
    await driver.commit(counted(1500))
    assert len(await everything(engine)) == 1500
    await engine.aclose()


async def _head(engine: FileEngine) -> Head:
    assert engine._opened is not None
    return engine._opened.index.head


async def test_a_timeout_that_comes_during_the_write_is_a_timeout_after_it() -> None:
    disk = WatchedDisk()
    engine, driver = await started("/s", disk)
    plan = driver.plan(counted(1))
    passed = False

    async def committing() -> None:
        nonlocal passed
        async with deadline:
            await engine.commit(plan)
            passed = True
            await asyncio.sleep(0)

    deadline = asyncio.timeout(None)
    with disk.calls.hold():
        task = asyncio.create_task(committing())
        await until_held(disk)
        deadline.reschedule(asyncio.get_running_loop().time() - 1)
        while not deadline.expired():  # noqa: ASYNC110 (it says so in no other way)
            await asyncio.sleep(0)
        assert not task.done()
        disk.calls.let_go()
        with pytest.raises(TimeoutError):
            await task
    assert passed
    assert len(await everything(engine)) == 1
    await engine.aclose()


async def test_a_cancelled_open_leaves_nothing_held() -> None:
    story = WatchedDisk()
    engine, driver = await started("/s", story)
    await driver.commit(counted(3))
    await engine.aclose()
    torn = {path: data[:-5] for path, data in story.files().items() if path != "/s/head"}
    torn["/s/aiostore.json"] = story.files()["/s/aiostore.json"]
    for files in ({}, story.files(), torn):
        at = 0
        while True:
            at += 1
            disk = WatchedDisk(files)
            engine = FileEngine("/s", disk=disk)
            with disk.calls.hold(at):
                task = asyncio.create_task(engine.open())
                held = asyncio.create_task(until_held(disk))
                await asyncio.wait([task, held], return_when=asyncio.FIRST_COMPLETED)
                if task.done():  # opening makes no more changes than that
                    disk.calls._entered.set()
                    await held
                    break
                task.cancel()
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.sleep(0)
                assert not task.done()
                disk.calls.let_go()
                await asyncio.wait([task])
            assert task.cancelled()
            assert disk.held == 0
            again, _ = await started("/s", disk)
            await again.aclose()
        assert at > 2
        await engine.aclose()


async def test_an_open_cancelled_before_it_began_leaves_nothing() -> None:
    disk = WatchedDisk()
    engine = FileEngine("/s", disk=disk)
    task = asyncio.create_task(engine.open())
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert disk.calls.made == []
    await engine.aclose()


async def test_a_cancelled_aclose_finishes() -> None:
    disk = WatchedDisk()
    engine, driver = await started("/s", disk, durability="os")
    await driver.commit(counted(2))
    with disk.calls.hold():
        closing = asyncio.create_task(engine.aclose())
        await until_held(disk)
        second = asyncio.create_task(engine.aclose())
        closing.cancel()
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.sleep(0)
        assert not closing.done()
        assert not second.done()
        disk.calls.let_go()
        await asyncio.wait([closing, second])
    assert closing.cancelled(), "the cancellation is not lost"
    await second
    assert disk.held == 0
    assert disk.inodes["/s/00000000000000000001.jsonl"].pending == []
    await engine.aclose()


async def test_a_cancelled_read_does_not_disturb_the_others(tmp_path: object) -> None:
    disk = WatchedRealDisk()
    engine, driver = await started(f"{tmp_path}/s", disk, segment_bytes=200)
    for _ in range(40):
        await driver.commit(counted(1))
    tasks = [asyncio.create_task(everything(engine)) for _ in range(8)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [len(found) for found in done[1::2] if not isinstance(found, BaseException)] == [40] * 4
    assert len(await everything(engine)) == 40
    await engine.aclose()
