"""aiostore: an event store that lives in the event loop."""

from aiostore.decider import Decider, Decision
from aiostore.engine import Engine
from aiostore.errors import (
    AppendConditionFailed,
    ConcurrencyConflict,
    EngineUnavailable,
    EngineUnsupported,
    EventStoreError,
    IdempotencyConflict,
    InvalidEvent,
    OutcomeUnknown,
    ProjectionStopped,
    SlowSubscriber,
    StateConflict,
    StoreClosed,
    StoreCorrupt,
    StoreFailed,
    StoreFull,
    StoreLocked,
    WrongLoop,
)
from aiostore.events import END, NO_STREAM, STREAM_EXISTS, Event, NewEvent, StreamAppend
from aiostore.fold import reconstruct_state
from aiostore.limits import Limits
from aiostore.listeners import Listener
from aiostore.live_projection import LiveProjection
from aiostore.projection import Projection
from aiostore.query import AppendCondition, Query, QueryItem
from aiostore.reader import Reader
from aiostore.store import EventStore
from aiostore.subscription import Subscription, SubscriptionStatistics

__all__ = [  # noqa: RUF022 (grouped)
    # the store
    "EventStore",
    "Limits",
    "Engine",
    # what is appended
    "NewEvent",
    "StreamAppend",
    "AppendCondition",
    "NO_STREAM",
    "STREAM_EXISTS",
    # what is read
    "Event",
    "Reader",
    "Query",
    "QueryItem",
    # what is delivered
    "Subscription",
    "SubscriptionStatistics",
    "Listener",
    "END",
    # what is made of events
    "Projection",
    "LiveProjection",
    "reconstruct_state",
    # what is decided
    "Decider",
    "Decision",
    # errors
    "EventStoreError",
    "ConcurrencyConflict",
    "AppendConditionFailed",
    "InvalidEvent",
    "IdempotencyConflict",
    "StoreClosed",
    "StoreLocked",
    "StoreFailed",
    "StoreFull",
    "StoreCorrupt",
    "OutcomeUnknown",
    "SlowSubscriber",
    "ProjectionStopped",
    "StateConflict",
    "EngineUnavailable",
    "EngineUnsupported",
    "WrongLoop",
]
