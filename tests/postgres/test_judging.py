"""Groups are judged in the server as `judge` does it, for the reference in memory."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from aiostore import (
    NO_STREAM,
    STREAM_EXISTS,
    AppendCondition,
    Event,
    EventStoreError,
    IdempotencyConflict,
    NewEvent,
    Query,
)
from aiostore.drafts import Append, StreamDrafts, draft_events, make_append
from aiostore.engine import Commit, Committed, Plan, Proposal, Question, Selection
from aiostore.engines.memory import MemoryEngine
from aiostore.engines.postgres.engine import PostgresEngine
from aiostore.judging import judge, question_of
from aiostore.ring import Ring
from tests.postgres.appends import LIMITS, NOW, append, commit, ids, read_all, stored, tagged

STREAMS = ["a", "b", "c", "d"]
TYPES = ["T", "U"]
TAGS = ["x", "y"]


def plain(outcome: object) -> object:
    """What of an outcome is to be the same."""
    return repr(outcome) if isinstance(outcome, EventStoreError) else list(outcome)  # type: ignore[call-overload]


def chance_query(chance: random.Random) -> Query:
    return Query.where(
        types=chance.sample(TYPES, chance.choice((0, 1, 1, 2))),
        tags=chance.sample(TAGS, chance.choice((0, 1, 2))),
        stream_prefix=chance.choice((None, None, "a", "b")),
    )


def chance_append(chance: random.Random, head: int) -> Append:
    parts = []
    for stream_id in chance.sample(STREAMS, chance.choice((1, 1, 2))):
        events = [
            NewEvent(chance.choice(TYPES), {"n": chance.randrange(2)}, tags=chance.sample(TAGS, chance.randrange(3)))
            for _ in range(chance.choice((0, 1, 1, 2)))
        ]
        expected = chance.choice((None, None, None, NO_STREAM, STREAM_EXISTS, chance.randrange(6)))
        parts.append(StreamDrafts(stream_id, draft_events(events, LIMITS), expected))
    condition = None
    if chance.random() < 0.4:
        after = chance.choice((None, chance.randrange(head + 2), head))
        query = chance_query(chance)
        condition = AppendCondition(query if chance.random() < 0.5 else query | chance_query(chance), after)
    key = f"k{chance.randrange(6)}" if chance.random() < 0.4 else None
    return make_append(parts, condition, key, LIMITS)


def independent(group: Sequence[Append], append: Append) -> bool:
    """Whether nothing that others of the group may store or expect has to do with the append."""
    streams = {part.stream_id for part in append.parts}
    if append.condition is not None or append.idempotency_key is not None:
        return not group
    return all(
        other.condition is None
        and other.idempotency_key is None
        and all(
            part.stream_id not in streams
            or (part.expected_version is None and all(mine.expected_version is None for mine in append.parts))
            for part in other.parts
        )
        for other in group
    )


class Model:
    """The reference: memory, and `judge` with all facts at hand."""

    def __init__(self) -> None:
        self.engine = MemoryEngine()
        self.head = 0

    async def commit(self, group: Sequence[Append]) -> Committed:
        facts = [await self.engine.facts(question_of(one)) for one in group]
        judgement = judge(list(zip(group, facts, strict=True)), Ring(self.head, 1), NOW)
        previous = self.head
        if judgement.commits:
            await self.engine.commit(Plan(judgement.commits))
            self.head = judgement.commits[-1].events[-1].event_id
        return Committed(previous, judgement.commits, judgement.outcomes)


@pytest.mark.parametrize("seed", range(8))
async def test_any_groups_come_to_what_the_reference_says(engine: PostgresEngine, seed: int) -> None:
    chance = random.Random(seed)
    model = Model()
    await model.engine.open()
    refused = 0
    commits: list[Commit] = []
    for _ in range(80):
        group: list[Append] = []
        for _ in range(chance.choice((1, 2, 5, 9))):
            one = chance_append(chance, model.head)
            if independent(group, one):
                group.append(one)
        proposals = []
        for one in group:
            searched = chance.randrange(model.head + 1)
            match = None
            if one.condition is not None:
                match = await model.engine.first_match(one.condition, searched)
            proposals.append(Proposal(one, searched, match))
        expected = await model.commit(group)
        found = await engine.commit_shared(proposals, NOW)
        assert found.previous_head == expected.previous_head
        assert [plain(outcome) for outcome in found.outcomes] == [plain(outcome) for outcome in expected.outcomes]
        assert list(map(tuple, found.commits)) == list(map(tuple, expected.commits))
        commits += expected.commits
        refused += sum(isinstance(outcome, EventStoreError) for outcome in found.outcomes)
    assert refused > 30
    everything = await read_all(engine)
    assert everything == await read_all(model.engine, Selection(up_to=model.head))
    assert [commit[:2] for commit in await engine.commits_after(0)] == [commit[:2] for commit in commits]
    for tag in TAGS:
        tagged_so = [event for event in everything if tag in event.tags]
        assert await read_all(engine, Selection(up_to=model.head, query=Query.where(tags=tag))) == tagged_so
    facts = await engine.facts(Question(STREAMS))
    assert facts == await model.engine.facts(Question(STREAMS))


async def test_several_appends_of_a_group_follow_one_another_in_a_stream(engine: PostgresEngine) -> None:
    committed = await commit(engine, append("s"), append("t", expected=4), append("s", tagged(2)), append("s"))
    assert [event.version for event in await read_all(engine) if event.stream_id == "s"] == [1, 2, 3, 4]
    assert [ids(commit.events) for commit in committed.commits] == [[1], [2, 3], [4]]


async def test_what_is_refused_leaves_no_gap(engine: PostgresEngine) -> None:
    group = [append(f"s{n}", tagged(2), expected=0 if n % 3 else 1) for n in range(30)]
    committed = await commit(engine, *group)
    assert ids(await read_all(engine)) == list(range(1, 41))
    assert sum(isinstance(outcome, EventStoreError) for outcome in committed.outcomes) == 10
    facts = await engine.facts(Question([f"s{n}" for n in range(30)]))
    assert list(facts.versions.values()) == [2 if n % 3 else 0 for n in range(30)]


async def test_an_append_without_events_is_checked_and_stores_nothing(engine: PostgresEngine) -> None:
    committed = await commit(engine, append("s", [], expected=0), append("t", [], expected=1), append("u", [], key="k"))
    assert (stored(committed), stored(committed, 2)) == ([], [])
    assert repr(committed.outcomes[1]) == "ConcurrencyConflict('t', 1, 0)"
    assert (committed.previous_head, committed.commits) == (0, [])
    assert (await commit(engine)).outcomes == []


async def test_a_key_is_for_ever_and_for_the_same_events(engine: PostgresEngine) -> None:
    first = await commit(engine, append("s", [("E", {"a": 1, "b": 2})], key="k"))
    again = await commit(engine, append("s", [("E", {"b": 2, "a": 1})], key="k", expected=0))
    assert stored(again) == stored(first)
    assert again.commits == []
    other = await commit(engine, append("s", [("E", {"a": 1})], key="k"), append("t", key="k"))
    assert isinstance(other.outcomes[0], IdempotencyConflict)
    assert ids(stored(other, 1)) == [2]


async def test_a_match_that_was_found_before_counts_unless_the_key_is_stored(engine: PostgresEngine) -> None:
    await commit(engine, append("s", key="k"))
    condition = AppendCondition(Query.where(types="E"))
    again, new = append("s", key="k", condition=condition), append("s", key="new", condition=condition)
    committed = await engine.commit_shared([Proposal(again, 1, 1), Proposal(new, 1, 1)], NOW)
    assert ids(stored(committed)) == [1]
    assert repr(committed.outcomes[1]) == "AppendConditionFailed(1)"


async def test_a_group_of_thousands_is_one_commit_of_the_server(engine: PostgresEngine) -> None:
    group = [append(f"s{n % 500}", tagged(1, f"t{n}")) for n in range(2000)]
    committed = await commit(engine, *group)
    assert len(committed.commits) == 2000
    everything = await read_all(engine)
    assert ids(everything) == list(range(1, 2001))
    assert [event for commit in committed.commits for event in commit.events] == everything
    versions: dict[str, int] = {}
    for event in everything:
        assert isinstance(event, Event)
        versions[event.stream_id] = versions.get(event.stream_id, 0) + 1
        assert event.version == versions[event.stream_id]
