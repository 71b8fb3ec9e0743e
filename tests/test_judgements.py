"""Judging by itself: what is asked for, when what is known suffices, and what a group comes to, event by event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from aiostore import (
    NO_STREAM,
    STREAM_EXISTS,
    AppendCondition,
    AppendConditionFailed,
    ConcurrencyConflict,
    Event,
    IdempotencyConflict,
    Limits,
    NewEvent,
    Query,
)
from aiostore.drafts import Append, StreamDrafts, draft_events, make_append
from aiostore.engine import Commit, Facts, Outcome
from aiostore.judging import NOTHING_KNOWN, Independents, Judgement, judge, question_of, suffices
from aiostore.ring import Ring

OLD, NOW = "2026-11-23T00:00:00.000000Z", "2026-11-24T00:00:00.000000Z"
ANY, TYPE_T, TAGGED = Query(), Query.where(types="T"), Query.where(tags="x")


def drafts(stream_id: str, *types: str, expected: Any = None, tags: Sequence[str] = ()) -> StreamDrafts:
    return StreamDrafts(stream_id, draft_events([NewEvent(each, {}, tags=tags) for each in types], Limits()), expected)


def append(*parts: StreamDrafts, key: str | None = None, condition: AppendCondition | None = None) -> Append:
    return make_append(parts, condition, key, Limits())


def event(event_id: int, stream_id: str = "s", version: int = 1, event_type: str = "T") -> Event:
    return Event(event_id, stream_id, version, event_type, OLD, msgspec.Raw(b"{}"))


def ring_of(*commits: Commit, head: int = 10, bytes_max: int = 10**6) -> Ring:
    ring = Ring(head, bytes_max)
    for commit in commits:
        ring.add(commit)
    return ring


def judged(*group: tuple[Append, Facts], ring: Ring | None = None) -> Judgement:
    return judge(group, ring or ring_of(), NOW)


def places(outcome: Outcome) -> list[tuple[int, str, int, str]]:
    """The ids, streams, versions and types of the events that an append became."""
    assert not isinstance(outcome, Exception), outcome
    assert all(each._timestamp == NOW for each in outcome)
    return [(each.event_id, each.stream_id, each.version, each.event_type) for each in outcome]


def known(head: int = 10, stored: Any = None, match: int | None = None, **versions: int) -> Facts:
    return Facts(head, versions, **({} if stored is None else {"stored": stored}), match=match)


# What is asked for


def test_an_append_asks_for_its_streams_its_key_and_its_condition() -> None:
    condition = AppendCondition(ANY, 7)
    question = question_of(append(drafts("a", "T"), drafts("b", "T"), key="k", condition=condition))
    assert (question.streams, question.idempotency_key, question.condition) == (["a", "b"], ("a", "k"), condition)
    question = question_of(append(drafts("a", "T")))
    assert (question.streams, question.idempotency_key, question.condition) == (["a"], None, None)


@pytest.mark.parametrize(
    ("after", "facts", "asked_after"),
    [
        (None, NOTHING_KNOWN, 0),
        (7, NOTHING_KNOWN, 7),
        (None, Facts(5), 5),
        (3, Facts(5), 5),
        (7, Facts(5), 7),
        (None, Facts(0), 0),
        (3, Facts(5, match=4), 3),  # it is known: nothing is left out of the question
        (None, Facts(5, match=4), None),
    ],
)
def test_what_is_known_of_a_condition_is_not_searched_again(after: int | None, facts: Facts, asked_after: int) -> None:
    question = question_of(append(drafts("a", "T"), condition=AppendCondition(TYPE_T, after)), facts)
    assert question.condition == AppendCondition(TYPE_T, asked_after)


@pytest.mark.parametrize(
    ("facts", "asked", "enough"),
    [
        (Facts(10), append(drafts("new", "T"), key="k", condition=AppendCondition(ANY)), True),
        (Facts(11), append(drafts("new", "T")), True),
        (Facts(9), append(drafts("new", "T")), False),
        (Facts(9), append(drafts("s", "T")), True),
        (NOTHING_KNOWN, append(drafts("s", "T", expected=1)), True),
        (Facts(9), append(drafts("s", "T"), drafts("new", "T")), False),
        (Facts(9), append(drafts("s", "T"), key="k"), False),
        (Facts(9), append(drafts("s", "T"), condition=AppendCondition(ANY)), False),
        (Facts(9), append(), True),
    ],
)
def test_when_what_is_known_suffices(facts: Facts, asked: Append, enough: bool) -> None:
    assert suffices(facts, asked, ring_of(Commit([event(11)], None, 10))) is enough


# What a group comes to


def test_appends_get_the_next_places_one_after_another() -> None:
    judgement = judged(
        (one := append(drafts("a", "T", "U"), key="k"), known(a=4)),
        (append(drafts("b", "T"), drafts("a", "V")), known(a=4, b=0)),
        (append(), known()),
        (append(drafts("a", "W")), known(a=4)),
    )
    outcomes = [places(outcome) for outcome in judgement.outcomes]
    assert outcomes == [
        [(11, "a", 5, "T"), (12, "a", 6, "U")],
        [(13, "b", 1, "T"), (14, "a", 7, "V")],
        [],
        [(15, "a", 8, "W")],
    ]
    assert [places(commit.events) for commit in judgement.commits] == [outcomes[0], outcomes[1], outcomes[3]]
    assert [commit.idempotency_key for commit in judgement.commits] == ["k", None, None]
    assert judgement.commits[0].bytes_estimate == one.size > 0


def test_what_the_ring_knows_of_a_stream_is_newer_than_the_facts() -> None:
    ring = ring_of(Commit([event(11, "a", 5)], None, 10))
    (outcome,) = judged((append(drafts("a", "T", expected=5)), known(a=4)), ring=ring).outcomes
    assert places(outcome) == [(12, "a", 6, "T")]


@pytest.mark.parametrize(
    ("expected", "version", "actual"),
    [
        (NO_STREAM, 0, None),
        (NO_STREAM, 1, 1),
        (2, 2, None),
        (2, 1, 1),
        (2, 3, 3),
        (STREAM_EXISTS, 1, None),
        (STREAM_EXISTS, 0, 0),
        (None, 5, None),
    ],
)
@pytest.mark.parametrize("types", [("T",), ()])
def test_an_expected_version_is_met_or_a_conflict(
    expected: Any, version: int, actual: int | None, types: tuple[str, ...]
) -> None:
    judgement = judged((append(drafts("b"), drafts("a", *types, expected=expected)), known(a=version, b=0)))
    (outcome,) = judgement.outcomes
    if actual is None:
        assert places(outcome) == [(11, "a", version + 1, "T")][: len(types)]
    else:
        assert isinstance(outcome, ConcurrencyConflict)
        assert (outcome.stream_id, outcome.expected, outcome.actual) == ("a", expected, actual)
        assert judgement.commits == []


def test_a_version_counts_what_the_group_stores_before_and_nothing_that_it_refuses() -> None:
    judgement = judged(
        (append(drafts("a", "T", expected=7)), known(a=0)),
        (append(drafts("a", "T", "T", expected=0)), known(a=0)),
        (append(drafts("a", "T", expected=0)), known(a=0)),
        (append(drafts("a", "T", expected=2)), known(a=0)),
    )
    refused, first, again, second = judgement.outcomes
    assert isinstance(refused, ConcurrencyConflict)
    assert isinstance(again, ConcurrencyConflict)
    assert (refused.actual, again.actual) == (0, 2)
    assert places(first) + places(second) == [(11, "a", 1, "T"), (12, "a", 2, "T"), (13, "a", 3, "T")]


@pytest.mark.parametrize(
    ("condition", "facts", "match"),
    [
        (AppendCondition(TYPE_T), known(a=0), 12),
        (AppendCondition(TYPE_T), known(a=0, match=4), 4),
        (AppendCondition(TYPE_T, 11), known(a=0), 12),
        (AppendCondition(TYPE_T, 12), known(a=0), 13),
        (AppendCondition(TYPE_T, 13), known(a=0), None),
        (AppendCondition(TYPE_T), known(12, a=0), 13),
        (AppendCondition(TYPE_T, 11), known(12, a=0), 13),
        (AppendCondition(TYPE_T), known(13, a=0), None),
        (AppendCondition(Query.where(types="U"), 0), known(a=0), 11),
        (AppendCondition(TAGGED), known(a=0), None),
    ],
)
def test_a_condition_fails_with_the_first_match_above_what_is_known(
    condition: AppendCondition, facts: Facts, match: int | None
) -> None:
    ring = ring_of(Commit([event(11, "s", 1, "U"), event(12, "s", 2)], None, 10), Commit([event(13, "s", 3)], None, 10))
    (outcome,) = judged((append(drafts("a", "V"), condition=condition), facts), ring=ring).outcomes
    if match is None:
        assert places(outcome) == [(14, "a", 1, "V")]
    else:
        assert isinstance(outcome, AppendConditionFailed)
        assert outcome.event_id == match


def test_the_first_event_of_all_can_be_a_match() -> None:
    ring = ring_of(Commit([event(1)], None, 10), head=0)
    for condition in (AppendCondition(TYPE_T), AppendCondition(TYPE_T, 0)):
        (outcome,) = judged((append(drafts("a", "V"), condition=condition), known(0, a=0)), ring=ring).outcomes
        assert isinstance(outcome, AppendConditionFailed)
        assert outcome.event_id == 1


def test_a_condition_sees_what_the_group_stores_before() -> None:
    judgement = judged(
        (append(drafts("a", "T")), known(a=0)),
        (append(drafts("b", "T"), condition=AppendCondition(TYPE_T)), known(b=0)),
        (append(drafts("b", "T"), condition=AppendCondition(TYPE_T, 11)), known(b=0)),
        (append(drafts("b", "T"), condition=AppendCondition(TYPE_T, 11)), known(b=0)),
        (append(drafts("b"), condition=AppendCondition(TYPE_T, 12)), known(b=0)),
    )
    kinds = [type(outcome) for outcome in judgement.outcomes]
    assert kinds == [list, AppendConditionFailed, list, AppendConditionFailed, list]
    assert [each.event_id for each in judgement.outcomes if isinstance(each, AppendConditionFailed)] == [11, 12]
    assert [each.events[0].event_id for each in judgement.commits] == [11, 12]


def test_the_version_is_judged_before_the_condition_and_the_key_before_both() -> None:
    unmet = append(drafts("a", "T", expected=9), key="k", condition=AppendCondition(ANY))
    (outcome,) = judged((unmet, known(a=0, match=3))).outcomes
    assert isinstance(outcome, ConcurrencyConflict)
    stored = [event(3, "a", 1)]
    (outcome,) = judged((unmet, known(a=1, match=3, stored=stored))).outcomes
    assert outcome is stored


STORED = [event(11, "a", 1)]


@pytest.mark.parametrize(
    ("ring", "facts"),
    [
        (ring_of(Commit(STORED, "k", 10)), known(a=0)),
        (ring_of(), known(a=1, stored=STORED)),
    ],
)
def test_an_append_whose_key_is_stored_comes_to_what_was_stored(ring: Ring, facts: Facts) -> None:
    same = append(drafts("a", "T"), key="k")
    judgement = judged((same, facts), (append(drafts("a", "U"), key="k"), facts), ring=ring)
    repeated, other = judgement.outcomes
    assert repeated is STORED
    assert isinstance(other, IdempotencyConflict)
    assert (other.stream_id, other.event_id) == ("a", 11)
    assert judgement.commits == []


def test_a_key_stands_for_its_stream_alone_and_in_its_group_at_once() -> None:
    judgement = judged(
        (append(drafts("a", "T"), key="k"), known(a=0, b=0)),
        (append(drafts("b", "T"), key="k"), known(a=0, b=0)),
        (append(drafts("a", "T"), key="k"), known(a=0, b=0)),
        (append(drafts("a", "T"), key="l"), known(a=0, b=0)),
        (append(drafts("a", "U"), key="k"), known(a=0, b=0)),
        (append(drafts("a"), key="m"), known(a=0, b=0)),
        (append(drafts("a", "T"), key="m"), known(a=0, b=0)),
        (append(key="k"), known()),
    )
    outcomes = judgement.outcomes
    assert outcomes[2] is outcomes[0]
    assert isinstance(outcomes[4], IdempotencyConflict)
    assert [places(outcomes[n])[0][:3] for n in (0, 1, 3, 6)] == [
        (11, "a", 1),
        (12, "b", 1),
        (13, "a", 2),
        (14, "a", 3),
    ]
    assert (outcomes[5], outcomes[7]) == ([], [])
    assert [each.idempotency_key for each in judgement.commits] == ["k", "k", "l", "m"]


def test_what_is_asked_of_an_engine_that_judges_by_itself_depends_on_all_that_came_before() -> None:
    independents = Independents()
    assert independents.admit(append(drafts("a", "T"), drafts("b", "U", tags=["x"]), key="k"))
    for dependent in (
        append(drafts("a", expected=0)),
        append(drafts("new", "T"), drafts("b", expected=STREAM_EXISTS)),
        append(drafts("new", "T"), condition=AppendCondition(TAGGED)),
        append(drafts("new", "T"), condition=AppendCondition(Query.where(types="U"))),
        append(drafts("new", "T"), condition=AppendCondition(Query.where(stream_prefix="b"))),
        append(drafts("a", "T"), key="k"),
    ):
        assert not independents.admit(dependent)
    # What was not taken in leaves nothing behind.
    assert independents.admit(append(drafts("new", "V", expected=0), condition=AppendCondition(Query.where(types="V"))))
    assert independents.admit(append(drafts("c", expected=0), key="k"))  # it stores nothing,
    assert independents.admit(append(drafts("c", "W", expected=0)))  # so that its stream is as it was;
    assert not independents.admit(append(drafts("c", "W"), key="k"))  # but its key may be answered
    assert not independents.admit(append(drafts("c", "W", expected=1)))
