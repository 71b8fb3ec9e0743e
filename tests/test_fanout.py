"""The fan-out: who is asked about an event, who gets it, and what is left of those who are gone."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Callable

import msgspec
import pytest

from aiostore import Event, EventStoreError, EventTypes, NoEventTypes, Query, QueryItem, StoreFailed
from aiostore.engine import Commit
from aiostore.fanout import Fanout, InterestIndex
from aiostore.inbox import Inbox, Interest, OnSlow
from aiostore.limits import MIB, Limits

STREAMS = ("red-0", "red-1", "blue-0", "blue-1")
TYPES = ("A", "B", "C")
TAGS = ("x", "y", "z")


def event(event_id: int, stream_id: str = "red-0", event_type: str = "A", tags: tuple[str, ...] = ()) -> Event:
    return Event(
        event_id, stream_id, 1, event_type, "2026-11-23T00:00:00.000000Z", msgspec.Raw(b"{}"), msgspec.Raw(b""), tags
    )


def inbox(interest: Interest, on_slow: OnSlow = OnSlow.CATCH_UP, queue_size: int = 10_000) -> Inbox:
    return Inbox(interest, queue_size, MIB, on_slow, lambda _: None)


def call_now(function: Callable[[], None]) -> None:
    function()


def by(*items: QueryItem) -> Interest:
    return Interest(query=Query(*items))


def asked(index: InterestIndex, about: Event) -> list[Inbox]:
    return [*index.wanting_everything(), *index.candidates(about)]


def places(index: InterestIndex) -> int:
    """How many entries there are under all terms."""
    return sum(
        len(place) for terms in (index._streams, index._tags, index._types, index._others) for place in terms.values()
    )


@pytest.mark.parametrize(
    ("interest", "about", "is_asked"),
    [
        (Interest("red-0"), event(1), True),
        (Interest("red-1"), event(1), False),
        (Interest("red-0", Query.where(types="B")), event(1), True),
        (Interest("red-1", Query.where(types="A")), event(1), False),
        (by(QueryItem(types=("A", "B"))), event(1), True),
        (by(QueryItem(types=("B", "C"))), event(1), False),
        (by(QueryItem(tags=("x",))), event(1, tags=("y", "x")), True),
        (by(QueryItem(tags=("x",))), event(1), False),
        (by(QueryItem(types=("A",), tags=("x",))), event(1), False),
        (by(QueryItem(stream_prefix="blue")), event(1), True),  # there is no index by prefix
        (by(QueryItem(stream_prefix="red", types=("B",))), event(1), False),
        (by(QueryItem(types=("B",)), QueryItem(tags=("x",))), event(1, tags=("x",)), True),
        (by(QueryItem(types=("B",)), QueryItem(tags=("x",))), event(1, tags=("y",)), False),
        (Interest(), event(1), True),
    ],
    ids=str,
)
def test_who_is_asked_about_an_event(interest: Interest, about: Event, is_asked: bool) -> None:
    index = InterestIndex(call_now)
    one = inbox(interest)
    index.add(one)
    assert asked(index, about) == ([one] if is_asked else [])


def test_an_inbox_under_several_terms_of_an_event_is_asked_once() -> None:
    index = InterestIndex(call_now)
    one = inbox(
        by(QueryItem(types=("A",)), QueryItem(tags=("x",)), QueryItem(tags=("y",)), QueryItem(stream_prefix="r"))
    )
    index.add(one)
    assert asked(index, event(1, tags=("x", "y"))) == [one]


def some_interest(chance: random.Random) -> Interest:
    stream_id = chance.choice(STREAMS) if chance.random() < 0.3 else None
    items = [
        QueryItem(
            types=chance.sample(TYPES, chance.randrange(3)),  # type: ignore[arg-type]
            tags=chance.sample(TAGS, chance.randrange(3)),  # type: ignore[arg-type]
            stream_prefix=chance.choice((None, "red", "blue-1")),
        )
        for _ in range(chance.randrange(4))
    ]
    return Interest(stream_id, chance.choice((None, Query(*items))))


@pytest.mark.parametrize("seed", range(20))
def test_whoever_wants_an_event_is_asked_about_it_whatever_came_and_went(seed: int) -> None:
    chance = random.Random(seed)
    index = InterestIndex(call_now)
    inboxes: list[Inbox] = []
    found: list[Inbox] = []
    for _ in range(300):
        found.clear()
        what = chance.random()
        if what < 0.5:
            inboxes.append(inbox(some_interest(chance)))
            index.add(inboxes[-1])
        elif what < 0.7 and inboxes:
            index.remove(inboxes.pop(chance.randrange(len(inboxes))))
        elif inboxes:
            inboxes.pop(chance.randrange(len(inboxes)))  # gone, without a word
        tags = tuple(chance.sample(TAGS, chance.randrange(4)))
        about = event(1, chance.choice(STREAMS), chance.choice(TYPES), tags)
        found = asked(index, about)
        assert len(found) == len(set(found))
        assert {one for one in inboxes if one.interest.matches(about)} <= set(found) <= set(inboxes)
        assert len(index) == len(inboxes)
    inboxes.clear()
    found.clear()
    assert (len(index), places(index)) == (0, 0)


def test_an_inbox_can_be_taken_out_and_entered_again() -> None:
    index = InterestIndex(call_now)
    one = inbox(Interest("red-0"))
    index.remove(one)
    for _ in range(3):
        index.add(one)
        assert asked(index, event(1)) == [one]
        index.remove(one)
        index.remove(one)
        assert (len(index), places(index)) == (0, 0)


def test_of_10000_inboxes_on_streams_of_their_own_one_is_asked() -> None:
    index = InterestIndex(call_now)
    inboxes = [inbox(Interest(f"s-{n}")) for n in range(10_000)]
    for one in inboxes:
        index.add(one)
    assert asked(index, event(1, "s-1234")) == [inboxes[1234]]
    assert asked(index, event(1, "s-x")) == []


# Publishing


def made(limits: Limits | None = None) -> tuple[Fanout, list[None]]:
    """A fan-out at event 10, and a list that grows each time that held appends may go on."""
    opened: list[None] = []
    return Fanout(10, limits or Limits(), lambda: opened.append(None), call_now), opened


def live(fanout: Fanout, interest: Interest, on_slow: OnSlow = OnSlow.CATCH_UP, queue_size: int = 10_000) -> Inbox:
    one = Inbox(interest, queue_size, MIB, on_slow, fanout.inbox_changed)
    fanout.go_live(one, [])
    return one


def queued(one: Inbox) -> list[int]:
    return [each.event_id for each in one.events]


def test_each_gets_what_it_wants_of_a_commit() -> None:
    fanout, _ = made()
    everything, red, tagged = (
        live(fanout, interest) for interest in (Interest(), Interest("red-0"), Interest(query=Query.where(tags="x")))
    )
    fanout.publish([Commit([event(11), event(12, "blue-0", tags=("x",)), event(13)], None, 300)])
    fanout.publish([Commit([event(14, "blue-0")], None, 100)])
    assert fanout.head == 14
    assert (queued(everything), queued(red), queued(tagged)) == ([11, 12, 13, 14], [11, 13], [12])
    assert everything.bytes == 400


def test_one_that_falls_behind_gets_nothing_more_until_it_is_live_again() -> None:
    fanout, _ = made()
    one = live(fanout, Interest(), queue_size=1)
    fanout.publish([Commit([event(event_id)], None) for event_id in (11, 12, 13)])
    assert (queued(one), one.held, len(fanout.live)) == ([], 10, 0)
    fanout.go_live(one, list(fanout.ring.since(one.held)))
    fanout.publish([Commit([event(14)], None)])
    assert one.fell_behind_count == 2


async def test_it_is_held_as_long_as_any_waiting_queue_is_full() -> None:
    fanout, opened = made()
    one, two = (live(fanout, Interest(), OnSlow.WAIT, queue_size) for queue_size in (1, 2))
    assert not fanout.held_by_subscriptions
    fanout.publish([Commit([event(11), event(12)], None)])
    assert fanout.held_by_subscriptions
    one.take()
    one.take()
    assert fanout.held_by_subscriptions
    two.take()
    assert not fanout.held_by_subscriptions
    assert len(opened) == 2


async def test_it_is_not_held_by_one_that_is_gone() -> None:
    fanout, opened = made()
    one = live(fanout, Interest(), OnSlow.WAIT, 1)
    fanout.publish([Commit([event(11)], None)])
    assert fanout.held_by_subscriptions
    del one
    gc.collect()
    assert not fanout.held_by_subscriptions
    assert opened


async def test_leaving_takes_it_out_and_keeps_its_position() -> None:
    fanout, opened = made()
    quiet, full = live(fanout, Interest("other")), live(fanout, Interest(), OnSlow.WAIT, 1)
    fanout.publish([Commit([event(11)], None)])
    for one in (quiet, full):
        fanout.leave(one)
        fanout.leave(one)
    fanout.publish([Commit([event(12)], None)])
    assert (len(fanout.live), queued(quiet), queued(full)) == (0, [], [])
    assert (quiet.handed, full.handed) == (11, 10)
    assert len(opened) == 1


async def test_closing_takes_all_out() -> None:
    fanout, _ = made()
    inboxes = [live(fanout, Interest(), on_slow, 1) for on_slow in OnSlow]
    fanout.publish([Commit([event(11)], None)])
    fanout.close()
    fanout.publish([Commit([event(12)], None)])
    assert (len(fanout.live), fanout.held_by_subscriptions) == (0, False)
    assert [queued(one) for one in inboxes] == [[], [], []]


async def test_the_first_reason_why_nothing_more_is_published_stays_and_each_gets_an_error_of_its_own() -> None:
    fanout, _ = made()
    fanout.check()
    gone = OSError("gone")
    fanout.fail(gone)
    fanout.fail(StoreFailed("/s", "later"))
    raised = []
    for _ in range(2):
        with pytest.raises(EventStoreError, match="can no longer be followed: OSError\\('gone'\\)") as caught:
            fanout.check()
        raised.append(caught.value)
    assert raised[0] is not raised[1]
    assert [error.__cause__ for error in raised] == [gone, gone]


async def test_when_nothing_more_is_published_those_who_wait_are_told_why() -> None:
    fanout, _ = made()
    one, two = live(fanout, Interest()), live(fanout, Interest())
    one.waiter = asyncio.get_running_loop().create_future()
    fanout.waiting[one] = None
    fanout.fail(StoreFailed("/s", "sync"))
    assert one.waiter.done()
    assert two.waiter is None
    for _ in range(2):
        with pytest.raises(StoreFailed) as caught:
            fanout.check()
        assert caught.value.args == StoreFailed("/s", "sync").args


def test_an_event_that_nobody_wants_costs_nobody_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    fanout, _ = made()
    inboxes = [live(fanout, Interest(f"s-{n}")) for n in range(1000)]
    monkeypatch.setattr(Interest, "matches", lambda self, event: pytest.fail("asked in vain"))
    fanout.publish([Commit([event(11)], None)])
    assert not any(one.events for one in inboxes)


class Paid(msgspec.Struct):
    amount: int = 0


def test_what_is_published_knows_the_types_of_its_store() -> None:
    types = EventTypes()
    types.add(Paid, "A")
    plain, _ = made()
    typed = Fanout(10, Limits(), lambda: None, call_now, types)
    for each in (plain, typed):
        each.publish([Commit([event(11), event(12)], None), Commit([event(13)], None)])
    assert [each.decode() for each in typed.ring.since(10)] == [Paid()] * 3
    with pytest.raises(NoEventTypes):
        next(iter(plain.ring.since(10))).decode()
