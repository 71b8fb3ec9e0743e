"""`python -m tests.real.soak --minutes 60`: all at once in one process, and what it holds must not grow.

It appends to a store whose disk is full now and then, has slow subscribers and a listener, follows (mode="r") a store
whose writers are killed now and then, and opens and closes readers. Every few seconds it says on stderr what it holds;
at the end that must have been flat (see gauges.py), every subscriber must have had every event once and in order, and
nothing may be left open. Without minutes, AIOSTORE_SOAK_SECONDS says how long.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import itertools
import logging
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from aiostore import Event, EventStore, StoreFull
from aiostore.engines.file.disk import Disk
from aiostore.engines.file.engine import FileEngine
from tests.real.budgets import budget
from tests.real.children import die_with_parent
from tests.real.commands import ROOT
from tests.real.gauges import Gauges, grown

SMALL: dict[str, Any] = {"segment_bytes": 100_000, "part_bytes_min": 1}
SAMPLES = 20
SECONDS_BETWEEN_MAX = 5.0
CATCHING_UP_SECONDS = 60.0
LEFT_MAX = 2
"""Files and threads that there may be more at the end than at the beginning: the loop's own."""


class DiskNowAndThenFull(Disk):
    """The real disk, which has no room while it is told so: half of what is written comes there."""

    has_room = True

    def write_log(self, file: int, data: memoryview, offset: int, *, synced: bool) -> int:
        if self.has_room:
            return super().write_log(file, data, offset, synced=synced)
        super().write_log(file, data[: len(data) // 2], offset, synced=False)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Reading:
    """What a subscriber has had."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.position = 0

    def take(self, event: Event) -> None:
        """The next event, which must be the next."""
        assert event.event_id == self.position + 1, f"{self.name}: event {event.event_id} after {self.position}"
        self.position = event.event_id


class Soak:
    """The process's work, until `stop` is set."""

    def __init__(self, directory: Path, seconds: float) -> None:
        self._own = directory / "own"
        self._followed = directory / "followed"
        self._seconds = seconds
        self._dice = random.Random(1)
        self._disk = DiskNowAndThenFull()
        self._stop = asyncio.Event()
        self._quiet = asyncio.Lock()
        """Held while readers come and go, and while it is looked at what is held."""
        self._acknowledged = 0
        self._samples: list[Gauges] = []
        self.refused = self.killed = self.readers = 0

    async def run(self) -> None:
        """All of it; an AssertionError says what was wrong."""
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        before = Gauges.read()
        engine = FileEngine(self._own, disk=self._disk, **SMALL)
        async with EventStore(engine) as store, self._a_follower() as follower:
            readings = [Reading(name) for name in ("quick", "slow", "listener", "follower", "slow follower")]
            quick, slow, listener, following, slow_following = readings

            async def listen(events: list[Event]) -> None:
                for event in events:
                    listener.take(event)

            store.on_commit(listen)
            async with asyncio.TaskGroup() as reading:
                tasks = [
                    reading.create_task(self._read(store, quick, 0.0)),
                    reading.create_task(self._read(store, slow, 0.2)),
                    reading.create_task(self._read(follower, following, 0.0)),
                    reading.create_task(self._read(follower, slow_following, 0.2)),
                ]
                async with asyncio.TaskGroup() as working:
                    for n in range(3):
                        working.create_task(self._append(store, n))
                    working.create_task(self._fill_disk())
                    working.create_task(self._kill_writers(follower))
                    working.create_task(self._come_and_go())
                    working.create_task(self._watch())
                heads = [await store.head()] * 3 + [await follower.head()] * 2
                assert heads[-1] >= self._acknowledged, f"{self._acknowledged} acknowledged, {heads[-1]} are there"
                await self._caught_up(readings, heads)
                for task in tasks:
                    task.cancel()
        for path, count in ((self._own, heads[0]), (self._followed, heads[-1])):
            async with EventStore(path) as again:
                assert [event.event_id for event in await again.read_all().to_list()] == list(range(1, count + 1))
        after = Gauges.read()
        print(
            f"{heads[0]:,} events appended, {heads[-1]:,} followed; before: {before}; after: {after}", file=sys.stderr
        )
        assert after.tasks == before.tasks, f"tasks are left: {asyncio.all_tasks()}"
        left = after.files + after.segments - before.files
        assert left <= LEFT_MAX, f"{left} files are left"
        assert not grown(self._samples), f"not flat: {'; '.join(grown(self._samples))}"

    @contextlib.asynccontextmanager
    async def _a_follower(self) -> AsyncIterator[EventStore]:
        async with EventStore(self._followed, durability="fsync"):
            pass
        async with EventStore(FileEngine(self._followed, mode="r", **SMALL)) as follower:
            yield follower

    async def _append(self, store: EventStore, number: int) -> None:
        """Append, and again where there was no room."""
        for n in itertools.count():
            if self._stop.is_set():
                return
            events = [("T", {"n": n, "fill": "x" * self._dice.randrange(300)})] * self._dice.randrange(1, 4)
            try:
                await store.append_batch(f"stream-{number}-{n % 200}", events)
            except StoreFull:
                self.refused += 1
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.003)

    async def _fill_disk(self) -> None:
        while not self._stop.is_set():
            await asyncio.sleep(self._dice.random() * 2)
            self._disk.has_room = False
            await asyncio.sleep(self._dice.random() * 0.2)
            self._disk.has_room = True

    async def _read(self, store: EventStore, reading: Reading, pause_seconds: float) -> None:
        """Subscribe; a slow one waits every so often, so that its queue is full and it must read the log."""
        async with store.subscribe(queue_size=64) as events:
            async for event in events:
                reading.take(event)
                if pause_seconds and event.event_id % 200 == 0 and not self._stop.is_set():
                    await asyncio.sleep(pause_seconds)

    async def _kill_writers(self, follower: EventStore) -> None:
        """Writers in processes of their own append to the other store; what each was told is stored is seen here."""
        for seed in itertools.count():
            if self._stop.is_set():
                return
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.real.soak", "--writer", str(self._followed), "--seed", str(seed)),
                stdout=asyncio.subprocess.PIPE,
                cwd=ROOT,
            )
            assert process.stdout is not None
            try:
                for _ in range(self._dice.randrange(1, 300)):
                    self._heard(await process.stdout.readline())
                assert process.returncode is None, "a writer ended"
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            while line := await process.stdout.readline():
                self._heard(line)
            await process.wait()
            self.killed += 1
            assert await follower.head() >= self._acknowledged

    def _heard(self, line: bytes) -> None:
        if line.endswith(b"\n"):
            assert int(line) > self._acknowledged, "ids go up"
            self._acknowledged = int(line)

    async def _come_and_go(self) -> None:
        """Readers that open, read a little and close."""
        while not self._stop.is_set():
            async with self._quiet, EventStore(self._dice.choice((self._own, self._followed)), mode="r") as reader:
                found = await reader.read_all(backwards=True, limit=50).to_list()
                if found:
                    await anext(reader.subscribe(after=found[-1].event_id - 1))
                self.readers += 1
            await asyncio.sleep(self._dice.random())

    async def _watch(self) -> None:
        """Say what is held, until the time is over."""
        end = time.monotonic() + self._seconds
        pause = min(SECONDS_BETWEEN_MAX, self._seconds / SAMPLES)
        while (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(pause, left))
            async with self._quiet:
                self._samples.append(Gauges.read())
            told = f"{self.refused} appends refused, {self.killed} writers killed, {self.readers} readers came and went"
            print(f"{left:,.0f} s left: {self._samples[-1]}; {told}", file=sys.stderr, flush=True)
        self._stop.set()

    @staticmethod
    async def _caught_up(readings: list[Reading], heads: list[int]) -> None:
        async with asyncio.timeout(CATCHING_UP_SECONDS):
            while any(reading.position < head for reading, head in zip(readings, heads, strict=True)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def write(path: str, seed: int) -> None:
    """A writer that is killed some day."""
    dice = random.Random(seed)
    async with EventStore(FileEngine(path, **SMALL)) as store:
        while True:
            events = [("T", {"fill": "x" * dice.randrange(300)})] * dice.randrange(1, 4)
            stored = await store.append_batch(f"stream-{dice.randrange(50)}", events)
            print(stored[-1].event_id, flush=True)
            await asyncio.sleep(0.002)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m tests.real.soak", description="Everything at once, for long.")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--writer", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.disable(logging.ERROR)  # what recovery says of each torn tail is not for reading here
    if arguments.writer:
        die_with_parent()
        asyncio.run(write(arguments.writer, arguments.seed))
    seconds = arguments.minutes * 60 if arguments.minutes else budget("soak")
    with tempfile.TemporaryDirectory(prefix="aiostore-soak-") as directory:
        asyncio.run(Soak(Path(directory), seconds).run())
    print("flat")


if __name__ == "__main__":
    main()
