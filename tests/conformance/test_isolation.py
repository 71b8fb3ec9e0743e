"""Isolation: nothing that a caller passed in or got back changes what is stored or what anyone else reads."""

from aiostore.testing.conformance.test_isolation import *  # noqa: F403
