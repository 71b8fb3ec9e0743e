"""Projections: a state kept up to date with the events of the store, when asked to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Generic, TypeVar, overload

from aiostore.brief import brief
from aiostore.drafts import check_name
from aiostore.effects import EffectHandler, Effects
from aiostore.errors import EventStoreError, StoreClosed
from aiostore.events import Event
from aiostore.fold import Fold, StateHandler, add_handler, check_handler, check_handlers, check_initial, read_as_of
from aiostore.limits import NAME_BYTES_MAX, check_number
from aiostore.query import Query
from aiostore.reader import check_query
from aiostore.snapshots import SnapshotCodec, Unfit
from aiostore.store import EventStore
from aiostore.waiting import Turn, draw_near

SLICE_EVENTS = 500
"""After so many events, plain handlers give way to other tasks."""

S = TypeVar("S")
H = TypeVar("H", bound=StateHandler[Any])
E = TypeVar("E", bound=EffectHandler[Any])

logger = logging.getLogger("aiostore")


class Projection(Generic[S]):
    """A state made of the events of a store, by a handler for each event type; `catch_up` brings it up to date.

    ``name``: under which its snapshots are kept, 1 to 200 bytes; give a new one when what the handlers do changes.
    ``initial()`` gives the state before the first event. ``state_type``: what the state is, so that a snapshot restores
    it: a msgspec Struct, a dataclass, ``dict[str, Account]``, ``set[int]``, a Counter, a pydantic model…; then
    ``initial`` is that type if not given. Without it, the state must be made of plain values (dict, list, str, bytes,
    numbers, None, datetime). ``query``: only these events are read; without it all are, and those of types without a
    handler passed over. ``snapshot_interval``: after so many events read, `catch_up` saves a snapshot, and the first
    `catch_up` begins from the last one; without it, use `save_snapshot` and `load_snapshot`.

    A projection belongs to the loop of its store. Its state is its own: read it, and leave changing it to the handlers.
    """

    @overload
    def __init__(
        self: Projection[dict[str, Any]],
        name: str,
        store: EventStore,
        *,
        query: Query | None = None,
        snapshot_interval: int | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str,
        store: EventStore,
        *,
        initial: Callable[[], S],
        state_type: Any = None,
        query: Query | None = None,
        snapshot_interval: int | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str,
        store: EventStore,
        *,
        state_type: type[S],
        query: Query | None = None,
        snapshot_interval: int | None = None,
    ) -> None: ...
    def __init__(
        self,
        name: str,
        store: EventStore,
        *,
        initial: Callable[[], Any] = dict,
        state_type: Any = None,
        query: Query | None = None,
        snapshot_interval: int | None = None,
    ) -> None:
        self._name = check_name(name, "name", NAME_BYTES_MAX)
        if not isinstance(store, EventStore):
            raise TypeError(f"a projection is of an EventStore, not {store!r}")
        self._codec = SnapshotCodec(state_type)
        if initial is dict and state_type is not None:
            initial = state_type
        check_initial(initial)
        self._initial = initial
        self._store = store
        self._query = check_query(query)
        self._interval = None if snapshot_interval is None else check_number("snapshot_interval", snapshot_interval, 1)
        self._fold: Fold[S] = Fold({}, initial())
        self._fold.effects = self._effects = Effects[S](self._name)
        self._rebuilding = False
        self._made_by: frozenset[str] = frozenset()  # the types whose handlers made the snapshot that was loaded
        self._load_due = self._interval is not None
        self._saved_count = 0  # how many events had been taken when the last snapshot was made
        self._saved_position = 0
        self._saving = asyncio.Lock()
        self._snapshots_due_count = 0
        self._turn = Turn()
        self._error: BaseException | None = None
        if self._interval is not None:
            self._encode(verify=True)  # better now than at the first one that is due

    @property
    def name(self) -> str:
        """The name under which its snapshots are kept."""
        return self._name

    @property
    def state(self) -> S:
        """The state, made of all matching events up to `position`."""
        state: S = self._fold.state
        return state

    @property
    def position(self) -> int:
        """Every matching event up to this event_id is in the state."""
        return self._fold.position

    @property
    def lag(self) -> int:
        """How many events of the store, matching or not, lie between the position and the head."""
        _, fanout = self._store._parts()
        return max(0, fanout.head - self._fold.position)

    @property
    def error(self) -> BaseException | None:
        """What stopped it, None if nothing did: what a handler raised behind `position`, or an effect at it."""
        return self._error

    @overload
    def when(self, event_type: str, handler: StateHandler[S]) -> StateHandler[S]: ...
    @overload
    def when(self, event_type: str, handler: None = None) -> Callable[[H], H]: ...
    def when(self, event_type: str, handler: Any = None) -> Any:
        """Have ``handler(state, event)`` called with each event of the type; also a decorator, ``@p.when("Opened")``.

        The handler, plain or async, changes the state or returns the new one. What it raises stops the projection at
        that event, which comes again when it goes on: raise before changing the state, or return a new one. (Whatever
        is returned, but None, is the new state: mind a lambda with ``setdefault`` or ``pop``.) Events of
        a type without a handler are passed over. One handler for each type, else ValueError; RuntimeError if events of
        the type were passed over already. Returns the handler.
        """
        if handler is None:
            return lambda function: self.when(event_type, function)
        fold = self._fold
        add_handler(fold.handlers, fold.passed, event_type, handler, name=self._name, position=fold.position)
        return handler

    @overload
    def effect(self, event_type: str, handler: EffectHandler[S]) -> EffectHandler[S]: ...
    @overload
    def effect(self, event_type: str, handler: None = None) -> Callable[[E], E]: ...
    def effect(self, event_type: str, handler: Any = None) -> Any:
        """Have ``handler(state, event)`` do something beside the state, for each event of the type; also a decorator.

        It is called after the state has taken the event, in order, and only for events that this projection (its name)
        takes for the first time: not in `rebuild` or `as_of`, not where a state is restored or made again after a
        restart, for which the store keeps how far the effects have come. **At least once**: after a crash, those come
        again that were had since that was last kept, at most a few hundred events ago; what must not happen twice
        takes ``event.event_id`` as its key. Where it raises, the projection stops with the event in the state;
        `catch_up` goes on with that effect. A projection that has a snapshot from before it had effects begins with
        the events behind it, any other with the first event.

        One for each type, else ValueError; RuntimeError where events were taken already. Returns the handler.
        """
        if handler is None:
            return lambda function: self.effect(event_type, function)
        self._effects.add(check_handler(event_type, handler), handler, self.position)
        return handler

    async def catch_up(self) -> int:
        """Take all matching events behind `position` up to the head as of now; returns how many (handled or not).

        `position` and `lag` tell how far it has come. Raises what a handler raises (see `when`; also as `error`) and
        what a read raises; the next call goes on at that event. Cancelled, too: an event in whose handler it was
        cancelled comes again. One call at a time, others wait. RuntimeError in a handler of its own.
        """
        async with self._turn:
            return await self._read_on()

    async def _read_on(self, up_to: int | None = None) -> int:
        """Take what the store has, as long as `Fold.going_on` says so; the turn must be ours."""
        if self._load_due:
            await self._load_or_warn()
        self._error = None
        fold = self._fold
        missing = self._made_by - fold.handlers.keys()
        if missing:
            raise RuntimeError(
                f"projection {self._name!r} lacks the handlers that made its snapshot: {sorted(missing)}"
            )
        await self._go_on_with_effects()
        count = fold.taken_count
        reader = self._store.read_all(after=fold.position, up_to=up_to, query=self._query)
        async for events in reader.batches():
            await self._take(events)
            if fold.going_on is not None and not fold.going_on():
                return fold.taken_count - count
        fold.position = max(fold.position, reader.head if up_to is None else min(up_to, reader.head))
        return fold.taken_count - count

    async def _take(self, events: Sequence[Event]) -> None:
        """Take matching events, with a snapshot whenever one is due; what a handler raises is kept as the error.

        Gives way every so often, and stops where `Fold.going_on` says so.
        """
        fold = self._fold
        while events:
            count = fold.taken_count
            until_due = SLICE_EVENTS if self._interval is None else self._interval - (count - self._saved_count)
            part = events[: min(SLICE_EVENTS, until_due)]
            try:
                await fold.take(part)
            except Exception as error:
                self._error = error
                await self._effects_had()
                raise
            await self._effects_had()
            if self._interval is not None and fold.taken_count - self._saved_count >= self._interval:
                self._saved_count = fold.taken_count
                await self._snapshot_due()
            events = events[len(part) :]
            if events:
                await asyncio.sleep(0)
                if fold.going_on is not None and not fold.going_on():
                    return

    # --- made anew ---

    async def rebuild(self, handlers: Mapping[str, StateHandler[S]] | None = None) -> None:
        """Make the state anew from the first event, beside this one, and then let it take this one's place.

        ``handlers``: by event type, instead of those there are (None: the same). Meanwhile `state` is served and kept
        up to date as before. When the new one is at most some hundred events behind, it takes these, and the switch is
        one synchronous step: at any moment `state` is one that has every event up to `position` once. `effect`s are
        not called. With ``snapshot_interval``, or where a snapshot is kept, one of the new state is saved just before.

        Raises what a handler raises, and what a read or saving the snapshot does; then, and where it is cancelled, all
        stays as it is. RuntimeError while another is under way, or in a handler of its own. A projection that stopped
        stays stopped: rebuild it with handlers that do better, and call `catch_up`.
        """
        made: Fold[S] = Fold(
            dict(self._fold.handlers) if handlers is None else check_handlers(handlers), self._initial()
        )
        if self._rebuilding:
            raise RuntimeError(f"projection {self._name!r} is being rebuilt already")
        self._rebuilding = True
        try:
            async with self._turn:
                if self._load_due:
                    await self._load_or_warn()
            await draw_near(lambda: self._bring(made), lambda: self.position - made.position)
            async with self._turn:
                await self._bring(made)
                await self._switch(made)
        finally:
            self._rebuilding = False

    async def _bring(self, made: Fold[S]) -> None:
        """Bring a fold to the position."""
        position = self.position
        await made.take_all(
            self._store.read_all(after=made.position, up_to=max(position, made.position), query=self._query)
        )
        made.position = position

    async def _switch(self, made: Fold[S]) -> None:
        engine, _ = self._store._parts()
        if not engine.read_only and (self._interval is not None or await engine.load_state(self._key) is not None):
            value = self._codec.encode(made.state, self._query, frozenset(made.handlers), made.passed)
            await self._save(made.position, value)
        made.effects = self._fold.effects
        made.taken_count = self._saved_count = self._fold.taken_count
        self._made_by = frozenset()
        self._fold = made

    async def as_of(self, moment: int | datetime) -> S:
        """The state as it was at an event_id or at a time, made anew of the events; this projection is not disturbed.

        ``moment``: the events up to it, those of that very event_id or timestamp (an aware datetime) included, whether
        this projection has come that far or not. `effect`s are not called.

        Raises what a handler raises, ValueError for a naive datetime, and what `EventStore.read_all` raises.
        """
        fold: Fold[S] = Fold(dict(self._fold.handlers), self._initial())
        await fold.take_all(read_as_of(self._store, moment, self._query))
        return fold.state

    # --- effects ---

    async def _go_on_with_effects(self) -> None:
        """Find out how far they have come, and have the one that is due; in one's turn."""
        effects, fold = self._effects, self._fold
        if effects.handlers:
            engine, fanout = self._store._parts()
            await effects.load(engine, fold.position, fanout.head)
            try:
                await effects.go_on(fold.state)
            except Exception as error:
                self._error = error
                raise

    async def _effects_had(self) -> None:
        """Keep how far they have come, where that has changed."""
        if self._effects.unsaved:
            await self._save_effects_or_warn()

    async def _save_effects_or_warn(self) -> None:
        engine, _ = self._store._parts()
        try:
            await self._effects.save(engine, lambda: self.position)
        except EventStoreError as error:
            self._warn("without having kept which effects were had", error)

    # --- snapshots ---

    async def save_snapshot(self) -> None:
        """Keep the state and its position in the store, in one step, in place of the last snapshot of this name.

        Raises TypeError where the state could not be restored as it is (see ``state_type``), and what
        `Engine.save_state` raises. Cancelled, it may or may not be saved. RuntimeError in a handler of its own.
        """
        async with self._turn:
            position, value = self.position, self._encode(verify=True)
            self._saved_count = self._fold.taken_count
        await self._save(position, value)

    async def load_snapshot(self) -> bool:
        """Take state and position from the last snapshot of this name; returns whether there was one that fits.

        One that does not is discarded, said in a log line, and the projection stays as it is: made with another
        ``state_type``, ``query`` or other handled types, or of events that the log does not have (any more). Raises
        what `Engine.load_state` raises.
        """
        async with self._turn:
            return await self._load()

    async def _snapshot_due(self) -> None:
        value = self._encode_due()
        if value is not None:
            await self._save_or_warn(self.position, value)

    def _encode_due(self) -> bytes | None:
        """A snapshot that nobody asked for: without it, the next start only takes longer. None where there is none."""
        engine, _ = self._store._parts()
        if engine.read_only:
            return None
        self._snapshots_due_count += 1
        count = self._snapshots_due_count
        try:
            return self._encode(
                verify=count & (count - 1) == 0
            )  # the 1st, 2nd, 4th, 8th…: the types stay what they are
        except TypeError as error:
            self._warn("without a snapshot", error)
            return None

    def _encode(self, *, verify: bool) -> bytes:
        fold = self._fold
        handled = self._made_by | fold.handlers.keys()
        return self._codec.encode(fold.state, self._query, handled, fold.passed, verify=verify)

    async def _save_or_warn(self, position: int, value: bytes) -> None:
        try:
            await self._save(position, value)
        except EventStoreError as error:
            self._warn("without a snapshot", error)

    async def _save(self, position: int, value: bytes) -> None:
        engine, _ = self._store._parts()
        async with self._saving:
            if position >= self._saved_position:  # else a later one was faster
                await self._effects.save(engine, lambda: self.position, position)  # never behind a snapshot
                await engine.save_state(self._key, position, value)
                self._saved_position = position

    async def _load_or_warn(self) -> None:
        try:
            await self._load()
        except StoreClosed:
            raise
        except EventStoreError as error:
            self._warn("from the first event", error)

    def _warn(self, how: str, error: Exception) -> None:
        logger.warning("projection %r at event %d goes on %s: %s", self._name, self.position, how, error)

    async def _load(self) -> bool:
        engine, _ = self._store._parts()
        self._load_due = False
        kept = await engine.load_state(self._key)
        if kept is None:
            return False
        fold = self._fold
        try:
            if not kept.fits:
                raise Unfit("the log does not have the event that it was made at")
            state, made_by, passed = self._codec.decode(kept.value, self._query, fold.handlers)
            if self._effects.handlers and not await self._effects.reach(engine, kept.position):
                raise Unfit("it has events whose effects were not had")
        except Unfit as unfit:
            logger.warning(
                "the snapshot of projection %r at event %d is discarded, its state is rebuilt from the events: %s",
                self._name,
                kept.position,
                unfit,
            )
            return False
        fold.state, fold.position, fold.passed = state, kept.position, passed
        self._effects.due = None  # it comes again, or was had with the snapshot
        self._made_by, self._saved_count, self._saved_position = made_by, fold.taken_count, 0
        return True

    @property
    def _key(self) -> str:
        return f"projection/{self._name}"

    def __repr__(self) -> str:
        state = brief(self.state)
        error = f" error={self._error!r}" if self._error else ""
        return f"<{type(self).__name__} {self._name!r} position={self.position} state={state}{error}>"
