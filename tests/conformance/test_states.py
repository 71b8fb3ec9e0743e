"""The small store of states beside the events: by key, with revisions, bound to the events they were made of."""

from aiostore.testing.conformance.test_states import *  # noqa: F403
