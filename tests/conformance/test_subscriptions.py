"""Subscriptions: no gap, no double, in order, from history to live; and what they tell of themselves."""

from aiostore.testing.conformance.test_subscriptions import *  # noqa: F403
