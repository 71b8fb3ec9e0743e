"""Runs of many lives and their crashes, from a number on until so many states were tried."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager

from tests.crash.judge import Tally, Wrong, crashes
from tests.crash.life import Life

STATES_AT_A_MOMENT_MAX = 12
LIVES_MAX = 3


def run(first_seed: int, states: int) -> Iterator[tuple[int, Tally]]:
    """Try at least so many states; yields each seed when it is through, with the tally so far."""
    tally = Tally()
    for seed in itertools.count(first_seed):
        with _quiet():
            try_seed(seed, tally)
        yield seed, tally
        if tally.states >= states:
            return


def try_seed(seed: int, tally: Tally) -> None:
    """A life, its crashes, and then lives that begin with what one of those left."""
    dice = random.Random(seed)
    files = None
    for number in range(LIVES_MAX):
        life = Life(dice.randrange(10**9), files)
        life.live()
        try:
            left = [(state, head) for state, head in crashes(life, dice, tally, STATES_AT_A_MOMENT_MAX)]
        except Wrong as wrong:
            wrong.add_note(f"seed {seed}, life {number}: {life.durability}, segments of {life.segment_bytes} bytes")
            raise
        if not left:
            return
        files = dice.choice(left)[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """What recovery says of each torn tail is not for reading here."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
