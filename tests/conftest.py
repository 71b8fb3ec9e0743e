"""What all tests share: every engine behind one fixture, a clock that stands still, and an alarm for a blocked loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from aiostore import EventStore
from tests.shared.database import Database, SharedEngine

OpenStore = Callable[..., Awaitable[EventStore]]


@pytest.fixture(params=["memory", "file", "shared"])
def engine_name(request: pytest.FixtureRequest) -> str:
    """The engine that this run of a conformance test is for; tests must not look at it, but ask the engine's flags."""
    name: str = request.param
    return name


@pytest.fixture
async def open_store(engine_name: str, tmp_path: Path) -> AsyncIterator[OpenStore]:
    """Opens empty stores on the engine, with any options of `EventStore`, and closes them after the test."""
    opened: list[EventStore] = []

    async def open_store(**options: Any) -> EventStore:
        locations = {"memory": None, "file": tmp_path / f"store-{len(opened)}", "shared": SharedEngine(Database())}
        store = await EventStore.open(locations[engine_name], **options)
        opened.append(store)
        return store

    yield open_store
    for store in opened:
        await store.aclose()


@pytest.fixture
async def store(open_store: OpenStore) -> EventStore:
    """An empty store, open."""
    return await open_store()
