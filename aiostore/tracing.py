"""Tracing: what a store tells of the work that it does, and what it lets events carry of it. `otel` is one way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self

if TYPE_CHECKING:
    from aiostore.events import Event


class Sending(Protocol):
    """An append under way."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """What its events carry, such as ``traceparent``. The keys are among `context.FOLLOWING_KEYS`."""
        ...

    def sent(self, events: Sequence[Event]) -> None:
        """Note that these are stored, now or by an earlier append with the same key."""
        ...


class Tracing(Protocol):
    """What a store, its listeners and its consumers report to."""

    def send(self, destination: str, *, batch: bool) -> AbstractContextManager[Sending]:
        """Around an append to the stream ``destination``, or to ``"streams"``; ``batch``: maybe of several events.

        Left with an error, the append failed.
        """
        ...

    def process(self, name: str, events: Event | Sequence[Event]) -> AbstractContextManager[object]:
        """Around a call of the handler of the consumer (group), or listener, ``name``. It sees the errors that leave.

        With one event, the work continues the trace that it was appended in; with several, it is linked to theirs.
        """
        ...


class _Untraced:
    """Tracing that does nothing, and an append of it: itself."""

    __slots__ = ()
    metadata: Mapping[str, str] = MappingProxyType({})

    def sent(self, events: Sequence[Event]) -> None:
        pass

    def send(self, destination: str, *, batch: bool) -> _Untraced:
        return self

    def process(self, name: str, events: Event | Sequence[Event]) -> _Untraced:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass


UNTRACED: Final = _Untraced()
"""Tracing that does nothing."""
