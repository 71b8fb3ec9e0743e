"""Events that grow up: objects, versions and upcasters: `python examples/upcasting.py`.

A shop's events are written by three versions of its program, one after the other. What is stored never changes;
upcasters bring each event from its version to today's when it is read, so that the rest of the program knows one form.
"""

import asyncio
import tempfile
from dataclasses import dataclass
from typing import Any

import msgspec

from aiostore import Decider, EventStore, EventTypes, Query

# The first program stored dicts, {"customer": …, "total": euros}; the second, objects of a class, and knew the step.


def in_cents(data: dict[str, Any]) -> dict[str, Any]:
    return {"customer": data["customer"], "total_cents": round(data["total"] * 100)}


@dataclass
class OrderInCents:
    customer: str
    total_cents: int


second = EventTypes()
second.add(OrderInCents, "OrderPlaced", version=2)
second.upcast("OrderPlaced", from_version=1)(in_cents)

# Today's program has other currencies too. (The classes of old versions can go; the upcasters stay.)


class Money(msgspec.Struct, frozen=True):
    cents: int
    currency: str = "EUR"

    def __str__(self) -> str:
        return f"{self.cents / 100:.2f} {self.currency}"


types = EventTypes()


@types.event("OrderPlaced", version=3, tags=lambda order: [f"customer:{order.customer}"])
class OrderPlaced(msgspec.Struct, frozen=True):
    customer: str
    total: Money


@types.event
class OrderCancelled(msgspec.Struct, frozen=True):
    reason: str


types.upcast("OrderPlaced", from_version=1)(in_cents)


@types.upcast("OrderPlaced", from_version=2)
def with_currency(data: dict[str, Any]) -> dict[str, Any]:
    return {"customer": data["customer"], "total": {"cents": data["total_cents"]}}


# One stored sample of each version, never changed. A test of yours calls check_samples, which fails when one of them
# cannot be read any more; it takes a directory of files too.
SAMPLES: dict[str, dict[int, Any]] = {
    "OrderPlaced": {
        1: {"customer": "ann", "total": 19.99},
        2: {"customer": "ann", "total_cents": 1999},
        3: {"customer": "ann", "total": {"cents": 1999, "currency": "CHF"}},
    },
    "OrderCancelled": {1: {"reason": "changed my mind"}},
}


def evolve(is_open: bool, event: OrderPlaced | OrderCancelled) -> bool:
    return isinstance(event, OrderPlaced)


def cancel(reason: str, is_open: bool) -> list[OrderCancelled]:
    return [OrderCancelled(reason)] if is_open else []


order = Decider(False, evolve, cancel, decoded=True)  # which gets objects, whatever version was stored


async def main() -> None:
    types.check_samples(SAMPLES)
    with tempfile.TemporaryDirectory() as directory:
        async with EventStore(directory) as store:
            await store.append("order-1", "OrderPlaced", {"customer": "ann", "total": 19.99})
        async with EventStore(directory, types=second) as store:
            await store.append("order-2", OrderInCents("ben", 500))
        async with EventStore(directory, types=types) as store:
            await store.append("order-3", OrderPlaced("cleo", Money(4200, "CHF")))
            await order.execute(store, "order-1", "found it cheaper")

            async for event, placed in store.read_all().decoded():
                stored = event.metadata.get("schema_version", 1)
                print(f"{event.stream_id}: stored as version {stored}: {event.data}")
                print(f"         read as {placed}")
            async for event in store.read_all(query=Query.where(tags="customer:cleo")):
                placed = event.decode()
                print(f"{placed.customer} owes {placed.total}")
    print("and in other languages:", ", ".join(types.json_schema()["$defs"]))


if __name__ == "__main__":
    asyncio.run(main())
