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

    ``runs`` are those in use, in order. Neighbours of one level are taken in fours, counted from the first of them; a
    run counts as of the level of the one before where that is lower, for nothing will come in between to raise that.
    Runs of more than a quarter of `RUN_EVENTS_MAX` events are left alone, so that all other fours fit. What is merged
    depends only on the runs up to there, not on those behind: so the same come out, whether one by one or at once.
    """
    start = level = 0
    for place, run in enumerate(runs):
        before = runs[place - 1] if place else None
        if before is None or before.last_event_id + 1 != run.first_event_id or _is_large(before) or run.level < level:
            start, level = place, run.level
        if place - start == FAN_OUT - 1 and not _is_large(run):
            return slice(start, place + 1)
    return None


def _is_large(run: Levelled) -> bool:
    return run.last_event_id - run.first_event_id >= RUN_EVENTS_MAX // FAN_OUT
