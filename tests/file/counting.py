"""A process that appends, and counts what it appended in SQLite and by key; and what must be true of it when killed."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from aiostore import Checkpoint, DatabaseProjection, Event, EventStore, KeyedProjection

STREAMS = 7


class SQLiteTarget:
    """Calls of SQLite that are short enough to be made in the loop."""

    def __init__(self, path: Path) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None)
        for table in ("counts(key PRIMARY KEY, count, last)", "checkpoints(name PRIMARY KEY, position, mark)"):
            self.connection.execute(f"CREATE TABLE IF NOT EXISTS {table}")

    async def load(self, name: str) -> Checkpoint | None:
        row = self.connection.execute("SELECT position, mark FROM checkpoints WHERE name = ?", (name,)).fetchone()
        return None if row is None else Checkpoint(*row)

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[sqlite3.Connection]:
        self.connection.execute("BEGIN IMMEDIATE")
        with self.connection:
            yield self.connection

    async def save(
        self, transaction: sqlite3.Connection, name: str, checkpoint: Checkpoint, previous: Checkpoint | None
    ) -> bool:
        if previous is None:
            done = transaction.execute("INSERT OR IGNORE INTO checkpoints VALUES (?, ?, ?)", (name, *checkpoint))
        else:
            done = transaction.execute(
                "UPDATE checkpoints SET position = ?, mark = ? WHERE name = ? AND position = ?",
                (*checkpoint, name, previous.position),
            )
        return done.rowcount == 1


def into_sqlite(store: EventStore, target: SQLiteTarget) -> DatabaseProjection[sqlite3.Connection]:
    projection = DatabaseProjection("counts", store, target, batch_events=5)

    @projection.when("E")
    async def count(connection: sqlite3.Connection, event: Event) -> None:
        connection.execute(
            "INSERT INTO counts VALUES (?1, 1, ?2) ON CONFLICT DO UPDATE SET count = count + 1, last = ?2",
            (event.stream_id, event.event_id),
        )
        await asyncio.sleep(0)

    return projection


def by_key(store: EventStore) -> KeyedProjection[dict[str, Any]]:
    projection = KeyedProjection("counts", store, cache_keys=3, batch_events=5)

    @projection.when("E")
    def count(state: dict[str, Any], event: Event) -> None:
        state["count"] = state.get("count", 0) + 1
        state["last"] = event.event_id

    return projection


async def work(directory: Path) -> None:
    """Append for ever, say so, and count."""
    target = SQLiteTarget(directory / "counts.db")
    async with (
        EventStore(directory / "store") as store,
        into_sqlite(store, target),
        by_key(store) as keyed,
    ):
        for turn in range(10**9):
            event = await store.append(f"s-{turn % STREAMS}", "E", {})
            if turn % 11 == 10:
                await keyed.rebuild()
            await keyed.wait_for(event.event_id - 3 if event.event_id > 3 else 0)
            print(event.event_id, flush=True)


async def check(directory: Path, *, at_head: bool) -> None:
    """What was counted is what was appended, up to where each of them is, and after catching up to the head."""
    target = SQLiteTarget(directory / "counts.db")
    with closing(target.connection):
        async with EventStore(directory / "store") as store:
            events = await store.read_all().to_list()
            into, keyed = into_sqlite(store, target), by_key(store)
            if at_head:
                await into.catch_up()
                await keyed.catch_up()
                assert into.position == keyed.position == len(events) > 0
            found = {
                key: {"count": count, "last": last}
                for key, count, last in target.connection.execute("SELECT * FROM counts")
            }
            position = await target.load("counts")
            assert found == counted(events[: position.position if position else 0])
            states = {key: state async for key, state in keyed.items()}
            assert states == counted(events[: keyed.position])


def counted(events: list[Event]) -> dict[str, dict[str, int]]:
    counts = Counter(event.stream_id for event in events)
    last = {event.stream_id: event.event_id for event in events}
    return {key: {"count": count, "last": last[key]} for key, count in counts.items()}


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1])))
