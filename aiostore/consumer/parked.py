"""Parked events: which streams wait behind an event that could not be handled, and why.

For each of them one row is kept beside the group's record, whatever number of events it stands for: all of the stream
from the first one on, that the consumer asks for, and that it has passed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from aiostore.consumer.group import partition_of
from aiostore.engine import PAGE_EVENTS, Saving, State
from aiostore.errors import EngineUnsupported
from aiostore.events import Event
from aiostore.query import Query
from aiostore.states import States
from aiostore.store import EventStore

ERROR_CHARACTERS_MAX = 2000
"""So much is kept of what a handler raised."""


@dataclass(frozen=True, slots=True)
class Parked:
    """An event that was not handled, and is kept for `Consumer.retry_parked` or `Consumer.skip_parked`."""

    event: Event
    error: str | None
    """What the handler raised; None for an event that only waits behind such a one of its stream."""
    attempts: int
    """How often it was tried."""


class Row(msgspec.Struct, array_like=True):
    """What is kept of a parked stream."""

    event_id: int
    """The first event that is parked…"""
    version: int
    """…and its version."""
    error: str
    """What the handler raised with that event; empty where it was not tried."""
    attempts: int
    retry: bool = False
    """Whether somebody asked for it to be tried again."""
    skipped: list[int] = []
    """The event_ids that somebody asked to be left out."""


class Marker:
    """A parked stream in the memory of the worker that has it."""

    __slots__ = ("key", "row", "seen")

    def __init__(self, key: str, row: Row, seen: int) -> None:
        self.key = key
        self.row = row
        self.seen = seen
        """Events of the stream up to this one were passed, and are parked."""

    def passed(self, event: Event) -> None:
        """The event was handled, or is to be skipped: the next one is the first."""
        row = self.row
        row.event_id, row.version = event.event_id + 1, event.version + 1
        row.skipped = [event_id for event_id in row.skipped if event_id > event.event_id]
        row.error, row.attempts = "", 0


class Kept(NamedTuple):
    """A row as it was loaded."""

    key: str
    row: Row
    partition: int


def row_error(error: BaseException) -> str:
    """What a row says of an error."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception as worse:  # an error that cannot even be shown
        text = f"{type(error).__name__} (which cannot be shown: {type(worse).__name__})"
    text = text.encode(errors="replace").decode()
    return text if len(text) <= ERROR_CHARACTERS_MAX else f"{text[:ERROR_CHARACTERS_MAX]}…"


class ParkedRows:
    """The rows of a consumer."""

    def __init__(self, states: States, name: str) -> None:
        self._states = states
        # With its length in front, no name's rows begin as another's, or as any record of a group.
        self._prefix = f"parked/{len(name)}/{name}/"

    def saving(self, key: str, row: Row | None) -> Saving:
        """To keep the row, or none any more."""
        return Saving(f"{self._prefix}{key}", None if row is None else msgspec.msgpack.encode(row))

    async def load(self, partitions: Collection[int] | None = None) -> list[Kept]:
        """The rows of the partitions, or all; in the order of their streams' names."""
        rows: list[Kept] = []
        after = ""
        while True:
            page = await self.page(after)
            rows.extend(kept for kept in page if partitions is None or kept.partition in partitions)
            if len(page) < PAGE_EVENTS:
                return rows
            after = page[-1].key

    async def page(self, after: str) -> list[Kept]:
        """The first `PAGE_EVENTS` rows behind the stream ``after``."""
        states = await self._states.load_states(self._prefix, after=f"{self._prefix}{after}", limit=PAGE_EVENTS)
        return [_kept(key.removeprefix(self._prefix), state) for key, state in states.items()]

    async def one(self, key: str) -> list[Kept]:
        """The row of a stream, if there is one."""
        state = await self._states.load_state(f"{self._prefix}{key}")
        return [] if state is None else [_kept(key, state)]


async def parked_events(
    store: EventStore,
    key: str,
    row: Row,
    seen: int,
    query: Query | None,
    order_by: Callable[[Event], str] | None,
    limit: int,
) -> list[Event]:
    """The first events, at most ``limit``, that the row stands for; those to be skipped too."""
    if order_by is None:
        reader = store.read_stream(key, from_version=row.version)
    else:
        reader = store.read_all(after=row.event_id - 1, up_to=seen, query=query)
    found: list[Event] = []
    async for events in reader.batches(min(limit, PAGE_EVENTS)):
        for event in events:
            if event.event_id > seen or len(found) == limit:
                return found
            if event.event_id >= row.event_id and (
                (query is None or query.matches(event)) if order_by is None else order_by(event) == key
            ):
                found.append(event)
    return found


def _kept(key: str, state: State) -> Kept:
    try:
        row = msgspec.msgpack.decode(state.value, type=Row)
    except msgspec.DecodeError as error:
        raise EngineUnsupported(f"a parked stream was written by another version of aiostore: {error}") from error
    return Kept(key, row, partition_of(key))
