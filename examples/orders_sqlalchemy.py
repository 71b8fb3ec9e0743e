"""Sales by product in PostgreSQL, with SQLAlchemy 2: each order counted exactly once, by however many processes.

    pip install ".[postgres,examples]"
    python examples/orders_sqlalchemy.py postgresql://user@host/database --orders 100

The store and the tables are in the same server here; they need not be. Rows and position are committed in one
transaction. Start it twice: both append, and one of them is told that the other one counts.
"""

import argparse
import asyncio
import random
from collections import Counter
from contextlib import AbstractAsyncContextManager

from sqlalchemy import BigInteger, Column, Integer, MetaData, String, Table, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from aiostore import Checkpoint, DatabaseProjection, Event, EventStore, ProjectionConflict, Query

PRODUCTS = ["teapot", "cup", "sugar bowl", "milk jug"]

metadata = MetaData()
sales_table = Table("sales", metadata, Column("product", String, primary_key=True), Column("pieces", Integer))
checkpoints = Table(
    "checkpoints",
    metadata,
    Column("name", String, primary_key=True),
    Column("position", BigInteger),
    Column("mark", String),
)


class Database:
    """A `Target` of projections over an engine of SQLAlchemy: handlers get the connection of the transaction."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def load(self, name: str) -> Checkpoint | None:
        row = select(checkpoints.c.position, checkpoints.c.mark).where(checkpoints.c.name == name)
        async with self._engine.connect() as connection:
            found = (await connection.execute(row)).first()
        return Checkpoint(*found) if found else None

    def begin(self) -> AbstractAsyncContextManager[AsyncConnection]:
        return self._engine.begin()

    async def save(
        self, transaction: AsyncConnection, name: str, checkpoint: Checkpoint, previous: Checkpoint | None
    ) -> bool:
        values = checkpoint._asdict()
        if previous is None:
            done = await transaction.execute(insert(checkpoints).values(name=name, **values).on_conflict_do_nothing())
        else:
            row = (checkpoints.c.name == name) & (checkpoints.c.position == previous.position)
            done = await transaction.execute(update(checkpoints).where(row).values(values))
        return done.rowcount == 1


def sales(store: EventStore, database: Database) -> DatabaseProjection[AsyncConnection]:
    projection = DatabaseProjection("sales", store, database, query=Query.where(types="OrderPlaced"))

    @projection.when("OrderPlaced")
    async def add(connection: AsyncConnection, event: Event) -> None:
        row = insert(sales_table).values(product=event.data["product"], pieces=event.data["pieces"])
        more = {"pieces": sales_table.c.pieces + row.excluded.pieces}
        await connection.execute(row.on_conflict_do_update(index_elements=["product"], set_=more))

    return projection


async def main(url: str, orders: int) -> None:
    # The store takes options in its URL; SQLAlchemy wants the name of the driver in it, and the schema as a setting.
    address = make_url(url)
    schema = str(address.query.get("schema", "aiostore"))
    engine = create_async_engine(
        address.set(drivername="postgresql+asyncpg", query={}),
        connect_args={"server_settings": {"search_path": f"{schema}_sales"}},
    )
    async with EventStore(url) as store:
        async with engine.begin() as connection:
            await connection.exec_driver_sql(f'CREATE SCHEMA IF NOT EXISTS "{schema}_sales"')
            await connection.run_sync(metadata.create_all)
        async with sales(store, Database(engine)) as projection:
            for number in range(1, orders + 1):
                order = {"product": random.choice(PRODUCTS), "pieces": random.randint(1, 5)}
                event = await store.append(f"order-{random.randbytes(6).hex()}", "OrderPlaced", order)
                print(f"order {number} is event {event.event_id}, {projection.position} are in the table", flush=True)
            try:
                await projection.wait_for(await store.head())
            except ProjectionConflict as conflict:
                print(f"another process counts ({conflict})")
                return
        async with engine.connect() as connection:
            await connection.execution_options(isolation_level="REPEATABLE READ")  # both as of one moment
            rows = await connection.execute(select(sales_table).order_by(sales_table.c.product))
            table = {row.product: row.pieces for row in rows}
            position = await connection.scalar(select(checkpoints.c.position))
        for product, pieces in table.items():
            print(f"{product:12} {pieces:6}")

        replayed: Counter[str] = Counter()
        async for event in store.read_all(up_to=position):
            replayed[event.data["product"]] += event.data["pieces"]
        assert table == replayed, "the table is not what the events come to"
        print(f"these are the {position} orders of the log, each of them once")
    await engine.dispose()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Sales by product, exactly once")
    parser.add_argument("url", help="postgresql://…")
    parser.add_argument("--orders", type=int, default=100, help="so many more")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.url, arguments.orders))
