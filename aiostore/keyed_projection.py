"""Projections by key: one state for each customer, order, stream…, of which few are in memory."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Generic, TypeVar, overload

import msgspec

from aiostore.engine import Engine, Saving
from aiostore.errors import ProjectionConflict, StateConflict
from aiostore.events import Event
from aiostore.fold import Fold, StateHandler, check_handlers, check_initial, read_as_of
from aiostore.kept_projection import HandlerFailed, KeptProjection, logger
from aiostore.keyed_states import KeyedStates, KeyFunction, check_key, keys_of
from aiostore.limits import check_number
from aiostore.query import Query
from aiostore.snapshots import SnapshotCodec, Unfit
from aiostore.store import EventStore
from aiostore.waiting import draw_near

ITEMS_PAGE = 100
"""So many states are loaded at once, to be looked at or to be removed."""

S = TypeVar("S")
H = TypeVar("H", bound=StateHandler[Any])


def _stream_id(event: Event) -> str:
    return event.stream_id


class _Items(AsyncIterator[tuple[str, S]]):
    """Keys and states in the order of the keys, loaded page by page."""

    def __init__(self, load: Callable[[str], Awaitable[list[tuple[str, S]]]]) -> None:
        self._load = load
        self._page: list[tuple[str, S]] = []  # in reverse
        self._after = ""

    async def __anext__(self) -> tuple[str, S]:
        if not self._page:
            self._page = (await self._load(self._after))[::-1]
            if not self._page:
                raise StopAsyncIteration
            self._after = self._page[0][0]
        return self._page.pop()


class KeyedProjection(KeptProjection, Generic[S]):
    """A state for each key, made of the events that concern it; kept in the store, exactly once, few in memory.

    ``name``: under which it is kept; give a new one when the key function changes. ``key(event)``: the key that an
    event concerns, several, or None for none (1 to 1,024 bytes each, as stream_ids are, which is the default).
    ``initial``, ``state_type`` and ``query``: see `Projection`. ``cache_keys``: so many states, and 16 MiB, are in
    memory, encoded; and as many again, decoded, while they are worked on. ``batch_events``: at most so many events are
    taken in one step. ``attempts``: see `DatabaseProjection`, as which it follows the store in ``async with``.

    Each step keeps the states that it changed and the position together (`Engine.save_states`): after a crash at any
    moment, each event is in the states once, or comes again. What `get` and `items` give is kept, never ahead of that;
    it is your own, to change it changes nothing. Where another process runs it too, one of them gets
    `ProjectionConflict`. One that neither catches up nor follows reads what another process keeps, as of each call.
    A log that was set back, or other handlers, ``query`` or ``state_type`` than those that made the states (said in a
    log line): all are made anew from the first event.
    """

    @overload
    def __init__(
        self: KeyedProjection[dict[str, Any]],
        name: str,
        store: EventStore,
        *,
        key: KeyFunction = ...,
        query: Query | None = None,
        cache_keys: int = 1000,
        batch_events: int = 500,
        attempts: int = 10,
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str,
        store: EventStore,
        *,
        key: KeyFunction = ...,
        initial: Callable[[], S],
        state_type: Any = None,
        query: Query | None = None,
        cache_keys: int = 1000,
        batch_events: int = 500,
        attempts: int = 10,
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str,
        store: EventStore,
        *,
        key: KeyFunction = ...,
        state_type: type[S],
        query: Query | None = None,
        cache_keys: int = 1000,
        batch_events: int = 500,
        attempts: int = 10,
    ) -> None: ...
    def __init__(
        self,
        name: str,
        store: EventStore,
        *,
        key: KeyFunction = _stream_id,
        initial: Callable[[], Any] = dict,
        state_type: Any = None,
        query: Query | None = None,
        cache_keys: int = 1000,
        batch_events: int = 500,
        attempts: int = 10,
    ) -> None:
        super().__init__(name, store, query=query, batch_events=batch_events, attempts=attempts)
        if not callable(key):
            raise TypeError(f"key must be a function that gives the key of an event, not {key!r}")
        self._key = key
        self._codec = SnapshotCodec(state_type)
        self._initial = state_type if initial is dict and state_type is not None else initial
        check_initial(self._initial)
        self._codec.encode_state(self._initial())  # better now than at the first event
        self._cache_keys = check_number("cache_keys", cache_keys, 1)
        self._main_key = f"keyed/{self._name}"
        self._root = f"keyed-state/{len(self._name)}/{self._name}/"
        self._states = self._new_states(self._handlers)
        self._passed = self._states.passed
        self._made_by: frozenset[str] = frozenset()
        self._revision = 0  # of the main record
        self._is_kept = False  # whether the main record names this generation
        self._owns = False  # whether it was this one that kept the main record last, as far as is known
        self._takes = False  # whether it takes events itself; else it reads what another process keeps
        self._rebuilt: KeyedStates[S] | None = None
        self._rebuilding = False
        self._purge_due = True  # others may have left something

    def _new_states(self, handlers: dict[str, Callable[..., Any]], generation: str | None = None) -> KeyedStates[S]:
        generation = generation or secrets.token_hex(8)
        return KeyedStates(self._root, generation, self._codec, self._initial, handlers, self._cache_keys)

    @overload
    def when(self, event_type: str, handler: StateHandler[S]) -> StateHandler[S]: ...
    @overload
    def when(self, event_type: str, handler: None = None) -> Callable[[H], H]: ...
    def when(self, event_type: str, handler: Any = None) -> Any:
        """Have ``handler(state, event)`` called with each event of the type, and the state of each key it concerns.

        See `Projection.when`. What it raises undoes the step; the events before are taken in one of their own, and the
        projection stops at the event, of which no state has anything.
        """
        if handler is None:
            return lambda function: self.when(event_type, function)
        self._register(event_type, handler)
        return handler

    # --- what is read ---

    async def get(self, key: str) -> S | None:
        """The state of the key as it is kept, of your own; None where no event that has a handler concerns it."""
        check_key(key)
        while True:
            states = await self._current()
            value = await states.load(self._engine(), key)
            if value is None and not self._takes:
                await self._current()  # another process may have removed it, with its generation
            if self._states is states:
                return None if value is None else states.decode(value)

    def items(self, *, prefix: str = "") -> AsyncIterator[tuple[str, S]]:
        """All keys that begin with the prefix, and their states, in order: ``async for key, state in p.items()``.

        Loaded a hundred at a time, each page as it is kept then; what is new behind the key in hand is still met.
        """
        if not isinstance(prefix, str):
            raise TypeError(f"prefix must be a string, not {prefix!r}")

        async def load(after: str) -> list[tuple[str, S]]:
            while True:
                states = await self._current()
                start = states.prefix
                bound = start + after if after else ""
                page = await self._engine().load_states(start + prefix, after=bound, limit=ITEMS_PAGE)
                if await self._current() is states:
                    return [(key[len(start) :], states.decode(kept.value)) for key, kept in page.items()]

        return _Items(load)

    async def as_of(self, key: str, moment: int | datetime) -> S | None:
        """The state of the key as it was at an event_id or at a time, made anew of the events; see `Projection.as_of`.

        None where no event had concerned it. Reads the stream of that name, or, with a key function, all events that
        the query matches.
        """
        check_key(key)
        fold: Fold[S] = Fold(dict(self._handlers), self._initial())
        query = Query.where(types=fold.handlers, stream_prefix=key) if self._key is _stream_id else self._query
        async for events in read_as_of(self._store, moment, query).batches():
            await fold.take([event for event in events if self._concerns(event, key)])
        return fold.state if fold.taken_count else None

    def _concerns(self, event: Event, key: str) -> bool:
        """Whether the event changes the state of the key."""
        wanted = event.event_type in self._handlers and (self._query is None or self._query.matches(event))
        return wanted and key in keys_of(event, self._key)

    def _engine(self) -> Engine:
        return self._store._parts()[0]

    async def _current(self) -> KeyedStates[S]:
        """The generation that is served: as it is known, or, where another process takes the events, as it is kept."""
        if not (self._loaded and self._takes):
            async with self._turn:
                if not (self._loaded and self._takes):
                    await self._load_anew()
        return self._states

    # --- steps ---

    def _begin(self) -> None:
        self._takes = True
        missing = self._made_by - self._handlers.keys()
        if missing:
            raise RuntimeError(f"projection {self._name!r} lacks the handlers that made its states: {sorted(missing)}")

    async def _load(self) -> None:
        kept = await self._engine().load_state(self._main_key)
        revision = 0 if kept is None else kept.revision
        states, position = None, 0
        self._states.forget()
        if kept is not None:
            try:
                if not kept.fits:
                    raise Unfit("the log does not have the event that they were made at")
                generation = msgspec.msgpack.decode(self._codec.unwrap(kept.value, self._query, ())[0], type=str)
                if self._rebuilt is not None and self._rebuilt.generation == generation:
                    states = self._rebuilt  # its last step was kept, although it was cancelled or failed
                elif self._states.generation == generation:
                    states = self._states
                else:
                    states = self._new_states(self._handlers, generation)
                _, self._made_by, passed = self._codec.unwrap(kept.value, self._query, states.handlers)
                states.passed |= passed
                position = kept.position
            except Unfit as unfit:
                states = None
                if revision != self._revision:
                    logger.warning(
                        "the states of projection %r at event %d are discarded, and made anew from the first event: %s",
                        self._name,
                        kept.position,
                        unfit,
                    )
        self._is_kept, was_kept = states is not None, self._is_kept
        if states is None:
            self._made_by = frozenset()
            states = self._states if not was_kept and revision == self._revision else self._new_states(self._handlers)
        self._owns = self._owns and revision == self._revision
        self._revision = revision
        if states is not self._states or position != self._kept_position:
            self._position = position
        self._kept_position = position
        self._serve(states)
        if not self._rebuilding:
            self._rebuilt = None

    def _serve(self, states: KeyedStates[S]) -> None:
        self._states, self._handlers, self._passed = states, states.handlers, states.passed

    async def _apply(self, events: Sequence[Event]) -> int:
        taken, values = await self._states.take(self._engine(), events, self._key)
        await self._keep(self._states, events[taken - 1].event_id, values)
        return taken

    async def _keep(self, states: KeyedStates[S], position: int, values: dict[str, bytes]) -> None:
        """Keep these states, and that all of the generation are those at the position, in one step."""
        piece = msgspec.msgpack.encode(states.generation)
        main = self._codec.wrap(piece, self._query, frozenset(states.handlers), states.passed)
        savings = [Saving(self._main_key, main, self._revision), *states.savings(values)]
        try:
            revisions = await self._engine().save_states(position, savings)
        except StateConflict as conflict:
            reason = "its states have moved on: another process runs it too"
            raise ProjectionConflict(self._name, self._position, reason) from conflict
        self._revision, self._is_kept, self._owns = revisions[0], True, True
        states.kept(values)

    # --- made anew ---

    async def rebuild(self, handlers: Mapping[str, StateHandler[S]] | None = None) -> None:
        """Make all states anew from the first event, beside these, and then let them take the place of these.

        ``handlers``: by event type, instead of those there are (None: the same). See `Projection.rebuild`: meanwhile
        the states are served and kept up to date; the switch is one step in the store, and then one in memory.
        Failed or cancelled, all stays as it is (cancelled in its very last step, it may have switched). What was made
        before is removed bit by bit, by `catch_up` and while it follows.
        """
        made = self._new_states(check_handlers(self._handlers if handlers is None else handlers))
        if self._rebuilding:
            raise RuntimeError(f"projection {self._name!r} is being rebuilt already")
        self._rebuilding = self._takes = True
        try:
            async with self._turn:
                if not self._loaded:
                    await self._load_anew()
            self._rebuilt = made
            await draw_near(lambda: self._bring(made), lambda: self._position - made.position)
            async with self._turn:
                if not self._loaded:
                    await self._load_anew()
                await self._bring(made)
                try:
                    await self._keep(made, made.position, {})
                except BaseException:
                    self._loaded = False  # it may have been kept
                    raise
                self._position = self._kept_position = made.position
                self._made_by = frozenset()
                self._serve(made)
                self._rebuilt = None
        finally:
            self._rebuilding = False
            self._purge_due = True
            if self._rebuilt is not None and self._loaded:
                self._rebuilt = None
            self._changed.set()

    async def _bring(self, made: KeyedStates[S]) -> None:
        """Bring a generation to the position."""
        position = max(self._position, made.position)
        reader = self._store.read_all(after=made.position, up_to=position, query=self._query)
        async for batch in reader.batches(self._batch_events):
            events = batch
            made.passed |= {event.event_type for event in events} - made.handlers.keys()
            while events:
                try:
                    taken, values = await made.take(self._engine(), events, self._key)
                except HandlerFailed as failed:
                    raise failed.error from None
                last = events[taken - 1].event_id
                if values:
                    await self._engine().save_states(last, made.savings(values))
                    made.kept(values)
                made.position = last
                events = events[taken:]
        made.position = position

    async def _tidy(self) -> bool:
        """Remove some states of generations that nobody serves; whoever kept the last step may say which these are."""
        if not (self._purge_due and self._owns):
            return False
        served = {states.generation for states in (self._states, self._rebuilt) if states is not None}
        engine, after = self._engine(), ""
        while page := await engine.load_states(self._root, after=after, limit=ITEMS_PAGE):
            stale = [key for key in page if self._generation_of(key) not in served]
            if stale:
                await engine.save_states(0, [Saving(key, None) for key in stale])
                return True
            after = f"{self._root}{self._generation_of(list(page)[-1])}0"  # behind all of that generation
        self._purge_due = False
        return False

    def _generation_of(self, key: str) -> str:
        return key[len(self._root) :].partition("/")[0]
