"""What a run did to its disk, in order, and every state that a power loss in the midst of it may leave.

Of what was written and not synced, each sector may be lost, written, zeros or garbage; a cut may be lost; a name that
was made, removed or exchanged may be lost until its directory was synced. Sectors of 512 bytes count only as far as
they were written to: a torn sector does not damage bytes outside of the write.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import NamedTuple

from tests.file.disks import SECTOR_BYTES, Inode, MemoryDisk

Files = dict[str, bytes]


class Entered(NamedTuple):
    """A name was made for a file that is new and empty."""

    path: str
    inode: int


class Written(NamedTuple):
    """Bytes were written to a file."""

    inode: int
    offset: int
    data: bytes


class Cut(NamedTuple):
    """A file was cut to a size."""

    inode: int
    size: int


class Synced(NamedTuple):
    """A file was synced."""

    inode: int


class Forgotten(NamedTuple):
    """A sync of a file failed: what was to be written is not on the device, and no later sync will bring it there."""

    inode: int


class DirectorySynced(NamedTuple):
    """A directory was synced."""

    path: str


class Renamed(NamedTuple):
    """A file was renamed over another."""

    source: str
    target: str


class Removed(NamedTuple):
    """A name was removed."""

    path: str


class Told(NamedTuple):
    """Someone outside was told of the events up to this one; ``durable`` if they were promised to outlive power."""

    event_id: int
    durable: bool


Entry = Entered | Written | Cut | Synced | Forgotten | DirectorySynced | Renamed | Removed | Told


class RecordingDisk(MemoryDisk):
    """A disk in memory that keeps a tape of all that changes it."""

    def __init__(self, files: Files | None = None) -> None:
        self.tape: list[Entry] = []
        self._numbers: dict[int, int] = {}
        self._kept: list[Inode] = []
        super().__init__(files)
        self.start = dict(files or {})
        self.numbers = {path: self._number(inode) for path, inode in self.inodes.items()}

    def told(self, event_id: int, *, durable: bool) -> None:
        """Note that someone outside knows of the events up to this one."""
        with self.mutex:
            self.tape.append(Told(event_id, durable))

    def _number(self, inode: Inode) -> int:
        number = self._numbers.get(id(inode))
        if number is None:
            self._kept.append(inode)  # or another one might get its id
            number = self._numbers[id(inode)] = len(self._numbers)
        return number

    def _created(self, path: str, exclusive: bool = False) -> Inode:
        new = path not in self.inodes
        inode = super()._created(path, exclusive)
        if new:
            self.tape.append(Entered(path, self._number(inode)))
        return inode

    def _put(self, file: int, data: bytes, offset: int) -> None:
        super()._put(file, data, offset)
        self.tape.append(Written(self._number(self._opened[file]), offset, bytes(data)))

    def write_log(self, file: int, data: memoryview, offset: int, *, synced: bool) -> int:
        with self.mutex:
            written = super().write_log(file, data, offset, synced=synced)
            if synced:
                self.tape.append(Synced(self._number(self._opened[file])))
        return written

    def truncate(self, file: int, size: int) -> None:
        with self.mutex:
            super().truncate(file, size)
            self.tape.append(Cut(self._number(self._opened[file]), size))

    def sync(self, file: int) -> None:
        with self.mutex:
            super().sync(file)
            self.tape.append(Synced(self._number(self._opened[file])))

    def sync_directory(self, path: str) -> None:
        with self.mutex:
            super().sync_directory(path)
            self.tape.append(DirectorySynced(path))

    def replace(self, source: str, target: str) -> None:
        with self.mutex:
            super().replace(source, target)
            self.tape.append(Renamed(source, target))

    def remove(self, path: str) -> None:
        with self.mutex:
            super().remove(path)
            self.tape.append(Removed(path))


LOST, WRITTEN, ZEROS, GARBAGE = range(4)


@dataclass
class _File:
    stable: bytes = b""
    pending: list[Written | Cut] = field(default_factory=list)
    applied: bytearray = field(default_factory=bytearray)
    """What is read: of the device and of what is not there yet, or never will be."""
    has_forgotten: bool = False


Change = dict[str, int | None]
"""Names, and the file that each is of, or None where it is none any more: all of it happens or nothing."""


class Moment:
    """Where the tape has been played to: what is on the device, and what may be."""

    def __init__(self, disk: RecordingDisk) -> None:
        numbers = disk.numbers
        self._files = {numbers[path]: _File(data, [], bytearray(data)) for path, data in disk.start.items()}
        self._stable_names: dict[str, int] = dict(numbers)
        self._names: dict[str, int] = dict(numbers)
        self._changes: list[Change] = []
        self.told = 0
        """The last event that someone outside may know of."""
        self.promised = 0
        """…and that must outlive a power loss."""

    def play(self, entry: Entry) -> None:
        """Go one step on."""
        match entry:
            case Entered(path, inode):
                self._files[inode] = _File()
                self._change({path: inode})
            case Written(inode, offset, data):
                file = self._files[inode]
                file.applied.extend(b"\0" * (offset - len(file.applied)))
                file.applied[offset : offset + len(data)] = data
                file.pending.append(entry)
            case Cut(inode, size):
                del self._files[inode].applied[size:]
                self._files[inode].pending.append(entry)
            case Synced(inode):
                file = self._files[inode]
                file.stable = _applied(file.stable, file.pending) if file.has_forgotten else bytes(file.applied)
                file.pending = []
            case Forgotten(inode):
                file = self._files[inode]
                file.has_forgotten = True
                file.pending = []
            case DirectorySynced(path):
                kept: list[Change] = []
                for change in self._changes:
                    here = next(iter(change)).rpartition("/")[0] == path
                    if here:
                        _apply(self._stable_names, change)
                    else:
                        kept.append(change)
                self._changes = kept
            case Renamed(source, target):
                self._change({source: None, target: self._names[source]})
            case Removed(path):
                self._change({path: None})
            case Told(event_id, durable):
                self.told = max(self.told, event_id)
                if durable:
                    self.promised = max(self.promised, event_id)

    def _change(self, change: Change) -> None:
        _apply(self._names, change)
        self._changes.append(change)

    def seen(self) -> Files:
        """What a process sees that goes on after another was killed."""
        return {path: bytes(self._files[inode].applied) for path, inode in self._names.items()}

    def show_device(self, disk: MemoryDisk) -> None:
        """Have the disk, whose files are those that are `seen`, know what of it is on the device."""
        for path, inode in self._names.items():
            disk.inodes[path].stable = self._files[inode].stable
            disk.inodes[path].pending = [
                (change.offset, change.data) if isinstance(change, Written) else change.size
                for change in self._files[inode].pending
            ]

    def before_cuts(self) -> Files:
        """The same without the cuts that are not synced."""
        files: Files = {}
        for path, inode in self._names.items():
            file = self._files[inode]
            files[path] = _applied(file.stable, [change for change in file.pending if isinstance(change, Written)])
        return files

    def states(self, dice: random.Random, states_max: int) -> Iterator[Files]:
        """What may be left by a power loss now: all that there are, or so many of them by the dice."""
        pending = {inode: file.pending for inode, file in self._files.items() if file.pending}
        if not pending and not self._changes:
            yield self._state((), pending, dice)
            return
        options = [
            4 if isinstance(part, tuple) else 2
            for changes in pending.values()
            for change in changes
            for part in _parts(change)
        ] + [2] * len(self._changes)
        if prod(options) <= states_max:
            for choice in product(*map(range, options)):
                yield self._state(choice, pending, dice)
            return
        yield self._state([LOST] * len(options), pending, dice)
        yield self._state([WRITTEN] * len(options), pending, dice)
        for number in range(states_max - 2):
            yield self._state(_drawn(options, dice, number), pending, dice)

    def _state(self, choice: Sequence[int], pending: dict[int, list[Written | Cut]], dice: random.Random) -> Files:
        chosen = iter(choice)
        contents: dict[int, bytes] = {}
        for inode, changes in pending.items():
            data = bytearray(self._files[inode].stable)
            for change in changes:
                for part in _parts(change):
                    _leave(data, change, part, next(chosen), dice)
            contents[inode] = bytes(data)
        names = dict(self._stable_names)
        for change_of_names, happened in zip(self._changes, chosen, strict=True):
            if happened:
                _apply(names, change_of_names)
        return {
            path: contents[inode] if inode in contents else self._files[inode].stable for path, inode in names.items()
        }


def _apply(names: dict[str, int], change: Change) -> None:
    for path, inode in change.items():
        if inode is None:
            names.pop(path, None)
        else:
            names[path] = inode


def _applied(stable: bytes, changes: Sequence[Written | Cut]) -> bytes:
    data = bytearray(stable)
    for change in changes:
        if isinstance(change, Cut):
            del data[change.size :]
        else:
            data.extend(b"\0" * (change.offset - len(data)))
            data[change.offset : change.offset + len(change.data)] = change.data
    return bytes(data)


def _drawn(options: Sequence[int], dice: random.Random, number: int) -> list[int]:
    """A choice: of all kinds, or mostly written, or up to somewhere."""
    match number % 4:
        case 0:
            return [dice.randrange(count) for count in options]
        case 1:
            return [WRITTEN if dice.random() < 0.9 else dice.randrange(count) for count in options]
        case 2:
            return [dice.choice((LOST, WRITTEN)) for _ in options]
        case _:
            place = dice.randrange(len(options) + 1)
            return [WRITTEN] * place + [LOST] * (len(options) - place)


def _parts(change: Written | Cut) -> list[tuple[int, int] | None]:
    """The sectors of a write, from where to where; a cut is one thing."""
    if isinstance(change, Cut):
        return [None]
    parts: list[tuple[int, int] | None] = []
    start, end = change.offset, change.offset + len(change.data)
    while start < end:
        after = min(end, (start // SECTOR_BYTES + 1) * SECTOR_BYTES)
        parts.append((start, after))
        start = after
    return parts


def _leave(
    data: bytearray, change: Written | Cut, part: tuple[int, int] | None, fate: int, dice: random.Random
) -> None:
    if fate == LOST:
        return
    if part is None:
        assert isinstance(change, Cut)
        del data[change.size :]
        return
    assert isinstance(change, Written)
    start, end = part
    data.extend(b"\0" * (end - len(data)))
    if fate == WRITTEN:
        data[start:end] = change.data[start - change.offset : end - change.offset]
    elif fate == ZEROS:
        data[start:end] = bytes(end - start)
    else:
        data[start:end] = dice.randbytes(end - start)
