"""A store in memory, for a test."""

from __future__ import annotations

from typing import Any

from aiostore.commit import Clock, utc_now
from aiostore.store import EventStore


def memory_store(*, clock: Clock = utc_now, **options: Any) -> EventStore:
    """A store in memory, to be entered with ``async with``; ``clock`` is for example a `FakeClock`.

    Further options are those of `EventStore`.
    """
    return EventStore(clock=clock, **options)
