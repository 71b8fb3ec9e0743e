"""Tasks under control: waiting for a state instead of a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from aiostore.events import Event
from aiostore.subscription import Subscription


async def until(condition: Callable[[], object]) -> None:
    """Give way to all others until the condition holds."""
    while not condition():  # noqa: ASYNC110 (what is waited for has no event of its own)
        await asyncio.sleep(0)


async def turns(count: int) -> None:
    """Give way to all others so many times."""
    for _ in range(count):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def running(*tasks: asyncio.Task[Any]) -> AsyncIterator[None]:
    """The tasks are ended behind the block."""
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def take(events: AsyncIterator[Event], count: int) -> list[int]:
    """The event_ids of the next events."""
    return [(await anext(events)).event_id for _ in range(count)]


async def waiting(subscription: Subscription) -> asyncio.Task[Event]:
    """A task that waits in ``__anext__`` of a subscription that is live and has nothing to hand out."""
    task = asyncio.ensure_future(anext(subscription))
    await until(lambda: subscription.is_live)
    await turns(3)
    assert not task.done(), task
    return task
