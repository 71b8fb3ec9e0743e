"""The latest commits, in memory: what judging looks at, and where subscriptions go live from."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice

from aiostore.engine import Commit
from aiostore.events import Event

_SPARE_COMMITS_MAX = 1000
_GONE = Commit((), None)


class Ring:
    """Every committed event above ``after`` up to ``head``; whole commits leave it at the old end, by their bytes."""

    def __init__(self, head: int, bytes_max: int) -> None:
        self.head = head
        self.after = head
        self._bytes_max = bytes_max
        self._bytes = 0
        # The commits from `_start` on, and the last event_id of each; what stands before is cut off in bulk.
        self._commits: list[Commit] = []
        self._last_ids: list[int] = []
        self._start = 0
        # The versions of all streams with events in the ring, and of some without: what is older than `_turned` lies in
        # the second dict, which is dropped when all of that has left the ring. Cheaper than to remove each by itself.
        self._versions: dict[str, int] = {}
        self._older_versions: dict[str, int] = {}
        self._turned = head
        self._keys: dict[tuple[str, str], Sequence[Event]] = {}

    def add(self, commit: Commit) -> None:
        """Take the next commit in and, where there is no more room, the oldest ones out; the newest always stays."""
        events, key, size = commit
        versions = self._versions
        for event in events:
            versions[event.stream_id] = event.version
        if key is not None:
            self._keys[events[0].stream_id, key] = events
        self.head = events[-1].event_id
        self._commits.append(commit)
        self._last_ids.append(self.head)
        self._bytes += size
        while self._bytes > self._bytes_max and len(self._commits) - self._start > 1:
            self._remove_oldest()
        if self._start > _SPARE_COMMITS_MAX and self._start > len(self._commits) // 2:
            del self._commits[: self._start], self._last_ids[: self._start]
            self._start = 0

    def _remove_oldest(self) -> None:
        commit = self._commits[self._start]
        self._commits[self._start] = _GONE
        self._start += 1
        self._bytes -= commit.bytes_estimate
        self.after = commit.events[-1].event_id
        if self.after >= self._turned:
            self._older_versions, self._versions, self._turned = self._versions, {}, self.head
        if commit.idempotency_key is not None:
            self._keys.pop((commit.events[0].stream_id, commit.idempotency_key), None)

    def version(self, stream_id: str) -> int | None:
        """The version of a stream, None if it is not known; that of a stream with an event in the ring is."""
        version = self._versions.get(stream_id)
        return self._older_versions.get(stream_id) if version is None else version

    def stored(self, scope: tuple[str, str]) -> Sequence[Event] | None:
        """The events of the commit with this (stream_id, key), if it is in the ring."""
        return self._keys.get(scope)

    def since(self, after: int) -> Iterator[Event]:
        """The events above ``after``, which must not be below the ring's own, in order."""
        first = bisect_right(self._last_ids, after, lo=self._start)
        for index in range(first, len(self._commits)):
            events = self._commits[index].events
            start = bisect_right(events, after, key=_event_id) if index == first else 0
            yield from islice(events, start, None)


def _event_id(event: Event) -> int:
    return event.event_id
