"""Reads from a time to a time: since <= timestamp < until, together with all other bounds."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiostore import Event, EventStore, Query
from aiostore.testing.conformance import ids, reopen
from aiostore.testing.conformance.fixtures import OpenStore
from aiostore.testing.conformance.test_reads import (
    REPEATABLE,
    STREAMS,
    all_arguments,
    fill,
    model_all,
    model_stream,
    some_events,
    stream_arguments,
)

START = datetime(2026, 1, 1, 12, tzinfo=UTC)
TICK = timedelta(microseconds=1)
EAST, WEST = timezone(timedelta(hours=14)), timezone(timedelta(hours=-12))


class Clock:
    """Stands still unless it is set."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """The clock of the stores below."""
    return Clock()


@pytest.fixture
async def timed(open_store: OpenStore, clock: Clock) -> EventStore:
    """A store with the events 1 at START, 2 to 4 in one commit a second later, 5 at the same time, 6 a second later."""
    store = await open_store(clock=clock)
    await store.append("s", "T", {})
    clock.now += timedelta(seconds=1)
    await store.append_batch("s", [("T", {}), ("U", {}), ("T", {})])
    await store.append("t", "T", {})
    clock.now += timedelta(seconds=1)
    await store.append("s", "T", {})
    return store


def at(seconds: float, microseconds: int = 0) -> datetime:
    return START + timedelta(seconds=seconds, microseconds=microseconds)


@pytest.mark.parametrize(
    ("bounds", "forwards"),
    [
        ({"since": None, "until": None}, [1, 2, 3, 4, 5, 6]),
        ({"since": at(-1)}, [1, 2, 3, 4, 5, 6]),
        ({"since": at(0)}, [1, 2, 3, 4, 5, 6]),
        ({"since": at(0, 1)}, [2, 3, 4, 5, 6]),
        ({"since": at(0.5)}, [2, 3, 4, 5, 6]),
        ({"since": at(1)}, [2, 3, 4, 5, 6]),
        ({"since": at(1, 1)}, [6]),
        ({"since": at(2)}, [6]),
        ({"since": at(2, 1)}, []),
        ({"since": at(99)}, []),
        ({"until": at(-1)}, []),
        ({"until": at(0)}, []),
        ({"until": at(0, 1)}, [1]),
        ({"until": at(1)}, [1]),
        ({"until": at(1, 1)}, [1, 2, 3, 4, 5]),
        ({"until": at(2)}, [1, 2, 3, 4, 5]),
        ({"until": at(2, 1)}, [1, 2, 3, 4, 5, 6]),
        ({"until": at(99)}, [1, 2, 3, 4, 5, 6]),
        ({"since": at(1), "until": at(1)}, []),
        ({"since": at(1), "until": at(1, 1)}, [2, 3, 4, 5]),
        ({"since": at(0.25), "until": at(0.75)}, []),
        ({"since": at(2), "until": at(1)}, []),
        ({"since": at(99), "until": at(-99)}, []),
        ({"since": at(1), "after": 3}, [4, 5, 6]),
        ({"since": at(1), "after": 1}, [2, 3, 4, 5, 6]),
        ({"since": at(1), "up_to": 3}, [2, 3]),
        ({"since": at(2), "up_to": 5}, []),
        ({"until": at(2), "up_to": 3}, [1, 2, 3]),
        ({"until": at(2), "up_to": 2**70}, [1, 2, 3, 4, 5]),
        ({"until": at(1), "after": 1}, []),
        ({"until": at(2), "after": 2**70}, []),
        ({"since": at(1), "until": at(2), "query": Query.where(types="T")}, [2, 4, 5]),
        ({"since": at(1), "until": at(2), "query": Query.where(stream_prefix="t")}, [5]),
    ],
)
async def test_since_is_inclusive_until_exclusive_and_backwards_only_reverses(
    timed: EventStore, bounds: dict[str, Any], forwards: list[int]
) -> None:
    assert ids(await timed.read_all(**bounds).to_list()) == forwards
    assert ids(await timed.read_all(**bounds, backwards=True).to_list()) == forwards[::-1]
    assert ids(await timed.read_all(**bounds, limit=2).to_list()) == forwards[:2]
    assert ids(await timed.read_all(**bounds, limit=2, backwards=True).to_list()) == forwards[::-1][:2]


async def test_windows_side_by_side_have_each_event_of_a_stream_once(timed: EventStore) -> None:
    edges = [None, at(0), at(0.5), at(1), at(1, 1), at(2), None]
    windows = [
        [event.version for event in await timed.read_stream("s", since=since, until=until).to_list()]
        for since, until in pairwise(edges)
    ]
    assert windows == [[], [1], [], [2, 3, 4], [], [5]]


async def test_an_empty_store_has_no_events_at_any_time(store: EventStore) -> None:
    assert await store.read_all(since=START).to_list() == []
    assert await store.read_all(until=START, backwards=True).to_list() == []
    assert await store.read_stream("none", since=START, until=START).to_list() == []


async def test_head_and_version_are_those_of_the_store_and_the_stream(timed: EventStore) -> None:
    windows: list[dict[str, Any]] = [{"since": at(1)}, {"until": at(1)}, {"since": at(99)}, {"until": at(-99)}]
    for window in windows:
        reader = timed.read_stream("s", **window)
        await reader.to_list()
        assert (reader.head, reader.version) == (6, 5)


@pytest.mark.parametrize("zone", [EAST, WEST, ZoneInfo("Asia/Kolkata"), timezone(timedelta(seconds=1, microseconds=7))])
async def test_a_time_of_another_zone_is_the_same_time(timed: EventStore, zone: tzinfo) -> None:
    window = timed.read_all(since=at(1).astimezone(zone), until=at(1, 1).astimezone(zone))
    assert ids(await window.to_list()) == [2, 3, 4, 5]
    assert ids(await timed.read_all(until=at(1).astimezone(zone)).to_list()) == [1]


async def test_the_hour_that_a_zone_has_twice_is_two_hours(open_store: OpenStore, clock: Clock) -> None:
    store = await open_store(clock=clock)
    berlin = ZoneInfo("Europe/Berlin")
    for hour in (0, 1):
        clock.now = datetime(2026, 10, 25, hour, 30, tzinfo=UTC)
        await store.append("s", "T", {})
    half_past_two = datetime(2026, 10, 25, 2, 30, tzinfo=berlin)
    assert ids(await store.read_all(since=half_past_two).to_list()) == [1, 2]
    assert ids(await store.read_all(since=half_past_two.replace(fold=1)).to_list()) == [2]
    assert ids(await store.read_all(until=half_past_two.replace(fold=1)).to_list()) == [1]


@pytest.mark.parametrize("zone", [UTC, EAST, WEST])
async def test_the_ends_of_time_are_before_and_after_everything(timed: EventStore, zone: tzinfo) -> None:
    first, last = datetime.min.replace(tzinfo=zone), datetime.max.replace(tzinfo=zone)
    everything = [1, 2, 3, 4, 5, 6]
    assert ids(await timed.read_all(since=first, until=last).to_list()) == everything
    assert ids(await timed.read_all(since=first).to_list()) == everything
    assert await timed.read_all(since=last).to_list() == []
    assert await timed.read_all(until=first).to_list() == []
    assert ids(await timed.read_stream("t", since=first, until=last).to_list()) == [5]


async def test_a_clock_near_the_ends_of_time(open_store: OpenStore, clock: Clock) -> None:
    store = await open_store(clock=clock)
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC) - TICK
    for clock.now in (first, last):
        await store.append("s", "T", {})
    assert ids(await store.read_all(since=datetime.min.replace(tzinfo=EAST)).to_list()) == [1, 2]
    assert ids(await store.read_all(since=first, until=first + TICK).to_list()) == [1]
    assert ids(await store.read_all(since=last).to_list()) == [2]
    assert ids(await store.read_all(until=last).to_list()) == [1]
    assert ids(await store.read_all(until=last + TICK).to_list()) == [1, 2]
    assert ids(await store.read_all(until=datetime.max.replace(tzinfo=WEST)).to_list()) == [1, 2]
    assert await store.read_all(since=datetime.max.replace(tzinfo=WEST)).to_list() == []


# Against the model

moments = st.builds(
    lambda ticks, zone: (START + ticks * TICK).astimezone(zone), st.integers(-2, 40), st.sampled_from((UTC, EAST, WEST))
)
windows = st.fixed_dictionaries({}, optional={"since": moments, "until": moments})


@pytest.fixture
async def sixty(open_store: OpenStore, clock: Clock) -> tuple[EventStore, list[Event]]:
    """A store with sixty mixed events, of which some came at the same time, and these."""
    store = await open_store(clock=clock)
    events: list[Event] = []
    news = some_events(60)
    for n in range(0, 60, 4):
        clock.now += (n % 3) * TICK
        events += await fill(store, news[n : n + 4])
    return store, events


def within(events: list[Event], window: dict[str, Any]) -> list[Event]:
    since, until = window.get("since"), window.get("until")
    return [
        event
        for event in events
        if (since is None or since <= event.timestamp) and (until is None or event.timestamp < until)
    ]


@settings(REPEATABLE, max_examples=100)
@given(window=windows, arguments=all_arguments, stream_id=st.sampled_from((*STREAMS, "none")), bounds=stream_arguments)
async def test_any_read_is_as_the_model_says(
    sixty: tuple[EventStore, list[Event]],
    window: dict[str, Any],
    arguments: dict[str, Any],
    stream_id: str,
    bounds: dict[str, Any],
) -> None:
    store, events = sixty
    chosen = within(events, window)
    assert await store.read_all(**window, **arguments).to_list() == model_all(chosen, **arguments)
    assert await store.read_stream(stream_id, **window, **bounds).to_list() == model_stream(chosen, stream_id, **bounds)


async def test_a_store_opened_anew_is_read_the_same(timed: EventStore) -> None:
    async with await reopen(timed) as again:
        assert ids(await again.read_all(since=at(1), until=at(2)).to_list()) == [2, 3, 4, 5]
        assert ids(await again.read_stream("s", since=at(1)).to_list()) == [2, 3, 4, 6]


async def test_every_event_of_a_long_log_is_found(open_store: OpenStore, clock: Clock) -> None:
    store = await open_store(clock=clock)
    for _ in range(300):
        clock.now += 2 * TICK
        await store.append_batch("s", [("T", {})] * 3)
    for n in range(0, 300, 7):
        moment = START + 2 * (n + 1) * TICK
        for since in (moment, moment - TICK):
            assert ids(await store.read_all(since=since, limit=2).to_list()) == [3 * n + 1, 3 * n + 2]
        assert ids(await store.read_all(until=moment + TICK, backwards=True, limit=2).to_list()) == [
            3 * n + 3,
            3 * n + 2,
        ]


# Readers


async def test_the_window_is_fixed_at_the_start_of_the_read(timed: EventStore) -> None:
    reader = timed.read_all(since=at(1), until=at(99))
    assert (await anext(reader)).event_id == 2
    await timed.append("s", "T", {})
    assert ids(await reader.to_list()) == [3, 4, 5, 6]


async def test_a_read_cancelled_at_any_moment_of_its_start_goes_on(timed: EventStore) -> None:
    for turns in range(12):
        reader = timed.read_all(since=at(1), until=at(2))
        task = asyncio.ensure_future(reader.to_list())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        if task.cancelled():
            assert ids(await reader.to_list()) == [2, 3, 4, 5]


# Bad arguments


class Nowhere(tzinfo):
    """A zone that does not know its offset, which makes a datetime naive."""

    def utcoffset(self, moment: datetime | None) -> None:
        return None

    dst = tzname = utcoffset


@pytest.mark.parametrize("name", ["since", "until"])
@pytest.mark.parametrize("value", [START.replace(tzinfo=None), START.replace(tzinfo=Nowhere())])
async def test_a_naive_datetime_is_refused(store: EventStore, name: str, value: datetime) -> None:
    window: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"{name} must be an aware datetime.*no time zone"):
        store.read_all(**window)
    with pytest.raises(ValueError, match=f"{name} must be an aware datetime.*no time zone"):
        store.read_stream("s", **window)


@pytest.mark.parametrize("name", ["since", "until"])
@pytest.mark.parametrize("value", [0, 1.5, "2026-01-01T00:00:00Z", START.date(), START.timetz(), True, object()])
async def test_what_is_not_a_datetime_is_refused(store: EventStore, name: str, value: Any) -> None:
    window: dict[str, Any] = {name: value}
    with pytest.raises(TypeError, match=f"{name} must be an aware datetime"):
        store.read_all(**window)
    with pytest.raises(TypeError, match=f"{name} must be an aware datetime"):
        store.read_stream("s", **window)
