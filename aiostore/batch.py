"""A batch of events, taken as it is in one step and checked in many, so that a long one does not keep the loop."""

from __future__ import annotations

import asyncio
import marshal
from collections import deque
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any, Final, NamedTuple

from aiostore.drafts import NOTHING_ADDED, Additions, Draft, Row, draft_events, draft_rows, row_of
from aiostore.errors import InvalidEvent
from aiostore.events import EventLike, NewEvent
from aiostore.limits import Limits

AT_ONCE_BYTES: Final = 256 * 1024
"""A batch of about so many bytes, or 1,000 small events, is checked where it is taken: to copy it would cost more."""

FIRST_EVENTS: Final = 16
PIECE_EVENTS: Final = 512
PIECE_BYTES: Final = 64 * 1024
"""So much is checked in one go, in about a millisecond. A single larger event is checked alone."""

_parts_of = attrgetter("event_type", "data", "metadata", "tags")


class _Piece(NamedTuple):
    """Some events of the batch: a copy of theirs as bytes, or what they came to where they could not be copied so."""

    first: int
    """The index of the first one."""
    events: Sequence[EventLike]
    copied: bytes | list[Draft] | InvalidEvent
    as_rows: bool


class Batch:
    """The events of an append as they are now: what the caller changes later is not in it.

    All of them are taken when it is made, in one step. The first are checked there, and those with values that are not
    plain dicts, lists, texts and numbers. The others are copied, which is several times as quick (0.2 µs for a small
    event, 2 ms for a megabyte), and checked in `drafts`. InvalidEvent names the first that is not valid.
    """

    def __init__(
        self,
        events: Iterable[EventLike],
        limits: Limits,
        where: str = "events",
        additions: Additions = NOTHING_ADDED,
    ) -> None:
        if isinstance(events, str | bytes | dict | NewEvent) or not isinstance(events, Iterable):
            raise InvalidEvent(where, f"must be an iterable of events, not {type(events).__name__}")
        self._limits = limits
        self._where = where
        self._additions = additions
        self._drafts: list[Draft] = []
        self._pieces: deque[_Piece] = deque()
        taken = list(events)
        first, count, drafted_bytes = 0, FIRST_EVENTS, 0
        while first < len(taken):
            some = taken[first : first + count]
            if drafted_bytes < AT_ONCE_BYTES:
                drafts = draft_events(some, limits, where, first, additions)
                self._drafts += drafts
                if len(self._drafts) == len(taken):
                    break
                size = sum([draft.size for draft in drafts])
                drafted_bytes += size
            else:
                piece = self._piece(first, some)
                self._pieces.append(piece)
                if isinstance(piece.copied, InvalidEvent):
                    break  # it may not be the first, and nothing behind it is
                size = len(piece.copied) if isinstance(piece.copied, bytes) else PIECE_BYTES
            first += len(some)
            count = max(1, min(PIECE_EVENTS, len(some) * PIECE_BYTES // size))

    def _piece(self, first: int, events: Sequence[Any]) -> _Piece:
        # What `marshal` takes are exactly the plain types, of which it makes an equal copy without a step of Python.
        types = set(map(type, events))
        if types in ({tuple}, {NewEvent}):
            as_rows = types == {NewEvent}
            try:
                copied = marshal.dumps(list(map(_parts_of, events) if as_rows else events))
                return _Piece(first, events, copied, as_rows=as_rows)
            except ValueError:
                pass
        try:
            known = self._additions.types
            rows = [_plain(row_of(event, self._where, index, known)) for index, event in enumerate(events, first)]
            try:
                return _Piece(first, events, marshal.dumps(rows), as_rows=True)
            except ValueError:
                drafts = draft_rows(rows, self._limits, self._where, first, self._additions)
                return _Piece(first, events, drafts, as_rows=True)
        except InvalidEvent as error:
            return _Piece(first, events, error, as_rows=True)

    async def drafts(self) -> list[Draft]:
        """The drafts of all events, in order. Gives way every so often, and not at all where the batch is short."""
        while self._pieces:
            await asyncio.sleep(0)
            self._drafts += self._checked(self._pieces.popleft())
        return self._drafts

    def _checked(self, piece: _Piece) -> list[Draft]:
        first, events, copied, as_rows = piece
        if isinstance(copied, InvalidEvent):
            raise copied
        if not isinstance(copied, bytes):
            return copied
        same = marshal.loads(copied)  # noqa: S302 (its own bytes, which never left the process)
        try:
            if as_rows:
                return draft_rows(same, self._limits, self._where, first, self._additions)
            return draft_events(same, self._limits, self._where, first, self._additions)
        except InvalidEvent:
            # Of a foreign type the copy may be bytes: the caller's own object says it better, if it is still there.
            draft_events(events, self._limits, self._where, first, self._additions)
            raise


def _plain(row: Row) -> Row:
    """The row with a plain event_type, which may be of an enum, and with tags that are there now."""
    event_type, data, metadata, tags = row
    if isinstance(event_type, str):
        event_type = str.__str__(event_type)
    if not isinstance(tags, str | tuple | list) and isinstance(tags, Iterable):
        tags = tuple(tags)
    return event_type, data, metadata, tags
