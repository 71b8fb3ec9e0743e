"""What a power loss may leave, at every moment of many lives, and amid recovery: nothing promised is lost."""

from __future__ import annotations

import os
import random

import pytest

from tests.crash.campaign import run
from tests.crash.life import Life
from tests.crash.tape import Entered, Moment, RecordingDisk

STATES = int(os.environ.get("AIOSTORE_CRASH_STATES", "4000" if os.environ.get("CI") else "2000"))
PARTS = 4


@pytest.mark.parametrize("part", range(PARTS))
def test_in_every_state_that_a_power_loss_leaves_all_promises_hold(part: int) -> None:
    for seed, tally in run(1000 * part, STATES // PARTS):
        last = seed, tally
    print(last)
    assert last[1].states >= STATES // PARTS


def test_a_life_is_the_same_whenever_it_is_lived() -> None:
    tapes = []
    for _ in range(2):
        life = Life(7, None)
        life.live()
        tapes.append([type(entry) for entry in life.disk.tape])
    assert tapes[0] == tapes[1]
    assert len(tapes[0]) > 20


def test_the_states_of_a_moment_are_all_that_there_are_if_these_are_few() -> None:
    disk = RecordingDisk({"/s/a": b"old"})
    moment = Moment(disk)
    file = disk.open_write("/s/b")
    disk.write_at(file, b"new", 0)
    disk.close(file)
    for entry in disk.tape:
        moment.play(entry)
    dice = random.Random(1)
    states = [tuple(sorted(state.items())) for state in moment.states(dice, 100)]
    assert len(states) == 4 * 2, "one sector, and one name"
    assert (("/s/a", b"old"),) in states, "the name is lost"
    assert {dict(state).get("/s/b", b"")[:3] for state in states} >= {b"", b"new", b"\0\0\0"}
    assert isinstance(disk.tape[0], Entered)
    assert len(list(moment.states(dice, 5))) == 5


def test_what_was_synced_is_in_every_state() -> None:
    disk = RecordingDisk({})
    disk.make_directory("/s")
    file = disk.open_log("/s/a", synced=True)
    disk.write_log(file, memoryview(b"kept"), 0, synced=True)
    disk.sync_directory("/s")
    disk.write_log(file, memoryview(b"lost"), 4, synced=False)
    moment = Moment(disk)
    for entry in disk.tape:
        moment.play(entry)
    states = list(moment.states(random.Random(1), 100))
    assert {state["/s/a"][:4] for state in states} == {b"kept"}
    assert len({state["/s/a"] for state in states}) == 4
    assert moment.seen() == {"/s/a": b"keptlost"}
