"""Listeners: whole commits, in order, one handler after another, and what becomes of those that fail."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aiostore import Event, EventStore, Limits, Listener, StoreClosed, StreamAppend
from tests.scheduler import until

OpenStore = Callable[..., Awaitable[EventStore]]


class Recorder:
    """A handler that notes the event_ids of what it gets."""

    def __init__(self) -> None:
        self.commits: list[list[int]] = []

    async def __call__(self, events: list[Event]) -> None:
        self.commits.append([event.event_id for event in events])


class Gated(Recorder):
    """A handler that notes what it gets and returns only when its gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def __call__(self, events: list[Event]) -> None:
        await super().__call__(events)
        await self.gate.wait()


async def raising(events: list[Event]) -> None:
    raise LookupError("mine")


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, logger="aiostore")
    return caplog


# What they get


async def test_a_handler_gets_whole_commits_in_order(store: EventStore) -> None:
    recorder = Recorder()
    store.on_commit(recorder)
    await store.append("a", "E", {})
    await store.append_batch("a", [("E", {}), ("E", {})])
    await store.append_streams([StreamAppend("a", [("E", {})]), StreamAppend("b", [("E", {}), ("E", {})])])
    assert recorder.commits == [[1], [2, 3], [4, 5, 6]]


async def test_a_handler_gets_the_commits_of_a_group_one_by_one(store: EventStore) -> None:
    recorder = Recorder()
    store.on_commit(recorder)
    await asyncio.gather(*(store.append_batch("s", [("E", {}), ("E", {})]) for _ in range(100)))
    assert recorder.commits == [[n, n + 1] for n in range(1, 201, 2)]


async def test_what_stores_nothing_is_not_delivered(store: EventStore) -> None:
    recorder = Recorder()
    store.on_commit(recorder)
    assert await store.append_batch("s", []) == []
    first = await store.append("s", "E", {}, idempotency_key="k")
    assert await store.append("s", "E", {}, idempotency_key="k") == first
    assert recorder.commits == [[1]]


async def test_handlers_are_called_one_after_another_in_the_order_of_their_registration(store: EventStore) -> None:
    calls: list[tuple[str, int]] = []
    busy = False

    def named(name: str) -> Callable[[list[Event]], Awaitable[None]]:
        async def handler(events: list[Event]) -> None:
            nonlocal busy
            assert not busy
            busy = True
            for _ in range(3):
                await asyncio.sleep(0)
            calls.append((name, events[0].event_id))
            busy = False

        return handler

    for name in "abc":
        store.on_commit(named(name), wait=name != "b")
    await asyncio.gather(*(store.append("s", "E", {}) for _ in range(5)))
    assert calls == [(name, n) for n in range(1, 6) for name in "abc"]


async def test_a_handler_gets_only_commits_above_the_head_at_its_registration(store: EventStore) -> None:
    await store.append("s", "E", {})
    recorder = Recorder()
    store.on_commit(recorder)
    await store.append("s", "E", {})
    assert recorder.commits == [[2]]


async def test_a_handler_registered_while_commits_wait_for_another_gets_only_what_comes_later(
    store: EventStore,
) -> None:
    gated, late = Gated(), Recorder()
    store.on_commit(gated)
    appends = [asyncio.create_task(store.append("s", "E", {})) for _ in range(3)]
    await until(lambda: gated.commits and "head=3" in repr(store))
    store.on_commit(late)
    appends.append(asyncio.create_task(store.append_batch("s", [("E", {}), ("E", {})])))  # type: ignore[arg-type]
    gated.gate.set()
    await asyncio.gather(*appends)
    assert gated.commits == [[1], [2], [3], [4, 5]]
    assert late.commits == [[4, 5]]


async def test_a_handler_registered_by_a_handler_gets_what_comes_later(store: EventStore) -> None:
    late = Recorder()

    async def registering(events: list[Event]) -> None:
        if events[0].event_id == 1:
            store.on_commit(late)

    store.on_commit(registering)
    await store.append("s", "E", {})
    await store.append("s", "E", {})
    assert late.commits == [[2]]


async def test_a_function_registered_twice_is_called_twice(store: EventStore) -> None:
    recorder = Recorder()
    one, two = store.on_commit(recorder), store.on_commit(recorder)
    await store.append("s", "E", {})
    one.close()
    await store.append("s", "E", {})
    assert recorder.commits == [[1], [1], [2]]
    assert (one.closed, two.closed) == (True, False)


async def test_each_handler_gets_events_of_its_own(store: EventStore) -> None:
    seen: list[dict[str, Any]] = []

    async def vandal(events: list[Event]) -> None:
        seen.append(dict(events[0].data))
        events[0].data.clear()
        events.clear()

    store.on_commit(vandal)
    store.on_commit(vandal)
    event = await store.append("s", "E", {"n": 1})
    assert seen == [{"n": 1}] * 2
    assert event.data == {"n": 1}
    assert (await store.read_all().to_list())[0].data == {"n": 1}


async def test_a_plain_function_that_returns_an_awaitable_will_do(store: EventStore) -> None:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    store.on_commit(lambda events: done)
    appending = asyncio.create_task(store.append("s", "E", {}))
    await until(lambda: "head=1" in repr(store))
    assert not appending.done()
    done.set_result(None)
    await appending


async def test_what_is_not_callable_is_refused(store: EventStore) -> None:
    with pytest.raises(TypeError, match="callable"):
        store.on_commit(None)  # type: ignore[arg-type]


async def test_a_handler_can_be_registered_only_while_the_store_is_open(store: EventStore) -> None:
    await store.aclose()
    with pytest.raises(StoreClosed):
        store.on_commit(raising)


# What an append waits for


async def test_an_append_returns_after_the_handlers_have_had_its_events(store: EventStore) -> None:
    gated = Gated()
    store.on_commit(gated)
    appending = asyncio.create_task(store.append("s", "E", {}))
    await until(lambda: gated.commits)
    # It is stored and everyone sees it, but its append has not returned.
    assert await store.head() == 1
    assert len(await store.read_all().to_list()) == 1
    assert not appending.done()
    gated.gate.set()
    await appending


async def test_delivery_overlaps_later_commits(store: EventStore) -> None:
    gated = Gated()
    store.on_commit(gated)
    first = asyncio.create_task(store.append("s", "E", {}))
    await until(lambda: gated.commits)
    second = asyncio.create_task(store.append("s", "E", {}))
    await until(lambda: "head=2" in repr(store))
    assert not first.done()
    gated.gate.set()
    await asyncio.gather(first, second)


async def test_a_handler_with_wait_false_does_not_hold_appends(store: EventStore) -> None:
    gated = Gated()
    store.on_commit(gated, wait=False)
    for _ in range(3):
        await store.append("s", "E", {})
    await until(lambda: gated.commits)
    gated.gate.set()
    await until(lambda: gated.commits == [[1], [2], [3]])


async def test_an_append_returns_when_the_last_handler_that_holds_it_has_had_its_events(store: EventStore) -> None:
    recorder, gated = Recorder(), Gated()
    store.on_commit(recorder)
    store.on_commit(gated, wait=False)
    await store.append("s", "E", {})
    assert recorder.commits == [[1]]
    assert not gated.gate.is_set()
    gated.gate.set()


async def test_a_handler_with_wait_false_does_not_hold_appends_where_the_one_before_it_raised(
    store: EventStore,
) -> None:
    gated = Gated()
    store.on_commit(Recorder())
    store.on_commit(raising)
    store.on_commit(gated, wait=False)
    appending = asyncio.create_task(store.append("s", "E", {}))
    await until(lambda: gated.commits)
    for _ in range(5):
        await asyncio.sleep(0)
    held = not appending.done()
    gated.gate.set()
    await appending
    assert not held


async def test_a_duplicate_waits_for_the_delivery_of_what_it_returns(store: EventStore) -> None:
    gated = Gated()
    store.on_commit(gated)
    first = asyncio.create_task(store.append("s", "E", {}, idempotency_key="k"))
    await until(lambda: gated.commits)
    second = asyncio.create_task(store.append("s", "E", {}, idempotency_key="k"))
    third = asyncio.create_task(store.append("s", "E", {}))
    await until(lambda: "head=2" in repr(store))
    assert not first.done()
    assert not second.done()
    gated.gate.set()
    assert await first == await second
    await third


async def test_appends_held_by_handlers_can_be_cancelled_and_are_stored(store: EventStore) -> None:
    gated = Gated()
    store.on_commit(gated)
    appending = asyncio.create_task(store.append("s", "E", {}))
    await until(lambda: gated.commits)
    appending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await appending
    gated.gate.set()
    await store.append("s", "E", {})
    assert gated.commits == [[1], [2]]


# Closing a listener


async def test_a_closed_listener_gets_nothing_more(store: EventStore) -> None:
    recorder = Recorder()
    listener = store.on_commit(recorder)
    await store.append("s", "E", {})
    listener.close()
    listener.close()
    await store.append("s", "E", {})
    assert recorder.commits == [[1]]
    assert listener.closed
    assert listener.error is None
    assert "closed" in repr(listener)


async def test_a_listener_closed_while_commits_wait_for_it_gets_none_of_them_and_holds_none(store: EventStore) -> None:
    gated = Gated()
    listener = store.on_commit(gated)
    appends = [asyncio.create_task(store.append("s", "E", {})) for _ in range(3)]
    await until(lambda: gated.commits and "head=3" in repr(store))
    listener.close()
    gated.gate.set()
    await asyncio.gather(*appends)
    assert gated.commits == [[1]]


async def test_a_handler_may_close_its_own_listener(store: EventStore) -> None:
    seen: list[int] = []

    async def once(events: list[Event]) -> None:
        seen.append(events[0].event_id)
        listener.close()

    listener = store.on_commit(once)
    await store.append("s", "E", {})
    await store.append("s", "E", {})
    assert seen == [1]


async def test_a_handler_may_close_the_listener_of_the_next(store: EventStore) -> None:
    recorder = Recorder()

    async def closing(events: list[Event]) -> None:
        later.close()

    store.on_commit(closing)
    later = store.on_commit(recorder)
    await store.append("s", "E", {})
    assert recorder.commits == []


# Handlers that fail


async def test_a_handler_that_raises_is_detached_and_the_others_go_on(
    store: EventStore, log: pytest.LogCaptureFixture
) -> None:
    before, after = Recorder(), Recorder()
    store.on_commit(before)
    listener = store.on_commit(raising)
    store.on_commit(after)
    assert (await store.append("s", "E", {})).event_id == 1
    await store.append("s", "E", {})
    assert before.commits == after.commits == [[1], [2]]
    assert listener.closed
    assert isinstance(listener.error, LookupError)
    assert "LookupError" in repr(listener)
    assert [record.levelname for record in log.records] == ["ERROR"]
    assert "raising" in log.text


async def test_a_handler_that_raises_before_its_first_await_is_detached_too(
    store: EventStore, log: pytest.LogCaptureFixture
) -> None:
    def plain(events: list[Event]) -> Awaitable[None]:
        raise LookupError("mine")

    listener = store.on_commit(plain)
    await store.append("s", "E", {})
    assert isinstance(listener.error, LookupError)
    assert "plain" in log.text


async def cancelling_itself(events: list[Event]) -> None:
    await asyncio.sleep(0)
    raise asyncio.CancelledError


async def awaiting_what_is_cancelled(events: list[Event]) -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.cancel)
    await future


@pytest.mark.parametrize("handler", [cancelling_itself, awaiting_what_is_cancelled], ids=lambda h: h.__name__)
async def test_a_handler_that_raises_cancelled_is_detached_and_the_others_go_on(
    store: EventStore, handler: Callable[[list[Event]], Awaitable[None]]
) -> None:
    recorder = Recorder()
    listener = store.on_commit(handler)
    store.on_commit(recorder)
    await store.append("s", "E", {})
    await store.append("s", "E", {})
    assert isinstance(listener.error, asyncio.CancelledError)
    assert recorder.commits == [[1], [2]]


async def test_a_handler_cancelled_from_outside_is_detached_and_the_others_get_the_commit(store: EventStore) -> None:
    running: list[asyncio.Task[Any]] = []
    recorder, cancelling = Recorder(), []

    async def stuck(events: list[Event]) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.append(task)
        await asyncio.Event().wait()

    async def looking(events: list[Event]) -> None:
        task = asyncio.current_task()
        assert task is not None
        cancelling.append(task.cancelling())
        async with asyncio.timeout(3600):
            await asyncio.sleep(0)

    listener = store.on_commit(stuck)
    store.on_commit(looking)
    store.on_commit(recorder)
    appending = asyncio.create_task(store.append("s", "E", {}))
    await until(lambda: running)
    running[0].cancel()
    assert (await appending).event_id == 1
    await store.append("s", "E", {})
    assert isinstance(listener.error, asyncio.CancelledError)
    assert recorder.commits == [[1], [2]]
    assert cancelling == [0, 0]  # nothing of the cancellation is left for the next handler


async def test_a_handler_that_cancels_its_own_task_does_not_harm_the_next(store: EventStore) -> None:
    class Looking(Recorder):
        async def __call__(self, events: list[Event]) -> None:
            await asyncio.sleep(0)
            await super().__call__(events)

    async def cancelling(events: list[Event]) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    recorder = Looking()
    store.on_commit(cancelling)
    listener = store.on_commit(recorder)
    await store.append("s", "E", {})
    await store.append("s", "E", {})
    assert listener.error is None
    assert recorder.commits == [[1], [2]]


async def test_a_handler_may_use_timeouts_and_task_groups(store: EventStore) -> None:
    seen: list[str] = []

    async def handler(events: list[Event]) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        seen.append("timeout")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.Event().wait())
                group.create_task(raising(events))
        except* LookupError:
            seen.append("group")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0)
        seen.append("wait_for")

    listener = store.on_commit(handler)
    await store.append("s", "E", {})
    await store.append("s", "E", {})
    assert seen == ["timeout", "group", "wait_for"] * 2
    assert listener.error is None


async def test_all_handlers_may_fail_at_once(store: EventStore) -> None:
    listeners = [store.on_commit(raising) for _ in range(5)]
    await asyncio.gather(*(store.append("s", "E", {}) for _ in range(5)))
    assert all(isinstance(listener.error, LookupError) for listener in listeners)
    assert "listeners=0" in repr(store)


# The backlog


async def test_above_the_backlog_limit_no_further_group_is_formed(open_store: OpenStore) -> None:
    store = await open_store(limits=Limits(backlog_bytes_max=1000))
    gated = Gated()
    store.on_commit(gated, wait=False)
    appends = [asyncio.create_task(store.append("s", "E", {"text": "x" * 1000}))]
    await appends[0]
    appends += [asyncio.create_task(store.append("s", "E", {})) for _ in range(3)]
    await until(lambda: "staged=3" in repr(store))
    for _ in range(5):
        await asyncio.sleep(0)
    assert await store.head() == 1
    appends[1].cancel()  # what waits is unwritten, and can be given up
    await asyncio.wait([appends[1]])
    gated.gate.set()
    await asyncio.gather(*appends[2:])
    assert await store.head() == 3
    await until(lambda: gated.commits == [[1], [2], [3]])


async def test_a_backlog_within_its_limit_holds_nothing(store: EventStore) -> None:
    gated = Gated()
    store.on_commit(gated, wait=False)
    for _ in range(100):
        await store.append("s", "E", {})
    assert await store.head() == 100
    gated.gate.set()
    await until(lambda: len(gated.commits) == 100)


async def test_a_delivery_that_nobody_references_survives_a_collection(store: EventStore) -> None:
    seen: list[int] = []

    class Door:
        """Lets one handler through; the only thing that holds it is the delivery task's own frame."""

    async def handler(events: list[Event]) -> None:
        for _ in range(10):
            await asyncio.sleep(0)
        gc.collect()
        seen.append(events[0].event_id)

    store.on_commit(handler, wait=False)
    await store.append("s", "E", {})
    gc.collect()
    await until(lambda: seen == [1])


async def test_a_listener_stays_registered_though_nobody_holds_it(store: EventStore) -> None:
    recorder = Recorder()
    store.on_commit(recorder)
    gc.collect()
    await store.append("s", "E", {})
    assert recorder.commits == [[1]]


async def test_listener_is_what_on_commit_returns(store: EventStore) -> None:
    listener = store.on_commit(raising)
    assert isinstance(listener, Listener)
    assert repr(listener) == "<Listener raising listening>"
