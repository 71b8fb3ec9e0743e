"""Checkpoints: how far the reader of a name has come, kept so that the next of that name goes on there."""

from __future__ import annotations

import logging
from uuid import uuid4

from aiostore.drafts import check_name
from aiostore.engine import Saving
from aiostore.errors import Fenced, StateConflict
from aiostore.limits import NAME_BYTES_MAX
from aiostore.states import States

logger = logging.getLogger("aiostore")


class Checkpoint:
    """The position of a name. Who claimed it last may move it on; anyone before gets `Fenced`."""

    def __init__(self, states: States, name: str) -> None:
        self.name = check_name(name, "name", NAME_BYTES_MAX)
        self.position = 0
        """What is kept."""
        self._states = states
        self._key = f"subscription/{self.name}"
        self._token = uuid4().bytes
        self._revision: int | None = None

    @property
    def claimed(self) -> bool:
        """Whether `claim` has returned."""
        return self._revision is not None

    async def claim(self, otherwise: int, head: int) -> int:
        """Take the name over; returns the position kept under it, or ``otherwise``, kept now, if none is that fits.

        ValueError if that is needed and beyond the head: what is there later could not be told from it.
        """
        while True:
            kept = await self._states.load_state(self._key)
            position = otherwise
            if kept is not None and kept.fits:
                position = kept.position
            elif kept is not None:
                logger.warning(
                    "the checkpoint of subscription %r at event %d is discarded, it begins after event %d: the log "
                    "does not have the event that it was made at",
                    self.name,
                    kept.position,
                    otherwise,
                )
            if position > head and position == otherwise:
                raise ValueError(f"after={otherwise} is beyond the head, {head}: no checkpoint can be made there")
            try:
                await self._save(position, kept.revision if kept else 0)
            except StateConflict:
                continue  # another claimed it in this very moment: the last one has it
            return position

    async def move(self, position: int) -> None:
        """Keep the position; one that is not beyond what is kept, is kept already."""
        assert self._revision is not None, "it must be claimed first"
        while position > self.position:
            try:
                await self._save(position, self._revision)
            except StateConflict as conflict:
                kept = await self._states.load_state(self._key)
                if kept is None or kept.value != self._token:
                    raise Fenced(self.name) from conflict
                self._revision, self.position = kept.revision, kept.position  # a save of ours that was cancelled

    async def _save(self, position: int, revision: int) -> None:
        saving = Saving(self._key, self._token, revision)
        (self._revision,) = await self._states.save_states(position, [saving])
        self.position = position
