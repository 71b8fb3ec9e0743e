"""What people do about parked events: look at them, have them tried again, skip them; running or not."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence

from aiostore.consumer.group import Group, partition_of
from aiostore.consumer.membership import Membership
from aiostore.consumer.parked import Kept, Parked, ParkedRows, Row, parked_events
from aiostore.drafts import check_stream_id
from aiostore.engine import PAGE_EVENTS, Saving
from aiostore.events import Event
from aiostore.query import Query
from aiostore.store import EventStore

NO_LIMIT = 2**63 - 1


class Parking:
    """The parked events of a consumer. What is asked for is kept, and done by the worker that has the stream."""

    def __init__(
        self,
        store: EventStore,
        membership: Membership,
        rows: ParkedRows,
        query: Query | None,
        order_by: Callable[[Event], str] | None,
        wake: Callable[[], None] | None,
    ) -> None:
        """``wake``: has this consumer's own worker, if it runs, see at once what was asked for."""
        self._store = store
        self._membership = membership
        self._rows = rows
        self._query = query
        self._order_by = order_by
        self._wake = wake

    async def parked(self, limit: int | None) -> list[Parked]:
        """All parked events, at most ``limit``."""
        await self._membership.look()
        left = NO_LIMIT if limit is None else limit
        found: list[Parked] = []
        for kept in await self._rows.load() if left else ():
            events = await self._events(kept, left - len(found))
            for event in events:
                is_first = event.event_id == kept.row.event_id
                found.append(Parked(event, *((kept.row.error or None, kept.row.attempts) if is_first else (None, 0))))
            if len(found) == left:
                break
        return found

    async def _events(self, kept: Kept, limit: int) -> list[Event]:
        """The parked events of a stream that are not to be skipped, as far as the group has recorded."""
        skipped = set(kept.row.skipped)
        events = await parked_events(
            self._store,
            kept.key,
            kept.row,
            self._seen(kept.key),
            self._query,
            self._order_by,
            min(NO_LIMIT, limit + len(skipped)),
        )
        return [event for event in events if event.event_id not in skipped][:limit]

    def _seen(self, key: str) -> int:
        return self._membership.group.partitions[partition_of(key)].last_position

    async def retry(self, key: str | None) -> int:
        """Ask for the rows to be tried again; returns how many."""
        if key is not None:
            check_stream_id(key)
            return len(await self._ask(lambda: self._rows.one(key), _retry))
        count, after = 0, ""
        while True:
            keys = await self._ask(functools.partial(self._rows.page, after), _retry)
            count += len(keys)
            if len(keys) < PAGE_EVENTS:
                return count
            after = keys[-1]

    async def skip(self, event_id: int) -> None:
        """Ask for an event to be skipped."""
        events = await self._store.read_all(after=event_id - 1, up_to=event_id).to_list()
        asked: Sequence[str] = ()
        if events:
            event = events[0]
            key = event.stream_id if self._order_by is None else self._order_by(event)

            def skip(row: Row) -> None:
                if (
                    event_id < row.event_id
                    or event_id > self._seen(key)
                    or not (self._query is None or self._query.matches(event))
                ):
                    raise LookupError(f"event {event_id} is not parked")
                row.skipped = sorted({*row.skipped, event_id})
                row.retry |= event_id == row.event_id

            asked = await self._ask(lambda: self._rows.one(key), skip)
        if not asked:
            raise LookupError(f"event {event_id} is not parked")

    async def _ask(self, load: Callable[[], Awaitable[Sequence[Kept]]], change: Callable[[Row], None]) -> Sequence[str]:
        """Change the rows that are loaded, all in one step; returns of which streams they are."""
        rows: Sequence[Kept] = ()

        async def before(group: Group) -> None:
            nonlocal rows
            rows = await load()

        def ask(group: Group) -> Sequence[Saving]:
            for kept in rows:
                change(kept.row)
            group.parked_revision += bool(rows)
            return [self._rows.saving(kept.key, kept.row) for kept in rows]

        self._membership.forget()
        await self._membership.update(ask, before=before)
        if rows and self._wake is not None:
            self._wake()
        return [kept.key for kept in rows]


def _retry(row: Row) -> None:
    row.retry = True
