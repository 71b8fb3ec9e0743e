"""Snapshots of decisions: where an execution begins, when they are saved, and that none gives a wrong state."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import weakref
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from aiostore import Decider, Event, EventStore, Query, StoreClosed, StoreFull, StreamAppend
from tests.conformance import engine_of, reopen


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, logger="aiostore")
    return caplog


class Counting:
    """Sums up what it adds, and notes what it had to read."""

    def __init__(self, name: str = "sum", every: int | None = 3, **options: Any) -> None:
        self.read: list[int] = []
        self.decider: Decider[Any, int] = Decider(
            0, self.evolve, self.decide, name=name, snapshot_every=every, **options
        )

    def evolve(self, total: int, event: Event) -> int:
        self.read.append(event.event_id)
        amount: int = event.data["n"]
        return total + amount

    def decide(self, command: Any, total: int) -> Any:
        return command

    async def add(self, store: EventStore, *numbers: int) -> int:
        """The sum after them; the snapshot that is due is saved."""
        decision = await self.decider.execute(store, "s", [("Added", {"n": n}) for n in numbers])
        await self.decider.flush(store)
        return decision.state

    async def over(self, store: EventStore, query: Query) -> int:
        """The sum of what matches; the snapshot that is due is saved."""
        decision = await self.decider.execute_over(store, query, None)
        await self.decider.flush(store)
        return decision.state


KEY = "decider/sum/stream/s"


async def test_an_execution_begins_from_the_last_snapshot(store: EventStore) -> None:
    assert await Counting().add(store, 1, 2, 3) == 6
    again = Counting()
    assert await again.add(store, 4) == 10
    assert again.read == [4]
    assert await again.add(store) == 10
    assert await again.add(store, 5) == 15
    assert again.read == [4, 4, 4, 5]
    other = Counting()
    decision = await other.decider.execute(store, "s", [])
    assert (decision.state, decision.version, decision.position) == (15, 5, 5)
    assert other.read == [4, 5]


async def test_it_is_saved_after_so_many_events_read_or_stored(store: EventStore) -> None:
    counting = Counting()
    kept = []
    for n in range(7):
        await counting.add(store, n)
        state = await engine_of(store).load_state(KEY)
        kept.append(state and (state.position, state.revision))
    assert kept == [None, None, (3, 1), (3, 1), (3, 1), (6, 2), (6, 2)]
    await store.append_batch("t", [("Added", {"n": 1})] * 4)
    await counting.decider.execute(store, "t", [])
    await counting.decider.flush(store)
    state = await engine_of(store).load_state("decider/sum/stream/t")
    assert state is not None
    assert state.position == 11


async def test_without_snapshot_every_nothing_is_kept(store: EventStore) -> None:
    counting = Counting(every=None)
    await counting.add(store, *range(10))
    assert await engine_of(store).load_state(KEY) is None
    await counting.add(store)
    assert len(counting.read) == 20


async def test_they_outlive_the_store(store: EventStore) -> None:
    await Counting().add(store, 1, 2, 3)
    async with await reopen(store) as again:
        counting = Counting()
        assert await counting.add(again, 4) == 10
        assert counting.read == [4]


async def test_over_a_query_each_query_has_its_own(store: EventStore) -> None:
    about_x, about_y = Query.where(tags="x"), Query.where(tags="y") | Query.where(types="Y")
    same = Query.where(types="Y") | Query.where(tags="y")
    for tag in "xyxyx":
        await store.append(tag, "Added", {"n": 1}, tags=[tag])
    counting = Counting(every=2)
    assert (await counting.over(store, about_x), await counting.over(store, about_y)) == (3, 2)
    await store.append("z", "Added", {"n": 1})
    counting.read.clear()
    assert (await counting.over(store, about_x), await counting.over(store, about_y)) == (3, 2)
    assert await counting.over(store, same) == 2
    assert counting.read == []
    new = StreamAppend("x", [("Y", {"n": 5})])
    decision = await counting.decider.execute_over(store, about_y, new)
    assert (decision.state, decision.position, counting.read) == (7, 7, [7])


async def test_a_conflict_after_a_snapshot_is_read_from_it_on(store: EventStore) -> None:
    counting = Counting()
    await counting.add(store, 1, 2, 3)
    counting.read.clear()
    interrupted = False

    async def decide(command: Any, total: int) -> Any:
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            await store.append("s", "Added", {"n": 10})
        return "Added", {"n": 20}

    decider: Decider[None, int] = Decider(0, counting.evolve, decide, name="sum", snapshot_every=100)
    assert (await decider.execute(store, "s", None)).state == 36
    assert counting.read == [4, 5]


# What does not fit


async def damaged(store: EventStore, change: Any) -> None:
    """Three events that come to 6, and their snapshot, changed."""
    await Counting().add(store, 1, 2, 3)
    kept = await engine_of(store).load_state(KEY)
    assert kept is not None
    await engine_of(store).save_state(KEY, kept.position, change(kept.value))


@pytest.mark.parametrize(
    "change",
    [
        lambda value: b"",
        lambda value: value[:-1],
        lambda value: value + b"\0",
        lambda value: b"nonsense",
        lambda value: msgspec.msgpack.encode([1, 2]),
    ],
)
async def test_a_damaged_one_is_discarded(store: EventStore, change: Any, log: pytest.LogCaptureFixture) -> None:
    await damaged(store, change)
    counting = Counting()
    assert await counting.add(store) == 6
    assert counting.read == [1, 2, 3]
    assert "is discarded" in log.messages[0]
    log.clear()
    assert await counting.add(store) == 6  # it was made anew
    assert counting.read == [1, 2, 3]
    assert log.messages == []


async def test_no_flipped_bit_gives_another_state(store: EventStore) -> None:
    await Counting().add(store, 1, 2, 3)
    engine = engine_of(store)
    kept = await engine.load_state(KEY)
    assert kept is not None
    for bit in range(0, len(kept.value) * 8, 1 if not engine.durable else 23):
        flipped = bytearray(kept.value)
        flipped[bit // 8] ^= 1 << bit % 8
        await engine.save_state(KEY, kept.position, bytes(flipped))
        assert (await Counting(every=99).decider.execute(store, "s", [])).state == 6


async def test_one_of_another_type_is_discarded(store: EventStore, log: pytest.LogCaptureFixture) -> None:
    await Counting().add(store, 1, 2, 3)
    typed = Counting(state_type=int)
    assert await typed.add(store) == 6
    assert typed.read == [1, 2, 3]
    assert "state_type" in log.messages[0]


async def test_one_of_events_that_the_log_does_not_have_is_discarded(
    store: EventStore, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await Counting().add(store, 1, 2, 3)
    engine = engine_of(store)
    kept = await engine.load_state(KEY)
    assert kept is not None

    async def load_state(key: str) -> Any:
        return kept._replace(fits=False)

    monkeypatch.setattr(engine, "load_state", load_state)
    counting = Counting()
    assert await counting.add(store) == 6
    assert counting.read == [1, 2, 3]
    assert "does not have the event" in log.messages[0]


async def test_another_name_has_snapshots_of_its_own(store: EventStore) -> None:
    await Counting().add(store, 1, 2, 3)
    other = Counting("other")
    await other.add(store)
    assert other.read == [1, 2, 3]


# What fails


async def test_where_saving_or_loading_fails_the_decision_does_not(
    store: EventStore, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(store)

    async def fail(*args: Any, **options: Any) -> Any:
        raise StoreFull("here", "no room")

    counting = Counting()
    with monkeypatch.context() as patch:
        patch.setattr(engine, "save_state", fail)
        assert await counting.add(store, 1, 2, 3) == 6
    assert "without a snapshot" in log.messages[-1]
    await counting.add(store)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "load_state", fail)
        assert await counting.add(store, 4) == 10
    assert "from the first event" in log.messages[-1]


async def test_where_saving_has_a_fault_the_decision_does_not(
    store: EventStore, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*args: Any, **options: Any) -> Any:
        raise LookupError("a fault")

    counting = Counting()
    with monkeypatch.context() as patch:
        patch.setattr(engine_of(store), "save_state", fail)
        assert await counting.add(store, 1, 2, 3) == 6
    assert "saving snapshots of decider 'sum' failed" in log.messages[-1]
    await counting.add(store, 4)
    assert await engine_of(store).load_state(KEY) is not None


async def test_a_state_that_cannot_be_kept_is_decided_on_all_the_same(
    store: EventStore, log: pytest.LogCaptureFixture
) -> None:
    decider: Decider[None, Any] = Decider(
        list, lambda state, event: [*state, object()], lambda command, state: ("E", {}), name="n", snapshot_every=1
    )
    for n in range(1, 4):
        assert len((await decider.execute(store, "s", None)).state) == n
    await decider.flush(store)
    assert "without a snapshot" in log.messages[-1]


async def test_saving_does_not_hold_up_the_answer(store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()
    engine = engine_of(store)
    save_state = engine.save_state

    async def save_late(*args: Any, **options: Any) -> int:
        await gate.wait()
        return await save_state(*args, **options)

    monkeypatch.setattr(engine, "save_state", save_late)
    decider = Counting().decider
    for n in range(1, 10):
        assert (await decider.execute(store, "s", ("Added", {"n": 1}))).state == n
    assert await engine.load_state(KEY) is None
    gate.set()
    await decider.flush(store)
    kept = await engine.load_state(KEY)
    assert kept is not None
    assert kept.position == 9  # of those that waited, the last


async def test_a_store_may_be_closed_before_they_are_saved(store: EventStore, log: pytest.LogCaptureFixture) -> None:
    decider = Counting().decider
    await decider.execute(store, "s", [("Added", {"n": 1})] * 3)
    await store.aclose()
    await decider.flush(store)
    with pytest.raises(StoreClosed):
        await decider.execute(store, "s", [])
    assert log.messages == []


async def test_a_decider_does_not_keep_a_store_alive() -> None:
    decider = Counting().decider
    async with EventStore() as store:
        await decider.execute(store, "s", [("Added", {"n": 1})] * 3)
        await decider.flush(store)
    gone = weakref.ref(store)
    del store
    gc.collect()
    assert gone() is None


async def test_one_decider_serves_several_stores() -> None:
    counting = Counting(every=1)
    async with EventStore() as first, EventStore() as second:
        assert await counting.add(first, 1) == 1
        assert await counting.add(second, 2) == 2
        assert await counting.add(first, 1) == 2
        assert await counting.add(second, 2) == 4


def test_one_decider_serves_several_loops() -> None:
    counting = Counting(every=1)

    async def add() -> int:
        async with EventStore() as store:
            return await counting.add(store, 1)

    assert [asyncio.run(add()) for _ in range(3)] == [1, 1, 1]


# States of any type


@dataclass
class Cart:
    items: dict[str, int] = field(default_factory=dict)
    paid: bool = False


async def test_a_state_of_a_type_comes_back_as_it_is(store: EventStore) -> None:
    def evolve(cart: Cart, event: Event) -> Cart | None:
        if event.event_type == "Paid":
            return dataclasses.replace(cart, paid=True)
        cart.items[event.data["sku"]] = cart.items.get(event.data["sku"], 0) + 1
        return None

    def decide(command: str, cart: Cart) -> Any:
        assert isinstance(cart, Cart)
        if command == "pay":
            assert not cart.paid
            return "Paid", {}
        return "ItemAdded", {"sku": command}

    decider = Decider(Cart, evolve, decide, name="cart", state_type=Cart, snapshot_every=1)
    for command in ("tea", "pot", "tea"):
        await decider.execute(store, "cart", command)
        await decider.flush(store)
    assert (await decider.execute(store, "cart", "pay")).state == Cart({"tea": 2, "pot": 1}, paid=True)
