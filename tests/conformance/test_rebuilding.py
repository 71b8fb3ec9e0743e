"""Rebuilding beside the running version: one switch, no gap, no double, and no effect a second time."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from aiostore import EngineUnsupported, Event, EventStore, LiveProjection, Projection, Query
from aiostore.waiting import SEAM_EVENTS
from tests.conformance import engine_of, reopen
from tests.conftest import OpenStore
from tests.scheduler import running, until

Sent = list[tuple[int, int]]
"""What effects had: the event_id, and how many events the state had then."""


def noting(store: EventStore, kind: type[Projection[Any]] = Projection, **options: Any) -> Projection[Any]:
    """A projection whose state is the list of the event_ids that it had."""
    projection = kind("noted", store, initial=list, **options)
    projection.when("E", lambda state, event: state.append(event.event_id))
    return projection


def live(store: EventStore, **options: Any) -> LiveProjection[Any]:
    projection = noting(store, LiveProjection, **options)
    assert isinstance(projection, LiveProjection)
    return projection


def sending(projection: Projection[Any]) -> Sent:
    sent: Sent = []
    projection.effect("E", lambda state, event: sent.append((event.event_id, len(state))))
    return sent


async def append(store: EventStore, count: int, event_type: str = "E") -> None:
    await store.append_batch("s", [(event_type, {})] * count)


def squares(state: list[int], event: Event) -> None:
    state.append(event.event_id**2)


# Rebuilding


async def test_other_handlers_make_the_state_anew_up_to_where_it_was(store: EventStore) -> None:
    await append(store, 5)
    projection = noting(store)
    await projection.catch_up()
    await append(store, 2)
    before = projection.state
    await projection.rebuild(handlers={"E": squares})
    assert (projection.state, projection.position, before) == ([1, 4, 9, 16, 25], 5, [1, 2, 3, 4, 5])
    assert await projection.catch_up() == 2
    assert projection.state == [1, 4, 9, 16, 25, 36, 49]
    await projection.rebuild()
    assert projection.state == [1, 4, 9, 16, 25, 36, 49]
    projection.when("F", lambda state, event: None)


async def test_a_rebuild_during_live_appends_switches_without_a_gap(store: EventStore) -> None:
    await append(store, 3000)
    stopped = False
    seen: list[tuple[int, int, bool]] = []

    async def appending(stream_id: str) -> None:
        while not stopped:
            event = (await store.append_batch(stream_id, [("E", {})] * 3))[-1]
            state = projection.state
            seen.append((projection.position, len(state), state[-1] == -projection.position))
            assert projection.position >= event.event_id

    async with live(store) as projection:
        tasks = [asyncio.create_task(appending(f"s-{n}")) for n in range(5)]
        async with running(*tasks):
            await until(lambda: projection.position > 3100)
            await projection.rebuild({"E": lambda state, event: state.append(-event.event_id)})
            switched_at = projection.position
            await until(lambda: projection.position > switched_at + 100)
            stopped = True
            await asyncio.gather(*tasks)
        assert all(position == length for position, length, _ in seen)
        assert projection.state == [-n for n in range(1, await store.head() + 1)]
        assert [negative for _, _, negative in seen] == sorted(negative for _, _, negative in seen)
        assert seen[-1][2]


async def test_the_running_version_is_served_and_updated_meanwhile(store: EventStore) -> None:
    gate = asyncio.Event()

    async def slowly(state: list[int], event: Event) -> None:
        await gate.wait()
        state.append(-event.event_id)

    await append(store, SEAM_EVENTS + 10)
    async with live(store) as projection:
        rebuilding = asyncio.create_task(projection.rebuild({"E": slowly}))
        async with running(rebuilding):
            await append(store, 5)
            assert projection.state == list(range(1, SEAM_EVENTS + 16))
            with pytest.raises(RuntimeError, match="is being rebuilt already"):
                await projection.rebuild()
            assert projection.state[-1] == SEAM_EVENTS + 15
            gate.set()
            await rebuilding
        assert projection.state == [-n for n in range(1, SEAM_EVENTS + 16)]
        await append(store, 1)
        assert projection.state[-1] == -(SEAM_EVENTS + 16)


@pytest.mark.parametrize("cancelled", [False, True])
async def test_one_that_fails_or_is_cancelled_leaves_all_as_it_was(store: EventStore, cancelled: bool) -> None:
    reached = asyncio.Event()

    async def handle(state: list[int], event: Event) -> None:
        if event.event_id == 3:
            reached.set()
            if cancelled:
                await asyncio.Event().wait()
            raise LookupError("mine")

    async with live(store) as projection:
        await append(store, SEAM_EVENTS + 3)
        state = projection.state
        rebuilding = asyncio.create_task(projection.rebuild({"E": handle}))
        async with running(rebuilding):
            await reached.wait()
            if cancelled:
                rebuilding.cancel()
            with pytest.raises(asyncio.CancelledError if cancelled else LookupError):
                await rebuilding
        assert projection.state is state
        assert (projection.is_live, projection.error) == (True, None)
        await append(store, 1)
        assert projection.state == list(range(1, SEAM_EVENTS + 5))
        await projection.rebuild()
        assert projection.state == list(range(1, SEAM_EVENTS + 5))


async def test_one_that_stopped_is_rebuilt_with_better_handlers_and_goes_on(store: EventStore) -> None:
    def fail(state: list[int], event: Event) -> None:
        if event.event_id == 3:
            raise LookupError
        state.append(event.event_id)

    projection: LiveProjection[Any] = LiveProjection("p", store, initial=list)
    projection.when("E", fail)
    async with projection:
        await append(store, 4)
        assert not projection.is_live
        await projection.rebuild({"E": squares})
        assert projection.state == [1, 4]
        assert await projection.catch_up() == 2
        await append(store, 1)
        assert projection.state == [1, 4, 9, 16, 25]


async def test_the_snapshot_is_that_of_the_new_version(store: EventStore) -> None:
    projection = noting(store, snapshot_interval=3)
    await append(store, 4)
    await projection.catch_up()
    await projection.rebuild({"E": squares})
    again: Projection[Any] = Projection("noted", store, initial=list, snapshot_interval=3)
    again.when("E", squares)
    assert await again.catch_up() == 0
    assert again.state == [1, 4, 9, 16]
    plain = noting(store)
    await plain.load_snapshot()
    await plain.rebuild()
    assert plain.state == [1, 2, 3, 4]
    assert await again.load_snapshot()
    assert again.state == [1, 2, 3, 4]


async def test_a_rebuild_honours_the_query_and_begins_from_the_snapshot_s_position(store: EventStore) -> None:
    query = Query.where(types="E")
    for event_type in "EFEEF":
        await append(store, 1, event_type)
    first = noting(store, query=query, snapshot_interval=2)
    await first.catch_up()
    again = noting(store, query=query, snapshot_interval=2)
    await again.rebuild({"E": squares})
    assert (again.state, again.position) == ([1, 9], 3)
    await again.catch_up()
    assert (again.state, again.position) == ([1, 9, 16], 5)


async def test_bad_handlers_and_handlers_of_its_own_are_refused(store: EventStore) -> None:
    projection = noting(store)
    with pytest.raises(TypeError, match="callable"):
        await projection.rebuild({"E": 7})  # type: ignore[dict-item]

    @projection.when("Rebuild")
    async def rebuild(state: Any, event: Event) -> None:
        await projection.rebuild()

    await append(store, 1, "Rebuild")
    with pytest.raises(RuntimeError, match="wait for itself"):
        await projection.catch_up()


# Effects


@pytest.mark.parametrize("kind", [Projection, LiveProjection])
async def test_effects_come_once_for_each_event_after_the_state_has_it(
    store: EventStore, kind: type[Projection[Any]]
) -> None:
    await append(store, 3)
    projection = noting(store, kind)
    sent = sending(projection)
    await projection.catch_up()
    if isinstance(projection, LiveProjection):
        async with projection:
            await append(store, 2)
    else:
        await append(store, 2)
        await projection.catch_up()
    expected = [(n, n) for n in range(1, 6)]
    assert sent == expected
    await projection.rebuild({"E": squares})
    await projection.as_of(3)
    assert sent == expected
    await append(store, 1)
    await projection.catch_up()
    assert sent == [*expected, (6, 6)]


@pytest.mark.parametrize("interval", [None, 1, 3])
async def test_what_is_made_again_after_a_restart_has_no_effects(store: EventStore, interval: int | None) -> None:
    sent: Sent = []
    for count in (5, 0, 2, 4):
        await append(store, count)
        await append(store, 3, "F")
        projection = noting(store, snapshot_interval=interval)
        projection.effect("E", lambda state, event: sent.append((event.event_id, len(state))))
        await projection.catch_up()
        assert len(projection.state) == len(sent)
    assert [length for _, length in sent] == list(range(1, 12))


async def test_they_outlive_the_process(store: EventStore) -> None:
    async with live(store) as projection:
        await append(store, 3)
    later = live(store)
    sent = sending(later)
    async with later:
        await append(store, 2)
    assert [event_id for event_id, _ in sent] == [1, 2, 3, 4, 5]
    async with await reopen(store) as again:
        projection = live(again)
        sent = sending(projection)
        async with projection:
            assert sent == []
            await append(again, 1)
        assert sent == [(6, 6)]


async def test_one_that_raises_stops_it_and_comes_again_with_the_state_as_it_was(store: EventStore) -> None:
    await append(store, 4)
    broken, sent = True, []

    def send(state: list[int], event: Event) -> None:
        if broken and event.event_id == 3:
            raise LookupError("mine")
        sent.append((event.event_id, list(state)))

    projection = noting(store)
    projection.effect("E", send)
    for _ in range(2):
        with pytest.raises(LookupError, match="mine"):
            await projection.catch_up()
        assert isinstance(projection.error, LookupError)
        assert (projection.state, projection.position) == ([1, 2, 3], 3)
    broken = False
    await projection.catch_up()
    assert [event_id for event_id, _ in sent] == [1, 2, 3, 4]
    assert sent[2] == (3, [1, 2, 3])
    assert projection.state == [1, 2, 3, 4]


async def test_one_that_failed_comes_after_a_restart_also_where_a_snapshot_was_saved(store: EventStore) -> None:
    await append(store, 3)
    projection = noting(store)

    @projection.effect("E")
    async def fail(state: list[int], event: Event) -> None:
        if event.event_id == 3:
            raise LookupError

    with pytest.raises(LookupError):
        await projection.catch_up()
    await projection.save_snapshot()
    again = noting(store)
    sent = sending(again)
    assert not await again.load_snapshot(), "with it, the state would be ahead of the effect"
    await again.catch_up()
    assert sent == [(3, 3)]


async def test_live_an_effect_that_raises_stops_it_and_appends_go_on(store: EventStore) -> None:
    projection, broken, sent = live(store), True, []

    @projection.effect("E")
    async def send(state: list[int], event: Event) -> None:
        await asyncio.sleep(0)
        if broken and event.event_id == 2:
            raise LookupError("mine")
        sent.append(event.event_id)

    async with projection:
        for _ in range(3):
            await append(store, 1)
        assert not projection.is_live
        with pytest.raises(LookupError, match="mine"):
            await projection.wait_for(3)
        broken = False
        await projection.catch_up()
        await append(store, 1)
        assert projection.state == sent == [1, 2, 3, 4]


async def test_an_effect_may_append(store: EventStore) -> None:
    projection = live(store)

    @projection.effect("E")
    async def answer(state: list[int], event: Event) -> None:
        await store.append("answers", "Answered", {}, idempotency_key=str(event.event_id))

    async with projection:
        await append(store, 3)
        await projection.catch_up()
        assert await store.stream_version("answers") == 3
        assert await store.head() == 6


async def test_a_projection_with_a_snapshot_from_before_begins_with_the_events_behind_it(store: EventStore) -> None:
    await append(store, 3)
    first = noting(store)
    await first.catch_up()
    await first.save_snapshot()
    await append(store, 2)
    again = noting(store)
    sent = sending(again)
    assert await again.load_snapshot()
    await again.catch_up()
    assert sent == [(4, 4), (5, 5)]


async def test_effects_are_registered_first_and_once(store: EventStore) -> None:
    projection = noting(store)
    sending(projection)
    with pytest.raises(ValueError, match="an effect for 'E' already"):
        sending(projection)
    with pytest.raises(TypeError, match="callable"):
        projection.effect("F", 7)  # type: ignore[call-overload]
    await append(store, 1)
    await projection.catch_up()
    with pytest.raises(RuntimeError, match="register its effects first"):
        projection.effect("F", print)

    def handler(state: Any, event: Event) -> None:
        """Not called."""

    other = noting(store)
    assert other.effect("A", handler) is handler
    assert other.effect("B")(handler) is handler


async def test_a_store_opened_to_read_cannot_keep_effects(store: EventStore) -> None:
    await append(store, 1)
    if not engine_of(store).durable or engine_of(store).shared:
        pytest.skip("this engine has no mode to read only")
    async with EventStore(engine_of(store).location, mode="r") as reader:
        projection = noting(reader)
        sending(projection)
        with pytest.raises(EngineUnsupported, match="effects"):
            await projection.catch_up()
        plain = noting(reader)
        await plain.catch_up()
        await plain.rebuild({"E": squares})
        assert plain.state == [1]


async def test_effects_of_a_log_that_was_set_back_begin_at_its_head(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="aiostore")
    store = await open_store()
    await append(store, 3)
    projection = noting(store)
    sending(projection)
    await projection.catch_up()
    engine = engine_of(store)
    load_state = engine.load_state

    async def load_unfit(key: str) -> Any:
        kept = await load_state(key)
        return kept and kept._replace(fits=False)

    monkeypatch.setattr(engine, "load_state", load_unfit)
    again = noting(store)
    sent = sending(again)
    await again.catch_up()
    assert sent == []
    assert "was set back: they begin behind event 3" in caplog.text
    await append(store, 1)
    await again.catch_up()
    assert sent == [(4, 4)]
