"""Everything at once: appends, reads, subscriptions and lookups on threads, while sources are exchanged."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
from array import array
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from aiostore import AppendCondition, AppendConditionFailed, Event, EventStore, NewEvent, Query
from aiostore.engine import Selection
from aiostore.engines.file import index as index_module
from aiostore.engines.file.blocks import Blocks
from aiostore.engines.file.disk import Disk
from aiostore.engines.file.engine import FileEngine
from aiostore.engines.file.index import Part
from aiostore.engines.file.run import Run
from aiostore.engines.file.sealed import open_runs
from aiostore.engines.postings import Kind
from tests.file.disks import MemoryDisk
from tests.file.driver import started
from tests.file.sealed_stores import (
    QUERIES,
    SMALL,
    STREAMS,
    GatedDisk,
    Model,
    check_answers,
    commit_some,
    damage_run,
    index_of,
    indexes,
    runs_of,
    sealed_store,
    sealer_of,
    settled,
)


class ColdNowAndThen(MemoryDisk):
    """Half of the reads in the loop find that what they want is not in memory, and go to a thread."""

    dice = random.Random(5)

    def read_nowait(self, file: int, size: int, offset: int) -> bytes | None:
        return None if self.dice.random() < 0.5 else super().read_nowait(file, size, offset)


class RealColdNowAndThen(Disk):
    """The same on the real disk."""

    dice = random.Random(5)

    def read_nowait(self, file: int, size: int, offset: int) -> bytes | None:
        return None if self.dice.random() < 0.5 else super().read_nowait(file, size, offset)


def open_files(directory: Path) -> list[str]:
    found: list[str] = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [path for path in found if str(directory) in path]


Asked = tuple[Selection, int, list[Event]]


class Everything:
    """Tasks that append and read at once, and what they saw, to be compared with what there was in the end."""

    def __init__(self, store: EventStore, engine: FileEngine, seed: int) -> None:
        self.store = store
        self.engine = engine
        self.dice = random.Random(seed)
        self.stored: dict[int, Event] = {}
        self.keys: dict[tuple[str, str], list[Event]] = {}
        self.asked: list[Asked] = []
        self.subscribed: list[tuple[Query | None, int, list[Event]]] = []
        self.appending = 3
        self.files_max = 0

    def some_news(self) -> list[NewEvent]:
        dice = self.dice
        return [
            NewEvent(
                dice.choice("AAB"),
                {"n": n, "pad": "p" * dice.randrange(80)},
                tags=dice.sample(["x", "y"], dice.randrange(3)),
            )
            for n in range(dice.choice((1, 1, 2, 3)))
        ]

    async def append(self, number: int, count: int) -> None:
        dice, store = self.dice, self.store
        for n in range(count):
            stream_id = dice.choice(STREAMS)
            key = f"{number}-{n}" if dice.random() < 0.4 else None
            events = await store.append_batch(stream_id, self.some_news(), idempotency_key=key)
            self.stored.update((event.event_id, event) for event in events)
            if key is not None:
                self.keys[stream_id, key] = events
            if self.keys and dice.random() < 0.4:
                (stream_id, key), events = dice.choice(list(self.keys.items()))
                news = [NewEvent(event.event_type, event.data, tags=event.tags) for event in events]
                assert await store.append_batch(stream_id, news, idempotency_key=key) == events
            if dice.random() < 0.2:
                query = dice.choice(QUERIES)
                matches = [event for _, event in sorted(self.stored.items()) if query.matches(event)]
                if matches:
                    with pytest.raises(AppendConditionFailed) as caught:
                        await store.append("a", "A", {}, condition=AppendCondition(query))
                    assert caught.value.event_id <= matches[0].event_id
        self.appending -= 1
        if not self.appending:  # the subscriptions all get this one
            event = await store.append("a", "A", {}, tags=["x", "y"])
            self.stored[event.event_id] = event

    async def read(self) -> None:
        dice = self.dice
        while self.appending:
            backwards = dice.random() < 0.5
            if dice.random() < 0.5:
                stream_id, low = dice.choice(STREAMS), dice.randrange(1, 9)
                high = dice.choice((None, low + dice.randrange(20)))
                reader = self.store.read_stream(stream_id, from_version=low, to_version=high, backwards=backwards)
                found = [event async for event in reader]
                selection = Selection(reader.head, 0, stream_id, low, high, backwards=backwards)
            else:
                query = dice.choice(QUERIES)
                after = dice.randrange(len(self.stored) + 1)
                reader = self.store.read_all(after=after, query=query, backwards=backwards)
                found = [event async for event in reader]
                selection = Selection(reader.head, after, query=query, backwards=backwards)
            self.asked.append((selection, reader.head, found))
            await asyncio.sleep(0)

    async def subscribe(self, query: Query | None, count: int) -> None:
        """Begin again and again from somewhere, which is history mostly, and take some."""
        while self.appending:
            after = self.dice.randrange(len(self.stored) + 1)
            found: list[Event] = []
            async with self.store.subscribe(query=query, after=after, queue_size=4) as subscription:
                async for event in subscription:
                    found.append(event)
                    if len(found) == count or not self.appending:
                        break
            self.subscribed.append((query, after, found))

    async def watch_files(self, count: Callable[[], int]) -> None:
        while self.appending:
            self.files_max = max(self.files_max, count())
            await asyncio.sleep(0)

    async def run(self, count: Callable[[], int]) -> Model:
        async with asyncio.TaskGroup() as group:
            for number in range(self.appending):
                group.create_task(self.append(number, 60))
            for _ in range(4):
                group.create_task(self.read())
            for query in (None, QUERIES[1], QUERIES[4]):
                group.create_task(self.subscribe(query, 30))
            group.create_task(self.watch_files(count))
        model = Model([event for _, event in sorted(self.stored.items())], self.keys)
        assert [event.event_id for event in model.events] == list(range(1, len(model.events) + 1))
        for selection, head, found in self.asked:
            assert found == model.up_to(head).selected(selection), selection
        for query, after, found in self.subscribed:
            expected = model.selected(Selection(len(model.events), after, query=query))
            assert found == expected[: len(found)]
        return model


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("seed", range(3))
async def test_answers_are_right_while_sources_are_exchanged(seed: int, real: bool, tmp_path: Path) -> None:
    disk = RealColdNowAndThen() if real else ColdNowAndThen()
    engine = FileEngine(tmp_path / "s" if real else "/s", disk=disk, **SMALL)
    store = await EventStore.open(engine)

    def count() -> int:
        if isinstance(disk, MemoryDisk):
            return disk.held
        return len(open_files(tmp_path))

    everything = Everything(store, engine, seed)
    model = await everything.run(count)
    assert len(everything.asked) > 20
    assert len(everything.subscribed) > 3
    await settled(engine)
    assert len(runs_of(engine)) <= 12
    segments = len(index_of(engine).segments)
    assert everything.files_max <= segments + 40
    await check_answers(engine, model, pages=(500,))
    await store.aclose()
    assert count() == 0


async def test_a_run_that_vanishes_while_a_reader_looks_for_runs_is_looked_for_where_it_went() -> None:
    made = MemoryDisk()
    await sealed_store(made)
    manifest = index_of_store(made)
    before = [run.path for run in open_runs(made, "/s", manifest, Blocks())[0]]

    class Merging(MemoryDisk):
        looked = 0

        def open_read(self, path: str) -> int:
            if path == before[2] and self.looked < 2:
                self.looked += 1
                raise FileNotFoundError(2, "merged", path)
            return super().open_read(path)

    disk = Merging(made.files())
    runs, useless = open_runs(disk, "/s", manifest, Blocks())
    assert disk.looked == 2
    assert [run.path for run in runs] == before
    assert useless == []
    assert disk.held == len(before)


def index_of_store(disk: MemoryDisk) -> str:
    from aiostore.engines.file.format import decode_manifest

    return decode_manifest(disk.files()["/s/aiostore.json"]).store_id


async def test_what_was_made_anew_is_dropped_where_the_writers_has_come_in_its_place() -> None:
    """Opened to read, the index follows the writer's, also while a damaged run of it is made anew in memory."""
    made = MemoryDisk()
    model = await sealed_store(made)
    disk = GatedDisk(made.files())
    engine, _ = await started("/s", disk, **{**SMALL, "mode": "r"})
    run = runs_of(engine)[0]
    damage_run(engine, disk, run)
    disk.hold("aiostore-merge")
    asked = asyncio.create_task(check_answers(engine, model, pages=(500,)))
    await disk.until_held("aiostore-merge")
    disk.inodes[run.path].data[:] = indexes(made)[run.path]
    whole = Run.open(disk, run.path, index_of_store(made), engine._blocks)
    index_of(engine).exchange([run], [whole])
    disk.let_go("aiostore-merge")
    await asked
    assert runs_of(engine)[0] is whole
    assert not sealer_of(engine)._mending
    await engine.aclose()
    assert disk.held == 0


async def test_where_no_thread_can_be_started_the_index_is_written_later(caplog: pytest.LogCaptureFixture) -> None:
    disk, model, dice = MemoryDisk(), Model(), random.Random(1)
    engine, driver = await started("/s", disk, **SMALL)
    sealer = sealer_of(engine)

    def submit(*_: Any) -> Any:
        raise RuntimeError("can't start new thread")

    for threads in (sealer._seals, sealer._merges):
        threads.submit = submit  # type: ignore[method-assign, assignment]
    await commit_some(driver, model, dice, 20)
    for _ in range(3):
        await asyncio.sleep(0)
    assert "can't start new thread" in caplog.text
    assert not runs_of(engine)
    for threads in (sealer._seals, sealer._merges):
        del threads.submit
    await commit_some(driver, model, dice, 20)
    await settled(engine)
    assert len(runs_of(engine)) == len(index_of(engine).sources) - 1
    await check_answers(engine, model, pages=(500,))
    await engine.aclose()
    assert disk.held == 0


# --- what is no longer used ---


def test_a_part_is_taken_apart_elsewhere_and_not_where_it_is_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = 0

    def pause() -> None:
        nonlocal pauses
        pauses += 1

    monkeypatch.setattr(index_module, "give_way", pause)
    monkeypatch.setattr(index_module, "TAKEN_APART", 10)
    aside: list[Callable[[], object]] = []
    part = Part(1)
    for n in range(1, 101):
        part.add_key("s", f"k{n}", n)
    terms: dict[str, array[int]] = part.by_kind[Kind.KEY]
    part.aside = aside.append
    del part
    assert len(terms) == 100, "it is as it was for those who still look into it"
    assert len(aside) == 1
    aside.pop()()
    assert not terms
    assert pauses == 10


@pytest.mark.parametrize("mode", ["rw", "r"])
async def test_parts_and_files_are_freed_in_a_thread(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()  # those of other tests
    freed: list[str] = []
    take_apart = index_module._take_apart

    def noted(postings: Any) -> None:
        freed.append(threading.current_thread().name)
        take_apart(postings)

    monkeypatch.setattr(index_module, "_take_apart", noted)
    made = MemoryDisk()
    model = await sealed_store(made)
    sealed = len(freed)
    assert sealed > 20
    engine, _ = await started("/s", made, **{**SMALL, "mode": mode})
    damage_run(engine, made, runs_of(engine)[0])
    await check_answers(engine, model, pages=(500,))
    await settled(engine)
    await engine.aclose()
    gc.collect()
    assert made.held == 0
    assert {name.rpartition("_")[0] for name in freed} == {"aiostore-seal"}
    assert len(freed) >= sealed
