"""A bounded memory of what was used last, for the loop alone."""

from __future__ import annotations

from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Remembers the last used ``size_max`` to twice as many values.

    Two generations: when the newer one is full it becomes the older one, and what was that is forgotten. Not for
    several threads at once: to bring a value back from the older generation could undo that there is a newer one.
    """

    __slots__ = ("_newer", "_older", "_size_max")

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self._newer: dict[K, V] = {}
        self._older: dict[K, V] = {}

    def __len__(self) -> int:
        return len(self._newer) + len(self._older)

    def get(self, key: K) -> V | None:
        """The value, None if it is not remembered."""
        value = self._newer.get(key)
        if value is None:
            value = self._older.get(key)
            if value is not None:
                self.room()[key] = value
        return value

    def room(self) -> dict[K, V]:
        """The newer generation, to put values into."""
        newer = self._newer
        if len(newer) >= self._size_max:
            self._older = newer
            newer = self._newer = {}
        return newer
