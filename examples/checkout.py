"""A shop's checkout, safe when things happen at the same time: `python examples/checkout.py`.

1. Two browser tabs change one cart: `expected_version` refuses the second, which reads again and retries.
2. Two customers want the last teapot: an `AppendCondition` over its tag lets one of them have it.
3. A voucher can be redeemed once, whoever comes first.
4. The payment's answer is lost and the request sent again: the idempotency key keeps it from being stored twice.
"""

import asyncio
import tempfile

from aiostore import (
    AppendCondition,
    AppendConditionFailed,
    ConcurrencyConflict,
    Event,
    EventStore,
    IdempotencyConflict,
    Query,
)


async def add_item(store: EventStore, cart: str, item: str, tab: str) -> None:
    """Read the cart, decide, append on condition that it is still as it was read; else do it all again."""
    while True:
        events = await store.read_stream(cart).to_list()
        if len(events) >= 10:
            raise ValueError("a cart holds ten things at most")
        try:
            event = await store.append(cart, "ItemAdded", {"item": item}, expected_version=len(events))
        except ConcurrencyConflict as conflict:
            print(f"  {tab}: {conflict}; reading it again")
        else:
            print(f"  {tab}: added the {item} as version {event.version}")
            return


async def take_last(store: EventStore, product: str, customer: str) -> bool:
    """Take one out of stock if there is one left, however many customers try: the boundary is the product's tag.

    What counts is not one stream but every event with the tag, whichever customer's cart it stands in.
    """
    about_product = Query.where(types=["Stocked", "Taken"], tags=[f"product:{product}"])
    while True:
        reader = store.read_all(query=about_product)
        left = sum(1 if event.event_type == "Stocked" else -1 for event in await reader.to_list())
        if left < 1:
            print(f"  {customer}: the {product} is sold out")
            return False
        try:
            await store.append(
                f"cart-{customer}",
                "Taken",
                {"product": product},
                tags=[f"product:{product}"],
                condition=AppendCondition(about_product, after=reader.head),
            )
        except AppendConditionFailed as failed:
            print(f"  {customer}: {failed}")
        else:
            print(f"  {customer}: got the last {product}")
            return True


async def redeem(store: EventStore, voucher: str, customer: str) -> None:
    """Redeem a voucher that nobody has redeemed, ever."""
    tag = f"voucher:{voucher}"
    unused = AppendCondition(Query.where(types=["VoucherRedeemed"], tags=[tag]))
    try:
        await store.append(f"cart-{customer}", "VoucherRedeemed", {"code": voucher}, tags=[tag], condition=unused)
    except AppendConditionFailed as failed:
        print(f"  {customer}: voucher {voucher} was redeemed before, by event {failed.event_id}")
    else:
        print(f"  {customer}: redeemed voucher {voucher}")


async def pay(store: EventStore, order: str, cents: int, request_id: str) -> Event:
    """Record a payment once for each request, however often the request is sent."""
    return await store.append(order, "PaymentTaken", {"cents": cents}, idempotency_key=request_id)


async def main(directory: str) -> None:
    async with EventStore(directory) as store:
        print("Two tabs, one cart:")
        async with asyncio.TaskGroup() as tabs:
            tabs.create_task(add_item(store, "cart-Ada", "sugar bowl", "tab 1"))
            tabs.create_task(add_item(store, "cart-Ada", "milk jug", "tab 2"))

        print("One teapot, two customers:")
        await store.append("stock-teapot", "Stocked", {}, tags=["product:teapot"])
        async with asyncio.TaskGroup() as customers:
            customers.create_task(take_last(store, "teapot", "Ada"))
            customers.create_task(take_last(store, "teapot", "Grace"))

        print("One voucher, two customers:")
        await redeem(store, "SPRING", "Grace")
        await redeem(store, "SPRING", "Ada")

        print("One payment, sent twice:")
        first = await pay(store, "order-1", 2_400, "request-1")
        again = await pay(store, "order-1", 2_400, "request-1")
        print(f"  stored as event {first.event_id}; sent again, it is {'the same' if again == first else 'another'}")
        try:
            await pay(store, "order-1", 9_900, "request-1")
        except IdempotencyConflict as conflict:
            print(f"  the same key with another amount: {conflict}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(main(directory))
