"""What was expected beside what came: compared, and shown as a diff that a person can read."""

from __future__ import annotations

import difflib
import pprint
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any

from aiostore.drafts import Draft, draft_events
from aiostore.events import Event, NewEvent, StreamAppend
from aiostore.limits import Limits
from aiostore.strictjson import decode_object
from aiostore.testing.clock import START
from aiostore.timestamps import timestamp_text

STREAM_ID = "given"
"""The stream of events that are given without one."""

_LIMITS = Limits()


class Typed:
    """An object that stands for the event that it would be stored as."""

    def __init__(self, value: object) -> None:
        self._value = value

    def decode(self) -> object:
        """The object itself."""
        return self._value


def by_streams(items: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """The stream and each event of what was given, expected or decided."""
    for item in items:
        if isinstance(item, StreamAppend):
            for event in item.events:
                yield item.stream_id, event
        else:
            yield STREAM_ID, item


def is_event_like(event: object) -> bool:
    """Whether it is one of the forms that `EventStore.append_batch` takes; else it is a typed object."""
    return isinstance(event, Event | NewEvent) or (type(event) is tuple and len(event) in (2, 3))


def stored(items: Iterable[Any], earlier: Sequence[Any] = ()) -> list[Any]:
    """The items as the events that they would be stored as after the earlier ones, a second apart.

    An `Event` stays as it is, and a typed object becomes a `Typed`.
    """
    events: list[Any] = list(earlier)
    versions: dict[str, int] = {}
    for event in events:
        if isinstance(event, Event):
            versions[event.stream_id] = event.version
    for stream_id, item in by_streams(items):
        if isinstance(item, Event):
            event = item
        elif is_event_like(item):
            event = _event(len(events) + 1, stream_id, versions.get(stream_id, 0) + 1, _draft(item))
        else:
            events.append(Typed(item))
            continue
        versions[event.stream_id] = event.version
        events.append(event)
    return events[len(earlier) :]


def _draft(item: Any) -> Draft:
    return draft_events([item], _LIMITS)[0]


def _event(event_id: int, stream_id: str, version: int, draft: Draft) -> Event:
    timestamp = timestamp_text(START + timedelta(seconds=event_id))
    return Event(event_id, stream_id, version, draft.event_type, timestamp, draft.data, draft.metadata, draft.tags)


def shown(items: Iterable[Any]) -> list[Any]:
    """What makes the events equal, in a form that is good to read: each a tuple, or the typed object."""
    forms: list[Any] = []
    for stream_id, item in by_streams(items):
        if isinstance(item, Event):
            parts = (item.stream_id, item.event_type, item.data, item.metadata, item.tags)
        elif is_event_like(item):
            draft = _draft(item)
            metadata = decode_object(draft.metadata) if len(bytes(draft.metadata)) else {}
            parts = (stream_id, draft.event_type, decode_object(draft.data), metadata, draft.tags)
        else:
            forms.append(item if stream_id == STREAM_ID else (stream_id, item))
            continue
        stream, event_type, data, metadata, tags = parts
        form: dict[str, Any] = {} if stream == STREAM_ID else {"stream_id": stream}
        form |= {"event_type": event_type, "data": data}
        form |= {"metadata": metadata} if metadata else {}
        form |= {"tags": tags} if tags else {}
        forms.append(form)
    return forms


def check_equal(what: str, expected: Any, actual: Any) -> None:
    """AssertionError with a diff, unless they are equal."""
    if expected == actual:
        return
    before, after = _lines(expected), _lines(actual)
    if before == after:  # they differ in what is not shown
        before, after = [repr(expected)], [repr(actual)]
    diff = "\n".join(line for line in difflib.ndiff(before, after) if not line.startswith("?"))
    raise AssertionError(f"{what} (- expected, + actual):\n{diff}")


def _lines(value: Any) -> list[str]:
    if isinstance(value, list):
        return [line for each in value for line in pprint.pformat(each, width=100, sort_dicts=False).split("\n")]
    return pprint.pformat(value, width=60).split("\n")
