"""Timestamps: times as they are stored, as texts in UTC with microseconds, which sort as the times do."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

BEYOND: Final = "9999-12-31T24:00:00.000000Z"
"""Later than every timestamp."""


def timestamp_text(moment: datetime) -> str:
    """The aware time as a timestamp; OverflowError where, in UTC, it is before the year 1 or after the year 9999."""
    if moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    return moment.isoformat(timespec="microseconds")[: -len("+00:00")] + "Z"


_EARLIEST: Final = timestamp_text(datetime.min.replace(tzinfo=UTC))


def check_moment(name: str, value: object) -> str:
    """The bound in time as a timestamp, if it is an aware datetime; else ValueError (naive) or TypeError.

    What is out of reach in UTC becomes the earliest timestamp, or `BEYOND`.
    """
    if not isinstance(value, datetime):
        raise TypeError(f"{name} must be an aware datetime, not {value!r:.80}")
    if value.utcoffset() is None:
        raise ValueError(f"{name} must be an aware datetime, as events have it: {value!r} has no time zone")
    try:
        return timestamp_text(value)
    except OverflowError:
        return _EARLIEST if value.year == datetime.min.year else BEYOND
