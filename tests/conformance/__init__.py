"""The promises, stated once and run on every engine; what differs between engines is a flag on the engine."""

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
    await store.aclose()
    return await EventStore.open(engine.location, **options)


async def outcome(append: Awaitable[T]) -> T | Exception:
    """What the append returns or raises."""
    try:
        return await append
    except Exception as error:
        return error


def ids(events: list[Event]) -> list[int]:
    """The event_ids, in order."""
    return [event.event_id for event in events]
