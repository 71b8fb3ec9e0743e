"""A TCP proxy on loopback, between a store and its server: slow, cutting, deaf, mute, or leading elsewhere."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable
from typing import Self
from urllib.parse import urlsplit

PORTION = 65536


class Proxy:
    """Hands on what passes to the target. What it does may be changed at any time, and holds for all that passes then.

    ``delay_s``: each portion takes up to so long. ``cut_chance``: instead of handing a portion on, it cuts the
    connection, maybe in the middle of the portion. ``deaf``: what clients send is lost. ``mute``: what the server sends
    is lost. ``refusing``: who connects is cut off. ``withheld``: once, so many bytes at the end of what a client sends,
    and all that it sends later.
    """

    def __init__(self, url: str, dice: random.Random) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self.target_url = url
        self._host = parts.hostname
        self.target_port = parts.port
        self._dice = dice
        self._port = 0
        self._server: asyncio.Server
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.delay_s = 0.0
        self.cut_chance = 0.0
        self.deaf = False
        self.mute = False
        self.refusing = False
        self.withheld = 0
        self.cut_count = 0
        self.swallowed_bytes = 0

    @property
    def url(self) -> str:
        """That of the target, through this."""
        host = urlsplit(self.target_url).netloc.rpartition("@")[2]
        return self.target_url.replace(host, f"127.0.0.1:{self._port}", 1)

    @property
    def tasks(self) -> frozenset[asyncio.Task[None]]:
        """Its own."""
        return frozenset(self._tasks)

    @property
    def is_idle(self) -> bool:
        """Whether nobody is connected."""
        return not self._tasks

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def black_hole(self, on: bool = True) -> None:
        """Hand nothing on, either way, and say nothing of it."""
        self.deaf = self.mute = on

    def cut(self) -> None:
        """Cut all connections."""
        self.cut_count += len(self._writers) // 2
        for writer in self._writers:
            writer.transport.abort()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer), name="proxy")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.transport.abort()
            return
        try:
            there, to_there = await asyncio.open_connection(self._host, self.target_port)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, to_there}
        self._writers |= ends
        try:
            await _first_of(self._hand_on(reader, to_there, from_client=True), self._hand_on(there, writer))
        finally:
            self._writers -= ends
            for end in ends:
                end.transport.abort()

    async def _hand_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, from_client: bool = False
    ) -> None:
        while True:
            try:
                portion = await reader.read(PORTION)
            except OSError:
                return
            if not portion:
                return
            if self.delay_s:
                await asyncio.sleep(self._dice.uniform(0, self.delay_s))
            cut = self._dice.random() < self.cut_chance
            if cut:
                self.cut_count += 1
                portion = portion[: self._dice.randrange(len(portion) + 1)]
            if from_client and self.withheld:
                writer.write(portion[: -self.withheld])
                self.withheld = 0
                await reader.read()  # nothing else of this connection arrives
                return
            if self.deaf if from_client else self.mute:
                self.swallowed_bytes += len(portion)
            else:
                writer.write(portion)
                try:
                    await writer.drain()
                except OSError:
                    return
            if cut:
                return


async def _first_of(*works: Awaitable[None]) -> None:
    """End with the first that ends."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
