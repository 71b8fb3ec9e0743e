"""Time travel: what a projection was, as of an event or a moment, without disturbing it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from aiostore import Event, EventStore, LiveProjection, Projection, Query
from tests.conformance.accounts import balances, live_balances, open_accounts
from tests.conftest import OpenStore

START = datetime(2026, 3, 1, tzinfo=UTC)


def daily() -> Callable[[], datetime]:
    """A clock of which each look is a day later."""
    days: Iterator[datetime] = iter(START + timedelta(days=n) for n in range(10_000))
    return lambda: next(days)


AS_OF: list[tuple[int, dict[str, int]]] = [
    (0, {}),
    (1, {"ann": 0}),
    (2, {"ann": 100}),
    (4, {"ann": 100, "bob": 20}),
    (5, {"ann": 70, "bob": 20}),
    (6, {"ann": 70, "bob": 20}),
    (1000, {"ann": 70, "bob": 20}),
]


@pytest.mark.parametrize("made", [balances, live_balances])
async def test_as_of_an_event_that_event_is_included(store: EventStore, made: Any) -> None:
    await open_accounts(store)
    projection = made(store)
    for caught_up in (False, True):
        for event_id, state in AS_OF:
            assert await projection.as_of(event_id) == state
        assert projection.position == (6 if caught_up else 0)
        await projection.catch_up()


async def test_as_of_a_moment_events_of_that_moment_are_included(open_store: OpenStore) -> None:
    store = await open_store(clock=daily())
    await open_accounts(store)
    events = await store.read_all().to_list()
    projection = balances(store)
    tick = timedelta(microseconds=1)
    for event in events:
        same = [other.event_id for other in events if other.timestamp <= event.timestamp]
        assert await projection.as_of(event.timestamp) == await projection.as_of(same[-1])
        earlier = [other.event_id for other in events if other.timestamp < event.timestamp]
        assert await projection.as_of(event.timestamp - tick) == await projection.as_of(earlier[-1] if earlier else 0)
        elsewhere = event.timestamp.astimezone(timezone(timedelta(hours=-7)))
        assert await projection.as_of(elsewhere) == await projection.as_of(event.timestamp)
    assert await projection.as_of(datetime.max.replace(tzinfo=UTC)) == {"ann": 70, "bob": 20}
    assert await projection.as_of(datetime.min.replace(tzinfo=UTC)) == {}


async def test_it_disturbs_nothing_live(store: EventStore) -> None:
    await open_accounts(store)
    async with live_balances(store) as live:
        state = live.state
        then = await live.as_of(2)
        then["ann"] = -1
        assert live.state is state
        await store.append("bob", "Deposited", {"amount": 1})
        assert live.state == {"ann": 70, "bob": 21}
        assert await live.as_of(2) == {"ann": 100}


async def test_the_query_holds(store: EventStore) -> None:
    for event_type in "EFEFE":
        await store.append("s", event_type, {})
    projection: Projection[Any] = Projection("p", store, initial=list, query=Query.where(types="E"))
    for event_type in "EF":
        projection.when(event_type, lambda state, event: state.append(event.event_id))
    assert [await projection.as_of(n) for n in range(6)] == [[], [1], [1], [1, 3], [1, 3], [1, 3, 5]]


async def test_what_a_handler_raises_comes_out_and_stops_nothing(store: EventStore) -> None:
    await store.append_batch("s", [("E", {}), ("Bad", {})])
    live: LiveProjection[Any] = LiveProjection("p", store, initial=list)
    live.when("E", lambda state, event: state.append(event.event_id))

    @live.when("Bad")
    async def fail(state: list[int], event: Event) -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await live.as_of(2)
    assert await live.as_of(1) == [1]
    assert live.error is None


@pytest.mark.parametrize(
    ("moment", "error"),
    [(-1, ValueError), (True, ValueError), (None, ValueError), ("5", ValueError), (datetime(2026, 1, 1), ValueError)],
)
async def test_bad_moments_are_refused(store: EventStore, moment: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="moment"):
        await balances(store).as_of(moment)
