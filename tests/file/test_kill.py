"""A process killed while it appends: what it was told is stored is there, and only whole commits are."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

from tests.file.driver import everything, started

ROUNDS = int(os.environ.get("AIOSTORE_KILLS", "200" if os.environ.get("CI") else "20"))

WRITER = """
import asyncio, random, sys
from tests.file.driver import started
async def main():
    path, durability, seed = sys.argv[1:]
    dice = random.Random(int(seed))
    engine, driver = await started(path, durability=durability, segment_bytes=20_000)
    while True:
        group = [
            [
                (f"s{dice.randrange(5)}", "T", {"n": size - i, "of": size, "fill": "x" * dice.randrange(300)})
                for i in range(size)
            ]
            for size in (dice.randrange(1, 6) for _ in range(dice.randrange(1, 5)))
        ]
        await driver.commit(*group)
        print(driver.head, flush=True)
asyncio.run(main())
"""


async def test_killed_while_appending(tmp_path: Path) -> None:
    dice = random.Random(7)
    acknowledged = kept = 0
    for number in range(ROUNDS):
        durability = ("fsync", "os")[number % 2]
        command = [sys.executable, "-c", WRITER, str(tmp_path / "s"), durability, str(number)]
        root = Path(__file__).parent.parent.parent
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) as writer:  # noqa: ASYNC220 (alone in this loop)
            assert writer.stdout is not None
            for _ in range(dice.randrange(1, 40)):
                acknowledged = int(writer.stdout.readline())
            writer.kill()
            for line in writer.stdout:  # told before it died
                acknowledged = int(line) if line.endswith(b"\n") else acknowledged
        engine, _ = await started(tmp_path / "s", durability=durability, segment_bytes=20_000)
        events = await everything(engine)
        assert [event.event_id for event in events] == list(range(1, len(events) + 1))
        assert len(events) >= max(acknowledged, kept), "what was acknowledged or seen is there"
        left = 0
        for event in events:  # each commit counts down its events
            if left:
                assert event.data["n"] == left
            else:
                assert event.data["n"] == event.data["of"]
            left = event.data["n"] - 1
        assert left == 0, "the last commit is whole"
        kept = len(events)
        await engine.aclose()
    assert acknowledged > ROUNDS
