"""The campaigns as tests run them: each a command in a process of its own, which is ended with the test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.real.budgets import CI
from tests.real.mounts import FILE_SYSTEMS, why_not

ROOT = Path(__file__).parent.parent.parent
ENDING_SECONDS = 20.0


def run(*command: str) -> str:
    """What the module says that is run so; it fails the test if it fails."""
    with subprocess.Popen(
        [sys.executable, "-m", *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    ) as process:
        try:
            said, _ = process.communicate()
        except BaseException:
            process.terminate()  # it unmounts, and ends its children
            try:
                process.wait(ENDING_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    assert process.returncode == 0, said
    return said


def skip_without_mounts(*, loops: bool = False) -> None:
    """Skip the test where no file system can be mounted, and where a tool is missing; in CI, that fails."""
    reason = why_not(loops=loops)
    if reason:
        pytest.skip(reason)
    missing = [system.missing for system in FILE_SYSTEMS if loops and system.missing]
    tools = ", ".join(sorted({*missing}))
    if missing and CI:
        pytest.fail(f"missing here, where they can be used: {tools}")
    if len(missing) == len(FILE_SYSTEMS):
        pytest.skip(f"not installed: {tools}")
