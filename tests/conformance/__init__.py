"""The promises, stated once and run on every engine; what differs between engines is a flag on the engine.

Those that every engine keeps by itself stand in `aiostore.testing.conformance`, and are run here on ours.
"""

from aiostore.testing.conformance import engine_of, ids, outcome, reopen

__all__ = ["engine_of", "ids", "outcome", "reopen"]
