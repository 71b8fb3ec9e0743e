"""Which runs are merged where parts of the log have different numbers of segments, and so different levels."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from aiostore.engines.file.compaction import next_merge
from aiostore.engines.file.run_format import RUN_EVENTS_MAX, level_of


class Span(NamedTuple):
    first_event_id: int
    last_event_id: int
    segments: int

    @property
    def level(self) -> int:
        return level_of(self.segments)


def spans(parts: list[tuple[int, int]]) -> list[Span]:
    """Neighbouring runs of so many segments and events each."""
    found: list[Span] = []
    for segments, events in parts:
        first = found[-1].last_event_id + 1 if found else 1
        found.append(Span(first, first + max(segments, events) - 1, segments))
    return found


def settled(runs: list[Span]) -> list[Span]:
    runs = list(runs)
    while found := next_merge(runs):
        four = runs[found]
        assert len(four) == 4
        assert four[-1].last_event_id - four[0].first_event_id < RUN_EVENTS_MAX
        runs[found] = [Span(four[0].first_event_id, four[-1].last_event_id, sum(run.segments for run in four))]
    return runs


def test_there_are_few_runs_although_some_parts_have_three_segments_and_some_four() -> None:
    runs: list[Span] = []
    for part in spans([(3 + n * n % 5 % 2, 100) for n in range(2000)]):
        runs = settled([*runs, part])
        assert len(runs) <= 3 * 7


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 2**23)), max_size=150))
def test_the_same_runs_result_one_by_one_or_at_once_and_no_level_has_four(parts: list[tuple[int, int]]) -> None:
    one_by_one: list[Span] = []
    for part in spans(parts):
        one_by_one = settled([*one_by_one, part])
    assert settled(spans(parts)) == one_by_one


@given(st.lists(st.integers(1, 30), max_size=200), st.data())
def test_runs_that_are_missing_and_are_made_anew_are_what_they_were(sizes: list[int], data: st.DataObject) -> None:
    parts = spans([(size, 40) for size in sizes])
    before = settled(parts)
    kept = [run for run in before if data.draw(st.booleans())]
    anew = [
        part
        for part in parts
        if not any(run.first_event_id <= part.first_event_id <= run.last_event_id for run in kept)
    ]
    assert settled(sorted([*kept, *anew])) == before


@given(st.lists(st.integers(1, 30), max_size=300))
def test_each_event_is_merged_a_few_times_only(sizes: list[int]) -> None:
    runs: list[Span] = []
    written = 0
    for part in spans([(size, 40) for size in sizes]):
        runs.append(part)
        while found := next_merge(runs):
            four = runs[found]
            written += sum(run.segments for run in four)
            runs[found] = [Span(four[0].first_event_id, four[-1].last_event_id, sum(run.segments for run in four))]
    assert written <= sum(sizes) * 6
