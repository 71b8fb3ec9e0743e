"""A subscriber in a process of its own: ``python -m tests.benchmarks.follower URL [SCHEMA]``.

It prints a time when it is there, and then one for each event. The clock is that of the whole machine. With a schema it
is one by hand, without it aiostore's.
"""

from __future__ import annotations

import asyncio
import sys
import time

import asyncpg

from aiostore import END, EventStore

from .postgres_peers import PAGE, take_json

PAGE_SIZE = 500


def tell() -> None:
    """Say when."""
    moment = time.perf_counter()
    sys.stdout.write(f"{moment!r}\n")
    sys.stdout.flush()


async def follow_aiostore(url: str) -> None:
    """Each event that a live subscription delivers."""
    async with EventStore(url) as store, store.subscribe(after=END) as events:
        tell()
        async for _ in events:
            tell()


async def follow_by_hand(url: str, schema: str) -> None:
    """Listen, and read what there is behind the last event."""
    connection = await asyncpg.connect(url, server_settings={"search_path": schema})
    await take_json(connection)
    woken = asyncio.Event()
    await connection.add_listener(schema, lambda *_: woken.set())
    after: int = await connection.fetchval("SELECT coalesce(max(event_id), 0) FROM events")
    tell()
    while True:
        await woken.wait()
        woken.clear()
        for row in await connection.fetch(PAGE, after, PAGE_SIZE):
            after = row[0]
            tell()


if __name__ == "__main__":
    url, *schemas = sys.argv[1:]
    asyncio.run(follow_by_hand(url, *schemas) if schemas else follow_aiostore(url))
