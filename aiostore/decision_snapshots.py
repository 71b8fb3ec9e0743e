"""Snapshots of the states that decisions are made on: saved behind them, and discarded where they don't fit."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import zlib
from typing import Any
from weakref import WeakKeyDictionary, ref

import msgspec

from aiostore.boundary import Boundary, Folded
from aiostore.drafts import check_name
from aiostore.errors import EventStoreError, StoreClosed
from aiostore.limits import NAME_BYTES_MAX
from aiostore.query import Query
from aiostore.snapshots import SnapshotCodec, Unfit, key_of_query
from aiostore.store import EventStore
from aiostore.worker import Worker

PENDING_MAX = 1_000
"""So many snapshots wait to be saved at most; further ones are left out, and made a decision later."""

logger = logging.getLogger("aiostore")


class _Kept(msgspec.Struct, array_like=True, frozen=True):
    """What is saved. ``crc``: of version and snapshot, for a flipped bit may give another state that is valid too."""

    crc: int
    version: int
    snapshot: bytes


class _Saver:
    """Saves what is due in a store, one after another, in a task of its own; it does not keep the store alive."""

    def __init__(self, name: str, store: EventStore) -> None:
        self._name = name
        self._store = ref(store)
        self._pending: dict[str, tuple[int, bytes]] = {}
        self.worker = Worker(f"snapshots of decider {name!r}", self._save_pending, self._ended)

    def save(self, key: str, position: int, value: bytes) -> None:
        """Have the snapshot saved, in place of an older one of the same key."""
        waiting = self._pending.get(key)
        if waiting is None and len(self._pending) >= PENDING_MAX:
            return
        if waiting is None or waiting[0] <= position:
            self._pending[key] = position, value
        self.worker.start()

    async def _save_pending(self) -> None:
        while self._pending:
            key = next(iter(self._pending))
            position, value = self._pending.pop(key)
            store = self._store()
            if store is None:
                return
            try:
                engine, _ = store._parts()
                await engine.save_state(key, position, value)
            except StoreClosed:
                logger.info("decider %r: the store was closed before the snapshot %r was saved", self._name, key)
            except EventStoreError as error:
                logger.warning("decider %r goes on without a snapshot %r: %s", self._name, key, error)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():  # as all tasks are when the loop ends
            self._pending.clear()
        elif task.exception() is not None:
            logger.critical("saving snapshots of decider %r failed", self._name, exc_info=task.exception())


class DecisionSnapshots:
    """The snapshots of one decider, in whichever stores it decides."""

    def __init__(self, name: str, state_type: Any, every: int) -> None:
        self._name = check_name(name, "name", NAME_BYTES_MAX)
        self._codec = SnapshotCodec(state_type)
        self._every = every
        self._made_count = 0
        self._savers: WeakKeyDictionary[EventStore, _Saver] = WeakKeyDictionary()

    def _state_key(self, boundary: Boundary) -> str:
        if boundary.query is None:
            return f"decider/{self._name}/{boundary.key}"
        digest = hashlib.sha256(key_of_query(boundary.query).encode()).hexdigest()
        return f"decider/{self._name}/{boundary.key}/{digest}"

    def encode(self, version: int, state: Any, query: Query | None) -> bytes:
        """What is saved of the state; TypeError where it would not come back as it is."""
        count = self._made_count
        self._made_count += 1
        verify = count & (count - 1) == 0  # the 1st, 2nd, 3rd, 5th, 9th…: the types stay what they are
        snapshot = self._codec.encode(state, query, frozenset(), set(), verify=verify)
        return msgspec.msgpack.encode(_Kept(_crc(version, snapshot), version, snapshot))

    def _decode(self, value: bytes, query: Query | None) -> tuple[Any, int]:
        try:
            kept = msgspec.msgpack.decode(value, type=_Kept)
        except msgspec.MsgspecError as error:
            raise Unfit(f"it cannot be read: {error}") from error
        if kept.crc != _crc(kept.version, kept.snapshot):
            raise Unfit("its checksum is another")
        return self._codec.decode(kept.snapshot, query, ())[0], kept.version

    async def load(self, store: EventStore, boundary: Boundary) -> tuple[Any, int, int] | None:
        """State, version and position to begin from; None where there is no snapshot, or none that fits."""
        engine, _ = store._parts()
        key = self._state_key(boundary)
        try:
            kept = await engine.load_state(key)
        except StoreClosed:
            raise
        except EventStoreError as error:
            logger.warning(
                "decider %r goes on from the first event, without its snapshot %r: %s", self._name, key, error
            )
            return None
        if kept is None:
            return None
        try:
            if not kept.fits:
                raise Unfit("the log does not have the event that it was made at")
            state, version = self._decode(kept.value, boundary.query)
        except Unfit as unfit:
            logger.warning(
                "the snapshot %r at event %d is discarded, its state is rebuilt from the events: %s",
                key,
                kept.position,
                unfit,
            )
            return None
        return state, version, kept.position

    def save_if_due(self, store: EventStore, boundary: Boundary, folded: Folded[Any]) -> None:
        """Have the state saved in the background, if so many events were taken since the last time."""
        if folded.taken_count < self._every:
            return
        engine, _ = store._parts()
        if engine.read_only:
            return
        key = self._state_key(boundary)
        try:
            value = self.encode(folded.version, folded.state, boundary.query)
        except TypeError as error:
            logger.warning("decider %r goes on without a snapshot %r: %s", self._name, key, error)
            return
        saver = self._savers.get(store)
        if saver is None:
            saver = self._savers[store] = _Saver(self._name, store)
        saver.save(key, folded.position, value)

    async def flush(self, store: EventStore) -> None:
        """Return when nothing waits to be saved in the store."""
        saver = self._savers.get(store)
        if saver is not None:
            await saver.worker.drain()


def _crc(version: int, snapshot: bytes) -> int:
    return zlib.crc32(snapshot, version & 0xFFFFFFFF)
