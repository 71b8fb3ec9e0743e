"""Blocks: the pieces that runs are read in, decoded, and the bounded memory that all runs share for them."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable
from itertools import count
from typing import Final, Literal, Protocol, TypeAlias
from weakref import WeakSet

from aiostore.engines.file.disk import Disk, WouldBlock
from aiostore.limits import MIB

BLOCK_BYTES: Final = 4096

BLOCK_MEMORY_BYTES: Final = 4608
"""What a decoded block takes: the array with its spare room, its number, and its place in a dict."""

CACHE_BYTES_MAX: Final = 16 * MIB

Typecode: TypeAlias = Literal["I", "Q"]
"""Of arrays of u32 and u64."""

_SWAPPED: Final = sys.byteorder == "big"


def decode_numbers(typecode: Typecode, data: bytes | memoryview) -> array[int]:
    """The numbers that stand in the bytes, little-endian."""
    numbers = array(typecode)
    numbers.frombytes(data)
    if _SWAPPED:
        numbers.byteswap()
    return numbers


def encode_numbers(numbers: array[int]) -> bytes:
    """The bytes of the numbers, little-endian; the array may be changed."""
    if _SWAPPED:
        numbers.byteswap()
    return numbers.tobytes()


class Closable(Protocol):
    """A run, as it is seen here."""

    def close(self) -> None:
        """Close its file."""
        ...


class Blocks:
    """The decoded blocks that were used lately, of all runs of a store, in at most ``bytes_max`` of memory.

    Any thread may use it. ``may_block`` says whether the calling thread may wait for a device; only then does it.
    There are two generations: what is used is in the new one, and when that is full the old one is dropped. No lock
    is needed, for each step is one operation on a dict; when threads meet, at worst a block is read once more.
    """

    def __init__(self, bytes_max: int = CACHE_BYTES_MAX, may_block: Callable[[], bool] = lambda: True) -> None:
        self.may_block = may_block
        self.aside: Callable[[Callable[[], object]], object] = lambda work: work()
        """Has done, on another thread where there is one, what may take long and nobody waits for."""
        self._generation_max: Final = max(1, bytes_max // (2 * BLOCK_MEMORY_BYTES))
        self.runs: WeakSet[Closable] = WeakSet()
        """Those that are open: also one that was replaced, where an error that was kept still refers to it."""
        self.recent: dict[int, array[int]] = {}
        """The new generation: a run looks here first."""
        self._old: dict[int, array[int]] = {}
        self._numbers = count()

    def __len__(self) -> int:
        """How many blocks are held."""
        return len(self.recent) + len(self._old)

    def close_runs(self) -> None:
        """Close all runs, after the last read has ended."""
        for run in [*self.runs]:
            run.close()

    def number(self) -> int:
        """A number for a run that opens: its block ``i`` is block ``number + i`` here."""
        return next(self._numbers) << 32

    def holds(self, number: int) -> bool:
        """Whether it has the block of this number."""
        return number in self.recent or number in self._old

    def promoted(self, number: int) -> array[int] | None:
        """The block of this number, if it is held and not a recent one; from now on it is."""
        block = self._old.get(number)
        if block is not None:
            self.put(number, block)
        return block

    def put(self, number: int, block: array[int]) -> None:
        """Hold the block, which nobody may change from now on."""
        recent = self.recent
        if len(recent) >= self._generation_max:
            self._old = recent
            self.recent = recent = {}
        recent[number] = block

    def read(self, disk: Disk, file: int, offset: int) -> bytes:
        """The bytes of a block, fewer at the end of a file; or `WouldBlock`."""
        if self.may_block():
            return disk.read(file, BLOCK_BYTES, offset)
        data = disk.read_nowait(file, BLOCK_BYTES, offset)
        if data is None:
            raise WouldBlock
        return data
