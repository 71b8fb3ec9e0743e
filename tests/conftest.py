"""What all tests share: every engine behind one fixture, a clock that stands still, and an alarm for a blocked loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from aiostore.engines.file.disk import Disk
from aiostore.engines.file.engine import FileEngine
from aiostore.testing.conformance.fixtures import OpenStore, open_store, reopen_at, store
from tests.postgres.fixtures import new_postgres_url, postgres_server
from tests.shared.database import Database, SharedEngine

__all__ = ["OpenStore", "new_postgres_url", "open_store", "postgres_server", "reopen_at", "store"]


class NothingInMemory(Disk):
    """Nothing can be read without waiting for the device: all reads are done on threads."""

    def read_nowait(self, file: int, size: int, offset: int) -> bytes | None:
        return None

    def read_each_nowait(self, file: int, spans: Sequence[tuple[int, int]]) -> list[bytes] | None:
        return None


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
    if engine_name == "sealed":  # the same, where nearly everything lies in sealed segments, on a device that is slow
        return lambda: FileEngine(
            tmp_path / f"store-{next(numbers)}", segment_bytes=1000, part_bytes_min=1, disk=NothingInMemory()
        )
    if engine_name == "shared":
        return lambda: SharedEngine(Database())
    new_url: Callable[[], str] = request.getfixturevalue("new_postgres_url")
    return new_url
