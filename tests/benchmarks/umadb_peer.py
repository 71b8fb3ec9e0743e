"""The database `umadb`: its wheel carries the server, which runs on loopback in a process of its own."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Self

import umadb

from tests.postgres.server import free_port

from .peers import decode, encode

START_S = 30
"""So long the server may take to start, and to end."""


@contextmanager
def _server(directory: Path) -> Iterator[str]:
    """The server; it has no setting for durability, and syncs before it answers."""
    url = f"127.0.0.1:{free_port()}"
    program = "from umadb.umadb_server_cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "--listen", url, "--db-path", str(directory / "events")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://{url}"
    finally:
        process.terminate()
        process.wait(START_S)


class UmadbStore:
    """The client of `umadb` with a server of its own; for threads."""

    def __init__(self, client: umadb.Client) -> None:
        self._client = client

    @classmethod
    @asynccontextmanager
    async def open(cls, directory: Path) -> AsyncIterator[Self]:
        """The store of a directory."""
        with _server(directory) as url:
            deadline = time.monotonic() + START_S
            while True:
                try:
                    client = umadb.Client(url)
                    client.head()
                    break
                except Exception:
                    assert time.monotonic() < deadline, "the server of umadb does not start"
                    await asyncio.sleep(0.05)
            with client:
                yield cls(client)

    def append(self, stream_id: str, event_type: str, data: Any) -> None:
        """One event."""
        self.append_batch(stream_id, [(event_type, data)])

    def append_batch(self, stream_id: str, events: Sequence[tuple[str, Any]]) -> None:
        """Many events at once."""
        self._client.append([umadb.Event(event_type, encode(data), [stream_id]) for event_type, data in events])

    def read_all(self) -> Iterator[Any]:
        """All events in order, their data decoded."""
        for sequenced in self._client.read():
            yield decode(sequenced.event.data)
