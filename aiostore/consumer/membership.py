"""A worker's place in its group, kept in the store's states: loaded, changed and saved until nobody was faster."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from uuid import uuid4

from aiostore.consumer.group import Group, Member, decode_group, encode_group, new_group
from aiostore.engine import Saving
from aiostore.errors import StateConflict
from aiostore.states import States

logger = logging.getLogger("aiostore")

BEATS_IN_A_LEASE = 4
"""So many times in the time after which it would be taken for dead, a worker looks at the record."""

Change = Callable[[Group], Sequence[Saving]]
"""Changes the record in place, and says what else is to be saved with it, in the same step."""


class Membership:
    """The record of a group as this worker last saw it."""

    def __init__(self, states: States, name: str, *, home: str, alone: bool, lease_s: float, after: int) -> None:
        """``alone``: all of the group's workers are of this ``home``, the opening of a store; others are dead."""
        self.worker = uuid4().hex
        self.group = new_group(after)
        """As it is kept, as far as this worker knows."""
        self._states = states
        self._name = name
        self._key = f"consumer/{name}"
        self.home = home
        self._alone = alone
        self._lease_s = lease_s
        self._after = after
        self._revision: int | None = None
        self._outdated = True
        self._seen_s = 0.0  # when it was last loaded or saved
        self.begins = True
        """Whether there was no record to go on from."""
        self._beats: dict[str, tuple[int, float]] = {}  # what was last seen of the others, and since when

    async def look(self) -> None:
        """See the record as it is now."""
        self._seen_s = asyncio.get_running_loop().time()
        kept = await self._states.load_state(self._key)
        if kept is None:
            self._revision, self.begins, self.group = 0, True, new_group(self._after)
        elif kept.fits:
            self._revision, self.begins, self.group = kept.revision, False, decode_group(kept.value)
        else:
            logger.warning(
                "the checkpoint of consumer %r at event %d is discarded, it begins after event %d: the log does not "
                "have the event that it was made at",
                self._name,
                kept.position,
                self._after,
            )
            self._revision, self.begins, self.group = kept.revision, True, new_group(self._after)

    async def update(self, change: Change, *, before: Callable[[Group], Awaitable[None]] | None = None) -> None:
        """Have the record changed, and saved with what the change says, all or nothing; again if another was faster.

        ``before(group)`` is awaited with each record that was just loaded. What the change raises leaves all as it was.
        Cancelled, it may or may not be saved.
        """
        while True:
            if self._revision is None or self._outdated:
                self._outdated = False  # now: what is forgotten meanwhile, is looked at the next time
                try:
                    await self.look()
                    if before is not None:
                        await before(self.group)
                except BaseException:
                    self._outdated = True
                    raise
            before_change = encode_group(self.group)
            group = decode_group(before_change)  # a copy
            savings = change(group)
            value = encode_group(group)
            if value == before_change and not savings:
                return
            revision, self._revision = self._revision, None  # cancelled, it is not known
            assert revision is not None, "it was looked at: without it, what others saved would be overwritten"
            try:
                saved = await self._states.save_states(
                    group.last_position, [Saving(self._key, value, revision), *savings]
                )
            except StateConflict:
                await asyncio.sleep(0)
                continue
            self._revision, self.begins, self.group = saved[0], False, group
            self._seen_s = asyncio.get_running_loop().time()
            return

    def check_beginning(self, head: int) -> None:
        """ValueError if the group would begin beyond the head: what is there later could not be told from that."""
        if self._after > head:
            raise ValueError(f"after={self._after} is beyond the head, {head}: nothing can be recorded there")

    @property
    def beat_s(self) -> float:
        """At least every so often it must be seen that the worker is alive."""
        return self._lease_s / BEATS_IN_A_LEASE

    def forget(self) -> None:
        """What is known of the record may be old: load it before it is changed the next time. Also during an update."""
        self._outdated = True

    def look_again_if_due(self) -> None:
        """See now and then whether others have joined, or asked for something."""
        if asyncio.get_running_loop().time() - self._seen_s > self.beat_s:
            self.forget()

    def is_alive(self, worker: str, member: Member) -> bool:
        """Whether another worker is to be taken for alive: its beat went on within the lease, as seen from here."""
        if self._alone and member.home != self.home:
            return False
        now = asyncio.get_running_loop().time()
        beat, since = self._beats.get(worker, (-1, now))
        if beat != member.beat:
            self._beats[worker] = (member.beat, now)
            return True
        return now - since < self._lease_s
