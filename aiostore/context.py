"""What the work in hand follows from: metadata that whatever is appended in it gets by itself.

``correlation_id`` is the same in all events that one request or first event has brought about; ``causation_id`` is the
event_id of the event that an event directly follows from.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar, Union

if TYPE_CHECKING:
    from aiostore.events import Event

T = TypeVar("T")

CORRELATION_ID: Final = "correlation_id"
CAUSATION_ID: Final = "causation_id"
FOLLOWING_KEYS: Final = frozenset({CORRELATION_ID, CAUSATION_ID, "traceparent", "tracestate"})
"""The keys of metadata that a store may set by itself. They do not count where an append is a repeat of another."""

Work = Union[dict[str, Any], "Event", Sequence["Event"], None]
"""What is in hand: ids, as metadata; or the event or the events that a handler was called with."""

_work: ContextVar[Work] = ContextVar("aiostore_work", default=None)

handling: Callable[[Event | Sequence[Event]], Token[Work]] = _work.set
"""Let what is appended from here on, in this context, follow from the event. `handled` takes the token back.

For whoever calls handlers, once for each event: it costs some 50 ns, the ids are only made when something is appended.
With a list of events (which must not be changed meanwhile) see `following`.
"""

handled: Callable[[Token[Work]], None] = _work.reset
"""End what `handling` began; in the same context."""


async def in_hand(event: Event, result: Awaitable[T]) -> T:
    """Await what a handler, called with the event, has returned: what its body appends follows from the event.

    A handler that is not awaited cannot append, and does not pay for this.
    """
    token = handling(event)
    try:
        return await result
    finally:
        handled(token)


def following() -> dict[str, Any] | None:
    """The metadata for what is appended now; None outside of any `correlate` and handler.

    With one event in hand: its correlation_id, or its event_id as a string where it has none; and its event_id as
    ``causation_id``. With several: the correlation_id that all have in common, if any, and no ``causation_id``.
    """
    work = _work.get()
    if work is None or isinstance(work, dict):
        return work
    return _following_from(work if isinstance(work, Sequence) else (work,))


def _following_from(events: Sequence[Event]) -> dict[str, Any] | None:
    if not events:
        return None
    correlation = _correlation_of(events[0])
    if len(events) == 1:
        return {CORRELATION_ID: correlation, CAUSATION_ID: events[0].event_id}
    if all(_correlation_of(event) == correlation for event in events[1:]):
        return {CORRELATION_ID: correlation}
    return None


def _correlation_of(event: Event) -> Any:
    # Not of `metadata`, which the handler may have changed.
    correlation = event._decode_metadata().get(CORRELATION_ID)
    return str(event.event_id) if correlation is None else correlation


class correlate:  # noqa: N801 (a context manager, named as what it does)
    """Let what is appended in the body follow from a request, or from an event.

    ``with correlate("req-7"):`` puts ``correlation_id`` (a string) and, if given, ``causation_id`` (an event_id, or
    whatever the caller's system calls a cause) into the metadata of all that is appended in the body and in tasks that
    it starts, unless the append's own metadata has the key. ``with correlate(event):`` does what a handler's call
    does: the event's correlation_id, or its event_id as a string, and its event_id as ``causation_id``. Inside of
    another, what is not given stays as it is there. An instance may be used again, and not in two places at once.

    Raises TypeError for ids that are neither strings nor integers.
    """

    __slots__ = ("_ids", "_token")

    def __init__(self, correlation_id: str | Event, causation_id: str | int | None = None) -> None:
        ids: dict[str, Any]
        if isinstance(correlation_id, str):
            ids = {CORRELATION_ID: correlation_id}
        elif hasattr(correlation_id, "event_id"):
            ids = _following_from((correlation_id,)) or {}
        else:
            raise TypeError(f"correlation_id must be a string or an Event, not {correlation_id!r:.80}")
        if causation_id is not None:
            if not isinstance(causation_id, str | int) or isinstance(causation_id, bool):
                raise TypeError(f"causation_id must be an event_id or a string, not {causation_id!r:.80}")
            ids = {**ids, CAUSATION_ID: causation_id}
        self._ids = ids
        self._token: Token[Work] | None = None

    def __enter__(self) -> None:
        if self._token is not None:
            raise RuntimeError("this correlate() is in use; make another one")
        self._token = _work.set({**(following() or {}), **self._ids})

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        token, self._token = self._token, None
        assert token is not None, "what is left was entered"
        _work.reset(token)
