"""Fixtures for whoever wants a store on PostgreSQL: one server for each process of the test run, schemas of one's own.

A conftest takes them in with ``from tests.postgres.fixtures import new_postgres_url, postgres_server``.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator

import pytest

from tests.postgres.server import Server, binaries

NewUrl = Callable[[], str]


def require_postgres() -> None:
    """Skip the test where PostgreSQL is not to be had; in CI that is a failure."""
    try:
        binaries()
        import asyncpg  # noqa: F401
    except ImportError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI tests PostgreSQL: {error}")
        pytest.skip(f"PostgreSQL is not tested: {error}")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """A server that all tests of this process share; nobody stops it."""
    require_postgres()
    server = Server()
    try:
        yield server.create()
    finally:
        server.stop()


def new_url(server: Server) -> str:
    """The URL of a store that is not there yet, in a schema of its own."""
    return f"{server.url}?schema=t_{secrets.token_hex(8)}"


@pytest.fixture
def new_postgres_url(postgres_server: Server) -> NewUrl:
    """Gives the URL of a store that is not there yet, another at each call."""
    return lambda: new_url(postgres_server)
