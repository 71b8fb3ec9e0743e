"""What members of a group learn, and when: nothing before the group's write has ended."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aiostore import AppendCondition, AppendConditionFailed, ConcurrencyConflict, Event, EventStore, Query, StoreFull
from aiostore.engine import Plan
from aiostore.engines.memory import MemoryEngine


class GatedEngine(MemoryEngine):
    """Commits when it is let, or fails."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.entered = asyncio.Event()
        self.failure: Exception | None = None

    async def commit(self, plan: Plan) -> None:
        self.entered.set()
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        await super().commit(plan)


async def appends(store: EventStore, case: str) -> list[asyncio.Task[Any]]:
    """Two appends of one group, of which the second depends on the first."""
    first: dict[str, Any] = {"idempotency_key": "k"} if case in ("duplicate", "other events") else {}
    seconds: dict[str, dict[str, Any]] = {
        "conflict": {"expected_version": 0},
        "condition": {"condition": AppendCondition(Query.where(types="T"))},
        "duplicate": {"idempotency_key": "k"},
        "other events": {"idempotency_key": "k"},
    }
    second = seconds[case]
    data = {"other": case == "other events"}
    return [
        asyncio.create_task(store.append("s", "T", {"other": False}, **first)),
        asyncio.create_task(store.append("s", "T", data, **second)),
    ]


CASES = ["conflict", "condition", "duplicate", "other events"]


@pytest.mark.parametrize("case", CASES)
async def test_no_outcome_is_told_before_the_group_is_stored(case: str) -> None:
    engine = GatedEngine()
    async with EventStore(engine) as store:
        tasks = await appends(store, case)
        await engine.entered.wait()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not any(task.done() for task in tasks), "it depends on what is not stored yet"
        engine.gate.set()
        event, outcome = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(event, Event)
        assert event.event_id == 1
        if case == "conflict":
            assert isinstance(outcome, ConcurrencyConflict)
        elif case == "condition":
            assert isinstance(outcome, AppendConditionFailed)
        elif case == "duplicate":
            assert outcome == event
        assert await store.head() == 1


@pytest.mark.parametrize("case", CASES)
async def test_where_the_write_fails_that_is_the_outcome_of_all(case: str) -> None:
    engine = GatedEngine()
    engine.failure = StoreFull("memory", "so the test has it")
    engine.gate.set()
    async with EventStore(engine) as store:
        outcomes = await asyncio.gather(*await appends(store, case), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [StoreFull, StoreFull]
        assert outcomes[0] is not outcomes[1]
        assert await store.head() == 0
        assert await store.read_all().to_list() == []
