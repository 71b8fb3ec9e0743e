"""For the tests of applications: given–when–then, a clock that is moved by hand, a store in memory.

`aiostore.testing.fixtures` has fixtures for pytest, and `aiostore.testing.conformance` the tests that every engine is
held to. Importing aiostore imports none of this, and importing this imports no pytest.
"""

from aiostore.testing.clock import FakeClock
from aiostore.testing.memory import memory_store
from aiostore.testing.projecting import GivenEvents, given_events
from aiostore.testing.scenario import Given, Outcome, given

__all__ = ["FakeClock", "Given", "GivenEvents", "Outcome", "given", "given_events", "memory_store"]
