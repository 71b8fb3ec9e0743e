"""The whole public API as type checkers see it. Checked by them and never run."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, assert_type

import msgspec
import pydantic

from aiostore import (
    END,
    NO_STREAM,
    STREAM_EXISTS,
    AppendCondition,
    AppendConditionFailed,
    Checkpoint,
    ConcurrencyConflict,
    DatabaseProjection,
    Decider,
    Decision,
    Engine,
    EngineUnavailable,
    EngineUnsupported,
    Event,
    EventNotDecodable,
    EventStore,
    EventStoreError,
    EventTypes,
    IdempotencyConflict,
    InvalidEvent,
    KeyedProjection,
    Limits,
    Listener,
    LiveProjection,
    NewEvent,
    NoEventTypes,
    OutcomeUnknown,
    Projection,
    Query,
    QueryItem,
    Reader,
    SlowSubscriber,
    StoreClosed,
    StoreCorrupt,
    StoreFailed,
    StoreFull,
    StoreLocked,
    StreamAppend,
    Subscription,
    SubscriptionStatistics,
    Target,
    UnknownEventType,
    UnknownEventVersion,
    WrongLoop,
    correlate,
)
from aiostore.otel import OpenTelemetry
from aiostore.testing import FakeClock, given, given_events, memory_store


@dataclass
class ItemAdded:
    sku: str


class ItemRemoved(msgspec.Struct):
    sku: str


class CartPaid(pydantic.BaseModel):
    amount: int


async def opening(engine: Engine, directory: os.PathLike[str]) -> None:
    assert_type(EventStore(), EventStore)
    EventStore(None)
    EventStore("orders/", durability="os", mode="r", segment_bytes=1024)
    EventStore(Path("orders"), limits=Limits(event_bytes_max=1024), clock=lambda: datetime.now(UTC))
    EventStore(directory)
    EventStore(engine)
    EventStore(types=EventTypes(unknown="skip"), tracing=OpenTelemetry())
    await EventStore.open("orders/", types=None, tracing=None)
    EventStore(types={})  # type: ignore[arg-type]
    EventStore(5)  # type: ignore[arg-type]
    assert_type(await EventStore.open("orders/"), EventStore)
    async with EventStore() as store:
        assert_type(store, EventStore)
    async with await EventStore.open(limits=Limits()) as opened:
        assert_type(opened, EventStore)
    assert_type(await store.aclose(), None)


async def appending(store: EventStore, events: Iterable[NewEvent]) -> None:
    event = await store.append(
        "s",
        "T",
        {"n": 1},
        metadata={"user": 7},
        tags=["a"],
        expected_version=3,
        condition=AppendCondition(Query.where(types=["T"]), after=5),
        idempotency_key="k",
    )
    assert_type(event, Event)
    await store.append("s", "T", ItemAdded("A"), expected_version=NO_STREAM)
    await store.append("s", "T", {}, expected_version=STREAM_EXISTS)
    await store.append("s", "T", {}, tags={"a", "b"})
    await store.append("s", "T")  # type: ignore[call-overload]
    await store.append(1, "T", {})  # type: ignore[call-overload]
    await store.append("s", "T", {}, expected_version="1")  # type: ignore[call-overload]
    await store.append("s", "T", {}, expected_version=END)  # type: ignore[call-overload]
    await store.append("s", "T", {}, {})  # type: ignore[call-overload]

    assert_type(await store.append_batch("s", [("T", {"n": 1}), ("T", {}, {}), NewEvent("T", {})]), list[Event])
    await store.append_batch("s", events, expected_version=0, condition=None, idempotency_key="k")
    await store.append_batch("s", [("T",)])  # type: ignore[list-item]

    parts: Sequence[StreamAppend] = [
        StreamAppend("a", [("T", {})]),
        StreamAppend("b", [NewEvent("T", ItemAdded("A"), metadata=None, tags=("t",))], expected_version=STREAM_EXISTS),
    ]
    assert_type(await store.append_streams(parts, condition=None, idempotency_key=None), list[Event])
    await store.append_streams([("a", [])])  # type: ignore[list-item]


async def reading(store: EventStore) -> None:
    reader = store.read_stream("s", from_version=2, to_version=5, backwards=True, limit=10)
    assert_type(reader, Reader)
    async for event in reader:
        assert_type(event, Event)
    assert_type(await anext(reader), Event)
    assert_type(reader.batches(), AsyncIterator[list[Event]])
    async for batch in store.read_all(after=1, up_to=None, query=Query(), backwards=False, limit=None).batches(100):
        assert_type(batch, list[Event])
    assert_type(await reader.to_list(), list[Event])
    assert_type(reader.head, int)
    assert_type(reader.version, int)
    assert_type(await store.stream_version("s"), int)
    assert_type(await store.head(), int)
    moment = datetime.now(UTC)
    assert_type(store.read_all(since=moment, until=None, after=1, query=Query()), Reader)
    assert_type(store.read_stream("s", since=None, until=moment, from_version=2), Reader)
    store.read_all(since="2026-01-01")  # type: ignore[arg-type]
    store.read_stream("s", until=moment.date())  # type: ignore[arg-type]
    store.read_all(after=END)  # type: ignore[arg-type]
    store.read_all(query="T")  # type: ignore[arg-type]


def what_an_event_is(event: Event) -> None:
    assert_type(event.event_id, int)
    assert_type(event.stream_id, str)
    assert_type(event.version, int)
    assert_type(event.event_type, str)
    assert_type(event.data, dict[str, Any])
    assert_type(event.timestamp, datetime)
    assert_type(event.metadata, dict[str, Any])
    assert_type(event.tags, tuple[str, ...])
    assert_type(event.to_dict(), dict[str, Any])
    assert_type(event.to_json(), bytes)
    event.version = 2  # type: ignore[misc]


async def subscribing(store: EventStore) -> None:
    async def when_live(subscription: Subscription) -> None:
        assert_type(subscription.position, int)

    subscription = store.subscribe(stream_id="s", query=Query.where(tags="t"), after=END, queue_size=10, on_slow="wait")
    assert_type(subscription, Subscription)
    async with subscription as entered:
        assert_type(entered, Subscription)
        async for event in entered:
            assert_type(event, Event)
    async with store.subscribe(after=5, on_slow="fail", on_live=when_live) as live:
        async for batch in live.batches(max_events=10):
            assert_type(batch, list[Event])
    store.subscribe(on_slow="catch_up", on_live=lambda subscription: None)
    store.subscribe(on_slow="hurry")  # type: ignore[arg-type]
    store.subscribe(after=None)  # type: ignore[arg-type]
    assert_type(subscription.lag, int)
    assert_type(subscription.is_live, bool)
    statistics = subscription.statistics()
    assert_type(statistics, SubscriptionStatistics)
    assert_type(statistics.position, int)
    assert_type(statistics.is_live, bool)
    assert_type(await subscription.aclose(), None)


def listening(store: EventStore) -> None:
    async def handler(events: list[Event]) -> None:
        assert_type(events[0], Event)

    def plain(events: list[Event]) -> None: ...

    listener = store.on_commit(handler)
    assert_type(listener, Listener)
    assert_type(store.on_commit(handler, wait=False), Listener)
    store.on_commit(handler, name="mail")
    assert_type(listener.close(), None)
    assert_type(listener.error, BaseException | None)
    store.on_commit(plain)  # type: ignore[arg-type]


async def deciding(store: EventStore) -> None:
    def evolve(balance: int, event: Event) -> int:
        return balance + len(event.tags)

    def change(seen: dict[str, int], event: Event) -> None:
        seen[event.event_type] = event.version

    def decide(command: str, balance: int) -> list[tuple[str, Any]]:
        return [(command, {"n": balance})]

    async def decide_over(command: bytes, seen: dict[str, int]) -> StreamAppend | None:
        return StreamAppend("s", [NewEvent("T", {})]) if seen else None

    account = Decider(0, evolve, decide)
    assert_type(account, Decider[str, int])
    decision = await account.execute(store, "s", "T", idempotency_key="k", attempts=3, metadata={"by": 7})
    assert_type(decision, Decision[int])
    assert_type(decision.events, tuple[Event, ...])
    assert_type((decision.state, decision.version, decision.position), tuple[int, int, int])
    await account.execute(store, "s", 5)  # type: ignore[arg-type]
    await account.execute_over(store, "T", "T")  # type: ignore[arg-type]

    over = Decider(dict[str, int], change, decide_over, name="n", state_type=dict[str, int], snapshot_every=100)
    assert_type(over, Decider[bytes, dict[str, int]])
    assert_type((await over.execute_over(store, Query(), b"", idempotency_key=("s", "k"))).state, dict[str, int])
    assert_type(await over.flush(store), None)
    assert_type(over.initial(), dict[str, int])
    assert_type(over.evolve({}, decision.events), dict[str, int])

    given(account, ("T", {})).when("T").then(("T", {"n": 1})).then_state(2)
    given(account).when(5)  # type: ignore[arg-type]
    (await given(over).when_async(b"")).then_nothing().then_raises(LookupError, match="x")
    async with memory_store(clock=FakeClock()) as memory:
        assert_type(memory, EventStore)
    await given_events(lambda store: Projection("p", store, initial=lambda: 0), ("T", {})).then_state(0)


def asking() -> None:
    query = Query(QueryItem(types=("A",), tags=("x",), stream_prefix="cart-"))
    assert_type(query, Query)
    assert_type(query | Query.where(types="A", tags=["x"], stream_prefix=None), Query)
    assert_type(query.items, tuple[QueryItem, ...])
    assert_type(AppendCondition(query), AppendCondition)
    AppendCondition(query, after=END)  # type: ignore[arg-type]
    query | "A"  # type: ignore[operator]


def registering(event: Event) -> None:
    types = EventTypes(unknown="raw")
    assert_type(types.event(ItemAdded), type[ItemAdded])
    assert_type(types.add(CartPaid, "Paid", version=2, tags=lambda event: ["t"]), None)

    @types.event("ItemMoved", version=1, tags=lambda event: [event.sku])
    class Moved(msgspec.Struct):
        sku: str

    assert_type(Moved("A").sku, str)

    @types.upcast("Paid", from_version=1)
    def up(data: dict[str, Any], event: Event) -> dict[str, Any]:
        return data

    assert_type(up({}, event), dict[str, Any])
    assert_type(types.renamed("Old", "ItemAdded"), None)
    assert_type(types.json_schema(), dict[str, Any])
    assert_type(types.check_samples({"Paid": {1: {}}}), None)
    types.check_samples(Path("samples"))
    EventTypes(unknown="drop")  # type: ignore[arg-type]


async def typed(store: EventStore) -> None:
    assert_type(await store.append("s", ItemAdded("A"), metadata=None, tags=["t"], expected_version=0), Event)
    await store.append("s", ItemRemoved("A"))
    await store.append("s", CartPaid(amount=1), idempotency_key="k")
    await store.append_batch("s", [ItemAdded("A"), NewEvent(CartPaid(amount=1), tags=["t"]), ("T", {})])
    NewEvent("T")  # type: ignore[call-overload]
    await store.append("s", 5)  # type: ignore[call-overload]
    async for event, value in store.read_all().decoded():
        assert_type(event, Event)
        assert_type(value, Any)
    async with store.subscribe() as subscription:
        assert_type(await anext(subscription.decoded()), tuple[Event, Any])


async def following(store: EventStore, event: Event) -> None:
    with correlate("req-7"):
        await store.append("s", "T", {})
    with correlate("req-7", causation_id=7), correlate(event):
        await store.append("s", "T", {})
    correlate(7)  # type: ignore[arg-type]


def failing(error: EventStoreError) -> None:
    match error:
        case ConcurrencyConflict():
            assert_type(error.stream_id, str)
            assert_type(error.actual, int)
        case AppendConditionFailed():
            assert_type(error.event_id, int)
        case UnknownEventVersion():
            assert_type(error.known_version, int)
        case UnknownEventType() | NoEventTypes():
            assert_type(error.event_type, str)
        case EventNotDecodable():
            assert_type((error.event_id, error.reason), tuple[int, str])
        case InvalidEvent():
            assert_type(error.where, str)
            assert_type(error.reason, str)
            value_error: ValueError = error
            del value_error
        case IdempotencyConflict():
            assert_type(error.idempotency_key, str)
        case StoreLocked():
            assert_type(error.pid, int)
        case StoreCorrupt():
            assert_type((error.path, error.offset), tuple[str, int])
        case StoreFailed() | StoreFull():
            assert_type(error.reason, str)
        case SlowSubscriber():
            assert_type(error.position, int)
        case StoreClosed() | WrongLoop() | OutcomeUnknown() | EngineUnavailable() | EngineUnsupported():
            assert_type(str(error), str)


def limits_and_sentinels() -> None:
    assert_type(Limits(queue_bytes_max=1024).queue_bytes_max, int)
    assert_type(NO_STREAM, Literal[0])
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)  # noqa: E731
    EventStore(clock=clock)
    Limits(1024)  # type: ignore[call-arg]


class SQLite:
    async def load(self, name: str) -> Checkpoint | None:
        raise NotImplementedError

    def begin(self) -> AbstractAsyncContextManager[sqlite3.Connection]:
        raise NotImplementedError

    async def save(
        self, transaction: sqlite3.Connection, name: str, checkpoint: Checkpoint, previous: Checkpoint | None
    ) -> bool:
        raise NotImplementedError


async def projecting(store: EventStore) -> None:
    projection = Projection("p", store, state_type=ItemAdded)
    assert_type(projection, Projection[ItemAdded])

    @projection.when("T")
    def take(state: ItemAdded, event: Event) -> None: ...

    @projection.effect("T")
    async def send(state: ItemAdded, event: Event) -> None: ...

    projection.effect("U", lambda state, event: print(state.sku))
    projection.effect("V", 5)  # type: ignore[call-overload]
    assert_type(await projection.as_of(5), ItemAdded)
    await projection.as_of(datetime.now(UTC))
    await projection.as_of("5")  # type: ignore[arg-type]
    assert_type(await projection.rebuild(), None)
    await projection.rebuild({"T": take})
    await projection.rebuild(handlers={"T": 5})  # type: ignore[dict-item]
    assert_type(await LiveProjection("p", store, initial=list[int]).as_of(5), list[int])


async def projecting_by_key(store: EventStore) -> None:
    assert_type(KeyedProjection("p", store), KeyedProjection[dict[str, Any]])
    async with KeyedProjection(
        "p", store, key=lambda event: event.data["customer"], state_type=ItemAdded, query=Query(), cache_keys=10
    ) as keyed:
        assert_type(keyed, KeyedProjection[ItemAdded])

        @keyed.when("T")
        async def take(state: ItemAdded, event: Event) -> ItemAdded:
            return state

        assert_type(await keyed.get("c"), ItemAdded | None)
        assert_type(await keyed.as_of("c", datetime.now(UTC)), ItemAdded | None)
        async for key, state in keyed.items(prefix="c"):
            assert_type(key, str)
            assert_type(state, ItemAdded)
        await keyed.wait_for(5, timeout=1.5)
        await keyed.rebuild({"T": take})
        assert_type(await keyed.catch_up(), int)
    KeyedProjection("p", store, key=lambda event: None)
    KeyedProjection("p", store, key=lambda event: [event.stream_id, event.event_type])
    KeyedProjection("p", store, key="customer")  # type: ignore[call-overload]


async def projecting_into_a_database(store: EventStore) -> None:
    target: Target[sqlite3.Connection] = SQLite()
    async with DatabaseProjection("p", store, target, query=None, batch_events=10, attempts=3) as projection:
        assert_type(projection, DatabaseProjection[sqlite3.Connection])

        @projection.when("T")
        async def insert(connection: sqlite3.Connection, event: Event) -> None: ...

        projection.when("U", lambda connection, event: connection.commit())
        projection.when("V", 5)  # type: ignore[call-overload]
        await projection.wait_for(5)
        assert_type((projection.position, projection.lag, projection.is_live), tuple[int, int, bool])
        assert_type(projection.error, BaseException | None)
    DatabaseProjection("p", store, object())  # type: ignore[arg-type]
