"""The bounds on everything: names, events, appends, groups, queues."""

from __future__ import annotations

from dataclasses import dataclass, fields

STREAM_ID_BYTES_MAX = 1024
EVENT_TYPE_BYTES_MAX = 256
TAG_BYTES_MAX = 256
TAGS_MAX = 64
IDEMPOTENCY_KEY_BYTES_MAX = 256
NAME_BYTES_MAX = 200
"""Of projections, deciders, consumers and named subscriptions."""
NESTING_MAX = 100
INTEGER_MIN = -(2**63)
INTEGER_MAX = 2**64 - 1

MIB = 1024 * 1024


def check_number(name: str, value: object, least: int) -> int:
    """The number itself, if it is an int of at least ``least``; else ValueError."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an int of {least} or more, not {value!r}")
    return value


def check_seconds(name: str, value: object, *, zero: bool = False) -> float:
    """The number itself, if it is one of seconds above 0, or 0 where ``zero`` says so; else ValueError."""
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not 0 <= value < float("inf")
        or (value == 0 and not zero)
    ):
        raise ValueError(f"{name} must be a number of seconds{', 0 or more' if zero else ' above 0'}, not {value!r}")
    return float(value)


def check_bound(name: str, value: int | None) -> int | None:
    """The number itself, if it is None or an int of at least 0; else ValueError."""
    return None if value is None else check_number(name, value, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds that an application may set for its store, all positive; bytes are of encoded JSON.

    An append above ``event_bytes_max`` or ``append_bytes_max`` is `InvalidEvent`. A group takes appends while it stays
    within ``group_bytes_max`` and ``group_events_max`` (a larger append is a group of its own). Above
    ``backlog_bytes_max`` that listeners have not had yet, no further group is formed. ``queue_bytes_max`` bounds each
    subscription's queue beside its ``queue_size``. ``ring_bytes_max`` is the memory for the latest events, from which
    subscriptions go live.
    """

    event_bytes_max: int = 16 * MIB
    append_bytes_max: int = 64 * MIB
    group_bytes_max: int = 8 * MIB
    group_events_max: int = 2048
    backlog_bytes_max: int = 64 * MIB
    queue_bytes_max: int = 16 * MIB
    ring_bytes_max: int = 4 * MIB

    def __post_init__(self) -> None:
        for field in fields(self):
            check_number(field.name, getattr(self, field.name), 1)
