"""The states of a projection by key: in the store's own state, encoded, the last used in memory too."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

from aiostore.context import in_hand
from aiostore.drafts import check_name
from aiostore.engine import Engine, Saving
from aiostore.events import Event, event_size
from aiostore.kept_projection import HandlerFailed
from aiostore.limits import MIB, STREAM_ID_BYTES_MAX
from aiostore.snapshots import SnapshotCodec

CACHE_BYTES_MAX = 16 * MIB
"""Encoded states in memory, beside the bound on their number."""

STEP_BYTES_MAX = 8 * MIB
"""When the states that a step has changed, and the events that did, take about so much, they are kept."""

KeyFunction = Callable[[Event], str | Iterable[str] | None]
"""Which state an event concerns: a key, several, or none."""

S = TypeVar("S")


def keys_of(event: Event, function: KeyFunction) -> Sequence[str]:
    """The keys of the event, each once; what the function raises, and `InvalidEvent` or TypeError for what is none."""
    found = function(event)
    if found is None:
        return ()
    if isinstance(found, str):
        return (check_key(found),)
    return tuple(dict.fromkeys(map(check_key, found)))


def check_key(key: object) -> str:
    """The key itself, if it is as a stream_id; else `InvalidEvent`."""
    return check_name(key, "key", STREAM_ID_BYTES_MAX)


class KeyedStates(Generic[S]):
    """The states of one generation: what one set of handlers makes of the events, from the first one on.

    ``root``: what all keys in the store begin with, of all generations of this projection.
    """

    def __init__(
        self,
        root: str,
        generation: str,
        codec: SnapshotCodec,
        initial: Callable[[], S],
        handlers: dict[str, Callable[..., Any]],
        cache_keys: int,
    ) -> None:
        self.generation = generation
        self.handlers = handlers
        self.passed: set[str] = set()
        self.position = 0
        """How far a rebuild has come; of no other use."""
        self.prefix = f"{root}{generation}/"
        self._codec = codec
        self._initial = initial
        self._cache_keys = cache_keys
        self._cache: OrderedDict[str, bytes] = OrderedDict()
        self._cache_bytes = 0
        self._encoded_count = 0
        self._kept_count = 0

    def decode(self, value: bytes) -> S:
        """A state of the caller's own."""
        state: S = self._codec.decode_state(value)
        return state

    async def load(self, engine: Engine, key: str) -> bytes | None:
        """The state of the key as it is kept, None if there is none."""
        value = self._cache.get(key)
        if value is not None:
            self._cache.move_to_end(key)
            return value
        count = self._kept_count
        kept = await engine.load_state(self.prefix + key)
        if kept is None:
            return None
        if count == self._kept_count:  # else it may be older than what is in memory
            self._remember(key, kept.value)
        return kept.value

    async def take(self, engine: Engine, events: Sequence[Event], key: KeyFunction) -> tuple[int, dict[str, bytes]]:
        """Take the first of the events; returns how many, and the states that they come to, which are to be kept.

        `HandlerFailed` with what a handler or the key function raised, or what makes a state that cannot be kept.
        """
        changed: dict[str, tuple[int, S]] = {}  # with the place of the last event that did
        place = size = 0
        for place, event in enumerate(events):
            handler = self.handlers.get(event.event_type)
            if handler is None:
                continue
            try:
                keys = keys_of(event, key)
            except Exception as error:
                raise HandlerFailed(place, error) from error
            for each in keys:
                value = None
                if each not in changed:
                    value = await self.load(engine, each)
                    size += len(value or b"")
                try:
                    state = changed[each][1] if each in changed else self._first(value)
                    result: Any = handler(state, event)
                    if hasattr(result, "__await__"):
                        result = await in_hand(event, result)
                except Exception as error:
                    raise HandlerFailed(place, error) from error
                changed[each] = (place, state if result is None else result)
                size += event_size(event)
            if len(changed) >= self._cache_keys or size >= STEP_BYTES_MAX:
                break
        return place + 1, {each: self._encode(state, last) for each, (last, state) in changed.items()}

    def _first(self, value: bytes | None) -> S:
        return self._initial() if value is None else self.decode(value)

    def _encode(self, state: S, place: int) -> bytes:
        self._encoded_count += 1
        count = self._encoded_count
        try:
            # The 1st, 2nd, 4th, 8th… is looked at closely: the types stay what they are.
            return self._codec.encode_state(state, verify=count & (count - 1) == 0)
        except TypeError as error:
            raise HandlerFailed(place, error) from error

    def savings(self, values: dict[str, bytes]) -> list[Saving]:
        """What keeps these states."""
        return [Saving(self.prefix + key, value) for key, value in values.items()]

    def kept(self, values: dict[str, bytes]) -> None:
        """These states are kept now."""
        self._kept_count += 1
        for key, value in values.items():
            self._remember(key, value)

    def _remember(self, key: str, value: bytes) -> None:
        self._cache_bytes += len(value) - len(self._cache.pop(key, b""))
        self._cache[key] = value
        while len(self._cache) > self._cache_keys or self._cache_bytes > CACHE_BYTES_MAX:
            _, oldest = self._cache.popitem(last=False)
            self._cache_bytes -= len(oldest)

    def forget(self) -> None:
        """Drop what is in memory: somebody else may have kept other states."""
        self._kept_count += 1
        self._cache.clear()
        self._cache_bytes = 0
