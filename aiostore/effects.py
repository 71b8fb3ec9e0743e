"""Effects: what a projection does beside its state, for events that it takes for the first time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from aiostore.context import in_hand
from aiostore.engine import Engine
from aiostore.errors import EngineUnsupported
from aiostore.events import Event

S = TypeVar("S")

logger = logging.getLogger("aiostore")

EffectHandler = Callable[[S, Event], Awaitable[None] | None]
"""``handler(state, event)``, plain or async; what it returns does not matter."""


class Effects(Generic[S]):
    """The effects of a projection by event type, and how far they have come."""

    __slots__ = ("_name", "_saved", "_saving", "due", "had", "handlers", "unsaved")

    def __init__(self, name: str) -> None:
        self._name = name
        self._saving = asyncio.Lock()
        self._saved = 0
        self.handlers: dict[str, EffectHandler[S]] = {}
        self.had: int | None = None
        """The effects of events up to this event_id are not to come again; None before that is known."""
        self.due: Event | None = None
        """The event that was taken, and whose effect has not returned."""
        self.unsaved = False
        """Whether some have returned since that was kept."""

    async def of(self, state: S, event: Event) -> None:
        """Have the effect of an event that was just taken, unless there is none or it was had."""
        if event.event_type in self.handlers and event.event_id > (self.had or 0):
            self.due = event
            await self.go_on(state)

    async def go_on(self, state: S) -> None:
        """Have the effect that is due, if one is. Where it raises or is cancelled, it stays due."""
        event = self.due
        if event is not None:
            result: Any = self.handlers[event.event_type](state, event)
            if hasattr(result, "__await__"):
                await in_hand(event, result)
            self.had = event.event_id
            self.due = None
            self.unsaved = True

    def add(self, event_type: str, handler: EffectHandler[S], position: int) -> None:
        """Register an effect, where the state is still at no event: at that ``position``."""
        if event_type in self.handlers:
            raise ValueError(f"projection {self._name!r} has an effect for {event_type!r} already")
        if position:
            raise RuntimeError(f"projection {self._name!r} is at event {position}: register its effects first")
        self.handlers[event_type] = handler

    # --- how far they have come is kept, as a state without a value: its position says it ---

    @property
    def _key(self) -> str:
        return f"effects/{self._name}"

    async def load(self, engine: Engine, position: int, head: int) -> None:
        """Find out how far they have come, where that is not known; the state is at ``position``."""
        if self.had is not None:
            return
        if engine.read_only:
            raise EngineUnsupported(f"{engine.location} is opened to read: which effects were had cannot be kept there")
        kept = await engine.load_state(self._key)
        if kept is None:
            self.had = position
        elif kept.fits:
            self.had = kept.position
        else:
            self.had = head
            logger.warning(
                "the effects of projection %r were at event %d of a log that was set back: they begin behind event %d",
                self._name,
                kept.position,
                head,
            )

    async def reach(self, engine: Engine, position: int) -> bool:
        """Whether all up to the position were had, as far as is kept; or none are kept, and they begin there."""
        kept = await engine.load_state(self._key)
        return kept is None or kept.position >= position

    async def save(self, engine: Engine, position: Callable[[], int], up_to: int = 0) -> None:
        """Keep how far they have come, where that has changed, or is not known to be ``up_to``; see `load`."""
        async with self._saving:
            if not (self.unsaved or (self.handlers and self._saved < up_to)):
                return
            had = position() if self.due is None else self.due.event_id - 1
            self.unsaved = False
            try:
                await engine.save_state(self._key, had, b"")
            except BaseException:
                self.unsaved = True
                raise
            self._saved = had
