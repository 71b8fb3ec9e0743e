"""A slice of the campaign: what is done with mutated stores, and what must hold of it, is in the files beside this."""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest

from aiostore.engines.file.opening import open_to_read
from tests.file.driver import nothing
from tests.fuzz.campaign import BYTE_TARGETS, BYTES, STORE_TARGETS, STORES, Tally, run, total
from tests.fuzz.mutations import mutant
from tests.fuzz.picky import PickyDisk
from tests.fuzz.reading import Ways, Wrong
from tests.fuzz.seeds import DIRECTORY, stores
from tests.fuzz.standing import Standing

EXECUTIONS = int(os.environ.get("AIOSTORE_FUZZ", "30000" if os.environ.get("CI") else "9000"))
"""Of bytes alone; of stores, each of which takes as long as fifty of these, a fiftieth."""

PARTS = 2


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("kind", [BYTES, STORES])
def test_mutated_stores_are_read_right_or_refused(kind: str, part: int) -> None:
    tally: Tally = Counter()
    executions = EXECUTIONS if kind == BYTES else EXECUTIONS // 50
    for _, tally in run(10_000_000 * (part + 1), executions // PARTS, kind):  # noqa: B007 (the last one is looked at)
        pass
    print(tally)
    assert total(tally) >= executions // PARTS
    if kind == BYTES:
        assert all(tally[name] for name in BYTE_TARGETS)
    else:
        assert all(tally[name] for name in STORE_TARGETS if name not in ("repair", "engine"))
        assert tally["write: refused: StoreCorrupt"]
        assert tally["write: opened"] + tally["write: opened, put right"]
        assert tally["read: read beside damage"]


@pytest.mark.parametrize("name", ["repair", "engine"])
def test_what_is_done_less_often(name: str) -> None:
    tally: Tally = Counter()
    for _, tally in run(20_000_000, max(5, EXECUTIONS // 1000), name):  # noqa: B007
        pass
    assert tally[name]


def test_a_seed_gives_the_same_files_whenever_it_is_asked() -> None:
    made = [mutant(random.Random("5 store")) for _ in range(2)]
    assert made[0].files == made[1].files
    assert any(mutant(random.Random(f"{n} store")).files != made[0].files for n in range(3))


def test_the_campaign_sees_an_event_that_does_not_stand_in_the_files() -> None:
    """What it looks for is found, if it is there."""
    store = stores()[0]
    disk = PickyDisk(store.files)
    index = open_to_read(disk, DIRECTORY, nothing)
    standing = Standing.of(store.files)
    ways = Ways(disk, index, random.Random(1))
    assert len(ways.check(standing, lies=False, whole=True)) == store.acknowledged
    standing.events.pop()
    with pytest.raises(Wrong, match="does not stand in the files"):
        ways.check(standing, lies=False, whole=True)
    ways.close()
