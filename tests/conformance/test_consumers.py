"""Consumers: every event at least once, each stream's in order, and never a checkpoint ahead of the work."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from aiostore import (
    END,
    Consumer,
    ConsumerHalted,
    Delivery,
    EngineUnsupported,
    Event,
    EventStore,
    InvalidEvent,
    Query,
    Retry,
    StoreClosed,
    StoreFull,
)
from tests.conformance import engine_of, reopen
from tests.conformance.consuming import QUICKLY, Gated, Seen, background, becomes, consumer, fill, idle, kill
from tests.scheduler import turns


async def test_every_event_once_each_stream_in_order(store: EventStore) -> None:
    await fill(store, 7, 10)
    seen = Seen()
    async with consumer(store, seen) as mailer:
        await idle(mailer)
        assert sorted(seen.ids) == list(range(1, 71))
        await fill(store, 7, 2)  # and live
        await idle(mailer)
    assert seen.by_stream() == {f"s{stream}": list(range(1, 13)) for stream in range(7)}


async def test_another_start_goes_on_behind_what_was_handled(store: EventStore) -> None:
    await fill(store, 3, 5)
    first, second = Seen(), Seen()
    async with consumer(store, first) as mailer:
        await idle(mailer)
    async with await reopen(store) as again:
        await fill(again, 3, 2)
        async with consumer(again, second, after=3) as mailer:
            await idle(mailer)
    assert sorted(first.ids) == list(range(1, 16))
    assert sorted(second.ids) == list(range(16, 22))


async def test_run_runs_until_it_is_stopped(store: EventStore) -> None:
    await fill(store, 2, 3)
    seen = Seen()
    mailer = consumer(store, seen)
    async with background(mailer) as task:
        await becomes(lambda: len(seen.events) == 6)
        assert not task.done()
        with pytest.raises(RuntimeError, match="runs already"):
            await mailer.run()
    assert not mailer.stats().is_running
    assert mailer.error is None
    async with background(mailer):  # again, as often as one likes
        await fill(store, 1, 1)
        await becomes(lambda: len(seen.events) == 7)


async def test_plain_handlers_and_a_query(store: EventStore) -> None:
    for number in range(10):
        await store.append("s", "Even" if number % 2 == 0 else "Odd", {"n": number}, tags=[f"t{number}"])
    got: list[Any] = []
    async with consumer(store, lambda event: got.append(event.data["n"]), query=Query.where(types="Odd")) as mailer:
        await idle(mailer)
    assert got == [1, 3, 5, 7, 9]


async def test_where_it_begins(store: EventStore) -> None:
    await fill(store, 1, 5)
    late, end = Seen(), Seen()
    async with Consumer(store, "late", late, after=3) as one, Consumer(store, "end", end, after=END) as other:
        await fill(store, 1, 1)
        await idle(one)
        await idle(other)
    assert (late.ids, end.ids) == ([4, 5, 6], [6])


async def test_different_streams_at_once_but_not_more_than_it_may(store: EventStore) -> None:
    await fill(store, 10, 3)
    seen = Gated()
    async with consumer(store, seen, concurrency=4) as mailer:
        await becomes(lambda: len(seen.at_once) == 4)
        await turns(20)
        assert mailer.stats().in_hand_count == 4
        seen.gate.set()
        await idle(mailer)
    assert seen.at_once_max == 4
    assert seen.by_stream() == {f"s{stream}": [1, 2, 3] for stream in range(10)}


async def test_order_by_something_else_than_the_stream(store: EventStore) -> None:
    for number in range(12):
        await store.append(f"s{number}", "E", {"n": number}, tags=[f"customer:{number % 2}"])
    order: dict[str, list[int]] = {"customer:0": [], "customer:1": []}
    busy: set[str] = set()

    async def handle(event: Event) -> None:
        assert event.tags[0] not in busy
        busy.add(event.tags[0])
        await asyncio.sleep(0)
        order[event.tags[0]].append(event.event_id)
        busy.discard(event.tags[0])

    async with consumer(store, handle, order_by=lambda event: event.tags[0]) as mailer:
        await idle(mailer)
    assert order == {"customer:0": [1, 3, 5, 7, 9, 11], "customer:1": [2, 4, 6, 8, 10, 12]}


# --- failures ---


async def test_a_failed_attempt_is_made_again_with_the_event_as_it_was(
    store: EventStore, caplog: pytest.LogCaptureFixture
) -> None:
    await store.append("s", "E", {"n": 1})
    seen: list[Any] = []

    async def handle(event: Event) -> None:
        seen.append(dict(event.data))
        event.data["n"] = "changed"
        if len(seen) < 3:
            raise ValueError("not yet")

    async with consumer(store, handle) as mailer:
        await idle(mailer)
        assert mailer.stats().retried_count == 2
    assert seen == [{"n": 1}] * 3
    assert "attempt 2 of 3 with event 1 of stream 's' failed" in caplog.text


async def test_others_go_on_while_a_stream_waits_to_be_tried_again(store: EventStore) -> None:
    await fill(store, 2, 3)
    seen = Seen(lambda event: event.event_id == 1 and len(seen.events) < 3)
    async with consumer(store, seen, concurrency=1, retry=Retry(100, 0.001, 0.001)) as mailer:
        await idle(mailer)
    assert seen.ids[:3] == [2, 4, 6]
    assert seen.by_stream() == {"s0": [1, 2, 3], "s1": [1, 2, 3]}


async def test_it_halts_at_what_cannot_be_handled(store: EventStore) -> None:
    await fill(store, 2, 5)
    seen = Seen(lambda event: event.event_id == 5)
    mailer = consumer(store, seen)
    with pytest.raises(ConsumerHalted, match=r"event 5 of stream 's0'.*3 times.*event 5 is refused") as caught:
        await mailer.run()
    assert (caught.value.event_id, caught.value.stream_id, caught.value.attempts) == (5, "s0", 3)
    assert isinstance(caught.value.__cause__, ValueError)
    assert mailer.error is caught.value
    before = seen.ids
    seen.refuses = lambda event: False
    async with consumer(store, seen) as mailer:
        await idle(mailer)
    assert 5 in seen.ids[len(before) :]
    assert sorted(seen.ids) == list(range(1, 11)), "what was handled behind it does not come again"
    assert seen.by_stream() == {"s0": [1, 2, 3, 4, 5], "s1": [1, 2, 3, 4, 5]}


async def test_what_it_halted_with_comes_out_of_the_block_and_of_wait_idle(store: EventStore) -> None:
    await fill(store, 1, 1)
    seen = Seen(lambda event: True)

    async def in_a_block() -> None:
        async with consumer(store, seen) as mailer:
            await becomes(lambda: not mailer.stats().is_running)

    with pytest.raises(ConsumerHalted):
        await in_a_block()
    mailer = consumer(store, seen)
    task = asyncio.create_task(mailer.run())
    await becomes(lambda: mailer.stats().is_running)
    with pytest.raises(ConsumerHalted):
        await idle(mailer)
    with pytest.raises(ConsumerHalted):
        await task
    with pytest.raises(ConsumerHalted):
        await mailer.wait_idle()
    with pytest.raises(RuntimeError, match="does not run"):
        await consumer(store, seen).wait_idle()


async def test_a_handler_in_which_something_else_was_cancelled_has_failed(store: EventStore) -> None:
    await fill(store, 1, 2)
    tried: list[int] = []

    async def handle(event: Event) -> None:
        tried.append(event.event_id)
        if len(tried) == 1:
            raise asyncio.CancelledError

    async with consumer(store, handle) as mailer:
        await idle(mailer)
    assert tried == [1, 1, 2]


async def test_a_store_that_closes_ends_it(store: EventStore) -> None:
    seen = Gated()
    await fill(store, 2, 1)
    mailer = consumer(store, seen)
    task = asyncio.create_task(mailer.run())
    await becomes(lambda: len(seen.at_once) == 2)
    await store.aclose()
    with pytest.raises(StoreClosed):
        await task
    await mailer.stop()
    assert not seen.at_once


# --- what is recorded ---


async def test_what_was_handled_above_a_slow_event_does_not_come_again(store: EventStore) -> None:
    await fill(store, 4, 3)
    slow = asyncio.Event()

    async def handle(event: Event) -> None:
        if event.event_id == 2:
            await slow.wait()
        seen.append(event.event_id)

    seen: list[int] = []
    first = consumer(store, handle)
    await first.__aenter__()
    await becomes(lambda: len(seen) == 9)
    recorded = first._work
    assert recorded is not None
    await becomes(lambda: all(p.position == 12 or p.position == 1 for p in recorded._membership.group.partitions))
    await kill(first)
    slow.set()
    async with consumer(store, handle, lease_s=0.1) as mailer:
        await idle(mailer)
    assert sorted(seen) == list(range(1, 13)), "each once, though the first never ended"


async def test_after_a_crash_only_what_was_not_recorded_comes_again(store: EventStore) -> None:
    await fill(store, 3, 4)
    seen = Seen()
    first = consumer(store, seen)
    await first.__aenter__()
    await idle(first)
    await kill(first)
    await fill(store, 3, 1)
    async with consumer(store, seen, lease_s=0.1) as mailer:
        await idle(mailer)
    assert sorted(seen.ids) == list(range(1, 16))


async def test_a_slow_event_holds_the_window(store: EventStore) -> None:
    await fill(store, 2, 400)
    seen = Seen()
    gate = asyncio.Event()

    async def handle(event: Event) -> None:
        if event.event_id == 1:
            await gate.wait()
        seen.events.append(event)

    async with consumer(store, handle, window_events=50) as mailer:
        await becomes(lambda: mailer.stats().queued_count > 0 and len(seen.events) >= 40)
        work = mailer._work
        assert work is not None
        for _ in range(20):
            await asyncio.sleep(0.005)
            assert sum(len(share.window) for share in work.lanes.shares.values()) <= 50 + 50, "a batch more at most"
        assert len(seen.events) <= 100, "nothing beyond the window is handled"
        gate.set()
        await idle(mailer)
    assert len(seen.events) == 800


async def test_where_a_checkpoint_finds_no_room_the_work_goes_on(
    store: EventStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = engine_of(store)
    save = engine.save_states
    seen = Seen()
    full = False

    async def full_now_and_then(*args: Any) -> Any:
        if full:
            raise StoreFull("here", "so it was chosen")
        return await save(*args)

    monkeypatch.setattr(engine, "save_states", full_now_and_then)
    async with consumer(store, seen) as mailer:
        full = True
        await fill(store, 2, 5)
        await becomes(lambda: "cannot be recorded now" in caplog.text and len(seen.events) == 10)
        full = False
        await idle(mailer)
    assert caplog.text.count("cannot be recorded now") == 1


async def test_events_that_it_does_not_ask_for_move_it_on(store: EventStore) -> None:
    seen = Seen()
    async with consumer(store, seen, query=Query.where(types="Never")) as mailer:
        await fill(store, 2, 5)
        await idle(mailer)
        assert mailer.stats().lag == 0
    async with consumer(store, seen) as mailer:  # another query holds for what comes from then on
        await idle(mailer)
        assert seen.ids == []


# --- its end ---


async def test_stopped_it_finishes_what_is_in_hand_and_begins_nothing_more(store: EventStore) -> None:
    await fill(store, 2, 5)
    seen = Gated()
    mailer = consumer(store, seen)
    async with background(mailer):
        await becomes(lambda: len(seen.at_once) == 2)
        stopping = asyncio.create_task(mailer.stop())
        await turns(10)
        assert not stopping.done()
        seen.gate.set()
        await stopping
    assert seen.ids == [1, 2]
    async with consumer(store, seen) as mailer:
        await idle(mailer)
    assert sorted(seen.ids) == list(range(1, 11))


async def test_what_takes_too_long_to_stop_is_cancelled(store: EventStore) -> None:
    await fill(store, 1, 1)
    seen = Gated()
    mailer = consumer(store, seen)
    await mailer.__aenter__()
    await becomes(lambda: seen.at_once)
    await mailer.stop(timeout_s=0.01)
    assert not seen.at_once
    seen.gate.set()
    async with consumer(store, seen) as mailer:
        await idle(mailer)
    assert seen.ids == [1]


async def test_a_handler_may_stop_it(store: EventStore) -> None:
    await fill(store, 1, 5)
    seen: list[int] = []

    async def handle(event: Event) -> None:
        seen.append(event.event_id)
        if event.event_id == 3:
            await mailer.stop()

    mailer = consumer(store, handle)
    await mailer.run()
    assert seen == [1, 2, 3]
    await mailer.stop()  # again is nothing


async def test_a_handler_may_append(store: EventStore) -> None:
    await store.append("ping", "Ping", {"n": 0})

    async def handle(event: Event) -> None:
        if event.data["n"] < 20:
            await store.append(f"s{event.data['n']}", "Ping", {"n": event.data["n"] + 1})

    async with consumer(store, handle) as mailer:
        await becomes(lambda: mailer.stats().handled_count == 21)
        await idle(mailer)


async def test_cancelled_it_cancels_the_handlers_and_records_what_was_handled(store: EventStore) -> None:
    await fill(store, 3, 2)
    gate = asyncio.Event()
    seen = Seen()

    async def handle(event: Event) -> None:
        if event.stream_id == "s0":
            await gate.wait()
        await seen(event)

    mailer = consumer(store, handle)
    task = asyncio.create_task(mailer.run())
    await becomes(lambda: len(seen.events) == 4)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    gate.set()
    async with consumer(store, seen) as mailer:
        await idle(mailer)
    assert seen.by_stream() == {"s0": [1, 2], "s1": [1, 2], "s2": [1, 2]}
    assert len(seen.ids) == 6


# --- as an iterator ---


async def test_as_an_iterator(store: EventStore) -> None:
    await fill(store, 3, 3)
    got: list[int] = []
    async with consumer(store) as mailer:
        async for delivery in mailer:
            async with delivery:
                got.append(delivery.event.event_id)
            if len(got) == 9:
                break
        await idle(mailer)
    assert sorted(got) == list(range(1, 10))
    async with consumer(store) as mailer:
        await idle(mailer)
        assert mailer.stats().handled_count == 0


async def test_what_is_raised_in_a_delivery_is_a_failed_attempt(store: EventStore) -> None:
    await fill(store, 2, 2)
    got: list[tuple[int, int]] = []
    async with consumer(store) as mailer:
        async for delivery in mailer:
            async with delivery:
                got.append((delivery.event.event_id, delivery.attempt))
                if delivery.event.event_id == 1 and delivery.attempt < 3:
                    raise ValueError("not yet")
            if len(got) == 6:
                break
        await idle(mailer)
    assert [each for each in got if each[0] == 1] == [(1, 1), (1, 2), (1, 3)]
    assert [each[0] for each in got if each[0] in (1, 3)] == [1, 1, 1, 3]


async def test_an_iterator_halts_too(store: EventStore) -> None:
    await fill(store, 1, 2)

    async def iterate() -> None:
        async for delivery in mailer:
            async with delivery:
                raise ValueError("never")

    mailer = consumer(store)
    with pytest.raises(ConsumerHalted, match="never"):
        await iterate()


async def test_several_tasks_iterate_over_one_consumer(store: EventStore) -> None:
    await fill(store, 8, 4)
    seen = Seen()

    async def iterate() -> None:
        async for delivery in mailer:
            async with delivery:
                await seen(delivery.event)

    async with consumer(store) as mailer:
        tasks = [asyncio.create_task(iterate()) for _ in range(4)]
        await idle(mailer)
        await mailer.stop()
        await asyncio.gather(*tasks)
    assert seen.by_stream() == {f"s{stream}": [1, 2, 3, 4] for stream in range(8)}


async def test_a_delivery_that_is_cancelled_or_never_entered_comes_again(store: EventStore) -> None:
    await fill(store, 1, 3)
    async with consumer(store) as mailer:
        delivery = await anext(mailer)

        async def cancelled(delivery: Delivery) -> None:
            async with delivery:
                await asyncio.Event().wait()

        task = asyncio.create_task(cancelled(delivery))
        await turns(3)
        task.cancel()
        await asyncio.wait([task])
        delivery = await anext(mailer)
        assert (delivery.event.event_id, delivery.attempt) == (1, 1)
        async with delivery:
            pass
        with pytest.raises(RuntimeError, match="ended: it is entered once"):
            await delivery.__aenter__()
        await anext(mailer)  # and is left
    async with consumer(store) as mailer:
        assert (await anext(mailer)).event.event_id == 2


async def test_its_loop_may_stop_it(store: EventStore) -> None:
    await fill(store, 1, 5)
    got = []
    mailer = consumer(store)
    async for delivery in mailer:
        async with delivery:
            got.append(delivery.event.event_id)
            if len(got) == 2:
                await mailer.stop()
    assert got == [1, 2]


# --- elsewhere ---


async def test_a_follower_keeps_its_state_in_a_file_of_its_own(tmp_path: Path) -> None:
    seen = Seen(lambda event: event.event_id == 4)
    async with EventStore(tmp_path / "s") as writer:
        await fill(writer, 2, 2)
        async with EventStore(tmp_path / "s", mode="r") as reader:
            with pytest.raises(EngineUnsupported, match="state=path"):
                await consumer(reader, seen).run()
            async with consumer(reader, seen, on_error="park", state=tmp_path / "mine.db") as mailer:
                await idle(mailer)
                assert [parked.event.event_id for parked in await mailer.parked()] == [4]
        await fill(writer, 2, 1)
        async with EventStore(tmp_path / "s", mode="r") as reader:
            seen.refuses = lambda event: False
            async with consumer(reader, seen, on_error="park", state=tmp_path / "mine.db") as mailer:
                assert await mailer.retry_parked() == 1
                await idle(mailer)
    assert seen.by_stream() == {"s0": [1, 2, 3], "s1": [1, 2, 3]}
    assert len(seen.ids) == 6


async def test_where_the_log_was_set_back_it_begins_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    seen = Seen(lambda event: event.event_id == 4)
    for name, each in (("old", 5), ("new", 3)):
        async with EventStore(tmp_path / name) as store:
            await fill(store, 1, each)
    for name in ("old", "new"):
        async with (
            EventStore(tmp_path / name, mode="r") as store,
            consumer(store, seen, on_error="park", state=tmp_path / "mine.db") as mailer,
        ):
            await idle(mailer)
    assert seen.ids == [1, 2, 3, 1, 2, 3]
    assert "the checkpoint of consumer 'mailer' at event 5 is discarded" in caplog.text


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"name": ""}, InvalidEvent, "name"),
        ({"handler": 3}, TypeError, "handler"),
        ({"concurrency": 0}, ValueError, "concurrency"),
        ({"order_by": "tag"}, TypeError, "order_by"),
        ({"on_error": "ignore"}, ValueError, "on_error"),
        ({"retry": 5}, TypeError, "retry"),
        ({"query": "all"}, TypeError, "query"),
        ({"lease_s": 0}, ValueError, "lease_s"),
        ({"checkpoint_every_s": float("nan")}, ValueError, "checkpoint_every_s"),
        ({"window_events": 0}, ValueError, "window_events"),
        ({"after": -1}, ValueError, "after"),
    ],
)
async def test_bad_input_is_refused(options: dict[str, Any], error: type[Exception], match: str) -> None:
    async with EventStore() as store:
        with pytest.raises(error, match=match):
            Consumer(store, options.pop("name", "mailer"), options.pop("handler", None), **options)
        with pytest.raises(RuntimeError, match="iterated"):
            await Consumer(store, "mailer").run()
        with pytest.raises(RuntimeError, match="is run"):
            await anext(Consumer(store, "mailer", print))


@pytest.mark.parametrize("options", [{"attempts": 0}, {"first_s": -1}, {"max_s": float("inf")}, {"attempts": True}])
def test_bad_retries_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Retry(**options)


def test_waits_grow_with_jitter_up_to_a_bound() -> None:
    retry = Retry(first_s=1.0, max_s=30.0)
    for attempts, longest in ((1, 1), (2, 2), (5, 16), (6, 30), (5000, 30)):
        waits = [retry.wait_s(attempts) for _ in range(200)]
        assert longest / 2 <= min(waits) < max(waits) <= longest


async def test_it_says_how_it_is_doing(store: EventStore, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "aiostore")
    seen = Gated(lambda event: event.event_id == 1)
    mailer = consumer(store, seen, on_error="park")
    assert "not running" in repr(mailer)
    async with mailer:
        await fill(store, 2, 5)
        await becomes(lambda: mailer.stats().in_hand_count == 2)
        stats = mailer.stats()
        assert (stats.lag, stats.queued_count, stats.handled_count, stats.share) == (10, 10, 0, 1.0)
        seen.gate.set()
        await idle(mailer)
        stats = mailer.stats()
        assert (stats.lag, stats.in_hand_count, stats.queued_count, stats.handled_count) == (0, 0, 0, 5)
        assert (stats.retried_count, stats.parked_count) == (QUICKLY.attempts, 1)
        assert repr(mailer) == "<Consumer 'mailer' running lag=0 in_hand=0 handled=5 retried=3 parked=1>"
