"""The conformance suite on somebody else's engine, in a directory of its own: it finds the faulty ones."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ENGINE = Path(__file__).parent / "engine_of_others" / "tiny_engine.py"

CONFTEST = """
import pytest
from tiny_engine import Shelf, TinyEngine

pytest_plugins = ["aiostore.testing.conformance.fixtures"]

@pytest.fixture
def new_location():
    return lambda: TinyEngine(Shelf())

@pytest.fixture
def reopen_at():
    return lambda engine: TinyEngine(engine.shelf)
"""

TESTS = "from aiostore.testing.conformance.suite import *\n"

SETTINGS = "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"


def run_suite(directory: Path, fault: tuple[str, str] | None, *options: str) -> tuple[int, str]:
    """The exit code and what pytest says of the engine with the fault in it."""
    shutil.copy(ENGINE, directory)
    if fault is not None:
        engine = directory / ENGINE.name
        sound = engine.read_text()
        assert sound.count(fault[0]) == 1
        engine.write_text(sound.replace(*fault))
    (directory / "conftest.py").write_text(CONFTEST)
    (directory / "test_engine.py").write_text(TESTS)
    (directory / "pytest.ini").write_text(SETTINGS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:anyio", "-p", "no:cacheprovider", *options]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=800, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_sound_engine_passes(tmp_path: Path) -> None:
    code, said = run_suite(tmp_path, None)
    assert code == 0, said
    passed = re.search(r"(\d+) passed", said)
    assert passed is not None
    assert int(passed[1]) > 400
    assert "skipped" not in said


@pytest.mark.parametrize(
    ("fault", "tests"),
    [
        (("self.shelf.events.extend(commit.events)", "self.shelf.events.extend(commit.events[:1])"), "batch"),
        (("<= selection.up_to", "< selection.up_to"), "append"),
        (("if selection.backwards:\n            found", "if False:\n            found"), "backwards"),
        (("expected_revision != revision", "False"), "revision"),
    ],
    ids=["commits in part", "the last event hidden", "backwards forwards", "any revision"],
)
def test_a_faulty_engine_does_not(tmp_path: Path, fault: tuple[str, str], tests: str) -> None:
    code, said = run_suite(tmp_path, fault, "-x", "-k", tests)
    assert code == 1, said
    assert "1 failed" in said
