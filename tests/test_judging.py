"""The commit path with an engine in hand: when outcomes are told, what a failed write leaves, how groups are formed.

And judging itself, against a plain model that takes one append after another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiostore import (
    END,
    NO_STREAM,
    STREAM_EXISTS,
    AppendCondition,
    AppendConditionFailed,
    ConcurrencyConflict,
    Event,
    EventStore,
    EventStoreError,
    IdempotencyConflict,
    Limits,
    NewEvent,
    Query,
    StoreClosed,
    StoreFailed,
    StoreFull,
    StreamAppend,
    SubscriptionStatistics,
)
from aiostore.drafts import Append, StreamDrafts, draft_events, make_append
from aiostore.engine import Facts, Plan, Question
from aiostore.engines.memory import MemoryEngine
from aiostore.judging import Independents
from aiostore.testing.conformance.model import Model, Wish, plain, wishes


async def settled() -> None:
    """Let everything run that can."""
    for _ in range(50):
        await asyncio.sleep(0)


class GatedEngine(MemoryEngine):
    """Memory whose writes wait at a gate, and fail if they are told to; it remembers the groups it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: BaseException | None = None
        self.groups: list[list[int]] = []
        self.writing = False

    async def commit(self, plan: Plan) -> None:
        assert not self.writing, "two writes overlap"
        self.groups.append([len(commit.events) for commit in plan.commits])
        self.writing = True
        error = self.error
        try:
            await asyncio.sleep(0)
            await self.gate.wait()
        finally:
            self.writing = False
        if error is not None:
            raise error
        await super().commit(plan)


def begin(append: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.get_running_loop().create_task(append)


async def outcomes(appends: list[asyncio.Task[Any]]) -> list[Any]:
    return await asyncio.gather(*appends, return_exceptions=True)


def a_group_of_every_outcome(store: EventStore) -> list[asyncio.Task[Any]]:
    """Appends for one group, over a store whose stream s has one event, stored with the key old."""
    everything = AppendCondition(Query())
    return [
        begin(store.append("s", "T", {"n": 1})),
        begin(store.append("s", "T", {"n": 2}, expected_version=7)),
        begin(store.append("s", "T", {"n": 0}, idempotency_key="old")),
        begin(store.append("s", "Other", {"n": 0}, idempotency_key="old")),
        begin(store.append("s", "T", {"n": 3}, condition=everything)),
        begin(store.append("s", "T", {"n": 4}, idempotency_key="new")),
        begin(store.append("s", "T", {"n": 4}, idempotency_key="new")),
        begin(store.append_batch("s", [])),
        begin(store.append_batch("s", [], expected_version=NO_STREAM)),
        begin(store.append_streams([])),
        begin(store.append_streams([StreamAppend("a", [("T", {})]), StreamAppend("b", [("T", {})])])),
    ]


KINDS = [
    Event,
    ConcurrencyConflict,
    Event,
    IdempotencyConflict,
    AppendConditionFailed,
    Event,
    Event,
    list,
    ConcurrencyConflict,
    list,
    list,
]


@pytest.fixture
def engine() -> GatedEngine:
    return GatedEngine()


# When outcomes are told


async def test_no_outcome_of_a_group_is_told_before_its_write_has_ended(engine: GatedEngine) -> None:
    async with EventStore(engine) as store:
        await store.append("s", "T", {"n": 0}, idempotency_key="old")
        engine.gate.clear()
        group = a_group_of_every_outcome(store)
        await settled()
        assert engine.groups[1:] == [[1, 1, 2]]
        assert [append.done() for append in group] == [False] * len(group)
        engine.gate.set()
        assert [type(outcome) for outcome in await outcomes(group)] == KINDS


@pytest.mark.parametrize("error", [StoreFull("disk", "no space"), StoreFailed("disk", "sync")])
async def test_if_the_write_fails_every_member_of_the_group_gets_that_error(
    engine: GatedEngine, error: Exception
) -> None:
    async with EventStore(engine) as store:
        await store.append("s", "T", {"n": 0}, idempotency_key="old")
        engine.error = error
        failed = await outcomes(a_group_of_every_outcome(store))
        assert [type(outcome) for outcome in failed] == [type(error)] * len(KINDS)
        assert [outcome.args for outcome in failed] == [error.args] * len(KINDS)
        assert len(set(map(id, failed))) == len(KINDS)  # each an error, and so a traceback, of its own


async def test_an_error_that_no_engine_should_raise_is_told_as_the_cause(engine: GatedEngine) -> None:
    async with EventStore(engine) as store:
        engine.error = OSError("gone")
        group = [begin(store.append("s", "T", {})) for _ in range(3)]
        for append in group:
            with pytest.raises(EventStoreError, match="unknown") as caught:
                await append
            assert caught.value.__cause__ is engine.error


async def test_after_store_full_the_store_is_exactly_as_it_was(engine: GatedEngine) -> None:
    heard: list[Event] = []

    async def handler(events: list[Event]) -> None:
        heard.extend(events)

    async with EventStore(engine) as store, store.subscribe(after=END) as subscription:
        first = await store.append("s", "T", {"n": 0}, idempotency_key="old")
        assert await anext(subscription) == first
        store.on_commit(handler)
        engine.error = StoreFull("disk", "no space")
        await outcomes(a_group_of_every_outcome(store))
        step = begin(subscription.__anext__())
        await settled()
        assert not step.done()
        assert heard == []
        assert (await store.head(), await store.stream_version("s"), await store.stream_version("a")) == (1, 1, 0)
        assert await store.read_all().to_list() == [first]
        engine.error = None
        assert [type(outcome) for outcome in await outcomes(a_group_of_every_outcome(store))] == KINDS
        assert [event.event_id for event in await store.read_all().to_list()] == [1, 2, 3, 4, 5]
        assert (await step).event_id == 2
        assert [event.event_id for event in heard] == [2, 3, 4, 5]


async def test_what_failed_leaves_no_version_no_key_and_no_match_behind(engine: GatedEngine) -> None:
    async with EventStore(engine) as store:
        engine.error = StoreFull("disk", "no space")
        for _ in range(3):
            with pytest.raises(StoreFull):
                await store.append("s", "T", {"n": 1}, tags=["t"], idempotency_key="k")
        engine.error = None
        condition = AppendCondition(Query.where(tags="t"))
        event = await store.append(
            "s", "T", {"n": 2}, expected_version=NO_STREAM, condition=condition, idempotency_key="k"
        )
        assert (event.event_id, event.version, event.data) == (1, 1, {"n": 2})


async def test_what_waits_behind_a_failed_group_is_tried_on_its_own(engine: GatedEngine) -> None:
    async with EventStore(engine) as store:
        engine.gate.clear()
        engine.error = StoreFull("disk", "no space")
        first = begin(store.append("s", "T", {"n": 1}))
        await settled()
        engine.error = None
        second = begin(store.append("s", "T", {"n": 2}, expected_version=NO_STREAM))
        await settled()
        engine.gate.set()
        with pytest.raises(StoreFull):
            await first
        assert (await second).event_id == 1


async def test_nobody_sees_an_event_before_its_write_has_ended(engine: GatedEngine) -> None:
    heard: list[Event] = []

    async def handler(events: list[Event]) -> None:
        heard.extend(events)

    async with EventStore(engine) as store, store.subscribe() as subscription:
        store.on_commit(handler, wait=False)
        engine.gate.clear()
        append = begin(store.append("s", "T", {}, tags=["t"], idempotency_key="k"))
        step = begin(subscription.__anext__())
        await settled()
        assert engine.writing
        assert (await store.head(), await store.stream_version("s"), subscription.lag) == (0, 0, 0)
        assert await store.read_all().to_list() == await store.read_stream("s").to_list() == []
        assert not step.done()
        assert heard == []
        engine.gate.set()
        event = await append
        assert await store.read_all().to_list() == [await step] == heard == [event]


# How groups are formed


async def test_concurrent_appends_share_one_write(engine: GatedEngine) -> None:
    async with EventStore(engine) as store:
        await asyncio.gather(*(store.append("s", "T", {}) for _ in range(1000)))
        assert engine.groups == [[1] * 1000]


async def test_a_group_has_one_timestamp(engine: GatedEngine) -> None:
    ticks = count()
    async with EventStore(engine, clock=lambda: datetime(2026, 1, 1, 0, 0, next(ticks), tzinfo=UTC)) as store:
        for second in range(3):
            events = await asyncio.gather(*(store.append("s", "T", {}) for _ in range(10)))
            assert {event.timestamp.second for event in events} == {second}


async def test_latecomers_join_the_next_group(engine: GatedEngine) -> None:
    async def writer(stream_id: str) -> None:
        for _ in range(10):
            await store.append(stream_id, "T", {})

    async with EventStore(engine) as store:
        await asyncio.gather(*(writer(f"s{n}") for n in range(100)))
        assert engine.groups == [[1] * 100] * 10


async def test_what_is_staged_during_a_write_makes_up_the_next_group(engine: GatedEngine) -> None:
    async with EventStore(engine) as store:
        engine.gate.clear()
        appends = [begin(store.append("s", "T", {}))]
        await settled()
        appends += [begin(store.append("s", "T", {})) for _ in range(5)]
        await settled()
        assert engine.groups == [[1]]
        engine.gate.set()
        await outcomes(appends)
        assert engine.groups == [[1], [1] * 5]


async def test_a_group_is_bounded_in_events(engine: GatedEngine) -> None:
    async with EventStore(engine, limits=Limits(group_events_max=4)) as store:
        await asyncio.gather(*(store.append("s", "T", {}) for _ in range(10)))
        assert engine.groups == [[1] * 4, [1] * 4, [1] * 2]


async def test_a_group_is_bounded_in_bytes(engine: GatedEngine) -> None:
    async with EventStore(engine, limits=Limits(group_bytes_max=10_000)) as store:
        await asyncio.gather(*(store.append("s", "T", {"x": "x" * 4000}) for _ in range(5)))
        assert engine.groups == [[1] * 2, [1] * 2, [1]]


async def test_an_append_larger_than_a_group_is_a_group_of_its_own(engine: GatedEngine) -> None:
    async with EventStore(engine, limits=Limits(group_events_max=4)) as store:
        await asyncio.gather(*(store.append_batch("s", [("T", {})] * count) for count in (1, 10, 2, 2, 1)))
        assert engine.groups == [[1], [10], [2, 2], [1]]


async def test_a_group_without_anything_to_store_is_not_written(engine: GatedEngine) -> None:
    async with EventStore(engine) as store:
        appends = [begin(store.append_batch("s", [])), begin(store.append("s", "T", {}, expected_version=5))]
        assert [type(outcome) for outcome in await outcomes(appends)] == [list, ConcurrencyConflict]
        assert engine.groups == []


async def test_above_the_backlog_limit_no_further_group_is_formed(engine: GatedEngine) -> None:
    let_go = asyncio.Event()

    async def handler(events: list[Event]) -> None:
        await let_go.wait()

    async with EventStore(engine, limits=Limits(backlog_bytes_max=1)) as store:
        store.on_commit(handler, wait=False)
        await store.append("s", "T", {})
        held = [begin(store.append("s", "T", {"n": n})) for n in range(3)]
        await settled()
        assert len(engine.groups) == 1
        held[0].cancel()
        await asyncio.wait([held[0]])
        let_go.set()
        assert [event.data["n"] for event in await asyncio.gather(*held[1:])] == [1, 2]
        assert await store.head() == 3


async def test_the_queue_of_a_subscription_is_bounded_in_bytes() -> None:
    async def queued(limits: Limits, count: int) -> SubscriptionStatistics:
        async with EventStore(limits=limits) as store, store.subscribe() as subscription:
            await store.append("s", "T", {})
            await anext(subscription)
            for _ in range(count):
                await store.append("s", "T", {"x": "x" * 100})
            statistics = subscription.statistics()
            assert [(await anext(subscription)).event_id for _ in range(count)] == list(range(2, count + 2))
            return statistics

    size = (await queued(Limits(), 1)).queued_bytes
    assert size > 100
    at_the_bound = await queued(Limits(queue_bytes_max=3 * size), 3)
    assert (at_the_bound.queued_bytes, at_the_bound.fell_behind_count) == (3 * size, 0)
    over_the_bound = await queued(Limits(queue_bytes_max=3 * size), 4)
    assert (over_the_bound.queued_bytes, over_the_bound.fell_behind_count) == (0, 1)


# Cancellation


async def test_an_append_cancelled_while_it_is_written_is_stored_and_harms_no_other(engine: GatedEngine) -> None:
    async with EventStore(engine) as store:
        engine.gate.clear()
        group = [begin(store.append("s", "T", {"n": n})) for n in range(3)]
        await settled()
        waits = begin(store.append("s", "T", {"n": 3}))
        gives_up = begin(store.append("s", "T", {"n": 4}))
        await settled()
        group[1].cancel()
        gives_up.cancel()
        await settled()
        assert group[1].cancelled()
        assert gives_up.cancelled()
        engine.gate.set()
        assert [(await append).event_id for append in (group[0], group[2], waits)] == [1, 3, 4]
        assert [event.data["n"] for event in await store.read_all().to_list()] == [0, 1, 2, 3]


async def test_the_first_append_of_a_group_may_be_cancelled_like_any_other(engine: GatedEngine) -> None:
    async with EventStore(engine) as store:
        for cancelled in range(4):
            group = [begin(store.append("s", "T", {"n": n})) for n in range(4)]
            await asyncio.sleep(0)
            group[cancelled].cancel()
            await asyncio.wait(group)
            assert [append.cancelled() for append in group] == [n == cancelled for n in range(4)]
        assert await store.head() == 12


async def test_a_committer_that_dies_fails_what_is_staged_and_the_store_stays_usable(engine: GatedEngine) -> None:
    class Broken(BaseException):
        """Not even an Exception."""

    async with EventStore(engine) as store:
        engine.gate.clear()
        engine.error = Broken()
        first = begin(store.append("s", "T", {}))
        await settled()
        second = begin(store.append("s", "T", {}))
        await settled()
        engine.gate.set()
        for append in (first, second):
            with pytest.raises(EventStoreError, match="Broken"):
                await append
        engine.error = None
        assert (await store.append("s", "T", {})).event_id == 1


# Facts that cannot be had


async def test_an_append_whose_facts_cannot_be_had_fails_alone() -> None:
    class Forgetful(GatedEngine):
        async def facts(self, question: Question) -> Facts:
            if "bad" in question.streams:
                raise OSError("unreadable")
            return await super().facts(question)

    async with EventStore(Forgetful()) as store:
        appends = [begin(store.append(stream_id, "T", {}, expected_version=0)) for stream_id in ("a", "bad", "b")]
        results = await outcomes(appends)
        assert [type(result) for result in results] == [Event, OSError, Event]


async def test_facts_that_grow_too_old_while_an_append_waits_are_asked_for_again(engine: GatedEngine) -> None:
    async with EventStore(engine, limits=Limits(ring_bytes_max=1, group_events_max=1)) as store:
        engine.gate.clear()
        appends = [begin(store.append(f"s{n}", "T", {}, tags=[f"t{n}"])) for n in range(5)]
        condition = AppendCondition(Query.where(tags="t2"))
        late = [
            begin(store.append("new", "T", {}, condition=condition)),
            begin(store.append("s2", "T", {}, expected_version=NO_STREAM)),
            begin(store.append("s1", "T", {}, expected_version=1)),
        ]
        await settled()
        engine.gate.set()
        assert len(await asyncio.gather(*appends)) == 5
        failed, conflict, event = await outcomes(late)
        assert isinstance(failed, AppendConditionFailed)
        assert failed.event_id == 3
        assert isinstance(conflict, ConcurrencyConflict)
        assert conflict.actual == 1
        assert event.version == 2


async def test_an_append_whose_facts_grow_too_old_and_cannot_be_had_again_fails_alone() -> None:
    class Forgetful(GatedEngine):
        async def facts(self, question: Question) -> Facts:
            if "bad" in question.streams and self.groups:
                raise OSError("unreadable")
            return await super().facts(question)

    engine = Forgetful()
    async with EventStore(engine, limits=Limits(ring_bytes_max=1, group_events_max=1)) as store:
        engine.gate.clear()
        appends = [begin(store.append(stream_id, "T", {})) for stream_id in ("a", "b", "bad", "c")]
        await settled()
        engine.gate.set()
        first, second, bad, last = await outcomes(appends)
        assert isinstance(bad, EventStoreError)
        assert isinstance(bad.__cause__, OSError)
        assert [event.event_id for event in (first, second, last)] == [1, 2, 3]


async def test_an_append_of_nothing_at_all_with_a_key_comes_to_nothing(engine: GatedEngine) -> None:
    async with EventStore(engine) as store:
        assert await store.append_streams([], idempotency_key="k") == []
        assert await store.append_streams([], idempotency_key="k") == []
        assert engine.groups == []


# Closing


async def test_an_append_whose_facts_come_after_the_store_was_closed_is_refused() -> None:
    class Slow(GatedEngine):
        async def facts(self, question: Question) -> Facts:
            await self.gate.wait()
            return await super().facts(question)

    engine = Slow()
    engine.gate.clear()
    store = await EventStore.open(engine)
    append = begin(store.append("s", "T", {}))
    await settled()
    await store.aclose()
    engine.gate.set()
    with pytest.raises(StoreClosed):
        await append
    assert engine.groups == []


async def test_on_close_the_write_in_hand_ends_and_is_delivered_and_all_else_is_refused(engine: GatedEngine) -> None:
    heard: list[Event] = []

    async def handler(events: list[Event]) -> None:
        heard.extend(events)

    store = await EventStore.open(engine)
    store.on_commit(handler)
    engine.gate.clear()
    in_hand = begin(store.append("s", "T", {}))
    await settled()
    staged = begin(store.append("s", "T", {}))
    await settled()
    closing = begin(store.aclose())
    await settled()
    assert isinstance(staged.exception(), StoreClosed)
    with pytest.raises(StoreClosed):
        await store.append("s", "T", {})
    assert not closing.done()
    engine.gate.set()
    await closing
    assert heard == [await in_hand]


async def test_a_close_that_is_cancelled_while_a_write_is_in_hand_goes_on(engine: GatedEngine) -> None:
    store = await EventStore.open(engine)
    engine.gate.clear()
    append = begin(store.append("s", "T", {}))
    await settled()
    closing = begin(store.aclose())
    await settled()
    closing.cancel()
    await asyncio.wait([closing])
    engine.gate.set()
    assert (await append).event_id == 1
    await store.aclose()


# Against a model


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    groups=st.lists(st.lists(wishes, max_size=6), max_size=6),
    ring_bytes_max=st.sampled_from([1, 600, 4_000_000]),
    group_events_max=st.sampled_from([1, 3, 2048]),
)
async def test_any_groups_come_to_what_one_append_after_another_would(
    groups: list[list[Wish]], ring_bytes_max: int, group_events_max: int
) -> None:
    limits = Limits(ring_bytes_max=ring_bytes_max, group_events_max=group_events_max)
    async with await EventStore.open(GatedEngine(), limits=limits) as store:
        model = Model()
        for group in groups:
            results = await asyncio.gather(*(wish.send(store) for wish in group), return_exceptions=True)
            assert [plain(result) for result in results] == [model.append(wish) for wish in group]
        assert plain(await store.read_all().to_list()) == model.rows


# What depends on what, for engines that judge by themselves


def append(stream_id: str, *, expected: Any = None, key: str | None = None, condition: Any = None) -> Append:
    drafts = draft_events([NewEvent("T", {}, tags="x")], Limits())
    return make_append([StreamDrafts(stream_id, drafts, expected)], condition, key, Limits())


MATCHING, OTHER = (AppendCondition(Query.where(types=event_type)) for event_type in "TU")


@pytest.mark.parametrize(
    ("first", "second", "independent"),
    [
        (append("a"), append("a"), True),
        (append("a"), append("b", expected=0), True),
        (append("a", expected=0), append("a"), True),
        (append("a"), append("a", expected=1), False),
        (append("a"), append("a", expected=STREAM_EXISTS), False),
        (append("a", key="k"), append("a", key="l"), True),
        (append("a", key="k"), append("b", key="k"), True),
        (append("a", key="k"), append("a", key="k"), False),
        (append("a"), append("b", condition=OTHER), True),
        (append("a"), append("b", condition=MATCHING), False),
        (append("a", condition=MATCHING), append("b"), True),
    ],
)
def test_an_append_is_alone_in_its_group_where_it_depends_on_another(
    first: Append, second: Append, independent: bool
) -> None:
    independents = Independents()
    assert independents.admit(first)
    assert independents.admit(second) is independent
    assert independents.admit(append("z"))
