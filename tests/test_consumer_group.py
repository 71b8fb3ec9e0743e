"""The record of a consumer's group: whatever workers come, go, die and come back, each partition has one owner."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiostore import EngineUnsupported, Fenced
from aiostore.consumer.group import (
    FREE,
    PARTITIONS,
    Group,
    Member,
    Progress,
    decode_group,
    encode_group,
    join,
    leave,
    new_group,
    note,
    owned,
    partition_of,
    share_of,
    take_part,
)


def alive(*names: str) -> object:
    return lambda name, member: name in names


def step(group: Group, worker: str, living: set[str], ended: list[int] | None = None) -> None:
    progress = {number: progress_of(group, number) for number in owned(group, worker)}
    take_part(group, worker, progress, ended=ended or [], is_alive=lambda name, member: name in living)


def progress_of(group: Group, number: int) -> Progress:
    partition = group.partitions[number]
    return Progress(partition.position, partition.handled)


def surplus(group: Group, worker: str) -> list[int]:
    return owned(group, worker)[share_of(group, worker) :]


def test_where_streams_fall_never_changes() -> None:
    assert [partition_of(name) for name in ("", "cart-42", "Ünïcode")] == [0, 25, 60]
    assert {partition_of(f"s{number}") for number in range(1000)} == set(range(PARTITIONS))


def test_one_worker_takes_all_and_a_second_its_half_when_it_is_given_up() -> None:
    group = new_group(5)
    join(group, "a", "home")
    step(group, "a", {"a"})
    assert owned(group, "a") == list(range(PARTITIONS))
    join(group, "b", "home")
    step(group, "b", {"a", "b"})
    assert owned(group, "b") == []
    step(group, "a", {"a", "b"}, surplus(group, "a"))
    step(group, "b", {"a", "b"})
    assert (len(owned(group, "a")), len(owned(group, "b"))) == (PARTITIONS // 2, PARTITIONS // 2)
    assert {partition.position for partition in group.partitions} == {5}


def test_a_worker_that_lost_its_place_or_a_partition_is_fenced() -> None:
    group = new_group(0)
    join(group, "a", "home")
    step(group, "a", {"a"})
    group.partitions[3].owner = "b"
    with pytest.raises(Fenced):
        note(group, "a", {3: Progress(7, [])})
    assert group.partitions[3].position == 0
    del group.members["a"]
    with pytest.raises(Fenced):
        step(group, "a", {"a"})
    leave(group, "a", {4: Progress(7, [])})
    assert group.partitions[4].position == 0


def test_who_leaves_records_only_what_it_still_has() -> None:
    group = new_group(0)
    join(group, "a", "home")
    step(group, "a", {"a"})
    group.partitions[3].owner = "b"
    leave(group, "a", {3: Progress(7, []), 4: Progress(7, [9])})
    assert (group.partitions[3].position, group.partitions[3].owner) == (0, "b")
    assert progress_of(group, 4) == Progress(7, [9])
    assert {partition.owner for partition in group.partitions} == {FREE, "b"}
    assert group.members == {}
    assert group.last_position == 9


def test_a_beat_goes_on_only_where_others_look() -> None:
    group = new_group(0)
    join(group, "a", "home")
    before = encode_group(group)
    step(group, "a", {"a"})
    step(group, "a", {"a"})
    assert group.members["a"].beat == 0
    assert encode_group(group) != before, "it has taken its share"
    join(group, "b", "home")
    step(group, "a", {"a", "b"})
    assert group.members["a"].beat == 1


@pytest.mark.parametrize("value", [b"", b"\x93", b"\x93\x80\x90\x00", encode_group(Group({}, []))])
def test_what_another_version_wrote_is_refused(value: bytes) -> None:
    with pytest.raises(EngineUnsupported, match=r"another version|partitions"):
        decode_group(value)


def test_a_record_comes_back_as_it_was() -> None:
    group = new_group(3)
    group.members["a"] = Member("home", 4)
    group.partitions[1].handled = [7, 9]
    group.parked_revision = 2
    assert decode_group(encode_group(group)) == group


ACTIONS = st.lists(
    st.tuples(st.sampled_from(("join", "step", "step", "step", "release", "leave", "die")), st.integers(0, 4)),
    max_size=60,
)


@given(ACTIONS)
@settings(max_examples=200, deadline=None)
def test_whatever_happens_shares_become_fair_and_none_is_lost(actions: list[tuple[str, int]]) -> None:
    group = new_group(0)
    living: set[str] = set()
    born = 0
    for action, number in actions:
        worker = sorted(living)[number % len(living)] if living else None
        if action == "join" or worker is None:
            born += 1
            living.add(f"w{born}")
            join(group, f"w{born}", "home")
        elif action == "step":
            step(group, worker, living)
        elif action == "release":
            step(group, worker, living, surplus(group, worker))
        elif action == "leave":
            leave(group, worker, {each: progress_of(group, each) for each in owned(group, worker)})
            living.discard(worker)
        else:
            living.discard(worker)
        group = decode_group(encode_group(group))
    if not living:
        living.add("last")
        join(group, "last", "home")
    for _ in range(3):
        for worker in sorted(living):
            step(group, worker, living, surplus(group, worker))
    assert set(group.members) == living
    assert sum(len(owned(group, worker)) for worker in living) == PARTITIONS
    assert {len(owned(group, worker)) - PARTITIONS // len(living) for worker in living} <= {0, 1}
