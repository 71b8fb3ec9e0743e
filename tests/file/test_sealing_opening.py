"""A store whose index on disk is missing, damaged or not its own: it opens, answers as before, and makes it anew."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from typing import Any
from zlib import crc32

import pytest

from aiostore.engine import Selection
from aiostore.engines.file import opening, sealed
from aiostore.engines.file.engine import FileEngine
from aiostore.engines.file.format import CRC_BYTES, decode_manifest, line_seed, segment_first
from aiostore.errors import StoreCorrupt
from aiostore.events import Event
from aiostore.query import Query
from tests.file.disks import MemoryDisk, WatchedDisk
from tests.file.driver import everything, started
from tests.file.sealed_stores import (
    SMALL,
    Model,
    check_answers,
    check_facts,
    flipped,
    index_of,
    indexes,
    log_of,
    sealed_store,
    settled,
)

READING = {**SMALL, "mode": "r"}


async def opened_again(
    disk: MemoryDisk, model: Model, check: Callable[[FileEngine, Model], Any] = check_answers, **options: Any
) -> None:
    engine, _ = await started("/s", disk, **{**SMALL, **options})
    await check(engine, model)
    await settled(engine)
    await check_facts(engine, model)
    await engine.aclose()
    assert disk.held == 0


async def test_a_store_of_sealed_segments_answers_as_its_log() -> None:
    disk = MemoryDisk()
    model = await sealed_store(disk)
    assert disk.held == 0
    before = disk.files()
    assert 4 < len(indexes(disk)) < 12
    await opened_again(disk, model)
    await opened_again(disk, model, mode="r")
    assert disk.files() == before


async def test_each_index_that_is_missing_is_made_anew_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    disk = MemoryDisk()
    model = await sealed_store(disk)
    before = disk.files()
    names = list(indexes(disk))
    for missing in [[name] for name in names] + [names, names[::2], names[1::2]]:
        some = MemoryDisk({path: data for path, data in before.items() if path not in missing})
        await opened_again(some, model, mode="r")
        assert some.files() == {path: data for path, data in before.items() if path not in missing}
        await opened_again(some, model)
        assert some.files() == before


@pytest.mark.parametrize("what", ["empty", "header", "half", "a byte less", "a byte more", "nonsense"])
async def test_each_index_that_is_not_whole_is_made_anew(what: str) -> None:
    disk = MemoryDisk()
    model = await sealed_store(disk)
    before = disk.files()
    change: dict[str, Callable[[bytes], bytes]] = {
        "empty": lambda data: b"",
        "header": lambda data: data[:512],
        "half": lambda data: data[: len(data) // 2],
        "a byte less": lambda data: data[:-1],
        "a byte more": lambda data: data + b"\n",
        "nonsense": lambda data: b"x" * len(data),
    }
    for path, data in indexes(disk).items():
        changed = MemoryDisk({**before, path: change[what](data)})
        await opened_again(changed, model, mode="r")
        await opened_again(changed, model)
        assert changed.files() == before


async def test_whatever_byte_of_an_index_is_flipped_the_answers_are_right_and_it_is_put_right() -> None:
    """Of the blocks some bytes, of everything else all. The block that a lookup meets damaged is mended then."""
    disk = MemoryDisk()
    model = await sealed_store(disk, count=60)
    before = disk.files()
    path = min(indexes(disk))
    data = before[path]
    used = [place for place in range(len(data)) if data[place] and data[place] != ord(" ")]
    places = [place for place in used if place < 512 or place > len(data) - 40][::3] + used[:: max(1, len(used) // 60)]
    for place in {*places, len(data) - 1, 511, 4095}:
        changed = MemoryDisk({**before, path: flipped(data, place, place % 8)})
        mode = "r" if place % 2 else "rw"
        engine, _ = await started("/s", changed, **{**SMALL, "mode": mode})
        await check_answers(engine, model, pages=(500,))
        await settled(engine)
        await engine.aclose()
        assert changed.held == 0, (place, mode)
        assert changed.files() == ({**before, path: flipped(data, place, place % 8)} if mode == "r" else before)


async def test_an_index_of_another_store_or_of_other_segments_is_not_used() -> None:
    disk, other = MemoryDisk(), MemoryDisk()
    model = await sealed_store(disk)
    await sealed_store(other, seed=2)
    before = disk.files()
    for path in indexes(disk):
        foreign = indexes(other).get(path) or min(indexes(other).values())
        changed = MemoryDisk({**before, path: foreign})
        await opened_again(changed, model, check_facts)
        assert changed.files() == before
    # Of a store with this id, but with other events: as if the log had been put back from a backup without the index.
    again = MemoryDisk({path: data for path, data in log_of(disk).items() if path.endswith(".json")})
    await sealed_store(again, seed=3)
    mixed = MemoryDisk({**before, **indexes(again)})
    await opened_again(mixed, model)
    assert mixed.files() == before


async def test_an_index_whose_segment_ends_in_another_line_of_the_same_place_is_made_anew(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As where a part of the log was put back from elsewhere: what the index says of it may be wrong."""
    disk = MemoryDisk()
    await sealed_store(disk)
    before = disk.files()
    path = min(log for log in before if log.endswith(".jsonl"))
    last = before[path].splitlines()[-1]
    first = segment_first(path.rpartition("/")[2])
    assert first is not None
    text = last[:-CRC_BYTES].replace(b'"event_type":"A"', b'"event_type":"Z"')
    text = text.replace(b'"event_type":"B"', b'"event_type":"Z"')
    seed = line_seed(decode_manifest(before["/s/aiostore.json"]).store_id, first)
    other = b'%b,"crc":"%08x"}' % (text, crc32(text, seed))
    assert len(other) == len(last)
    disk = MemoryDisk({**before, path: before[path].replace(last, other)})
    engine, _ = await started("/s", disk, **SMALL)
    found = await everything(engine, query=Query.where(types=["Z"]))
    assert [event.event_type for event in found] == ["Z"]
    assert "is another" in caplog.text
    await engine.aclose()
    assert indexes(disk) != indexes(MemoryDisk(before))


async def test_what_a_crash_leaves_of_a_merge_is_cleared_away() -> None:
    """Temporary files, and the runs that were merged beside the one that took their place."""
    disk = MemoryDisk()
    model = await sealed_store(disk)
    before = disk.files()
    small = MemoryDisk(log_of(disk))
    engine, _ = await started("/s", small, **SMALL)
    every: dict[str, bytes] = {}
    await engine.aclose()
    narrow = MemoryDisk(log_of(disk))
    writer = opening.open_to_write(narrow, "/s", opening.Options(True, 1000, 1), lambda: None)
    every = indexes(narrow)  # each segment's own
    writer.close()
    assert len(every) > 2 * len(indexes(disk))
    for left in (every, dict(list(every.items())[::2])):
        changed = MemoryDisk({**left, **before, "/s/00000000000000000001.idx.tmp": b"x", "/s/99999.idx.tmp": b"mine"})
        await opened_again(changed, model)
        assert changed.files() == {**before, "/s/99999.idx.tmp": b"mine"}


async def test_making_everything_anew_is_told_and_takes_bounded_memory_and_files(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class CountingDisk(MemoryDisk):
        runs_max = 0

        def open_read(self, path: str) -> int:
            file = super().open_read(path)
            runs = [self.inodes[path] for path in self.inodes if path.endswith(".idx")]
            self.runs_max = max(self.runs_max, sum(inode in runs for inode in [*self._opened.values()]))
            return file

    disk = MemoryDisk()
    model = await sealed_store(disk, count=400)
    before = disk.files()
    monkeypatch.setattr(opening, "PROGRESS_SECONDS", -1.0)
    monkeypatch.setattr(sealed, "RUNS_OPEN_MAX", 8)
    parts: list[int] = []
    original = sealed.seal

    def seal(disk: Any, directory: Any, store_id: Any, part: Any, *rest: Any) -> Any:
        parts.append(len(part.segments))
        return original(disk, directory, store_id, part, *rest)

    monkeypatch.setattr(opening, "seal", seal)
    bare = CountingDisk(log_of(disk))
    with caplog.at_level(logging.INFO, "aiostore"):
        await opened_again(bare, model, check_facts)
    assert {path: data for path, data in bare.files().items() if path != "/s/lock"} == {
        path: data for path, data in before.items() if path != "/s/lock"
    }
    assert len(parts) > 60
    assert set(parts) == {1}, "one segment at a time is in memory"
    assert caplog.text.count("the index is made anew, up to event") == len(parts)
    assert 8 < bare.runs_max <= 16


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
async def test_a_store_opens_where_its_index_cannot_be_written(number: int, caplog: pytest.LogCaptureFixture) -> None:
    made = MemoryDisk()
    model = await sealed_store(made)
    before = made.files()
    for kept in ({}, dict(list(indexes(made).items())[::2])):

        class NoIndex(MemoryDisk):
            full = True

            def open_write(self, path: str, *, exclusive: bool = False) -> int:
                if self.full and ".idx" in path:
                    raise OSError(number, "no")
                return super().open_write(path, exclusive=exclusive)

        disk = NoIndex({**log_of(made), **kept})
        caplog.clear()
        engine, _ = await started("/s", disk, **SMALL)
        await check_answers(engine, model, pages=(500,))
        await settled(engine)
        assert 1 <= caplog.text.count("cannot be brought up to date now") <= 3
        disk.full = False
        sealer = engine._opened.sealer  # type: ignore[union-attr]
        sealer.look()
        await settled(engine)
        await check_answers(engine, model, pages=(500,))
        await engine.aclose()
        assert disk.held == 0
        assert indexes(disk) == indexes(made)
    assert made.files() == before


async def test_opening_that_is_cancelled_while_the_index_is_made_anew_leaves_nothing_held_and_goes_on_later() -> None:
    made = MemoryDisk()
    model = await sealed_store(made, count=60)
    files = log_of(made)
    at = 0
    while True:
        at += 3
        disk = WatchedDisk(files)
        engine = FileEngine("/s", disk=disk, **SMALL)
        with disk.calls.hold(at):
            task = asyncio.create_task(engine.open())
            held = asyncio.create_task(asyncio.to_thread(disk.calls.wait_until_held))
            await asyncio.wait([task, held], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                disk.calls._entered.set()
                await held
                break
            task.cancel()
            await asyncio.sleep(0)
            disk.calls.let_go()
            await asyncio.wait([task])
        assert task.cancelled()
        assert disk.held == 0
        assert not [path for path in disk.files() if path.endswith(".tmp")]
        await opened_again(disk, model, check_facts)
        assert indexes(disk) == indexes(made)
    assert at > 60
    await engine.aclose()


# --- damage of the segments themselves ---


async def test_what_opening_sees_of_a_damaged_sealed_segment_refuses_to_write() -> None:
    """Its size and its last line are looked at, whether or not it has an index."""
    disk = MemoryDisk()
    model = await sealed_store(disk)
    before = disk.files()
    paths = sorted(path for path in before if path.endswith(".jsonl"))
    for path in paths[:-1:5]:
        data = before[path]
        changes = {
            "cut": data[:-5],
            "a line less": data[: data[:-1].rindex(b"\n") + 1],
            "more": data + b"{}\n",
            "empty": b"",
            "last line": flipped(data, len(data) - 30),
        }
        for what, changed in changes.items():
            for idx in (True, False):
                files = {**(before if idx else log_of(disk)), path: changed}
                damaged = MemoryDisk(files)
                engine = FileEngine("/s", disk=damaged, **SMALL)
                with pytest.raises(StoreCorrupt) as caught:
                    await engine.open()
                assert caught.value.path == path, what
                assert caught.value.offset <= len(data)
                if what != "more":
                    first = int(path[-26:-6])
                    assert first <= caught.value.first_event_id <= caught.value.last_event_id, what
                del caught
                assert damaged.held == 0
                assert log_of(damaged) == log_of(MemoryDisk(files))
                reader, _ = await started_to_read(damaged)
                await reader.aclose()
                assert damaged.held == 0
    assert disk.files() == before
    assert len(model.events) > 100


async def started_to_read(disk: MemoryDisk) -> tuple[FileEngine, None]:
    engine = FileEngine("/s", disk=disk, **READING)
    await engine.open()
    return engine, None


async def test_a_flipped_bit_inside_is_raised_by_the_read_that_meets_it_and_never_served() -> None:
    disk = MemoryDisk()
    model = await sealed_store(disk)
    before = disk.files()
    paths = sorted(path for path in before if path.endswith(".jsonl"))
    for number, path in enumerate(paths[:-1:7]):
        first, data = int(path[-26:-6]), before[path]
        lines = data.splitlines(keepends=True)
        if len(lines) < 3:
            continue
        lost, offset = first + 1, len(lines[0])
        files = {**before, path: flipped(data, offset + 20 + number, number % 8)}
        for mode in ("rw", "r"):
            damaged = MemoryDisk(files)
            engine = FileEngine("/s", disk=damaged, **{**SMALL, "mode": mode})
            await engine.open()
            event = model.events[lost - 1]
            ways: list[dict[str, Any]] = [{}, {"stream_id": event.stream_id}, {"backwards": True}]
            for bounds in ways:
                found, error = await read_until_error(engine, **bounds)
                expected = model.selected(Selection(**{"up_to": len(model.events), **bounds}))
                assert found == expected[: expected.index(event)]
                assert error is not None
                assert (error.path, error.offset, error.first_event_id, error.last_event_id) == (
                    path,
                    offset,
                    lost,
                    lost,
                )
            others = [s for s in ("a", "b", "c-1") if s != event.stream_id]
            for stream_id in others:
                found, error = await read_until_error(engine, stream_id=stream_id)
                assert found == [e for e in model.events if e.stream_id == stream_id]
                assert error is None
            await engine.aclose()
            assert damaged.files() == files
        bare = MemoryDisk({name: content for name, content in files.items() if ".idx" not in name})
        engine = FileEngine("/s", disk=bare, **SMALL)
        with pytest.raises(StoreCorrupt) as caught:
            await engine.open()
        assert (caught.value.path, caught.value.offset, caught.value.first_event_id) == (path, offset, lost)


async def read_until_error(engine: FileEngine, **bounds: Any) -> tuple[list[Event], StoreCorrupt | None]:
    found: list[Event] = []
    cursor = None
    selection = Selection(**{"up_to": index_of(engine).head.event_id, **bounds})
    while True:
        try:
            page = await engine.read(selection, cursor, 5)
        except StoreCorrupt as error:
            return found, error
        found += page.events
        cursor = page.cursor
        if cursor is None:
            return found, None
