"""The campaigns, with as much as a run of the tests has time for. See `python -m tests.real --help` for more."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.real.budgets import budget
from tests.real.commands import run, skip_without_mounts

KILLS, POWER_CUTS, FULL_DISKS = budget("kills"), budget("power-cuts"), budget("full-disks")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="writers are forked")
@pytest.mark.skipif(sys.platform == "darwin", reason="a forked process without exec is not safe on macOS")
@pytest.mark.parametrize("half", [0, 1])
def test_writers_are_killed_at_every_call_and_at_any_moment(tmp_path: Path, half: int) -> None:
    memory = Path("/dev/shm")  # a kill leaves the same there, and sooner
    where = memory if os.access(memory, os.W_OK) else tmp_path
    said = run("tests.real", "kills", f"--count={KILLS // 2}", f"--seed={2 * half}", f"--directory={where}")
    assert "nothing lost" in said


@pytest.mark.parametrize("half", [0, 1])
def test_the_power_is_cut_under_writers(tmp_path: Path, half: int) -> None:
    skip_without_mounts(loops=True)
    said = run(
        "tests.real", "power-cuts", f"--count={POWER_CUTS // 2}", f"--seed={3 * half}", f"--directory={tmp_path}"
    )
    assert f"{POWER_CUTS // 2:,} power cuts" in said


@pytest.mark.parametrize("half", [0, 1])
def test_disks_are_full(tmp_path: Path, half: int) -> None:
    skip_without_mounts()
    said = run(
        "tests.real", "full-disks", f"--count={FULL_DISKS // 2}", f"--seed={3 * half}", f"--directory={tmp_path}"
    )
    assert f"{FULL_DISKS // 2:,} disks" in said


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="what a process holds is not told here")
def test_a_process_holds_no_more_after_a_while() -> None:
    assert run("tests.real.soak").endswith("flat\n")
