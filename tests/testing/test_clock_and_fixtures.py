"""The clock that is moved by hand, the store in memory, and the fixtures, in both modes of pytest-asyncio."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from aiostore.testing import FakeClock, memory_store


def test_the_clock_stands_still_until_it_is_moved() -> None:
    clock = FakeClock()
    first = clock()
    assert first.tzinfo is UTC
    assert clock() == clock.now == first
    assert clock.advance(1.5) == first + timedelta(seconds=1.5)
    assert clock.advance(timedelta(days=1)) == clock() == first + timedelta(days=1, seconds=1.5)
    with pytest.raises(ValueError, match="forward"):
        clock.advance(-1)
    clock.set(datetime(2020, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))))
    assert repr(clock) == "<FakeClock 2020-01-01T00:00:00+00:00>"
    for make in (lambda: clock.set(datetime(2020, 1, 1)), lambda: FakeClock(datetime(2020, 1, 1))):
        with pytest.raises(ValueError, match="aware"):
            make()


async def test_a_store_in_memory_has_its_time_from_the_clock() -> None:
    clock = FakeClock(datetime(2020, 1, 1, tzinfo=UTC))
    async with memory_store(clock=clock) as store:
        assert (await store.append("s", "E", {})).timestamp == clock.now
        clock.advance(60)
        assert (await store.append("s", "E", {})).timestamp == datetime(2020, 1, 1, 0, 1, tzinfo=UTC)
    async with memory_store() as store:
        assert (await store.append("s", "E", {})).timestamp > datetime(2026, 1, 1, tzinfo=UTC)


TESTS = """
import pytest
from aiostore.testing import FakeClock
{mark}
async def test_the_store(event_store, memory_store, fake_clock):
    assert event_store is memory_store
    assert await event_store.head() == 0
    fake_clock.advance(5)
    assert (await event_store.append("s", "E", {{}})).timestamp == fake_clock.now
{mark}
async def test_it_is_another_one(memory_store):
    assert await memory_store.head() == 0
def test_the_clock(fake_clock):
    assert fake_clock() == FakeClock()()
"""


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_the_fixtures_work_in_both_modes(tmp_path: Path, mode: str) -> None:
    mark = "@pytest.mark.asyncio" if mode == "strict" else ""
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["aiostore.testing.fixtures"]\n')
    settings = f"asyncio_mode = {mode}\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n"
    (tmp_path / "pytest.ini").write_text(f"[pytest]\n{settings}")
    (tmp_path / "test_it.py").write_text(TESTS.format(mark=mark))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:anyio", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
