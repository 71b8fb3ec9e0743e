"""Writers that append, roll, seal, close, are killed and begin anew, beside readers that come, follow and go."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any, Literal

import pytest

from aiostore import Event, Query
from aiostore.engines.file.disk import Disk
from aiostore.engines.file.engine import FileEngine
from aiostore.engines.file.format import HEAD_NAME, encode_group, line_seed, segment_first
from aiostore.engines.file.head import read_head
from tests.file.driver import Driver, New, everything, started
from tests.file.followed import Following

SEEDS = range(int(os.environ.get("AIOSTORE_STORMS", "40" if os.environ.get("CI") else "12")))
STEPS = 60


async def killed(engine: FileEngine) -> None:
    """End the engine as a SIGKILL would: what is written stays, nothing else is."""
    opened, writer = engine._opened, engine._writer
    assert opened is not None
    assert writer is not None
    writer.log.stop()
    opened.sealer.stop()
    opened.sealer.close()
    for threads in (opened.readers, opened.state_thread, opened.thread):
        threads.shutdown()
    engine.abandon()


class Storm:
    """A writer's life, chosen by a seed, and the readers beside it."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.dice = random.Random(seed)
        self.durability: Literal["fsync", "os"] = self.dice.choice(("fsync", "os"))
        self.part_bytes_min = self.dice.choice((1, 1, 3000, 20_000))
        self.engine: FileEngine | None = None
        self.driver: Driver | None = None
        self.log: list[Event] = []
        """All that was stored; the end of it may be lost when the writer is killed."""
        self.readers: list[Following] = []
        self.ended: list[Following] = []

    @property
    def options(self) -> dict[str, Any]:
        return {"part_bytes_min": self.part_bytes_min}

    async def begin(self) -> None:
        """A writer opens the store, and keeps all that a reader can have seen."""
        size = self.dice.choice((1, 400, 2000, 50_000))
        self.engine, self.driver = await started(
            self.path, durability=self.durability, segment_bytes=size, **self.options
        )
        self.log = await everything(self.engine)

    def news(self) -> list[list[New]]:
        dice = self.dice
        return [
            [
                (f"s{dice.randrange(4)}", dice.choice("AB"), {"fill": "x" * dice.choice((0, 50, 3000))}, {}, ("t",))
                for _ in range(dice.choice((1, 1, 2, 5)))
            ]
            for _ in range(dice.choice((1, 1, 3, 10)))
        ]

    async def append(self) -> None:
        if self.driver is not None:
            for commit in (await self.driver.commit(*self.news())).commits:
                self.log.extend(commit.events)

    async def close(self) -> None:
        if self.engine is not None:
            await self.engine.aclose()
            self.engine = self.driver = None

    async def kill(self) -> None:
        """In the midst of a write of which a part, or all, is in the file."""
        if self.engine is None or self.driver is None:
            return
        await killed(self.engine)
        segment = max((path for path in self.path.iterdir() if segment_first(path.name)), key=lambda path: path.name)
        first = segment_first(segment.name)
        assert first is not None
        manifest = self.engine._opened is None and self.engine
        assert manifest
        seed = line_seed(store_id(self.path), first)
        commits = self.driver.plan(*self.news()).commits
        data = b"".join(lines.data for lines in encode_group(commits, seed, len(self.log)))
        with segment.open("ab") as file:
            file.write(data[: self.dice.choice((0, len(data), self.dice.randrange(len(data))))])
        self.engine = self.driver = None

    async def come(self) -> None:
        if len(self.readers) < 4:
            reader = await Following.open(self.path, **self.options)
            assert self.engine is None or reader.start <= len(self.log)
            self.readers.append(reader)

    async def go(self) -> None:
        if self.readers:
            reader = self.readers.pop(self.dice.randrange(len(self.readers)))
            await reader.aclose()
            self.ended.append(reader)

    async def look(self) -> None:
        durable = read_head(Disk(), f"{self.path}/{HEAD_NAME}", store_id(self.path))
        for reader in self.readers:
            if self.dice.random() < 0.5:
                await reader.look()
                assert reader.position == max(durable, reader.start)
                if self.engine is not None:
                    assert self.durability == "os" or durable == len(self.log)

    async def read(self) -> None:
        """What is read at any time is a beginning of the log, whatever the index is made of at the moment."""
        for reader in self.readers:
            head = (await everything(reader.engine))[-1:]
            log = [*self.log]
            position = head[0].event_id if head else 0
            assert position >= reader.position
            if position > len(log):
                continue  # without a writer, all that is whole is there
            query = Query.where(types="A", tags="t", stream_prefix="s1")
            assert await everything(reader.engine, query=query) == [e for e in log[:position] if query.matches(e)]
            for number in range(4):
                stream = [event for event in log[:position] if event.stream_id == f"s{number}"]
                assert await everything(reader.engine, stream_id=f"s{number}") == stream


def store_id(path: Path) -> str:
    from aiostore.engines.file.manifest import read_manifest

    return read_manifest(Disk(), str(path)).store_id


@pytest.mark.parametrize("seed", SEEDS)
async def test_readers_beside_a_writers_life(tmp_path: Path, seed: int) -> None:
    storm = Storm(tmp_path / "s", seed)
    await storm.begin()
    steps = (
        [storm.append] * 10
        + [storm.look] * 8
        + [storm.read] * 2
        + [storm.come] * 3
        + [storm.go, storm.close, storm.kill]
    )
    for _ in range(STEPS):
        if storm.engine is None and storm.dice.random() < 0.6:
            await storm.begin()
        await storm.dice.choice(steps)()
    if storm.engine is None:
        await storm.begin()
    await storm.append()
    await storm.close()
    for reader in storm.readers:
        await reader.look()
        assert reader.position == len(storm.log)
        await reader.check(storm.log)
        await reader.aclose()
    for reader in storm.ended:
        assert reader.seen == storm.log[reader.start : reader.position]
