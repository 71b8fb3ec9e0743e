"""A life of a store on a recording disk: tasks append, wait, give up and read along, all as a seed has it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock
from uuid import UUID

from aiostore import (
    AppendConditionFailed,
    ConcurrencyConflict,
    EngineUnavailable,
    EventStore,
    EventStoreError,
    NewEvent,
    Query,
    StoreClosed,
    StoreCorrupt,
    StoreFailed,
    StoreFull,
    StreamAppend,
)
from aiostore.engine import Saving
from aiostore.engines.file import engine as file_engine
from aiostore.engines.file.engine import FileEngine
from aiostore.engines.file.state import Row
from tests.crash.tape import Files, RecordingDisk
from tests.scheduler.loop import Order, SeededLoop

STREAMS = ("red", "blue", "green-1", "green-2")
DIRECTORY = "/s"


class FullDisk(RecordingDisk):
    """A recording disk that is full now and then, in the midst of a write."""

    def __init__(self, files: Files | None, dice: random.Random, full_every: int) -> None:
        super().__init__(files)
        self._dice = dice
        self._full_every = full_every

    def write_log(self, file: int, data: memoryview, offset: int, *, synced: bool) -> int:
        if self._full_every and self._dice.randrange(self._full_every) == 0:
            part = data[: self._dice.randrange(len(data) + 1)]
            if part:
                super().write_log(file, part, offset, synced=False)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write_log(file, data, offset, synced=synced)


class States:
    """Stands for the SQLite file: what is saved is there at once, and the disk is told."""

    def __init__(self, disk: RecordingDisk, path: str, *, read_only: bool) -> None:
        self._disk = disk
        self._rows: dict[str, Row] = {}

    def load(self, key: str) -> Row | None:
        return self._rows.get(key)

    def save(self, position: int, crc: str, savings: Sequence[Saving]) -> list[int]:
        self._disk.told(position, durable=True)
        revisions = []
        for key, value, _ in savings:
            before = self._rows.get(key)
            assert value is not None
            self._rows[key] = Row(before.revision + 1 if before else 1, position, crc, value)
            revisions.append(self._rows[key].revision)
        return revisions


@contextmanager
def chosen_ids(dice: random.Random) -> Iterator[None]:
    """In the block, a new store's id is the dice's."""
    with mock.patch("aiostore.engines.file.opening.uuid4", side_effect=lambda: UUID(bytes=dice.randbytes(16))):
        yield


class Life:
    """One opening of the store, what is done with it, and its closing. `disk` has the tape."""

    def __init__(self, seed: int, files: Files | None, disk: RecordingDisk | None = None) -> None:
        """``disk``: another one than that of the files, which is full now and then."""
        self.dice = dice = random.Random(seed)
        self.durability: Any = dice.choice(("fsync", "fsync", "os"))
        self.segment_bytes = dice.choice((600, 1500, 4000, 12_000))
        self.part_bytes_min = dice.choice((1, 1000, 5000))
        full_every = dice.choice((0, 0, 12))
        self.disk = FullDisk(files, dice, full_every) if disk is None else disk
        self.refusals: list[EventStoreError] = []
        """What appends and reads were refused with because of the disk."""
        self._numbers = 0

    def live(self) -> None:
        """From the beginning to the end."""
        loop = SeededLoop(self.dice.randrange(10**9), self.dice.choice(list(Order)))
        with chosen_ids(self.dice), mock.patch.object(file_engine, "StateFile", States):
            loop.play(self._run())

    async def _run(self) -> None:
        engine = FileEngine(
            DIRECTORY,
            disk=self.disk,
            durability=self.durability,
            segment_bytes=self.segment_bytes,
            part_bytes_min=self.part_bytes_min,
        )
        try:
            store = await EventStore.open(engine)
        except EngineUnavailable as error:
            self.refusals.append(error)
            return
        self._told(await store.head(), durable=True)  # what recovery kept, it made durable
        reading = asyncio.create_task(self._read_along(store))
        tasks = [asyncio.create_task(self._append_some(store)) for _ in range(self.dice.randrange(1, 6))]
        tasks.append(asyncio.create_task(self._save_some(engine, store)))
        if self.dice.random() < 0.3:
            await asyncio.sleep(0.001)
            self.dice.choice(tasks).cancel()
        if self.dice.random() < 0.8:
            await asyncio.wait(tasks)
            if self.dice.random() < 0.5:
                await asyncio.sleep(2)  # idle: the head is synced
        await store.aclose()
        for task in (*tasks, reading):
            task.cancel()
        for result in await asyncio.gather(*tasks, reading, return_exceptions=True):
            if isinstance(result, StoreFailed | EngineUnavailable | StoreCorrupt):
                self.refusals.append(result)
            elif isinstance(result, Exception) and not isinstance(result, StoreClosed):
                raise result

    def _told(self, event_id: int, *, durable: bool | None = None) -> None:
        """Someone knows: in sync mode, that is for ever."""
        self.disk.told(event_id, durable=self.durability == "fsync" if durable is None else durable)

    async def _read_along(self, store: EventStore) -> None:
        async with store.subscribe() as subscription:
            async for event in subscription:
                self._told(event.event_id)

    async def _append_some(self, store: EventStore) -> None:
        dice = self.dice
        for _ in range(dice.randrange(1, 7)):
            if dice.random() < 0.3:
                await asyncio.sleep(dice.random() * 0.01)
            with contextlib.suppress(ConcurrencyConflict, AppendConditionFailed):
                try:
                    events = await self._append(store)
                except StoreFull as error:
                    self.refusals.append(error)
                else:
                    self._told(events[-1].event_id)

    async def _append(self, store: EventStore) -> list[Any]:
        dice = self.dice
        stream_id = dice.choice(STREAMS)
        key = f"key-{dice.randrange(50)}-{self._numbers}" if dice.random() < 0.2 else None
        match dice.randrange(5):
            case 0:
                return [await store.append(stream_id, "One", self._data(), idempotency_key=key)]
            case 1:
                version = await store.stream_version(stream_id)
                return [await store.append(stream_id, "Expected", self._data(), expected_version=version)]
            case 2:
                return [await store.append(stream_id, "Tagged", self._data(), tags=["a", f"n:{dice.randrange(3)}"])]
            case 3:
                count = dice.choice((1, 2, 3, 8))
                events = [
                    NewEvent("Many", self._data(), {"by": "ü"} if dice.random() < 0.3 else None) for _ in range(count)
                ]
                return await store.append_batch(stream_id, events, idempotency_key=key)
            case _:
                streams = dice.sample(STREAMS, dice.randrange(1, 4))
                return await store.append_streams(
                    [StreamAppend(name, [("Part", self._data())] * dice.randrange(1, 3)) for name in streams],
                    idempotency_key=key,
                )

    def _data(self) -> dict[str, Any]:
        self._numbers += 1
        size = self.dice.choice((0, 0, 10, 200, 700, 1500))
        return {"n": self._numbers, "fill": "x" * size}

    async def _save_some(self, engine: FileEngine, store: EventStore) -> None:
        for _ in range(self.dice.randrange(3)):
            await asyncio.sleep(self.dice.random() * 0.02)
            head = await store.head()
            if head:
                await engine.save_state("position", head, b"")
            await store.read_all(query=Query.where(tags="a"), limit=3).to_list()
