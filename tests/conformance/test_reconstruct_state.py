"""The state of one stream, as it is and as it was: at a version, at a time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from aiostore import Event, EventStore, InvalidEvent, reconstruct_state
from tests.conformance.accounts import HANDLERS, Account
from tests.conftest import OpenStore

START = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
async def bank(open_store: OpenStore) -> EventStore:
    """An account with an event each day, among those of another one."""
    now = [START - timedelta(days=1)]

    def clock() -> datetime:
        now[0] += timedelta(days=1)
        return now[0]

    store = await open_store(clock=clock)
    for event_type, data in (
        ("Opened", {"owner": "Ann"}),
        ("Deposited", {"amount": 100}),
        ("Withdrawn", {"amount": 30}),
        ("Audited", {}),
        ("Deposited", {"amount": 5}),
    ):
        await store.append("ann", event_type, data)
        now[0] -= timedelta(days=1)
        await store.append("bob", "Deposited", {"amount": 1})
    return store


async def at(store: EventStore, up_to: int | datetime | None = None) -> tuple[str, int]:
    account = await reconstruct_state(store, "ann", HANDLERS, initial=Account, up_to=up_to)
    assert isinstance(account, Account)
    return account.owner, account.balance


async def test_the_state_as_it_is(bank: EventStore) -> None:
    assert await at(bank) == ("Ann", 75)


@pytest.mark.parametrize(
    ("version", "state"),
    [(0, ("", 0)), (1, ("Ann", 0)), (2, ("Ann", 100)), (3, ("Ann", 70)), (4, ("Ann", 70)), (5, ("Ann", 75))],
)
async def test_the_state_at_a_version(bank: EventStore, version: int, state: tuple[str, int]) -> None:
    assert await at(bank, version) == state


async def test_a_version_beyond_the_last_is_the_last(bank: EventStore) -> None:
    assert await at(bank, 99) == ("Ann", 75)


@pytest.mark.parametrize(
    ("days", "state"),
    [(-1, ("", 0)), (0, ("Ann", 0)), (1, ("Ann", 100)), (1.5, ("Ann", 100)), (2, ("Ann", 70)), (99, ("Ann", 75))],
)
async def test_the_state_at_a_time(bank: EventStore, days: float, state: tuple[str, int]) -> None:
    assert await at(bank, START + timedelta(days=days)) == state


async def test_a_time_of_another_zone_is_the_same_time(bank: EventStore) -> None:
    from zoneinfo import ZoneInfo

    assert await at(bank, (START + timedelta(days=1)).astimezone(ZoneInfo("Asia/Tokyo"))) == ("Ann", 100)


async def test_a_time_includes_the_events_of_that_very_moment(bank: EventStore) -> None:
    assert await at(bank, START + timedelta(days=1) - datetime.resolution) == ("Ann", 0)
    assert await at(bank, START + timedelta(days=1)) == ("Ann", 100)


@pytest.mark.parametrize("offset", [0, 14, -12])
async def test_the_ends_of_time_are_before_and_after_everything(bank: EventStore, offset: int) -> None:
    zone = timezone(timedelta(hours=offset))
    assert await at(bank, datetime.min.replace(tzinfo=zone)) == ("", 0)
    assert await at(bank, datetime.max.replace(tzinfo=zone)) == ("Ann", 75)


async def test_a_stream_of_many_events_is_cut_at_the_right_one(open_store: OpenStore) -> None:
    now = [START]

    def clock() -> datetime:
        now[0] += timedelta(seconds=1)
        return now[0]

    store = await open_store(clock=clock)
    for _ in range(1200):
        await store.append("s", "E", {})

    def count(state: int, event: Event) -> int:
        return state + 1

    for up_to in (0, 1, 499, 500, 501, 1199, 1200):
        when = START + timedelta(seconds=up_to)
        assert await reconstruct_state(store, "s", {"E": count}, initial=lambda: 0, up_to=when) == up_to
        assert await reconstruct_state(store, "s", {"E": count}, initial=lambda: 0, up_to=up_to) == up_to


async def test_no_stream_is_the_first_state(bank: EventStore) -> None:
    assert await reconstruct_state(bank, "nobody", HANDLERS) == {}


async def test_what_a_handler_raises_is_raised(bank: EventStore) -> None:
    def fail(state: Any, event: Event) -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await reconstruct_state(bank, "ann", {"Opened": fail})


@pytest.mark.parametrize("up_to", [-1, True, 1.5, "1", START.replace(tzinfo=None)])
async def test_bounds_that_make_no_sense_are_refused(bank: EventStore, up_to: Any) -> None:
    with pytest.raises(ValueError, match="up_to"):
        await reconstruct_state(bank, "ann", HANDLERS, up_to=up_to)


async def test_bad_handlers_and_names_are_refused(bank: EventStore) -> None:
    with pytest.raises(TypeError, match="callable"):
        await reconstruct_state(bank, "ann", {"Opened": 7})  # type: ignore[dict-item]
    with pytest.raises(InvalidEvent, match="event_type"):
        await reconstruct_state(bank, "ann", {"": print})
    with pytest.raises(InvalidEvent, match="stream_id"):
        await reconstruct_state(bank, "", HANDLERS)
