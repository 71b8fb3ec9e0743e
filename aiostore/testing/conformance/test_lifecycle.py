"""From opening to closing: calls outside of that, other loops, forked processes, cancelled tasks."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
import warnings
from collections.abc import Callable
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aiostore import (
    EngineUnsupported,
    Event,
    EventStore,
    Limits,
    StoreClosed,
    StreamAppend,
    WrongLoop,
)
from aiostore.engine import Head
from aiostore.engines.memory import MemoryEngine
from aiostore.testing.conformance import engine_of, ids, outcome, reopen

Call = Callable[[EventStore], Any]


async def handler(events: list[Event]) -> None:
    """Do nothing."""


CALLS: dict[str, Call] = {
    "append": lambda store: store.append("s", "T", {}),
    "append_batch": lambda store: store.append_batch("s", [("T", {})]),
    "append_batch of nothing": lambda store: store.append_batch("s", []),
    "append_streams": lambda store: store.append_streams([StreamAppend("s", [("T", {})])]),
    "append_streams of nothing": lambda store: store.append_streams([]),
    "read_stream": lambda store: store.read_stream("s"),
    "read_all": lambda store: store.read_all(),
    "stream_version": lambda store: store.stream_version("s"),
    "head": lambda store: store.head(),
    "subscribe": lambda store: store.subscribe(),
    "on_commit": lambda store: store.on_commit(handler),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


async def result_of(call: Call, store: EventStore) -> Any:
    result = call(store)
    return await result if inspect.isawaitable(result) else result


def in_another_loop(call: Call, store: EventStore) -> Any:
    """What the call comes to in a loop of its own, in a thread of its own."""
    return asyncio.run(result_of(call, store))


# Opening and closing


async def test_a_store_is_open_inside_async_with() -> None:
    store = EventStore()
    async with store as entered:
        assert entered is store
        assert (await store.append("s", "T", {})).event_id == 1
    with pytest.raises(StoreClosed):
        await store.head()


async def test_open_returns_an_open_store() -> None:
    store = await EventStore.open()
    assert await store.head() == 0
    await store.aclose()


async def test_an_error_in_the_block_closes_the_store_and_goes_on() -> None:
    store = EventStore()
    with pytest.raises(LookupError):
        async with store:
            raise LookupError
    with pytest.raises(StoreClosed):
        await store.head()


@each_call
async def test_before_opening_every_call_raises_store_closed(call: Call) -> None:
    with pytest.raises(StoreClosed, match="not open yet"):
        await result_of(call, EventStore())


@each_call
async def test_after_closing_every_call_raises_store_closed(store: EventStore, call: Call) -> None:
    await store.append("s", "T", {})
    await store.aclose()
    with pytest.raises(StoreClosed, match="closed"):
        await result_of(call, store)


async def test_closing_again_does_nothing(store: EventStore) -> None:
    await store.aclose()
    await store.aclose()
    async with aclosing(store):
        await store.aclose()


async def test_closing_a_store_that_was_never_opened_does_nothing() -> None:
    store = EventStore()
    await store.aclose()
    with pytest.raises(StoreClosed):
        await store.head()


async def test_an_open_store_can_be_used_with_async_with_which_closes_it(store: EventStore) -> None:
    async with store as same:
        assert same is store
        assert await store.head() == 0
    with pytest.raises(StoreClosed):
        await store.head()


async def test_a_store_object_is_opened_once(store: EventStore) -> None:
    await store.aclose()
    with pytest.raises(StoreClosed):
        await store.__aenter__()


async def test_a_store_closed_before_opening_is_not_opened() -> None:
    store = EventStore()
    await store.aclose()
    with pytest.raises(StoreClosed):
        await store.__aenter__()


async def test_many_tasks_may_close_at_once(store: EventStore) -> None:
    appends = [asyncio.ensure_future(outcome(store.append("s", "T", {}))) for _ in range(20)]
    await asyncio.gather(*(store.aclose() for _ in range(5)))
    assert all(isinstance(result, Event | StoreClosed) for result in await asyncio.gather(*appends))
    with pytest.raises(StoreClosed):
        await store.head()


async def test_a_cancelled_close_goes_on(store: EventStore) -> None:
    await store.append("s", "T", {})
    closing = asyncio.ensure_future(store.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    with pytest.raises(StoreClosed):
        await store.append("s", "T", {})
    await store.aclose()


async def test_a_store_whose_open_failed_stays_closed() -> None:
    class Unreachable(MemoryEngine):
        async def open(self) -> Head:
            raise OSError("not today")

    store = EventStore(Unreachable())
    with pytest.raises(OSError, match="not today"):
        await store.__aenter__()
    with pytest.raises(StoreClosed):
        await store.head()
    with pytest.raises(StoreClosed):
        await store.__aenter__()
    await store.aclose()


async def test_closing_a_store_while_it_opens_closes_it() -> None:
    gate = asyncio.Event()

    class Slow(MemoryEngine):
        async def open(self) -> Head:
            await gate.wait()
            return await super().open()

    store = EventStore(Slow())
    opening = asyncio.ensure_future(outcome(store.__aenter__()))
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(store.aclose())
    await asyncio.sleep(0)
    gate.set()
    await closing
    await opening
    with pytest.raises(StoreClosed):
        await store.head()


async def test_a_store_can_be_opened_again_and_again(store: EventStore) -> None:
    event = await store.append("s", "T", {"n": 1})
    for number in range(2, 6):
        store = await reopen(store)
        assert ids(await store.read_all().to_list()) == list(range(1, number))
        await store.append("s", "T", {"n": number}, expected_version=number - 1)
    assert (await store.read_all(limit=1).to_list()) == [event]
    await store.aclose()


@pytest.mark.parametrize("turns", range(12))
async def test_an_append_that_gets_store_closed_is_not_stored_and_one_that_returns_is(
    store: EventStore, turns: int
) -> None:
    await store.append("s", "T", {"n": -1})
    appends = [asyncio.ensure_future(outcome(store.append("s", "T", {"n": n}))) for n in range(20)]
    for _ in range(turns):
        await asyncio.sleep(0)
    await store.aclose()
    results = await asyncio.gather(*appends)
    stored = [result.data["n"] for result in results if isinstance(result, Event)]
    refused = [result for result in results if isinstance(result, StoreClosed)]
    assert len(stored) + len(refused) == 20
    async with await reopen(store) as again:
        read = await again.read_all().to_list()
        assert sorted(event.data["n"] for event in read) == [-1, *stored]


@pytest.mark.parametrize("turns", range(5))
async def test_a_long_batch_whose_store_closes_is_refused_or_whole(store: EventStore, turns: int) -> None:
    append = asyncio.ensure_future(outcome(store.append_batch("s", [("T", {"n": n}) for n in range(1600)])))
    for _ in range(turns):
        await asyncio.sleep(0)
    await store.aclose()
    result = await append
    stored = 0 if isinstance(result, StoreClosed) else 1600
    async with await reopen(store) as again:
        assert await again.head() == stored


@pytest.mark.parametrize("turns", range(5))
async def test_questions_and_reads_under_way_when_the_store_closes_end_in_an_answer_or_store_closed(
    store: EventStore, turns: int
) -> None:
    await store.append_batch("s", [("T", {})] * 1200)
    asked = [
        asyncio.ensure_future(outcome(question))
        for question in (
            store.stream_version("s"),
            store.head(),
            store.append("s", "T", {}, idempotency_key="k"),
            store.read_all().to_list(),
            store.read_stream("s", backwards=True).to_list(),
        )
    ]
    for _ in range(turns):
        await asyncio.sleep(0)
    await store.aclose()
    for result in await asyncio.gather(*asked):
        assert isinstance(result, int | list | Event | StoreClosed), result


async def test_a_reader_of_a_closed_store_raises_store_closed(store: EventStore) -> None:
    await store.append_batch("s", [("T", {})] * 1200)
    begun, fresh = store.read_all(), store.read_stream("s")
    await anext(begun)
    await store.aclose()
    for reader in (begun, fresh):
        with pytest.raises(StoreClosed):
            await reader.to_list()


async def test_all_tasks_cancelled_at_any_moment_leave_a_usable_store(store: EventStore) -> None:
    acknowledged: set[int] = set()
    for turns in range(10):
        appends = [asyncio.ensure_future(store.append("s", "T", {"n": 100 * turns + n})) for n in range(20)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        results = await asyncio.gather(*appends, return_exceptions=True)
        acknowledged |= {result.data["n"] for result in results if isinstance(result, Event)}
        event = await store.append("s", "T", {"n": -turns})
        assert await store.stream_version("s") == event.version
    read = await store.read_all().to_list()
    assert ids(read) == list(range(1, len(read) + 1))
    assert acknowledged <= {event.data["n"] for event in read}


# Loops


@each_call
async def test_a_call_from_another_loop_raises_wrong_loop(store: EventStore, call: Call) -> None:
    with pytest.raises(WrongLoop):
        await asyncio.to_thread(in_another_loop, call, store)
    assert await store.head() == 0


@pytest.mark.parametrize("name", ["read_stream", "read_all", "subscribe", "on_commit"])
async def test_a_call_without_a_loop_raises_wrong_loop(store: EventStore, name: str) -> None:
    with pytest.raises(WrongLoop):
        await asyncio.to_thread(CALLS[name], store)


async def test_a_store_cannot_be_closed_from_another_loop(store: EventStore) -> None:
    with pytest.raises(WrongLoop):
        await asyncio.to_thread(in_another_loop, lambda store: store.aclose(), store)
    assert (await store.append("s", "T", {})).event_id == 1


async def test_while_it_closes_a_store_cannot_be_closed_from_another_loop() -> None:
    gate = asyncio.Event()

    class Slow(MemoryEngine):
        async def aclose(self) -> None:
            await gate.wait()

    store = await EventStore.open(Slow())
    closing = asyncio.ensure_future(store.aclose())
    await asyncio.sleep(0)
    result = await outcome(asyncio.to_thread(in_another_loop, lambda store: store.aclose(), store))
    gate.set()
    await closing
    assert isinstance(result, WrongLoop)


async def test_closing_a_closed_store_from_another_loop_does_nothing(store: EventStore) -> None:
    await store.aclose()
    await asyncio.to_thread(in_another_loop, lambda store: store.aclose(), store)


async def test_a_reader_and_a_subscription_belong_to_the_store_s_loop(store: EventStore) -> None:
    await store.append("s", "T", {})
    for iterator in (store.read_all(), store.subscribe()):
        with pytest.raises(WrongLoop):
            await asyncio.to_thread(asyncio.run, iterator.__anext__())


async def test_a_store_may_be_made_outside_of_the_loop_that_opens_it() -> None:
    made: list[EventStore] = []
    thread = threading.Thread(target=lambda: made.append(EventStore()))
    thread.start()
    await asyncio.to_thread(thread.join)
    async with made[0] as store:
        assert (await store.append("s", "T", {})).event_id == 1


# Forked processes


def fork(child: Callable[[], None]) -> int:
    """The exit status of a forked child: 0 if ``child`` returned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a process with threads; the child does next to nothing
        pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 1
    try:
        child()
        status = 0
    finally:
        os._exit(status)


def refuses(call: Callable[[], Any]) -> bool:
    """Whether the call raises `StoreClosed` that tells of the other process, without waiting for anything."""
    try:
        result = call()
        while inspect.iscoroutine(result) and result.send(None) is None:
            pass  # it only gave way
    except StoreClosed as error:
        return "process" in str(error)
    return False


async def test_in_a_forked_child_every_call_raises_store_closed(store: EventStore) -> None:
    await store.append("s", "T", {})
    reader, subscription = store.read_all(), store.subscribe()

    def child() -> None:
        for call in CALLS.values():
            assert refuses(partial(call, store))
        assert refuses(lambda: reader.to_list())
        assert refuses(lambda: subscription.__anext__())

    assert fork(child) == 0


async def test_a_forked_child_does_no_harm_to_the_store(store: EventStore) -> None:
    event = await store.append("s", "T", {})

    def child() -> None:
        assert refuses(lambda: store.append("s", "T", {}))
        try:
            store.aclose().send(None)
        except StopIteration:
            return
        raise AssertionError("aclose() in a child must not wait")

    assert fork(child) == 0
    assert fork(lambda: None) == 0
    later = await store.append("s", "T", {})
    assert await store.read_all().to_list() == [event, later]
    async with await reopen(store) as again:
        assert await again.read_all().to_list() == [event, later]


async def test_a_forked_child_may_open_a_store_of_its_own(store: EventStore) -> None:
    async def use() -> None:
        async with EventStore() as own:
            await own.append("s", "T", {})

    await store.append("s", "T", {})
    assert fork(lambda: asyncio.new_event_loop().run_until_complete(use())) == 0
    assert await store.head() == 1


# What a store is made of


async def test_repr_tells_the_state_and_the_counts(store: EventStore) -> None:
    location = engine_of(store).location
    await store.append("s", "T", {})
    store.on_commit(handler)
    assert repr(store) == f"<EventStore {location!r} open, head=1, staged=0, live subscriptions=0, listeners=1>"
    await store.aclose()
    assert repr(store) == f"<EventStore {location!r} closed>"
    assert repr(EventStore()) == "<EventStore 'memory' not open yet>"


def test_options_that_the_engine_does_not_know_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="durability"):
        EventStore(durability="fsync")
    with pytest.raises(TypeError, match="no_such_option"):
        EventStore(MemoryEngine(), no_such_option=1)
    with pytest.raises(TypeError, match="no_such_option"):
        EventStore(tmp_path / "s", no_such_option=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("location", ["", b"orders"])
async def test_a_location_that_is_no_path_is_refused(location: Any) -> None:
    with pytest.raises(ValueError, match="location"):
        EventStore(location)


async def test_a_location_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(EngineUnsupported, match="nosuch://"):
        EventStore("nosuch://host/name")


def test_making_a_store_touches_nothing(tmp_path: Path) -> None:
    EventStore(tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


async def test_an_engine_may_be_handed_over() -> None:
    async with EventStore(MemoryEngine(), limits=Limits(event_bytes_max=1000)) as store:
        assert (await store.append("s", "T", {})).event_id == 1


async def test_two_stores_do_not_know_each_other() -> None:
    async with EventStore() as first, EventStore() as second:
        await first.append("s", "T", {})
        assert await second.head() == 0
