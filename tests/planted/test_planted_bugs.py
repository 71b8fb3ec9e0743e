"""Each of the bugs, planted in a copy of the package, makes the tests fail that are there to catch it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.planted.bugs import BUGS, CRASHES, Bug

pytestmark = pytest.mark.skipif(
    not (os.environ.get("CI") or os.environ.get("AIOSTORE_PLANTED")),
    reason="takes some minutes: set AIOSTORE_PLANTED=1",
)

ROOT = Path(__file__).parent.parent.parent
FAILED = 1
"""What pytest says where tests failed; other errors are more."""


def copy_of_the_project(directory: Path) -> Path:
    for part in ("aiostore", "tests"):
        shutil.copytree(ROOT / part, directory / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", directory)
    return directory


def run_tests(directory: Path, tests: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "--timeout",
        "60" if tests[0].startswith(CRASHES) else "20",
        *tests,
    ]
    environment = {**os.environ, "AIOSTORE_CRASH_STATES": "400", "CI": ""}
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("bug", BUGS, ids=[bug.name for bug in BUGS])
def test_it_is_caught(bug: Bug, tmp_path: Path) -> None:
    copy = copy_of_the_project(tmp_path)
    for path, right, wrong in ((bug.path, bug.right, bug.wrong), *bug.also):
        file = copy / path
        source = file.read_text()
        assert source.count(right) == 1, "the place to plant it"
        file.write_text(source.replace(right, wrong))
    run = run_tests(copy, bug.tests)
    assert run.returncode == FAILED, f"it was not caught: {run.stdout[-2000:]}{run.stderr[-2000:]}"


@pytest.mark.skipif(not os.environ.get("AIOSTORE_PLANTED"), reason="the suite runs these tests: set AIOSTORE_PLANTED=1")
def test_without_a_bug_these_tests_pass(tmp_path: Path) -> None:
    # Without the crash states: the suite tries many more of them than a planted bug needs to be found.
    tests = tuple(sorted({test for bug in BUGS for test in bug.tests if not test.startswith(CRASHES)}))
    run = run_tests(copy_of_the_project(tmp_path), tests)
    assert run.returncode == 0, run.stdout[-2000:]
