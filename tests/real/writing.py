"""Writers, and the account of what they were told: a commit's number says all of what is in it."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from aiostore import Event, EventStore, NewEvent, StoreFull, StreamAppend
from aiostore.engines.file.disk import Disk
from aiostore.engines.file.engine import FileEngine
from aiostore.engines.file.format import MANIFEST_NAME
from tests.real.children import Message, Say

STATE = "position"


@dataclass(frozen=True)
class Options:
    """How the log is written: with small segments, most of it is sealed, and indexes are written all the time."""

    durability: Literal["fsync", "os"]
    segment_bytes: int
    part_bytes_min: int

    @classmethod
    def chosen(cls, seed: int, dice: random.Random) -> Options:
        """Some options: four seeds in a row have both durabilities, each with an even and an odd one."""
        durability: Literal["fsync", "os"] = "os" if seed // 2 % 2 else "fsync"
        return cls(durability, dice.choice((700, 2000, 20_000)), dice.choice((1, 1, 5000)))

    def engine(self, directory: str, disk: Disk | None = None) -> FileEngine:
        """An engine on the directory."""
        return FileEngine(
            directory,
            disk=disk,
            durability=self.durability,
            segment_bytes=self.segment_bytes,
            part_bytes_min=self.part_bytes_min,
        )


@dataclass(frozen=True)
class Commit:
    """What the commit of this number is."""

    number: int
    parts: tuple[tuple[str, tuple[NewEvent, ...]], ...]
    """Streams, and what each gets."""
    key: str | None

    @property
    def events(self) -> list[tuple[str, NewEvent]]:
        """The events, each with its stream, in order."""
        return [(stream_id, event) for stream_id, events in self.parts for event in events]

    async def append(self, store: EventStore) -> Sequence[Event]:
        """Append it, by the method for its shape."""
        if len(self.parts) > 1:
            appends = [StreamAppend(stream_id, events) for stream_id, events in self.parts]
            return await store.append_streams(appends, idempotency_key=self.key)
        stream_id, events = self.parts[0]
        if len(events) > 1:
            return await store.append_batch(stream_id, events, idempotency_key=self.key)
        only = events[0]
        return [await store.append(stream_id, only.event_type, only.data, tags=only.tags, idempotency_key=self.key)]


@cache
def commit_of(number: int) -> Commit:
    """The commit of this number."""
    dice = random.Random(number)
    left = itertools.count()
    streams = dice.sample(["red", "blue", "green", "grey"], dice.choice((1, 1, 1, 2, 3)))
    parts = []
    for stream_id in streams:
        events = []
        for _ in range(dice.choice((1, 1, 2, 5))):
            data = {"commit": number, "place": next(left), "fill": "x" * dice.choice((0, 10, 80, 300, 1200))}
            events.append(NewEvent(dice.choice(("A", "B")), data, tags=dice.choice(((), ("t",)))))
        parts.append((stream_id, tuple(events)))
    return Commit(number, tuple(parts), f"key-{number}" if dice.random() < 0.5 else None)


async def write(store: EventStore, engine: FileEngine, numbers: Iterator[int], say: Say, dice: random.Random) -> None:
    """Append commits of these numbers, some at a time, and save a state now and then; all is told."""

    async def append_some() -> None:
        for number in numbers:
            await append(store, number, say)
            if dice.random() < 0.1:
                await save(store, engine, say)

    await asyncio.gather(*(append_some() for _ in range(dice.randrange(1, 5))))


async def append(store: EventStore, number: int, say: Say) -> bool:
    """Append one commit and tell what came of it; False if there was no room."""
    say("begun", number)
    try:
        events = await commit_of(number).append(store)
    except StoreFull:
        say("refused", number)
        return False
    say("stored", number, [event.event_id for event in events])
    return True


async def save(store: EventStore, engine: FileEngine, say: Say) -> None:
    """Save a state of the store's head, and tell it."""
    head = await store.head()
    revision = await engine.save_state(STATE, head, b"")
    say("saved", head, revision)


class Wrong(AssertionError):
    """A promise that was broken."""


@dataclass
class Account:
    """What was told of a store. After each check only what is there counts, which must stay for ever."""

    begun: set[int] = field(default_factory=set)
    stored: dict[int, list[int]] = field(default_factory=dict)
    refused: set[int] = field(default_factory=set)
    saved: int = 0
    """A state of this event was saved, maybe before one of an earlier event."""
    revision: int = 0
    """Of the state that was saved last."""
    late: dict[int, list[int]] = field(default_factory=dict)
    """What was acknowledged when the power was off already, as no machine could: it may be there or not."""
    power_is_off: bool = False
    seen: list[int] = field(default_factory=list, repr=False)
    """For each event that a reader saw, its commit."""

    def note(self, messages: Sequence[Message]) -> None:
        """Take in what a writer or a check said from its beginning."""
        self.power_is_off = False
        for what, *rest in messages:
            match what:
                case "begun":
                    self.begun.add(rest[0])
                    self.refused.discard(rest[0])
                case "stored":
                    (self.late if self.power_is_off else self.stored)[rest[0]] = rest[1]
                case "cut":
                    self.power_is_off = True
                case "refused":
                    self.refused.add(rest[0])
                case "saved":
                    if not self.power_is_off:
                        self.saved, self.revision = max(self.saved, rest[0]), max(self.revision, rest[1])
                case "seen":
                    self.seen = rest[0]
                    self.begun, self.stored, self.refused, self.late = set(), {}, set(), {}
                case _:
                    raise Wrong(f"a child says {what} {rest}")

    @property
    def in_doubt(self) -> list[int]:
        """What was begun and may be there or not."""
        return sorted(self.begun - self.stored.keys() - self.refused)

    def check(self, events: Sequence[Event], *, power_lost: bool = False) -> list[int]:
        """The commits of the events, which are all of the store, in order; `Wrong` if they cannot be.

        ``power_lost``: what was not synced may be gone.
        """
        if [event.event_id for event in events] != list(range(1, len(events) + 1)):
            raise Wrong(f"ids are not dense: {[event.event_id for event in events]}")
        found = self._whole(events)
        if found[: len(self.seen)] != self.seen:
            raise Wrong(f"{len(self.seen)} events were seen, and now it is others: {self.seen} before, {found} now")
        if len(events) < self.saved:
            raise Wrong(f"a state of event {self.saved} was saved, and {len(events)} are there")
        if refused := self.refused & {*found}:
            raise Wrong(f"what was refused is there: commits {sorted(refused)}")
        if made_up := {*found} - {*self.seen} - self.begun:
            raise Wrong(f"commits {sorted(made_up)} were never begun")
        for number, ids in self.stored.items():
            there = found[ids[0] - 1 : ids[-1]]
            if there != [number] * len(ids) and not (power_lost and not there):
                raise Wrong(f"commit {number} was acknowledged with events {ids}; there it is {there}")
        return found

    @staticmethod
    def _whole(events: Sequence[Event]) -> list[int]:
        versions: dict[str, int] = {}
        found: list[int] = []
        numbers: set[int] = set()
        place = 0
        while place < len(events):
            number: Any = events[place].data["commit"]
            expected = commit_of(number).events
            there = events[place : place + len(expected)]
            if [(e.stream_id, e.event_type, e.data, e.tags) for e in there] != [
                (stream_id, new.event_type, new.data, new.tags) for stream_id, new in expected
            ]:
                raise Wrong(f"commit {number} is not whole, from event {place + 1} on")
            if number in numbers:
                raise Wrong(f"commit {number} is there twice")
            for event in there:
                versions[event.stream_id] = versions.get(event.stream_id, 0) + 1
                if event.version != versions[event.stream_id]:
                    raise Wrong(f"event {event.event_id} has version {event.version} of {event.stream_id}")
            numbers.add(number)
            found += [number] * len(expected)
            place += len(expected)
        if any(one.timestamp > other.timestamp for one, other in itertools.pairwise(events)):
            raise Wrong("timestamps go back")
        return found


async def check(
    directory: str, options: Options, account: Account, say: Say, dice: random.Random, *, power_lost: bool = False
) -> None:
    """Open the store, which must have all that the account says; what is in doubt is tried again by its key."""
    seen = 0
    if dice.random() < 0.3 and Disk().exists(f"{directory}/{MANIFEST_NAME}"):  # else it was killed before
        async with EventStore(directory, mode="r") as reader:
            events = await reader.read_all().to_list()
            account.check(events, power_lost=power_lost)
            seen = len(events)
    engine = options.engine(directory)
    async with EventStore(engine) as store:
        events = await store.read_all().to_list()
        found = account.check(events, power_lost=power_lost)
        if len(found) < seen:
            raise Wrong(f"a reader saw {seen} events, now there are {len(found)}")
        await _check_lookups(store, events)
        await _check_state(engine, account)
        for number in account.in_doubt:
            commit = commit_of(number)
            if commit.key is not None:
                again = await commit.append(store)
                if number not in found:
                    found += [number] * len(again)
                elif [event.event_id for event in again] != [n for n, there in enumerate(found, 1) if there == number]:
                    raise Wrong(f"tried again by its key, commit {number} is {again}")
        await save(store, engine, say)
    say("seen", found)


async def _check_lookups(store: EventStore, events: Sequence[Event]) -> None:
    """What the indexes find is what the log has."""
    for stream_id in {event.stream_id for event in events}:
        mine = [event for event in events if event.stream_id == stream_id]
        if await store.read_stream(stream_id).to_list() != mine:
            raise Wrong(f"stream {stream_id} is not what the log has")
        if await store.stream_version(stream_id) != len(mine):
            raise Wrong(f"stream {stream_id} has {len(mine)} events and another version")


async def _check_state(engine: FileEngine, account: Account) -> None:
    state = await engine.load_state(STATE)
    if account.revision and (state is None or not state.fits or state.revision < account.revision):
        raise Wrong(f"a state was saved as revision {account.revision}, and now it is {state}")
