"""The benchmarks work; what they say is not looked at, for this machine may be busy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.postgres.fixtures import require_postgres

CHECKOUT = Path(__file__).parents[1]
GOALS = 23
BIG_GOALS = 7
POSTGRES_GOALS = 4


def run_benchmarks(directory: Path, *options: str) -> str:
    """What the benchmarks print, at a hundredth of their size."""
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks",
        "--scale",
        "0.01",
        "--rounds",
        "2",
        "--directory",
        str(directory),
    ]
    done = subprocess.run([*command, *options], cwd=CHECKOUT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_goal_is_measured(tmp_path: Path) -> None:
    found: dict[str, Any] = json.loads(run_benchmarks(tmp_path, "--json"))
    assert len([result for result in found["results"] if result["goal"]]) == GOALS
    assert all(result["ours_median"] > 0 for result in found["results"])
    assert all(result["peer_median"] > 0 for result in found["results"] if result["peer"])


def test_each_goal_on_postgres_is_measured(tmp_path: Path) -> None:
    require_postgres()
    found: dict[str, Any] = json.loads(run_benchmarks(tmp_path, "--engine", "postgres", "--json"))
    assert len([result for result in found["results"] if result["goal"]]) == POSTGRES_GOALS
    assert all(result["ours_median"] > 0 and result["peer_median"] > 0 for result in found["results"])
    assert found["machine"]["server"].startswith("postgres (PostgreSQL)")


def test_the_results_are_a_table(tmp_path: Path) -> None:
    printed = run_benchmarks(tmp_path, "--only", "1")
    assert "| one durable append at a time, p50 | aiostore |" in printed
    assert "\n| write + fdatasync |" in printed


def test_what_has_no_peer_is_in_the_table(tmp_path: Path) -> None:
    assert "live subscribers to all, deliveries | async for, batches of 100 |" in run_benchmarks(
        tmp_path, "--only", "8"
    )


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    run_benchmarks(tmp_path, "--only", "3")
    assert not list(tmp_path.iterdir())


def test_flatness_is_measured_and_drawn(tmp_path: Path) -> None:
    plot = tmp_path / "costs.svg"
    command = [sys.executable, "-m", "tests.benchmarks.big", "--events", "20000", "--rounds", "2", "--json"]
    command += ["--directory", str(tmp_path), "--plot", str(plot)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert len([figure for figure in found["figures"] if figure["goal"]]) == BIG_GOALS
    assert all(figure["value"] > 0 for figure in found["figures"])
    assert found["sizes"] == [2_000, 20_000]
    assert all(len(values) == 2 and min(values) > 0 for values in found["costs"].values())
    assert "events in the store" in plot.read_text()
    assert list(tmp_path.iterdir()) == [plot]
