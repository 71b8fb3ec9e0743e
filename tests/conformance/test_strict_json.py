"""What can be stored: JSON objects and what has a JSON form; anything else is refused, nothing changes in silence."""

from aiostore.testing.conformance.test_strict_json import *  # noqa: F403
