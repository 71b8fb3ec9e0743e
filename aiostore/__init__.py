"""aiostore: an event store that lives in the event loop."""

from aiostore.consumer import Consumer, ConsumerStatistics, Delivery, Parked, Retry
from aiostore.context import correlate
from aiostore.database_projection import Checkpoint, DatabaseProjection, Target
from aiostore.decider import Decider, Decision
from aiostore.engine import Engine
from aiostore.errors import (
    AppendConditionFailed,
    ConcurrencyConflict,
    ConsumerHalted,
    EngineUnavailable,
    EngineUnsupported,
    EventNotDecodable,
    EventStoreError,
    Fenced,
    IdempotencyConflict,
    InvalidEvent,
    NoEventTypes,
    OutcomeUnknown,
    ProjectionConflict,
    ProjectionStopped,
    SlowSubscriber,
    StateConflict,
    StoreClosed,
    StoreCorrupt,
    StoreFailed,
    StoreFull,
    StoreLocked,
    UnknownEventType,
    UnknownEventVersion,
    WrongLoop,
)
from aiostore.events import END, NO_STREAM, STREAM_EXISTS, Event, NewEvent, StreamAppend
from aiostore.fold import reconstruct_state
from aiostore.keyed_projection import KeyedProjection
from aiostore.limits import Limits
from aiostore.listeners import Listener
from aiostore.live_projection import LiveProjection
from aiostore.projection import Projection
from aiostore.query import AppendCondition, Query, QueryItem
from aiostore.reader import Reader
from aiostore.schema import EventTypes
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
    "KeyedProjection",
    "DatabaseProjection",
    "Target",
    "Checkpoint",
    "reconstruct_state",
    # what handles events
    "Consumer",
    "ConsumerStatistics",
    "Delivery",
    "Parked",
    "Retry",
    # what events are in a program
    "EventTypes",
    # what the work follows from
    "correlate",
    # what is decided
    "Decider",
    "Decision",
    # errors
    "EventStoreError",
    "ConcurrencyConflict",
    "AppendConditionFailed",
    "InvalidEvent",
    "IdempotencyConflict",
    "UnknownEventType",
    "UnknownEventVersion",
    "EventNotDecodable",
    "NoEventTypes",
    "StoreClosed",
    "StoreLocked",
    "StoreFailed",
    "StoreFull",
    "StoreCorrupt",
    "OutcomeUnknown",
    "SlowSubscriber",
    "Fenced",
    "ConsumerHalted",
    "ProjectionStopped",
    "ProjectionConflict",
    "StateConflict",
    "EngineUnavailable",
    "EngineUnsupported",
    "WrongLoop",
]
