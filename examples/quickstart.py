"""Append events, read them back, follow them: `python examples/quickstart.py`."""

import asyncio

from aiostore import EventStore


async def main() -> None:
    async with EventStore() as store:  # in memory; EventStore("shop/") keeps its events in that directory
        await store.append("cart-42", "CartOpened", {"customer": "Ada"})
        await store.append("cart-42", "ItemAdded", {"item": "teapot", "price": 24}, expected_version=1)

        history = await store.read_stream("cart-42").to_list()
        print("so far:", [event.event_type for event in history])

        async with store.subscribe(after=0) as events:  # from the first event on, and then whatever comes
            async for event in events:
                print(f"event {event.event_id}: {event.stream_id} v{event.version} {event.event_type} {event.data}")
                if event.event_type == "ItemAdded":
                    break


asyncio.run(main())
