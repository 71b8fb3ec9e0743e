"""Reads from a time to a time: since <= timestamp < until, together with all other bounds."""

from aiostore.testing.conformance.test_reads_by_time import *  # noqa: F403
