"""The stores that are mutated: small, of all kinds of lines, as dicts of path and bytes. The same in every process."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from aiostore.engine import Head
from aiostore.engines.file import format as fmt
from aiostore.engines.file.engine import FileEngine
from aiostore.events import Event
from tests.crash.life import chosen_ids
from tests.file.disks import MemoryDisk
from tests.file.driver import TIME, Driver, New, counted, everything, started
from tests.file.sealed_stores import SMALL, Model, commit_some, settled

DIRECTORY = "/s"
LOCK = f"{DIRECTORY}/{fmt.LOCK_NAME}"
HEAD = f"{DIRECTORY}/{fmt.HEAD_NAME}"
MANIFEST = f"{DIRECTORY}/{fmt.MANIFEST_NAME}"

Files = dict[str, bytes]

Write = Callable[[FileEngine, Driver], Awaitable[None]]


@dataclass(frozen=True)
class Store:
    """A store that is closed, and what was stored in it. Its files must be copied."""

    name: str
    store_id: str
    files: Files
    events: frozenset[Event]
    """Also those of which an unacknowledged line stands in a tail."""
    acknowledged: int
    tail: bytes = b""
    """Lines of the next commits, valid behind the last one."""

    @property
    def newest(self) -> str:
        return max(path for path in self.files if path.endswith(".jsonl"))


def segments_of(files: Files) -> list[str]:
    """The paths of segments, in order."""
    return [path for path in sorted(files) if first_of(path) is not None]


def first_of(path: str) -> int | None:
    """The first event of a segment by its path, None if it is not a segment's."""
    return fmt.segment_first(path.rpartition("/")[2]) if path.rpartition("/")[0] == DIRECTORY else None


# --- what is written ---


def _every_kind(n: int) -> list[list[New] | tuple[str, list[New]]]:
    """Commits of all kinds of lines."""
    tagged: list[New] = [("a", "A", {}), ("b", "B", {"n": n}, {}, ("x",)), ("a", "A", {"text": "}\n{"}, {}, ("x", "y"))]
    return [
        counted(1, "one"),
        (f"key-{n}", counted(3, "three")),
        [("tagged", "T", {"n": n}, {"by": "ü"}, ("a:1", "b:2"))],
        (f"k{n}", tagged),
    ]


async def _plain(_: FileEngine, driver: Driver) -> None:
    for n in range(3):
        for commit in _every_kind(n):
            await driver.commit(commit)


async def _grouped(_: FileEngine, driver: Driver) -> None:
    for n in range(3):
        await driver.commit(*_every_kind(n))
        await driver.commit(counted(2, "late"))


async def _odd(_: FileEngine, driver: Driver) -> None:
    deep: Any = {}
    for _level in range(98):
        deep = {"d": deep}
    await driver.commit([("ströme/流/🜁", "Ereignis", {"ключ": "☃\u2028\u0000\x7f", "n": -(2**63)})])
    await driver.commit(('schlüssel \\" ü', [("s" * 1000, "t" * 250, deep, {"m": [1.5e300, 2**64 - 1, None]})]))  # type: ignore[list-item]
    await driver.commit([("many tags", "T", {}, {}, tuple(f"tag-{n}" for n in range(64)))])
    await driver.commit([("big", "Big", {"pad": '{"event_id":9,"stream_id":"x"}\n' * 300})])
    await driver.commit([("big", "Big", {"pad": "p" * 20_000}), ("big", "Small", {})])
    await driver.commit(*[counted(2, "ends") for _ in range(3)])


async def _one(_: FileEngine, driver: Driver) -> None:
    await driver.commit(counted(1))


async def _none(_: FileEngine, __: Driver) -> None:
    pass


def _lives(count: int, seed: int) -> Write:
    async def write(engine: FileEngine, driver: Driver) -> None:
        await commit_some(driver, Model(), random.Random(seed), count)
        await settled(engine)

    return write


async def _wide(engine: FileEngine, driver: Driver) -> None:
    """Runs of several blocks, of offsets and of keys."""
    for n in range(150):
        commits: list[list[New] | tuple[str, list[New]]] = [
            [(f"w-{n * 8 + i}", "W", {}, {}, ("x",) if i % 2 else ())] for i in range(8)
        ]
        await driver.commit(*commits)
    await settled(engine)


NO_RUNS: dict[str, Any] = {"segment_bytes": 1500, "part_bytes_min": 10**9}

_KINDS: list[tuple[str, Write, dict[str, Any]]] = [
    ("plain", _plain, NO_RUNS),
    ("grouped", _grouped, {**NO_RUNS, "durability": "os"}),
    ("odd", _odd, {"segment_bytes": 12_000, "part_bytes_min": 1}),
    ("one", _one, NO_RUNS),
    ("none", _none, NO_RUNS),
    ("runs", _lives(14, 1), SMALL),
    ("merged", _lives(45, 2), {**SMALL, "durability": "os"}),
    ("one part", _lives(24, 3), {"segment_bytes": 1000, "part_bytes_min": 4000}),
]


def _made(name: str, write: Write, options: dict[str, Any], number: int) -> Store:
    disk = MemoryDisk()

    async def live() -> list[Event]:
        engine, driver = await started(DIRECTORY, disk, **options)
        await write(engine, driver)
        events = await everything(engine)
        await engine.aclose()
        return events

    with chosen_ids(random.Random(number)):
        events = asyncio.run(live())
    files = {path: data for path, data in disk.files().items() if path != LOCK}
    manifest = fmt.decode_manifest(files[MANIFEST])
    files[MANIFEST] = fmt.encode_manifest(msgspec.structs.replace(manifest, created=TIME.format(0)))
    store_id = manifest.store_id
    further = Driver(None, Head(len(events), ""))
    further.versions = {event.stream_id: event.version for event in events}
    first = first_of(max(segments_of(files)))
    assert first is not None
    plan = further.plan(counted(1, "one"), ("tail", counted(3, "three")), counted(1, "one"))
    lines = fmt.encode_group(plan.commits, fmt.line_seed(store_id, first), len(events))
    tail = b"".join(each.data for each in lines)
    more = [event for commit in plan.commits for event in commit.events]
    return Store(name, store_id, files, frozenset([*events, *more]), len(events), tail)


@functools.cache
def stores() -> list[Store]:
    """All of them but the wide one."""
    return [_made(*kind, number) for number, kind in enumerate(_KINDS)]


@functools.cache
def wide() -> Store:
    """One of 1,200 events, with runs of several blocks."""
    return _made("wide", _wide, {"segment_bytes": 4000, "part_bytes_min": 1}, 100)


@functools.cache
def larger() -> Store:
    """One of some thirty segments under runs of two levels, for every bit of it."""
    return _made("larger", _lives(60, 4), SMALL, 101)


def store_named(name: str) -> Store:
    """The store of the name."""
    if name in ("wide", "larger"):
        return wide() if name == "wide" else larger()
    return next(store for store in stores() if store.name == name)


TAILS = ("whole", "blank", "torn", "unfinished", "unacknowledged", "blank and torn")


def with_tail(store: Store, kind: str) -> Files:
    """The files of the store with something behind the last event."""
    lines = store.tail.splitlines(keepends=True)
    tail = {
        "whole": b"",
        "blank": b"\n" * 3000,
        "torn": lines[0] + lines[1][:-40],
        "unfinished": lines[0] + lines[1] + lines[2],
        "unacknowledged": store.tail,
        "blank and torn": b"\n" * 700 + lines[0][:50] + b"\n" * 600,
    }[kind]
    return {**store.files, store.newest: store.files[store.newest] + tail}
