"""Folding: a state made of events, one after another, by a handler for each type; and the state of a stream."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from aiostore.context import handled, handling
from aiostore.drafts import check_name
from aiostore.events import Event
from aiostore.limits import EVENT_TYPE_BYTES_MAX, check_number
from aiostore.store import EventStore
from aiostore.timestamps import check_moment

S = TypeVar("S")

StateHandler = Callable[[S, Event], Awaitable[S | None] | S | None]
"""``handler(state, event)``, plain or async: changes the state, or returns the new one (None: it is still the same)."""


def check_handler(event_type: object, handler: object) -> str:
    """The event type itself, if it is one and ``handler`` can be called; else `InvalidEvent` or TypeError."""
    if not callable(handler):
        raise TypeError(f"the handler of {event_type!r} must be callable, not {handler!r}")
    return check_name(event_type, "event_type", EVENT_TYPE_BYTES_MAX)


class Fold(Generic[S]):
    """A state and how far it has come. ``handlers``: by event type; what has none is passed over."""

    __slots__ = ("going_on", "handlers", "passed", "position", "state", "taken_count")

    def __init__(self, handlers: dict[str, StateHandler[S]], state: S) -> None:
        self.handlers = handlers
        self.state = state
        self.position = 0
        """The event_id of the last event taken."""
        self.passed: set[str] = set()
        """The types of events that were passed over."""
        self.taken_count = 0
        self.going_on: Callable[[], bool] | None = None
        """Called between events, after each that was waited for; where it says False, no further one is taken."""

    async def take(self, events: Sequence[Event]) -> None:
        """Take the events, in order. Where a handler raises or is cancelled, that event is the next to be taken."""
        handlers = self.handlers
        awaited = False
        for event in events:
            handler = handlers.get(event.event_type)
            if handler is None:
                self.passed.add(event.event_type)
            else:
                result: Any = handler(self.state, event)
                if result is not None:
                    if hasattr(result, "__await__"):  # isinstance(…, Awaitable) takes longer than most handlers
                        awaited = True
                        # Its body begins here: what it appends follows from the event. One that is not awaited cannot
                        # append, and does not pay for this.
                        token = handling(event)
                        try:
                            result = await result
                        finally:
                            handled(token)
                    if result is not None:
                        self.state = result
            self.position = event.event_id
            self.taken_count += 1
            if awaited:
                awaited = False
                if self.going_on is not None and not self.going_on():
                    return


async def reconstruct_state(
    store: EventStore,
    stream_id: str,
    handlers: Mapping[str, StateHandler[Any]],
    *,
    initial: Callable[[], Any] = dict,
    up_to: int | datetime | None = None,
) -> Any:
    """The state of a stream, made anew of its events: as it is, or as it was at a version or at a time.

    ``handlers``: by event type, ``handler(state, event)``, plain or async; changes the state or returns the new one.
    Events without a handler are passed over. ``initial()`` gives the state before the first event. ``up_to``: a
    version, or an aware datetime: the events up to it, those with that version or timestamp included (version 0: none;
    note that ``until`` of `EventStore.read_stream` excludes its moment). None: all.

    Raises what a handler raises; ValueError for a naive datetime; what `EventStore.read_stream` raises.
    """
    if not callable(initial):
        raise TypeError(f"initial must be a function that gives the first state, such as lambda: 0, not {initial!r}")
    checked = {check_handler(event_type, handler): handler for event_type, handler in handlers.items()}
    fold = Fold(checked, initial())
    if isinstance(up_to, datetime):
        check_moment("up_to", up_to)
        reader = store.read_stream(stream_id, until=_just_after(up_to))
    else:
        reader = store.read_stream(stream_id, to_version=None if up_to is None else check_number("up_to", up_to, 0))
    async for events in reader.batches():
        await fold.take(events)
    return fold.state


def _just_after(moment: datetime) -> datetime | None:
    """The next time that a timestamp can be; None if there is none."""
    try:
        return moment.astimezone(UTC) + datetime.resolution
    except OverflowError:
        return moment if moment.year == datetime.min.year else None
