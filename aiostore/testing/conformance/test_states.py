"""The small store of states beside the events: by key, with revisions, bound to the events they were made of."""

from __future__ import annotations

import asyncio

import pytest

from aiostore import EventStore, StateConflict
from aiostore.engine import Saving, State, prefix_end
from aiostore.testing.conformance import engine_of, reopen


async def test_what_is_saved_is_loaded(store: EventStore) -> None:
    engine = engine_of(store)
    assert await engine.load_state("k") is None
    await store.append("s", "E", {})
    assert await engine.save_state("k", 1, b"\x00\xff") == 1
    assert await engine.save_state("other", 0, b"") == 1
    assert await engine.load_state("k") == State(1, b"\x00\xff", 1, fits=True)
    assert await engine.load_state("other") == State(0, b"", 1, fits=True)
    assert await engine.save_state("k", 1, b"new") == 2
    assert await engine.load_state("k") == State(1, b"new", 2, fits=True)


async def test_it_outlives_the_store(store: EventStore) -> None:
    await store.append("s", "E", {})
    await engine_of(store).save_state("k", 1, b"v" * 100_000)
    async with await reopen(store) as again:
        assert await engine_of(again).load_state("k") == State(1, b"v" * 100_000, 1, fits=True)


async def test_an_expected_revision_that_is_not_there_saves_nothing(store: EventStore) -> None:
    engine = engine_of(store)
    with pytest.raises(StateConflict) as caught:
        await engine.save_state("k", 0, b"a", expected_revision=1)
    assert (caught.value.key, caught.value.expected, caught.value.actual) == ("k", 1, 0)
    assert await engine.load_state("k") is None
    assert await engine.save_state("k", 0, b"a", expected_revision=0) == 1
    with pytest.raises(StateConflict):
        await engine.save_state("k", 0, b"b", expected_revision=0)
    assert await engine.save_state("k", 0, b"c", expected_revision=1) == 2
    assert await engine.load_state("k") == State(0, b"c", 2, fits=True)


async def test_of_many_that_expect_the_same_revision_one_saves(store: EventStore) -> None:
    engine = engine_of(store)
    saves = [engine.save_state("k", 0, b"%d" % n, expected_revision=0) for n in range(20)]
    outcomes = await asyncio.gather(*saves, return_exceptions=True)
    assert outcomes.count(1) == 1
    assert sum(isinstance(outcome, StateConflict) for outcome in outcomes) == 19
    kept = await engine.load_state("k")
    assert kept is not None
    assert outcomes[int(kept.value)] == 1


async def test_keys_are_any_text(store: EventStore) -> None:
    engine = engine_of(store)
    keys = ["", "'; DROP TABLE states; --", "ключ", "a" * 1000, "k%20?mode=ro#"]
    for key in keys:
        await engine.save_state(key, 0, key.encode())
    for key in keys:
        kept = await engine.load_state(key)
        assert kept is not None
        assert kept.value == key.encode()


async def test_states_and_appends_go_on_beside_each_other(store: EventStore) -> None:
    async def append() -> None:
        for _ in range(50):
            await store.append("s", "E", {})

    async def save() -> None:
        for n in range(10):
            head = await store.head()
            await engine_of(store).save_state("k", head, b"%d" % n)

    await asyncio.gather(append(), save(), append())
    kept = await engine_of(store).load_state("k")
    assert kept is not None
    assert (kept.value, kept.fits, kept.revision) == (b"9", True, 10)


async def test_several_are_saved_in_one_step_or_none(store: EventStore) -> None:
    engine = engine_of(store)
    await store.append("s", "E", {})
    assert await engine.save_states(1, [Saving("b", b"b"), Saving("a", b"a", 0)]) == [1, 1]
    with pytest.raises(StateConflict) as caught:
        await engine.save_states(0, [Saving("a", b"new"), Saving("b", b"new", 7), Saving("c", b"new")])
    assert (caught.value.key, caught.value.expected, caught.value.actual) == ("b", 7, 1)
    assert await engine.load_states("") == {"a": State(1, b"a", 1), "b": State(1, b"b", 1)}
    assert await engine.save_states(1, [Saving("a", None, 1), Saving("b", b"B", 1), Saving("c", None)]) == [0, 2, 0]
    assert await engine.load_states("") == {"b": State(1, b"B", 2)}
    assert await engine.save_states(0, [Saving("a", b"again", 0)]) == [1]
    assert await engine.save_states(0, []) == []


async def test_those_of_a_prefix_are_loaded_in_the_order_of_their_keys(store: EventStore) -> None:
    engine = engine_of(store)
    keys = ["p", "p/", "p/a", "p/b%", "p/b_", "p/\ue000", "p/\U00010000", "p/\U0010ffff", "p0", "o", "q"]
    await engine.save_states(0, [Saving(key, key.encode()) for key in reversed(keys)])
    assert list(await engine.load_states("p/")) == keys[1:8]
    assert list(await engine.load_states("p/", after="p/a", limit=2)) == ["p/b%", "p/b_"]
    assert await engine.load_states("p/", after="p0") == {}
    assert list(await engine.load_states("", limit=3)) == ["o", "p", "p/"]
    assert list(await engine.load_states("p/\U0010ffff")) == ["p/\U0010ffff"]
    assert [state.value.decode() for state in (await engine.load_states("p")).values()] == keys[:9]


@pytest.mark.parametrize(
    ("prefix", "end"),
    [("", None), ("a", "b"), ("p/", "p0"), ("a\ud7ff", "a\ue000"), ("a\U0010ffff", "b"), ("\U0010ffff", None)],
)
def test_the_end_of_a_prefix(prefix: str, end: str | None) -> None:
    assert prefix_end(prefix) == end
