"""Stores of which nearly everything is sealed, and what they must answer by the plainest index there is."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiostore.engine import Engine, Plan, Question, Selection
from aiostore.engines.file.disk import Disk
from aiostore.engines.file.engine import FileEngine
from aiostore.engines.file.index import Index
from aiostore.engines.file.run import Run
from aiostore.engines.file.sealing import Sealer
from aiostore.events import Event
from aiostore.query import AppendCondition, Query, QueryItem
from tests.file.disks import MemoryDisk
from tests.file.driver import Driver, New, started

SMALL: dict[str, Any] = {"segment_bytes": 1000, "part_bytes_min": 1}
"""A segment holds a few events, and each gets a run of its own."""

STREAMS = ("a", "b", "c-1", "c-2", "late")
QUERIES = [
    Query(),
    Query.where(types=["A"]),
    Query.where(types=["A", "B"]),
    Query.where(tags=["x"]),
    Query.where(tags=["x", "y"]),
    Query.where(types=["B"], tags=["y"]),
    Query.where(types=["nowhere"]),
    Query(QueryItem(types=("A",), tags=("x",)), QueryItem(tags=("rare",)), QueryItem(types=("B",), stream_prefix="c-")),
]


@dataclass
class Model:
    """What was stored: each answer is found by going through all events."""

    events: list[Event] = field(default_factory=list)
    keys: dict[tuple[str, str], list[Event]] = field(default_factory=dict)

    def note(self, plan: Plan) -> None:
        for commit in plan.commits:
            self.events.extend(commit.events)
            if commit.idempotency_key is not None:
                self.keys[commit.events[0].stream_id, commit.idempotency_key] = list(commit.events)

    def up_to(self, head: int) -> Model:
        keys = {key: events for key, events in self.keys.items() if events[-1].event_id <= head}
        return Model(self.events[:head], keys)

    def selected(self, selection: Selection) -> list[Event]:
        found = [
            event
            for event in self.events
            if selection.after < event.event_id <= selection.up_to
            and selection.stream_id in (None, event.stream_id)
            and (selection.stream_id is None or event.version >= selection.from_version)
            and (selection.to_version is None or event.version <= selection.to_version)
            and (selection.query is None or selection.query.matches(event))
        ]
        return found[::-1] if selection.backwards else found

    def version(self, stream_id: str) -> int:
        return sum(event.stream_id == stream_id for event in self.events)


def some_commit(dice: random.Random, number: int) -> list[New] | tuple[str, list[New]]:
    """A commit of one to four events, now and then with a key."""
    news: list[New] = []
    for n in range(dice.choice((1, 1, 1, 2, 4))):
        stream_id = dice.choice(STREAMS[:4] if number < 40 else STREAMS)
        tags = tuple(tag for tag, share in (("x", 0.5), ("y", 0.3), ("rare", 0.02)) if dice.random() < share)
        data = {"n": n, "pad": "p" * dice.randrange(0, 120)}
        news.append((stream_id, dice.choice("AAB"), data, {}, tags))
    return (f"key-{number}", news) if dice.random() < 0.3 else news


async def commit_some(driver: Driver, model: Model, dice: random.Random, count: int) -> None:
    for _ in range(count):
        model.note(await driver.commit(some_commit(dice, len(model.events))))


async def sealed_store(disk: Disk, count: int = 160, seed: int = 1) -> Model:
    """Make a store in ``/s`` with so many commits; it is closed when all that can be merged is."""
    model, dice = Model(), random.Random(seed)
    engine, driver = await started("/s", disk, **SMALL)
    await commit_some(driver, model, dice, count)
    await settled(engine)
    await engine.aclose()
    return model


# --- looking inside ---


def index_of(engine: FileEngine) -> Index:
    assert engine._opened is not None
    return engine._opened.index


def sealer_of(engine: FileEngine) -> Sealer:
    assert engine._opened is not None
    return engine._opened.sealer


def runs_of(engine: FileEngine) -> list[Run]:
    return [source for source in index_of(engine).sources if isinstance(source, Run)]


async def settled(engine: FileEngine) -> None:
    """Wait until there is nothing that is sealed, merged or mended."""
    sealer = sealer_of(engine)
    while sealer._sealing is not None or sealer._merging or sealer._mending:
        for threads in (sealer._seals, sealer._merges):
            await asyncio.wrap_future(threads.submit(int))
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    await asyncio.wrap_future(sealer._seals.submit(int))  # what is no longer used is freed


def indexes(disk: MemoryDisk) -> dict[str, bytes]:
    """The index files, and what was to become some."""
    return {path: data for path, data in disk.files().items() if ".idx" in path}


def log_of(disk: MemoryDisk) -> dict[str, bytes]:
    return {path: data for path, data in disk.files().items() if path.endswith((".jsonl", ".json", "head"))}


def flipped(data: bytes, place: int, bit: int = 0) -> bytes:
    changed = bytearray(data)
    changed[place] ^= 1 << bit
    return bytes(changed)


# --- asking ---


async def read(engine: Engine, selection: Selection, max_events: int = 500) -> list[Event]:
    """All events of the selection, in pages of so many."""
    found: list[Event] = []
    cursor = None
    while True:
        page = await engine.read(selection, cursor, max_events)
        assert len(page.events) <= max_events
        found += page.events
        if page.cursor is None:
            return found
        assert cursor is None or (page.cursor < cursor if selection.backwards else page.cursor > cursor)
        cursor = page.cursor


def selections(model: Model) -> list[Selection]:
    """Selections of all kinds."""
    head = len(model.events)
    found = [Selection(head), Selection(head, after=head // 3), Selection(2 * head // 3, after=head // 3)]
    found += [Selection(head, query=query) for query in QUERIES]
    found += [Selection(2 * head // 3, after=head // 3, query=query) for query in QUERIES[1:]]
    for stream_id in (*STREAMS, "nowhere"):
        version = model.version(stream_id)
        spans = [
            (1, None),
            (2, version),
            (version // 2, None),
            (1, version // 2),
            (version, version),
            (version + 1, None),
        ]
        found += [
            Selection(head, stream_id=stream_id, from_version=max(low, 1), to_version=high)
            for low, high in spans
            if high is None or high >= 1
        ]
        found.append(Selection(head, after=head // 3, stream_id=stream_id))
        found.append(Selection(head, stream_id=stream_id, query=QUERIES[1]))
    return [
        Selection(each.up_to, each.after, each.stream_id, each.from_version, each.to_version, each.query, backwards)
        for each in found
        for backwards in (False, True)
    ]


async def check_answers(engine: Engine, model: Model, pages: Sequence[int] = (7, 500)) -> None:
    """The store answers every question as the model does."""
    for selection in selections(model):
        for max_events in pages:
            assert await read(engine, selection, max_events) == model.selected(selection), (selection, max_events)
    await check_facts(engine, model)


async def check_facts(engine: Engine, model: Model) -> None:
    head = len(model.events)
    facts = await engine.facts(Question((*STREAMS, "nowhere")))
    assert facts.head == head
    assert facts.versions == {stream_id: model.version(stream_id) for stream_id in (*STREAMS, "nowhere")}
    for (stream_id, key), events in model.keys.items():
        assert (await engine.facts(Question(idempotency_key=(stream_id, key)))).stored == events
        other = "a" if stream_id != "a" else "b"
        assert (other, key) in model.keys or (await engine.facts(Question((), (other, key)))).stored is None
    for query in QUERIES:
        for after in (None, head // 2):
            expected = next(
                (event.event_id for event in model.events if event.event_id > (after or 0) and query.matches(event)),
                None,
            )
            assert (await engine.facts(Question(condition=AppendCondition(query, after)))).match == expected


Change = Callable[[dict[str, bytes]], None]
"""Something that happens to the files of a store that is closed."""


# --- threads that are held, and lookups that need one ---


class GatedDisk(MemoryDisk):
    """Has threads whose name begins so wait, in any call, until they are let go; ``cold``: nothing is in memory."""

    def __init__(self, files: dict[str, bytes] | None = None, *, cold: bool = False) -> None:
        super().__init__(files)
        self.cold = cold
        self._held: dict[str, tuple[threading.Event, threading.Event]] = {}

    def hold(self, prefix: str) -> None:
        self._held[prefix] = threading.Event(), threading.Event()

    async def until_held(self, prefix: str) -> None:
        assert await asyncio.to_thread(self._held[prefix][0].wait, 20)

    def let_go(self, prefix: str) -> None:
        self._held.pop(prefix)[1].set()

    def pass_gate(self) -> None:
        for prefix, (entered, gone_on) in list(self._held.items()):
            if threading.current_thread().name.startswith(prefix):
                entered.set()
                assert gone_on.wait(20), "nobody let the thread go on"

    def open_read(self, path: str) -> int:
        self.pass_gate()
        return super().open_read(path)

    def open_write(self, path: str, *, exclusive: bool = False) -> int:
        self.pass_gate()
        return super().open_write(path, exclusive=exclusive)

    def read(self, file: int, size: int, offset: int) -> bytes:
        self.pass_gate()
        return super().read(file, size, offset)

    def read_nowait(self, file: int, size: int, offset: int) -> bytes | None:
        return None if self.cold else super().read(file, size, offset)


def forget_blocks(engine: FileEngine) -> None:
    """Have the blocks of runs read from the disk again."""
    engine._blocks.recent.clear()
    engine._blocks._old.clear()


def damage_run(engine: FileEngine, disk: MemoryDisk, run: Run, bit: int = 0) -> None:
    """Flip a bit of each of the run's blocks, in the file that it has open."""
    data = disk._opened[run._file].data
    for number in range(len(run._crcs)):
        data[run._blocks_at + number * 4096] ^= 1 << bit
    forget_blocks(engine)
