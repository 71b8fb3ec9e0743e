"""What asyncpg and the system raise, and which error of ours it is: the one place that knows."""

from __future__ import annotations

import asyncpg

from aiostore.engines.postgres.functions import FENCED, NO_EVENT
from aiostore.errors import EngineUnavailable, EventStoreError, InvalidEvent, StoreCorrupt, StoreFull

_LOST_CLASSES = ("08", "57P")
_LOST = frozenset({"53300", "25006", "40003", FENCED})
"""Too many connections, a server that only reads, an unknown completion, a connection that was given up."""

_NOT_DEFINITE = ("08", "57P", "40003")


def sqlstate(error: BaseException) -> str:
    """The SQLSTATE of an error that the server sent (or asyncpg in its place), empty for any other."""
    state = getattr(error, "sqlstate", None) if isinstance(error, asyncpg.PostgresError) else None
    return state or ""


def is_lost(error: BaseException) -> bool:
    """Whether another connection, now or soon, may do better."""
    if isinstance(error, EventStoreError):
        return False
    state = sqlstate(error)
    if state:
        return state.startswith(_LOST_CLASSES) or state in _LOST
    if isinstance(error, asyncpg.DataError | asyncpg.exceptions.ClientConfigurationError):
        return False
    return isinstance(error, OSError | asyncpg.InterfaceError | asyncpg.InternalClientError)


def is_refusal(error: BaseException) -> bool:
    """Whether the server itself answered that the statement failed: then its transaction is undone for certain."""
    state = sqlstate(error)
    return bool(state) and not state.startswith(_NOT_DEFINITE)


def mapped(error: BaseException, location: str) -> EventStoreError:
    """Our error for one of asyncpg's or the system's; ours stay what they are."""
    if isinstance(error, EventStoreError):
        return error
    state = sqlstate(error)
    reason = _reason(error)
    ours: EventStoreError
    if state == NO_EVENT:
        ours = StoreCorrupt(location, 0, reason)
    elif state in ("53100", "53400"):
        ours = StoreFull(location, reason)
    elif state.startswith(("22", "54")) or isinstance(error, asyncpg.DataError):
        ours = InvalidEvent("events", f"the server does not take it: {reason}")
    elif state == "57014":
        ours = EngineUnavailable(f"{location} took too long, and was stopped: {reason}")
    else:
        ours = EngineUnavailable(f"{location} is not available: {reason}")
    ours.__cause__ = error
    return ours


def _reason(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    detail = getattr(error, "detail", None)
    return f"{text} ({detail})" if detail else text
