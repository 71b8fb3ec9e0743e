"""File systems that lose their power under a writer: real ones, in images that are mounted through a loop device.

What was not synced is gone then, as far as the system had it in memory. What it had given to the device stays, also
what the device was not told to flush: that a device forgets, too, is tried on recorded disks (tests/crash).

A process outlives the power here. What it is told meanwhile does not count, but is counted: ext4 lets a sync succeed
whose transaction was given up when the power went, if another sync had begun to commit it. (Three threads that only
write files opened with O_DSYNC lost 90 such in 150 cuts, and none that was acknowledged before.)
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from aiostore import EngineUnavailable, EventStore, StoreCorrupt, StoreFailed
from aiostore.engines.file.disk import Disk
from aiostore.engines.file.format import segment_first
from tests.real.children import Child, Message, Say
from tests.real.mounts import (
    FILE_SYSTEMS,
    Cut,
    FileSystem,
    cut_power,
    in_memory,
    leave_the_others_mounts,
    make_image,
    mounted,
)
from tests.real.striking import Moment, StrikingDisk
from tests.real.writing import Account, Options, check, write

CUTS_MAX = 20
"""Of one image."""
COMMITS = 40


@dataclass
class Tally:
    """How much was tried."""

    cuts: dict[str, int] = field(default_factory=dict)
    events: int = 0
    late: int = 0
    """Acknowledged when the power was off, and not there afterwards."""

    @property
    def all(self) -> int:
        """Of all kinds."""
        return sum(self.cuts.values())

    def __str__(self) -> str:
        by_kind = ", ".join(f"{count:,} of {kind}" for kind, count in self.cuts.items())
        return (
            f"{self.all:,} power cuts ({by_kind}); {self.events:,} events: nothing lost "
            f"(but {self.late:,} commits that the file system acknowledged when it was off)"
        )


class Image:
    """A file system, the store on it, and what was told of the store."""

    def __init__(self, system: FileSystem, directory: Path, seed: int, tally: Tally) -> None:
        self._system = system
        self._path = directory / "image"
        self._place = directory / "mounted"
        self._store = self._place / "store"
        self._dice = random.Random(seed)
        self.options = Options.chosen(seed, self._dice)
        self.account = Account()
        self._tally = tally
        self._numbers = seed * 1_000_000
        make_image(system, self._path)

    def lose_power(self) -> None:
        """A life that the power ends, and a look at what is there when it is back."""
        cut = self._dice.choice(list(Cut))
        with self._mounted():
            self.account.note(self._from_outside(cut) if self._dice.random() < 0.5 else self._at_a_call(cut))
        kind = f"{self._system.name} ({self._system.options})"
        self._tally.cuts[kind] = self._tally.cuts.get(kind, 0) + 1
        shutil.copyfile(self._path, self._path.with_name("image-before-the-power-was-back"))
        with self._mounted():
            again = partial(check, str(self._store), self.options, self.account, dice=self._dice)
            lost, late = self.options.durability == "os", {*self.account.late}
            self.account.note(Child(lambda say: again(say=say, power_lost=lost)).result())
        self._tally.late += 0 if lost else len(late - {*self.account.seen})
        self._tally.events += len(self.account.seen)

    @contextmanager
    def _mounted(self) -> Iterator[None]:
        with mounted(self._system.name, self._system.options, str(self._path), self._place):
            yield

    def _from_outside(self, cut: Cut) -> list[Message]:
        """The power goes at any moment, and then the process."""
        child = self._life(lambda _: Disk(), COMMITS * 100)
        try:
            said = list(child.hear(self._dice.randrange(80)))
            if self._dice.random() < 0.5:
                self._write_back()
            time.sleep(self._dice.random() * 0.003)
            said += child.heard_so_far()
            said.append(["cut"])
            cut_power(self._place, cut)
            child.kill()
            said += child.hear()
        finally:
            child.kill()
            child.end()
        return said

    def _at_a_call(self, cut: Cut) -> list[Message]:
        """The power goes at a call of the disk, when the store is opened or written, and the process goes on."""
        at = self._dice.choice((self._dice.randrange(1, 30), self._dice.randrange(1, 150)))
        moment = self._dice.choice(list(Moment))

        def disk(say: Say) -> Disk:
            def strike() -> None:
                say("cut")
                cut_power(self._place, cut)

            return StrikingDisk(at, moment, strike)

        said = self._life(disk, COMMITS).result()
        with suppress(OSError):  # it is off already
            cut_power(self._place, cut)
        return said

    def _life(self, disk: Callable[[Say], Disk], commits: int) -> Child:
        self._numbers += 10_000
        numbers = iter(range(self._numbers, self._numbers + commits))
        seed = self._dice.randrange(10**6)

        async def main(say: Say) -> None:
            engine = self.options.engine(str(self._store), disk(say))
            with suppress(StoreFailed, StoreCorrupt, EngineUnavailable):  # the power went
                async with EventStore(engine) as store:
                    await write(store, engine, numbers, say, random.Random(seed))

        return Child(main)

    def _write_back(self) -> None:
        """Have the newest segment on the device, as the system has it in its own time."""
        with suppress(FileNotFoundError):
            segments = sorted(name for name in os.listdir(self._store) if segment_first(name))
            for name in segments[-1:]:
                file = os.open(self._store / name, os.O_RDONLY)
                try:
                    os.fsync(file)
                finally:
                    os.close(file)


def run(directory: Path, first_seed: int, cuts: int) -> Iterator[tuple[int, Tally]]:
    """Cut the power so often; yields the seed and the tally so far, again and again."""
    tally = Tally()
    leave_the_others_mounts()
    systems = [system for system in FILE_SYSTEMS if not system.missing]
    for seed in itertools.count(first_seed):
        yield seed, tally
        system = systems[seed % len(systems)]
        with in_memory(directory / "memory", 400 << 20) as memory:
            image = Image(system, memory, seed, tally)
            try:
                for _ in range(min(CUTS_MAX, cuts - tally.all)):
                    image.lose_power()
                    yield seed, tally
            except AssertionError as error:
                error.add_note(f"{system}, {image.options}, {image.account}")
                for path in memory.glob("image*"):
                    shutil.copyfile(path, directory / path.name)
                raise
        if tally.all >= cuts:
            return
