"""Folding: a state made of events, one after another, by a handler for each type; and the state of a stream."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from aiostore.context import in_hand
from aiostore.drafts import check_name
from aiostore.effects import Effects
from aiostore.events import Event
from aiostore.limits import EVENT_TYPE_BYTES_MAX, check_number
from aiostore.query import Query
from aiostore.reader import Reader
from aiostore.store import EventStore
from aiostore.timestamps import check_moment

S = TypeVar("S")
H = TypeVar("H", bound=Callable[..., Any])

StateHandler = Callable[[S, Event], Awaitable[S | None] | S | None]
"""``handler(state, event)``, plain or async: changes the state, or returns the new one (None: it is still the same)."""


def check_handler(event_type: object, handler: object) -> str:
    """The event type itself, if it is one and ``handler`` can be called; else `InvalidEvent` or TypeError."""
    if not callable(handler):
        raise TypeError(f"the handler of {event_type!r} must be callable, not {handler!r}")
    return check_name(event_type, "event_type", EVENT_TYPE_BYTES_MAX)


def add_handler(
    handlers: dict[str, H], passed: Container[str], event_type: str, handler: H, *, name: str, position: int
) -> None:
    """Register one handler for a type of which no events were passed over, for the projection of that name."""
    event_type = check_handler(event_type, handler)
    if event_type in handlers:
        raise ValueError(f"projection {name!r} has a handler for {event_type!r} already")
    if event_type in passed:
        raise RuntimeError(
            f"projection {name!r} passed over the events of type {event_type!r} up to event {position}: "
            "register its handlers first"
        )
    handlers[event_type] = handler


class Fold(Generic[S]):
    """A state and how far it has come. ``handlers``: by event type; what has none is passed over."""

    __slots__ = ("effects", "going_on", "handlers", "passed", "position", "state", "taken_count")

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
        self.effects: Effects[S] | None = None
        """What is done beside the state; None in a fold that only makes a state anew."""

    async def take(self, events: Sequence[Event]) -> None:
        """Take the events, in order. Where a handler raises or is cancelled, that event is the next to be taken.

        Where an effect does, its event was taken, and the effect is due.
        """
        handlers = self.handlers
        effects = self.effects if self.effects is not None and self.effects.handlers else None
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
                        result = await in_hand(event, result)
                    if result is not None:
                        self.state = result
            self.position = event.event_id
            self.taken_count += 1
            if effects is not None and event.event_type in effects.handlers:
                awaited = True
                await effects.of(self.state, event)
            if awaited:
                awaited = False
                if self.going_on is not None and not self.going_on():
                    return

    async def take_all(self, reader: Reader) -> None:
        """Take what a reader has left."""
        async for events in reader.batches():
            await self.take(events)


def check_initial(initial: object) -> None:
    """TypeError if it is not a function that gives the first state."""
    if not callable(initial):
        raise TypeError(f"initial must be a function that gives the first state, such as lambda: 0, not {initial!r}")


def check_handlers(handlers: Mapping[str, H]) -> dict[str, H]:
    """The handlers themselves by event type, see `check_handler`."""
    return {check_handler(event_type, handler): handler for event_type, handler in handlers.items()}


def read_as_of(store: EventStore, moment: int | datetime, query: Query | None = None) -> Reader:
    """The events up to an event_id, or up to an aware datetime, those of that very id or timestamp included."""
    if isinstance(moment, datetime):
        return store.read_all(until=_after(moment), query=query)
    return store.read_all(up_to=check_number("moment", moment, 0), query=query)


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
    check_initial(initial)
    fold = Fold(check_handlers(handlers), initial())
    if isinstance(up_to, datetime):
        reader = store.read_stream(stream_id, until=_after(up_to, "up_to"))
    else:
        reader = store.read_stream(stream_id, to_version=None if up_to is None else check_number("up_to", up_to, 0))
    await fold.take_all(reader)
    return fold.state


def _after(moment: datetime, name: str = "moment") -> datetime | None:
    """The next time that a timestamp can be, for what ends before it; None if there is none. ValueError if naive."""
    check_moment(name, moment)
    try:
        return moment.astimezone(UTC) + datetime.resolution
    except OverflowError:
        return moment if moment.year == datetime.min.year else None
