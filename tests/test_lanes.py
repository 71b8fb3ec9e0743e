"""Lanes by themselves: what is begun, in whichever order events, requests and handovers come."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest

from aiostore import Event, EventStore
from aiostore.consumer import lanes as lanes_module
from aiostore.consumer.group import PARTITIONS, Progress, partition_of
from aiostore.consumer.lanes import Lane, Lanes, Share
from aiostore.consumer.parked import Row


async def events_of(*streams: str) -> list[Event]:
    """One event of each of the streams, in turn."""
    async with EventStore() as store:
        return [await store.append(stream, "E", {}) for stream in streams]


def lanes_with(events: Sequence[Event], *progress: Progress) -> Lanes:
    """Lanes of all partitions. What is parked is found among the events."""

    async def refill(lane: Lane) -> Sequence[Event]:
        await asyncio.sleep(0)
        assert lane.parked is not None
        row, seen = lane.parked.row, lane.parked.seen
        return [event for event in events if event.stream_id == lane.key and row.event_id <= event.event_id <= seen]

    lanes = Lanes(None, 4096, refill, lambda: None)
    for number in range(PARTITIONS):
        lanes.gain(Share(number, *progress or (Progress(0, []),)))
    return lanes


async def test_nothing_is_begun_of_a_share_that_is_given_up_when_parked_events_are_asked_for() -> None:
    events = await events_of("s", "s")
    lanes = lanes_with(events)
    number = partition_of("s")
    asked = Row(1, 1, "E", 1, retry=True)
    lanes.know_parked("s", asked, number, 2)
    lane = await lanes.next_lane()
    assert lane is not None
    lanes.release(number, 2)
    lanes.done(lane, events[0])
    lanes.give_back(lane)
    lanes.know_parked("s", asked, number, 2)
    assert lanes.begin() is None
    assert lanes.shares[number].running_count == 0


async def test_what_was_read_before_is_parked_whatever_is_read_again() -> None:
    first, second = events = await events_of("s", "s")
    lanes = lanes_with(events, Progress(0, [1, 2]))
    lanes.know_parked("s", Row(1, 1, "E", 1, retry=True), partition_of("s"), 2)
    lanes.take([first])  # from the beginning, once more
    lane = await lanes.next_lane()
    assert lane is not None
    lanes.done(lane, first)
    lanes.done(lane, second)
    lanes.give_back(lane)


async def test_one_that_is_cancelled_while_another_is_woken() -> None:
    events = await events_of("s")
    lanes = lanes_with(events)
    cancelled, other = (asyncio.create_task(lanes.next_lane()) for _ in range(2))
    await asyncio.sleep(0)
    cancelled.cancel()
    lanes.take(events)
    lanes._wake_one()
    await asyncio.wait([cancelled])
    assert cancelled.cancelled()
    assert await other is not None


async def test_what_is_forgotten_of_idle_streams_is_nothing_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes_module, "LANES_MAX", 2)
    events = await events_of("a", "b", "c", "d")
    lanes = lanes_with(events)
    lanes.take(events[:2])
    for key in ("a", "b"):
        lanes.release(partition_of(key), 2)
    lanes.take(events[2:])
    for key in ("a", "b"):
        lanes.drop(partition_of(key))
    assert lanes.queued_count == 2


async def test_closed_it_begins_with_no_timers() -> None:
    events = await events_of("s")
    lanes = lanes_with(events)
    lanes.take(events)
    lane = lanes.begin()
    assert lane is not None
    lanes.close()
    lanes.wait(lane, 30)
    lanes.give_back(lane)
    assert lane.timer is None


async def test_a_parked_stream_that_waits_to_be_tried_again_holds_one_event() -> None:
    events = await events_of(*["s"] * 10)
    lanes = lanes_with(events)
    lanes.know_parked("s", Row(1, 1, "E", 1, retry=True), partition_of("s"), 10)
    lane = await lanes.next_lane()
    assert lane is not None
    assert len(lane.events) == 10
    lanes.wait(lane, 0)
    lanes.give_back(lane)
    assert len(lane.events) == 1
    lanes.done(lane, lane.events[0])
    await asyncio.sleep(0.001)
    lane = await lanes.next_lane()
    assert lane is not None
    assert [event.event_id for event in lane.events] == list(range(2, 11))


async def test_what_is_to_be_skipped_is_taken_out_of_what_was_read() -> None:
    events = await events_of(*["s"] * 4)
    lanes = lanes_with(events)
    number = partition_of("s")
    lanes.know_parked("s", Row(1, 1, "E", 1, retry=True), number, 4)
    lane = await lanes.next_lane()
    assert lane is not None
    lanes.know_parked("s", Row(1, 1, "E", 1, retry=True, skipped=[1, 3]), number, 4)
    assert [event.event_id for event in lane.events] == [1, 2, 4], "the first is in hand"


def everything_of(lanes: Lanes) -> object:
    counts = lanes.busy_count, lanes.queued_count, lanes._window_count, lanes.calm
    running = [share.running_count for share in lanes.shares.values()]
    ready = [lane.key for lane in lanes._ready]
    return counts, running, ready, {key: lane.state for key, lane in lanes._lanes.items()}, lanes.progress()


class Pair:
    """Two sets of lanes that live through the same, one of them step by step."""

    def __init__(self, seed: int, events: list[Event]) -> None:
        self.chance = random.Random(seed)
        self.events = events
        self.fast, self.slow = self.both = lanes_with([]), lanes_with([])
        self.held: list[tuple[Lane | None, Lane | None]] = []

    def take(self) -> None:
        count = self.chance.randint(1, 20)
        now, self.events[:] = self.events[:count], self.events[count:]
        for lanes in self.both:
            lanes.take(now)
            lanes.taken(now[-1].event_id if now else 0)

    def begin(self) -> None:
        if len(self.held) < 4:
            self.held.append((self.fast.begin(), self.slow.begin()))

    def handle(self) -> None:
        if not self.held:
            return
        place, stays = self.chance.randrange(len(self.held)), self.chance.random() < 0.7
        one, other = self.held[place]
        assert one is not None
        assert other is not None
        new = self.fast.go_on(one, one.events[0], stays=stays)
        self.slow.done(other, other.events[0])
        if not (other.events and stays) or other.share.releasing:
            self.slow.give_back(other)
            other = self.slow.begin()
        self.held[place] = new, other

    def park(self) -> None:
        if self.held and self.chance.random() < 0.1:
            for lanes, lane in zip(self.both, self.held.pop(), strict=True):
                assert lane is not None
                first = lane.events[0]
                lanes.park(lane, Row(first.event_id, first.version, "E", 1))
                lanes.give_back(lane)

    def release(self) -> None:
        if self.chance.random() < 0.02:
            number = partition_of(self.chance.choice("abcdefgh"))
            for lanes in self.both:
                lanes.release(number, 0)

    def wait_for_room(self) -> None:
        if self.chance.random() < 0.1:
            for lanes in self.both:
                lanes._room = asyncio.Future()


@pytest.mark.parametrize("seed", range(30))
async def test_to_go_on_is_to_be_done_to_give_back_and_to_begin(seed: int) -> None:
    pair = Pair(seed, await events_of(*random.Random(seed).choices("abcdefgh", k=300)))
    while pair.events or pair.held or pair.fast._ready:
        acts = [pair.take, pair.begin, pair.handle, pair.handle, pair.handle, pair.park, pair.release]
        pair.chance.choice([*acts, pair.wait_for_room])()
        pair.held = [each for each in pair.held if each != (None, None)]
        assert everything_of(pair.fast) == everything_of(pair.slow)
        assert [one and one.key for one, _ in pair.held] == [other and other.key for _, other in pair.held]
