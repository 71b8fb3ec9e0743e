"""Sealing beside an open store: runs that turn out to be damaged, and closing in the midst of things."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from aiostore.engine import Selection
from aiostore.engines.file.run import RunDamaged
from aiostore.errors import EngineUnavailable, StoreClosed, StoreCorrupt
from aiostore.query import Query
from tests.file.disks import Inode, MemoryDisk, WatchedDisk
from tests.file.driver import counted, everything, started
from tests.file.sealed_stores import (
    SMALL,
    GatedDisk,
    Model,
    check_answers,
    check_facts,
    commit_some,
    damage_run,
    forget_blocks,
    index_of,
    indexes,
    read,
    runs_of,
    sealed_store,
    sealer_of,
    settled,
)

MODES = ["rw", "r"]

# --- runs that are damaged while the store is open ---


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cold", [False, True])
async def test_a_run_that_is_damaged_is_made_anew_and_every_answer_is_right(mode: str, cold: bool) -> None:
    made = MemoryDisk()
    model = await sealed_store(made)
    disk = GatedDisk(made.files(), cold=cold)
    engine, _ = await started("/s", disk, **{**SMALL, "mode": mode})
    before = disk.files()
    for number in range(len(runs_of(engine))):
        runs = runs_of(engine)
        damage_run(engine, disk, runs[number if mode == "rw" else 0])
        await check_facts(engine, model)
        await settled(engine)
        assert len(runs_of(engine)) == len(runs) - (mode == "r")
    await check_answers(engine, model, pages=(500,))
    await engine.aclose()
    assert disk.held == 0
    if mode == "rw":
        assert disk.files() == before
    else:  # it wrote nothing: the damage is still there
        assert {path for path in before if disk.files()[path] != before[path]} == set(indexes(made))


@pytest.mark.parametrize("mode", MODES)
async def test_many_reads_that_meet_one_damaged_run_have_it_made_anew_once(
    mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = MemoryDisk()
    model = await sealed_store(made)
    disk = GatedDisk(made.files(), cold=True)
    engine, _ = await started("/s", disk, **{**SMALL, "mode": mode})
    damage_run(engine, disk, runs_of(engine)[0])
    asked: list[Any] = []
    for n in range(24):
        stream_id = "abc"[n % 2]
        asked.append(read(engine, Selection(len(model.events), stream_id=stream_id, backwards=n % 3 == 0)))
    caplog.set_level(logging.WARNING, "aiostore")
    found = await asyncio.gather(*asked)
    for n, events in enumerate(found):
        expected = model.selected(Selection(len(model.events), stream_id="abc"[n % 2], backwards=n % 3 == 0))
        assert events == expected
    assert caplog.text.count("the index is made anew") == 1
    await engine.aclose()
    assert disk.held == 0


async def test_a_merge_that_meets_a_damaged_run_has_it_made_anew_and_goes_on() -> None:
    disk, model, dice = GatedDisk(), Model(), random.Random(1)
    engine, driver = await started("/s", disk, **SMALL)
    while len(runs_of(engine)) < 3:
        await commit_some(driver, model, dice, 1)
        await settled(engine)
    damage_run(engine, disk, runs_of(engine)[1])
    while len(runs_of(engine)) > 1:
        await commit_some(driver, model, dice, 1)
        await settled(engine)
    await check_answers(engine, model, pages=(500,))
    await engine.aclose()
    assert disk.held == 0
    fresh = MemoryDisk({path: data for path, data in disk.files().items() if ".idx" not in path})
    engine, _ = await started("/s", fresh, **SMALL)
    await settled(engine)
    await engine.aclose()
    assert indexes(fresh) == indexes(disk)


@pytest.mark.parametrize("mode", MODES)
async def test_damage_of_a_run_and_of_its_segment_is_reported_and_nothing_hangs(mode: str) -> None:
    made = MemoryDisk()
    model = await sealed_store(made)
    disk = GatedDisk(made.files())
    engine, _ = await started("/s", disk, **{**SMALL, "mode": mode})
    run = runs_of(engine)[0]
    path = "/s/00000000000000000001.jsonl"
    lines = made.files()[path].splitlines(keepends=True)
    disk.inodes[path].data[len(lines[0]) + 30] ^= 1
    damage_run(engine, disk, run)
    asked = [read(engine, Selection(len(model.events), stream_id=stream_id)) for stream_id in "abab"]
    for error in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(error, StoreCorrupt)
        assert (error.path, error.offset) == (path, len(lines[0]))
        assert (error.first_event_id, error.last_event_id) == (2, 2)
    last = run.last_event_id
    after = Selection(len(model.events), after=last, query=Query.where(types=["A"]))
    assert await read(engine, after) == model.selected(after), "other reads go on"
    await settled(engine)
    await engine.aclose()
    assert disk.held == 0
    assert disk.files()[path] == bytes(disk.inodes[path].data)


@pytest.mark.parametrize("name", ["read", "read_nowait"])
async def test_an_index_that_the_device_cannot_read_is_made_anew(name: str) -> None:
    made = MemoryDisk()
    model = await sealed_store(made)
    bad: list[Inode] = []

    class BadSectors(GatedDisk):
        def _fail(self, file: int) -> None:
            if any(self._opened[file] is inode for inode in bad):
                raise OSError(errno.EIO, "bad sector")

        def read(self, file: int, size: int, offset: int) -> bytes:
            self._fail(file)
            return super().read(file, size, offset)

        def read_nowait(self, file: int, size: int, offset: int) -> bytes | None:
            if name == "read":
                return None
            self._fail(file)
            return super().read_nowait(file, size, offset)

    disk = BadSectors(made.files())
    engine, _ = await started("/s", disk, **SMALL)
    forget_blocks(engine)
    bad += [disk._opened[run._file] for run in runs_of(engine)]
    await check_facts(engine, model)
    await settled(engine)
    await check_answers(engine, model, pages=(500,))
    await engine.aclose()
    assert disk.held == 0
    assert indexes(disk) == indexes(made)


async def test_without_room_a_damaged_run_is_kept_in_memory_if_it_is_small_and_else_not_available() -> None:
    made = MemoryDisk()
    model = await sealed_store(made)
    disk = WatchedDisk(made.files())
    engine, _ = await started("/s", disk, **SMALL)
    small, large = runs_of(engine)[-1], runs_of(engine)[0]
    assert len(small.segments) <= 4 < len(large.segments)
    damage_run(engine, disk, small)
    disk.calls.fail("open_write", errno.ENOSPC, times=1000)
    last = Selection(len(model.events), stream_id="a", after=small.first_event_id - 1)
    assert await read(engine, last) == model.selected(last)
    damage_run(engine, disk, large)
    with pytest.raises(EngineUnavailable, match="cannot be made anew now"):
        await read(engine, Selection(len(model.events), stream_id="a"))
    await settled(engine)
    disk.calls.heal()
    await check_answers(engine, model, pages=(500,))
    await settled(engine)
    sealer_of(engine).look()
    await settled(engine)
    await engine.aclose()
    assert disk.held == 0
    assert indexes(disk) == indexes(made)


async def test_a_segment_that_cannot_be_read_now_leaves_a_damaged_run_not_available() -> None:
    made = MemoryDisk()
    model = await sealed_store(made)
    disk = WatchedDisk(made.files())
    engine, _ = await started("/s", disk, **SMALL)
    damage_run(engine, disk, runs_of(engine)[0])
    disk.calls.fail("open_read", errno.EMFILE)
    with pytest.raises(EngineUnavailable, match="cannot be made anew now"):
        await read(engine, Selection(len(model.events), stream_id="a"))
    await check_facts(engine, model)
    await engine.aclose()
    assert disk.held == 0


@pytest.mark.parametrize("when", ["open", "closing", "closed"])
async def test_what_is_put_aside_is_done_whenever_that_is(when: str) -> None:
    """A run that nothing refers to any more is closed so: its file must not stay open."""
    done: list[str] = []
    engine, _ = await started("/s", MemoryDisk(), **SMALL)
    blocks = engine._blocks
    if when == "closed":
        await engine.aclose()
    blocks.aside(lambda: done.append(when))
    if when == "open":
        await settled(engine)
    await engine.aclose()
    assert done == [when]


async def test_a_segment_that_is_damaged_before_it_is_sealed_does_not_keep_the_next_ones_from_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    disk, model, dice = GatedDisk(), Model(), random.Random(1)
    engine, driver = await started("/s", disk, **SMALL)
    disk.hold("aiostore-seal")
    while sealer_of(engine)._sealing is None:
        await commit_some(driver, model, dice, 1)
    await disk.until_held("aiostore-seal")
    path = "/s/00000000000000000001.jsonl"
    disk.inodes[path].data[-30] ^= 1
    disk.let_go("aiostore-seal")
    await commit_some(driver, model, dice, 60)
    await settled(engine)
    assert 1 <= len(runs_of(engine)) == len(index_of(engine).sources) - 2
    assert caplog.text.count("is corrupt at byte") == 1
    assert path in caplog.text
    await check_facts(engine, model)
    await engine.aclose()
    assert disk.held == 0


# --- closing in the midst ---


async def store_that_merges(disk: GatedDisk) -> tuple[Any, Any, Model]:
    """An engine whose first merge is held where it begins to write."""
    model, dice = Model(), random.Random(1)
    engine, driver = await started("/s", disk, **SMALL)
    disk.hold("aiostore-merge")
    while not sealer_of(engine)._merging:
        await commit_some(driver, model, dice, 1)
        await asyncio.wrap_future(sealer_of(engine)._seals.submit(int))
        await asyncio.sleep(0)
    await disk.until_held("aiostore-merge")
    return engine, driver, model


async def reopened(disk: MemoryDisk, model: Model) -> None:
    """All is there, and the index is brought up to date."""
    assert disk.held == 0
    assert not [path for path in disk.files() if path.endswith(".tmp")]
    engine, _ = await started("/s", disk, **SMALL)
    await settled(engine)
    await check_answers(engine, model, pages=(500,))
    await engine.aclose()
    assert disk.held == 0


async def test_closing_while_a_read_waits_for_a_merge_to_mend_one_of_its_runs() -> None:
    disk = GatedDisk()
    engine, _, model = await store_that_merges(disk)
    damage_run(engine, disk, runs_of(engine)[0])
    reading = asyncio.create_task(everything(engine, stream_id="a"))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not reading.done()
    closing = asyncio.create_task(engine.aclose())
    for _ in range(5):
        await asyncio.sleep(0)
    disk.let_go("aiostore-merge")
    await closing
    with pytest.raises(StoreClosed):
        await reading
    await reopened(disk, model)


async def test_closing_while_a_run_is_made_anew_tells_those_who_wait_for_it() -> None:
    made = MemoryDisk()
    model = await sealed_store(made)
    disk = GatedDisk(made.files())
    engine, _ = await started("/s", disk, **SMALL)
    damage_run(engine, disk, runs_of(engine)[0])
    disk.hold("aiostore-merge")
    reading = [asyncio.create_task(everything(engine, stream_id="ab"[n % 2])) for n in range(4)]
    await disk.until_held("aiostore-merge")
    reading[0].cancel()
    closing = asyncio.create_task(engine.aclose())
    for _ in range(5):
        await asyncio.sleep(0)
    disk.let_go("aiostore-merge")
    await closing
    done = await asyncio.gather(*reading, return_exceptions=True)
    assert [type(error) for error in done] == [asyncio.CancelledError, *[StoreClosed] * 3]
    await reopened(disk, model)
    assert indexes(disk) == indexes(made)


async def test_a_merge_that_ends_after_closing_has_begun_begins_nothing() -> None:
    disk = GatedDisk()
    engine, _, model = await store_that_merges(disk)
    sealer = sealer_of(engine)
    job: Future[Any] = Future()
    job.set_exception(RunDamaged(runs_of(engine)[0], "a block"))
    sealer.stop()
    merging = sealer._merging
    sealer._after_merge(job)
    assert not sealer._mending
    sealer._merging = merging
    disk.let_go("aiostore-merge")
    await engine.aclose()
    await reopened(disk, model)


@pytest.mark.parametrize("prefix", ["aiostore-seal", "aiostore-merge"])
async def test_closing_in_the_midst_of_a_seal_or_a_merge(prefix: str) -> None:
    disk, model, dice = GatedDisk(), Model(), random.Random(1)
    engine, driver = await started("/s", disk, **SMALL)
    await commit_some(driver, model, dice, 10)
    await settled(engine)
    disk.hold(prefix)
    sealer = sealer_of(engine)
    while sealer._sealing is None if prefix == "aiostore-seal" else not sealer._merging:
        await commit_some(driver, model, dice, 1)
        if prefix == "aiostore-merge":
            await asyncio.wrap_future(sealer._seals.submit(int))
            await asyncio.sleep(0)
    await disk.until_held(prefix)
    closing = asyncio.create_task(engine.aclose())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not closing.done()
    disk.let_go(prefix)
    await closing
    await reopened(disk, model)


async def test_the_log_waits_while_too_many_parts_wait_and_an_append_can_be_cancelled_there() -> None:
    disk, model, dice = GatedDisk(), Model(), random.Random(1)
    engine, driver = await started("/s", disk, **SMALL)
    disk.hold("aiostore-seal")
    sealer = sealer_of(engine)
    while sealer._room.is_set():
        await commit_some(driver, model, dice, 1)
    waiting = [source for source in engine._opened.index.sources if not hasattr(source, "path")]  # type: ignore[union-attr]
    assert len(waiting) == 6, "those that wait, and the one that is written"
    task = None
    for _ in range(100):
        head, versions = driver.head, dict(driver.versions)
        plan = driver.plan(counted(1, "a"))
        task = asyncio.create_task(engine.commit(plan))
        for _ in range(5):
            await asyncio.sleep(0)
        if engine._writer.log._in_use.locked() and engine._opened.index.segments[-1].end >= 1000:  # type: ignore[union-attr]
            break
        await task
        model.note(plan)
    assert task is not None
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    driver.head, driver.versions = head, versions
    await check_facts(engine, model)
    committing = asyncio.create_task(engine.commit(plan := driver.plan(counted(1, "a"))))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not committing.done()
    disk.let_go("aiostore-seal")
    await committing
    model.note(plan)
    await settled(engine)
    await check_answers(engine, model, pages=(500,))
    await engine.aclose()
    await reopened(disk, model)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("busy", [False, True])
async def test_a_forked_child_lets_go_of_the_index(tmp_path: Path, busy: bool) -> None:
    engine, driver = await started(tmp_path / "s", **SMALL)
    model = Model()
    await commit_some(driver, model, random.Random(1), 60)
    if not busy:
        await settled(engine)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            engine.abandon()
            links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
            mine = [os.readlink(link) for link in links if os.path.lexists(link)]  # noqa: ASYNC240
            status = 2 if not busy and any(str(tmp_path) in path for path in mine) else 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0  # noqa: ASYNC222 (it only exits)
    await commit_some(driver, model, random.Random(2), 20)
    await settled(engine)
    await check_answers(engine, model, pages=(500,))
    await engine.aclose()
    assert not [path for path in os.listdir(tmp_path / "s") if path.endswith(".tmp")]
