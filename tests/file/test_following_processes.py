"""Writers in processes of their own, killed in the midst of their work, beside readers that follow."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
from pathlib import Path

import pytest

from aiostore import Event, EventStore, LiveProjection, StoreClosed

ROUNDS = int(os.environ.get("AIOSTORE_KILLS", "6"))
"""A long campaign is the same with more."""
ROOT = Path(__file__).parent.parent.parent
DEADLINE_S = 60.0

WRITER = """
import asyncio, random, sys
from tests.file.driver import started
async def main():
    path, durability, seed, groups = sys.argv[1:]
    dice = random.Random(int(seed))
    size = dice.choice((2000, 20_000))
    engine, driver = await started(path, durability=durability, segment_bytes=size, part_bytes_min=1)
    print(driver.head, flush=True)
    for _ in range(int(groups)):
        group = [
            [
                (f"s{dice.randrange(5)}", "T", {"n": size - i, "of": size, "fill": "x" * dice.randrange(300)})
                for i in range(size)
            ]
            for size in (dice.randrange(1, 6) for _ in range(dice.randrange(1, 5)))
        ]
        await driver.commit(*group)
        print(driver.head, flush=True)
    await engine.aclose()
asyncio.run(main())
"""


class Writer:
    """A process that appends, and says up to which event it was told that all is stored."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.head = 0

    @classmethod
    async def start(cls, path: Path, durability: str, seed: int, groups: int) -> Writer:
        arguments = (sys.executable, "-c", WRITER, str(path), durability, str(seed), str(groups))
        return cls(await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE, cwd=ROOT))

    async def hear(self) -> bool:
        """The next thing that it says; False at the end."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line.endswith(b"\n"):
            return False
        self.head = int(line)
        return True

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        while await self.hear():
            pass
        await self._process.wait()

    async def end(self) -> None:
        while await self.hear():
            pass
        assert await self._process.wait() == 0


async def follow(store: EventStore, seen: list[Event]) -> None:
    with contextlib.suppress(StoreClosed):
        async for event in store.subscribe(after=len(seen)):
            assert event.event_id == len(seen) + 1
            seen.append(event)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("durability", ["fsync", "os"])
async def test_writers_are_killed_and_those_who_follow_go_on(tmp_path: Path, durability: str) -> None:
    dice = random.Random(5)
    path = tmp_path / "s"
    async with EventStore(path, durability="fsync") as store:
        first = await store.append("s0", "T", {"n": 1, "of": 1})
    seen: list[Event] = []
    late: list[list[Event]] = []
    acknowledged = 0
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(contextlib.suppress(StoreClosed))
        reader = await stack.enter_async_context(EventStore(path, mode="r"))
        counts = LiveProjection[dict[str, int]]("counts", reader)
        counts.when("T", lambda state, event: state.update({event.stream_id: state.get(event.stream_id, 0) + 1}))
        await stack.enter_async_context(counts)
        tasks = [asyncio.ensure_future(follow(reader, seen))]
        for number in range(ROUNDS):
            writer = await Writer.start(path, durability, number, 10_000)
            for _ in range(dice.randrange(1, 30)):
                assert await writer.hear()
                if durability == "fsync":
                    # What another process was told is stored, a read that begins here sees.
                    assert await reader.head() >= writer.head
            if number % 3 == 0:
                other = await stack.enter_async_context(EventStore(path, mode="r"))
                late.append([])
                tasks.append(asyncio.ensure_future(follow(other, late[-1])))
            await writer.kill()
            assert writer.head >= acknowledged or durability == "os"
            acknowledged = max(acknowledged, writer.head)
            if number % 3 == 1:  # no writer is alive
                other = await stack.enter_async_context(EventStore(path, mode="r"))
                late.append([])
                tasks.append(asyncio.ensure_future(follow(other, late[-1])))
                assert await other.head() >= acknowledged
        writer = await Writer.start(path, durability, ROUNDS, 20)
        await writer.end()
        assert writer.head >= acknowledged, "what was acknowledged survives the process"
        await counts.wait_for(writer.head, timeout=DEADLINE_S)
        async with asyncio.timeout(DEADLINE_S):
            while min(len(seen), *map(len, late)) < writer.head:  # noqa: ASYNC110 (what tasks do is looked for)
                await asyncio.sleep(0.01)
        log = await reader.read_all().to_list()
        assert counts.state == {f"s{n}": await reader.stream_version(f"s{n}") for n in range(5)}
    await asyncio.gather(*tasks)
    assert log[0] == first
    assert len(log) == writer.head
    for each in (seen, *late):
        assert each == log
    async with EventStore(path) as store:
        assert await store.read_all().to_list() == log
    left = 0
    for event in log:  # commits are whole
        assert event.data["n"] == (left or event.data["of"])
        left = event.data["n"] - 1
    assert left == 0
