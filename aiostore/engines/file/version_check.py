"""That the versions of each stream go up by one, in bounded memory. Synchronous."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from aiostore.engines.file.format import Line
from aiostore.limits import MIB

VERSIONS_BYTES_MAX: Final = 64 * MIB
"""About so much memory holds the last version of streams: about half a million of them."""

STREAM_BYTES: Final = 120
"""What the entry of a stream takes, besides its name."""


class VersionCheck:
    """Goes over the log once, or several times where it has more streams than memory is allowed for.

    It begins with all streams. When they become too many, the half of them is dropped, by a bit of the hash of the
    name, and noted for a pass of its own. So each pass is exact for its share of the streams, and memory is bounded;
    a log of a million streams takes two or three passes.
    """

    def __init__(self, bytes_max: int = VERSIONS_BYTES_MAX) -> None:
        self.streams_count = 0
        """How many streams there are, after the last pass."""
        self._bytes_max = bytes_max
        self._bytes = 0
        self._todo = [(0, 0)]
        self._mask = self._share = 0
        self._last: dict[str, int] = {}
        self._lost = False

    def begin(self) -> bool:
        """Begin the next pass; False if all streams were looked at."""
        self.streams_count += len(self._last)
        self._last = {}
        self._bytes = 0
        self._lost = False
        if not self._todo:
            return False
        self._mask, self._share = self._todo.pop()
        return True

    def lose(self) -> None:
        """Events are missing here: from now on a stream may have gone on meanwhile."""
        self._lost = True

    def take(self, lines: Sequence[Line], wrong: Callable[[int, str], None]) -> None:
        """Look at the next lines; ``wrong`` is called with the place of one among them, and why."""
        last, mask, share = self._last, self._mask, self._share
        for place, line in enumerate(lines):
            stream_id = line.stream_id
            if mask and hash(stream_id) & mask != share:
                continue
            previous = last.get(stream_id)
            if previous is None:
                previous = 0
                self._bytes += STREAM_BYTES + len(stream_id)
            version = line.version
            if version != previous + 1 and not (self._lost and version > previous):
                wrong(place, f"version {version} of stream {stream_id!r} stands where version {previous + 1} must")
            last[stream_id] = version
        while self._bytes > self._bytes_max and len(last) > 1:
            self._halve()

    def _halve(self) -> None:
        self._todo.append((self._mask * 2 + 1, self._share | (self._mask + 1)))
        self._mask = self._mask * 2 + 1
        dropped = [stream_id for stream_id in self._last if hash(stream_id) & self._mask != self._share]
        for stream_id in dropped:
            del self._last[stream_id]
        self._bytes -= sum(STREAM_BYTES + len(stream_id) for stream_id in dropped)
