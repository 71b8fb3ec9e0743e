"""Subscriptions with a name: the next one goes on where the last one left off, never ahead of what was handled."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aiostore import END, EngineUnsupported, EventStore, Fenced, InvalidEvent, Query, StoreFull, Subscription
from aiostore import subscription as module
from aiostore.engine import Engine, Saving
from tests.conformance import engine_of, ids, reopen
from tests.scheduler import take, turns, waiting


async def fill(store: EventStore, count: int, event_type: str = "E") -> None:
    await store.append_batch("s", [(event_type, {"n": n}) for n in range(count)])


async def recorded(store: EventStore, name: str = "mailer") -> int:
    """Where the next one of the name begins."""
    async with store.subscribe(name=name) as events:
        return events.position


async def becomes(events: Subscription, checkpoint: int) -> None:
    async with asyncio.timeout(20):
        while events.statistics().checkpoint != checkpoint:  # noqa: ASYNC110 (it is seen, and not told)
            await asyncio.sleep(0.005)


async def test_it_starts_where_the_last_one_recorded(store: EventStore) -> None:
    await fill(store, 10)
    async with store.subscribe(name="mailer") as events:
        assert await take(events, 4) == [1, 2, 3, 4]
        await events.checkpoint()
        assert await take(events, 2) == [5, 6]
    async with await reopen(store) as again, again.subscribe(name="mailer", after=2) as events:
        assert events.position == 4
        assert await take(events, 6) == [5, 6, 7, 8, 9, 10]


async def test_each_name_has_its_own_and_after_counts_for_the_first(store: EventStore) -> None:
    await fill(store, 5)
    async with store.subscribe(name="one", after=3) as one, store.subscribe(name="other", after=END) as other:
        assert await take(one, 1) == [4]
        await one.checkpoint()
        await fill(store, 1)
        assert await take(other, 1) == [6]
    assert await recorded(store, "one") == 4
    assert await recorded(store, "other") == 5, "its end is fixed when it is entered, and kept"
    assert await recorded(store, "third") == 0


async def test_without_a_block_it_starts_at_its_first_step(store: EventStore) -> None:
    await fill(store, 3)
    for start in (1, 2, 3):
        events = store.subscribe(name="mailer")
        assert await take(events, 1) == [start]
        await events.checkpoint()
        await events.aclose()


async def test_checkpoint_every_records_what_was_handled_when_the_next_is_asked_for(store: EventStore) -> None:
    await fill(store, 10)
    async with store.subscribe(name="mailer", checkpoint_every=3) as events:
        assert events.statistics().checkpoint == 0
        assert await take(events, 3) == [1, 2, 3]
        assert events.statistics().checkpoint == 0, "the third is in hand"
        assert await take(events, 1) == [4]
        assert events.statistics().checkpoint == 3
        assert await take(events, 2) == [5, 6]
    assert await recorded(store) == 5, "of the last one handed out nobody knows"


async def test_checkpoint_every_with_batches(store: EventStore) -> None:
    await fill(store, 10)
    async with store.subscribe(name="mailer", checkpoint_every=4) as events:
        batches = events.batches(3)
        assert [ids(await anext(batches)) for _ in range(3)] == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
        assert events.statistics().checkpoint == 6
    assert await recorded(store) == 6


async def test_an_error_in_the_body_leaves_the_event_to_the_next(store: EventStore) -> None:
    await fill(store, 5)

    async def handle_all() -> None:
        async with store.subscribe(name="mailer", checkpoint_every=1) as events:
            async for event in events:
                assert event.event_id < 3

    with pytest.raises(AssertionError):
        await handle_all()
    assert await recorded(store) == 2


async def test_when_nothing_comes_what_was_handled_is_recorded(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IDLE_S", 0.01)
    await fill(store, 5)
    async with store.subscribe(name="mailer", checkpoint_every=1000) as events:
        await take(events, 5)
        task = await waiting(events)
        await becomes(events, 5)
        await fill(store, 1)
        assert (await task).event_id == 6


async def test_events_that_do_not_match_move_it_on(store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_S", 0.01)
    monkeypatch.setattr(module, "UNMATCHED_MAX", 3)
    await fill(store, 10)
    async with store.subscribe(name="mailer", query=Query.where(types="Never"), checkpoint_every=1000) as events:
        task = await waiting(events)
        await becomes(events, 10)
        task.cancel()
        await asyncio.wait([task])


async def test_it_is_never_beyond_what_was_handed_out(store: EventStore) -> None:
    await fill(store, 3, "A")
    await fill(store, 3, "B")
    async with store.subscribe(name="mailer", query=Query.where(types="B")) as events:
        await take(events, 1)
        await events.checkpoint()
        assert events.statistics().checkpoint == 4
        await take(events, 2)
        task = await waiting(events)
        await fill(store, 2, "A")
        await events.checkpoint()
        assert events.statistics().checkpoint == 8, "live and with nothing queued, it is at the head"
        await fill(store, 1, "B")
        assert (await task).event_id == 9
    assert await recorded(store) == 8


async def test_one_that_was_taken_over_records_nothing_more(store: EventStore) -> None:
    await fill(store, 10)
    async with store.subscribe(name="mailer") as first:
        assert await take(first, 3) == [1, 2, 3]
        await first.checkpoint()
        async with store.subscribe(name="mailer") as second:
            assert await take(second, 1) == [4]
            assert await take(first, 3) == [4, 5, 6]
            with pytest.raises(Fenced, match="'mailer' was taken over"):
                await first.checkpoint()
            await second.checkpoint()
    assert await recorded(store) == 4


async def test_one_that_was_taken_over_ends_with_a_warning(store: EventStore, caplog: pytest.LogCaptureFixture) -> None:
    await fill(store, 10)
    async with store.subscribe(name="mailer", checkpoint_every=100) as first:
        await take(first, 5)
        assert await recorded(store) == 0
    assert "ends without a checkpoint at 4" in caplog.text
    assert await recorded(store) == 0


async def test_a_cancelled_checkpoint_harms_no_later_one(store: EventStore) -> None:
    await fill(store, 50)
    async with store.subscribe(name="mailer") as events:
        for steps in range(25):
            await take(events, 1)
            task = asyncio.create_task(events.checkpoint())
            await turns(steps)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await take(events, 1)
            await events.checkpoint()
            assert events.statistics().checkpoint == 2 * steps + 2


async def test_a_cancelled_start_is_made_again(store: EventStore) -> None:
    await fill(store, 3)
    for steps in range(25):
        events = store.subscribe(name="mailer")
        task = asyncio.create_task(take(events, 1))
        await turns(steps)
        task.cancel()
        first = []
        with contextlib.suppress(asyncio.CancelledError):
            first = await task
        assert (first + await take(events, 2))[:2] == [1, 2]
        await events.aclose()


class Full:
    """Stands for an engine's `save_states` while its disk is full."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_full = False
        self._save: Callable[..., Any] = engine.save_states
        monkeypatch.setattr(engine, "save_states", self.save_states)

    async def save_states(self, position: int, savings: list[Saving]) -> Any:
        if self.is_full:
            raise StoreFull("here", "so it was chosen")
        return await self._save(position, savings)


async def test_where_a_checkpoint_finds_no_room_nothing_is_lost(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(store, 10)
    disk = Full(engine_of(store), monkeypatch)
    async with store.subscribe(name="mailer", checkpoint_every=2) as events:
        assert await take(events, 2) == [1, 2]
        disk.is_full = True
        with pytest.raises(StoreFull):
            await anext(events)
        disk.is_full = False
        assert await take(events, 2) == [3, 4]
        assert events.statistics().checkpoint == 2


async def test_bad_input_is_refused(store: EventStore) -> None:
    with pytest.raises(InvalidEvent, match="name"):
        store.subscribe(name="")
    with pytest.raises(InvalidEvent, match="200"):
        store.subscribe(name="n" * 201)
    with pytest.raises(ValueError, match="with a name"):
        store.subscribe(checkpoint_every=3)
    with pytest.raises(ValueError, match="checkpoint_every"):
        store.subscribe(name="n", checkpoint_every=0)
    with pytest.raises(RuntimeError, match="with a name"):
        await store.subscribe().checkpoint()
    with pytest.raises(RuntimeError, match="nothing was handed out"):
        await store.subscribe(name="n").checkpoint()


async def test_a_follower_keeps_them_in_a_file_of_its_own(tmp_path: Path) -> None:
    async with EventStore(tmp_path / "s") as writer:
        await fill(writer, 5)
        for start in (1, 3):
            async with EventStore(tmp_path / "s", mode="r") as reader:
                with pytest.raises(EngineUnsupported, match="state=path"):
                    reader.subscribe(name="mailer")
                events: Subscription
                async with reader.subscribe(name="mailer", state=tmp_path / "mine.db") as events:
                    assert await take(events, 2) == [start, start + 1]
                    await events.checkpoint()


async def test_a_log_that_was_set_back_begins_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, count in (("old", 5), ("new", 3)):
        async with EventStore(tmp_path / name) as store:
            await fill(store, count)
    async with (
        EventStore(tmp_path / "old", mode="r") as old,
        old.subscribe(name="mailer", state=tmp_path / "mine.db") as events,
    ):
        await take(events, 5)
        await events.checkpoint()
    with caplog.at_level(logging.WARNING):
        async with (
            EventStore(tmp_path / "new", mode="r") as new,
            new.subscribe(name="mailer", state=tmp_path / "mine.db") as events,
        ):
            assert await take(events, 3) == [1, 2, 3]
    assert "the checkpoint of subscription 'mailer' at event 5 is discarded" in caplog.text
