"""state.db: bound to the log, never ahead of it, and what becomes of it when it is damaged or the disk is full."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aiostore import (
    EngineUnavailable,
    EngineUnsupported,
    EventStore,
    Projection,
    StoreClosed,
    StoreCorrupt,
    StoreFailed,
    StoreFull,
)
from aiostore.engine import Engine, State
from aiostore.engines.file.disk import Disk
from aiostore.engines.file.engine import FileEngine
from aiostore.engines.file.state import StateFile
from tests.conformance import engine_of
from tests.file.disks import WatchedRealDisk


async def kept(path: Path, **options: Any) -> State | None:
    async with EventStore(path, **options) as store:
        return await engine_of(store).load_state("k")


async def save(path: Path, count: int, value: bytes = b"v") -> None:
    """Append so many events and save a state of them."""
    async with EventStore(path) as store:
        await store.append_batch("s", [("E", {"n": n}) for n in range(count)])
        await engine_of(store).save_state("k", await store.head(), value)


async def test_the_file_is_made_with_the_first_state_and_is_private(tmp_path: Path) -> None:
    async with EventStore(tmp_path / "s") as store:
        assert await engine_of(store).load_state("k") is None
        assert not (tmp_path / "s/state.db").exists()
        await engine_of(store).save_state("k", 0, b"v")
    assert stat.S_IMODE((tmp_path / "s/state.db").stat().st_mode) == 0o600
    assert sorted(path.name for path in (tmp_path / "s").iterdir() if path.name.startswith("state")) == ["state.db"]


async def test_a_log_that_was_set_back_does_not_fit(tmp_path: Path) -> None:
    await save(tmp_path / "s", 2)
    shutil.copytree(tmp_path / "s", tmp_path / "old")
    await save(tmp_path / "s", 3)
    shutil.copy(tmp_path / "s/state.db", tmp_path / "old/state.db")
    assert await kept(tmp_path / "s") == State(5, b"v", 2, fits=True)
    assert await kept(tmp_path / "old") == State(5, b"v", 2, fits=False)
    async with EventStore(tmp_path / "old") as store:  # the log goes on in another way
        await store.append_batch("other", [("E", {})] * 10)
    assert await kept(tmp_path / "old") == State(5, b"v", 2, fits=False)
    await save(tmp_path / "old", 1, b"new")
    assert await kept(tmp_path / "old") == State(13, b"new", 3, fits=True)


async def test_the_state_of_another_store_does_not_fit(tmp_path: Path) -> None:
    await save(tmp_path / "a", 2)
    await save(tmp_path / "b", 2)
    shutil.copy(tmp_path / "a/state.db", tmp_path / "b/state.db")
    assert await kept(tmp_path / "b") == State(2, b"v", 1, fits=False)


async def test_a_damaged_line_at_its_position_does_not_fit(tmp_path: Path) -> None:
    await save(tmp_path / "s", 3)
    (segment,) = (tmp_path / "s").glob("*.jsonl")
    data = segment.read_bytes()
    segment.write_bytes(data[:-5] + b"XX" + data[-3:])
    assert await kept(tmp_path / "s", mode="r") == State(3, b"v", 1, fits=False)


async def test_a_projection_whose_log_was_set_back_is_made_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def counting(store: EventStore) -> Projection[Any]:
        projection: Projection[Any] = Projection("count", store, initial=lambda: 0, snapshot_interval=1)
        projection.when("E", lambda count, event: count + 1)
        return projection

    async with EventStore(tmp_path / "s") as store:
        await store.append("s", "E", {})
    shutil.copytree(tmp_path / "s", tmp_path / "old")
    async with EventStore(tmp_path / "s") as store:
        await store.append("s", "E", {})
        await counting(store).catch_up()
    shutil.copy(tmp_path / "s/state.db", tmp_path / "old/state.db")
    async with EventStore(tmp_path / "old") as store:
        projection = counting(store)
        assert (await projection.catch_up(), projection.state) == (1, 1)
    assert (
        "at event 2 is discarded, its state is rebuilt from the events: the log does not have the event" in caplog.text
    )


# Never ahead of the log


class Journal(Disk):
    """Notes which files are synced."""

    def __init__(self) -> None:
        self.synced: list[str] = []
        self.fail: OSError | None = None

    def sync(self, file: int) -> None:
        if self.fail is not None:
            raise self.fail
        super().sync(file)
        self.synced.append(Path(os.readlink(f"/proc/self/fd/{file}")).suffix)


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
async def test_in_os_mode_the_log_is_synced_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Journal()
    original = StateFile.save
    synced_before: list[int] = []

    def save(self: StateFile, *args: Any) -> list[int]:
        synced_before.append(disk.synced.count(".jsonl"))
        return original(self, *args)

    monkeypatch.setattr(StateFile, "save", save)
    async with EventStore(FileEngine(tmp_path / "s", durability="os", disk=disk)) as store:
        await store.append("s", "E", {})
        await engine_of(store).save_state("k", 1, b"v")
        await engine_of(store).save_state("k", 1, b"v")  # it is durable by now
        await store.append("s", "E", {})
        await engine_of(store).save_state("k", 1, b"v")
        await engine_of(store).save_state("k", 2, b"v")
    assert synced_before == [1, 1, 1, 2]


async def test_where_the_log_cannot_be_synced_nothing_is_saved(tmp_path: Path) -> None:
    disk = Journal()
    async with EventStore(FileEngine(tmp_path / "s", durability="os", disk=disk)) as store:
        await store.append("s", "E", {})
        disk.fail = OSError(5, "Input/output error")
        with pytest.raises(StoreFailed):
            await engine_of(store).save_state("k", 1, b"v")
        assert await engine_of(store).load_state("k") is None
        with pytest.raises(StoreFailed):
            await store.append("s", "E", {})
        disk.fail = None


async def test_rolling_and_saving_go_on_beside_each_other(tmp_path: Path) -> None:
    engine = FileEngine(tmp_path / "s", durability="os", segment_bytes=400)
    async with EventStore(engine) as store:

        async def append() -> None:
            for _ in range(100):
                await store.append("s", "E", {})

        async def save() -> None:
            for _ in range(50):
                await engine.save_state("k", await store.head(), b"v")

        await asyncio.gather(append(), append(), save())
        assert await store.head() == 200
    assert len(list((tmp_path / "s").glob("*.jsonl"))) > 10


# When things go wrong


@pytest.fixture
async def engine(tmp_path: Path) -> Engine:
    await save(tmp_path / "s", 1)
    return FileEngine(tmp_path / "s")


async def test_a_damaged_file_is_reported_and_left_alone(engine: Engine, tmp_path: Path) -> None:
    damaged = b"not a database" * 100
    (tmp_path / "s/state.db").write_bytes(damaged)
    async with EventStore(engine) as store:
        for call in (lambda: engine.load_state("k"), lambda: engine.save_state("k", 1, b"v")):
            with pytest.raises(StoreCorrupt, match=r"state\.db .*move the file away"):
                await call()
        await store.append("s", "E", {})
    assert (tmp_path / "s/state.db").read_bytes() == damaged


async def test_an_empty_file_is_what_a_crash_leaves_of_the_first_save(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "s/state.db").write_bytes(b"")
    async with EventStore(engine):
        assert await engine.load_state("k") is None
        assert await engine.save_state("k", 1, b"v") == 1


async def test_a_later_format_is_refused(engine: Engine, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "s/state.db") as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    async with EventStore(engine):
        with pytest.raises(EngineUnsupported, match="format 2"):
            await engine.load_state("k")
        with pytest.raises(EngineUnsupported, match="format 2"):
            await engine.save_state("k", 1, b"v")


async def test_a_full_disk_leaves_what_was_saved(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect: Any = sqlite3.connect

    def small(*args: Any, **kwargs: Any) -> Any:
        connection = connect(*args, **kwargs)
        connection.execute("PRAGMA max_page_count = 5")
        return connection

    monkeypatch.setattr(sqlite3, "connect", small)
    async with EventStore(engine):
        with pytest.raises(StoreFull, match="no room"):
            await engine.save_state("k", 1, b"v" * 100_000)
        assert await engine.load_state("k") == State(1, b"v", 1, fits=True)
        assert await engine.save_state("k", 1, b"w") == 2


@pytest.mark.parametrize(
    ("has_free_space", "error"), [(False, StoreFull), (True, EngineUnavailable), (None, EngineUnavailable)]
)
async def test_a_journal_that_cannot_be_made_for_want_of_room_says_so(
    engine: FileEngine, monkeypatch: pytest.MonkeyPatch, has_free_space: bool | None, error: type[Exception]
) -> None:
    connect: Any = sqlite3.connect

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> Any:
            if sql.startswith("INSERT"):
                cannot_open = sqlite3.OperationalError("unable to open database file")
                cannot_open.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
                raise cannot_open
            return super().execute(sql, *args)

    def room(_: Disk, path: str) -> bool:
        if has_free_space is None:
            raise OSError(5, "Input/output error")
        return has_free_space

    monkeypatch.setattr(Disk, "has_free_space", room)
    async with EventStore(engine):
        with monkeypatch.context() as patched:
            patched.setattr(sqlite3, "connect", lambda *args, **kwargs: connect(*args, factory=Connection, **kwargs))
            with pytest.raises(error, match=r"state\.db.*unable to open"):
                await engine.save_state("k", 1, b"w")
        assert await engine.load_state("k") == State(1, b"v", 1, fits=True)


def test_a_disk_knows_whether_it_has_room(tmp_path: Path) -> None:
    assert Disk().has_free_space(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        Disk().has_free_space(str(tmp_path / "nothing"))


async def test_a_file_that_another_program_holds_is_unavailable(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect: Any = sqlite3.connect
    holder = connect(tmp_path / "s/state.db")
    holder.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **kwargs: connect(*args, timeout=0, **kwargs))
    async with EventStore(engine):
        with pytest.raises(EngineUnavailable, match="locked"):
            await engine.save_state("k", 1, b"v")
        holder.rollback()
        holder.close()
        assert await engine.save_state("k", 1, b"v") == 2


HALF_DONE = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 1")  # so that pages are written before the end, and the journal is needed
connection.execute("BEGIN IMMEDIATE")
connection.execute("UPDATE states SET value = x'00', revision = 99")
for n in range(100):
    connection.execute("INSERT INTO states VALUES (?, 1, 0, '', zeroblob(10000))", (str(n),))
os.kill(os.getpid(), signal.SIGKILL)
"""


async def test_a_save_that_a_crash_cut_off_is_undone(engine: Engine, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", HALF_DONE, tmp_path / "s/state.db"], check=False)  # noqa: ASYNC221 (alone)
    assert (tmp_path / "s/state.db-journal").stat().st_size > 0
    assert await kept(tmp_path / "s", mode="r") is None, "a reader cannot undo it, and goes without"
    async with EventStore(engine):
        assert await engine.load_state("k") == State(1, b"v", 1, fits=True)
        assert await engine.save_state("k", 1, b"w") == 2
    assert await kept(tmp_path / "s", mode="r") == State(1, b"w", 2, fits=True)


async def test_a_snapshot_that_cannot_be_loaded_costs_a_replay(
    engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "s/state.db").write_bytes(b"not a database" * 100)
    async with EventStore(engine) as store:
        projection: Projection[Any] = Projection("p", store, initial=lambda: 0, snapshot_interval=10)
        projection.when("E", lambda count, event: count + 1)
        assert (await projection.catch_up(), projection.state) == (1, 1)
        assert "'p' at event 0 goes on from the first event" in caplog.text
        with pytest.raises(StoreCorrupt):
            await projection.load_snapshot()


async def test_a_file_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    class Full(Disk):
        error = OSError(28, "No space left on device")

        def open_write(self, path: str, *, exclusive: bool = False) -> int:
            if path.endswith("state.db"):
                raise self.error
            return super().open_write(path, exclusive=exclusive)

    disk = Full()
    async with EventStore(FileEngine(tmp_path / "s", disk=disk)) as store:
        with pytest.raises(StoreFull, match=r"state\.db"):
            await engine_of(store).save_state("k", 0, b"v")
        disk.error = OSError(24, "Too many open files")
        with pytest.raises(EngineUnavailable, match=r"state\.db"):
            await engine_of(store).save_state("k", 0, b"v")


async def test_an_automatic_snapshot_that_fails_is_logged_and_the_projection_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with EventStore(tmp_path / "s") as store:
        await store.append_batch("s", [("E", {})] * 3)
        (tmp_path / "s/state.db").mkdir()
        projection: Projection[Any] = Projection("p", store, initial=lambda: 0)
        projection.when("E", lambda count, event: count + 1)
        projection._interval = 1  # as if it had begun before the file was gone
        assert (await projection.catch_up(), projection.state) == (3, 3)
        with pytest.raises(EngineUnavailable):
            await projection.save_snapshot()
    assert caplog.text.count("goes on without a snapshot") == 3


async def test_a_closed_store_keeps_no_state(engine: Engine) -> None:
    store = await EventStore.open(engine)
    await store.aclose()
    with pytest.raises(StoreClosed):
        await engine.load_state("k")
    with pytest.raises(StoreClosed):
        await engine.save_state("k", 1, b"v")


async def test_closing_waits_for_the_state_in_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await save(tmp_path / "s", 1)
    store = await EventStore.open(tmp_path / "s")
    saving = asyncio.create_task(engine_of(store).save_state("k", 1, b"w" * 1_000_000))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await store.aclose()
    (outcome,) = await asyncio.gather(saving, return_exceptions=True)
    after = await kept(tmp_path / "s")
    assert after is not None
    assert (after.revision, outcome) in {(2, 2)} or (after.revision == 1 and isinstance(outcome, StoreClosed))


async def test_a_reader_beside_the_writer_loads(tmp_path: Path) -> None:
    async with EventStore(tmp_path / "s") as store, EventStore(tmp_path / "s", mode="r") as reader:
        assert await engine_of(reader).load_state("k") is None
        await engine_of(store).save_state("k", 0, b"v")
        assert await engine_of(reader).load_state("k") == State(0, b"v", 1, fits=True)
        with pytest.raises(EngineUnsupported, match="mode='rw'"):
            await engine_of(reader).save_state("k", 0, b"v")


async def test_paths_that_look_like_uris_are_paths(tmp_path: Path) -> None:
    for name in ("a?mode=memory", "b#c", "d%41", "e f"):
        await save(tmp_path / name, 1)
        assert await kept(tmp_path / name) == State(1, b"v", 1, fits=True)
        assert (tmp_path / name / "state.db").stat().st_size > 0


KILLED = """
import asyncio, os, sys
from aiostore import EventStore
async def main():
    async with EventStore(sys.argv[1]) as store:
        for n in range(1000):
            event = await store.append("s", "E", {})
            await store._engine.save_state("k", event.event_id, b"%d" % event.event_id)
            print(event.event_id, flush=True)
asyncio.run(main())
"""


async def test_a_killed_process_leaves_state_and_position_of_one_save(tmp_path: Path) -> None:
    last = 0
    for kill_after in (1, 3, 10):
        with subprocess.Popen(  # noqa: ASYNC220 (alone in this loop)
            [sys.executable, "-c", KILLED, tmp_path / "s"], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            for _ in range(kill_after):
                last = int(process.stdout.readline())
            process.kill()
        state = await kept(tmp_path / "s")
        assert state is not None
        assert state.fits
        assert state.position >= last
        assert int(state.value) == state.position


async def test_files_of_the_state_are_no_part_of_the_log(tmp_path: Path) -> None:
    disk = WatchedRealDisk()
    async with EventStore(FileEngine(tmp_path / "s", disk=disk)) as store:
        await engine_of(store).save_state("k", 0, b"v")
        await store.append("s", "E", {})
    (tmp_path / "s/state.db-journal").write_bytes(b"")
    async with EventStore(tmp_path / "s") as store:
        assert await store.head() == 1
