"""Appends: what they store and return, expected versions, all or nothing, one order, timestamps, bounds of names."""

from aiostore.testing.conformance.test_append import *  # noqa: F403
