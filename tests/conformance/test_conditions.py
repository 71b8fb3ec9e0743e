"""Append conditions: an append fails if an event matches the query above ``after``."""

from aiostore.testing.conformance.test_conditions import *  # noqa: F403
