"""Who reads history beside appends gets one page for each group, one after another."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from aiostore import EventStore
from aiostore.inbox import Inbox, Interest, OnSlow
from aiostore.turns import TURN_EVENTS, Turns


def waiting_inboxes(turns: Turns, count: int) -> list[Inbox]:
    """Inboxes whose readers wait for a turn."""
    loop = asyncio.get_running_loop()
    inboxes = [Inbox(Interest(), 10, 1000, OnSlow.CATCH_UP, lambda inbox: None) for _ in range(count)]
    for inbox in inboxes:
        inbox.waiter = loop.create_future()
        turns.enter(inbox)
    return inboxes


def woken(inboxes: Iterable[Inbox]) -> list[bool]:
    return [inbox.waiter is not None and inbox.waiter.done() for inbox in inboxes]


async def test_each_turn_wakes_the_one_that_waited_longest() -> None:
    turns = Turns()
    turns.begin()
    inboxes = waiting_inboxes(turns, 3)
    turns.give()
    assert woken(inboxes) == [True, False, False]
    turns.give()
    assert woken(inboxes) == [True, True, False]
    assert turns.busy


async def test_who_left_takes_no_turn() -> None:
    turns = Turns()
    turns.begin()
    inboxes = waiting_inboxes(turns, 3)
    turns.leave(inboxes[0])
    inboxes[1].waiter = None  # it was woken by something else
    turns.give()
    assert woken(inboxes) == [False, False, True]


async def test_all_are_woken_when_nothing_is_committed() -> None:
    turns = Turns()
    turns.begin()
    inboxes = waiting_inboxes(turns, 3)
    turns.end()
    assert woken(inboxes) == [True, True, True]
    assert not turns.busy


async def test_subscriptions_catch_up_beside_appends_that_never_stop() -> None:
    count = 20 * TURN_EVENTS
    async with EventStore() as store:
        await store.append_batch("s", [("T", {"n": n}) for n in range(count)])
        stop = False

        async def append() -> None:
            while not stop:
                await store.append("s", "T", {})

        async def follow() -> list[int]:
            seen: list[int] = []
            async with store.subscribe() as events:
                async for batch in events.batches():
                    seen += [event.event_id for event in batch]
                    if events.is_live and len(seen) > count:
                        return seen
            raise AssertionError("it ends by itself only when it is live")

        writers = [asyncio.create_task(append()) for _ in range(4)]
        followed = await asyncio.gather(*(follow() for _ in range(5)))
        assert not any(writer.done() for writer in writers)
        stop = True
        await asyncio.gather(*writers)
        for seen in followed:
            assert seen == list(range(1, len(seen) + 1))


async def test_a_subscription_that_waits_for_a_turn_can_be_closed_and_cancelled() -> None:
    async with EventStore() as store:
        await store.append_batch("s", [("T", {"n": n}) for n in range(3)])
        store._fanout.ring.after = 3  # as if it had left the ring
        store._fanout.turns.begin()
        closed, cancelled = store.subscribe(), store.subscribe()
        ends = asyncio.ensure_future(anext(closed, None))
        given_up = asyncio.ensure_future(anext(cancelled))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not ends.done()
        given_up.cancel()
        await closed.aclose()
        assert await ends is None
        await asyncio.gather(given_up, return_exceptions=True)
        assert given_up.cancelled()
        store._fanout.turns.end()
        assert (await anext(cancelled)).event_id == 1, "it lost nothing"
