"""Given–then: what a projection makes of events, in a store in memory of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from aiostore.events import Event, NewEvent, StreamAppend
from aiostore.projection import Projection
from aiostore.store import EventStore
from aiostore.testing.clock import FakeClock
from aiostore.testing.expectation import by_streams, check_equal
from aiostore.testing.memory import memory_store

S = TypeVar("S")


def given_events(projection: Callable[[EventStore], Projection[S]], *events: Any, **options: Any) -> GivenEvents[S]:
    """A projection over these events, for example ``await given_events(balances, ("Opened", {})).then_state({…})``.

    ``projection(store)`` makes it, over the store that it is given. ``events``: as `EventStore.append_batch` takes
    them; `StreamAppend` (or an `Event` of another store), where it matters in which stream they stand. They are stored
    a second apart. ``options``: those of the `EventStore` in memory.
    """
    return GivenEvents(projection, events, options)


class GivenEvents(Generic[S]):
    """A projection to be made, and the events that it is made of."""

    def __init__(
        self, projection: Callable[[EventStore], Projection[S]], events: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        self._make = projection
        self._events = events
        self._options = options

    async def state(self) -> S:
        """The state after the events; raises what a handler raises."""
        clock = FakeClock()
        async with memory_store(**{"clock": clock, **self._options}) as store:
            for stream_id, event in by_streams(self._events):
                clock.advance(1)
                if isinstance(event, Event):
                    new = NewEvent(event.event_type, event.data, event.metadata, event.tags)
                    await store.append_streams([StreamAppend(event.stream_id, [new])])
                else:
                    await store.append_batch(stream_id, [event])
            projection = self._make(store)
            await projection.catch_up()
            return projection.state

    async def then_state(self, state: S) -> None:
        """The state after the events is equal to this one; AssertionError with a diff if not."""
        check_equal("the state is another", state, await self.state())
