"""A consumer that mails, with retries and parking: `python examples/mailer.py`.

Orders come in while confirmations go out through a mail server that now and then does not answer, and that refuses one
customer's address for good. The consumer tries again; then it sets that customer's events aside, in order, while all
others get their mail. When the address is put right, what was set aside is sent. The process ends in the midst of it,
and the next one goes on where it was: every mail at least once, and each customer's in order.
"""

import asyncio
import logging
import tempfile

from aiostore import Consumer, Event, EventStore, Query, Retry, correlate

CUSTOMERS = ("ann", "ben", "cleo", "dora")
ORDERS_EACH = 5


class MailServer:
    """Stands for SMTP: every fifth time it is busy, and some addresses it does not take."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, int]] = []
        self.refused = {"cleo"}
        self._calls = 0

    async def send(self, customer: str, order: int) -> None:
        await asyncio.sleep(0.001)
        self._calls += 1
        if customer in self.refused:
            raise ValueError(f"550 no such user: {customer}")
        if self._calls % 5 == 0:
            raise ConnectionError("421 busy, try later")
        self.sent.append((customer, order))


def mailer(store: EventStore, server: MailServer) -> Consumer:
    """What is mailed is recorded in the store too, and follows from the order: see its metadata."""

    async def confirm(event: Event) -> None:
        await server.send(event.stream_id, event.data["order"])
        # A mail may go out twice (at least once!), but it is recorded once: the key is the event that it is for.
        await store.append(
            f"mails-{event.stream_id}",
            "ConfirmationSent",
            {"order": event.data["order"]},
            idempotency_key=f"confirmation-of-{event.event_id}",
        )

    return Consumer(
        store,
        "mailer",
        confirm,
        query=Query.where(types="OrderPlaced"),
        concurrency=8,
        retry=Retry(attempts=3, first_s=0.01),
        on_error="park",
    )


async def place_orders(store: EventStore) -> None:
    for order in range(1, ORDERS_EACH + 1):
        for customer in CUSTOMERS:
            with correlate(f"request-{customer}-{order}"):
                await store.append(customer, "OrderPlaced", {"order": order})


async def main() -> None:
    logging.getLogger("aiostore").setLevel(logging.CRITICAL)  # failed attempts and parking are logged
    server = MailServer()
    with tempfile.TemporaryDirectory() as directory:
        async with EventStore(directory) as store, mailer(store, server) as consumer:
            await place_orders(store)
            await consumer.wait_idle()
            stats = consumer.stats()
            print(f"{stats.handled_count} orders confirmed, {stats.retried_count} attempts failed")
            for parked in await consumer.parked():
                print(f"  parked: {parked.event.stream_id}'s order {parked.event.data['order']}: {parked.error}")

        # Another process, later: it goes on where the last one was, and knows what is parked.
        server.refused.clear()
        async with EventStore(directory) as store, mailer(store, server) as consumer:
            print(f"{await consumer.retry_parked()} customer's mails are tried again")
            await consumer.wait_idle()
            print(f"{len(await consumer.parked())} are parked now")
            for customer in CUSTOMERS:
                orders = [order for name, order in server.sent if name == customer]
                assert list(dict.fromkeys(orders)) == list(range(1, ORDERS_EACH + 1)), "each customer's in order"
                print(f"  {customer} had the mails for orders {orders}")
            mail = await store.read_stream("mails-cleo", limit=1).to_list()
            print(f"the first to cleo follows from event {mail[0].metadata['causation_id']}, ", end="")
            print(f"and from {mail[0].metadata['correlation_id']}")


if __name__ == "__main__":
    asyncio.run(main())
