"""A log that a test writes by hand, byte by byte, beside a reader that follows it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from aiostore import Event, EventStore, Subscription
from aiostore.engine import FIRST_TIMESTAMP, Commit, Engine, Head, Plan
from aiostore.engines.file.disk import Disk
from aiostore.engines.file.engine import FileEngine
from aiostore.engines.file.format import HEAD_NAME, encode_group, encode_slot, line_seed, segment_name
from aiostore.engines.file.manifest import create_manifest
from tests.file.disks import MemoryDisk
from tests.file.driver import Driver, New, everything

STORE_ID = "000102030405060708090a0b0c0d0e0f"


class HandWritten:
    """A store at /s whose writer is the test: it writes lines, and says what is durable, as it likes."""

    def __init__(self, disk: MemoryDisk | None = None, *, head: bool = True, segment: bool = True) -> None:
        self.disk = disk or MemoryDisk()
        self.disk.make_directory("/s")
        create_manifest(self.disk, "/s", STORE_ID, "now")
        self.first = 1
        """The first event of the segment that is written."""
        self.slot = 0
        self.made: list[Event] = []
        """All events, in order."""
        self._driver = Driver(None, Head(0, FIRST_TIMESTAMP))
        if head:
            self.say(0)
            self.say(0)
        if segment:
            self.roll()

    @property
    def path(self) -> str:
        """That of the segment that is written."""
        return f"/s/{segment_name(self.first)}"

    def lines(self, *commits: list[New]) -> bytes:
        """The bytes of a group of the next commits."""
        plan: Plan = self._driver.plan(*commits)
        for commit in plan.commits:
            self.made.extend(commit.events)
        seed = line_seed(STORE_ID, self.first)
        return b"".join(
            lines.data for lines in encode_group(plan.commits, seed, plan.commits[0].events[0].event_id - 1)
        )

    def forget(self, count: int) -> None:
        """The last events were not stored: their places are free again."""
        for event in self.made[len(self.made) - count :]:
            self._driver.versions[event.stream_id] -= 1
        del self.made[len(self.made) - count :]
        self._driver.head -= count

    def put(self, data: bytes) -> None:
        """Write at the end of the segment."""
        self.disk.put(self.path, data)

    def write(self, *commits: list[New]) -> None:
        """Write a group of commits, and say that it is durable."""
        self.put(self.lines(*commits))
        self.say(len(self.made))

    def roll(self) -> None:
        """Begin the next segment."""
        self.first = len(self.made) + 1
        self.disk.put(self.path, b"")

    def say(self, durable: int) -> None:
        """Say in the head file what is durable."""
        self.disk.put(f"/s/{HEAD_NAME}", encode_slot(durable, STORE_ID), self.slot * 512)
        self.slot = 1 - self.slot


class Following:
    """What a follower of a store has seen, through `Engine.commits_after`, as the tailer sees it."""

    def __init__(self, engine: Engine, start: int) -> None:
        self.engine = engine
        self.start = start
        self.seen: list[Event] = []

    @classmethod
    async def open(cls, path: Any = "/s", disk: Disk | None = None, **options: Any) -> Following:
        engine = FileEngine(path, mode="r", disk=disk, **options)
        return cls(engine, (await engine.open()).event_id)

    @property
    def position(self) -> int:
        return self.seen[-1].event_id if self.seen else self.start

    async def look(self) -> list[Commit]:
        """Take what there is now."""
        taken: list[Commit] = []
        while commits := await self.engine.commits_after(self.position):
            taken.extend(commits)
            for commit in commits:
                for event in commit.events:
                    assert event.event_id == self.position + 1, "no gap, no double"
                    self.seen.append(event)
        return taken

    async def check(self, log: Sequence[Event]) -> None:
        """What was seen, and whatever is read, is a beginning of the log; returns with all of that compared."""
        assert self.seen == list(log[self.start : self.position])
        whole = list(log[: self.position])
        assert await everything(self.engine) == whole
        assert await everything(self.engine, backwards=True) == whole[::-1]
        for stream_id in {event.stream_id for event in whole}:
            stream = [event for event in whole if event.stream_id == stream_id]
            assert await everything(self.engine, stream_id=stream_id) == stream
            assert await everything(self.engine, stream_id=stream_id, from_version=len(stream)) == stream[-1:]

    async def aclose(self) -> None:
        await self.engine.aclose()


DEADLINE_S = 30.0
"""Longer, and something is stuck."""


def reader_of(path: Any, disk: Disk | None = None, **options: Any) -> EventStore:
    """A store that reads, on a disk of the test's."""
    return EventStore(FileEngine(path, mode="r", disk=disk, **options))


async def take(events: Subscription, count: int) -> list[int]:
    """The ids of the next events."""
    async with asyncio.timeout(DEADLINE_S):
        return [(await anext(events)).event_id for _ in range(count)]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what others do."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 (there is nothing to wait for but what is seen)
            await asyncio.sleep(0.001)
