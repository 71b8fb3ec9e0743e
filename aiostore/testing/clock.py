"""A clock that stands still until it is moved."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

START = datetime(2026, 1, 1, tzinfo=UTC)


class FakeClock:
    """Gives the same time until `advance` or `set`; to be used as ``EventStore(clock=…)``.

    ``now``: an aware datetime, kept in UTC; 2026-01-01 unless given. ValueError for a naive one.
    """

    def __init__(self, now: datetime = START) -> None:
        self.set(now)

    def __call__(self) -> datetime:
        """The time, as a store asks for it."""
        return self._now

    @property
    def now(self) -> datetime:
        """The time, aware, in UTC."""
        return self._now

    def advance(self, by: timedelta | float) -> datetime:
        """Move the time on by so many seconds, or by a timedelta; returns the new one. ValueError to go back."""
        step = by if isinstance(by, timedelta) else timedelta(seconds=by)
        if step < timedelta(0):
            raise ValueError(f"advance goes forward, not by {by!r}; set() goes anywhere")
        self._now += step
        return self._now

    def set(self, now: datetime) -> None:
        """Set the time, also back; the timestamps of a store never go back."""
        if now.tzinfo is None:
            raise ValueError(f"the time must be an aware datetime, not {now!r}")
        self._now = now.astimezone(UTC)

    def __repr__(self) -> str:
        return f"<FakeClock {self._now.isoformat()}>"
