"""Consumers under a scheduler that has its own clock: cancelled anywhere, and in whatever order things happen."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from aiostore import Consumer, EngineUnavailable, Event, EventStore, EventStoreError, OutcomeUnknown, Retry, StoreClosed
from aiostore.consumer.group import partition_of
from aiostore.engine import Saving
from aiostore.engines.memory import MemoryEngine
from tests.conformance.consuming import steal
from tests.scheduler.cancelling import cancel_everywhere
from tests.scheduler.engines import RestlessEngine, restless_memory
from tests.scheduler.loop import Order, SeededLoop

QUICK: dict[str, Any] = {"retry": Retry(3, 0.01, 0.02), "lease_s": 1.0, "checkpoint_every_s": 0.1}
STREAMS, EACH = 3, 3
STREAMS_TOGETHER = [name for name in map(str, range(400)) if partition_of(name) < 2][:8]
"""They fall into two partitions."""
SEEDS = int(os.environ.get("AIOSTORE_SEEDS") or ("150" if os.environ.get("CI") == "true" else "100"))


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL", "aiostore")


class Handled:
    """What was handled of each stream: every version, none before the one below it."""

    def __init__(self, chance: random.Random, fails: float = 0.0, slow: float = 0.0) -> None:
        self.skipped: set[tuple[str, int]] = set()
        self.at_once: set[str] = set()
        self.overlaps = 0
        self.versions: dict[str, list[int]] = defaultdict(list)
        self._chance = chance
        self._fails = fails
        self._slow = slow

    async def __call__(self, event: Event) -> None:
        stream = event.stream_id
        self.overlaps += stream in self.at_once
        self.at_once.add(stream)
        try:
            for _ in range(self._chance.randrange(3)):
                await asyncio.sleep(0)
            if self._chance.random() < self._slow:
                await asyncio.sleep(self._chance.random())
            if self._chance.random() < self._fails:
                raise ValueError("so it was chosen")
            self.versions[stream].append(event.version)
        finally:
            self.at_once.discard(stream)

    def check(self, each: dict[str, int]) -> None:
        for stream, count in each.items():
            done = self._skip(stream, 0)
            for version in self.versions[stream]:
                assert version <= done + 1, (stream, self.versions[stream], self.skipped)
                done = self._skip(stream, max(done, version))
            assert done == count, (stream, self.versions[stream])

    def _skip(self, stream: str, done: int) -> int:
        while (stream, done + 1) in self.skipped:
            done += 1
        return done


class Unreliable(RestlessEngine):
    """One that cannot save now and then, or does not know whether it did."""

    failing = False

    async def save_states(self, position: int, savings: Sequence[Saving]) -> Sequence[int]:
        how = self._chance.randrange(8) if self.failing else 8
        if how == 0:
            raise EngineUnavailable("so it was chosen")
        revisions = await super().save_states(position, savings)
        if how == 1:
            raise OutcomeUnknown("so it was chosen")
        return revisions


def alone() -> bool:
    return len(asyncio.all_tasks()) == 1


async def settled() -> None:
    async with asyncio.timeout(100):
        while not alone():  # noqa: ASYNC110 (tasks that end)
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("way", ["run", "block", "iterated"])
def test_cancelled_anywhere_a_consumer_loses_nothing_and_leaves_nothing(way: str, tmp_path: Path) -> None:
    async def scenario(number: int) -> None:
        chance = random.Random(number)
        store = await EventStore.open(restless_memory(chance, tmp_path, None)())
        for version in range(EACH):
            for stream in range(STREAMS):
                await store.append(f"s{stream}", "E", {"n": version})
        handled = Handled(random.Random(0))

        async def work() -> None:
            if way == "run":
                consumer = Consumer(store, "c", handled, **QUICK)
                running = asyncio.create_task(consumer.run())
                try:
                    await begun(consumer, running)
                    await consumer.wait_idle()
                finally:
                    await consumer.stop()
                    await asyncio.wait([running])
            elif way == "block":
                async with Consumer(store, "c", handled, **QUICK) as consumer:
                    await consumer.wait_idle()
            else:
                async with Consumer(store, "c", **QUICK) as consumer:
                    async for delivery in consumer:
                        async with delivery:
                            await handled(delivery.event)
                        if consumer.stats().handled_count == STREAMS * EACH:
                            break

        working = asyncio.create_task(work())
        await asyncio.wait([working])
        if not working.cancelled() and (error := working.exception()) is not None:
            assert isinstance(error, RuntimeError | StoreClosed), error  # who waits for it is told that it ended
        await settled()

        async def finish() -> None:
            async with Consumer(store, "c", handled, **{**QUICK, "lease_s": 0.3}) as consumer:
                await consumer_idle(consumer)

        for _ in range(2):  # where the first one was cancelled, the second is not
            finishing = asyncio.create_task(finish())
            await asyncio.wait([finishing])
            if not finishing.cancelled() and finishing.exception() is None:
                break
            await settled()
        else:
            raise AssertionError(finishing)
        handled.check({f"s{stream}": EACH for stream in range(STREAMS)})
        await store.aclose()
        await settled()

    names = cancel_everywhere(scenario)
    assert len(names) > 50


async def begun(consumer: Consumer, running: asyncio.Task[None]) -> None:
    while not (consumer.stats().is_running or running.done()):  # noqa: ASYNC110 (it begins in a moment)
        await asyncio.sleep(0)


async def consumer_idle(consumer: Consumer) -> None:
    async with asyncio.timeout(100):
        await consumer.wait_idle()


def storm(seed: int, directory: Path) -> tuple[int, int]:
    """Workers come, go, are killed and cancelled while events come in; how many were handled, and killed."""
    chance = random.Random(seed)
    engine = Unreliable(MemoryEngine(), chance)
    handled = Handled(chance, fails=chance.choice((0.0, 0.02, 0.5)), slow=chance.choice((0.0, 0.05, 0.2)))
    each: dict[str, int] = defaultdict(int)
    kills = 0

    async def play() -> None:
        nonlocal kills
        store = await EventStore.open(engine)
        engine.failing = chance.random() < 0.3
        steals = chance.random() < 0.3
        options = {**QUICK, "on_error": "park", "concurrency": chance.choice((1, 3, 16))}
        options["window_events"] = chance.choice((1, 10, 4096))
        workers: list[tuple[Consumer, asyncio.Task[None]]] = []

        async def append() -> None:
            for _ in range(chance.randrange(5, 60)):
                stream = chance.choice(STREAMS_TOGETHER)
                count = chance.randrange(1, 4)
                await store.append_batch(stream, [("E", {})] * count)
                each[stream] += count
                await asyncio.sleep(chance.choice((0, 0, 0.05, 0.3)))

        appending = asyncio.create_task(append())
        for _ in range(chance.randrange(1, 20)):
            if len(workers) < 3 and chance.random() < 0.7:
                worker = Consumer(store, "c", handled, **options)
                workers.append((worker, asyncio.create_task(worker.run())))
            await asyncio.sleep(chance.random() * 0.5)
            if workers and chance.random() < 0.5:
                worker, task = workers.pop(chance.randrange(len(workers)))
                kills += await end(chance, worker, task)
            if workers and chance.random() < 0.6:
                await asking(chance, workers[0][0], handled)
            if steals and chance.random() < 0.3:
                await steal(store)
        await appending
        engine.failing = False
        async with Consumer(store, "c", handled, **options) as last:
            for _ in range(300):
                await consumer_idle(last)
                if not await last.retry_parked():
                    break
            await consumer_idle(last)
            assert await last.parked() == []
            work = last._work
            assert work is not None
            assert {partition.position for partition in work._membership.group.partitions} == {await store.head()}
        for worker, task in workers:
            await worker.stop()
            await asyncio.wait([task])
            assert task.cancelled() or task.exception() is None or isinstance(task.exception(), EventStoreError)
        await store.aclose()
        await settled()
        assert steals or not handled.overlaps

    loop = SeededLoop(seed, chance.choice(list(Order)))
    try:
        loop.play(play())
        handled.check(each)
    except BaseException as error:
        raise AssertionError(f"seed {seed}: {error!r}") from error
    return sum(map(len, handled.versions.values())), kills


async def asking(chance: random.Random, worker: Consumer, handled: Handled) -> None:
    """Somebody asks for what is parked to be retried, or skipped."""
    with contextlib.suppress(EngineUnavailable, OutcomeUnknown, LookupError):
        parked = await worker.parked()
        if parked and chance.random() < 0.5:
            event = chance.choice(parked).event
            handled.skipped.add((event.stream_id, event.version))
            await worker.skip_parked(event.event_id)
        elif parked and chance.random() < 0.5:
            await worker.retry_parked(chance.choice(parked).event.stream_id)
        else:
            await worker.retry_parked()


async def end(chance: random.Random, worker: Consumer, task: asyncio.Task[None]) -> int:
    how = chance.randrange(3)
    if how == 0:
        await worker.stop()
    else:
        if how == 1 and worker._work is not None:
            worker._work._leave = _nothing  # type: ignore[method-assign]
        task.cancel()
    await asyncio.wait([task])
    assert task.cancelled() or task.exception() is None or isinstance(task.exception(), EventStoreError)
    return int(how > 0)


async def _nothing() -> None:
    """A worker that dies does not leave."""


@pytest.mark.parametrize("chunk", range(10))
def test_storms_of_workers(chunk: int, tmp_path: Path) -> None:
    kills = sum(storm(seed, tmp_path)[1] for seed in range(chunk, SEEDS, 10))
    assert kills
