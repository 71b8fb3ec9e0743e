"""Idempotency keys: an append whose key is stored returns the events stored then and writes nothing, for ever."""

from aiostore.testing.conformance.test_idempotency import *  # noqa: F403
