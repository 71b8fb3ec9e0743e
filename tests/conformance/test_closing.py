"""Closing, as those see it who append, follow and listen: who is refused, who is finished, and that nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from aiostore import Event, EventStore, Limits, Query, StoreClosed, Subscription
from aiostore.engines.memory import MemoryEngine
from tests.conformance import engine_of, ids, outcome
from tests.scheduler import running, take, turns, until, waiting

OpenStore = Callable[..., Awaitable[EventStore]]

NO_RING = Limits(ring_bytes_max=1)
"""So that history comes from the engine, but for the last commit."""


class SlowWrite:
    """Holds the engine's commits before and after the write, each for as long as its gate is shut."""

    def __init__(self, store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.begin = asyncio.Event(), asyncio.Event()
        self.written, self.end = asyncio.Event(), asyncio.Event()
        engine = engine_of(store)
        name = "commit_shared" if engine.shared else "commit"
        self._commit = getattr(engine, name)
        monkeypatch.setattr(engine, name, self)

    async def __call__(self, *group: Any) -> Any:
        self.begun.set()
        await self.begin.wait()
        result = await self._commit(*group)
        self.written.set()
        await self.end.wait()
        return result

    def open(self) -> None:
        """Let all go on."""
        self.begin.set()
        self.end.set()


@pytest.fixture
def slow_write(store: EventStore, monkeypatch: pytest.MonkeyPatch) -> SlowWrite:
    return SlowWrite(store, monkeypatch)


async def fill(store: EventStore, count: int, stream_id: str = "s") -> None:
    await store.append_batch(stream_id, [("E", {"n": n}) for n in range(count)])


def append(store: EventStore) -> asyncio.Task[Event]:
    return asyncio.create_task(store.append("s", "E", {}))


async def all_refused(tasks: list[asyncio.Task[Event]]) -> bool:
    return all(isinstance(result, StoreClosed) for result in await asyncio.gather(*tasks, return_exceptions=True))


# Appends


async def test_the_write_in_hand_finishes_and_its_appends_return(store: EventStore, slow_write: SlowWrite) -> None:
    appends = [append(store) for _ in range(3)]
    await slow_write.begun.wait()
    closing = asyncio.create_task(store.aclose())
    await turns(3)
    assert not closing.done()
    slow_write.open()
    await closing
    assert ids(await asyncio.gather(*appends)) == [1, 2, 3]


async def test_staged_appends_are_refused_at_once(store: EventStore, slow_write: SlowWrite) -> None:
    first = append(store)
    await slow_write.begun.wait()
    staged = [append(store) for _ in range(10)]
    await until(lambda: "staged=10" in repr(store))
    closing = asyncio.create_task(store.aclose())
    assert await all_refused(staged)
    assert not closing.done()
    slow_write.open()
    assert (await first).event_id == 1
    await closing


async def test_new_appends_are_refused_while_the_store_closes(store: EventStore, slow_write: SlowWrite) -> None:
    first = append(store)
    await slow_write.begun.wait()
    closing = asyncio.create_task(store.aclose())
    await asyncio.sleep(0)
    with pytest.raises(StoreClosed, match="closing"):
        await store.append("s", "E", {})
    slow_write.open()
    await asyncio.gather(first, closing)
    with pytest.raises(StoreClosed):
        await store.append("s", "E", {})


async def test_appends_held_back_by_the_backlog_are_refused(open_store: OpenStore) -> None:
    store = await open_store(limits=Limits(backlog_bytes_max=1))
    inside, gate = asyncio.Event(), asyncio.Event()

    async def handler(events: list[Event]) -> None:
        inside.set()
        await gate.wait()

    store.on_commit(handler)
    first = append(store)
    await inside.wait()
    held = [append(store) for _ in range(5)]
    await until(lambda: "staged=5" in repr(store))
    closing = asyncio.create_task(store.aclose())
    assert await all_refused(held)
    gate.set()
    await asyncio.gather(first, closing)


async def test_appends_held_back_by_a_subscription_are_refused(store: EventStore) -> None:
    async with store.subscribe(on_slow="wait", queue_size=1) as subscription:
        step = await waiting(subscription)
        await fill(store, 2)
        await step
        held = [append(store) for _ in range(5)]
        await until(lambda: "staged=5" in repr(store))
        await store.aclose()
        assert await all_refused(held)


async def test_an_append_that_asks_for_facts_while_the_store_closes_is_refused_or_stored(open_store: OpenStore) -> None:
    for count in range(6):
        store = await open_store(limits=NO_RING)
        await fill(store, 1, "a")
        await fill(store, 1, "b")
        appending = asyncio.create_task(outcome(store.append("a", "E", {}, expected_version=1, idempotency_key="k")))
        await turns(count)
        await store.aclose()
        result = await appending
        assert isinstance(result, StoreClosed) or (isinstance(result, Event) and result.version == 2), result


# Handlers


async def test_the_write_in_hand_is_delivered(store: EventStore, slow_write: SlowWrite) -> None:
    seen: list[int] = []

    async def handler(events: list[Event]) -> None:
        await asyncio.sleep(0)
        seen.extend(ids(events))

    store.on_commit(handler, wait=False)
    appends = [append(store) for _ in range(3)]
    await slow_write.begun.wait()
    closing = asyncio.create_task(store.aclose())
    await turns(3)
    slow_write.open()
    await closing
    assert seen == [1, 2, 3]
    await asyncio.gather(*appends)


async def test_closing_waits_for_the_handlers(store: EventStore) -> None:
    inside, gate = asyncio.Event(), asyncio.Event()

    async def handler(events: list[Event]) -> None:
        inside.set()
        await gate.wait()

    store.on_commit(handler, wait=False)
    await store.append("s", "E", {})
    await inside.wait()
    closing = asyncio.create_task(store.aclose())
    await turns(30)
    assert not closing.done()
    gate.set()
    await closing


# Subscriptions


async def test_a_reader_that_waits_gets_store_closed(store: EventStore) -> None:
    async with store.subscribe() as subscription:
        step = await waiting(subscription)
        await store.aclose()
        with pytest.raises(StoreClosed):
            await step


async def test_readers_that_wait_in_batches_get_store_closed(store: EventStore) -> None:
    steps = [asyncio.ensure_future(anext(store.subscribe().batches())) for _ in range(3)]
    await until(lambda: "live subscriptions=3" in repr(store))
    await turns(3)
    await store.aclose()
    for step in steps:
        with pytest.raises(StoreClosed):
            await step


async def rest(subscription: Subscription) -> list[int]:
    """The event_ids that it still gives before it raises `StoreClosed`."""
    seen: list[int] = []
    while not isinstance(result := await outcome(anext(subscription)), Exception):
        seen.append(result.event_id)
    for error in (result, await outcome(anext(subscription))):
        assert isinstance(error, StoreClosed)
    return seen


async def test_a_live_subscription_raises_store_closed_at_its_next_step(store: EventStore) -> None:
    async with store.subscribe() as subscription:
        step = await waiting(subscription)
        await fill(store, 3)
        await step
        await store.aclose()
        assert await rest(subscription) == []
        assert subscription.position == 1


async def test_a_subscription_in_history_raises_store_closed_at_its_next_step(open_store: OpenStore) -> None:
    store = await open_store(limits=NO_RING)
    await fill(store, 3)
    await fill(store, 3)
    async with store.subscribe() as subscription:
        assert await take(subscription, 1) == [1]
        await store.aclose()
        assert await rest(subscription) == []
        assert subscription.position == 1


async def test_what_is_published_while_the_store_closes_leaves_no_gap(store: EventStore, slow_write: SlowWrite) -> None:
    slow_write.open()
    async with store.subscribe() as subscription:
        step = await waiting(subscription)
        await fill(store, 3)
        assert (await step).event_id == 1  # 2 and 3 wait in the queue
        slow_write.begin.clear()
        slow_write.begun.clear()
        appending = append(store)
        await slow_write.begun.wait()
        closing = asyncio.create_task(store.aclose())
        await turns(3)
        slow_write.open()
        await asyncio.gather(appending, closing)
        seen = await rest(subscription)
        assert seen == [2, 3, 4][: len(seen)]
        assert subscription.position == 1 + len(seen)


async def test_a_subscription_resumes_on_a_new_store_from_its_position(open_store: OpenStore) -> None:
    store = await open_store()
    if not engine_of(store).durable:
        pytest.skip("what this engine holds ends with the process")
    await fill(store, 5)
    async with store.subscribe() as subscription:
        assert await take(subscription, 2) == [1, 2]
        await store.aclose()
    async with EventStore(engine_of(store).location) as again, again.subscribe(after=subscription.position) as resumed:
        assert await take(resumed, 3) == [3, 4, 5]


@pytest.mark.parametrize("limits", [Limits(), NO_RING], ids=["ring", "no ring"])
async def test_a_subscription_that_reads_history_gets_store_closed_whatever_the_moment(
    open_store: OpenStore, limits: Limits
) -> None:
    for count in range(12):
        store = await open_store(limits=limits)
        for _ in range(4):
            await fill(store, 4)
        seen: list[int] = []

        async def follow(store: EventStore = store, seen: list[int] = seen) -> None:
            async for batch in store.subscribe(queue_size=2).batches(3):
                seen.extend(ids(batch))

        following = asyncio.create_task(follow())
        await turns(count)
        await store.aclose()
        with pytest.raises(StoreClosed):
            await following
        assert seen == list(range(1, len(seen) + 1))


async def test_a_filtered_subscription_that_reads_history_gets_store_closed_whatever_the_moment(
    open_store: OpenStore,
) -> None:
    for count in range(8):
        store = await open_store(limits=NO_RING)
        for _ in range(4):
            await fill(store, 4)
        step = asyncio.ensure_future(anext(store.subscribe(query=Query.where(types="never"))))
        await turns(count)
        await store.aclose()
        with pytest.raises(StoreClosed):
            await step


async def test_a_read_gets_store_closed_whatever_the_moment(open_store: OpenStore) -> None:
    for count in range(8):
        store = await open_store()
        await fill(store, 20)
        reading = asyncio.create_task(outcome(anext(store.read_all().batches(7))))
        await turns(count)
        await store.aclose()
        result = await reading
        assert isinstance(result, StoreClosed) or (isinstance(result, list) and ids(result) == [*range(1, 8)]), result


async def test_on_live_that_is_running_is_not_disturbed(store: EventStore) -> None:
    inside, gate = asyncio.Event(), asyncio.Event()

    async def on_live(subscription: Subscription) -> None:
        inside.set()
        await gate.wait()

    async with store.subscribe(on_live=on_live) as subscription:
        step = asyncio.ensure_future(anext(subscription))
        await inside.wait()
        await store.aclose()
        assert not step.done()
        gate.set()
        with pytest.raises(StoreClosed):
            await step


async def test_a_closed_subscription_ends_quietly_though_the_store_is_closed_too(store: EventStore) -> None:
    async with store.subscribe() as subscription:
        step = await waiting(subscription)
        await subscription.aclose()
        await store.aclose()
        with pytest.raises(StopAsyncIteration):
            await step


async def test_no_subscription_begins_once_the_store_is_closed(store: EventStore) -> None:
    early = store.subscribe()
    await store.aclose()
    with pytest.raises(StoreClosed):
        store.subscribe()
    with pytest.raises(StoreClosed):
        await early.__aenter__()
    with pytest.raises(StoreClosed):
        await anext(early)


# aclose itself


async def test_aclose_can_be_called_any_number_of_times_and_at_once(store: EventStore, slow_write: SlowWrite) -> None:
    appending = append(store)
    await slow_write.begun.wait()
    closings = [asyncio.create_task(store.aclose()) for _ in range(5)]
    await turns(3)
    assert not any(closing.done() for closing in closings)
    slow_write.open()
    await asyncio.gather(*closings, appending)
    await store.aclose()


async def test_a_cancelled_aclose_does_not_stop_the_closing(store: EventStore, slow_write: SlowWrite) -> None:
    appending = append(store)
    await slow_write.begun.wait()
    closing = asyncio.create_task(store.aclose())
    await turns(2)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    with pytest.raises(StoreClosed):
        await store.append("s", "E", {})
    slow_write.open()
    await store.aclose()
    assert (await appending).event_id == 1
    await until(lambda: len(asyncio.all_tasks()) == 1)


async def test_aclose_of_a_store_that_was_never_opened_is_nothing() -> None:
    store = EventStore()
    await store.aclose()
    with pytest.raises(StoreClosed):
        await store.append("s", "E", {})


async def test_aclose_works_from_the_task_that_reads_and_from_on_live(open_store: OpenStore) -> None:
    store = await open_store()
    await fill(store, 2)
    subscription = store.subscribe()
    await anext(subscription)
    await store.aclose()
    assert await rest(subscription) == []
    store = await open_store()
    with pytest.raises(StoreClosed):
        await anext(store.subscribe(on_live=lambda subscription: store.aclose()))


async def test_a_failure_of_the_engine_to_close_comes_out_of_every_aclose_that_waits_for_it() -> None:
    class Failing(MemoryEngine):
        async def aclose(self) -> None:
            raise OSError(5, "mine")

    store = await EventStore.open(Failing())
    results = await asyncio.gather(*(store.aclose() for _ in range(3)), return_exceptions=True)
    assert [str(result) for result in results] == ["[Errno 5] mine"] * 3
    with pytest.raises(StoreClosed):
        await store.head()


async def test_everything_ends_when_the_store_closes_while_everything_goes_on(open_store: OpenStore) -> None:
    for moment in range(0, 60, 3):
        store = await open_store(limits=NO_RING)
        await fill(store, 10)
        delivered: list[int] = []

        async def handler(events: list[Event], store: EventStore = store, delivered: list[int] = delivered) -> None:
            delivered.extend(ids(events))
            if events[0].stream_id == "s":
                with contextlib.suppress(StoreClosed):
                    await store.append("echo", "Echo", {})

        async def append_on(store: EventStore = store) -> list[int]:
            stored: list[int] = []
            try:
                while True:
                    stored.append((await store.append("s", "E", {})).event_id)
            except StoreClosed:
                return stored

        async def follow(options: dict[str, Any], store: EventStore = store) -> list[int]:
            seen: list[int] = []
            with contextlib.suppress(StoreClosed):
                async with store.subscribe(**options) as subscription:
                    async for event in subscription:
                        seen.append(event.event_id)  # noqa: PERF401
            return seen

        store.on_commit(handler)
        appending = [asyncio.create_task(append_on()) for _ in range(4)]
        options: list[dict[str, Any]] = [
            {},
            {"queue_size": 1},
            {"on_slow": "wait", "queue_size": 2},
            {"on_slow": "fail"},
        ]
        following = [asyncio.create_task(follow(option)) for option in options]
        await turns(moment)
        await store.aclose()
        for stored in await asyncio.gather(*appending):
            assert set(stored) <= set(delivered)
        assert delivered == list(range(11, 11 + len(delivered)))
        for seen in await asyncio.gather(*following):
            assert seen == list(range(1, len(seen) + 1))
        assert len(asyncio.all_tasks()) == 1


@contextlib.asynccontextmanager
async def a_store(open_store: OpenStore) -> AsyncIterator[EventStore]:
    store = await open_store()
    yield store
    await store.aclose()


async def test_objects_of_a_store_are_opened_in_one_task_and_closed_in_another(open_store: OpenStore) -> None:
    # Test fixtures and streaming responses of web servers do this.
    block = a_store(open_store)
    store = await asyncio.create_task(block.__aenter__())
    subscription = await asyncio.create_task(store.subscribe().__aenter__())
    step = await waiting(subscription)
    await asyncio.create_task(subscription.__aexit__(None, None, None))
    async with running(step):
        await asyncio.create_task(block.__aexit__(None, None, None))
    with pytest.raises(StoreClosed):
        await store.head()
