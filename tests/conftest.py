"""What all tests share: every engine behind one fixture, a clock that stands still, and an alarm for a blocked loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from aiostore import EventStore
from aiostore.engines.file.engine import FileEngine
from tests.postgres.fixtures import new_postgres_url, postgres_server
from tests.shared.database import Database, SharedEngine

__all__ = ["new_postgres_url", "postgres_server"]

OpenStore = Callable[..., Awaitable[EventStore]]


@pytest.fixture(params=["memory", "file", "sealed", "shared", "postgres"])
def engine_name(request: pytest.FixtureRequest) -> str:
    """The engine that this run of a conformance test is for; tests must not look at it, but ask the engine's flags."""
    name: str = request.param
    return name


@pytest.fixture
def new_location(engine_name: str, request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Any]:
    """Gives the location of an empty store on the engine, another one at each call."""
    numbers = count()
    if engine_name == "memory":
        return lambda: None
    if engine_name == "file":
        return lambda: tmp_path / f"store-{next(numbers)}"
    if engine_name == "sealed":  # the same, where nearly everything lies in sealed segments
        return lambda: FileEngine(tmp_path / f"store-{next(numbers)}", segment_bytes=1000, part_bytes_min=1)
    if engine_name == "shared":
        return lambda: SharedEngine(Database())
    new_url: Callable[[], str] = request.getfixturevalue("new_postgres_url")
    return new_url


@pytest.fixture
async def open_store(new_location: Callable[[], Any]) -> AsyncIterator[OpenStore]:
    """Opens empty stores on the engine, with any options of `EventStore`, and closes them after the test."""
    opened: list[EventStore] = []

    async def open_store(**options: Any) -> EventStore:
        store = await EventStore.open(new_location(), **options)
        opened.append(store)
        return store

    yield open_store
    for store in opened:
        await store.aclose()


@pytest.fixture
async def store(open_store: OpenStore) -> EventStore:
    """An empty store, open."""
    return await open_store()
