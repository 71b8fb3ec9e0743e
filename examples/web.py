"""Orders over HTTP: a FastAPI app that appends events, and a page that follows them live.

    pip install ".[examples]"
    python examples/web.py [directory] [--host 127.0.0.1] [--port 8000]
    python examples/web.py postgresql://user@localhost/orders --workers 2      # needs ".[postgres]"

Then open http://127.0.0.1:8000 in two windows, or use curl:

    curl -i localhost:8000/orders/17 -H 'If-Match: "0"' --json '{"item": "teapot", "quantity": 1}'
    curl -N localhost:8000/events

- The version of an order is its ETag. A POST says by If-Match which version it is based on; that is its
  `expected_version`: when somebody else was faster, the answer is 412 and the new ETag. An Idempotency-Key makes a POST
  safe to send again.
- A `LiveProjection` keeps the totals: before a POST returns, they have it.
- /events sends history, then what comes, as server-sent events whose ids are the event_ids: a browser that lost the
  connection goes on after the last one it has had. One that reads too slowly holds up nobody (see /status).

Everything is `async def`, because FastAPI runs plain functions in threads and a store belongs to its event loop. With a
directory there is one worker, because one process writes; on PostgreSQL there may be many.
"""

import argparse
import os
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import anyio
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, Field
from sse_starlette import EventSourceResponse, ServerSentEvent

from aiostore import (
    ConcurrencyConflict,
    Event,
    EventStore,
    EventStoreError,
    IdempotencyConflict,
    InvalidEvent,
    LiveProjection,
    StoreFull,
    Subscription,
    reconstruct_state,
)

LOCATION = "ORDERS_LOCATION"
PAGE = Path(__file__).with_name("web.html")
NUMBER = "(0|[1-9][0-9]{0,17})"
# All else that the store may raise here means that it is not at work: 503.
STATUS = {IdempotencyConflict: 409, ConcurrencyConflict: 412, InvalidEvent: 422, StoreFull: 507}


class Item(BaseModel):
    item: str = Field(min_length=1, max_length=100)
    quantity: int = Field(ge=1, le=1000, strict=True)


def add_item(items: Counter[str], event: Event) -> None:
    items[event.data["item"]] += event.data["quantity"]


HANDLERS = {"OrderPlaced": add_item, "ItemAdded": add_item}


@dataclass
class Shop:
    """What is open while the app runs."""

    store: EventStore
    totals: LiveProjection[Counter[str]]
    streams: set[Subscription] = field(default_factory=set)


async def shop_of(request: Request) -> Shop:
    shop: Shop = request.state.shop
    return shop


async def version_seen(if_match: Annotated[list[str] | None, Header()] = None) -> int:
    if if_match is None:
        raise HTTPException(428, 'say by If-Match which version of the order you have seen; "0" if there is none yet')
    etag = re.fullmatch(f'"{NUMBER}"', ", ".join(if_match))
    if etag is None:
        raise HTTPException(400, 'If-Match must be one ETag as this server gives it, such as "3"')
    return int(etag[1])


OpenShop = Annotated[Shop, Depends(shop_of)]
router = APIRouter()


@router.post("/orders/{order_id}", status_code=201)
async def add_to_order(
    order_id: str,
    item: Item,
    version: Annotated[int, Depends(version_seen)],
    shop: OpenShop,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> Response:
    event = await shop.store.append(
        f"order-{order_id}",
        "ItemAdded" if version else "OrderPlaced",
        item.model_dump(),
        expected_version=version,
        idempotency_key=idempotency_key,
    )
    return Response(event.to_json(), 201, {"ETag": f'"{event.version}"'}, "application/json")


@router.get("/orders/{order_id}")
async def show_order(order_id: str, shop: OpenShop, response: Response) -> dict[str, Any]:
    stream_id = f"order-{order_id}"
    version = await shop.store.stream_version(stream_id)
    if version == 0:
        raise HTTPException(404, f"there is no order {order_id}")
    response.headers["ETag"] = f'"{version}"'
    items = await reconstruct_state(shop.store, stream_id, HANDLERS, initial=Counter, up_to=version)
    return {"order_id": order_id, "version": version, "items": items}


@router.get("/totals")
async def show_totals(shop: OpenShop) -> dict[str, int]:
    # Who appended an event in this process finds it at once; this waits for those of others, and of other workers.
    await shop.totals.catch_up()
    return shop.totals.state


@router.get("/events")
async def follow(shop: OpenShop, last_event_id: Annotated[str, Header()] = "0") -> EventSourceResponse:
    if not re.fullmatch(NUMBER, last_event_id) or int(last_event_id) > await shop.store.head():
        raise HTTPException(400, "Last-Event-ID must be the id of an event that this server has sent")
    # A short queue: what a slow client does not take is not kept in memory but read from the log when it does.
    subscription = shop.store.subscribe(after=int(last_event_id), queue_size=100)
    stopping = anyio.Event()

    async def messages() -> AsyncIterator[ServerSentEvent]:
        async with subscription:
            shop.streams.add(subscription)
            try:
                async for event in subscription:
                    yield ServerSentEvent(event.to_json().decode(), id=str(event.event_id))
            finally:
                shop.streams.discard(subscription)

    async def end_when_stopping() -> None:
        await stopping.wait()
        await subscription.aclose()

    return EventSourceResponse(
        messages(),
        data_sender_callable=end_when_stopping,  # runs beside the messages, for as long as they do
        shutdown_event=stopping,
        shutdown_grace_period=0.2,
    )


@router.get("/status")
async def show_status(shop: OpenShop) -> dict[str, Any]:
    return {"head": await shop.store.head(), "streams": [stream.statistics() for stream in shop.streams]}


@router.get("/")
async def show_page() -> FileResponse:
    return FileResponse(PAGE)


def create_app(location: str | None) -> FastAPI:
    """The app over a store, which is open while the app runs; None keeps the events in memory."""

    @asynccontextmanager
    async def opened(_: FastAPI) -> AsyncIterator[dict[str, Shop]]:
        async with EventStore(location) as store:
            totals = LiveProjection("totals", store, initial=Counter[str])
            for event_type, handler in HANDLERS.items():
                totals.when(event_type, handler)
            async with totals:
                yield {"shop": Shop(store, totals)}

    app = FastAPI(title="Orders", lifespan=opened, max_body_size=64 * 1024)
    app.include_router(router)

    @app.exception_handler(EventStoreError)
    async def refused_by_store(_: Request, error: EventStoreError) -> Response:
        headers = {"ETag": f'"{error.actual}"'} if isinstance(error, ConcurrencyConflict) else None
        return JSONResponse({"detail": str(error)}, STATUS.get(type(error), 503), headers)

    @app.exception_handler(RequestValidationError)
    async def not_valid(_: Request, error: RequestValidationError) -> Response:
        # FastAPI's own answer repeats the input, and fails where JSON cannot hold that, such as NaN.
        return JSONResponse({"detail": [{"loc": each["loc"], "msg": each["msg"]} for each in error.errors()]}, 422)

    return app


def create_worker_app() -> FastAPI:
    """The app of each of several workers, which start with nothing but the environment."""
    return create_app(os.environ[LOCATION])


def main() -> None:
    parser = argparse.ArgumentParser(description="Orders over HTTP, with a page that follows them.")
    parser.add_argument("location", nargs="?", default="orders-store", help="where the store is: a directory, or a URL")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--workers", type=int, default=1, help="how many processes; more than one need a URL")
    options = parser.parse_args()
    if options.workers > 1 and "://" not in options.location:
        parser.error("one process writes to a directory; several workers need a postgresql:// URL")
    os.environ[LOCATION] = options.location
    # When it stops, the streams end by themselves; the second is for those whose client does not read.
    uvicorn.run(
        "web:create_worker_app",
        factory=True,
        app_dir=str(Path(__file__).parent),
        host=options.host,
        port=options.port,
        workers=options.workers,
        timeout_graceful_shutdown=1,
    )


if __name__ == "__main__":
    main()
