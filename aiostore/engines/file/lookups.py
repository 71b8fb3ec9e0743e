"""Lookups in the index: in the loop where what they take is in memory, and else on a thread."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import ParamSpec, TypeVar

from aiostore.engines.file.disk import WouldBlock
from aiostore.engines.file.run import RunDamaged
from aiostore.errors import EngineUnavailable, StoreClosed

P = ParamSpec("P")
T = TypeVar("T")

MENDED_MAX = 100
"""So many runs are made anew for one lookup."""


class Lookups:
    """Asks synchronous functions that read the index. ``mend`` is awaited where a run is damaged, and they go on."""

    def __init__(self, threads: Executor, mend: Callable[[RunDamaged], Awaitable[None]]) -> None:
        self._threads = threads
        self._mend = mend
        self._refusing = False
        self._in_loop = threading.get_ident()

    def may_wait(self) -> bool:
        """Whether the calling thread may wait for the device: it is not that of the loop, which made this."""
        return threading.get_ident() != self._in_loop

    async def ask(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What the function returns."""
        for left in range(MENDED_MAX, -1, -1):
            if self._refusing:
                raise StoreClosed
            try:
                try:
                    return function(*args, **kwargs)
                except WouldBlock:
                    call = functools.partial(function, *args, **kwargs)
                    return await asyncio.get_running_loop().run_in_executor(self._threads, call)
            except RunDamaged as damaged:
                if not left:
                    raise EngineUnavailable(f"the index is damaged again and again: {damaged}") from damaged
                await self._mend(damaged)
            except OSError as error:
                raise EngineUnavailable(f"the index cannot be read now: {error}") from error
        raise AssertionError("it returns or raises")

    def refuse(self) -> None:
        """Begin no further lookup, before the threads are shut down."""
        self._refusing = True
