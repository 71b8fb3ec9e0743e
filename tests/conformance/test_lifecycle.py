"""From opening to closing: calls outside of that, other loops, forked processes, cancelled tasks."""

from aiostore.testing.conformance.test_lifecycle import *  # noqa: F403
