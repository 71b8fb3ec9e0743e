"""Parked events: a stream that cannot be handled is set aside whole, in order, while the others go on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aiostore import Consumer, Event, EventStore, InvalidEvent, Query
from tests.conformance import reopen
from tests.conformance.consuming import Gated, Seen, becomes, consumer, fill, idle, kill
from tests.scheduler import turns


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL", "aiostore")


def parks(store: EventStore, handler: Any, **options: Any) -> Consumer:
    return consumer(store, handler, on_error="park", **options)


async def parked_ids(mailer: Consumer) -> list[int]:
    return [parked.event.event_id for parked in await mailer.parked()]


async def test_a_poisoned_stream_is_parked_whole_and_others_go_on(store: EventStore) -> None:
    await fill(store, 3, 4)
    seen = Seen(lambda event: (event.stream_id, event.version) == ("s1", 2))
    async with parks(store, seen) as mailer:
        await idle(mailer)
        await fill(store, 3, 1)
        await idle(mailer)
        assert seen.by_stream() == {"s0": [1, 2, 3, 4, 5], "s1": [1], "s2": [1, 2, 3, 4, 5]}
        first, *later = await mailer.parked()
        assert (first.event.stream_id, first.event.version) == ("s1", 2)
        assert (first.error, first.attempts) == ("ValueError: event 5 is refused", 3)
        assert [(each.event.version, each.error, each.attempts) for each in later] == [(n, None, 0) for n in (3, 4, 5)]
        assert len(await mailer.parked(limit=2)) == 2
        assert mailer.stats().parked_count == 1


async def test_retried_they_are_handled_in_order_and_what_comes_waits_behind(store: EventStore) -> None:
    await fill(store, 2, 4)
    seen = Gated(lambda event: event.event_id == 3)
    seen.gate.set()
    async with parks(store, seen) as mailer:
        await idle(mailer)
        seen.refuses = lambda event: False
        seen.gate.clear()
        assert await mailer.retry_parked("s0") == 1
        await becomes(lambda: "s0" in seen.at_once)
        await fill(store, 2, 2)
        await turns(20)
        seen.gate.set()
        await idle(mailer)
        assert seen.by_stream() == {"s0": [1, 2, 3, 4, 5, 6], "s1": [1, 2, 3, 4, 5, 6]}
        assert await mailer.parked() == []
        assert mailer.stats().parked_count == 0
        assert await mailer.retry_parked() == 0
        assert await mailer.retry_parked("s0") == 0


async def test_what_fails_again_is_parked_there(store: EventStore) -> None:
    await fill(store, 1, 6)
    seen = Seen(lambda event: event.event_id == 2)
    async with parks(store, seen) as mailer:
        await idle(mailer)
        seen.refuses = lambda event: event.event_id == 5
        await mailer.retry_parked()
        await idle(mailer)
        assert seen.ids == [1, 2, 3, 4]
        first, later = await mailer.parked()
        assert (first.event.event_id, first.error, later.event.event_id) == (5, "ValueError: event 5 is refused", 6)


async def test_parked_events_outlive_the_consumer_and_are_retried_by_another(store: EventStore) -> None:
    await fill(store, 2, 3)
    seen = Seen(lambda event: event.event_id == 1)
    async with parks(store, seen) as mailer:
        await idle(mailer)
    async with await reopen(store) as again:
        await fill(again, 2, 1)
        mailer = parks(again, seen)
        assert await parked_ids(mailer) == [1, 3, 5], "as far as the consumer came"
        async with mailer:
            await idle(mailer)
            assert await parked_ids(mailer) == [1, 3, 5, 7]
        seen.refuses = lambda event: False
        await mailer.retry_parked()  # while nobody runs
        async with mailer:
            await idle(mailer)
    assert seen.by_stream() == {"s0": [1, 2, 3, 4], "s1": [1, 2, 3, 4]}
    assert len(seen.ids) == 8


async def test_a_crash_amid_a_retry_loses_nothing(store: EventStore) -> None:
    await fill(store, 1, 40)
    seen = Seen(lambda event: event.event_id == 1)
    async with parks(store, seen) as mailer:
        await idle(mailer)
    seen.refuses = lambda event: False
    await mailer.retry_parked()
    for _ in range(5):
        mailer = parks(store, seen, lease_s=0.5)
        await mailer.__aenter__()
        await turns(60)
        await kill(mailer)
        seen.at_once.clear()
    async with parks(store, seen, lease_s=0.5) as mailer:
        await idle(mailer)
        assert await mailer.parked() == []
    assert sorted(set(seen.ids)) == list(range(1, 41))
    firsts = list(dict.fromkeys(seen.ids))
    assert firsts == sorted(firsts), "in order, though some came twice"


async def test_skipped_events_are_passed_over_for_good(store: EventStore) -> None:
    await fill(store, 2, 5)
    seen = Seen(lambda event: event.event_id == 3)
    async with parks(store, seen) as mailer:
        await idle(mailer)
        assert await parked_ids(mailer) == [3, 5, 7, 9]
        await mailer.skip_parked(7)
        assert await parked_ids(mailer) == [3, 5, 9]
        await idle(mailer)
        assert seen.by_stream()["s0"] == [1], "it waits for another event still"
        await mailer.skip_parked(3)
        await idle(mailer)
        assert seen.by_stream() == {"s0": [1, 3, 5], "s1": [1, 2, 3, 4, 5]}
        assert await mailer.parked() == []
        await fill(store, 1, 1)
        await idle(mailer)
        assert seen.by_stream()["s0"] == [1, 3, 5, 6]


async def test_only_what_is_parked_is_skipped(store: EventStore) -> None:
    for number in range(6):
        await store.append("s", "A" if number % 2 else "B", {})
    seen = Seen(lambda event: event.event_id == 4)
    async with parks(store, seen, query=Query.where(types="A")) as mailer:
        await idle(mailer)
        for event_id in (2, 5, 7, 1000):
            with pytest.raises(LookupError, match=f"event {event_id} is not parked"):
                await mailer.skip_parked(event_id)
        assert await parked_ids(mailer) == [4, 6]
        with pytest.raises(InvalidEvent):
            await mailer.retry_parked("")


async def test_a_query_holds_for_what_is_parked_too(store: EventStore) -> None:
    for number in range(10):
        await store.append("s", "A" if number % 2 else "B", {})
    seen = Seen(lambda event: event.event_id == 4)
    async with parks(store, seen, query=Query.where(types="A")) as mailer:
        await idle(mailer)
        assert await parked_ids(mailer) == [4, 6, 8, 10]
        seen.refuses = lambda event: False
        await mailer.retry_parked()
        await idle(mailer)
    assert seen.ids == [2, 4, 6, 8, 10]


async def test_what_is_parked_of_something_else_than_streams(store: EventStore) -> None:
    for number in range(8):
        await store.append(f"s{number}", "E", {}, tags=[f"customer:{number % 2}"])
    seen = Seen(lambda event: event.event_id == 3)
    async with parks(store, seen, order_by=lambda event: event.tags[0]) as mailer:
        await idle(mailer)
        assert await parked_ids(mailer) == [3, 5, 7]
        await mailer.skip_parked(5)
        seen.refuses = lambda event: False
        assert await mailer.retry_parked("customer:0") == 1
        await idle(mailer)
    assert [event_id for event_id in seen.ids if event_id % 2] == [1, 3, 7]


async def test_long_parked_streams_take_no_memory_and_come_in_order(store: EventStore) -> None:
    await store.append_batch("s", [("E", {"n": n}) for n in range(1500)])
    seen = Seen(lambda event: event.event_id == 2)
    async with parks(store, seen, window_events=100) as mailer:
        await idle(mailer)
        assert len(await mailer.parked()) == 1499
        work = mailer._work
        assert work is not None
        assert sum(len(lane.events) for lane in work.lanes.parked.values()) == 0
        seen.refuses = lambda event: False
        await mailer.retry_parked()
        await idle(mailer)
    assert seen.ids == list(range(1, 1501))


async def test_an_error_that_cannot_be_shown_or_stored_is_parked_all_the_same(store: EventStore) -> None:
    class Worst(Exception):
        def __str__(self) -> str:
            raise ZeroDivisionError

    errors: list[Exception] = [Worst(), ValueError("\ud800" + "x" * 10_000), ValueError("")]
    for number, _ in enumerate(errors):
        await store.append(f"s{number}", "E", {})

    async def handle(event: Event) -> None:
        raise errors[event.event_id - 1]

    async with parks(store, handle) as mailer:
        await idle(mailer)
        shown = [parked.error or "" for parked in await mailer.parked()]
    assert shown[0] == "Worst (which cannot be shown: ZeroDivisionError)"
    assert shown[1].startswith("ValueError: ?xxx")
    assert len(shown[1]) < 2100
    assert shown[2] == "ValueError: "


async def test_asked_for_by_many_at_once(store: EventStore) -> None:
    await fill(store, 10, 3)
    seen = Seen(lambda event: event.version == 2)
    async with parks(store, seen) as mailer:
        await idle(mailer)
        seen.refuses = lambda event: False
        await asyncio.gather(
            *(mailer.retry_parked(f"s{n}") for n in range(5)), *(mailer.skip_parked(11 + n) for n in range(5, 10))
        )
        await idle(mailer)
        assert await mailer.parked() == []
    assert {stream: len(versions) for stream, versions in seen.by_stream().items()} == {
        f"s{n}": 3 if n < 5 else 2 for n in range(10)
    }
