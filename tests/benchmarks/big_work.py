"""What is measured of a big store, each in a process of its own: ``python -m tests.benchmarks.big_work WORK …``.

It prints what it found, as JSON. What a process imports is not measured.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Self

from aiostore import EventStore, Query

from .big_store import STREAM_EVENTS, TAG_EVENTS, Contents
from .contest import idle, payload

STREAMS_READ = 1_000
READS = 40
QUERIES = 10
APPENDS = 100
STREAMS_APPENDED = 20


def peak_bytes() -> int:
    """The most memory that this process has had; on Linux, `getrusage` would tell that of the one that started it."""
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


async def fill(directory: str, events_count: str) -> dict[str, float]:
    """Make the store."""
    started = time.perf_counter()
    await Contents(int(events_count)).fill(Path(directory))
    return {"seconds": time.perf_counter() - started, "peak bytes": peak_bytes()}


async def fill_sqlite(path: str, events_count: str) -> dict[str, float]:
    """Make the database."""
    started = time.perf_counter()
    Contents(int(events_count)).fill_sqlite(Path(path))
    return {"seconds": time.perf_counter() - started}


async def open_and_read(directory: str, events_count: str, seed: str) -> dict[str, float]:
    """Open the store and read a stream."""
    contents = Contents(int(events_count))
    stream_id = contents.stream(random.Random(seed).randrange(contents.streams_count))
    started = time.perf_counter()
    async with EventStore(directory) as store:
        opened = time.perf_counter()
        events = await store.read_stream(stream_id).to_list()
        there = time.perf_counter()
    assert len(events) == STREAM_EVENTS
    return {"open": opened - started, "open and read": there - started}


async def memory(directory: str, events_count: str) -> dict[str, float]:
    """Open the store and read 1,000 streams, or as many as there are."""
    contents = Contents(int(events_count))
    found: dict[str, float] = {"imported": peak_bytes()}
    async with EventStore(directory) as store:
        found["opened"] = peak_bytes()
        for number in random.Random(11).sample(
            range(contents.streams_count), min(STREAMS_READ, contents.streams_count)
        ):
            read = [event.data["paid"] async for event in store.read_stream(contents.stream(number))]
            assert len(read) == STREAM_EVENTS
        found["read"] = peak_bytes()
    return found


@dataclass(frozen=True)
class Drawn:
    """What is asked of one store in one round, drawn by chance: nothing twice, but for the streams in use.

    The streams that are read are not those that are appended to, so that they stay as they were.
    """

    store: EventStore
    contents: Contents
    to_read: Sequence[int]
    to_append: Sequence[int]
    tags: Sequence[int]

    @classmethod
    def draw(cls, store: EventStore, contents: Contents, seed: int) -> Self:
        """As the seed says."""
        chance = random.Random(seed)
        read_below = contents.streams_count * 2 // 3
        return cls(
            store,
            contents,
            chance.sample(range(read_below), min(1 + READS, read_below)),
            chance.sample(range(read_below, contents.streams_count), min(READS, contents.streams_count // 3)),
            chance.sample(range(contents.tags_count), min(QUERIES, contents.tags_count)),
        )

    async def read(self, turn: int) -> None:
        """A stream that was not read before."""
        stream_id = self.contents.stream(self.to_read[turn])
        read = [event.data["paid"] async for event in self.store.read_stream(stream_id)]
        assert len(read) == STREAM_EVENTS

    async def ask(self, turn: int) -> None:
        """For a tag that was not asked for before."""
        query = Query.where(tags=[self.contents.tag(self.tags[turn])])
        found = [event.data["paid"] async for event in self.store.read_all(query=query)]
        assert len(found) == TAG_EVENTS

    async def append_to_rest(self, turn: int) -> None:
        """To a stream that nothing was asked of before."""
        await self.store.append(self.contents.stream(self.to_append[turn]), "OrderPlaced", payload(turn))

    async def append(self, turn: int) -> None:
        """To one of a few streams."""
        await self.store.append(f"in-use-{turn % STREAMS_APPENDED}", "OrderPlaced", payload(turn))


async def in_turn(works: Sequence[Callable[[int], Awaitable[object]]], turns: range) -> list[float]:
    """The median time of each of the works, in milliseconds, all of which are done at each turn."""
    gc.collect()
    took: list[list[float]] = [[] for _ in works]
    for turn in turns:
        for work, times in zip(works, took, strict=True):
            started = time.perf_counter()
            await work(turn)
            times.append((time.perf_counter() - started) * 1e3)
    return [median(times) for times in took]


async def costs_once(stores: Sequence[tuple[str, Contents]], seed: int) -> dict[str, list[float]]:
    """The costs of stores that are opened for it, in milliseconds, by name and store."""
    found: dict[str, list[float]] = {"open and first read": []}
    async with AsyncExitStack() as stack:
        drawn: list[Drawn] = []
        for directory, contents in stores:
            started = time.perf_counter()
            store = await stack.enter_async_context(EventStore(directory))
            drawn.append(Drawn.draw(store, contents, seed))
            await drawn[-1].read(0)
            found["open and first read"].append((time.perf_counter() - started) * 1e3)
        await idle()
        reads = min(len(one.to_read) for one in drawn)
        found["read a stream of 100"] = await in_turn([one.read for one in drawn], range(1, reads))
        queries = min(len(one.tags) for one in drawn)
        found["query by tag, 100 found"] = await in_turn([one.ask for one in drawn], range(queries))
        appends = min(len(one.to_append) for one in drawn)
        found["append, stream not in use"] = await in_turn([one.append_to_rest for one in drawn], range(appends))
        await in_turn([one.append for one in drawn], range(STREAMS_APPENDED))
        found["append"] = await in_turn([one.append for one in drawn], range(APPENDS))
    return found


async def costs(rounds: str, *sizes: str) -> dict[str, list[list[float]]]:
    """The costs of several stores, each given by its directory and the number of its events; by name, round and store.

    Each round draws anew what it asks for.
    """
    stores = [(directory, Contents(int(count))) for directory, count in zip(sizes[::2], sizes[1::2], strict=True)]
    found: dict[str, list[list[float]]] = {}
    for seed in range(int(rounds)):
        for name, values in (await costs_once(stores, seed)).items():
            found.setdefault(name, []).append(values)
    return found


WORKS: dict[str, Callable[..., Awaitable[Any]]] = {
    work.__name__: work for work in (fill, fill_sqlite, open_and_read, memory, costs)
}


async def main(name: str, *arguments: str) -> None:
    """Do it and print what was found."""
    print(json.dumps(await WORKS[name](*arguments)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
