"""Storms by seed: whatever the order in which things happen, the promises hold.

AIOSTORE_SEEDS says how many; AIOSTORE_SEED=n runs seed n alone.
"""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.scheduler.campaign import digest, rage

SEEDS = int(os.environ.get("AIOSTORE_SEEDS") or ("200" if os.environ.get("CI") == "true" else "100"))
CHUNKS = 20


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Handlers that raise are logged, in storms as elsewhere; only what is critical must not be."""
    caplog.set_level(logging.CRITICAL, logger="aiostore")
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    assert not caplog.records


def chosen_seeds(chunk: int) -> Sequence[int]:
    """The seeds of a chunk."""
    alone = os.environ.get("AIOSTORE_SEED")
    if alone is not None:
        return [int(alone)] if int(alone) % CHUNKS == chunk else []
    return range(chunk, SEEDS, CHUNKS)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_the_promises_hold_in_every_storm(chunk: int, tmp_path: Path) -> None:
    for seed in chosen_seeds(chunk):
        rage(seed, tmp_path / str(seed))
        gc.collect()  # a task that was left behind makes itself heard


def test_a_seed_has_the_same_storm_again_also_in_another_process(tmp_path: Path) -> None:
    seeds = range(15)
    noted = [digest(rage(seed, tmp_path / str(seed))) for seed in seeds]
    assert len(set(noted)) == len(seeds)
    program = (
        "import logging, pathlib, sys; from tests.scheduler.campaign import digest, rage; logging.disable()\n"
        "for seed in map(int, sys.argv[2:]): print(digest(rage(seed, pathlib.Path(sys.argv[1], str(seed)))))"
    )
    again = tmp_path / "again"
    again.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", program, again, *map(str, seeds)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == noted
