"""Projections whose process is killed: what they count in SQLite and by key is what was appended, each event once."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from pathlib import Path

from tests.file import counting


def test_processes_killed_at_random_count_each_event_once(tmp_path: Path) -> None:
    """An appender, a projection into SQLite and one by key in one process, killed again and again."""
    dice = random.Random(7)
    kills = 0
    for _ in range(6):
        with subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.file.counting", str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        ) as process:
            assert process.stdout is not None
            for _ in range(dice.randrange(5, 60)):
                assert process.stdout.readline(), "it ended by itself"
            process.kill()
            kills += 1
            process.wait()
        asyncio.run(counting.check(tmp_path, at_head=False))
    assert kills == 6
    asyncio.run(counting.check(tmp_path, at_head=True))
