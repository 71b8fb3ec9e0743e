"""Disks that stand in for the real one: in memory with crashes, faulty, recording, held at a call."""

from __future__ import annotations

import copy
import errno
import functools
import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiostore.engines.file.disk import Disk
from aiostore.engines.file.watch import Watch

SECTOR_BYTES = 512


@dataclass
class Inode:
    """A file: what readers see, what is on the device, and the writes in between, in order."""

    data: bytearray = field(default_factory=bytearray)
    stable: bytes = b""
    pending: list[tuple[int, bytes] | int] = field(default_factory=list)
    """(offset, data) of a write, or the size that the file was cut to."""

    def sync(self) -> None:
        """What was written since goes to the device; what a failed sync lost does not."""
        self.stable = left_after_power_loss(None, None, self)
        self.pending = []


class MemoryDisk(Disk):
    """Files in memory under one tree. ``on_step`` is called when a change was made and not yet synced."""

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self.mutex = threading.RLock()
        """Held in each call: the log, what seals and what merges have threads of their own."""
        self.inodes: dict[str, Inode] = {}
        self.directories = {"/"}
        for path, data in (files or {}).items():
            self.inodes[path] = Inode(bytearray(data), data)
            self.make_directory(path.rpartition("/")[0])
        self.stable_inodes = dict(self.inodes)
        self.on_step: Callable[[], None] = lambda: None
        self.drops_cache = True
        """Pages that are clean are read again from the device, as after a failed sync."""
        self._opened: dict[int, Inode] = {}
        self._next = 1000
        self._locked: dict[int, Inode] = {}

    def files(self) -> dict[str, bytes]:
        with self.mutex:
            return {path: bytes(inode.data) for path, inode in sorted(self.inodes.items())}

    def crashed(self, choose: Callable[[Inode], bytes] | None = None, entries: bool = False) -> MemoryDisk:
        """The disk after a power loss: ``choose`` says what is left of a file, ``entries`` if unsynced names are."""
        inodes = self.inodes if entries else self.stable_inodes
        return MemoryDisk({path: choose(inode) if choose else bytes(inode.stable) for path, inode in inodes.items()})

    def snapshot(self) -> MemoryDisk:
        """A copy that goes its own way."""
        taken = MemoryDisk()
        taken.inodes, taken.stable_inodes = copy.deepcopy((self.inodes, self.stable_inodes))
        taken.directories = set(self.directories)
        return taken

    def put(self, path: str, data: bytes, offset: int | None = None) -> None:
        """Have the data stand in the file, durably, at its end or over what is at the offset; make it if need be."""
        inode = self.inodes.setdefault(path, Inode())
        self.stable_inodes[path] = inode
        start = len(inode.data) if offset is None else offset
        inode.data[start : start + len(data)] = data
        inode.sync()
        inode.stable = bytes(inode.data)

    @property
    def held(self) -> int:
        """How many files are open."""
        return len(self._opened)

    def _hand_out(self, inode: Inode) -> int:
        self._next += 1
        self._opened[self._next] = inode
        return self._next

    def _created(self, path: str, exclusive: bool = False) -> Inode:
        if path in self.inodes:
            if exclusive:
                raise FileExistsError(errno.EEXIST, "exists", path)
            return self.inodes[path]
        if path.rpartition("/")[0] not in self.directories:
            raise FileNotFoundError(errno.ENOENT, "no directory", path)
        self.inodes[path] = Inode()
        self.on_step()
        return self.inodes[path]

    def open_read(self, path: str) -> int:
        if path not in self.inodes:
            raise FileNotFoundError(errno.ENOENT, "no file", path)
        return self._hand_out(self.inodes[path])

    def open_write(self, path: str, *, exclusive: bool = False) -> int:
        return self._hand_out(self._created(path, exclusive))

    def open_log(self, path: str, *, synced: bool) -> int:
        return self._hand_out(self._created(path))

    def close(self, file: int) -> None:
        del self._opened[file]
        self._locked.pop(file, None)

    def write_log(self, file: int, data: memoryview, offset: int, *, synced: bool) -> int:
        self._put(file, bytes(data), offset)
        if synced:
            self._opened[file].sync()
        return len(data)

    def write_at(self, file: int, data: bytes, offset: int) -> None:
        self._put(file, data, offset)

    def _put(self, file: int, data: bytes, offset: int) -> None:
        inode = self._opened[file]
        inode.data.extend(b"\0" * (offset - len(inode.data)))
        inode.data[offset : offset + len(data)] = data
        inode.pending.append((offset, data))
        self.on_step()

    def read(self, file: int, size: int, offset: int) -> bytes:
        return bytes(self._opened[file].data[offset : offset + size])

    def read_nowait(self, file: int, size: int, offset: int) -> bytes | None:
        return self.read(file, size, offset)

    def read_each_nowait(self, file: int, spans: Sequence[tuple[int, int]]) -> list[bytes] | None:
        read = [self.read_nowait(file, end - start, start) for start, end in spans]
        found = [data for data in read if data is not None]
        return found if len(found) == len(read) else None

    def prefetch(self, file: int, start: int, end: int) -> None:
        pass

    def size(self, file: int) -> int:
        return len(self._opened[file].data)

    def truncate(self, file: int, size: int) -> None:
        inode = self._opened[file]
        del inode.data[size:]
        inode.pending.append(size)
        self.on_step()

    def sync(self, file: int) -> None:
        self._opened[file].sync()

    def drop_cache(self, file: int) -> None:
        if self.drops_cache and not self._opened[file].pending:
            self._opened[file].data[:] = self._opened[file].stable

    def absolute(self, path: str) -> str:
        return path

    def names(self, directory: str) -> list[str]:
        return sorted(path.rpartition("/")[2] for path in self.inodes if path.rpartition("/")[0] == directory)

    def make_directory(self, path: str) -> bool:
        if path in self.directories:
            return False
        self.directories.add(path)
        return True

    def remove_directory(self, path: str) -> None:
        if self.names(path):
            raise OSError(errno.ENOTEMPTY, "not empty", path)
        self.directories.remove(path)

    def exists(self, path: str) -> bool:
        return path in self.inodes or path in self.directories

    def sync_directory(self, path: str) -> None:
        for kept in [name for name in self.stable_inodes if name.rpartition("/")[0] == path]:
            del self.stable_inodes[kept]
        self.stable_inodes.update(
            {name: inode for name, inode in self.inodes.items() if name.rpartition("/")[0] == path}
        )

    def replace(self, source: str, target: str) -> None:
        self.inodes[target] = self.inodes.pop(source)
        self.on_step()

    def remove(self, path: str) -> None:
        if path not in self.inodes:
            raise FileNotFoundError(errno.ENOENT, "no file", path)
        del self.inodes[path]
        self.on_step()

    def watch(self, directory: str, path: str) -> Watch | None:
        return None

    def lock(self, file: int, *, shared: bool) -> bool:
        inode = self._opened[file]
        if any(other is inode for other in self._locked.values()):
            return False
        self._locked[file] = inode
        return True

    def unlock(self, file: int) -> None:
        self._locked.pop(file, None)

    def file_system(self, path: str) -> str:
        return ""


def left_after_power_loss(dice: random.Random | None, count: int | None, inode: Inode) -> bytes:
    """The file with some unsynced changes: the first ``count`` and half of the next, or by the dice any sectors."""
    data = bytearray(inode.stable)
    for number, change in enumerate(inode.pending):
        if count is not None and number > count:
            break
        if isinstance(change, int):
            if dice is None or dice.random() < 0.5:
                del data[change:]
            continue
        offset, written = change
        if count is not None and number == count:
            written = written[: len(written) // 2]
        for start, end in _sectors(offset, offset + len(written)):
            if dice is None or dice.random() < 0.5:
                data.extend(b"\0" * (end - len(data)))
                data[start:end] = written[start - offset : end - offset]
    return bytes(data)


def _sectors(start: int, end: int) -> Iterator[tuple[int, int]]:
    while start < end:
        after = min(end, (start // SECTOR_BYTES + 1) * SECTOR_BYTES)
        yield start, after
        start = after


CALLS = [name for name in vars(Disk) if not name.startswith("_")]


def _one_at_a_time(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(self: MemoryDisk, *args: Any, **kwargs: Any) -> Any:
        with self.mutex:
            return original(self, *args, **kwargs)

    return call


for _name in {*CALLS} & {*vars(MemoryDisk)}:
    setattr(MemoryDisk, _name, _one_at_a_time(vars(MemoryDisk)[_name]))


class UnsharedDisk(MemoryDisk):
    """A disk in memory for one thread alone: quicker."""


for _name in {*CALLS} & {*vars(MemoryDisk)}:
    setattr(UnsharedDisk, _name, vars(MemoryDisk)[_name].__wrapped__)
CHANGES = ["open_log", "open_write", "replace", "sync", "sync_directory", "truncate", "write_at", "write_log"]


class Calls:
    """What happens at the calls of a disk: they are recorded, and may fail, be short, or wait."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.append_bytes_max: int | None = None
        self._faults: list[tuple[str, int, OSError]] = []
        self._counts: dict[str, int] = {}
        self._hold: int | None = None
        self._entered = threading.Event()
        self._released = threading.Event()
        self._mutex = threading.Lock()

    def fail(self, name: str, number: int, *, at: int = 1, times: int = 1) -> None:
        """Have the calls of this name from the at-th from now on fail with the error number."""
        begin = self._counts.get(name, 0) + at
        self._faults += [(name, begin + i, OSError(number, os.strerror(number))) for i in range(times)]

    def fail_change(self, number: int, *, at: int) -> None:
        """Have the at-th change from now on fail, whatever it is."""
        begin = sum(name in CHANGES for name in self.made) + at
        self._faults.append(("", begin, OSError(number, os.strerror(number))))

    def heal(self) -> None:
        self._faults = []

    @contextmanager
    def hold(self, at: int = 1) -> Iterator[None]:
        """Have the at-th change from now on wait until the end of the block."""
        self._entered.clear()
        self._released.clear()
        self._hold = sum(name in CHANGES for name in self.made) + at
        try:
            yield
        finally:
            self._hold = None
            self._released.set()

    def wait_until_held(self) -> bool:
        return self._entered.wait(20)

    def let_go(self) -> None:
        self._released.set()

    def __call__(self, name: str) -> None:
        with self._mutex:
            self.made.append(name)
            count = self._counts[name] = self._counts.get(name, 0) + 1
            change = sum(made in CHANGES for made in self.made) if name in CHANGES else -1
        if self._hold is not None and change == self._hold:
            self._entered.set()
            assert self._released.wait(20), "nobody let the disk go on"
        for of, which, error in self._faults:
            if (of, which) in ((name, count), ("", change)):
                raise error


class WatchedDisk(MemoryDisk):
    """A disk in memory whose calls go through `Calls`."""

    calls: Calls

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        super().__init__(files)
        self.calls = Calls()


class WatchedRealDisk(Disk):
    """The real disk, whose calls go through `Calls`."""

    calls: Calls

    def __init__(self) -> None:
        self.calls = Calls()


def _watched(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: WatchedDisk | WatchedRealDisk, *args: Any, **kwargs: Any) -> Any:
        if hasattr(self, "calls"):
            self.calls(name)
            if name == "write_log" and self.calls.append_bytes_max is not None:
                args = (args[0], args[1][: self.calls.append_bytes_max], args[2])
        return original(self, *args, **kwargs)

    return call


for _name in CALLS:
    setattr(WatchedDisk, _name, _watched(_name, getattr(MemoryDisk, _name)))
    setattr(WatchedRealDisk, _name, _watched(_name, getattr(Disk, _name)))
