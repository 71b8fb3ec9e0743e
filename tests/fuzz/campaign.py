"""Seeds one after the other: of each comes a mutated store for the larger targets, and many pieces for the small."""

from __future__ import annotations

import logging
import random
import signal
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiostore.limits import MIB
from tests.fuzz import bytes_targets, stores_targets
from tests.fuzz.mutations import Mutant, mutant
from tests.fuzz.reading import Wrong
from tests.fuzz.standing import Standing

Tally = Counter[str]
"""How often each target was executed, and by ``target: outcome`` what came of it."""

SECONDS_MAX = 5.0
"""Of the processor, for one execution."""

MEMORY_BYTES_MAX = {"verify": 20 * MIB, "repair": 20 * MIB}
"""Beside what depends on the store; by default 5 MiB. Who looks for a lost manifest has two tables of CRC-32."""

MEMORY_FACTOR_MAX = 50
MEMORY_EVERY = 199
"""So often an execution's memory is measured."""

STORE_TARGETS: dict[str, tuple[stores_targets.Target, float]] = {
    "write": (stores_targets.write, 1.0),
    "read": (stores_targets.read, 1.0),
    "follow": (stores_targets.follow, 0.5),
    "verify": (stores_targets.verify_it, 0.2),
    "repair": (stores_targets.repair, 0.03),
    "engine": (stores_targets.engine, 0.004),
}
"""What is done with a mutated store, and how often."""

BYTE_TARGETS: dict[str, tuple[bytes_targets.ByteTarget, int]] = {
    "line": (bytes_targets.line, 60),
    "lines": (bytes_targets.lines, 10),
    "head": (bytes_targets.head, 12),
    "manifest": (bytes_targets.manifest, 12),
    "run header": (bytes_targets.header, 20),
    "run file": (bytes_targets.run_file, 6),
}
"""What is done with bytes alone, and how often for each seed."""


BYTES, STORES = "bytes", "stores"
"""All targets of the one kind, or of the other."""


class TooLong(Wrong):
    """An execution does not end."""


def total(tally: Tally) -> int:
    """All executions."""
    return sum(count for name, count in tally.items() if ":" not in name)


def run(first_seed: int, executions: int, only: str | None = None) -> Iterator[tuple[int, Tally]]:
    """Execute at least so many; yields each seed when it is through, with the tally so far. ``only``: one target."""
    tally: Tally = Counter()
    seed = first_seed
    with quiet():
        while total(tally) < executions:
            try_seed(seed, tally, only)
            yield seed, tally
            seed += 1


def try_seed(seed: int, tally: Tally, only: str | None = None) -> None:
    """All executions of one seed; what is wrong says which it was."""
    for name, (target, times) in BYTE_TARGETS.items():
        if only in (None, BYTES, name):
            with _named(seed, name), _watched():
                dice = random.Random(f"{seed} {name}")
                for _ in range(times):
                    target(dice)
            tally[name] += times
    if only in (None, STORES, *STORE_TARGETS):
        _try_store(seed, tally, only)


def _try_store(seed: int, tally: Tally, only: str | None) -> None:
    dice = random.Random(f"{seed} store")
    with _named(seed, "mutant"):
        made = mutant(dice)
        standing = Standing.of(made.files)
        stores_targets.check_origin(made, standing)
    for name, (target, often) in STORE_TARGETS.items():
        dice = random.Random(f"{seed} {name}")
        if dice.random() < often if only in (None, STORES) else only == name:
            with _named(seed, name), _watched():
                tally[f"{name}: {_execute(name, target, made, standing, dice, seed)}"] += 1
            tally[name] += 1


def _execute(name: str, target: Any, made: Mutant, standing: Standing, dice: random.Random, seed: int) -> str:
    undo = stores_targets.with_chunks(made, dice)
    measured = seed % MEMORY_EVERY == 0
    if measured:
        tracemalloc.start()
    try:
        outcome: str = target(made, standing, dice)
        if measured:
            size = sum(map(len, made.files.values()))
            _, peak = tracemalloc.get_traced_memory()
            if peak > MEMORY_BYTES_MAX.get(name, 5 * MIB) + MEMORY_FACTOR_MAX * size:
                raise Wrong(f"{peak:,} bytes of memory for a store of {size:,}")
        return outcome
    finally:
        undo()
        if measured:
            tracemalloc.stop()


@contextmanager
def _named(seed: int, name: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        error.add_note(f"seed {seed}, target {name}: python -m tests.fuzz --seed {seed} --executions 1")
        raise


@contextmanager
def _watched() -> Iterator[None]:
    """What takes too long is ended, and is wrong."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    begun = time.process_time()
    before = signal.signal(signal.SIGVTALRM, _too_long)
    signal.setitimer(signal.ITIMER_VIRTUAL, 4 * SECONDS_MAX)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    taken = time.process_time() - begun
    if taken > SECONDS_MAX:
        raise TooLong(f"it took {taken:.1f} s")


def _too_long(_number: int, _frame: object) -> None:
    raise TooLong("it does not end")


@contextmanager
def quiet() -> Iterator[None]:
    """What is logged of damage is not for reading here."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
