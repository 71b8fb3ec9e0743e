"""How a reader learns of changes: the head file, the directory, the kernel; and that it does nothing while idle."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from aiostore import END, EventStore, StoreCorrupt
from aiostore.engines.file import following
from aiostore.engines.file.disk import Disk
from aiostore.engines.file.engine import FileEngine
from aiostore.engines.file.watch import Watch
from tests.file.disks import WatchedRealDisk
from tests.file.followed import reader_of, take, until

linux = pytest.mark.skipif(sys.platform != "linux", reason="inotify")


@pytest.fixture
async def writer(tmp_path: Path) -> AsyncIterator[EventStore]:
    async with EventStore(tmp_path / "s") as store:
        await store.append("s", "T", {})
        yield store


# --- the head file and the directory ---


@linux
async def test_a_head_file_that_is_deleted_and_made_anew(tmp_path: Path, writer: EventStore) -> None:
    async with EventStore(tmp_path / "s", mode="r") as reader, reader.subscribe() as events:
        assert await take(events, 1) == [1]
        assert await reader.head() == 1  # it has the file open by now
        (tmp_path / "s" / "head").unlink()
        await writer.append("s", "T", {})
        assert await take(events, 1) == [2]
        await writer.aclose()
        async with EventStore(tmp_path / "s") as next_writer:
            await next_writer.append("s", "T", {})
            assert await take(events, 1) == [3]
            assert await reader.head() == 3


@linux
async def test_a_head_file_that_is_missing_when_it_is_opened(
    tmp_path: Path, writer: EventStore, caplog: pytest.LogCaptureFixture
) -> None:
    await writer.append("s", "T", {})
    (tmp_path / "s" / "head").unlink()
    async with EventStore(tmp_path / "s", mode="r") as reader, reader.subscribe() as events:
        assert await take(events, 1) == [1]  # of which the next line says that it is durable
        await until(lambda: "head is missing" in caplog.text)
        await writer.aclose()
        async with EventStore(tmp_path / "s") as next_writer:
            assert await take(events, 1) == [2]
            await next_writer.append("s", "T", {})
            assert await take(events, 1) == [3]
    assert caplog.text.count("head is missing") == 1


@linux
async def test_a_directory_that_goes_and_comes_back(
    tmp_path: Path, writer: EventStore, caplog: pytest.LogCaptureFixture
) -> None:
    async with EventStore(tmp_path / "s", mode="r") as reader, reader.subscribe() as events:
        assert await take(events, 1) == [1]
        (tmp_path / "s").rename(tmp_path / "elsewhere")
        await writer.append("s", "T", {})
        await until(lambda: "head is missing" in caplog.text)
        assert await reader.head() == 1
        (tmp_path / "elsewhere").rename(tmp_path / "s")
        assert await take(events, 1) == [2]
        await writer.append("s", "T", {})
        assert await take(events, 1) == [3]


@linux
async def test_a_directory_that_is_deleted_and_another_store_in_its_place(
    tmp_path: Path, writer: EventStore, caplog: pytest.LogCaptureFixture
) -> None:
    async with EventStore(tmp_path / "s", mode="r") as reader, reader.subscribe() as events:
        assert await take(events, 1) == [1]
        await writer.aclose()
        step = asyncio.ensure_future(anext(events))
        shutil.rmtree(tmp_path / "s")
        await until(lambda: "head is missing" in caplog.text)
        async with EventStore(tmp_path / "s") as other:
            await other.append("s", "T", {})
            await other.append("s", "T", {})
            with pytest.raises(StoreCorrupt, match="another store"):
                await step


# --- being told of changes, or not ---


@linux
def test_what_the_kernel_tells(tmp_path: Path) -> None:
    directory = tmp_path / "s"
    with pytest.raises(FileNotFoundError):
        Watch(str(directory), str(directory / "head"))
    directory.mkdir()
    watch = Watch(str(directory), str(directory / "head"))
    assert watch.take() == (False, set(), False, False)
    (directory / "head").write_bytes(b"1")
    assert watch.take() == (False, {"head"}, False, False)
    watch.renew()
    for _ in range(2):
        with (directory / "head").open("r+b") as file:
            file.write(b"2")
        assert watch.take() == (True, set(), False, False)
    (directory / "other").write_bytes(b"")
    (directory / "other").rename(directory / "head")
    assert watch.take() == (False, {"other", "head"}, False, False)
    (directory / "head").write_bytes(b"3")
    assert watch.take().written is False, "it is another file"
    watch.renew()
    (directory / "head").write_bytes(b"4")
    assert watch.take().written
    (directory / "head").unlink()
    assert watch.take() == (False, {"head"}, False, False)
    directory.rename(tmp_path / "t")
    assert watch.take().gone
    watch.close()


async def test_what_cannot_be_read_for_a_while_is_tried_again_and_said_once(
    tmp_path: Path, writer: EventStore, caplog: pytest.LogCaptureFixture
) -> None:
    disk = WatchedRealDisk()
    async with reader_of(tmp_path / "s", disk) as reader, reader.subscribe() as events:
        assert await take(events, 1) == [1]
        disk.calls.fail("open_read", errno.EMFILE, times=1000)
        disk.calls.fail("read", errno.EINTR, times=1000)
        disk.calls.fail("read_nowait", errno.ENOMEM, times=1000)
        await writer.append("s", "T", {})
        await until(lambda: "cannot be read now" in caplog.text)
        assert await reader.head() == 1, "what is known is served"
        calls = len(disk.calls.made)
        await asyncio.sleep(0.25)
        assert len(disk.calls.made) - calls < 40, "it does not spin"
        disk.calls.heal()
        assert await take(events, 1) == [2]


class Untold(Disk):
    """A system that does not tell of changes."""

    def __init__(self, why: int) -> None:
        self.why = why

    def watch(self, directory: str, path: str) -> Watch | None:
        if self.why:
            raise OSError(self.why, os.strerror(self.why))
        return None


@pytest.mark.parametrize("why", [0, errno.ENOSPC, errno.EMFILE, errno.EACCES])
async def test_where_the_system_does_not_tell_of_changes_it_looks_for_them(
    why: int, tmp_path: Path, writer: EventStore, caplog: pytest.LogCaptureFixture
) -> None:
    async with reader_of(tmp_path / "s", Untold(why)) as reader, reader.subscribe() as events:
        for number in range(1, 4):
            assert await take(events, 1) == [number]
            await writer.append("s", "T", {})
        assert await take(events, 1) == [4]
        await writer.aclose()
        (tmp_path / "s" / "head").unlink()
        async with EventStore(tmp_path / "s") as next_writer:
            await next_writer.append("s", "T", {})
            assert await take(events, 1) == [5]
    reasons = [record.getMessage() for record in caplog.records if "is looked at every 0.1 s" in record.getMessage()]
    assert len(reasons) == 1
    assert (os.strerror(why) if why else "does not tell") in reasons[0]


async def test_on_a_network_file_system_it_looks_by_itself(tmp_path: Path, writer: EventStore) -> None:
    disk = WatchedRealDisk()
    async with reader_of(tmp_path / "s", disk, force_network=True) as reader, reader.subscribe() as events:
        await writer.append("s", "T", {})
        assert await take(events, 2) == [1, 2]
    assert "watch" not in disk.calls.made


@linux
async def test_an_idle_follower_calls_nothing(tmp_path: Path, writer: EventStore) -> None:
    """It is woken by a write, and then looks a bounded number of times, however many wait."""
    disk = WatchedRealDisk()
    async with reader_of(tmp_path / "s", disk) as reader, contextlib.AsyncExitStack() as stack:
        subscriptions = [await stack.enter_async_context(reader.subscribe(after=END)) for _ in range(50)]
        waiting = [asyncio.ensure_future(anext(each)) for each in subscriptions]
        for number in range(2, 30):
            await writer.append("s", "T", {})
            assert [event.event_id for event in await asyncio.gather(*waiting)] == [number] * 50
            waiting = [asyncio.ensure_future(anext(each)) for each in subscriptions]
        await until(lambda: not reader_busy(reader))
        made = len(disk.calls.made)
        wakes = count_wakes()
        await asyncio.sleep(0.3)
        assert len(disk.calls.made) == made
        assert wakes() <= 3, "those of this test"
        await writer.append("s", "T", {})
        await asyncio.gather(*waiting)
        await until(lambda: not reader_busy(reader))
        assert len(disk.calls.made) - made <= 12


def follower_of(store: EventStore) -> following.Follower:
    engine = store._engine
    assert isinstance(engine, FileEngine)
    return engine._following()


def reader_busy(store: EventStore) -> bool:
    tailer = store._committer._tailer
    assert tailer is not None
    return tailer._publisher.running or not follower_of(store)._told._waiters


def count_wakes() -> Callable[[], int]:
    """Tells how often the loop was woken since."""
    loop: Any = asyncio.get_running_loop()
    count = 0
    select = loop._selector.select

    def counting(timeout: float | None = None) -> Any:
        nonlocal count
        count += 1
        return select(timeout)

    loop._selector.select = counting

    def stop() -> int:
        del loop._selector.select
        return count

    return stop
