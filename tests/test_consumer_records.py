"""What consumers keep, in whatever order workers come, fail, are taken for dead and ask: on memory, step by step."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from aiostore import END, Consumer, Event, EventStore, OutcomeUnknown, Retry
from aiostore.engine import Saving
from aiostore.engines.memory import MemoryEngine
from tests.conformance.consuming import Gated, Seen, background, becomes, consumer, fill, idle, steal


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL", "aiostore")


def refuses(*event_ids: int) -> Seen:
    return Seen(lambda event: event.event_id in event_ids)


async def parked_ids(mailer: Consumer) -> list[int]:
    return [parked.event.event_id for parked in await mailer.parked()]


@pytest.mark.parametrize("other", ["a/parked/b", "a/parked", "a/"])
async def test_names_with_slashes_have_nothing_in_common(other: str) -> None:
    async with EventStore() as store:
        await fill(store, 2, 2)
        for name in ("a", other):
            seen = refuses(1)
            async with Consumer(store, name, seen, on_error="park", retry=Retry(1)) as mailer:
                await idle(mailer)
        for name in ("a", other):
            mailer = Consumer(store, name, Seen(), on_error="park")
            assert await parked_ids(mailer) == [1, 3]
            async with mailer:
                assert await mailer.retry_parked() == 1
                await idle(mailer)
                assert await parked_ids(mailer) == []


async def test_who_asks_before_the_first_start_sets_no_beginning() -> None:
    async with EventStore() as store:
        await fill(store, 1, 3)
        seen = Seen()
        mailer = consumer(store, seen, after=END)
        assert await mailer.retry_parked("s0") == 0
        with pytest.raises(LookupError):
            await mailer.skip_parked(1)
        async with mailer:
            await fill(store, 1, 1)
            await idle(mailer)
        assert seen.ids == [4]


async def test_one_that_was_taken_for_dead_keeps_no_parked_rows() -> None:
    async with EventStore() as store:
        await fill(store, 2, 2)
        async with consumer(store, refuses(1), on_error="park") as mailer:
            await idle(mailer)
        zombie = consumer(store, Seen(), on_error="park", checkpoint_every_s=1000, lease_s=1000)
        await zombie.retry_parked()
        await zombie.__aenter__()
        await becomes(lambda: zombie.stats().handled_count == 2)
        await steal(store)  # nothing of what it handled is recorded
        await zombie.stop()
        assert await parked_ids(zombie) == [1, 3]


async def test_two_that_begin_at_once_remove_no_rows_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = MemoryEngine()
    async with await EventStore.open(engine) as store:
        await fill(store, 2, 2)
        async with consumer(store, refuses(1), on_error="park") as mailer:
            await idle(mailer)
        engine._states.pop("consumer/mailer")  # what is left are rows of a record that is gone
        save, tries = engine.save_states, 0

        async def slow(position: int, savings: Sequence[Saving]) -> Sequence[int]:
            nonlocal tries
            tries += 1
            if tries == 1:
                async with consumer(store, refuses(1), on_error="park") as first:
                    await idle(first)
            return await save(position, savings)

        monkeypatch.setattr(engine, "save_states", slow)
        async with consumer(store, Seen(), on_error="park") as second:
            assert await parked_ids(second) == [1, 3]


async def test_wait_idle_outlives_a_worker_that_is_taken_for_dead() -> None:
    async with EventStore() as store:
        await fill(store, 2, 2)
        async with consumer(store, Seen()) as mailer:
            await idle(mailer)
            work = mailer._work
            assert work is not None
            await steal(store)
            assert await work.is_idle(4) in (True, False)
            await idle(mailer)
            assert mailer._work is not work


async def test_workers_that_record_seldom_are_not_taken_for_dead() -> None:
    async with EventStore() as store:
        seen = Seen()
        options: dict[str, Any] = {"checkpoint_every_s": 100, "lease_s": 0.2}
        async with consumer(store, seen, **options) as first, consumer(store, seen, **options) as second:
            await becomes(lambda: first.stats().share == second.stats().share == 0.5)
            works = first._work, second._work
            await asyncio.sleep(0.6)
            assert works == (first._work, second._work)
            assert first.stats().share == second.stats().share == 0.5


async def test_one_that_finishes_what_is_in_hand_is_not_taken_for_dead() -> None:
    async with EventStore() as store:
        await fill(store, 1, 1)
        gated, seen = Gated(), Seen()
        first = consumer(store, gated, lease_s=0.2)
        await first.__aenter__()
        await becomes(lambda: gated.at_once)
        async with consumer(store, seen, lease_s=0.2) as second:
            stopping = asyncio.create_task(first.stop())
            await asyncio.sleep(0.6)
            assert not seen.tried
            gated.gate.set()
            await stopping
            await idle(second)
        assert (gated.ids, seen.ids) == ([1], [])


async def test_parked_streams_are_asked_for_in_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = MemoryEngine()
    async with await EventStore.open(engine) as store:
        await fill(store, 600, 1)
        async with consumer(store, Seen(lambda event: True), on_error="park", retry=Retry(1)) as mailer:
            await idle(mailer)
        saves = 0
        save = engine.save_states

        async def counted(position: int, savings: Sequence[Saving]) -> Sequence[int]:
            nonlocal saves
            saves += 1
            return await save(position, savings)

        monkeypatch.setattr(engine, "save_states", counted)
        assert await mailer.retry_parked() == 600
        assert saves == 2


async def test_what_is_handled_is_counted_at_once() -> None:
    async with EventStore() as store:
        await fill(store, 1, 5)
        counts: list[int] = []

        async def handler(event: Event) -> None:
            await asyncio.sleep(0)
            counts.append(mailer.stats().handled_count)

        mailer = consumer(store, handler)
        async with mailer:
            await idle(mailer)
        assert counts == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("key", [7, None, [], "", "\0", "x" * 1025, "\ud800"])
async def test_what_is_no_text_to_order_by_is_said(key: Any) -> None:
    async with EventStore() as store:
        await fill(store, 1, 1)
        mailer = consumer(store, Seen(), order_by=lambda event: key)
        with pytest.raises((TypeError, ValueError), match="order_by"):
            async with asyncio.timeout(5):
                await mailer.run()


async def test_a_beginning_beyond_the_head_is_refused() -> None:
    async with EventStore() as store:
        await fill(store, 1, 1)
        with pytest.raises(ValueError, match="beyond the head"):
            await consumer(store, Seen(), after=2).run()
        with pytest.raises(ValueError, match="beyond the head"):
            await store.subscribe(name="late", after=2).__aenter__()
        async with consumer(store, Seen()) as mailer:  # where there is a record already, it does not count
            await idle(mailer)
        async with consumer(store, Seen(), after=2) as mailer:
            await idle(mailer)


async def test_a_parked_event_that_was_not_tried_has_no_error() -> None:
    async with EventStore() as store:
        await fill(store, 1, 3)
        gated = Gated()
        async with consumer(store, refuses(1), on_error="park") as mailer:
            await idle(mailer)
        async with consumer(store, gated, on_error="park") as mailer:
            await mailer.skip_parked(1)
            await becomes(lambda: gated.tried)
            await becomes(lambda: mailer._work and not mailer._work.lanes.changed_rows)
            parked = await mailer.parked()
            assert [(each.event.event_id, each.error, each.attempts) for each in parked] == [(2, None, 0), (3, None, 0)]
            gated.gate.set()


async def test_an_event_that_is_skipped_while_it_is_tried_holds_nothing_up() -> None:
    async with EventStore() as store:
        await fill(store, 1, 3)
        async with consumer(store, refuses(1), on_error="park") as mailer:
            await idle(mailer)
        gated = Gated(lambda event: event.event_id == 1)
        async with consumer(store, gated, on_error="park") as mailer:
            await mailer.retry_parked()
            await becomes(lambda: gated.tried == [1])
            await mailer.skip_parked(1)
            assert mailer._work is not None
            marker = mailer._work.lanes.parked["s0"].parked
            assert marker is not None
            await becomes(lambda: marker.row.skipped == [1])
            gated.gate.set()
            await idle(mailer)
            assert gated.tried == [1, 2, 3]
            assert await mailer.parked() == []


async def test_events_come_again_untouched_behind_a_cancelled_delivery() -> None:
    async with EventStore() as store:
        await store.append("s", "E", {"n": 1})
        async with consumer(store) as mailer:
            delivery = await anext(mailer)
            await delivery.__aenter__()
            delivery.event.data["n"] = 2
            await delivery.__aexit__(asyncio.CancelledError, asyncio.CancelledError(), None)
            assert (await anext(mailer)).event.data == {"n": 1}


async def test_a_record_of_unknown_outcome_is_no_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = MemoryEngine()
    async with await EventStore.open(engine) as store:
        save = engine.save_states
        unknown = 0

        async def lost(position: int, savings: Sequence[Saving]) -> Sequence[int]:
            nonlocal unknown
            revisions = await save(position, savings)
            if unknown:
                unknown -= 1
                raise OutcomeUnknown("so it was chosen")
            return revisions

        monkeypatch.setattr(engine, "save_states", lost)
        async with consumer(store, Seen()) as first:
            await idle(first)
            work = first._work
            async with consumer(store, Seen()) as second:
                unknown = 3
                await becomes(lambda: first.stats().share == second.stats().share == 0.5)
                await fill(store, 10, 1)
                await idle(second)
                assert first._work is work


async def test_joining_again_outlives_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = MemoryEngine()
    async with await EventStore.open(engine) as store:
        await fill(store, 1, 1)
        save = engine.save_states
        down = 0

        async def unavailable(position: int, savings: Sequence[Saving]) -> Sequence[int]:
            nonlocal down
            if down:
                down -= 1
                raise OutcomeUnknown("so it was chosen")
            return await save(position, savings)

        monkeypatch.setattr(engine, "save_states", unavailable)
        async with consumer(store, Seen()) as mailer:
            await idle(mailer)
            await steal(store)
            down = 2
            await becomes(lambda: down == 0)
            await fill(store, 1, 1)
            await idle(mailer)


async def test_one_that_could_not_join_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = MemoryEngine()
    async with await EventStore.open(engine) as store:
        await fill(store, 1, 1)
        load = engine.load_states

        async def broken(*args: Any, **options: Any) -> Any:
            raise OutcomeUnknown("so it was chosen")

        async with consumer(store, Seen()) as mailer:
            await idle(mailer)
        monkeypatch.setattr(engine, "load_states", broken)
        with pytest.raises(OutcomeUnknown):
            await consumer(store, Seen()).run()
        monkeypatch.setattr(engine, "load_states", load)
        async with consumer(store, Seen(), lease_s=1000) as mailer:
            assert mailer.stats().share == 1.0


async def test_it_can_be_shown_when_the_store_is_closed() -> None:
    async with EventStore() as store:
        mailer = consumer(store, Seen())
        async with mailer:
            pass
    assert "not running" in repr(mailer)
    assert not mailer.stats().is_running


async def test_a_stop_that_cancels_does_not_cancel_who_runs_it() -> None:
    async with EventStore() as store:
        await fill(store, 1, 1)
        gated = Gated()
        mailer = consumer(store, gated)
        running = asyncio.create_task(mailer.run())
        await becomes(lambda: gated.at_once)
        await mailer.stop(timeout_s=0.01)
        await running


async def test_none_of_the_parked_events_are_few_enough() -> None:
    async with EventStore() as store:
        await fill(store, 1, 2)
        async with consumer(store, refuses(1), on_error="park") as mailer:
            await idle(mailer)
            assert await mailer.parked(limit=0) == []


async def test_a_worker_joins_again_when_its_deliveries_are_finished() -> None:
    async with EventStore() as store:
        await fill(store, 1, 2)
        async with consumer(store) as mailer:
            async with await anext(mailer) as delivery:
                assert delivery.event.event_id == 1
                work = mailer._work
                await steal(store)
                await becomes(lambda: work is not None and work._end.done())
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(mailer), 0.1)
            async with await anext(mailer) as delivery:
                assert delivery.event.event_id == 1


async def test_what_ends_badly_while_it_finishes_is_not_left_unseen(caplog: pytest.LogCaptureFixture) -> None:
    async with EventStore() as store:
        await fill(store, 1, 1)
        gated = Gated()
        mailer = consumer(store, gated)
        async with background(mailer):
            await becomes(lambda: gated.at_once)
            stopping = asyncio.create_task(mailer.stop())
            await asyncio.sleep(0)
            await steal(store)
            await asyncio.sleep(0.1)
            gated.gate.set()
            await stopping
    assert "never retrieved" not in caplog.text
