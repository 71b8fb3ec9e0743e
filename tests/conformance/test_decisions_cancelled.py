"""Decisions cancelled at any await: nothing is stored by halves or twice, and nothing is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from aiostore import Decider, Decision, Event, EventStore, NewEvent, Query, StreamAppend
from aiostore.engines.memory import MemoryEngine
from tests.conformance.test_cancellation import checked, ended, main, make_place, new_place, quiet, start
from tests.scheduler.cancelling import cancel_everywhere
from tests.scheduler.engines import Place

__all__ = ["make_place", "new_place", "quiet"]  # fixtures

ABOUT = Query.where(tags="counted")


def evolve(total: int, event: Event) -> int:
    assert event.data["n"] == total, "no event is missed, and none is taken twice"
    return total + 1


async def decide(over: bool, total: int) -> Any:
    await asyncio.sleep(0)
    events = [NewEvent("Counted", {"n": total + n}, tags=["counted"]) for n in range(2)]
    return StreamAppend("s", events) if over else events


def counter() -> Decider[bool, int]:
    return Decider(0, evolve, decide, name="counter", snapshot_every=3)


async def count(store: EventStore, decider: Decider[bool, int], over: bool, key: str | None) -> Decision[int]:
    if over:
        return await decider.execute_over(
            store, ABOUT, over, idempotency_key=None if key is None else ("s", key), attempts=50
        )
    return await decider.execute(store, "s", over, idempotency_key=key, attempts=50)


def scenario_of(new_place: Callable[[int], Place], over: bool, key: str | None) -> Callable[[int], Any]:
    async def scenario(number: int) -> None:
        decider = counter()
        async with checked(new_place(number)) as store:
            await store.append("s", "Counted", {"n": 0}, tags=["counted"])
            tasks = start(*(count(store, decider, over, key and f"{key}{n}") for n in range(2)))
            whole = await ended(tasks)
            stored = (await store.head() - 1) // 2
            assert len(whole) <= stored <= 2
            assert {event for task in whole for event in task.result().events} <= set(await store.read_all().to_list())
            if key is not None:  # what may or may not be stored is sent again with its key
                again = [await count(store, decider, over, f"{key}{n}") for n in range(2)]
                for task, decision in zip(tasks, again, strict=True):
                    assert task.cancelled() or task.result() == decision
                assert await store.head() == 5
            await decider.flush(store)
            # What was read on from snapshots is what is read from the first event.
            plain = Decider(0, evolve, decide)
            assert (await count(store, counter(), over, None)).state == await store.head()
            assert (await count(store, plain, over, None)).state == await store.head()
            await decider.flush(store)

    return lambda number: main(scenario(number))


def test_a_decision_cancelled_anywhere_harms_no_other(new_place: Callable[[int], Place]) -> None:
    names = cancel_everywhere(scenario_of(new_place, over=False, key=None))
    suspends = not isinstance(new_place(-1)(), MemoryEngine)
    for part in ("count", "aiostore committer", *["snapshots of decider"] * suspends):
        assert any(part in name for name in names), (part, set(names))


def test_a_decision_over_a_query_cancelled_anywhere_harms_no_other(new_place: Callable[[int], Place]) -> None:
    cancel_everywhere(scenario_of(new_place, over=True, key=None))


@pytest.mark.parametrize("over", [False, True])
def test_a_decision_cancelled_anywhere_is_sent_again_with_its_key(
    new_place: Callable[[int], Place], over: bool
) -> None:
    cancel_everywhere(scenario_of(new_place, over=over, key="k"))
