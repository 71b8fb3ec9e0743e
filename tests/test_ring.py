"""The ring: what it holds, and what it still knows of what has left it."""

from __future__ import annotations

import random

import msgspec
import pytest

from aiostore import Event
from aiostore.engine import Commit
from aiostore.ring import Ring


def commit(first_event_id: int, *versions: tuple[str, int], key: str | None = None, size: int = 10) -> Commit:
    """A commit of events of these streams at these versions."""
    events = [
        Event(first_event_id + i, stream_id, version, "E", "2026-11-23T00:00:00.000000Z", msgspec.Raw(b"{}"))
        for i, (stream_id, version) in enumerate(versions)
    ]
    return Commit(events, key, size)


def held(ring: Ring) -> list[int]:
    return [event.event_id for event in ring.since(ring.after)]


def test_an_empty_ring_stands_at_the_head() -> None:
    ring = Ring(7, 100)
    assert (ring.head, ring.after, held(ring)) == (7, 7, [])
    assert ring.version("s") is None
    assert ring.stored(("s", "k")) is None


def test_it_holds_what_is_added() -> None:
    ring = Ring(0, 100)
    ring.add(commit(1, ("a", 1), ("b", 1)))
    ring.add(commit(3, ("a", 2)))
    assert (ring.head, ring.after, held(ring)) == (3, 0, [1, 2, 3])
    assert (ring.version("a"), ring.version("b"), ring.version("c")) == (2, 1, None)


@pytest.mark.parametrize(("after", "ids"), [(0, [1, 2, 3, 4]), (1, [2, 3, 4]), (3, [4]), (4, []), (9, [])])
def test_since_gives_what_is_above_also_from_within_a_commit(after: int, ids: list[int]) -> None:
    ring = Ring(0, 100)
    ring.add(commit(1, ("s", 1), ("s", 2), ("s", 3)))
    ring.add(commit(4, ("s", 4)))
    assert [event.event_id for event in ring.since(after)] == ids


def test_whole_commits_leave_at_the_old_end_by_their_bytes() -> None:
    ring = Ring(0, 25)
    ring.add(commit(1, ("s", 1), ("s", 2)))
    ring.add(commit(3, ("s", 3)))
    assert held(ring) == [1, 2, 3]
    ring.add(commit(4, ("s", 4)))
    assert (ring.after, held(ring)) == (2, [3, 4])


def test_the_newest_commit_stays_however_large_it_is() -> None:
    ring = Ring(0, 25)
    ring.add(commit(1, ("s", 1), size=10))
    ring.add(commit(2, ("s", 2), ("s", 3), size=1000))
    assert (ring.after, held(ring)) == (1, [2, 3])


def test_a_key_is_known_as_long_as_its_commit_is_held() -> None:
    ring = Ring(0, 25)
    first = commit(1, ("a", 1), ("b", 1), key="k")
    ring.add(first)
    assert ring.stored(("a", "k")) == first.events
    assert ring.stored(("b", "k")) is None
    ring.add(commit(3, ("a", 2), key="other"))
    ring.add(commit(4, ("a", 3)))
    assert ring.stored(("a", "k")) is None
    assert ring.stored(("a", "other")) is not None


@pytest.mark.parametrize("seed", range(20))
def test_versions_of_streams_in_the_ring_are_known_and_none_is_wrong(seed: int) -> None:
    chance = random.Random(seed)
    ring = Ring(0, 200)
    versions: dict[str, int] = {}
    log: list[Event] = []
    for _ in range(3000):
        parts = []
        for _ in range(chance.randrange(1, 4)):
            stream_id = f"s-{chance.randrange(50)}"
            versions[stream_id] = versions.get(stream_id, 0) + 1
            parts.append((stream_id, versions[stream_id]))
        added = commit(len(log) + 1, *parts, size=chance.randrange(1, 60))
        ring.add(added)
        log.extend(added.events)
        assert ring.head == len(log)
    assert held(ring) == list(range(ring.after + 1, len(log) + 1))
    in_ring = {event.stream_id for event in log[ring.after :]}
    for stream_id, version in versions.items():
        known = ring.version(stream_id)
        assert known == version or (known is None and stream_id not in in_ring)


def test_what_it_takes_does_not_grow_with_what_went_through_it() -> None:
    ring = Ring(0, 1000)
    for n in range(1, 50_001):
        ring.add(commit(n, (f"s-{n}", 1), key=f"k-{n}"))
    assert len(held(ring)) == 100
    kept = [ring._commits, ring._last_ids, ring._versions, ring._older_versions, ring._keys]
    assert all(len(part) < 3000 for part in kept)  # type: ignore[arg-type]
