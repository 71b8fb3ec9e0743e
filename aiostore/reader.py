"""Reading what is there: a pass over a selection of events that ends at the head as of its start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from aiostore.engine import PAGE_EVENTS, Engine, Page, Question, Selection
from aiostore.events import Event, Types, attach_types
from aiostore.limits import check_number
from aiostore.query import Query

T = TypeVar("T")


def check_query(query: object) -> Query | None:
    """The query itself, if it is one or None; else TypeError."""
    if query is not None and not isinstance(query, Query):
        raise TypeError(f"query must be a Query, not {query!r}")
    return query


class Batches(AsyncIterator[list[T]]):
    """An async iterator of lists that are not empty."""

    def __init__(self, take: Callable[[int], object], max_events: int) -> None:
        self._take = take
        self._max_events = check_number("max_events", max_events, 1)

    async def __anext__(self) -> list[T]:
        batch: list[T] = await self._take(self._max_events)  # type: ignore[misc]
        if not batch:
            raise StopAsyncIteration
        return batch


class Decoded(AsyncIterator[tuple[Event, Any]]):
    """An async iterator of events with their objects; those that the types skip are left out."""

    def __init__(self, events: AsyncIterator[Event]) -> None:
        self._events = events

    async def __anext__(self) -> tuple[Event, Any]:
        while True:
            event = await anext(self._events)
            value = event.decode()
            if value is not None:
                return event, value


class Reader(AsyncIterator[Event]):
    """One pass over stored events, in order: ``async for``, `batches` or `to_list`.

    The read starts with the first of these and ends at the head as of then: what is appended meanwhile is not in it.
    Memory is bounded by one page. Raises `StoreCorrupt` where stored bytes are damaged, `StoreClosed`, `WrongLoop`.
    Cancelled and called again, it goes on where it was. One task at a time: RuntimeError for a second.
    """

    def __init__(
        self,
        engine: Engine,
        selection: Selection,
        limit: int | None,
        check: Callable[[], None],
        since: str | None = None,
        until: str | None = None,
        types: Types | None = None,
    ) -> None:
        self._types = types
        self._engine = engine
        self._selection = selection
        self._since = since
        self._until = until
        self._left = limit
        self._check = check
        self._head: int | None = None
        self._version: int | None = None
        self._cursor: int | None = None
        self._done = False
        self._reading = False
        self._page: list[Event] = []  # in reverse, so that the next event is popped off its end

    @property
    def head(self) -> int:
        """The last event_id of the store as of the start of the read."""
        return self._known(self._head)

    @property
    def version(self) -> int:
        """The version of the stream as of the start of the read, 0 if it had no events (or all streams are read)."""
        return self._known(self._version)

    def _known(self, number: int | None) -> int:
        if number is None:
            raise RuntimeError("the read has not started: head and version are those of its start")
        return number

    async def __anext__(self) -> Event:
        if not self._page and not await self._turn(PAGE_EVENTS):
            raise StopAsyncIteration
        return self._page.pop()

    def batches(self, max_events: int = PAGE_EVENTS) -> AsyncIterator[list[Event]]:
        """The same pass, as lists of 1 to ``max_events`` events."""
        return Batches(self._take, max_events)

    def decoded(self) -> AsyncIterator[tuple[Event, Any]]:
        """The same pass, as pairs of an event and its object (`Event.decode`).

        What is not known and skipped (``unknown="skip"``) is left out. Where one cannot be decoded, that raises, and
        the next step goes on behind it.
        """
        return Decoded(self)

    async def to_list(self) -> list[Event]:
        """The rest of the pass as one list, which is as large as what matches."""
        events: list[Event] = []
        while batch := await self._take(PAGE_EVENTS):
            events.extend(batch)
        return events

    async def _take(self, max_events: int) -> list[Event]:
        if not self._page:
            await self._turn(max_events)
        batch = self._page[: -max_events - 1 : -1]
        del self._page[-len(batch) :]
        return batch

    async def _turn(self, max_events: int) -> bool:
        """Read the next page that is not empty; False at the end."""
        if self._reading:
            raise RuntimeError("another task is using this reader; make one for each")
        self._reading = True
        try:
            return await self._find_page(max_events)
        finally:
            self._reading = False

    async def _find_page(self, max_events: int) -> bool:
        while not self._page and not self._done:
            await asyncio.sleep(0)  # what comes from memory must not keep the loop to itself
            self._check()
            if self._head is None:
                self._head = await self._start()
            page = Page([], None)
            if self._left != 0:
                page_events = max_events if self._left is None else min(max_events, self._left)
                page = await self._engine.read(self._selection, self._cursor, page_events)
            if self._version is None:
                self._version = await self._find_version(page, self._head)
            if self._types is not None:
                attach_types(page.events, self._types)
            self._page = page.events[::-1]
            self._cursor = page.cursor
            if self._left is not None:
                self._left -= len(page.events)
            self._done = page.cursor is None or self._left == 0
        return bool(self._page)

    async def _start(self) -> int:
        """Fix where the read ends; returns the head."""
        head = (await self._engine.facts(Question())).head
        after, up_to = self._selection.after, min(self._selection.up_to, head)
        if self._left != 0:
            if self._until is not None and after < up_to:
                up_to = await self._engine.first_since(self._until, up_to) - 1
            if self._since is not None and after < up_to:
                after = max(after, await self._engine.first_since(self._since, up_to) - 1)
        self._selection = self._selection._replace(after=after, up_to=up_to)
        return head

    async def _find_version(self, page: Page, head: int) -> int:
        """The version of the stream as of the head; mostly the first page shows it."""
        selection = self._selection
        if selection.stream_id is None:
            return 0
        if selection.query is None and selection.to_version is None and selection.up_to == head:
            if selection.backwards and page.events:
                return page.events[0].version
            if not selection.backwards and page.events and page.cursor is None:
                return page.events[-1].version
        facts = await self._engine.facts(Question([selection.stream_id]))
        if facts.head == head:
            return facts.versions[selection.stream_id]
        newest = Selection(up_to=head, stream_id=selection.stream_id, backwards=True)
        last = await self._engine.first(newest)
        return last.version if last is not None else 0
