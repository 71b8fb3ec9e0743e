"""Errors: one tree, each built from fields that it carries, tells in its message, copies and pickles."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable

import pytest

import aiostore.errors
from aiostore import (
    STREAM_EXISTS,
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
    Limits,
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

ERRORS: list[tuple[EventStoreError, dict[str, object], str]] = [
    (ConcurrencyConflict("s", 5, 2), {"stream_id": "s", "expected": 5, "actual": 2}, "version 5 .* version 2"),
    (
        ConcurrencyConflict("s", STREAM_EXISTS, 0),
        {"stream_id": "s", "expected": STREAM_EXISTS, "actual": 0},
        "to exist .* version 0",
    ),
    (AppendConditionFailed(7), {"event_id": 7}, "event 7 "),
    (InvalidEvent("data.price", "too high"), {"where": "data.price", "reason": "too high"}, "data.price: too high"),
    (
        IdempotencyConflict("s", "k", 7),
        {"stream_id": "s", "idempotency_key": "k", "event_id": 7},
        "'k' .* 's' .* event 7",
    ),
    (StateConflict("k", 2, 3), {"key": "k", "expected": 2, "actual": 3}, "'k' .* revision 2 .* 3"),
    (
        ProjectionConflict("p", 7, "its target has moved on"),
        {"name": "p", "position": 7, "reason": "its target has moved on"},
        "'p' .* event 7 .* moved on",
    ),
    (Fenced("mailer"), {"name": "mailer"}, "'mailer' was taken over"),
    (
        ConsumerHalted("mailer", 7, "cart-1", 3, "ValueError: no"),
        {"name": "mailer", "event_id": 7, "stream_id": "cart-1", "attempts": 3, "reason": "ValueError: no"},
        "'mailer' halted at event 7 of stream 'cart-1', tried 3 times: ValueError: no",
    ),
    (
        ProjectionStopped("p", 7, "it was closed"),
        {"name": "p", "position": 7, "reason": "it was closed"},
        "'p' .* event 7 .* it was closed",
    ),
    (StoreClosed(), {"reason": "the store is closed"}, "the store is closed"),
    (StoreClosed("not open yet"), {"reason": "not open yet"}, "not open yet"),
    (StoreLocked("/d", 12), {"path": "/d", "pid": 12, "own": False}, "/d .* process 12"),
    (StoreLocked("/d", 12, own=True), {"path": "/d", "pid": 12, "own": True}, "/d .* this same process"),
    (StoreLocked("/d", 0), {"path": "/d", "pid": 0, "own": False}, "/d .* another process"),
    (StoreFailed("/d", "sync failed"), {"path": "/d", "reason": "sync failed"}, "/d: sync failed"),
    (StoreFull("/d", "no space"), {"path": "/d", "reason": "no space"}, "/d: no room .*no space"),
    (
        StoreCorrupt("/d/f", 99, "bad checksum"),
        {"path": "/d/f", "offset": 99, "reason": "bad checksum", "first_event_id": 0, "last_event_id": 0},
        "/d/f .* byte 99: bad checksum",
    ),
    (
        StoreCorrupt("/d/f", 99, "bad checksum", 3, 5),
        {"path": "/d/f", "offset": 99, "reason": "bad checksum", "first_event_id": 3, "last_event_id": 5},
        "byte 99, events 3 to 5: bad checksum",
    ),
    (StoreCorrupt("/d/f", 99, "bad checksum", 3), {"first_event_id": 3, "last_event_id": 0}, "events 3 to unknown"),
    (OutcomeUnknown("the connection went"), {}, "the connection went"),
    (SlowSubscriber(7, 1024), {"position": 7, "queue_size": 1024}, "1024 .* after event 7.*after=7"),
    (EngineUnavailable("no driver"), {}, "no driver"),
    (EngineUnsupported("no such system"), {}, "no such system"),
    (WrongLoop(), {}, "another event loop"),
    (NoEventTypes(7, "T"), {"event_id": 7, "event_type": "T"}, "event 7 .'T'. cannot be decoded.*types="),
    (UnknownEventType(7, "T", 2), {"event_id": 7, "event_type": "T", "schema_version": 2}, "event 7 .*'T'.*add it"),
    (
        UnknownEventVersion(7, "T", 3, 2),
        {"event_id": 7, "event_type": "T", "schema_version": 3, "known_version": 2},
        "event 7 is 'T' of version 3.* up to version 2",
    ),
    (
        EventNotDecodable(7, "T", 1, "data.n: Expected `int`"),
        {"event_id": 7, "event_type": "T", "schema_version": 1, "reason": "data.n: Expected `int`"},
        "event 7 .'T' version 1.: data.n: Expected `int`",
    ),
]
each_error = pytest.mark.parametrize(("error", "fields", "message"), ERRORS, ids=lambda value: type(value).__name__)

COPIES: list[Callable[[EventStoreError], EventStoreError]] = [
    copy.copy,
    copy.deepcopy,
    lambda error: pickle.loads(pickle.dumps(error)),
]


@each_error
def test_an_error_carries_its_fields_and_tells_them(
    error: EventStoreError, fields: dict[str, object], message: str
) -> None:
    assert {name: getattr(error, name) for name in fields} == fields
    with pytest.raises(EventStoreError, match=message):
        raise error


@each_error
@pytest.mark.parametrize("way", COPIES)
def test_an_error_copies_and_pickles_with_its_fields(
    error: EventStoreError,
    fields: dict[str, object],
    message: str,
    way: Callable[[EventStoreError], EventStoreError],
) -> None:
    copied = way(error)
    assert type(copied) is type(error)
    assert copied is not error
    assert {name: getattr(copied, name) for name in fields} == fields
    assert copied.args == error.args
    assert str(copied) == str(error)


def test_all_errors_are_in_one_tree_and_in_the_list_above() -> None:
    classes = {member for _, member in inspect.getmembers(aiostore.errors, inspect.isclass)}
    errors = {member for member in classes if issubclass(member, BaseException)}
    assert {member for member in errors if not issubclass(member, EventStoreError)} == set()
    assert {type(error) for error, _, _ in ERRORS} == errors - {EventStoreError}


def test_an_invalid_event_is_also_a_value_error() -> None:
    with pytest.raises(ValueError, match="no"):
        raise InvalidEvent("data", "no")


def test_the_default_limits_are_those_of_the_design() -> None:
    mib = 1024 * 1024
    limits = Limits()
    assert (limits.event_bytes_max, limits.append_bytes_max) == (16 * mib, 64 * mib)
    assert (limits.group_bytes_max, limits.backlog_bytes_max, limits.queue_bytes_max) == (8 * mib, 64 * mib, 16 * mib)


@pytest.mark.parametrize("value", [0, -1, 1.5, "1", None])
@pytest.mark.parametrize("name", Limits.__dataclass_fields__)
def test_a_limit_is_a_positive_number(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        Limits(**{name: value})  # type: ignore[arg-type]


def test_limits_are_read_only_and_named() -> None:
    with pytest.raises(AttributeError):
        Limits().event_bytes_max = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        Limits(5)  # type: ignore[call-arg]
