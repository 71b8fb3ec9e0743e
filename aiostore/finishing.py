"""Waiting for what must come to its end, whoever cancels the one who waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any


async def until_done(task: asyncio.Future[Any]) -> asyncio.CancelledError | None:
    """Wait for the task, however often this one is cancelled meanwhile; the first cancellation is returned."""
    cancelled = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = cancelled or error
    return cancelled


async def finished(work: Awaitable[object]) -> None:
    """Bring it to its end, however often this task is cancelled meanwhile; the cancellation is raised behind it."""
    task = asyncio.ensure_future(work)
    cancelled = await until_done(task)
    task.result()
    if cancelled is not None:
        raise cancelled
