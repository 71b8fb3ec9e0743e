"""Pages: the events of a selection, found through indexes, in pages that begin where the one before ended.

A query is answered in two steps. First each item is asked for the next positions in every index that covers it: one for
each tag, one for its types. The index that reaches farthest with so many positions is the most selective one there, and
its positions, without those that the others rule out, are the item's candidates. Then the events are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from aiostore.engine import Page, Selection
from aiostore.engines.postgres.connections import Session
from aiostore.engines.postgres.groups import BIGINT_MAX, Item, items_of, storable
from aiostore.engines.postgres.rows import COLUMNS, events_of
from aiostore.events import Event
from aiostore.limits import MIB

PAGE_BYTES: Final = 1 * MIB
"""A page ends with the event that reaches so many bytes."""

EXAMINED: Final = 500
"""So many positions of each index are looked at for one page, at least."""

FETCHED: Final = 64
"""So many candidates are read for one page, at least: some may turn out not to match."""

WINDOW: Final = 5000
"""So many positions are looked at for one page where no index helps."""


class Scan(NamedTuple):
    """The positions of an index that covers an item, the next ones in order, and up to where these are all."""

    positions: Sequence[int]
    reach: int


class PageReader:
    """Reads pages of a schema; any number at a time."""

    def __init__(self, schema: str) -> None:
        self._schema = schema

    async def read(self, session: Session, selection: Selection, cursor: int | None, max_events: int) -> Page:
        """See `Engine.read`."""
        low, high = selection.after, min(selection.up_to, BIGINT_MAX)
        if cursor is not None:
            low, high = (low, min(high, cursor - 1)) if selection.backwards else (max(low, cursor), high)
        if low >= high:
            return Page([], None)
        if selection.stream_id is not None:
            return await self._stream(session, selection, low, high, max_events)
        items = None if selection.query is None else items_of(selection.query)
        if items is None:
            source = "SELECT * FROM {schema}.events WHERE pos > $3 AND pos <= $4 ORDER BY pos {order} LIMIT $1"
            rows = await self._rows(session, source, selection.backwards, max_events, low, high)
            return self._page(rows, max_events, None)
        if not items:
            return Page([], None)
        if any(item.types is None and item.tags is None for item in items):
            return await self._window(session, items, selection.backwards, low, high, max_events)
        return await self._query(session, items, selection, low, high, max_events)

    # --- statements ---

    async def _rows(
        self, session: Session, source: str, backwards: bool, max_events: int, *args: object
    ) -> Sequence[Any]:
        """The events of a source of their rows, as far as a page goes; the last column counts their bytes."""
        sql = (
            f"SELECT * FROM (SELECT {COLUMNS}, e.size, sum(e.size) OVER (ORDER BY e.pos {{order}}"
            f" ROWS UNBOUNDED PRECEDING) AS bytes FROM ({source}) e"
            " CROSS JOIN LATERAL (SELECT name FROM {schema}.streams s WHERE s.sid = e.sid) s"
            " ORDER BY e.pos {order} LIMIT $1) p WHERE p.bytes - p.size < $2 ORDER BY p.pos {order}"
        )
        sql = sql.replace("{schema}", self._schema).replace("{order}", "DESC" if backwards else "ASC")
        return await session.ask(sql, max_events, PAGE_BYTES, *args)

    @staticmethod
    def _page(rows: Sequence[Any], max_events: int, rest: int | None, events: list[Event] | None = None) -> Page:
        """The page of the rows, which go on behind the last one if it was cut there, else behind ``rest``."""
        cut = bool(rows) and (len(rows) >= max_events or rows[-1][-1] >= PAGE_BYTES)
        return Page(events_of(rows) if events is None else events, rows[-1][0] if cut else rest)

    async def _stream(self, session: Session, selection: Selection, low: int, high: int, max_events: int) -> Page:
        assert selection.stream_id is not None
        if not storable(selection.stream_id):
            return Page([], None)
        source = (
            "SELECT e.* FROM (SELECT sid, greatest($4, {schema}.version_at(sid, $6) + 1) AS first,"
            " least($5, {schema}.version_at(sid, $7)) AS last FROM {schema}.streams WHERE name = $3) s"
            " CROSS JOIN LATERAL (SELECT * FROM {schema}.events e WHERE e.sid = s.sid AND e.version >= s.first"
            " AND e.version <= s.last ORDER BY e.version {order} LIMIT $1) e"
        )
        last = BIGINT_MAX if selection.to_version is None else min(selection.to_version, BIGINT_MAX)
        first = min(selection.from_version, BIGINT_MAX)
        args = (selection.stream_id, first, last, low, high)
        rows = await self._rows(session, source, selection.backwards, max_events, *args)
        events = events_of(rows)
        if selection.query is not None:
            events = [event for event in events if selection.query.matches(event)]
        return self._page(rows, max_events, None, events)

    async def _window(
        self, session: Session, items: Sequence[Item], backwards: bool, low: int, high: int, max_events: int
    ) -> Page:
        """Look at all events of some positions, which are dense."""
        first, last = (max(low, high - WINDOW), high) if backwards else (low, min(high, low + WINDOW))
        args: list[object] = [first, last]
        alternatives = [_matches(item, args) for item in items]
        source = (
            "SELECT e.* FROM (SELECT * FROM {schema}.events WHERE pos > $3 AND pos <= $4 ORDER BY pos {order}) e"
            f" WHERE {' OR '.join(alternatives)} ORDER BY e.pos {{order}} LIMIT $1"
        )
        rows = await self._rows(session, source, backwards, max_events, *args)
        rest = (None if first == low else first + 1) if backwards else (None if last == high else last)
        return self._page(rows, max_events, rest)

    async def _query(
        self, session: Session, items: Sequence[Item], selection: Selection, low: int, high: int, max_events: int
    ) -> Page:
        backwards = selection.backwards
        count = max(max_events, EXAMINED)
        if len(items) == 1 and items[0].prefix is None and bool(items[0].types) + len(items[0].tags or ()) == 1:
            args: list[object] = [low, high]
            (scan,) = _scans(items[0], args, "$3", "$4", "$1")
            source = (
                f"SELECT e.* FROM ({scan}) c CROSS JOIN LATERAL"
                " (SELECT * FROM {schema}.events e WHERE e.pos = c.pos) e"
            )
            return self._page(await self._rows(session, source, backwards, max_events, *args), max_events, None)
        end = low + 1 if backwards else high
        candidates, reach = await self._candidates(session, items, backwards, low, high, count)
        asked = candidates[: max(max_events, FETCHED)]
        if not asked:
            return Page([], None if reach == end else reach)
        source = (
            "SELECT e.* FROM unnest($3::bigint[]) c(pos) CROSS JOIN LATERAL"
            " (SELECT * FROM {schema}.events e WHERE e.pos = c.pos) e"
        )
        rows = await self._rows(session, source, backwards, len(asked), asked)
        query = selection.query
        assert query is not None
        events = [event for event in events_of(rows) if query.matches(event)]
        if len(events) > max_events:
            return Page(events[:max_events], events[max_events - 1].event_id)
        if len(rows) < len(candidates):
            return Page(events, rows[-1][0])
        return Page(events, None if reach == end else reach)

    async def _candidates(
        self, session: Session, items: Sequence[Item], backwards: bool, low: int, high: int, count: int
    ) -> tuple[list[int], int]:
        """The next positions of events that may match, in order, and up to where these are all."""
        args: list[object] = [low, high, count]
        scans = [_scans(item, args, "$1", "$2", "$3", first=1) for item in items]
        sql = ", ".join(f"ARRAY({scan})" for of_item in scans for scan in of_item)
        sql = sql.replace("{schema}", self._schema).replace("{order}", "DESC" if backwards else "ASC")
        (row,) = await session.ask(f"SELECT {sql}", *args)
        end = low + 1 if backwards else high
        found = [Scan(positions, positions[-1] if len(positions) == count else end) for positions in row]
        chosen: set[int] = set()
        reaches: list[int] = []
        for of_item in scans:
            mine, found = found[: len(of_item)], found[len(of_item) :]
            positions, reach = meet(mine, backwards)
            chosen.update(positions)
            reaches.append(reach)
        if backwards:
            reach = max(reaches)
            return sorted((pos for pos in chosen if pos >= reach), reverse=True), reach
        reach = min(reaches)
        return sorted(pos for pos in chosen if pos <= reach), reach


def meet(scans: Sequence[Scan], backwards: bool) -> tuple[Sequence[int], int]:
    """The positions that all scans have, as far as the one that reaches farthest, and as far as that is known."""
    best = (min if backwards else max)(scans, key=lambda scan: scan.reach)
    positions = best.positions
    for scan in scans:
        if scan is not best:
            known = frozenset(scan.positions)
            if backwards:
                positions = [pos for pos in positions if pos in known or pos < scan.reach]
            else:
                positions = [pos for pos in positions if pos in known or pos > scan.reach]
    return positions, best.reach


def _scans(item: Item, args: list[object], low: str, high: str, count: str, *, first: int = 3) -> list[str]:
    """Statements for the positions of each index that covers the item; ``args`` begin with parameter ``first``."""
    within = f"pos > {low} AND pos <= {high} ORDER BY pos {{order}} LIMIT {count}"
    scans: list[str] = []
    for tag in item.tags or ():
        args.append(tag)
        scans.append(f"SELECT pos FROM {{schema}}.tags WHERE tag = ${len(args) + first - 1} AND {within}")
    if item.types is not None:
        args.append(item.types)
        scans.append(
            f"SELECT c.pos FROM unnest(${len(args) + first - 1}::text[]) t(type) CROSS JOIN LATERAL"
            f" (SELECT pos FROM {{schema}}.events e WHERE e.type = t.type AND {within}) c"
            f" ORDER BY c.pos {{order}} LIMIT {count}"
        )
    return scans


def _matches(item: Item, args: list[object]) -> str:
    """The condition that an event ``e`` matches the item; ``args`` begin with parameter $3."""
    conditions: list[str] = []
    if item.types is not None:
        args.append(item.types)
        conditions.append(f"e.type = ANY (${len(args) + 2}::text[])")
    if item.tags is not None:
        args.append(item.tags)
        conditions.append(f"e.tags @> ${len(args) + 2}::text[]")
    if item.prefix is not None:
        args.append(item.prefix)
        name = "(SELECT n.name FROM {schema}.streams n WHERE n.sid = e.sid)"
        conditions.append(f"starts_with({name}, ${len(args) + 2}::text)")
    return f"({' AND '.join(conditions)})"
