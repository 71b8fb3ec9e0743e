"""Several workers of one consumer: they share the streams, and take over from those that leave or die."""

from __future__ import annotations

import asyncio
import os
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from aiostore import Consumer, Event, EventStore
from tests.conformance.consuming import Gated, Seen, background, becomes, consumer, fill, idle, kill

LEASE_S = 1.0
"""So long a busy machine may keep a worker from showing that it is alive."""

SAFE: dict[str, Any] = {"lease_s": 4.0}
"""Where nobody is to be taken for dead."""


def shares(*workers: Consumer) -> list[float]:
    return [worker.stats().share for worker in workers]


async def test_workers_share_the_streams_and_take_over_from_those_that_leave(store: EventStore) -> None:
    seen = Seen()
    first, second, third = (consumer(store, seen, **SAFE) for _ in range(3))
    async with first:
        assert shares(first) == [1.0]
        async with second, third:
            await becomes(lambda: sorted(shares(first, second, third)) == [21 / 64, 21 / 64, 22 / 64])
            await fill(store, 30, 4)
            await idle(first)
            assert all(worker.stats().handled_count for worker in (first, second, third))
        await becomes(lambda: shares(first) == [1.0])
        await fill(store, 30, 1)
        await idle(first)
    assert seen.by_stream() == {f"s{stream}": [1, 2, 3, 4, 5] for stream in range(30)}
    assert len(seen.ids) == 150, "nothing came twice: all left in an orderly way"


async def test_a_handover_waits_for_what_is_in_hand(store: EventStore) -> None:
    await fill(store, 20, 2)
    seen = Gated()
    async with consumer(store, seen, concurrency=100, **SAFE) as first:
        await becomes(lambda: len(seen.at_once) == 20)
        async with consumer(store, seen, concurrency=100, **SAFE) as second:
            await becomes(lambda: second.stats().share > 0)
            assert len(seen.at_once) == 20, "none is handled by both"
            seen.gate.set()
            await becomes(lambda: shares(first, second) == [0.5, 0.5])
            await idle(second)
    assert seen.by_stream() == {f"s{stream}": [1, 2] for stream in range(20)}
    assert len(seen.ids) == 40


async def test_what_a_dead_worker_had_goes_to_the_others(store: EventStore) -> None:
    seen = Seen()
    async with consumer(store, seen, lease_s=LEASE_S) as first:
        second = consumer(store, seen, lease_s=LEASE_S)
        await second.__aenter__()
        await becomes(lambda: shares(first, second) == [0.5, 0.5])
        await fill(store, 20, 2)
        await kill(second)
        seen.at_once.clear()
        await fill(store, 20, 2)
        await idle(first)
        assert shares(first) == [1.0]
    for versions in seen.by_stream().values():
        assert list(dict.fromkeys(versions)) == [1, 2, 3, 4]


async def test_one_that_comes_back_from_the_dead_records_nothing_and_joins_anew(
    store: EventStore, caplog: pytest.LogCaptureFixture
) -> None:
    await fill(store, 10, 1)
    zombie_seen, seen = Gated(), Seen()
    zombie = consumer(store, zombie_seen, lease_s=LEASE_S)
    async with background(zombie):
        await becomes(lambda: len(zombie_seen.at_once) == 10)
        work = zombie._work
        assert work is not None
        sleeping = asyncio.Event()
        step = work.step

        async def asleep() -> None:
            await sleeping.wait()
            await step()

        work.step = asleep  # type: ignore[method-assign]
        async with consumer(store, seen, lease_s=LEASE_S) as other:
            await becomes(lambda: len(seen.events) == 10)
            sleeping.set()
            await becomes(lambda: "taken for dead" in caplog.text)
            await becomes(lambda: sorted(shares(zombie, other)) == [0.5, 0.5])
            assert not zombie_seen.events, "its handlers were cancelled"
            zombie_seen.gate.set()
            await fill(store, 10, 1)
            await idle(other)
    assert sorted([*seen.ids, *zombie_seen.ids]) == list(range(1, 21))


async def test_parked_streams_move_with_their_share(store: EventStore, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL", "aiostore")
    await fill(store, 20, 2)
    seen = Seen(lambda event: event.version == 1)
    async with consumer(store, seen, on_error="park", **SAFE) as first:
        await idle(first)
        assert first.stats().parked_count == 20
        async with consumer(store, seen, on_error="park", **SAFE) as second:
            await becomes(lambda: shares(first, second) == [0.5, 0.5])
            assert first.stats().parked_count + second.stats().parked_count == 20
            seen.refuses = lambda event: False
            assert await first.retry_parked() == 20
            await idle(first)
            await becomes(lambda: len(seen.events) == 40)
            await idle(second)
            assert await second.parked() == []
    assert seen.by_stream() == {f"s{stream}": [1, 2] for stream in range(20)}


class Flaky:
    """A handler that notes what it handled, waits here and there, and fails now and then."""

    def __init__(self, dice: random.Random, fails_every: int) -> None:
        self.dice = dice
        self.fails_every = fails_every
        self.handled: dict[str, list[int]] = defaultdict(list)

    async def __call__(self, event: Event) -> None:
        if self.dice.random() < 0.05:
            await asyncio.sleep(self.dice.choice((0, 0, 0.001)))
        if self.fails_every and self.dice.randrange(self.fails_every) == 0:
            raise ValueError("so it was chosen")
        self.handled[event.stream_id].append(event.version)

    def check(self, streams: int, each: int) -> None:
        assert len(self.handled) == streams
        for stream, versions in self.handled.items():
            assert set(versions) == set(range(1, each + 1)), stream
            done = 0
            for version in versions:  # what comes again begins at an earlier one, and no version is left out
                assert version <= done + 1, (stream, versions)
                done = max(done, version)


async def rage(store: EventStore, streams: int, each: int, kills: int, seed: int) -> Flaky:
    """A group whose workers are killed, stopped and started at random, while events come in; until all are handled."""
    dice = random.Random(seed)
    handler = Flaky(dice, 500)
    options: dict[str, Any] = {"lease_s": LEASE_S, "checkpoint_every_s": 0.01, "concurrency": 8}
    workers: list[Consumer] = []

    async def append() -> None:
        for _ in range(each):
            for stream in range(0, streams, 50):
                batch = min(50, streams - stream)
                await asyncio.gather(*(store.append(f"s{stream + n}", "E", {}) for n in range(batch)))

    appending = asyncio.create_task(append())
    for _ in range(kills):
        while len(workers) < 3:
            workers.append(consumer(store, handler, **options))
            await workers[-1].__aenter__()
        await asyncio.sleep(dice.random() * 0.05)
        victim = workers.pop(dice.randrange(len(workers)))
        await (kill(victim) if dice.random() < 0.7 else victim.stop())
    await appending
    async with consumer(store, handler, **options) as last:
        workers.append(last)
        async with asyncio.timeout(240):
            await last.wait_idle()
            assert last._work is not None
            assert {each.position for each in last._work._membership.group.partitions} == {await store.head()}
    for worker in workers:
        await worker.stop()
    return handler


@pytest.mark.parametrize("seed", range(2))
async def test_under_random_kills_every_event_is_handled_and_no_order_is_broken(
    store: EventStore, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL", "aiostore")
    (await rage(store, 60, 10, 8, seed)).check(60, 10)


MANY = (1_000, 100) if os.environ.get("CI") == "true" else (200, 20)
"""Streams, and events in each: all of them in CI, or by hand with CI=true."""


@pytest.mark.parametrize("place", ["memory", "directory"])
async def test_under_kills_among_a_hundred_thousand_events(
    place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL", "aiostore")
    async with EventStore(None if place == "memory" else tmp_path / "s") as store:
        (await rage(store, *MANY, 20, 0)).check(*MANY)
