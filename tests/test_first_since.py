"""`Engine.first_since`, as an engine has it that brings none of its own: how much it reads, gaps, damage."""

from __future__ import annotations

from itertools import product

import pytest

from aiostore import Event, StoreCorrupt
from aiostore.engine import PAGE_EVENTS, Commit, Engine, Page, Plan, Selection
from aiostore.engines.memory import MemoryEngine
from aiostore.events import NO_METADATA


def stamp(second: int) -> str:
    return f"2026-01-01T00:{second // 60:02d}:{second % 60:02d}.000000Z"


class Halving(MemoryEngine):
    """Has the search of the contract. It may have gaps, and events that are damaged."""

    first_since = Engine.first_since

    def __init__(self) -> None:
        super().__init__()
        self.reads_count = 0
        self.missing: frozenset[int] = frozenset()
        self.damaged: frozenset[int] = frozenset()
        self.tells_range = True

    async def read(self, selection: Selection, cursor: int | None = None, max_events: int = PAGE_EVENTS) -> Page:
        self.reads_count += 1
        assert max_events == 1
        page = await super().read(selection, cursor, max_events)
        for event in page.events:
            if event.event_id in self.damaged:
                first = last = event.event_id
                while self.tells_range and first - 1 in self.damaged:
                    first -= 1
                while self.tells_range and last + 1 in self.damaged:
                    last += 1
                raise StoreCorrupt("here", 0, "so it was chosen", first, last)
            if event.event_id in self.missing:
                return Page([], page.cursor)
        return page


async def filled(seconds: list[int]) -> Halving:
    """An engine with an event at each of these times."""
    engine = Halving()
    await engine.open()
    events = [
        Event(number, "s", number, "T", stamp(second), NO_METADATA) for number, second in enumerate(seconds, start=1)
    ]
    if events:
        await engine.commit(Plan([Commit(events, None)]))
    return engine


def expected(seconds: list[int], second: int) -> int:
    return next((number for number, at in enumerate(seconds, start=1) if at >= second), len(seconds) + 1)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 9])
async def test_it_finds_the_first_of_those_at_one_time(count: int) -> None:
    seconds = [2 * (n // 2) for n in range(count)]
    engine = await filled(seconds)
    for second in range(count + 3):
        assert await engine.first_since(stamp(second), count) == expected(seconds, second)
        assert await MemoryEngine.first_since(engine, stamp(second), count) == expected(seconds, second)


async def test_it_looks_no_further_than_the_head() -> None:
    engine = await filled(list(range(9)))
    for head in range(10):
        for second in range(11):
            found = expected(list(range(head)), second)
            assert await engine.first_since(stamp(second), head) == found
            assert await MemoryEngine.first_since(engine, stamp(second), head) == found


async def test_it_reads_few_events() -> None:
    engine = await filled([n // 3 for n in range(3000)])
    for second in (0, 1, 500, 999, 1000):
        engine.reads_count = 0
        await engine.first_since(stamp(second), 3000)
        assert engine.reads_count <= 12


async def test_gaps_between_events_do_not_matter() -> None:
    for missing in product((False, True), repeat=7):
        engine = await filled(list(range(7)))
        engine.missing = frozenset(number for number, gone in enumerate(missing, start=1) if gone)
        there = [number for number in range(1, 8) if number not in engine.missing]
        for second in range(8):
            found = await engine.first_since(stamp(second), 7)
            assert [n for n in there if n >= found] == [n for n in there if n - 1 >= second]


@pytest.mark.parametrize("tells_range", [True, False])
async def test_damage_is_in_the_way_only_where_what_is_whole_leaves_it_open(tells_range: bool) -> None:
    for damaged in product((False, True), repeat=7):
        engine = await filled(list(range(7)))
        engine.damaged = frozenset(number for number, lost in enumerate(damaged, start=1) if lost)
        engine.tells_range = tells_range
        for second in range(8):
            # Event n came at second n - 1: the answer is `second + 1`, told by the events before and behind it.
            is_told = (second == 0 or second not in engine.damaged) and (
                second == 7 or second + 1 not in engine.damaged
            )
            try:
                assert await engine.first_since(stamp(second), 7) == second + 1
            except StoreCorrupt:
                assert not is_told
            else:
                assert is_told


async def test_a_great_deal_of_damage_is_not_gone_past_event_by_event() -> None:
    engine = await filled(list(range(3000)))
    engine.damaged = frozenset(range(1000, 2000))
    assert await engine.first_since(stamp(2500), 3000) == 2501
    engine.tells_range = False
    engine.reads_count = 0
    with pytest.raises(StoreCorrupt):
        await engine.first_since(stamp(2500), 3000)
    assert engine.reads_count < 250
