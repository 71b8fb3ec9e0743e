"""Which runs to use, and which to merge next: decided by the runs alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from aiostore.engines.file.run_format import FAN_OUT, RUN_EVENTS_MAX


class Covering(Protocol):
    """A run, as it is seen here."""

    @property
    def first_event_id(self) -> int: ...
    @property
    def last_event_id(self) -> int: ...


class Levelled(Covering, Protocol):
    """A run with its level."""

    @property
    def level(self) -> int: ...


C = TypeVar("C", bound=Covering)


def choose_runs(found: Iterable[C]) -> tuple[list[C], list[C]]:
    """The runs to use, in order and without overlap, and those that can be deleted.

    After a crash, runs that were merged may still be there beside the one that took their place: that one is the
    wider, and begins where the first of them did. Between the runs to use there may be gaps.
    """
    used: list[C] = []
    superfluous: list[C] = []
    for run in sorted(found, key=lambda run: (run.first_event_id, -run.last_event_id)):
        covered = used and run.first_event_id <= used[-1].last_event_id
        (superfluous if covered else used).append(run)
    return used, superfluous


def next_merge(runs: Sequence[Levelled]) -> slice | None:
    """The runs to merge next, None if there are none; to be asked again with the merged run in their place.

    ``runs`` are those in use, in order. Neighbours of one level are taken in fours, counted from the first of them;
    the oldest four that make a run of at most `RUN_EVENTS_MAX` events are next.
    """
    start = 0
    for end in range(1, len(runs) + 1):
        if end < len(runs) and _are_neighbours(runs[end - 1], runs[end]):
            continue
        for first in range(start, end - FAN_OUT + 1, FAN_OUT):
            if runs[first + FAN_OUT - 1].last_event_id - runs[first].first_event_id < RUN_EVENTS_MAX:
                return slice(first, first + FAN_OUT)
        start = end
    return None


def _are_neighbours(run: Levelled, following: Levelled) -> bool:
    return run.level == following.level and run.last_event_id + 1 == following.first_event_id
