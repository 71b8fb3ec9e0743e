"""Every bit of a store with runs, flipped by itself: each store that this gives is read in every way.

`python -m tests.fuzz --bits larger` does it for a larger store, and takes a while.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

from aiostore.engines.file.blocks import Blocks
from aiostore.engines.file.opening import open_to_read
from aiostore.errors import StoreCorrupt
from aiostore.events import Event
from tests.file.driver import nothing
from tests.fuzz.picky import PickyDisk
from tests.fuzz.reading import Ways, Wrong
from tests.fuzz.seeds import DIRECTORY, Store
from tests.fuzz.standing import Standing

PADDING = b" \0"


def flips(store: Store, every: int = 1, begin: int = 0) -> Iterator[tuple[str, int, int]]:
    """Places and bits, each ``every``-th; of the bytes that only fill a block or a slot, one in 64."""
    number = begin
    for path, data in sorted(store.files.items()):
        for place in range(len(data)):
            filler = not path.endswith(".jsonl") and data[place] in PADDING and data[place] == data[place - 1]
            if filler and place % 64:
                continue
            for bit in range(8):
                number += 1
                if number % every == 0:
                    yield path, place, bit


def check(store: Store, path: str, place: int, bit: int) -> str:
    """Read the store with this bit flipped; says what came of it."""
    changed = bytearray(store.files[path])
    changed[place] ^= 1 << bit
    files = {**store.files, path: bytes(changed)}
    dice = random.Random(place * 8 + bit)
    disk, blocks = PickyDisk(files), Blocks()
    try:
        index = open_to_read(disk, DIRECTORY, nothing, blocks, 1)
    except StoreCorrupt as error:
        if error.path != path:
            raise Wrong(f"a bit of {path}, and {error}") from error
        return "refused"
    standing = Standing(store.store_id, set(store.events), clean=False)
    ways = Ways(disk, index, dice)
    try:
        known = ways.check(standing, lies=False, whole=not path.endswith(".jsonl"))
    finally:
        ways.close()
        index.close()
        blocks.close_runs()
    _check_all(store, path, known)
    return "read" if len(known) == store.acknowledged else "read beside damage"


def _check_all(store: Store, path: str, known: dict[int, Event]) -> None:
    if not set(known.values()) <= store.events:
        raise Wrong("an event was served that was never stored")
    if len(known) < store.acknowledged and not path.endswith(".jsonl"):
        raise Wrong(f"a bit of {path} takes events away")
    if len(known) < store.acknowledged - 2:
        raise Wrong(f"a bit takes {store.acknowledged - len(known)} events away")


def check_each(store: Store, every: int = 1, begin: int = 0) -> Iterator[Counter[str]]:
    """All of them; yields the tally so far after each."""
    tally: Counter[str] = Counter()
    for path, place, bit in flips(store, every, begin):
        try:
            outcome = check(store, path, place, bit)
        except BaseException as error:
            error.add_note(f"bit {bit} of byte {place} of {path} of the store {store.name!r}")
            raise
        tally[f"{path.rpartition('.')[2] if '.' in path else 'head'}: {outcome}"] += 1
        yield tally
