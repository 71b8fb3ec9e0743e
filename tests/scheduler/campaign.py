"""Storms by seed, one after another."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from aiostore import Event
from tests.scheduler.engines import FULL_EVERY, restless_files, restless_memory
from tests.scheduler.loop import Order, SeededLoop
from tests.scheduler.model import Notes
from tests.scheduler.storm import Storm

FILES_EVERY = 5
"""One storm of so many is over an embedded log, the others are over memory."""


class Raged(NamedTuple):
    """A storm that is over, and in which all promises were kept."""

    log: Sequence[Event]
    notes: Notes
    seconds: float
    """Of virtual time."""


def rage(seed: int, directory: Path) -> Raged:
    """Let the storm of the seed rage; what breaks a promise raises AssertionError, with the seed."""
    chance = random.Random(seed)
    place = (restless_memory if seed % FILES_EVERY else restless_files)(chance, directory, FULL_EVERY)
    loop = SeededLoop(seed, chance.choice(list(Order)))
    storm = Storm(chance, place)
    try:
        log = loop.play(storm.run())
    except BaseException as error:
        raise AssertionError(f"seed {seed}, {loop.order.value}: {error!r}; again with AIOSTORE_SEED={seed}") from error
    return Raged(log, storm.notes, loop.time())


def digest(raged: Raged) -> str:
    """What was noted in a storm, in short."""
    notes = raged.notes
    stored = [(event.stream_id, event.data, event.tags) for event in raged.log]
    followed = [(following.position, len(following.got)) for following in notes.followings]
    projected = [projecting.projection and projecting.projection.state for projecting in notes.projectings]
    return hashlib.sha256(repr((stored, notes.calls, followed, projected, raged.seconds)).encode()).hexdigest()
