"""What the kernel tells of a directory, on Linux: a part of the outside, as `disk`."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import NamedTuple


class Seen(NamedTuple):
    """What a `Watch` has to tell since it was last asked."""

    written: bool
    """Whether the file was written."""
    names: Collection[str]
    """What came to be in the directory, or is not there any more."""
    gone: bool
    """Whether the directory is not there any more: nothing more is told."""
    lost: bool
    """Whether there was more than the system remembers."""


class Watch:
    """Tells of writes to a file, and of what comes and goes in its directory, by inotify.

    Nothing here blocks, but `renew` may. It is closed with `close`, or when nothing refers to it any more.
    """

    def __init__(self, directory: str, path: str) -> None:
        from asyncinotify import Inotify, Mask

        self._path = path
        self._inotify = Inotify(sync_timeout=0)
        try:
            names = Mask.CREATE | Mask.MOVED_TO | Mask.DELETE | Mask.MOVED_FROM
            self._inotify.add_watch(directory, names | Mask.DELETE_SELF | Mask.MOVE_SELF)
            self.renew()
        except BaseException:
            self.close()
            raise

    def renew(self) -> None:
        """Watch the file that has the name now; there may be none."""
        from asyncinotify import Mask

        with contextlib.suppress(FileNotFoundError):
            self._inotify.add_watch(self._path, Mask.MODIFY)

    def fileno(self) -> int:
        """The descriptor that can be read when there is something to tell."""
        return self._inotify.fd

    def take(self) -> Seen:
        """What there is to tell, once."""
        from asyncinotify import Mask

        written = gone = lost = False
        names: set[str] = set()
        for event in self._inotify:
            written |= Mask.MODIFY in event.mask
            gone |= bool(event.mask & (Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.UNMOUNT))
            lost |= Mask.Q_OVERFLOW in event.mask
            if event.name is not None:
                names.add(str(event.name))
        return Seen(written, names, gone, lost)

    def close(self) -> None:
        """Close it, where no loop waits for the descriptor any more."""
        self._inotify.close()
