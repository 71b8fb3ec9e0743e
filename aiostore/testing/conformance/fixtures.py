"""The fixtures of the conformance suite: stores, on the engine that ``new_location`` gives."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio

from aiostore.engine import Engine
from aiostore.store import EventStore

OpenStore = Callable[..., Awaitable[EventStore]]


ReopenAt = Callable[[Engine], Any]


@pytest.fixture
def reopen_at() -> ReopenAt:
    """Gives where to open again what a closed engine stored; its location, unless a fixture of this name says else."""
    return lambda engine: engine.location


@pytest_asyncio.fixture
async def open_store(new_location: Callable[[], Any], reopen_at: ReopenAt) -> AsyncIterator[OpenStore]:
    """Opens empty stores on the engine, with any options of `EventStore`, and closes them after the test."""
    opened: list[EventStore] = []

    async def open_store(**options: Any) -> EventStore:
        store = await EventStore.open(new_location(), **options)
        vars(store)["reopen_at"] = reopen_at  # for `aiostore.testing.conformance.reopen`
        opened.append(store)
        return store

    yield open_store
    for store in opened:
        await store.aclose()


@pytest_asyncio.fixture
async def store(open_store: OpenStore) -> EventStore:
    """An empty store, open."""
    return await open_store()
