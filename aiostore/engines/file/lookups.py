"""Lookups in the index: in the loop where what they take is in memory, and else on a thread."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import Executor
from typing import ParamSpec, TypeVar

from aiostore.engines.file.disk import WouldBlock
from aiostore.errors import StoreClosed

P = ParamSpec("P")
T = TypeVar("T")


class Lookups:
    """Asks synchronous functions that read the index."""

    def __init__(self, threads: Executor) -> None:
        self._threads = threads
        self._refusing = False

    async def ask(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What the function returns."""
        if self._refusing:
            raise StoreClosed
        try:
            return function(*args, **kwargs)
        except WouldBlock:
            call = functools.partial(function, *args, **kwargs)
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def refuse(self) -> None:
        """Begin no further lookup, before the threads are shut down."""
        self._refusing = True
