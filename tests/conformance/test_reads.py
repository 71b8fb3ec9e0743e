"""Reads: bounds, order, limits and queries against a plain model; what a read sees while appends go on."""

from aiostore.testing.conformance.test_reads import *  # noqa: F403
