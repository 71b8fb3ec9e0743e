"""Disks that are really full: small file systems on which a store is written until there is no room, and then again."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import random
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from aiostore import EngineUnavailable, EventStore, StoreFull
from aiostore.engines.file.disk import Disk
from aiostore.engines.file.engine import FileEngine
from tests.real.children import Child, Say
from tests.real.kills import KILLED
from tests.real.mounts import FILE_SYSTEMS, in_memory, leave_the_others_mounts, make_image, mounted, why_not
from tests.real.striking import kill_myself
from tests.real.writing import Account, Options, Wrong, append, check, save

SIZE_BYTES = 4 << 20
ROOM_BYTES = 300 << 10
"""What is made each time."""
REFUSALS = 6
"""So often an append finds no room before some is made."""
WRITES_MAX = 4
"""Of the log, for one append on a disk that is full: with space prepared behind it and without, a part and no more."""
ROUNDS = 4
DEADLINE_SECONDS = 20.0


@dataclass
class Tally:
    """How much was tried."""

    disks: int = 0
    appends_refused: int = 0
    saves_refused: int = 0
    openings_refused: int = 0
    events: int = 0

    def __str__(self) -> str:
        return (
            f"{self.disks:,} disks, on which {self.appends_refused:,} appends, {self.saves_refused:,} states and "
            f"{self.openings_refused:,} openings found no room; {self.events:,} events: nothing lost"
        )


class CountingDisk(Disk):
    """The real disk; counts the writes of the log."""

    writes = 0

    def write_log(self, file: int, data: memoryview, offset: int, *, synced: bool) -> int:
        self.writes += 1
        return super().write_log(file, data, offset, synced=synced)


class Ballast:
    """A file that takes up all the room that there is."""

    def __init__(self, place: Path) -> None:
        self._path = place / "ballast"

    def fill(self) -> None:
        """Leave no room at all."""
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            for size in (1 << 16, 1 << 12, 1 << 9, 1):
                try:
                    while os.write(file, b"x" * size):
                        pass
                    os.fsync(file)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
        finally:
            os.close(file)

    def give(self, size_bytes: int) -> None:
        """Make room, of so many bytes."""
        os.truncate(self._path, max(0, self._path.stat().st_size - size_bytes))


class FullDisk:
    """A small file system, the store on it, and what was told of that."""

    def __init__(self, place: Path, seed: int, tally: Tally) -> None:
        self._place = place
        self._store = place / "store"
        self._dice = random.Random(seed)
        self._ballast = Ballast(place)
        self._options = Options.chosen(seed, self._dice)
        self._numbers = itertools.count(seed * 1_000_000)
        self._account = Account()
        self._tally = tally

    def try_all(self) -> None:
        """A life with a disk that is full again and again, and openings where there is no room."""
        self._ballast.fill()
        self._refuses_to_open()  # there is no store yet
        self._ballast.give(ROOM_BYTES)
        said = self._life(self._fill_again_and_again).result()
        self._account.note([message for message in said if message[0] != "no room to save"])
        self._tally.appends_refused += sum(message[0] == "refused" for message in said)
        self._tally.saves_refused += sum(message[0] == "no room to save" for message in said)
        self._ballast.fill()
        self._reads_all("rw")  # there is nothing to put right
        self._check()
        for leave in (self._leave_torn, self._leave_unsynced):
            leave()
            self._ballast.fill()
            self._refuses_to_open()
            self._reads_all("r")
            self._check()
        self._tally.disks += 1
        self._tally.events += len(self._account.seen)

    async def _fill_again_and_again(self, say: Say) -> None:
        disk = CountingDisk()
        engine = self._options.engine(str(self._store), disk)
        async with EventStore(engine) as store:
            for _ in range(ROUNDS):
                async with asyncio.timeout(DEADLINE_SECONDS):
                    refused = await self._fill(store, engine, say)
                    self._ballast.fill()
                    number = next(self._numbers)
                    writes = disk.writes
                    if not await append(store, number, say):
                        refused.append(number)
                    if disk.writes - writes > WRITES_MAX:
                        raise Wrong(f"{disk.writes - writes} writes for an append on a disk that is full")
                    try:
                        await save(store, engine, say)
                    except StoreFull:
                        say("no room to save")
                    self._ballast.give(ROOM_BYTES)  # also for indexes that wait
                    for number in refused:  # now there is
                        if not await append(store, number, say):
                            raise Wrong(f"commit {number} is refused where there is room")
                    await save(store, engine, say)
            await self._fill(store, engine, say)

    async def _fill(self, store: EventStore, engine: FileEngine, say: Say) -> list[int]:
        """Append until so many were refused; those."""
        refused: list[int] = []

        async def append_some() -> None:
            for number in self._numbers:
                if not await append(store, number, say):
                    refused.append(number)
                if len(refused) >= REFUSALS:
                    return
                if number % 20 == 0:
                    with suppress(StoreFull):
                        await save(store, engine, say)

        await asyncio.gather(*(append_some() for _ in range(self._dice.randrange(1, 5))))
        return refused

    def _leave_torn(self) -> None:
        """A process is killed in the midst of a write."""
        self._leave_unsynced()
        newest = max(self._store.glob("*.jsonl"))
        with newest.open("ab") as segment:
            segment.write(b'{"event_id":%d,"stream_id":"' % (len(self._account.seen) + 1) + b"x" * 5000)

    def _leave_unsynced(self) -> None:
        """A process is killed that has synced nothing, so that the segment must be copied."""
        options = Options("os", 1 << 20, 1 << 20)

        async def main(say: Say) -> None:
            async with EventStore(options.engine(str(self._store))) as store:
                for number in itertools.islice(self._numbers, 12):
                    await append(store, number, say)
                kill_myself()

        self._account.note(self._life(main).result(KILLED))

    def _life(self, main: Callable[[Say], Coroutine[Any, Any, None]]) -> Child:
        """A child with numbers of its own: what it takes of them is not taken here."""
        self._numbers = itertools.count(next(self._numbers) + 10_000)
        return Child(main)

    def _refuses_to_open(self) -> None:
        """Without room it does not open, says so, and leaves everything as it is."""
        before = self._logs()

        async def main(say: Say) -> None:
            try:
                async with EventStore(self._options.engine(str(self._store))):
                    pass
            except EngineUnavailable as error:
                say(isinstance(error.__cause__, OSError) and error.__cause__.errno, str(error))

        said = Child(main).result()
        if not said or said[0][0] != errno.ENOSPC or os.strerror(errno.ENOSPC) not in said[0][1]:
            raise Wrong(f"opened on a disk that is full, it says {said}")
        if self._logs() != before:
            raise Wrong("opening it on a disk that is full changed the log")
        self._tally.openings_refused += 1

    def _logs(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self._store.glob("*.jsonl")}

    def _reads_all(self, mode: str) -> None:
        """Where there is no room, everything can be read."""

        async def main(say: Say) -> None:
            async with EventStore(self._store, mode=mode) as store:
                self._account.check(await store.read_all().to_list())

        Child(main).result()

    def _check(self) -> None:
        """With room it opens, everything is there, and it goes on."""
        self._ballast.give(ROOM_BYTES)
        again = partial(check, str(self._store), self._options, self._account, dice=self._dice)
        try:
            self._account.note(Child(lambda say: again(say=say)).result())
        except AssertionError as error:
            error.add_note(f"{self._options}, {self._account}")
            raise


def run(directory: Path, first_seed: int, disks: int) -> Iterator[tuple[int, Tally]]:
    """Fill so many disks, in memory and of ext4 where there are loop devices; yields the seed and the tally so far."""
    tally = Tally()
    leave_the_others_mounts()
    for seed in range(first_seed, first_seed + disks):
        yield seed, tally
        with in_memory(directory / "memory", 64 << 20) as memory:
            places = _places(memory)
            with places[seed % len(places)]() as place:
                FullDisk(place, seed, tally).try_all()


def _places(memory: Path) -> list[Callable[[], AbstractContextManager[Path]]]:
    places: list[Callable[[], AbstractContextManager[Path]]] = [partial(in_memory, memory / "small", SIZE_BYTES)]
    ext4 = FILE_SYSTEMS[0]
    if why_not(loops=True) is None and not ext4.missing:
        places.append(partial(_ext4, memory))
    return places


def _ext4(memory: Path) -> AbstractContextManager[Path]:
    image = memory / "image"
    make_image(FILE_SYSTEMS[0], image)
    return mounted("ext4", "loop", str(image), memory / "small")
