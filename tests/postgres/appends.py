"""Appends as an engine gets them, made in one line."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from aiostore import AppendCondition, Event, EventStoreError, NewEvent
from aiostore.drafts import Append, StreamDrafts, draft_events, make_append
from aiostore.engine import Committed, Engine, Page, Proposal, Selection
from aiostore.events import EventLike, StreamState
from aiostore.limits import Limits

LIMITS = Limits()
NOW = "2026-11-23T04:50:00.123456Z"


def append(
    stream_id: str = "s",
    events: Iterable[EventLike] = (("E", {}),),
    *,
    expected: int | StreamState | None = None,
    key: str | None = None,
    condition: AppendCondition | None = None,
) -> Append:
    return make_append([StreamDrafts(stream_id, draft_events(events, LIMITS), expected)], condition, key, LIMITS)


def tagged(count: int, *tags: str, event_type: str = "E") -> list[NewEvent]:
    return [NewEvent(event_type, {"n": n}, tags=tags) for n in range(count)]


async def commit(engine: Engine, *appends: Append, timestamp: str = NOW) -> Committed:
    return await engine.commit_shared([Proposal(one) for one in appends], timestamp)


def stored(committed: Committed, place: int = 0) -> Sequence[Event]:
    """What an append that passed stored."""
    outcome = committed.outcomes[place]
    assert not isinstance(outcome, EventStoreError), outcome
    return outcome


async def read_all(engine: Engine, selection: Selection | None = None, max_events: int = 500) -> list[Event]:
    selection = selection or Selection(up_to=2**63)
    page: Page = await engine.read(selection, None, max_events)
    events = page.events
    while page.cursor is not None:
        page = await engine.read(selection, page.cursor, max_events)
        assert len(page.events) <= max_events
        events.extend(page.events)
    return events


def ids(events: Iterable[Any]) -> list[int]:
    return [event.event_id for event in events]


async def until(condition: Callable[[], Awaitable[object] | object]) -> Any:
    """Look again and again until the condition holds; what it came to then."""
    while True:
        found = condition()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        await asyncio.sleep(0.005)
