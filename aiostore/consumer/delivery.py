"""How a consumer is told to try again, how it tells how it is doing, and an event in the hands of its loop."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import Token
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from aiostore.context import Work, handled, handling
from aiostore.events import Event
from aiostore.limits import check_number, check_seconds


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a handler is tried with an event, and how long is waited between: exponentially longer, with jitter.

    ``attempts``: in all, 1 or more. The n-th wait is ``first_s`` times 2 to the n-1, at most ``max_s``, and of that a
    random part between one half and the whole, so that what failed together is not tried again together
    (M. Brooker, "Exponential Backoff And Jitter", 2015).
    """

    attempts: int = 5
    first_s: float = 0.1
    max_s: float = 30

    def __post_init__(self) -> None:
        check_number("attempts", self.attempts, 1)
        check_seconds("first_s", self.first_s, zero=True)
        check_seconds("max_s", self.max_s, zero=True)

    def wait_s(self, attempts_count: int) -> float:
        """So long is waited when so many attempts have failed."""
        longest = min(self.max_s, self.first_s * 2.0 ** min(attempts_count - 1, 1000))
        return longest * (0.5 + random.random() / 2)  # noqa: S311 (nothing here has to do with security)


@dataclass(frozen=True, slots=True)
class ConsumerStatistics:
    """How a consumer is doing; the counts are of this one, since it was made."""

    lag: int
    """How many events of the store, matching or not, lie between what its share has come to and the head."""
    in_hand_count: int
    """How many events are being handled now."""
    queued_count: int
    """How many are in memory and are not handled yet, those in hand included."""
    handled_count: int
    """How many events were handled."""
    retried_count: int
    """How many attempts have failed."""
    parked_count: int
    """How many streams of its share are parked now."""
    share: float
    """Which part of the streams is its own, 0 to 1: others of its group have the rest."""
    is_running: bool
    """Whether it was started and has not ended."""


class Delivery:
    """An event in the body of ``async for delivery in consumer``: handle it within ``async with delivery``.

    To leave the block normally acknowledges the event. What is raised in it counts as a failed attempt, and is not
    raised any further: the event comes again, until the attempts are used up. Cancelled, the event is not
    acknowledged, and comes again at once. Until its block is left, no later event of its stream comes.
    """

    def __init__(
        self,
        event: Event,
        attempt: int,
        span: AbstractContextManager[object],
        ended: Callable[[Delivery, BaseException | None], None],
    ) -> None:
        self.event = event
        self.attempt = attempt
        """1 for the first."""
        self.task: asyncio.Task[object] | None = None
        """The task that is in its block."""
        self._span = span
        self._token: Token[Work] | None = None
        self._ended = ended
        self._state = "new"

    async def __aenter__(self) -> Self:
        if self._state != "new":
            raise RuntimeError(f"the delivery of event {self.event.event_id} is {self._state}: it is entered once")
        self._state = "entered"
        self.task = asyncio.current_task()
        self._token = handling(self.event)
        self._span.__enter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._state = "ended"
        self.task = None
        try:
            self._span.__exit__(kind, error, traceback)
            assert self._token is not None, "what is left was entered"
            handled(self._token)
        finally:
            self._ended(self, error)
        return isinstance(error, Exception)

    def abandon(self) -> None:
        """Give it back, if nobody has entered it: it is not acknowledged."""
        if self._state == "new":
            self._state = "abandoned"
            self._ended(self, asyncio.CancelledError())

    def __repr__(self) -> str:
        return f"<Delivery {self._state} attempt={self.attempt} {self.event!r}>"
