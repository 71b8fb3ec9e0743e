"""Sales by product in a SQLite file, each order counted exactly once, whenever the process is killed.

    python examples/orders_sqlite.py orders/ --orders 100

Orders go into an event store; a projection adds them up in ``orders/sales.db``. Rows and position are committed in one
transaction, so a crash leaves either both or neither. Kill it at any point and start it again: the table is right.
"""

import argparse
import asyncio
import random
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

from aiostore import Checkpoint, DatabaseProjection, Event, EventStore

PRODUCTS = ["teapot", "cup", "sugar bowl", "milk jug"]
SCHEMA = """
CREATE TABLE IF NOT EXISTS sales (product TEXT PRIMARY KEY, pieces INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS checkpoints (name TEXT PRIMARY KEY, position INTEGER NOT NULL, mark TEXT NOT NULL);
"""


class Database:
    """A SQLite file, used in a thread of its own, so that the loop goes on meanwhile. A `Target` of projections."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.executescript(SCHEMA)
        self._thread = ThreadPoolExecutor(1, "sales.db")

    async def execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._connection.execute, statement, values)

    async def load(self, name: str) -> Checkpoint | None:
        found = (await self.execute("SELECT position, mark FROM checkpoints WHERE name = ?", name)).fetchone()
        return Checkpoint(*found) if found else None

    @asynccontextmanager
    async def begin(self) -> AsyncIterator["Database"]:
        try:
            await self.execute("BEGIN IMMEDIATE")
            yield self
            await self.execute("COMMIT")
        finally:  # what is committed stays; where something was raised, or this was cancelled, it is undone
            await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.rollback)

    async def save(
        self, transaction: "Database", name: str, checkpoint: Checkpoint, previous: Checkpoint | None
    ) -> bool:
        if previous is None:
            done = await self.execute("INSERT OR IGNORE INTO checkpoints VALUES (?, ?, ?)", name, *checkpoint)
        else:
            update = "UPDATE checkpoints SET position = ?, mark = ? WHERE name = ? AND position = ?"
            done = await self.execute(update, *checkpoint, name, previous.position)
        return done.rowcount == 1

    def close(self) -> None:
        self._thread.shutdown()
        self._connection.close()


def sales(store: EventStore, database: Database) -> DatabaseProjection[Database]:
    projection = DatabaseProjection("sales", store, database)

    @projection.when("OrderPlaced")
    async def add(transaction: Database, event: Event) -> None:
        statement = "INSERT INTO sales VALUES (?1, ?2) ON CONFLICT DO UPDATE SET pieces = pieces + ?2"
        await transaction.execute(statement, event.data["product"], event.data["pieces"])

    return projection


async def main(directory: Path, database: Database, orders: int) -> None:
    async with EventStore(directory / "log") as store, sales(store, database) as projection:
        for number in range(await store.head() + 1, orders + 1):
            order = {"product": random.choice(PRODUCTS), "pieces": random.randint(1, 5)}
            event = await store.append(f"order-{number}", "OrderPlaced", order)
            print(f"order {number} is stored, {projection.position} are in the table", flush=True)
            if number % 10 == 0:  # read your own write: wait until the table has it
                await projection.wait_for(event.event_id)

        await projection.wait_for(await store.head())
        table = dict((await database.execute("SELECT product, pieces FROM sales ORDER BY product")).fetchall())
        for product, pieces in table.items():
            print(f"{product:12} {pieces:6}")

        replayed: Counter[str] = Counter()
        async for event in store.read_all():
            replayed[event.data["product"]] += event.data["pieces"]
        assert table == replayed, "the table is not what the events come to"
        print(f"these are the {await store.head()} orders of the log, each of them once")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Sales by product, exactly once")
    parser.add_argument("directory", type=Path, nargs="?", default=Path("orders-store"))
    parser.add_argument("--orders", type=int, default=100, help="so many in all")
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    database = Database(arguments.directory / "sales.db")
    asyncio.run(main(arguments.directory, database, arguments.orders))
    database.close()
