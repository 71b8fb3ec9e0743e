"""The promises that every engine keeps, as tests; what differs between engines is a flag that the engine declares.

To hold an engine to them, with pytest, pytest-asyncio in its auto mode, and hypothesis: in ``conftest.py``,

    pytest_plugins = ["aiostore.testing.conformance.fixtures"]

    @pytest.fixture
    def new_location(tmp_path):
        numbers = itertools.count()
        return lambda: MyEngine(tmp_path / str(next(numbers)))

and in a module of tests, ``from aiostore.testing.conformance.suite import *``, or the same of a single module of it.
``new_location()`` gives, at each call, an empty engine (or what else `EventStore` takes as a location) that nobody
opened. Where the engine declares ``durable``, a fixture ``reopen_at`` beside it gives a function that takes a closed
engine and returns a new one over what that stored. The suite is for engines with ``dense_positions``.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar

import pytest

from aiostore import Engine, Event, EventStore

T = TypeVar("T")


def engine_of(store: EventStore) -> Engine:
    """The engine of the store, for its flags."""
    return store._engine


async def reopen(store: EventStore, **options: Any) -> EventStore:
    """Close the store and open another over what it stored; skips the test where the engine keeps nothing."""
    engine = engine_of(store)
    if not engine.durable:
        pytest.skip("what this engine holds ends with the process")
    reopen_at = vars(store).get("reopen_at", _location_of)
    await store.aclose()
    again = await EventStore.open(reopen_at(engine), **options)
    vars(again)["reopen_at"] = reopen_at
    return again


def _location_of(engine: Engine) -> Any:
    return engine.location


async def outcome(append: Awaitable[T]) -> T | Exception:
    """What the append returns or raises."""
    try:
        return await append
    except Exception as error:
        return error


def ids(events: list[Event]) -> list[int]:
    """The event_ids, in order."""
    return [event.event_id for event in events]
