"""Clients that append, follow and project all the time, whatever befalls their server or the way to it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from aiostore import EngineUnavailable, Event, EventStore
from tests.postgres.notes import STORED, Noted, check_notes, tally_of
from tests.postgres.worker import DEADLINE_S, Client, Way, tally_projection
from tests.scheduler import running

SEED = int(os.environ.get("AIOSTORE_SEED", "12"))
CLIENTS = 12
ROUND_APPENDS = 150
"""So many are acknowledged between one kill and the next."""

PATIENT: dict[str, Any] = {"retry_timeout": 90.0, "connect_timeout": 5.0}
"""Longer than any outage here."""

HASTY: dict[str, Any] = {"retry_timeout": 0.5, "connect_timeout": 0.5, "command_timeout": 0.5}

WAYS: tuple[Way, ...] = ("free", "batch", "expected", "streams", "condition", "keyed", "shared key")


def in_own_schema(url: str) -> str:
    """A store that is not there yet."""
    return f"{url}{'&' if '?' in url else '?'}schema=t_{secrets.token_hex(6)}"


async def until(condition: Callable[[], object], what: str) -> None:
    """Look again and again whether it holds."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():  # noqa: ASYNC110 (what is waited for has no event of its own)
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"it never came to this: {what}") from None


class Life:
    """Clients of two stores that append without end; a subscription and a live projection of each store."""

    def __init__(self, here: EventStore, there: EventStore) -> None:
        self._stores = (here, there)
        self._projections = [tally_projection(store) for store in self._stores]
        self._seen: list[list[Event]] = [[], []]
        self._on = True
        self._tasks: list[asyncio.Task[None]] = []
        self.notes: list[Noted] = []

    @property
    def stored_count(self) -> int:
        """How many appends were acknowledged."""
        return sum(noted.outcome == STORED for noted in self.notes)

    async def go_on(self, count: int) -> None:
        """Wait until so many more are acknowledged."""
        goal = self.stored_count + count
        await until(lambda: self.stored_count >= goal or self._has_ended(), f"{count} more appends")

    def _has_ended(self) -> bool:
        """Whether one of the tasks ended by itself, which is an error."""
        for task in self._tasks:
            if task.done():
                task.result()
        return any(task.done() for task in self._tasks)

    async def _append(self, client: Client, name: str, dice: random.Random) -> None:
        number = 0
        while self._on:
            number += 1
            await client.append(f"{name}-{number}", dice.choice(WAYS))

    async def _follow(self, store: EventStore, seen: list[Event]) -> None:
        async with store.subscribe() as subscription:
            async for events in subscription.batches():
                seen += events

    @contextlib.asynccontextmanager
    async def living(self) -> AsyncIterator[None]:
        """All of them live in the block; behind it, what they saw and noted agrees with the log."""
        dice = random.Random(SEED)
        async with contextlib.AsyncExitStack() as stack:
            followers = [
                asyncio.create_task(self._follow(store, seen))
                for store, seen in zip(self._stores, self._seen, strict=True)
            ]
            await stack.enter_async_context(running(*followers))
            for projection in self._projections:
                await stack.enter_async_context(projection)
            appenders = []
            for number in range(CLIENTS):
                store, own = self._stores[number % 2], random.Random(dice.random())
                client = Client(store, f"c{number}", own, self.notes.append, restless=False)
                appenders.append(asyncio.create_task(self._append(client, f"c{number}", own)))
            await stack.enter_async_context(running(*appenders))
            self._tasks = [*followers, *appenders]
            yield
            self._on = False
            async with asyncio.timeout(DEADLINE_S):
                await asyncio.gather(*appenders)
            await self._check()

    async def _check(self) -> None:
        log = await self._stores[0].read_all().to_list()
        check_notes(log, self.notes)
        for seen, projection in zip(self._seen, self._projections, strict=True):
            await until(lambda seen=seen: len(seen) >= len(log), "all is seen")  # type: ignore[misc]
            assert seen == log, "a subscription has no gap and no double"
            await projection.wait_for(len(log), timeout=DEADLINE_S)
            assert projection.state == tally_of(log), "a projection agrees with a replay"
        assert await self._stores[1].read_all().to_list() == log


async def live_through(
    url: str, rounds: int, strike: Callable[[], Awaitable[object]], **options: Any
) -> Sequence[Noted]:
    """Live through strikes, with clients that are patient: none of them should hear of it."""
    options = {**PATIENT, **options}
    async with EventStore(url, **options) as here, EventStore(url, **options) as there:
        life = Life(here, there)
        async with life.living():
            for _ in range(rounds):
                await life.go_on(ROUND_APPENDS)
                await strike()
            await life.go_on(ROUND_APPENDS)
        return life.notes


async def again(work: Callable[[], Awaitable[Event]]) -> Event:
    """What it comes to when the server is there again."""
    while True:
        try:
            return await work()
        except EngineUnavailable:
            await asyncio.sleep(0.05)
