"""What lookups see on threads and in the loop, while the index changes: places, versions, and nothing to wait for."""

from __future__ import annotations

import asyncio
import errno
import gc
import random
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from itertools import groupby
from typing import Any, cast

import pytest

from aiostore.engine import Question, Selection
from aiostore.engines.file import index as index_module
from aiostore.engines.file import pages as pages_module
from aiostore.engines.file import segment_files
from aiostore.engines.file.engine import FileEngine
from aiostore.engines.file.pieces import Piece
from aiostore.engines.file.segment import LinePlaces, Segment
from aiostore.errors import StoreCorrupt
from tests.file.disks import MemoryDisk
from tests.file.driver import Driver, counted, opened_to_write, started
from tests.file.sealed_stores import (
    SMALL,
    GatedDisk,
    Model,
    check_answers,
    check_facts,
    commit_some,
    damage_run,
    forget_blocks,
    runs_of,
    settled,
)


@pytest.mark.parametrize("step", range(7))
@pytest.mark.parametrize("writer_steps", [1, 2, 3])
@pytest.mark.parametrize(
    ("way", "expected"),
    [
        (lambda segment: list(segment.starts(1, 2)), [0, 100, 300]),
        (lambda segment: segment.spans((2, 1)), [(100, 300), (0, 100)]),
        (lambda segment: segment.span(2), (100, 300)),
    ],
)
def test_lines_that_are_added_while_a_thread_looks_up_the_last_ones(
    way: Callable[[Segment], object], expected: object, step: int, writer_steps: int
) -> None:
    """At each access of the thread, some of the steps that adding takes are done, and the rest before the next."""
    reads = 0
    watching = False
    places = LinePlaces(1)
    pending: list[Callable[[], None]] = [
        lambda: places.extend([300, 400]),
        lambda: setattr(segment, "last_event_id", 4),
        lambda: setattr(segment, "end", 500),
    ]

    class Shared(Segment):
        def __getattribute__(self, name: str) -> Any:
            nonlocal reads, watching
            if watching and name in ("end", "last_event_id", "places"):
                watching = False
                reads += 1
                if reads >= step:
                    for _ in range(min(len(pending), writer_steps if reads == step else 3)):
                        pending.pop(0)()
                watching = True
            return super().__getattribute__(name)

    segment: Segment = Shared("/s", "id", 1)
    segment.places = places
    segment.add([0, 100], 300)
    watching = True
    assert way(segment) == expected


async def test_a_version_that_was_looked_up_before_a_commit_is_not_remembered_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where so many other streams came in between that the newer one was forgotten."""
    monkeypatch.setattr(index_module, "VERSIONS_MAX", 1)
    disk = GatedDisk(cold=True)
    engine, driver = await started("/s", disk, **SMALL)
    for stream_id in ("first", "second", "third", "fourth") * 3:
        await driver.commit(counted(4, stream_id))
    await settled(engine)
    disk.hold("aiostore-read")
    asked = asyncio.create_task(engine.facts(Question(("first", "second"))))
    await disk.until_held("aiostore-read")
    await driver.commit(counted(1, "second"), counted(1, "third"), counted(1, "fourth"))
    await driver.commit(counted(1, "third"))
    await driver.commit(counted(1, "fourth"))
    disk.let_go("aiostore-read")
    facts = await asked
    assert facts.versions["first"] == 12
    assert facts.versions["second"] in (12, 13)
    for stream_id in ("second", "first", "third", "fourth"):
        assert (await engine.facts(Question((stream_id,)))).versions[stream_id] == driver.versions[stream_id]
    await engine.aclose()


@pytest.mark.parametrize("seed", range(6))
async def test_versions_are_right_however_few_are_remembered(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "VERSIONS_MAX", 2)
    dice = random.Random(seed)
    disk = GatedDisk(cold=True)
    engine, driver = await started("/s", disk, **SMALL)
    streams = [f"s{n}" for n in range(8)]
    history = [dict.fromkeys(streams, 0)]  # by event_id

    async def appending() -> None:
        for _ in range(150):
            plan = await driver.commit(*(counted(dice.choice((1, 1, 3)), dice.choice(streams)) for _ in range(2)))
            for commit in plan.commits:
                for event in commit.events:
                    history.append({**history[-1], event.stream_id: event.version})
            for _ in range(dice.randrange(3)):
                await asyncio.sleep(0)

    async def asking() -> None:
        while not done.is_set():
            some = dice.sample(streams, 3)
            facts = await engine.facts(Question(some))
            now = len(history) - 1
            for stream_id in some:
                assert history[facts.head][stream_id] <= facts.versions[stream_id] <= history[now][stream_id]
            await asyncio.sleep(0)

    done = asyncio.Event()
    askers = [asyncio.create_task(asking()) for _ in range(4)]
    await appending()
    done.set()
    await asyncio.gather(*askers)
    assert (await engine.facts(Question(streams))).versions == history[-1]
    await engine.aclose()
    assert disk.held == 0
    writer = opened_to_write(disk)
    writer.close()


async def test_nothing_of_the_index_is_waited_for_in_the_loop() -> None:
    """There, runs are only read where that takes no waiting; not even are their files closed."""
    in_loop: list[str] = []
    opened: set[int] = set()
    loop_thread = threading.get_ident()

    class Told(GatedDisk):
        def note(self, what: str) -> None:
            if threading.get_ident() == loop_thread:
                in_loop.append(what)

        def open_read(self, path: str) -> int:
            file = super().open_read(path)
            if path.endswith(".idx"):
                opened.add(file)
                self.note("open_read")
            return file

        def open_write(self, path: str, *, exclusive: bool = False) -> int:
            if ".idx" in path:
                self.note("open_write")
            return super().open_write(path, exclusive=exclusive)

        def read(self, file: int, size: int, offset: int) -> bytes:
            if file in opened:
                self.note("read")
            return super().read(file, size, offset)

        def close(self, file: int) -> None:
            if file in opened:
                self.note("close")
                opened.discard(file)
            super().close(file)

    disk, model = Told(), Model()
    engine, driver = await started("/s", disk, **SMALL)
    for n in range(8):
        if n == 4:
            await engine.aclose()
            engine, driver = await started("/s", disk, **SMALL)
        disk.cold = n % 2 == 0
        await commit_some(driver, model, random.Random(n), 20)
        forget_blocks(engine)
        await check_facts(engine, model)
    damage_run(engine, disk, runs_of(engine)[0])
    await check_answers(engine, model, pages=(500,))
    await settled(engine)
    await engine.aclose()
    gc.collect()
    assert opened == set()
    assert in_loop == []


class ColdDisk(GatedDisk):
    """A disk with nothing in memory that notes, on the reading threads, what is asked for ahead and what is read."""

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        super().__init__(files, cold=True)
        self.noted: list[tuple[str, int, int]] = []

    def prefetch(self, file: int, start: int, end: int) -> None:
        assert threading.current_thread().name.startswith("aiostore-read"), "it may take the device's time"
        self.noted.append(("prefetch", file, start))

    def read(self, file: int, size: int, offset: int) -> bytes:
        if threading.current_thread().name.startswith("aiostore-read"):
            self.noted.append(("read", file, offset))
        return super().read(file, size, offset)


async def scattered_store(disk: MemoryDisk) -> None:
    """Events of two streams in turn, in several runs and in the part in memory."""
    engine, driver = await started("/s", disk, **SMALL)
    while len(runs_of(engine)) < 3:
        await driver.commit(counted(1, "a"), counted(1, "b"))
        await settled(engine)
    await engine.aclose()


async def cold_store() -> tuple[ColdDisk, FileEngine, Driver]:
    """That store, opened where nothing is in memory."""
    made = MemoryDisk()
    await scattered_store(made)
    disk = ColdDisk(made.files())
    return disk, *await started("/s", disk, **SMALL)


@pytest.mark.parametrize("backwards", [False, True])
async def test_a_page_that_is_not_in_memory_takes_one_trip_and_is_asked_of_the_device_at_once(
    backwards: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, engine, driver = await cold_store()
    forget_blocks(engine)
    disk.noted.clear()
    trips = 0
    loop = asyncio.get_running_loop()
    run_in_executor = loop.run_in_executor

    def counted_trip(*args: Any) -> Any:
        nonlocal trips
        trips += 1
        return run_in_executor(*args)

    monkeypatch.setattr(loop, "run_in_executor", counted_trip)
    selection = Selection(up_to=driver.head, stream_id="a", backwards=backwards)
    page = await engine.read(selection, None, 500)
    versions = range(1, driver.versions["a"] + 1)
    assert [event.version for event in page.events] == list(versions[::-1] if backwards else versions)
    assert trips == 1
    # What is read was asked for before: of the runs the keys, then the offsets, and then all lines.
    kinds = [kind for kind, _ in groupby(noted[0] for noted in disk.noted)]
    assert kinds == ["prefetch", "read"] * 3
    asked: set[tuple[int, int]] = set()
    for kind, file, start in disk.noted:
        if kind == "prefetch":
            asked.add((file, start))
        else:
            assert (file, start) in asked
    await engine.aclose()
    assert disk.held == 0


async def test_what_is_in_memory_is_not_asked_of_the_device() -> None:
    disk, engine, driver = await cold_store()
    selection = Selection(up_to=driver.head, stream_id="a")
    await engine.read(selection, None, 500)
    disk.noted.clear()
    await engine.read(selection, None, 500)  # the blocks of the index are held now
    assert {kind for kind, _ in groupby(noted[0] for noted in disk.noted)} == {"prefetch", "read"}
    assert not {file for _, file, _ in disk.noted} & {run._file for run in runs_of(engine)}
    disk.cold = False
    disk.noted.clear()
    await engine.read(selection, None, 500)
    assert disk.noted == []
    await engine.aclose()


async def test_of_a_large_page_only_so_much_is_asked_of_the_device_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_files, "PREFETCHED_MAX", 3)
    monkeypatch.setattr(pages_module, "PREFETCHED_MAX", 2)
    monkeypatch.setattr(segment_files, "PIECES_AT_ONCE", 5)
    disk, engine, driver = await cold_store()
    forget_blocks(engine)
    disk.noted.clear()
    page = await engine.read(Selection(up_to=driver.head, stream_id="a"), None, 500)
    assert len(page.events) == driver.versions["a"]
    runs = {run._file for run in runs_of(engine)}
    keys = next(place for place, noted in enumerate(disk.noted) if noted[0] == "read")
    assert keys == len(runs), "one block of each, for one term"
    waiting: set[tuple[int, int]] = set()
    most = {True: 0, False: 0}
    for kind, file, start in disk.noted[2 * keys :]:
        if kind == "prefetch":
            waiting.add((file, start))
        else:
            waiting.discard((file, start))  # one that is alone is just read
        most[file in runs] = max(most[file in runs], len(waiting))
    assert not waiting
    assert most == {True: 2, False: 3}
    await engine.aclose()
    assert disk.held == 0


@pytest.mark.parametrize("bad", ["open", "read"])
@pytest.mark.parametrize("backwards", [False, True])
async def test_what_comes_before_a_line_that_a_cold_disk_cannot_read_is_served(bad: str, backwards: bool) -> None:
    made = MemoryDisk()
    await scattered_store(made)

    class Failing(ColdDisk):
        path = ""

        def open_read(self, path: str) -> int:
            if path == self.path and bad == "open":
                raise OSError(errno.EIO, "bad sector")
            return super().open_read(path)

        def read(self, file: int, size: int, offset: int) -> bytes:
            if self.path and self._opened[file] is self.inodes[self.path]:
                raise OSError(errno.EIO, "bad sector")
            return super().read(file, size, offset)

    disk = Failing(made.files())
    engine, driver = await started("/s", disk, **SMALL)
    assert engine._opened is not None
    engine._opened.files.close()  # it is opened again when it is read
    segment = engine._opened.index.segments[1]
    disk.path = segment.path
    selection = Selection(up_to=driver.head, stream_id="a", backwards=backwards)
    page = await engine.read(selection, None, 500)
    beside = segment.last_event_id if backwards else segment.first_event_id
    assert page.events
    assert page.cursor is not None
    assert all(event.event_id > beside if backwards else event.event_id < beside for event in page.events)
    assert abs(page.cursor - beside) <= 2, "all before it"
    with pytest.raises(StoreCorrupt, match="cannot be read"):
        await engine.read(selection, page.cursor, 500)
    await engine.aclose()
    assert disk.held == 0


def test_the_place_of_an_event_that_is_missing_is_read_as_no_bytes() -> None:
    disk = MemoryDisk({"/s/00000000000000000001.jsonl": b"x" * 3999 + b"\n"})
    spans = [(0, 500), (2000, 2000), (3500, 4000)]
    piece = Piece(Segment("/s", "id", 1), (1, 2, 3), 0, 4000, spans)
    files = segment_files.SegmentFiles(disk, cast("Executor", None))
    (lines,), error = files.read_waiting([piece])
    assert error is None
    assert [len(line) for line in lines] == [499, 0, 499]
    files.close()
    assert disk.held == 0
