"""A batch of events: taken in one step, checked in many, and the same as if it were checked at once."""

from __future__ import annotations

import asyncio
import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aiostore.batch
from aiostore import EventStore, InvalidEvent, NewEvent, StoreClosed, StreamAppend
from aiostore.batch import Batch
from aiostore.drafts import Draft, draft_events
from aiostore.limits import Limits

LIMITS = Limits()
MANY = 3000


class Kind(StrEnum):
    ADDED = "Added"


@dataclass
class Point:
    x: int


def plain(draft: Draft) -> tuple[Any, ...]:
    return draft.event_type, bytes(draft.data), bytes(draft.metadata), draft.tags, draft.size


async def came_to(events: Iterable[Any], limits: Limits = LIMITS) -> list[tuple[Any, ...]] | str:
    """The drafts of a batch, or the error that it raises."""
    try:
        return list(map(plain, await Batch(events, limits).drafts()))
    except InvalidEvent as error:
        return str(error)


def at_once(events: Iterable[Any], limits: Limits = LIMITS) -> list[tuple[Any, ...]] | str:
    try:
        return list(map(plain, draft_events(events, limits)))
    except InvalidEvent as error:
        return str(error)


GOOD: list[Callable[[], Any]] = [
    lambda: ("Added", {"n": 1, "deep": [{"a": None}, 1.5, True, "ü"]}),
    lambda: ("Added", {"n": 1}, {"user": {"name": "ann"}}),
    lambda: ("Added", {"n": (1, 2)}),
    lambda: ("Added", {"at": datetime(2026, 1, 1, tzinfo=UTC), "price": Decimal("1.5")}),
    lambda: ("Added", Point(3)),
    lambda: (Kind.ADDED, {"kind": Kind.ADDED}),
    lambda: ("Added", OrderedDict(a=1)),
    lambda: NewEvent("Added", {"n": 1}, {"user": 7}, ["a", "b", "a"]),
    lambda: NewEvent("Added", {"n": 1}, None, "bare"),
    lambda: NewEvent("Added", {}, {}, {"one"}),
    lambda: NewEvent(Kind.ADDED, {"n": 2**64 - 1}, tags=(tag for tag in "ab")),
    lambda: NewEvent("Added", Point(4), tags=("x",)),
]
BAD: list[Callable[[], Any]] = [
    lambda: ("Added", {"n": float("nan")}),
    lambda: ("Added", {1: 2}),
    lambda: ("Added", {"n": {1, 2}}),
    lambda: ("Added", {"n": b"x"}),
    lambda: ("Added", {"n": bytearray(b"x")}),
    lambda: ("Added", {"n": 2**64}),
    lambda: ("Added", {"n": "\ud800"}),
    lambda: ("Added", {"at": datetime(2026, 1, 1, tzinfo=UTC), "n": float("inf")}),
    lambda: ("Added", []),
    lambda: ("Added", {"n": object()}),
    lambda: ("Added", {}, {"n": memoryview(b"x")}),
    lambda: ("", {}),
    lambda: (5, {}),
    lambda: ("Added",),
    lambda: ("Added", {}, {}, ()),
    lambda: {"event_type": "Added"},
    lambda: None,
    lambda: NewEvent("Added", {}, tags=None),  # type: ignore[call-overload]
    lambda: NewEvent("Added", {}, tags=["a", ""]),
    lambda: NewEvent("Added", {}, {"n": float("nan")}),
]


@pytest.mark.parametrize("at", [0, 7, 400, 2500, MANY - 1])
@pytest.mark.parametrize("make", [*GOOD, *BAD])
@pytest.mark.parametrize("other", [("T", {"n": 1}), NewEvent("T", {"n": 1}, {"m": 1}, ("t",))])
async def test_any_event_anywhere_comes_to_what_it_comes_to_at_once(
    make: Callable[[], Any], at: int, other: Any
) -> None:
    events = [[*[other] * at, make(), *[other] * (MANY - at - 1)] for _ in range(2)]
    assert await came_to(events[0]) == at_once(events[1])


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(GOOD), st.integers(1, 700)), max_size=8))
async def test_any_mixture_comes_to_what_it_comes_to_at_once(runs: list[tuple[Callable[[], Any], int]]) -> None:
    events = [[make() for make, count in runs for _ in range(count)] for _ in range(2)]
    assert await came_to(iter(events[0])) == at_once(events[1])


async def test_the_first_that_is_not_valid_is_named() -> None:
    events: list[Any] = [("T", {"n": 1})] * MANY
    events[1000] = ("T", {"n": float("nan")})
    events[2000] = ("T", {"n": object()})  # cannot be copied, and is found to be bad before the other one
    events[2900] = None
    assert "events[1000].data.n" in str(await came_to(events))


async def test_a_size_beyond_the_limit_is_named() -> None:
    limits = Limits(event_bytes_max=1000)
    events = [*[("T", {"n": 1})] * 2000, ("T", {"text": "x" * 1000})]
    assert await came_to(events, limits) == at_once(events, limits)
    assert "events[2000].data" in str(await came_to(events, limits))


async def test_events_of_any_size_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiostore.batch, "PIECE_BYTES", 2000)
    events = [("T", {"text": "x" * (n * n % 5000)}) for n in range(500)]
    assert await came_to(events) == at_once(events)


def test_a_short_batch_does_not_wait() -> None:
    drafting = Batch([("T", {"n": n}) for n in range(100)], LIMITS).drafts()
    with pytest.raises(StopIteration):
        drafting.send(None)


def test_a_long_batch_gives_way_every_so_often() -> None:
    drafting = Batch([("T", {"n": n}) for n in range(20_000)], LIMITS).drafts()
    assert 20 <= len(list(drafting.__await__())) <= 60


def test_a_generator_is_taken_whole_in_the_first_step() -> None:
    taken: list[int] = []

    def events() -> Iterable[Any]:
        for n in range(MANY):
            taken.append(n)
            yield "T", {"n": n}

    Batch(events(), LIMITS)
    assert taken == list(range(MANY))


def mixed() -> list[Any]:
    """Many events, each with values of its own that can be changed."""
    kinds: list[Callable[[int], Any]] = [
        lambda n: ("T", {"n": n, "list": [n]}),
        lambda n: ("T", {"n": n, "list": [n]}, {"m": [n]}),
        lambda n: NewEvent("T", {"n": n, "list": [n]}, {"m": [n]}, ["a", "b"]),
        lambda n: ("T", {"n": n, "list": [n], "at": datetime(2026, 1, 1, tzinfo=UTC)}),
    ]
    return [kinds[n // 800](n) for n in range(3200)]


def ruin(events: list[Any]) -> None:
    for event in events:
        _, data, metadata, tags = event if len(event) == 4 else (*event, {}, [])[:4]
        data["list"].append("ruined")
        data["n"] = float("nan")
        if metadata:
            metadata["m"] = {1: 2}
        tags.clear()


def parts(event: Any) -> Any:
    return (event.event_type, event.data, event.metadata, event.tags) if isinstance(event, NewEvent) else event


@pytest.mark.parametrize("turns", [1, 2, 3, 5, 8])
async def test_what_is_changed_while_a_long_append_is_checked_is_not_in_it(turns: int) -> None:
    async with EventStore() as store:
        for streams in (False, True):
            events = mixed()
            before = at_once(copy.deepcopy(events))
            if streams:
                append = store.append_streams([StreamAppend("a", events[:1600]), StreamAppend("b", events[1600:])])
            else:
                append = store.append_batch("s", events)
            task = asyncio.ensure_future(append)
            for _ in range(turns):
                await asyncio.sleep(0)
            ruin([parts(event) for event in events])
            events.clear()
            stored = await task
            assert [(e.event_type, bytes(e._data), bytes(e._metadata), e.tags) for e in stored] == [
                row[:4] for row in before
            ]


async def test_other_tasks_run_while_a_long_append_is_checked() -> None:
    async with EventStore() as store:
        task = asyncio.ensure_future(store.append_batch("long", [("T", {"n": n}) for n in range(5000)]))
        await asyncio.sleep(0)
        short = await store.append("short", "T", {})
        assert short.event_id == 1
        assert not task.done()
        assert (await task)[0].event_id == 2


async def test_a_long_append_that_is_cancelled_while_it_is_checked_is_not_stored() -> None:
    async with EventStore() as store:
        task = asyncio.ensure_future(store.append_batch("s", [("T", {"n": n}) for n in range(5000)]))
        for _ in range(3):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert await store.head() == 0


async def test_a_store_that_is_closed_meanwhile_refuses_the_append() -> None:
    async with EventStore() as store:
        task = asyncio.ensure_future(store.append_batch("s", [("T", {"n": n}) for n in range(5000)]))
        for _ in range(3):
            await asyncio.sleep(0)
    with pytest.raises(StoreClosed):
        await task
