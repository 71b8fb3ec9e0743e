"""A group of workers: who is in it, which share of the streams each of them has, and how far each share has come.

All of it is one record, replaced as a whole and only by who has seen the last one: that fences off a worker which was
taken for dead and comes back. What a worker does with the record is decided here, without I/O.

Streams fall into `PARTITIONS` partitions by their name's checksum; each partition has at most one owner.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple
from zlib import crc32

import msgspec

from aiostore.errors import EngineUnsupported, Fenced

PARTITIONS = 64

FREE = ""
"""The owner of a partition that nobody has."""


def partition_of(key: str) -> int:
    """The number of the partition that a stream, or whatever else is kept in order, falls into."""
    return crc32(key.encode()) % PARTITIONS


class Progress(NamedTuple):
    """How far a partition has come."""

    position: int
    """Every event up to this one is handled, or parked…"""
    handled: list[int]
    """…and so are these above it."""


class Partition(msgspec.Struct, array_like=True):
    """A partition in the record: its owner, and its `Progress`."""

    owner: str
    position: int
    handled: list[int]

    @property
    def last_position(self) -> int:
        """The last event that it speaks of."""
        return max(self.position, *self.handled, 0)


class Member(msgspec.Struct, array_like=True):
    """A worker in the record."""

    home: str
    """The opening of a store that it belongs to."""
    beat: int
    """Goes on while the worker lives and there are others."""


class Group(msgspec.Struct, array_like=True):
    """The record."""

    members: dict[str, Member]
    partitions: list[Partition]
    parked_revision: int = 0
    """Goes on when somebody asks for parked events to be retried or skipped."""

    @property
    def last_position(self) -> int:
        """The last event that the record speaks of."""
        return max(each.last_position for each in self.partitions)


def new_group(after: int) -> Group:
    """The record of a group that begins behind event ``after``."""
    return Group({}, [Partition(FREE, after, []) for _ in range(PARTITIONS)])


_decoder = msgspec.msgpack.Decoder(Group)


def encode_group(group: Group) -> bytes:
    """The record as bytes."""
    return msgspec.msgpack.encode(group)


def decode_group(value: bytes) -> Group:
    """The record of the bytes; `EngineUnsupported` where they are not one of this version."""
    try:
        group = _decoder.decode(value)
    except msgspec.DecodeError as error:
        raise EngineUnsupported(f"the consumer's state was written by another version of aiostore: {error}") from error
    if len(group.partitions) != PARTITIONS:
        raise EngineUnsupported(f"the consumer's state has {len(group.partitions)} partitions, not {PARTITIONS}")
    return group


def join(group: Group, worker: str, home: str) -> None:
    """Enter the worker."""
    group.members[worker] = Member(home, 0)


def leave(group: Group, worker: str, progress: Mapping[int, Progress]) -> Collection[int]:
    """Record how far the worker came, as far as nobody has taken it, and free what it had; returns what that was."""
    if worker not in group.members:
        return ()
    still = owned(group, worker)
    note(group, worker, {number: progress[number] for number in still if number in progress})
    for number in still:
        group.partitions[number].owner = FREE
    del group.members[worker]
    return still


def note(group: Group, worker: str, progress: Mapping[int, Progress]) -> None:
    """Record how far the worker's partitions have come; `Fenced` if any of them, or its place, was taken from it."""
    if worker not in group.members or any(group.partitions[number].owner != worker for number in progress):
        raise Fenced(worker)
    for number, (position, handled) in progress.items():
        partition = group.partitions[number]
        partition.position, partition.handled = position, handled


def stay(group: Group, worker: str, progress: Mapping[int, Progress]) -> None:
    """What a worker does with the record while it ends: it notes how far it came, and is seen to be alive."""
    note(group, worker, progress)
    if len(group.members) > 1:
        group.members[worker].beat += 1


def take_part(
    group: Group,
    worker: str,
    progress: Mapping[int, Progress],
    *,
    ended: Collection[int],
    is_alive: Callable[[str, Member], bool],
) -> None:
    """What a worker does with the record every so often.

    It notes how far it came, gives up what has ended, drops the dead, and takes its share. ``ended``: partitions of
    which it has nothing in hand any more, and which it is to give up.
    """
    note(group, worker, progress)
    for number in ended:
        group.partitions[number].owner = FREE
    for name, member in list(group.members.items()):
        if name != worker and not is_alive(name, member):
            del group.members[name]
    if len(group.members) > 1:
        group.members[worker].beat += 1
    missing = share_of(group, worker) - len(owned(group, worker))
    for partition in group.partitions:
        if missing > 0 and partition.owner not in group.members:
            partition.owner = worker
            missing -= 1


def owned(group: Group, worker: str) -> list[int]:
    """The numbers of the partitions that the worker has."""
    return [number for number, partition in enumerate(group.partitions) if partition.owner == worker]


def share_of(group: Group, worker: str) -> int:
    """How many partitions are the worker's fair share."""
    place = sorted(group.members).index(worker)
    each, rest = divmod(PARTITIONS, len(group.members))
    return each + (place < rest)
