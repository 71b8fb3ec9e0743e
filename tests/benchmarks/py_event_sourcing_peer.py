"""The library `py-event-sourcing`: streams over aiosqlite.

As it comes it sets WAL and ``synchronous=NORMAL``, with which a commit does not survive a power loss; here its writer
is set to FULL, as the other peers are. Its poller, which in 1.0.3 asks the database without a pause, is stopped:
nobody watches here, and it would be measured with the work of all others.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self

from py_event_sourcing import CandidateEvent, sqlite_stream_factory  # type: ignore[import-untyped]

from .peers import decode, encode


class PyEventSourcingStore:
    """Its streams, each opened once and kept."""

    def __init__(self, open_stream: Any, stack: AsyncExitStack) -> None:
        self._open_stream = open_stream
        self._stack = stack
        self._streams: dict[str, Any] = {}

    @classmethod
    @asynccontextmanager
    async def open(cls, directory: Path) -> AsyncIterator[Self]:
        """The store of a directory."""
        async with sqlite_stream_factory(str(directory / "events.db")) as open_stream, AsyncExitStack() as stack:
            store = cls(open_stream, stack)
            everything = await store._stream("@all")
            await everything.notifier.stop()
            await everything.storage_handle.write_conn.execute("PRAGMA synchronous = FULL")
            yield store

    async def _stream(self, stream_id: str) -> Any:
        stream = self._streams.get(stream_id)
        if stream is None:
            stream = await self._stack.enter_async_context(self._open_stream(stream_id))
            self._streams[stream_id] = stream
        return stream

    async def append(self, stream_id: str, event_type: str, data: Any) -> None:
        """One event, in a transaction of its own."""
        await self.append_batch(stream_id, [(event_type, data)])

    async def append_batch(self, stream_id: str, events: Sequence[tuple[str, Any]]) -> None:
        """Many events of one stream in one transaction."""
        stream = await self._stream(stream_id)
        await stream.write([CandidateEvent(type=event_type, data=encode(data)) for event_type, data in events])

    async def read_all(self) -> AsyncIterator[Any]:
        """All events in order, their data decoded."""
        everything = await self._stream("@all")
        async for event in everything.read():
            yield decode(event.data)
