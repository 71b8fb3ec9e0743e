"""Reads from a time to a time in a damaged log: damage that lies elsewhere is not in the way."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from aiostore import EventStore, StoreCorrupt, reconstruct_state
from tests.conformance import ids

START = datetime(2026, 1, 1, tzinfo=UTC)
COUNT = 12


def at(event_id: int) -> datetime:
    """When the event was stored."""
    return START + timedelta(seconds=event_id)


async def write(path: Path) -> None:
    """A log of `COUNT` events in several segments, a second after one another."""
    event_id = 0
    async with EventStore(path, segment_bytes=500, clock=lambda: at(event_id)) as store:
        for event_id in range(1, COUNT + 1):
            await store.append("s", "T", {"n": event_id})


def damage(path: Path, event_id: int) -> None:
    """Flip a bit in the event's line."""
    token = b'"data":{"n":%d}' % event_id
    for segment in path.glob("*.jsonl"):
        text = segment.read_bytes()
        if token in text:
            with segment.open("r+b") as file:
                file.seek(text.index(token))
                file.write(b"?")


@pytest.mark.parametrize("when", ["before it is opened", "while it is open"])
@pytest.mark.parametrize("lost", [[1], [6], [7], [12], [5, 6, 7, 8], [3, 6, 7, 10]])
async def test_damage_is_in_the_way_only_where_it_leaves_the_bounds_open(
    tmp_path: Path, lost: list[int], when: str
) -> None:
    await write(tmp_path / "s")
    if when == "before it is opened":
        for event_id in lost:
            damage(tmp_path / "s", event_id)
    async with EventStore(tmp_path / "s", mode="r") as store:
        for event_id in lost:
            damage(tmp_path / "s", event_id)
        for since in range(1, COUNT + 1):
            for until in range(since, COUNT + 2):
                wanted = list(range(since, until))
                # Between two events that are whole, or at an end, a time is told exactly.
                told = all(n in (0, COUNT + 1) or n not in lost for n in (since - 1, since, until - 1, until))
                reads = (
                    store.read_all(since=at(since), until=at(until)),
                    store.read_stream("s", since=at(since), until=at(until)),
                )
                for reader in reads:
                    if told and not set(wanted) & set(lost):
                        assert ids(await reader.to_list()) == wanted
                    elif wanted:
                        with pytest.raises(StoreCorrupt):
                            await reader.to_list()


async def test_a_state_before_the_damage_is_made(tmp_path: Path) -> None:
    await write(tmp_path / "s")
    damage(tmp_path / "s", 7)
    async with EventStore(tmp_path / "s", mode="r") as store:
        handlers = {"T": lambda total, event: total + event.data["n"]}
        for up_to in (datetime.min.replace(tzinfo=UTC), at(1), at(5)):
            n = 0 if up_to < START else (up_to - START).seconds
            assert await reconstruct_state(store, "s", handlers, initial=lambda: 0, up_to=up_to) == n * (n + 1) // 2
        with pytest.raises(StoreCorrupt):
            await reconstruct_state(store, "s", handlers, initial=lambda: 0, up_to=at(6))
        with pytest.raises(StoreCorrupt):
            await reconstruct_state(store, "s", handlers, initial=lambda: 0, up_to=at(9))
