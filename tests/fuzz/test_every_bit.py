"""A bit of a store with runs is flipped: nothing wrong is served, by any way of reading, and the index takes nothing
away. In CI every 23rd of them; `python -m tests.fuzz --bits runs` takes all."""

from __future__ import annotations

import os

import pytest

from tests.fuzz.bits import check_each
from tests.fuzz.campaign import quiet
from tests.fuzz.seeds import store_named

EVERY = 23 if os.environ.get("CI") else 211
PARTS = 2


@pytest.mark.parametrize("part", range(PARTS))
def test_a_flipped_bit_is_reported_or_harmless(part: int) -> None:
    tally = None
    with quiet():
        for tally in check_each(store_named("runs"), EVERY * PARTS, part * EVERY):  # noqa: B007
            pass
    print(tally)
    assert tally is not None
    assert tally["jsonl: read beside damage"]
    assert tally["idx: read"]
    assert tally["json: refused"]
    assert tally["head: read"]
