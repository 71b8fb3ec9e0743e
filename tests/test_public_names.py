"""The public names are those of DESIGN.md §2, and each says what it promises."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from enum import Enum
from typing import Any

import pytest

import aiostore

NAMES = {
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
}
MEMBERS = {
    "EventStore": "open aclose append append_batch append_streams read_stream read_all stream_version head subscribe "
    "on_commit",
    "Event": "event_id stream_id version event_type data timestamp metadata tags decode to_dict to_json",
    "Reader": "batches decoded to_list head version",
    "Subscription": "batches decoded position lag is_live statistics aclose",
    "Listener": "close error",
    "Projection": "name state position lag error when effect catch_up rebuild as_of save_snapshot load_snapshot",
    "KeyedProjection": "name position lag error is_live when get items as_of rebuild catch_up wait_for aclose",
    "LiveProjection": "is_live catch_up wait_for aclose",
    "DatabaseProjection": "name position lag error is_live when catch_up wait_for aclose",
    "Target": "load begin save",
    "Checkpoint": "position mark",
    "Decider": "initial evolve decide execute execute_over flush",
    "Decision": "events state version position",
    "StreamAppend": "stream_id events expected_version",
    "NewEvent": "event_type data metadata tags",
    "QueryItem": "types tags stream_prefix",
    "Query": "where",
    "AppendCondition": "query after",
    "EventTypes": "add event upcast renamed check json_schema check_samples",
    "ConcurrencyConflict": "stream_id expected actual",
    "AppendConditionFailed": "event_id",
    "InvalidEvent": "where reason",
    "IdempotencyConflict": "stream_id idempotency_key event_id",
    "StoreLocked": "pid",
    "StoreCorrupt": "path offset",
}

PARAMETERS = {
    "append": "stream_id event_type data=UNSET * metadata=None tags=() expected_version=None condition=None "
    "idempotency_key=None",
    "append_batch": "stream_id events * expected_version=None condition=None idempotency_key=None",
    "append_streams": "appends * condition=None idempotency_key=None",
    "read_stream": "stream_id * from_version=1 to_version=None since=None until=None backwards=False limit=None",
    "read_all": "* after=0 up_to=None since=None until=None query=None backwards=False limit=None",
    "stream_version": "stream_id",
    "head": "",
    "subscribe": (
        "* stream_id=None query=None after=0 queue_size=1024 on_slow='catch_up' on_live=None name=None "
        "checkpoint_every=None state=None"
    ),
    "on_commit": "handler * wait=True name=None",
}


def test_all_lists_exactly_the_public_names() -> None:
    assert set(aiostore.__all__) == NAMES
    assert len(aiostore.__all__) == len(set(aiostore.__all__))


def test_every_listed_name_is_there() -> None:
    assert [name for name in aiostore.__all__ if not hasattr(aiostore, name)] == []


def test_a_star_import_gives_just_these_names() -> None:
    given: dict[str, Any] = {}
    exec("from aiostore import *", given)
    assert {name for name in given if not name.startswith("__")} == set(aiostore.__all__)


@pytest.mark.parametrize(("owner", "members"), MEMBERS.items())
async def test_public_objects_have_the_promised_members(owner: str, members: str) -> None:
    kind = getattr(aiostore, owner)
    source = inspect.getsource(kind)
    for name in members.split():
        assert hasattr(kind, name) or f"self.{name} = " in source or f"{name}: " in source, f"{owner}.{name}"


@pytest.mark.parametrize(("method", "parameters"), PARAMETERS.items())
def test_methods_take_the_promised_parameters(method: str, parameters: str) -> None:
    told: list[str] = []
    for parameter in inspect.signature(getattr(aiostore.EventStore, method)).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in told:
            told.append("*")
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        told.append(parameter.name + default)
    assert told[1:] == parameters.split()  # after self


def documented() -> Iterator[tuple[str, Any]]:
    """Every public class and function, and every public method and property that the package defines in these."""
    for name in aiostore.__all__:
        value = getattr(aiostore, name)
        if not callable(value):
            continue
        yield name, value
        if not inspect.isclass(value):
            continue
        for kind in value.__mro__:
            if not kind.__module__.startswith("aiostore"):
                continue
            for member, attribute in vars(kind).items():
                plain = attribute.__func__ if isinstance(attribute, classmethod | staticmethod) else attribute
                if not member.startswith("_") and (inspect.isfunction(plain) or isinstance(plain, property)):
                    yield f"{name}.{member}", plain


@pytest.mark.parametrize(
    ("name", "value"), list(documented()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_public_name_has_a_docstring_that_begins_with_a_sentence(name: str, value: Any) -> None:
    text = inspect.getdoc(value)
    assert text, name
    first = text.split("\n")[0]
    assert first[0].isupper() or first[0] == "`", f"{name}: {first}"
    assert first.endswith((".", ":", "?")), f"{name}: {first}"
    assert not first.startswith(f"{name.rpartition('.')[2]}("), f"{name}: {first}"  # made up by dataclasses


def test_sentinels_are_enums_and_numbers() -> None:
    assert aiostore.NO_STREAM == 0
    assert isinstance(aiostore.STREAM_EXISTS, Enum)
    assert isinstance(aiostore.END, Enum)


def test_public_objects_say_that_they_come_from_their_module() -> None:
    assert {getattr(aiostore, name).__module__.partition(".")[0] for name in NAMES if name[1:2].islower()} == {
        "aiostore"
    }
