"""Where positions and states are kept: beside the events, in the engine; or, of a reader that may not write there, in a
file of its own.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol
from zlib import crc32

from aiostore.engine import PAGE_EVENTS, Engine, Saving, Selection, State
from aiostore.errors import EngineUnsupported, StoreCorrupt

if TYPE_CHECKING:
    from aiostore.engines.file.state import Row


class States(Protocol):
    """What keeps states; see `Engine`, which is one, for what the methods promise."""

    async def load_state(self, key: str) -> State | None: ...  # noqa: D102
    async def load_states(self, prefix: str, *, after: str = "", limit: int = PAGE_EVENTS) -> dict[str, State]: ...  # noqa: D102
    async def save_states(self, position: int, savings: Sequence[Saving]) -> Sequence[int]: ...  # noqa: D102


def states_of(engine: Engine, path: str | os.PathLike[str] | None, what: str) -> States:
    """The engine, or the file at the path. `EngineUnsupported` where the engine takes none; ``what`` needs them."""
    if path is not None:
        return StateFileBeside(engine, os.fspath(path))
    if engine.read_only:
        raise EngineUnsupported(
            f"{engine.location} was opened with mode='r' and keeps no states: give {what} a file of its own, state=path"
        )
    return engine


class StateFileBeside:
    """A SQLite file of states of a store that is only read; each is bound to the event at its position."""

    def __init__(self, engine: Engine, path: str) -> None:
        from aiostore.engines.file.disk import Disk
        from aiostore.engines.file.state import StateFile

        self._engine = engine
        self._path = path
        self._file = StateFile(Disk(), path, read_only=False)

    async def load_state(self, key: str) -> State | None:
        """What was last saved under the key."""
        row = await asyncio.to_thread(self._file.load, key)
        return None if row is None else await self._state(row)

    async def load_states(self, prefix: str, *, after: str = "", limit: int = PAGE_EVENTS) -> dict[str, State]:
        """What was saved under keys with the prefix."""
        rows = await asyncio.to_thread(self._file.load_some, prefix, after, limit)
        return {key: await self._state(row) for key, row in rows.items()}

    async def save_states(self, position: int, savings: Sequence[Saving]) -> Sequence[int]:
        """Save them all, or none."""
        mark = await self._mark(position)
        if mark is None:
            raise StoreCorrupt(self._path, 0, "the event that a state was made of cannot be read", position, position)
        return await asyncio.to_thread(self._file.save, position, mark, savings)

    async def _state(self, row: Row) -> State:
        return State(row.position, row.value, row.revision, row.crc == await self._mark(row.position))

    async def _mark(self, position: int) -> str | None:
        """What tells the event at the position from any other; None where there is none."""
        if not position:
            return ""
        event = await self._engine.first(Selection(up_to=position, after=position - 1))
        return None if event is None else f"{crc32(event.to_json()):08x}"
