"""Every branch of the core is gone through: of judging, committing and publishing, and of the log's bytes and recovery.

    .venv/bin/python -m tests.coverage_of_the_core

It runs the tests that go through these modules, fails if one does or if a branch is left out, and names it. It takes
about a minute. Which modules the core is, is said in pyproject.toml, ``[tool.coverage.run]``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

TESTS = [
    "test_judgements.py",
    "test_judging.py",
    "test_ring.py",
    "test_fanout.py",
    "test_failures_found.py",
    "shared",
    "conformance/test_append.py",
    "conformance/test_cancellation.py",
    "conformance/test_closing.py",
    "conformance/test_conditions.py",
    "conformance/test_handlers_that_append.py",
    "conformance/test_listeners.py",
    "conformance/test_slow_subscriptions.py",
    "file/test_format.py",
    "file/test_head.py",
    "file/test_recovery.py",
    "file/test_scan.py",
    "file/test_segment.py",
    "file/test_survey.py",
]

LEFT_OUT = [
    # The same on engines that are no part of the core.
    "[file",
    "[sealed",
    "[postgres",
    "_file]",
    # Long, and through nothing that the others don't go through.
    "test_a_cut_at_every_byte",
    "test_a_killed_process",
    "test_a_power_loss_at_every_change",
    "test_a_flipped_bit_of_any_byte",
    "test_200_tasks_that_retry",
    "_64_mib_",
    "_100000_events_",
]


class LeaveOut:
    """A plugin of pytest that drops these tests."""

    @staticmethod
    def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
        """Keep the others."""
        items[:] = [item for item in items if not any(name in item.nodeid for name in LEFT_OUT)]


def main() -> int:
    """Run them; 0 if all is well."""
    tests = [str(HERE / name) for name in TESTS]
    return pytest.main(["-q", "-n", "0", "--cov", "--cov-branch", "--cov-report=term-missing", *tests], [LeaveOut()])


if __name__ == "__main__":
    sys.exit(main())
