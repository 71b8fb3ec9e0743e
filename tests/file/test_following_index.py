"""The index of a follower: what the writer puts on disk takes the place of what is in memory."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from pathlib import Path

import pytest

from aiostore.engine import Engine, Question
from aiostore.engines.file.disk import Disk
from aiostore.engines.file.engine import FileEngine
from aiostore.engines.file.index import Part
from aiostore.engines.file.segment_files import OPEN_FILES_MAX
from tests.file.disks import WatchedRealDisk
from tests.file.driver import counted, everything, started
from tests.file.followed import Following, until


def parts_of(engine: Engine) -> int:
    assert isinstance(engine, FileEngine)
    assert engine._opened is not None
    return sum(isinstance(source, Part) for source in engine._opened.index.sources)


def sources_of(engine: FileEngine) -> int:
    assert engine._opened is not None
    return len(engine._opened.index.sources)


async def follow_to(reader: FileEngine, head: int, position: int) -> int:
    """Follow as the tailer does: look where there is something to see."""
    while position < head:
        await reader.changed(position)
        for commit in await reader.commits_after(position):
            assert commit.events[0].event_id == position + 1
            position = commit.events[-1].event_id
    return position


async def look_until(reader: Engine, condition: Callable[[], bool]) -> None:
    """Let the reader wait for changes until the condition holds."""
    assert isinstance(reader, FileEngine)
    assert reader._opened is not None
    waiting = asyncio.ensure_future(reader.changed(reader._opened.index.head.event_id))
    await until(condition)
    waiting.cancel()
    await asyncio.wait([waiting])


class CountingDisk(Disk):
    """The real disk, and which files are open by it."""

    def __init__(self) -> None:
        self.held: dict[int, str] = {}

    def open_read(self, path: str) -> int:
        file = super().open_read(path)
        self.held[file] = path
        return file

    def close(self, file: int) -> None:
        del self.held[file]
        super().close(file)


@pytest.mark.parametrize("opened", ["before", "in the midst"])
async def test_hundreds_of_segments_take_little_memory_and_few_files(tmp_path: Path, opened: str) -> None:
    writer, driver = await started(tmp_path / "s", durability="os", segment_bytes=1, part_bytes_min=1)
    if opened == "in the midst":
        for _ in range(70):
            await driver.commit(counted(1))
    disk = CountingDisk()
    reader = FileEngine(tmp_path / "s", mode="r", part_bytes_min=1, disk=disk)
    position = (await reader.open()).event_id
    for _ in range(16):
        for _ in range(20):
            await driver.commit(counted(1))
        assert writer._writer is not None
        await writer._writer.log.sync(driver.head)
        position = await follow_to(reader, driver.head, position)
    await until(lambda: parts_of(writer) == 1)
    await look_until(reader, lambda: parts_of(reader) <= 2 and sources_of(reader) <= 20)
    gc.collect()
    await until(lambda: sum(path.endswith(".idx") for path in disk.held.values()) < sources_of(reader))
    assert len(disk.held) < sources_of(reader) + OPEN_FILES_MAX + 3
    log = await everything(writer)
    assert await everything(reader) == log
    assert await everything(reader, stream_id="s", backwards=True) == log[::-1]
    await writer.aclose()
    await reader.aclose()
    assert not disk.held


@pytest.mark.parametrize("how", ["deleted", "cut", "header", "block", "all zeros"])
async def test_a_run_that_is_deleted_or_damaged_beside_a_follower(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its part stays in memory, or is made anew there; what is read stays what it is."""
    writer, driver = await started(tmp_path / "s", segment_bytes=2000, part_bytes_min=1)
    reader = await Following.open(tmp_path / "s", part_bytes_min=1)

    async def append() -> None:
        await driver.commit(*(counted(1, f"s{n % 5}") for n in range(40)))
        await reader.look()

    for _ in range(6):
        await append()
    await until(lambda: parts_of(writer) == 1)
    await look_until(reader.engine, lambda: parts_of(reader.engine) == 1)
    for path in (tmp_path / "s").glob("*.idx"):
        data = bytearray(path.read_bytes())
        if how == "deleted":
            path.unlink()
            continue
        if how == "cut":
            del data[-10:]
        elif how == "header":
            data[20] ^= 1
        elif how == "block":
            data[4096 + 50] ^= 1
        else:
            data[:] = bytes(len(data))
        path.write_bytes(data)
    late = await Following.open(tmp_path / "s", part_bytes_min=1)
    log = await everything(writer)
    for _ in range(6):
        for each in (reader, late):
            await each.look()
            assert await everything(each.engine) == log
            for number in range(5):
                stream = [event for event in log if event.stream_id == f"s{number}"]
                assert await everything(each.engine, stream_id=f"s{number}") == stream
        await append()
        log = await everything(writer)
    await writer.aclose()
    await reader.aclose()
    await late.aclose()


async def test_a_writer_that_cannot_write_its_index(tmp_path: Path) -> None:
    """The reader keeps what it needs in memory, until there is a writer that can."""
    disk = WatchedRealDisk()
    writer, driver = await started(tmp_path / "s", disk, segment_bytes=500, part_bytes_min=1)
    disk.calls.fail("replace", 28, times=1000)
    reader = await Following.open(tmp_path / "s", part_bytes_min=1)
    for _ in range(20):
        await driver.commit(counted(3))
        await reader.look()
    await reader.check(await everything(writer))
    assert parts_of(reader.engine) > 5
    await writer.aclose()
    writer, driver = await started(tmp_path / "s", segment_bytes=500, part_bytes_min=1)
    await driver.commit(counted(3))
    await reader.look()
    await look_until(reader.engine, lambda: parts_of(reader.engine) <= 2)
    await reader.check(await everything(writer))
    await writer.aclose()
    await reader.aclose()


@pytest.mark.parametrize(("ours", "theirs"), [(1, 5000), (5000, 1), (3000, 5000)])
async def test_parts_with_other_bounds_than_the_writers(tmp_path: Path, ours: int, theirs: int) -> None:
    """As of another version: runs are taken where they fit, and what is read is right in any case."""
    writer, driver = await started(tmp_path / "s", segment_bytes=700, part_bytes_min=theirs)
    reader = await Following.open(tmp_path / "s", part_bytes_min=ours)
    for number in range(120):
        await driver.commit(counted(3, f"s{number % 3}"))
        if number % 4 == 0:
            await reader.look()
    await until(lambda: parts_of(writer) <= 2)
    await reader.look()
    await reader.check(await everything(writer))
    await writer.aclose()
    await reader.aclose()


async def test_a_reader_far_behind_goes_on_by_the_writers_runs(tmp_path: Path) -> None:
    """What it has not handed on yet would else be indexed in memory, however much it is."""
    writer, driver = await started(tmp_path / "s", durability="os", segment_bytes=500, part_bytes_min=1)
    await driver.commit(counted(2))
    reader = await Following.open(tmp_path / "s", part_bytes_min=1)
    for number in range(100):
        await driver.commit(counted(3, f"s{number % 3}"), ("key", counted(1, f"k{number}")))
    await until(lambda: parts_of(writer) == 1)
    log = await everything(writer)
    assert writer._writer is not None
    await writer._writer.log.sync(driver.head)
    engine = reader.engine
    assert isinstance(engine, FileEngine)
    assert engine._opened is not None
    most = 0
    while commits := await engine.commits_after(reader.position):
        most = max(most, parts_of(engine))
        reader.seen.extend(event for commit in commits for event in commit.events)
        ahead = engine._opened.index.head.event_id
        assert await everything(engine) == log[:ahead]
    assert most <= 2
    for number in range(3):
        assert await engine.facts(Question([f"s{number}"])) == await writer.facts(Question([f"s{number}"]))
    assert (await engine.facts(Question(idempotency_key=("k50", "key")))).stored == [
        event for event in log if event.stream_id == "k50"
    ]
    assert [len(commit.events) for commit in await engine.commits_after(2)][:4] == [3, 1, 3, 1]
    await reader.check(log)
    await driver.commit(counted(1))
    await writer.aclose()
    await reader.look()
    assert reader.position == driver.head
    await reader.aclose()
