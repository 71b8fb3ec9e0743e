"""What the tests of the engine share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from tests.postgres.fixtures import NewUrl, new_postgres_url, postgres_server, require_postgres
from tests.postgres.server import Server

require_postgres()

from aiostore.engines.postgres.engine import PostgresEngine  # noqa: E402 (it may not be there)

__all__ = ["new_postgres_url", "postgres_server"]

OpenEngine = Callable[..., Awaitable[PostgresEngine]]


@pytest.fixture
async def open_engine(new_postgres_url: NewUrl) -> AsyncIterator[OpenEngine]:
    """Opens engines, on a new store where no URL is given, and closes them after the test."""
    opened: list[PostgresEngine] = []

    async def open_engine(url: str | None = None, **options: Any) -> PostgresEngine:
        engine = PostgresEngine(url or new_postgres_url(), **options)
        await engine.open()
        opened.append(engine)
        return engine

    yield open_engine
    for engine in opened:
        await engine.aclose()


@pytest.fixture
async def engine(open_engine: OpenEngine) -> PostgresEngine:
    """An engine on an empty store."""
    return await open_engine()


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server that the test may stop and kill."""
    server = Server()
    try:
        yield server.create()
    finally:
        server.stop()
