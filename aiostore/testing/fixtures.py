"""Fixtures for pytest with pytest-asyncio, in its strict and in its auto mode.

In the top ``conftest.py``: ``pytest_plugins = ["aiostore.testing.fixtures"]``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from aiostore.store import EventStore
from aiostore.testing import memory
from aiostore.testing.clock import FakeClock


@pytest.fixture
def fake_clock() -> FakeClock:
    """A clock that stands still: the one of `memory_store`."""
    return FakeClock()


@pytest_asyncio.fixture
async def memory_store(fake_clock: FakeClock) -> AsyncIterator[EventStore]:
    """An empty store in memory, open, whose time is that of `fake_clock`; it is closed after the test."""
    async with memory.memory_store(clock=fake_clock) as store:
        yield store


@pytest.fixture
def event_store(memory_store: EventStore) -> EventStore:
    """The same as `memory_store`; an application may have a fixture of this name with a store of its own."""
    return memory_store
