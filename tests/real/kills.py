"""Writers killed with SIGKILL: at every call of the disk that changes something, and at any moment."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from aiostore import EventStore
from aiostore.engines.file.disk import Disk
from aiostore.engines.file.verifying import verify
from tests.real.children import Child, Say, killed_after
from tests.real.striking import Moment, StrikingDisk
from tests.real.writing import Account, Options, Wrong, check, write

KILLED = -9
COMMITS = 12
"""In a life that is killed at every call."""
LIVES_MAX = 25
"""On one directory."""
RECOVERED_EVERY = 20
"""Of the calls: what is left there is recovered with kills at every call of that."""


@dataclass
class Tally:
    """How much was tried."""

    kills: int = 0
    recoveries_killed: int = 0
    """Of those, while the store was opened after another."""
    events: int = 0
    stores: int = 0

    def __str__(self) -> str:
        return (
            f"{self.kills:,} kills, {self.recoveries_killed:,} of them of processes that opened what another had left; "
            f"{self.events:,} events in {self.stores:,} stores: nothing lost"
        )


class Store:
    """A directory, what was told of it, and the children that work on it, one at a time."""

    def __init__(self, directory: Path, seed: int, tally: Tally) -> None:
        self.directory = directory
        self.dice = random.Random(seed)
        self.options = Options.chosen(seed, self.dice)
        self._account = Account()
        self._tally = tally
        self._numbers = seed * 1_000_000
        tally.stores += 1

    def copy(self, directory: Path) -> Store:
        """The same in another directory, from where on it goes its own way."""
        copied = Store(directory, self.dice.randrange(10**6), self._tally)
        copied.options = self.options
        copied._numbers = self._numbers
        copied._account = deepcopy(self._account)
        shutil.copytree(self.directory, directory)
        return copied

    def _life(self, disk: Disk, commits: int | None, seed: int) -> Child:
        """A writer of so many commits, by default of all that there are, and its end."""
        self._numbers += 1000
        last = None if commits is None else self._numbers + commits

        async def main(say: Say) -> None:
            engine = self.options.engine(str(self.directory), disk)
            numbers = iter(range(self._numbers, last)) if last is not None else itertools.count(self._numbers)
            async with EventStore(engine) as store:
                await write(store, engine, numbers, say, random.Random(seed))

        return Child(main)

    def live(self, commits: int, at: int, moment: Moment) -> bool:
        """A life that is killed at this call of the disk; False if it ended before."""
        child = self._life(StrikingDisk(at, moment), commits, self.dice.randrange(10**6))
        self._account.note(child.result(KILLED))
        killed = child.end() == KILLED
        self._tally.kills += killed
        return killed

    def live_a_while(self) -> None:
        """A life that is killed at any moment."""
        child = self._life(Disk(), None, self.dice.randrange(10**6))
        self._account.note(killed_after(child, self.dice.randrange(60), self.dice.random() * 0.003))
        self._tally.kills += 1

    def check(self) -> None:
        """Have it opened and compared with what was told."""
        again = partial(check, str(self.directory), self.options, self._account, dice=self.dice)
        try:
            self._account.note(Child(lambda say: again(say=say)).result())
        except AssertionError as error:
            error.add_note(f"{self.directory}, {self.options}, {self._account}")
            raise
        self._tally.events += len(self._account.seen)
        if self.dice.random() < 0.1:
            report = verify(Disk(), str(self.directory))
            if not report.whole or report.events != len(self._account.seen):
                raise Wrong(f"after it was put right and closed: {report}")


def calls_of_a_life(directory: Path, seed: int, moment: Moment) -> int:
    """How many calls there are at which it can be killed."""
    disk = StrikingDisk(0, moment)
    store = Store(directory, seed, Tally())

    async def main(say: Say) -> None:
        engine = store.options.engine(str(directory), disk)
        async with EventStore(engine) as opened:
            await write(opened, engine, iter(range(COMMITS)), lambda *_: None, random.Random(seed))
        say(disk.calls)

    return int(Child(main).result()[0][0])


def at_every_call(directory: Path, seed: int, tally: Tally) -> Iterator[None]:
    """The life of this seed, killed at each call in each way, in any order; some of what is left is recovered so, too.

    Yields after each. Threads take turns as they like, so that a life may have a call more or less than another.
    """
    dice = random.Random(seed)
    for moment in Moment:
        calls = calls_of_a_life(directory / f"whole-{moment.name}", seed, moment)
        for at in dice.sample(range(1, calls + 1), calls):
            _one_call(directory / "store", seed, at, moment, tally)
            yield
        for at in itertools.count(calls + 1):
            if not _one_call(directory / "store", seed, at, moment, tally):
                break
            yield


def _one_call(directory: Path, seed: int, at: int, moment: Moment, tally: Tally) -> bool:
    store = Store(directory, seed, tally)
    killed = store.live(COMMITS, at, moment)
    if at % RECOVERED_EVERY == seed % RECOVERED_EVERY and directory.exists():
        _recoveries(store, directory.with_name("copy"), tally)
    store.check()
    shutil.rmtree(directory)
    return killed


def _recoveries(store: Store, directory: Path, tally: Tally) -> None:
    """Kill what opens a copy of the store at each call, until one is through."""
    for moment in Moment:
        for at in itertools.count(1):
            copy = store.copy(directory)
            killed = copy.live(0, at, moment)
            tally.recoveries_killed += killed
            copy.check()
            shutil.rmtree(directory)
            if not killed:
                break


def at_any_moment(directory: Path, seed: int, tally: Tally) -> Iterator[None]:
    """Lives on one directory, one after another, each killed; yields after each."""
    store = Store(directory / "store", seed, tally)
    for _ in range(LIVES_MAX):
        store.live_a_while()
        while store.dice.random() < 0.5:  # those who put it right are killed, too
            if store.live(2, store.dice.randrange(1, 40), store.dice.choice(list(Moment))):
                tally.recoveries_killed += 1
        yield
        if store.dice.random() < 0.7:
            store.check()
    store.check()


def run(directory: Path, first_seed: int, kills: int) -> Iterator[tuple[int, Tally]]:
    """Kill so many at least, in both ways side by side; yields the seed and the tally so far, again and again."""
    tally = Tally()
    for seed in itertools.count(first_seed):
        yield seed, tally
        any_moment, every_call = directory / f"{seed}-any-moment", directory / f"{seed}-every-call"
        any_moment.mkdir()
        every_call.mkdir()
        both = itertools.zip_longest(at_any_moment(any_moment, seed, tally), at_every_call(every_call, seed, tally))
        for _ in both:
            yield seed, tally
            if tally.kills >= kills:
                return
        shutil.rmtree(any_moment)
        shutil.rmtree(every_call)
