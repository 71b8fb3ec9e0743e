"""One writer: between processes, within one, across forks; and what a reader may see beside it."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from aiostore.engines.file.disk import Disk, mounted_type
from aiostore.engines.file.engine import FileEngine
from aiostore.engines.file.lock import WriterLock
from aiostore.engines.file.opening import check_place
from aiostore.errors import EngineUnavailable, EngineUnsupported, StoreClosed, StoreLocked
from tests.file.disks import CHANGES, MemoryDisk, WatchedDisk, WatchedRealDisk
from tests.file.driver import Driver, counted, everything, opened_to_write, started

HOLDER = """
import asyncio, sys
from aiostore.engines.file.engine import FileEngine
async def main():
    engine = FileEngine(sys.argv[1])
    await engine.open()
    print("open", flush=True)
    sys.stdin.read()
asyncio.run(main())
"""


async def test_two_stores_in_one_process_conflict(tmp_path: Path) -> None:
    engine, driver = await started(tmp_path / "s")
    await driver.commit(counted(1))
    other = FileEngine(tmp_path / "s")
    with pytest.raises(StoreLocked, match="this same process") as caught:
        await other.open()
    assert (caught.value.pid, caught.value.own) == (os.getpid(), True)
    await other.aclose()
    await driver.commit(counted(1))
    await engine.aclose()
    other, _ = await started(tmp_path / "s")
    assert len(await everything(other)) == 2
    await other.aclose()


async def test_another_process_is_named_and_its_death_frees_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with subprocess.Popen(  # noqa: ASYNC220 (alone in this loop)
        [sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(StoreLocked, match=f"process {holder.pid}") as caught:
            await FileEngine(path).open()
        assert (caught.value.pid, caught.value.own) == (holder.pid, False)
        holder.send_signal(signal.SIGKILL)
    engine, _ = await started(path)
    await engine.aclose()


def test_a_lock_file_that_says_nothing_still_locks() -> None:
    disk = MemoryDisk()
    disk.make_directory("/s")
    lock = WriterLock(disk, "/s/lock")
    for content in (b"", b"rubbish", b'{"pid":"x"}', b"\xff"):
        disk.inodes["/s/lock"].data[:] = content
        with pytest.raises(StoreLocked, match="another process") as caught:
            WriterLock(disk, "/s/lock")
        assert (caught.value.pid, caught.value.own) == (0, False)
        assert disk.held == 1
    lock.close()


def test_a_reader_that_looks_at_the_lock_for_an_instant_does_not_keep_a_writer_out() -> None:
    class BusyAtFirst(MemoryDisk):
        tries = 0

        def lock(self, file: int, *, shared: bool) -> bool:
            self.tries += 1
            return self.tries >= 3 and super().lock(file, shared=shared)

    disk = BusyAtFirst()
    opened_to_write(disk).close()
    assert disk.tries == 3


async def test_files_are_private(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        engine, driver = await started(tmp_path / "a" / "s", segment_bytes=100)
        await driver.commit(counted(2))
        await driver.commit(counted(1))
        await engine.aclose()
        with (tmp_path / "a" / "s" / "00000000000000000003.jsonl").open("ab") as log:
            log.write(b"torn")
        engine, _ = await started(tmp_path / "a" / "s")
        await engine.aclose()
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a" / "s").stat().st_mode) == 0o700
    files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a" / "s").iterdir()}
    assert len(files) == 6
    assert set(files.values()) == {0o600}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
async def test_a_forked_child_lets_go_without_a_trace(tmp_path: Path) -> None:
    engine, driver = await started(tmp_path / "s")
    await driver.commit(counted(2))
    await everything(engine)
    before = {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()}
    child = os.fork()
    if child == 0:
        status = 1
        try:
            engine.abandon()
            mine = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)]
            status = 2 if any(str(tmp_path) in path for path in mine) else 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0  # noqa: ASYNC222 (it only exits)
    assert {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()} == before
    with pytest.raises(StoreLocked):
        await FileEngine(tmp_path / "s").open()
    await driver.commit(counted(1))
    assert len(await everything(engine)) == 3
    await engine.aclose()


def _is_open(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
async def test_a_child_with_a_copy_of_the_lock_does_not_keep_the_closed_store_locked(tmp_path: Path) -> None:
    engine, _ = await started(tmp_path / "s")
    wait, go = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(wait, 1)
        os._exit(0)
    try:
        await engine.aclose()
        engine, _ = await started(tmp_path / "s")
        await engine.aclose()
    finally:
        os.write(go, b"x")
        os.waitpid(child, 0)  # noqa: ASYNC222 (it only exits)
        os.close(wait)
        os.close(go)


# --- reading beside a writer ---


@pytest.mark.parametrize("durability", ["fsync", "os"])
async def test_a_reader_sees_what_is_durable_beside_a_writer_and_all_without_one(durability: str) -> None:
    disk = WatchedDisk()
    engine, driver = await started("/s", disk, durability=durability, segment_bytes=700)
    for _ in range(3):
        await driver.commit(counted(2), ("k", counted(1, "t")))
    reader = FileEngine("/s", mode="r", disk=disk)
    made = len(disk.calls.made)
    head = await reader.open()
    seen = await everything(reader)
    assert not set(disk.calls.made[made:]) & {*CHANGES, "open_write", "make_directory"}, "nothing is written"
    expected = 9 if durability == "fsync" else 6
    assert head.event_id == len(seen) == expected
    assert head.timestamp == seen[-1]._timestamp
    await driver.commit(counted(1))
    assert len(await everything(reader)) == expected
    await reader.aclose()
    await engine.aclose()
    reader = FileEngine("/s", mode="r", disk=disk)
    assert (await reader.open()).event_id == 10
    await reader.aclose()
    assert disk.held == 0


async def test_a_reader_beside_a_write_that_is_under_way(tmp_path: Path) -> None:
    """Half a line at the end, and whole ones that are not known durable, are neither served nor damage."""
    disk = WatchedDisk()
    engine, driver = await started("/s", disk, durability="os")
    await driver.commit(counted(3))
    disk.inodes["/s/00000000000000000001.jsonl"].data.extend(b'{"event_id":4,"str')
    reader = FileEngine("/s", mode="r", disk=disk)
    assert (await reader.open()).event_id == 0
    assert await everything(reader) == []
    await reader.aclose()
    await engine.aclose()


async def test_a_reader_takes_a_torn_tail_for_what_it_is_and_leaves_it() -> None:
    disk = WatchedDisk()
    engine, driver = await started("/s", disk)
    await driver.commit(counted(3))
    await engine.aclose()
    disk.put("/s/00000000000000000001.jsonl", b'{"event_id":4,"str')
    before = disk.files()
    reader = FileEngine("/s", mode="r", disk=disk)
    assert (await reader.open()).event_id == 3
    assert len(await everything(reader)) == 3
    await reader.aclose()
    assert disk.files() == before


async def test_a_reader_cannot_commit(tmp_path: Path) -> None:
    engine, _ = await started(tmp_path / "s")
    await engine.aclose()
    reader = FileEngine(tmp_path / "s", mode="r")
    head = await reader.open()
    assert reader.read_only
    with pytest.raises(EngineUnsupported, match="mode='r'"):
        await reader.commit(Driver(reader, head).plan(counted(1)))
    await reader.aclose()


@pytest.mark.parametrize("mode", ["r", "rw"])
async def test_a_path_that_cannot_be_a_store_is_refused(tmp_path: Path, mode: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(EngineUnavailable):
            await FileEngine(path, mode=mode).open()  # type: ignore[arg-type]
    if mode == "r":
        with pytest.raises(EngineUnavailable, match="there is no store"):
            await FileEngine(tmp_path / "none", mode="r").open()
        assert not (tmp_path / "none").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
async def test_a_read_only_directory_can_be_read(tmp_path: Path) -> None:
    engine, driver = await started(tmp_path / "s")
    await driver.commit(counted(2))
    await engine.aclose()
    (tmp_path / "s").chmod(0o500)
    reader = FileEngine(tmp_path / "s", mode="r")
    assert (await reader.open()).event_id == 2
    await reader.aclose()
    with pytest.raises(EngineUnavailable):
        await FileEngine(tmp_path / "new", mode="r").open()


# --- options and places ---


@pytest.mark.parametrize(
    "options",
    [
        {"durability": "none"},
        {"mode": "w"},
        {"segment_bytes": 0},
        {"segment_bytes": True},
        {"segment_bytes": "16"},
        {"segment_bytes": 2**40},
        {"force_network": 1},
        {"path": ""},
        {"path": b"x"},
        {"path": "a\0b"},
        {"path": 7},
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(options)))):
        FileEngine(**{"path": "x", **options})  # type: ignore[arg-type]


async def test_a_store_that_is_not_open_says_so(tmp_path: Path) -> None:
    engine = FileEngine(tmp_path / "s")
    await engine.aclose()
    with pytest.raises(StoreClosed):
        await everything(engine)
    await engine.open()
    await engine.aclose()
    with pytest.raises(StoreClosed):
        await everything(engine)
    engine.abandon()


MOUNTS = r"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:25 / /mnt/na\040me rw - nfs4 server:/x rw
31 22 0:26 / /mnt/na rw - cifs //server/x rw
32 22 0:27 / /over rw - ext4 /dev/sdb rw
33 22 0:28 / /over rw - fuse.sshfs host: rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/mnt/name", "ext4"),
        ("/mnt/na me/store", "nfs4"),
        ("/mnt/na/store", "cifs"),
        ("/mnt/na", "cifs"),
        ("/over/store", "fuse.sshfs"),
    ],
)
def test_the_file_system_of_a_path_is_that_of_its_mount(path: str, kind: str) -> None:
    assert mounted_type(MOUNTS, path) == kind


def test_network_file_systems_are_refused_unless_forced() -> None:
    class Network(MemoryDisk):
        def file_system(self, path: str) -> str:
            return "nfs4"

    with pytest.raises(EngineUnsupported, match=r"network file system \(nfs4\).*force_network=True"):
        check_place(Network(), "/s", force_network=False)
    check_place(Network(), "/s", force_network=True)
    check_place(Disk(), "/proc", force_network=False)
    with pytest.raises(EngineUnsupported, match="not win32"):
        check_place(Network(), "/s", force_network=True, system="win32")


async def test_the_real_disk_syncs_what_it_says(tmp_path: Path) -> None:
    """Each acknowledged group is one write, of a file opened to sync, and of the head; nothing else."""
    disk = WatchedRealDisk()
    engine, driver = await started(tmp_path / "s", disk)
    begun = len(disk.calls.made)
    await driver.commit(counted(3), counted(1))
    assert disk.calls.made[begun:] == ["write_log", "write_at"]
    assert engine._writer is not None
    import fcntl

    flags = fcntl.fcntl(engine._writer.log._file._file, fcntl.F_GETFL)
    assert sys.platform == "darwin" or flags & os.O_DSYNC
    await engine.aclose()
