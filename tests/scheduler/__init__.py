"""Tasks under control: waiting for a state instead of a time, and an event loop whose order and clock are chosen."""

from aiostore.testing.conformance.tasks import running, take, turns, until, waiting

__all__ = ["running", "take", "turns", "until", "waiting"]
