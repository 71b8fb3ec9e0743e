"""The queue of one subscription: what goes in, what comes out, and when it holds appends back."""

from __future__ import annotations

import asyncio
import random
import weakref

import msgspec
import pytest

from aiostore import Event, Query
from aiostore.inbox import Inbox, Interest, OnSlow
from aiostore.limits import MIB


def event(event_id: int, stream_id: str = "s", event_type: str = "E") -> Event:
    return Event(event_id, stream_id, event_id, event_type, "2026-11-23T00:00:00.000000Z", msgspec.Raw(b"{}"))


def events(*event_ids: int) -> list[Event]:
    return list(map(event, event_ids))


class Changes(list[tuple[bool, bool]]):
    """Notes (live, holds) at each call."""

    def __call__(self, inbox: Inbox) -> None:
        self.append((inbox.live, inbox.holds))


def live(
    on_slow: OnSlow = OnSlow.CATCH_UP, *, queue_size: int = 3, bytes_max: int = MIB, changes: Changes | None = None
) -> Inbox:
    """An inbox that is live and empty, at event 10."""
    inbox = Inbox(Interest(), queue_size, bytes_max, on_slow, Changes() if changes is None else changes)
    inbox.go_live([], 10)
    return inbox


def rest(inbox: Inbox) -> list[int]:
    return [inbox.take().event_id for _ in range(len(inbox.events))]


# Interest


@pytest.mark.parametrize(
    ("interest", "matches"),
    [
        (Interest(), True),
        (Interest(query=Query()), True),
        (Interest("s"), True),
        (Interest("other"), False),
        (Interest(query=Query.where(types="E")), True),
        (Interest(query=Query.where(types="F")), False),
        (Interest("s", Query.where(types="F")), False),
        (Interest("other", Query.where(types="E")), False),
    ],
    ids=str,
)
def test_an_interest_is_stream_and_query(interest: Interest, matches: bool) -> None:
    assert interest.matches(event(1)) is matches


@pytest.mark.parametrize(
    ("interest", "everything"),
    [
        (Interest(), True),
        (Interest(query=Query()), True),
        (Interest("s"), False),
        (Interest("s", Query()), False),
        (Interest(query=Query.where(types="E")), False),
    ],
    ids=str,
)
def test_everything_is_no_stream_and_a_query_that_restricts_nothing(interest: Interest, everything: bool) -> None:
    assert interest.everything is everything


# From history


def test_history_is_handed_out_and_then_counts_as_handed_up_to_where_it_was_read() -> None:
    inbox = Inbox(Interest(), 3, MIB, OnSlow.CATCH_UP, Changes())
    inbox.fill(events(2, 5), 9, shared=False)
    assert (inbox.held, inbox.handed) == (9, 0)
    assert inbox.take().event_id == 2
    assert inbox.handed == 2
    assert inbox.take().event_id == 5
    assert inbox.handed == 9


def test_history_without_a_match_counts_as_handed_at_once() -> None:
    inbox = Inbox(Interest(), 3, MIB, OnSlow.CATCH_UP, Changes())
    inbox.fill([], 9, shared=False)
    assert (inbox.held, inbox.handed) == (9, 9)


def test_going_live_keeps_a_start_beyond_the_head() -> None:
    inbox = Inbox(Interest(), 3, MIB, OnSlow.CATCH_UP, Changes())
    inbox.held = inbox.handed = 20
    inbox.go_live([], 10)
    inbox.put(events(11), 1, 1)
    inbox.put(events(19, 20, 21), 1, 2)
    assert rest(inbox) == [21]


# Live


def test_what_is_put_comes_out_once_and_in_order() -> None:
    inbox = live()
    inbox.put(events(11, 12), 100, 1)
    inbox.put(events(13), 50, 2)
    assert (inbox.held, inbox.handed, inbox.bytes) == (13, 10, 150)
    assert rest(inbox) == [11, 12, 13]
    assert (inbox.handed, inbox.bytes) == (13, 0)


def test_what_is_held_already_is_skipped() -> None:
    inbox = live()
    inbox.put(events(9, 10), 1, 1)
    inbox.put(events(10, 11), 1, 2)
    inbox.put(events(11), 1, 3)
    assert rest(inbox) == [11]


def test_handed_stands_before_the_first_that_waits() -> None:
    inbox = live()
    inbox.put(events(15), 1, 1)
    assert inbox.handed == 14


def test_bytes_go_when_the_last_event_that_came_with_them_goes() -> None:
    inbox = live()
    inbox.put(events(11, 12), 100, 1)
    inbox.take()
    assert inbox.bytes == 100
    inbox.take()
    assert inbox.bytes == 0


def test_a_commit_enters_a_queue_that_is_not_full_however_large_it_is() -> None:
    inbox = live()
    inbox.put(events(11, 12), 1, 1)
    inbox.put(events(*range(13, 30)), 1, 2)
    assert (len(inbox.events), inbox.live) == (19, True)


@pytest.mark.parametrize("size", [1, 1000])
def test_a_full_queue_is_dropped_and_goes_back_to_what_was_handed_out(size: int) -> None:
    changes = Changes()
    inbox = live(bytes_max=1500, changes=changes)
    for event_id in range(11, 15):
        inbox.put(events(event_id), size, event_id)
        if not inbox.live:
            break
    assert changes == [(False, False)]
    assert (len(inbox.events), inbox.bytes, inbox.held, inbox.handed) == (0, 0, 10, 10)
    assert (inbox.fell_behind_count, inbox.overflowed) == (1, False)


def test_with_fail_it_is_marked_instead() -> None:
    inbox = live(OnSlow.FAIL)
    for event_id in range(11, 15):
        inbox.put(events(event_id), 1, event_id)
    assert (inbox.overflowed, inbox.live, inbox.handed) == (True, False, 10)


# With wait


@pytest.fixture
async def changes() -> Changes:
    """Of an inbox that is made in a running loop, whose clock a full one watches."""
    return Changes()


async def test_a_full_queue_holds_until_there_is_room(changes: Changes) -> None:
    inbox = live(OnSlow.WAIT, changes=changes)
    inbox.put(events(11, 12, 13, 14), 1, 1)
    assert changes == [(True, True)]
    inbox.take()
    assert inbox.holds  # there are still three
    inbox.take()
    assert changes == [(True, True), (True, False)]


async def test_the_rest_of_the_group_that_filled_it_goes_in(changes: Changes) -> None:
    inbox = live(OnSlow.WAIT, changes=changes)
    for event_id in range(11, 21):
        inbox.put(events(event_id), 1, 1)
    assert (len(inbox.events), inbox.live) == (10, True)
    inbox.put(events(21), 1, 2)  # of those that are not held back: from a handler, or from its body
    assert (len(inbox.events), inbox.live) == (0, False)
    assert changes == [(True, True), (False, False), (False, False)]


async def test_history_that_fills_it_holds_too(changes: Changes) -> None:
    inbox = Inbox(Interest(), 3, MIB, OnSlow.WAIT, changes)
    inbox.go_live(events(1, 2, 3), 3)
    assert inbox.holds
    inbox.close()
    assert changes[-1] == (False, False)


async def test_closing_holds_nothing_back(changes: Changes) -> None:
    inbox = live(OnSlow.WAIT, changes=changes)
    inbox.put(events(11, 12, 13), 1, 1)
    inbox.close()
    assert (inbox.holds, inbox.live, len(inbox.events), inbox.bytes) == (False, False, 0, 0)
    inbox.close()


async def test_the_watch_over_a_full_queue_does_not_keep_it_alive() -> None:
    inbox = live(OnSlow.WAIT)
    inbox.put(events(11, 12, 13), 1, 1)
    gone = weakref.ref(inbox)
    del inbox
    assert gone() is None


async def test_the_reader_is_woken_once_for_what_comes() -> None:
    inbox = live()
    inbox.waiter = asyncio.get_running_loop().create_future()
    inbox.put(events(11), 1, 1)
    inbox.put(events(12), 1, 2)
    assert inbox.waiter.done()
    inbox.close()


@pytest.mark.parametrize("on_slow", [OnSlow.CATCH_UP, OnSlow.WAIT])
@pytest.mark.parametrize("seed", range(10))
async def test_any_mix_of_putting_taking_and_reading_again_gives_each_event_once(seed: int, on_slow: OnSlow) -> None:
    chance = random.Random(seed)
    inbox = Inbox(Interest(), chance.randrange(1, 5), chance.choice((3, 100)), on_slow, Changes())
    log: list[Event] = []
    got: list[Event] = []
    for group in range(2000):
        if chance.random() < 0.5:
            commit = [event(len(log) + 1 + i) for i in range(chance.randrange(1, 4))]
            log += commit
            wanted = [each for each in commit if each.event_id % 3]
            if inbox.live and wanted:
                inbox.put(wanted, len(wanted), group)
        elif inbox.events:
            got.append(inbox.take())
            assert inbox.handed >= got[-1].event_id
        elif not inbox.live:
            wanted = [each for each in log[inbox.held :] if each.event_id % 3]
            if len(wanted) > inbox.queue_size:
                inbox.fill(wanted[:2], wanted[1].event_id, shared=True)
            else:
                inbox.go_live(wanted, len(log))
        assert inbox.holds == (on_slow is OnSlow.WAIT and inbox.live and inbox.full)
        assert inbox.held >= inbox.handed or inbox.live
        assert len(inbox.events) <= inbox.queue_size + 2
    inbox.close()
    assert got == [each for each in log if each.event_id % 3][: len(got)]
    assert len(got) > 300
