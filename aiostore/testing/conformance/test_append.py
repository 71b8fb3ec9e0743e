"""Appends: what they store and return, expected versions, all or nothing, one order, timestamps, bounds of names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from typing import Any

import pytest

from aiostore import (
    NO_STREAM,
    STREAM_EXISTS,
    ConcurrencyConflict,
    Event,
    EventStore,
    InvalidEvent,
    Limits,
    NewEvent,
    StreamAppend,
)
from aiostore.events import StreamState
from aiostore.testing.conformance import ids, outcome, reopen
from aiostore.testing.conformance.fixtures import OpenStore

# What is stored and returned


async def test_append_returns_the_stored_event(store: EventStore) -> None:
    event = await store.append("cart-1", "ItemAdded", {"sku": "A"}, metadata={"user": 7}, tags=["sku:A", "big"])
    assert (event.event_id, event.stream_id, event.version) == (1, "cart-1", 1)
    assert (event.event_type, event.data, event.metadata) == ("ItemAdded", {"sku": "A"}, {"user": 7})
    assert event.tags == ("sku:A", "big")


async def test_metadata_and_tags_are_empty_unless_given(store: EventStore) -> None:
    event = await store.append("s", "T", {})
    assert (event.data, event.metadata, event.tags) == ({}, {}, ())


async def test_what_append_returns_equals_what_a_reader_gets(store: EventStore) -> None:
    returned = [await store.append("s", "T", {"n": 1.5}, metadata={"m": [None]}, tags={"t"})]
    returned += await store.append_batch("s", [("T", {"ü": "\u2028"}), ("T", {}, {})])
    returned += await store.append_streams([StreamAppend("a", [("T", {})]), StreamAppend("b", [("T", {})])])
    assert await store.read_all().to_list() == returned


async def test_empty_metadata_is_as_no_metadata(store: EventStore) -> None:
    class Nothing(dict[str, Any]):
        pass

    events = await store.append_batch("s", [("T", {}, None), ("T", {}, {}), ("T", {}, Nothing())])
    assert [event.metadata for event in events] == [{}, {}, {}]
    assert await store.read_all().to_list() == events


async def test_append_batch_takes_pairs_triples_and_new_events(store: EventStore) -> None:
    await store.append_batch(
        "s", [("A", {"n": 1}), ("B", {"n": 2}, {"m": 2}), NewEvent("C", {"n": 3}, {"m": 3}, ["t"]), NewEvent("D", {})]
    )
    read = await store.read_all().to_list()
    assert [(event.event_type, event.metadata, event.tags) for event in read] == [
        ("A", {}, ()),
        ("B", {"m": 2}, ()),
        ("C", {"m": 3}, ("t",)),
        ("D", {}, ()),
    ]


async def test_append_batch_takes_any_iterable(store: EventStore) -> None:
    events = await store.append_batch("s", (("T", {"n": n}) for n in range(1200)))
    assert ids(events) == list(range(1, 1201))
    assert [event.data["n"] for event in events] == list(range(1200))


async def test_tags_keep_their_order_and_lose_doubles(store: EventStore) -> None:
    event = await store.append("s", "T", {}, tags=iter(["b", "a", "b", "c", "a"]))
    assert event.tags == ("b", "a", "c")


async def test_a_bare_string_is_one_tag(store: EventStore) -> None:
    event = await store.append("s", "T", {}, tags="paid")
    assert event.tags == ("paid",)


async def test_names_may_be_members_of_a_string_enum(store: EventStore) -> None:
    class Name(StrEnum):
        CART = "cart"

    event = await store.append(Name.CART, Name.CART, {}, tags=[Name.CART])
    assert [type(name) for name in (event.stream_id, event.event_type, *event.tags)] == [str, str, str]
    assert await store.stream_version("cart") == 1


# One order


async def test_event_ids_are_dense_and_versions_count_within_each_stream(store: EventStore) -> None:
    for stream_id in "abacab":
        await store.append(stream_id, "T", {})
    read = await store.read_all().to_list()
    assert [(e.event_id, e.stream_id, e.version) for e in read] == [
        (1, "a", 1),
        (2, "b", 1),
        (3, "a", 2),
        (4, "c", 1),
        (5, "a", 3),
        (6, "b", 2),
    ]


async def test_concurrent_appends_get_dense_ids_and_each_caller_its_own_event(store: EventStore) -> None:
    events = await asyncio.gather(*(store.append(f"s{n % 7}", "T", {"n": n}) for n in range(300)))
    assert [event.data["n"] for event in events] == list(range(300))
    assert sorted(ids(events)) == list(range(1, 301))
    read = await store.read_all().to_list()
    assert ids(read) == list(range(1, 301))
    assert {event.data["n"] for event in read} == set(range(300))


async def test_versions_are_dense_in_every_stream_of_a_crowd(store: EventStore) -> None:
    await asyncio.gather(*(store.append(f"s{n % 7}", "T", {"n": n}) for n in range(300)))
    for stream in range(7):
        read = await store.read_stream(f"s{stream}").to_list()
        assert [event.version for event in read] == list(range(1, len(read) + 1))
        assert ids(read) == sorted(ids(read))


async def test_events_of_a_batch_stand_together(store: EventStore) -> None:
    batches = await asyncio.gather(*(store.append_batch("s", [("T", {"b": b})] * 5) for b in range(40)))
    for batch in batches:
        assert ids(batch) == list(range(batch[0].event_id, batch[0].event_id + 5))
    assert sorted(event_id for batch in batches for event_id in ids(batch)) == list(range(1, 201))


async def test_head_and_stream_version_count_the_events(store: EventStore) -> None:
    assert (await store.head(), await store.stream_version("s")) == (0, 0)
    await store.append_batch("s", [("T", {})] * 3)
    await store.append("other", "T", {})
    assert (await store.head(), await store.stream_version("s"), await store.stream_version("none")) == (4, 3, 0)


async def test_an_acknowledged_event_is_there_for_whoever_asks_next(store: EventStore) -> None:
    async def writer(stream_id: str) -> None:
        for number in range(1, 21):
            event = await store.append(stream_id, "T", {})
            assert await store.stream_version(stream_id) == number
            assert await store.head() >= event.event_id
            assert (await store.read_stream(stream_id, from_version=number).to_list()) == [event]

    await asyncio.gather(*(writer(f"s{n}") for n in range(8)))


async def test_order_and_numbers_go_on_in_a_store_opened_anew(store: EventStore) -> None:
    events = await store.append_batch("s", [("T", {"n": n}) for n in range(3)])
    async with await reopen(store) as again:
        assert await again.head() == 3
        event = await again.append("s", "T", {"n": 3}, expected_version=3)
        assert (event.event_id, event.version) == (4, 4)
        assert await again.read_all().to_list() == [*events, event]


# Expected versions


@pytest.mark.parametrize(
    ("stored", "expected", "passes"),
    [
        (0, None, True),
        (2, None, True),
        (0, NO_STREAM, True),
        (2, NO_STREAM, False),
        (0, STREAM_EXISTS, False),
        (2, STREAM_EXISTS, True),
        (2, 2, True),
        (2, 1, False),
        (2, 3, False),
        (0, 1, False),
        (2, 2**63, False),
    ],
)
async def test_expected_version(store: EventStore, stored: int, expected: int | StreamState, passes: bool) -> None:
    await store.append_batch("s", [("T", {})] * stored)
    result = await outcome(store.append("s", "T", {}, expected_version=expected))
    assert isinstance(result, Event) is passes
    assert await store.stream_version("s") == stored + passes


async def test_a_conflict_names_the_stream_and_both_versions(store: EventStore) -> None:
    await store.append_batch("s", [("T", {})] * 2)
    with pytest.raises(ConcurrencyConflict) as caught:
        await store.append("s", "T", {}, expected_version=5)
    assert (caught.value.stream_id, caught.value.expected, caught.value.actual) == ("s", 5, 2)
    with pytest.raises(ConcurrencyConflict) as caught:
        await store.append("new", "T", {}, expected_version=STREAM_EXISTS)
    assert (caught.value.stream_id, caught.value.expected, caught.value.actual) == ("new", STREAM_EXISTS, 0)


async def test_of_200_tasks_with_the_same_expected_version_one_wins(store: EventStore) -> None:
    results = await asyncio.gather(
        *(outcome(store.append("s", "T", {"n": n}, expected_version=NO_STREAM)) for n in range(200))
    )
    conflicts = [result for result in results if isinstance(result, ConcurrencyConflict)]
    assert len(conflicts) == 199
    assert {conflict.actual for conflict in conflicts} == {1}
    assert await store.head() == 1


async def test_200_tasks_racing_on_one_stream_have_one_winner_for_each_version(store: EventStore) -> None:
    won: dict[int, int] = {}

    async def racer(number: int) -> None:
        for version in range(10):
            result = await outcome(store.append("s", "T", {"n": number}, expected_version=version))
            if isinstance(result, Event):
                assert result.version not in won
                won[result.version] = number
            else:
                assert isinstance(result, ConcurrencyConflict)
                assert result.actual > version

    await asyncio.gather(*(racer(n) for n in range(200)))
    read = await store.read_stream("s").to_list()
    assert {event.version: event.data["n"] for event in read} == won
    assert ids(read) == list(range(1, 11))


async def test_200_tasks_that_retry_all_get_in(store: EventStore) -> None:
    async def racer(number: int) -> None:
        version = 0
        while True:
            result = await outcome(store.append("s", "T", {"n": number}, expected_version=version))
            if isinstance(result, Event):
                assert result.version == version + 1
                return
            assert isinstance(result, ConcurrencyConflict)
            version = result.actual

    await asyncio.gather(*(racer(n) for n in range(200)))
    read = await store.read_stream("s").to_list()
    assert [event.version for event in read] == list(range(1, 201))
    assert {event.data["n"] for event in read} == set(range(200))


async def test_a_conflict_in_the_middle_of_a_group_fails_alone(store: EventStore) -> None:
    results = await asyncio.gather(
        *(outcome(store.append("s", "T", {"n": n}, expected_version=99 if n == 5 else None)) for n in range(10))
    )
    assert [isinstance(result, Event) for result in results] == [n != 5 for n in range(10)]
    read = await store.read_all().to_list()
    assert ids(read) == list(range(1, 10))
    assert {event.data["n"] for event in read} == set(range(10)) - {5}


async def test_appends_of_one_group_see_the_versions_the_earlier_ones_leave(store: EventStore) -> None:
    await store.append("s", "T", {})  # so that all ten are judged without asking the engine, in order
    events = await asyncio.gather(*(store.append("s", "T", {}, expected_version=n) for n in range(1, 11)))
    assert [event.version for event in events] == list(range(2, 12))


# All or nothing

BAD_EVENTS: list[tuple[Any, str]] = [
    (("T", {"n": float("nan")}), "data"),
    (("T", []), "data"),
    (("", {}), "event_type"),
    (("T", {}, {"m": b""}), "metadata"),
    (NewEvent("T", {}, tags=["ok", "\n"]), "tags[1]"),
    (NewEvent("T", {}, tags=[f"t{n}" for n in range(65)]), "tags"),
    ("T", ""),
    (("T",), ""),
    (["T", {}], ""),
    (None, ""),
]


@pytest.mark.parametrize(("bad", "where"), BAD_EVENTS)
async def test_a_batch_whose_last_event_is_bad_leaves_nothing(store: EventStore, bad: Any, where: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        await store.append_batch("s", [("T", {})] * 3 + [bad])
    assert caught.value.where.startswith(f"events[3].{where}" if where else "events[3]")
    assert (await store.head(), await store.stream_version("s")) == (0, 0)


@pytest.mark.parametrize(("bad", "where"), BAD_EVENTS)
async def test_a_bad_event_of_the_last_stream_leaves_nothing(store: EventStore, bad: Any, where: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        await store.append_streams([StreamAppend("a", [("T", {})]), StreamAppend("b", [("T", {}), bad])])
    assert caught.value.where.startswith(f"appends[1].events[1].{where}" if where else "appends[1].events[1]")
    assert await store.head() == 0


async def test_a_bad_event_late_in_a_long_batch_is_named(store: EventStore) -> None:
    with pytest.raises(InvalidEvent) as caught:
        await store.append_batch("s", [("T", {"n": 1})] * 1300 + [("T", {"n": {1}})])
    assert caught.value.where == "events[1300].data.n"
    assert await store.head() == 0


async def test_an_iterable_that_fails_leaves_nothing(store: EventStore) -> None:
    def events() -> Any:
        yield ("T", {})
        raise LookupError("no more")

    with pytest.raises(LookupError):
        await store.append_batch("s", events())
    assert await store.head() == 0


async def test_bad_input_fails_alone_among_concurrent_appends(store: EventStore) -> None:
    results = await asyncio.gather(
        *(outcome(store.append("s", "T", {"n": {n} if n % 3 == 0 else n})) for n in range(30))
    )
    assert [isinstance(result, InvalidEvent) for result in results] == [n % 3 == 0 for n in range(30)]
    assert ids(await store.read_all().to_list()) == list(range(1, 21))


async def test_append_streams_numbers_the_events_in_the_order_given(store: EventStore) -> None:
    await store.append("b", "T", {})
    events = await store.append_streams(
        [StreamAppend("a", [("T", {})] * 2), StreamAppend("b", [("T", {})], 1), StreamAppend("c", [("T", {})], 0)]
    )
    assert [(e.event_id, e.stream_id, e.version) for e in events] == [
        (2, "a", 1),
        (3, "a", 2),
        (4, "b", 2),
        (5, "c", 1),
    ]


async def test_append_streams_takes_many_streams(store: EventStore) -> None:
    for version in (1, 2):
        parts = [StreamAppend(f"s{n}", [("T", {})], version - 1) for n in range(1000)]
        events = await store.append_streams(parts)
        assert [(event.stream_id, event.version) for event in events] == [(f"s{n}", version) for n in range(1000)]
    with pytest.raises(ConcurrencyConflict) as caught:
        await store.append_streams([StreamAppend(f"s{n}", [("T", {})], 2 if n < 999 else 3) for n in range(1000)])
    assert caught.value.stream_id == "s999"
    assert await store.head() == 2000


async def test_append_streams_stores_nothing_when_one_stream_conflicts(store: EventStore) -> None:
    await store.append("b", "T", {})
    with pytest.raises(ConcurrencyConflict) as caught:
        await store.append_streams(
            [StreamAppend("a", [("T", {})], NO_STREAM), StreamAppend("b", [("T", {})], NO_STREAM)]
        )
    assert caught.value.stream_id == "b"
    assert (await store.head(), await store.stream_version("a")) == (1, 0)


async def test_append_streams_refuses_a_stream_named_twice(store: EventStore) -> None:
    with pytest.raises(InvalidEvent) as caught:
        await store.append_streams([StreamAppend(stream_id, [("T", {})]) for stream_id in "aba"])
    assert caught.value.where == "appends[2].stream_id"
    assert await store.head() == 0


async def test_append_streams_of_nothing_stores_nothing(store: EventStore) -> None:
    assert await store.append_streams([]) == []
    assert await store.append_streams([StreamAppend("a", []), StreamAppend("b", [])]) == []
    assert await store.head() == 0


async def test_append_streams_may_check_a_stream_that_gets_no_events(store: EventStore) -> None:
    with pytest.raises(ConcurrencyConflict):
        await store.append_streams([StreamAppend("a", [("T", {})]), StreamAppend("b", [], STREAM_EXISTS)])
    events = await store.append_streams([StreamAppend("a", [("T", {})]), StreamAppend("b", [], NO_STREAM)])
    assert [event.stream_id for event in events] == ["a"]


async def test_crossing_append_streams_are_each_whole(store: EventStore) -> None:
    async def transfer(number: int) -> None:
        parts = [StreamAppend("a", [("T", {"n": number})]), StreamAppend("b", [("T", {"n": number})])]
        await store.append_streams(parts[:: 1 if number % 2 else -1])

    await asyncio.gather(*(transfer(n) for n in range(50)))
    read = await store.read_all().to_list()
    assert [first.data for first in read[::2]] == [second.data for second in read[1::2]]
    assert [await store.stream_version(stream_id) for stream_id in "ab"] == [50, 50]


async def test_empty_events_store_nothing_and_the_checks_still_run(store: EventStore) -> None:
    assert await store.append_batch("s", []) == []
    assert await store.append_batch("s", [], expected_version=NO_STREAM) == []
    with pytest.raises(ConcurrencyConflict):
        await store.append_batch("s", [], expected_version=STREAM_EXISTS)
    with pytest.raises(InvalidEvent):
        await store.append_batch("", [])
    assert (await store.head(), await store.stream_version("s")) == (0, 0)


# Cancellation


async def test_an_append_cancelled_before_its_group_is_not_stored(store: EventStore) -> None:
    await store.append("s", "T", {"n": 0})
    tasks = [asyncio.ensure_future(store.append("s", "T", {"n": n})) for n in range(1, 11)]
    await asyncio.sleep(0)  # each is staged; the group is formed in the next turn of the loop
    for task in tasks[::2]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(result, asyncio.CancelledError) for result in results] == [True, False] * 5
    assert {event.data["n"] for event in await store.read_all().to_list()} == {0, 2, 4, 6, 8, 10}


async def test_appends_cancelled_at_any_moment_leave_a_usable_store_and_dense_ids(store: EventStore) -> None:
    acknowledged = set()
    for turns in range(12):
        tasks = [asyncio.ensure_future(store.append("s", "T", {"n": 100 * turns + n})) for n in range(20)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Event):
                acknowledged.add(result.data["n"])
        assert len([task for task in tasks[1::2] if task.exception()]) == 0
    read = await store.read_all().to_list()
    assert ids(read) == list(range(1, len(read) + 1))
    numbers = [event.data["n"] for event in read]
    assert len(set(numbers)) == len(numbers)
    assert acknowledged <= set(numbers)


# Timestamps


def ticking(*seconds: float) -> Callable[[], datetime]:
    """A clock that shows these times after the start of 2026, and then stands still."""
    times = list(seconds)
    return lambda: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=times.pop(0) if times[1:] else times[0])


async def seconds_stored(store: EventStore) -> list[float]:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    return [(event.timestamp - start).total_seconds() for event in await store.read_all().to_list()]


async def test_the_timestamp_is_the_clock_s_in_utc(open_store: OpenStore) -> None:
    zone = timezone(timedelta(hours=5, minutes=30))
    store = await open_store(clock=lambda: datetime(2026, 3, 1, 2, 0, 0, 123456, tzinfo=zone))
    event = await store.append("s", "T", {})
    assert event.timestamp == datetime(2026, 2, 28, 20, 30, 0, 123456, tzinfo=UTC)
    assert event.timestamp.tzinfo is UTC


async def test_without_a_clock_the_timestamp_is_the_system_s(store: EventStore) -> None:
    before = datetime.now(UTC)
    event = await store.append("s", "T", {})
    assert before <= event.timestamp <= datetime.now(UTC)


async def test_timestamps_never_go_back(open_store: OpenStore) -> None:
    store = await open_store(clock=ticking(10, 20, 5, 19.999999, 20.000001, 0, 30))
    for _ in range(7):
        await store.append("s", "T", {})
    assert await seconds_stored(store) == [10, 20, 20, 20, 20.000001, 20.000001, 30]


async def test_a_commit_has_one_timestamp(open_store: OpenStore) -> None:
    store = await open_store(clock=ticking(1, 2, 3, 4, 5))
    await store.append_batch("a", [("T", {})] * 3)
    await store.append_streams([StreamAppend("a", [("T", {})]), StreamAppend("b", [("T", {})])])
    assert await seconds_stored(store) == [1, 1, 1, 2, 2]


async def test_timestamps_do_not_go_back_when_a_store_is_opened_anew(open_store: OpenStore) -> None:
    store = await open_store(clock=ticking(10))
    await store.append("s", "T", {})
    async with await reopen(store, clock=ticking(5, 11)) as again:
        await again.append("s", "T", {})
        await again.append("s", "T", {})
        assert await seconds_stored(again) == [10, 10, 11]


async def test_a_clock_that_fails_stops_one_append_and_no_other(open_store: OpenStore) -> None:
    times = iter([datetime(2026, 1, 1, tzinfo=UTC), None, datetime(2026, 1, 2, tzinfo=UTC)])
    store = await open_store(clock=lambda: next(times))
    await store.append("s", "T", {"n": 1})
    with pytest.raises(Exception, match="NoneType"):
        await store.append("s", "T", {"n": 2})
    await store.append("s", "T", {"n": 3})
    assert [event.data["n"] for event in await store.read_all().to_list()] == [1, 3]


# Bounds and bad arguments


@pytest.mark.parametrize(
    "name", ["s" * 1024, "é" * 512, "🜁" * 256, " ", "a b", "a/b", '"\\', "\u2028", "\u00a0", "ä\u0308"]
)
async def test_stream_ids_of_up_to_1024_bytes_are_taken(store: EventStore, name: str) -> None:
    event = await store.append(name, "T", {})
    assert event.stream_id == name
    assert await store.read_stream(name).to_list() == [event]
    assert await store.stream_version(name) == 1


@pytest.mark.parametrize("name", ["t" * 256, "é" * 128, "🜁" * 64, " ", "a b", '"\\', "\u2029", "\u00a0"])
async def test_types_tags_and_keys_of_up_to_256_bytes_are_taken(store: EventStore, name: str) -> None:
    event = await store.append("s", name, {}, tags=[name], idempotency_key=name)
    assert (event.event_type, event.tags) == (name, (name,))
    assert await store.append("s", name, {}, tags=[name], idempotency_key=name) == event
    assert await store.read_all().to_list() == [event]


BAD_NAMES: list[Any] = ["", "a\nb", "\x00", "\x1f", "\x7f", "\x85", "\ud800", "a\udfff", None, 1, b"s", ["s"], 1.5]


@pytest.mark.parametrize("name", [*BAD_NAMES, "s" * 1025, "é" * 512 + "s"])
async def test_a_bad_stream_id_is_refused_everywhere(store: EventStore, name: Any) -> None:
    for call in (
        lambda: store.append(name, "T", {}),
        lambda: store.append_batch(name, []),
        lambda: store.append_batch(name, [("T", {})]),
        lambda: store.stream_version(name),
    ):
        with pytest.raises(InvalidEvent) as caught:
            await call()
        assert caught.value.where == "stream_id"
    with pytest.raises(InvalidEvent) as caught:
        await store.append_streams([StreamAppend("a", [("T", {})]), StreamAppend(name, [])])
    assert caught.value.where == "appends[1].stream_id"
    with pytest.raises(InvalidEvent):
        store.read_stream(name)
    assert await store.head() == 0


@pytest.mark.parametrize("name", [*BAD_NAMES, "t" * 257, "é" * 128 + "t"])
async def test_a_bad_event_type_is_refused(store: EventStore, name: Any) -> None:
    with pytest.raises(InvalidEvent) as caught:
        await store.append("s", name, {})
    assert caught.value.where == "event_type"
    with pytest.raises(InvalidEvent) as caught:
        await store.append_batch("s", [("T", {}), (name, {})])
    assert caught.value.where == "events[1].event_type"
    assert await store.head() == 0


@pytest.mark.parametrize("name", [*BAD_NAMES, "t" * 257, "é" * 128 + "t"])
async def test_a_bad_tag_is_refused(store: EventStore, name: Any) -> None:
    with pytest.raises(InvalidEvent) as caught:
        await store.append("s", "T", {}, tags=["ok", name])
    assert caught.value.where == "tags[1]"
    assert await store.head() == 0


@pytest.mark.parametrize("tags", ["", "\n", 0, 1, 1.5, False, object()])
async def test_tags_that_are_no_names_are_refused(store: EventStore, tags: Any) -> None:
    with pytest.raises(InvalidEvent) as caught:
        await store.append("s", "T", {}, tags=tags)
    assert caught.value.where.startswith("tags")
    assert await store.head() == 0


async def test_an_event_has_at_most_64_tags(store: EventStore) -> None:
    tags = [f"t{n}" for n in range(64)]
    assert (await store.append("s", "T", {}, tags=[*tags, "t0"])).tags == tuple(tags)
    with pytest.raises(InvalidEvent) as caught:
        await store.append("s", "T", {}, tags=[*tags, "t64"])
    assert caught.value.where == "tags"


@pytest.mark.parametrize("key", [name for name in BAD_NAMES if name is not None] + ["k" * 257, "é" * 128 + "k"])
async def test_a_bad_idempotency_key_is_refused(store: EventStore, key: Any) -> None:
    for call in (
        lambda: store.append("s", "T", {}, idempotency_key=key),
        lambda: store.append_batch("s", [], idempotency_key=key),
        lambda: store.append_streams([], idempotency_key=key),
    ):
        with pytest.raises(InvalidEvent) as caught:
            await call()
        assert caught.value.where == "idempotency_key"
    assert await store.head() == 0


@pytest.mark.parametrize("version", [-1, "1", 1.0, True, object()])
async def test_a_bad_expected_version_is_refused(store: EventStore, version: Any) -> None:
    for call in (
        lambda: store.append("s", "T", {}, expected_version=version),
        lambda: store.append_batch("s", [], expected_version=version),
        lambda: store.append_streams([StreamAppend("s", [], version)]),
    ):
        with pytest.raises(ValueError, match="expected_version"):
            await call()


@pytest.mark.parametrize("condition", ["T", 1, object()])
async def test_a_bad_condition_is_refused(store: EventStore, condition: Any) -> None:
    for call in (
        lambda: store.append("s", "T", {}, condition=condition),
        lambda: store.append_batch("s", [], condition=condition),
        lambda: store.append_streams([], condition=condition),
    ):
        with pytest.raises(TypeError, match="condition"):
            await call()


@pytest.mark.parametrize("events", ["TT", b"TT", {"T": {}}, 1, None, NewEvent("T", {}), object()])
async def test_events_that_are_no_iterable_of_events_are_refused(store: EventStore, events: Any) -> None:
    with pytest.raises(InvalidEvent) as caught:
        await store.append_batch("s", events)
    assert caught.value.where == "events"
    with pytest.raises(InvalidEvent) as caught:
        await store.append_streams([StreamAppend("s", events)])
    assert caught.value.where == "appends[0].events"


@pytest.mark.parametrize("part", [None, "s", ("s", []), {"stream_id": "s"}])
async def test_append_streams_takes_stream_appends_only(store: EventStore, part: Any) -> None:
    with pytest.raises(InvalidEvent) as caught:
        await store.append_streams([StreamAppend("a", [("T", {})]), part])
    assert caught.value.where == "appends[1]"
    assert await store.head() == 0


async def test_a_store_may_bound_its_events(open_store: OpenStore) -> None:
    store = await open_store(limits=Limits(event_bytes_max=100))
    event = await store.append("s", "T", {"x": "x" * 92})
    assert len(event.data["x"]) == 92  # and 8 bytes around it
    with pytest.raises(InvalidEvent, match="101 bytes"):
        await store.append("s", "T", {"x": "x" * 93})
    with pytest.raises(InvalidEvent, match="101 bytes"):
        await store.append("s", "T", {"x": "x" * 85}, metadata={"y": ""})
    with pytest.raises(InvalidEvent) as caught:
        await store.append_batch("s", [("T", {}), ("T", {"x": "x" * 93})])
    assert caught.value.where.startswith("events[1]")
    assert await store.head() == 1


async def test_a_store_may_bound_its_appends(open_store: OpenStore) -> None:
    store = await open_store(limits=Limits(append_bytes_max=10_000))
    assert len(await store.append_batch("s", [("T", {"x": "x" * 1000})] * 8)) == 8
    with pytest.raises(InvalidEvent, match="bytes"):
        await store.append_batch("s", [("T", {"x": "x" * 1000})] * 9)
    with pytest.raises(InvalidEvent, match="bytes"):
        await store.append_streams([StreamAppend(s, [("T", {"x": "x" * 1000})] * 3) for s in "abc"])
    assert await store.head() == 8


async def test_an_event_of_16_mib_is_stored_and_a_byte_more_is_not(store: EventStore) -> None:
    room = 16 * 1024 * 1024 - len('{"x":""}')
    with pytest.raises(InvalidEvent):
        await store.append("s", "T", {"x": "x" * (room + 1)})
    event = await store.append("s", "T", {"x": "x" * room})
    assert [len(read.data["x"]) for read in await store.read_all().to_list()] == [room]
    assert (await store.append("s", "T", {})).event_id == event.event_id + 1


async def test_an_append_of_64_mib_is_stored_and_more_is_not(store: EventStore) -> None:
    events = [("T", {"x": "x" * 8_000_000})] * 8
    with pytest.raises(InvalidEvent):
        await store.append_batch("s", [*events, ("T", {"x": "x" * 4_000_000})])
    assert len(await store.append_batch("s", events)) == 8
    assert [len(read.data["x"]) for read in await store.read_all().to_list()] == [8_000_000] * 8
