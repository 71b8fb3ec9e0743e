"""Long work in the foreground: a bar on the terminal, and signals that end it at a point where nothing is half done."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from aiostore.cli.console import Interrupted
from aiostore.engines.file.examination import Progress as Told

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def shown(*, in_events: bool = False) -> Iterator[Told]:
    """Gives what work tells its progress to, in bytes or events: shown if stderr is a terminal.

    After a signal it raises `Interrupted`.
    """
    caught: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        caught.append(number)

    bar = _Bar(in_events=in_events) if sys.stderr.isatty() else None

    def tell(done: int, total: int, what: str) -> None:
        if caught:
            raise Interrupted(caught[0])
        if bar is not None:
            bar.tell(done, total, what)

    in_main = threading.current_thread() is threading.main_thread()
    before = [(number, signal.signal(number, note)) for number in SIGNALS] if in_main else []
    try:
        yield tell
    finally:
        for number, handler in before:
            signal.signal(number, handler)
        if bar is not None:
            bar.close()


class _Bar:
    """What is done of what there is, on stderr; gone when the work is."""

    def __init__(self, *, in_events: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn() if in_events else DownloadColumn(binary_units=True),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task: TaskID | None = None
        self._what = ""

    def tell(self, done: int, total: int, what: str) -> None:
        if self._task is None:
            self._progress.start()
        if what != self._what:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = self._progress.add_task(what, total=total or None)
            self._what = what
        assert self._task is not None, "it was just made"
        self._progress.update(self._task, completed=done, total=total or None)

    def close(self) -> None:
        if self._task is not None:
            self._progress.stop()
