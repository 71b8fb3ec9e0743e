"""Objects in place of event types and data, on every engine: what is appended is decoded, by every way it is read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiostore import (
    Event,
    EventNotDecodable,
    EventStore,
    EventTypes,
    IdempotencyConflict,
    InvalidEvent,
    LiveProjection,
    NewEvent,
    NoEventTypes,
    Projection,
    StreamAppend,
    UnknownEventType,
    UnknownEventVersion,
)
from tests.conftest import OpenStore
from tests.shared.database import Database, SharedEngine


class Line(msgspec.Struct, frozen=True):
    sku: str
    count: int = 1


class OrderPlaced(msgspec.Struct, frozen=True):
    customer: str
    lines: list[Line]
    total: Decimal
    at: datetime | None = None


@dataclass
class OrderPaid:
    amount: float
    by: UUID | None = None
    notes: dict[str, list[int]] = field(default_factory=dict)


class OrderShipped(pydantic.BaseModel):
    carrier: str
    parcels: list[int] = []


PLACED = OrderPlaced("Ada", [Line("A", 2)], Decimal("9.90"), datetime(2026, 1, 2, tzinfo=UTC))
PAID = OrderPaid(9.9, UUID(int=7), {"n": [1, 2]})
SHIPPED = OrderShipped(carrier="DHL", parcels=[1])
OBJECTS: list[Any] = [PLACED, PAID, SHIPPED]


def registry(**options: Any) -> EventTypes:
    types = EventTypes(**options)
    for kind in (OrderPlaced, OrderPaid, OrderShipped):
        types.add(kind)
    return types


@pytest.fixture
async def typed(open_store: OpenStore) -> EventStore:
    return await open_store(types=registry())


# Every way in


@pytest.mark.parametrize("value", OBJECTS, ids=lambda value: type(value).__name__)
async def test_an_object_is_appended_under_the_name_of_its_class(typed: EventStore, value: Any) -> None:
    event = await typed.append("order-1", value, tags=["t"], metadata={"by": "me"}, expected_version=0)
    assert event.event_type == type(value).__name__
    assert (event.tags, event.metadata) == (("t",), {"by": "me"})
    assert event.decode() == value
    assert isinstance(event.data, dict)


async def test_objects_are_appended_in_batches_and_to_streams(typed: EventStore) -> None:
    mixed: list[Any] = [
        PLACED,
        NewEvent(PAID, metadata={"by": "me"}, tags=["t"]),
        ("OrderShipped", {"carrier": "UPS"}),
        ("Other", {}),
    ]
    events = await typed.append_batch("order-1", mixed)
    assert [event.event_type for event in events] == ["OrderPlaced", "OrderPaid", "OrderShipped", "Other"]
    assert [event.decode() for event in events[:3]] == [PLACED, PAID, OrderShipped(carrier="UPS")]
    assert (events[1].metadata, events[1].tags) == ({"by": "me"}, ("t",))
    events = await typed.append_streams([StreamAppend("a", [PLACED]), StreamAppend("b", [SHIPPED, PAID])])
    assert [event.decode() for event in events] == [PLACED, SHIPPED, PAID]


@pytest.mark.parametrize("count", [1, 20, 3000])
async def test_a_batch_of_any_length_takes_objects(typed: EventStore, count: int) -> None:
    events = await typed.append_batch("order-1", [OBJECTS[n % 3] for n in range(count)])
    assert [event.decode() for event in events] == [OBJECTS[n % 3] for n in range(count)]


async def test_a_repeat_with_a_key_gives_what_is_decoded(typed: EventStore) -> None:
    first = await typed.append("order-1", PLACED, idempotency_key="k")
    for n in range(3):
        await typed.append("order-2", PAID, idempotency_key=str(n))
    again = await typed.append("order-1", PLACED, idempotency_key="k")
    assert again == first
    assert again.decode() == PLACED
    with pytest.raises(IdempotencyConflict):
        await typed.append("order-1", PAID, idempotency_key="k")


# Every way out


async def by_stream(store: EventStore) -> list[Event]:
    return await store.read_stream("order-1").to_list()


async def by_all_backwards(store: EventStore) -> list[Event]:
    return [event async for event in store.read_all(backwards=True)][::-1]


async def by_batches(store: EventStore) -> list[Event]:
    return [event async for batch in store.read_all().batches(2) for event in batch]


async def by_subscription(store: EventStore) -> list[Event]:
    head = await store.head()
    found: list[Event] = []
    async with store.subscribe() as subscription:
        while not found or found[-1].event_id < head:
            found.append(await anext(subscription))
    return found


async def by_decoded(store: EventStore) -> list[Event]:
    return [event async for event, value in store.read_all().decoded() if value == event.decode()]


async def by_decoded_subscription(store: EventStore) -> list[Event]:
    head = await store.head()
    found: list[Event] = []
    async with store.subscribe() as subscription:
        async for event, value in subscription.decoded():
            assert value == event.decode()
            found.append(event)
            if event.event_id == head:
                break
    return found


async def by_projection(store: EventStore) -> list[Event]:
    projection: Projection[list[Event]] = Projection("p", store, initial=list)
    for kind in OBJECTS:
        projection.when(type(kind).__name__, lambda state, event: state.append(event))
    await projection.catch_up()
    return projection.state


WAYS_OUT: list[Callable[[EventStore], Awaitable[list[Event]]]] = [
    by_stream,
    by_all_backwards,
    by_batches,
    by_subscription,
    by_decoded,
    by_decoded_subscription,
    by_projection,
]


@pytest.mark.parametrize("way", WAYS_OUT)
async def test_what_is_stored_is_decoded_by_every_way_out(
    typed: EventStore, way: Callable[[EventStore], Awaitable[list[Event]]]
) -> None:
    await typed.append_batch("order-1", OBJECTS)
    assert [event.decode() for event in await way(typed)] == OBJECTS


async def test_what_comes_live_is_decoded_by_listeners_subscriptions_and_projections(typed: EventStore) -> None:
    heard: list[Any] = []

    async def listen(events: list[Event]) -> None:
        heard.extend(event.decode() for event in events)

    typed.on_commit(listen)
    projection: LiveProjection[list[Any]] = LiveProjection("p", typed, initial=list)
    for value in OBJECTS:
        projection.when(type(value).__name__, lambda state, event: state.append(event.decode()))
    async with projection, typed.subscribe() as subscription, typed.subscribe(stream_id="order-1") as narrow:
        stepping = asyncio.ensure_future(anext(subscription))  # so that it is live
        await asyncio.sleep(0.01)
        for value in OBJECTS:
            await typed.append("order-1", value)
        assert [(await stepping).decode(), (await anext(subscription)).decode()] == OBJECTS[:2]
        assert [(await anext(narrow)).decode() for _ in OBJECTS] == OBJECTS
        assert heard == OBJECTS
        assert projection.state == OBJECTS


async def test_what_another_process_appends_is_decoded() -> None:
    database = Database()
    async with EventStore(SharedEngine(database)) as other, EventStore(SharedEngine(database), types=registry()) as own:
        heard: asyncio.Queue[Event] = asyncio.Queue()

        async def listen(events: list[Event]) -> None:
            for event in events:
                heard.put_nowait(event)

        own.on_commit(listen)
        async with own.subscribe(after=0) as subscription:
            event = await other.append("order-1", "OrderPaid", {"amount": 1.5})
            assert (await anext(subscription)).decode() == OrderPaid(1.5)
            assert (await heard.get()).decode() == OrderPaid(1.5)
        with pytest.raises(NoEventTypes):
            event.decode()


# What an event is stays


async def test_types_change_nothing_of_an_event(open_store: OpenStore) -> None:
    with_types, without = await open_store(types=registry()), await open_store()
    typed = await with_types.append("order-1", PAID)
    plain = await without.append("order-1", "OrderPaid", typed.data)
    names = [name for name in typed.to_dict() if name != "timestamp"]
    assert [typed.to_dict()[name] for name in names] == [plain.to_dict()[name] for name in names]
    assert repr(typed).replace(typed._timestamp, "") == repr(plain).replace(plain._timestamp, "")
    read = (await with_types.read_all().to_list())[0]
    assert read == typed
    assert b"types" not in read.to_json()


async def test_each_call_gives_an_object_of_its_own(typed: EventStore) -> None:
    event = await typed.append("order-1", PAID)
    event.decode().notes["n"].append(3)
    event.data["amount"] = 0
    assert event.decode() == PAID


# What is refused


@pytest.mark.parametrize(
    ("event", "where", "reason"),
    [
        (("OrderPaid", {}), "events[1].data", "missing required field `amount`"),
        (("OrderPaid", {"amount": "much"}), "events[1].data.amount", "Expected `float`"),
        (NewEvent("OrderPaid", {"amount": 1, "notes": {"n": [1, "x"]}}), "events[1].data.notes[...][1]", "Expected"),
        (("OrderShipped", {"carrier": "DHL", "parcels": [1, "x"]}), "events[1].data.parcels[1]", "valid integer"),
        (OrderPlaced("Ada", "none", Decimal(1)), "events[1].data.lines", "Expected `array`"),  # type: ignore[arg-type]
        (OrderPaid(float("nan")), "events[1].data.amount", "not a JSON number"),
        (Line("A"), "events[1]", "Line is not among the store's types"),
        (NewEvent(Line("A")), "events[1].event_type", "Line is not among"),
        (NewEvent(*["OrderPaid"]), "events[1].event_type", "without data"),
        (("OrderPaid", {"amount": 1}, {"schema_version": 2}), "events[1].metadata.schema_version", "must be 1 to 1"),
        (("OrderPaid", {"amount": 1}, {"schema_version": "1"}), "events[1].metadata.schema_version", "must be 1 to 1"),
        (("OrderPaid", {"amount": 1}, {"schema_version": None}), "events[1].metadata.schema_version", "must be 1 to"),
    ],
)
async def test_what_does_not_fit_its_type_is_refused(typed: EventStore, event: Any, where: str, reason: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        await typed.append_batch("order-1", [PAID, event])
    assert caught.value.where == where
    assert reason in caught.value.reason
    assert await typed.head() == 0


async def test_an_object_needs_types(store: EventStore) -> None:
    with pytest.raises(InvalidEvent, match=r"event_type: .* OrderPaid: this store .* types="):
        await store.append("order-1", PAID)
    with pytest.raises(InvalidEvent, match=r"events\[0\]: .* OrderPaid"):
        await store.append_batch("order-1", [PAID])
    event = await store.append("order-1", "OrderPaid", PAID)  # as data, as ever
    with pytest.raises(NoEventTypes, match="types="):
        event.decode()


# Types and versions that are not known


async def stored(open_store: OpenStore, store: EventStore, *events: Any) -> None:
    """Put events into the store as a program without types does."""
    store._types, types = None, store._types
    try:
        await store.append_batch("order-1", events)
    finally:
        store._types = types


@pytest.mark.parametrize(
    ("event", "error", "told"),
    [
        (("Other", {"n": 1}), UnknownEventType, "event 1 is of type 'Other'"),
        (("OrderPaid", {"n": 1}, {"schema_version": 3}), UnknownEventVersion, "version 3.* up to version 1"),
    ],
)
async def test_what_is_not_known_is_raised_skipped_or_raw(
    open_store: OpenStore, event: Any, error: type[Exception], told: str
) -> None:
    for unknown in ("raise", "skip", "raw"):
        store = await open_store(types=registry(unknown=unknown))
        await stored(open_store, store, event, ("OrderPaid", {"amount": 1}))
        first, second = await store.read_all().to_list()
        decoded = store.read_all().decoded()
        if unknown == "raise":
            with pytest.raises(error, match=told):
                first.decode()
            with pytest.raises(error, match=told):
                await anext(decoded)
        elif unknown == "skip":
            assert first.decode() is None
        else:
            assert first.decode() == {"n": 1}
            assert await anext(decoded) == (first, {"n": 1})
        assert await anext(decoded) == (second, OrderPaid(1))


@pytest.mark.parametrize(
    ("event", "told"),
    [
        (("OrderPaid", {"amount": "x"}), r"event 1 \('OrderPaid' version 1\): data.amount does not fit OrderPaid"),
        (("OrderShipped", {}), "data.carrier does not fit OrderShipped: Field required"),
        (("OrderPaid", {"amount": 1}, {"schema_version": "x"}), "schema_version is not an integer"),
        (("OrderPaid", {"amount": 1}, {"schema_version": 0}), "no such version"),
    ],
)
async def test_stored_data_that_does_not_fit_is_an_error_of_its_own(
    open_store: OpenStore, event: Any, told: str
) -> None:
    store = await open_store(types=registry(unknown="skip"))
    await stored(open_store, store, event)
    (event,) = await store.read_all().to_list()
    with pytest.raises(EventNotDecodable, match=told) as caught:
        event.decode()
    assert (caught.value.event_id, caught.value.event_type) == (1, event.event_type)


# Versions


class Renamed(msgspec.Struct):
    customer: str
    total_cents: int
    currency: str
    order_id: str


def versions() -> EventTypes:
    types = EventTypes()
    types.add(Renamed, "OrderPlaced", version=3, tags=lambda event: [f"customer:{event.customer}"])
    types.renamed("OrderMade", "OrderPlaced")

    @types.upcast("OrderPlaced", from_version=1)
    def to_cents(data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "total_cents": round(data.pop("total") * 100)}

    @types.upcast("OrderPlaced", from_version=2)
    def with_order_id(data: dict[str, Any], event: Event) -> dict[str, Any]:
        data["order_id"] = event.stream_id
        data.setdefault("currency", "EUR")
        return data

    return types


async def test_old_versions_are_upcast_on_every_way_out(open_store: OpenStore) -> None:
    store = await open_store(types=versions())
    new = Renamed("Ada", 990, "EUR", "order-1")
    await stored(
        open_store,
        store,
        ("OrderPlaced", {"customer": "Ada", "total": 9.9}),
        ("OrderPlaced", {"customer": "Ada", "total_cents": 990}, {"by": "me", "schema_version": 2}),
        ("OrderMade", {"customer": "Ada", "total": 9.9}),
    )
    event = await store.append("order-1", new, metadata={"by": "me"})
    assert event.metadata == {"schema_version": 3, "by": "me"}
    assert event.tags == ("customer:Ada",)
    async with store.subscribe() as subscription:
        for way in (store.read_all(), store.read_stream("order-1"), subscription):
            found = [await anext(way) for _ in range(4)]
            assert [event.decode() for event in found] == [new] * 4
            assert found[0].data == {"customer": "Ada", "total": 9.9}  # what is stored stays


async def test_a_dict_is_checked_as_the_version_that_it_says(open_store: OpenStore) -> None:
    store = await open_store(types=versions())
    new = {"customer": "Ada", "total_cents": 990, "currency": "EUR", "order_id": "x"}
    event = await store.append("order-1", "OrderPlaced", new, tags="own")
    assert (event.metadata, event.tags) == ({"schema_version": 3}, ("own", "customer:Ada"))
    old = await store.append("order-1", "OrderPlaced", {"customer": "Ada", "total": 1}, metadata={"schema_version": 1})
    assert (old.metadata, old.decode().total_cents) == ({"schema_version": 1}, 100)
    with pytest.raises(InvalidEvent, match=r"^data: does not fit 'OrderPlaced' version 3: .*total_cents"):
        await store.append("order-1", "OrderPlaced", {"customer": "Ada", "total": 1})
    with pytest.raises(InvalidEvent, match="old name; it is 'OrderPlaced' now"):
        await store.append("order-1", "OrderMade", new)


@pytest.mark.parametrize("result", [None, [], "raise"])
async def test_an_upcaster_that_fails_names_the_event(open_store: OpenStore, result: Any) -> None:
    types = EventTypes()
    types.add(Line, version=2)

    @types.upcast("Line", from_version=1)
    def up(data: dict[str, Any]) -> Any:
        return data["missing"] if result == "raise" else result

    store = await open_store(types=types)
    await stored(open_store, store, ("Line", {"sku": "A"}))
    (event,) = await store.read_all().to_list()
    with pytest.raises(EventNotDecodable, match=r"event 1 \('Line' version 1\): the upcaster from version 1"):
        event.decode()


async def test_a_store_does_not_open_with_a_gap_between_versions(new_location: Callable[[], Any]) -> None:
    types = EventTypes()
    types.add(Line, version=2)
    store = EventStore(new_location(), types=types)
    with pytest.raises(ValueError, match="from_version=1"):
        await store.__aenter__()
    types.upcast("Line", from_version=1)(lambda data: data)
    async with store:  # nothing was opened: it can be tried again
        assert (await store.append("s", Line("A"))).decode() == Line("A")


# Any object, by every way


texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20)
numbers = st.integers(-(2**63), 2**63 - 1)
placed = st.builds(
    OrderPlaced,
    texts,
    st.lists(st.builds(Line, texts, numbers), max_size=3),
    st.decimals(allow_nan=False, allow_infinity=False),
    st.none() | st.datetimes(timezones=st.just(UTC)),
)
paid = st.builds(
    OrderPaid,
    st.floats(allow_nan=False, allow_infinity=False),
    st.none() | st.uuids(),
    st.dictionaries(texts, st.lists(numbers, max_size=3), max_size=3),
)
shipped = st.builds(OrderShipped, carrier=texts, parcels=st.lists(numbers, max_size=3))


@pytest.fixture
def fresh(open_store: OpenStore) -> Callable[[], Awaitable[EventStore]]:
    async def fresh() -> EventStore:
        return await open_store(types=registry())

    return fresh


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(objects=st.lists(placed | paid | shipped, min_size=1, max_size=6))
async def test_any_object_is_decoded_as_it_was_by_every_way(
    fresh: Callable[[], Awaitable[EventStore]], objects: list[Any]
) -> None:
    store = await fresh()
    heard: list[Event] = []

    async def listen(events: list[Event]) -> None:
        heard.extend(events)

    store.on_commit(listen)
    returned = await store.append_batch("order-1", objects, idempotency_key="k")
    again = await store.append_batch("order-1", objects, idempotency_key="k")
    assert [event.decode() for event in returned] == objects
    assert [event.decode() for event in again] == objects
    assert [event.decode() for event in heard] == objects
    for way in WAYS_OUT:
        assert [event.decode() for event in await way(store)] == objects
