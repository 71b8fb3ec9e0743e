"""What a process holds: files, tasks, threads, memory; and whether that stays so."""

from __future__ import annotations

import asyncio
import os
import resource
import statistics
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from aiostore.engines.file.segment_files import OPEN_FILES_MAX

MIB = 1 << 20


class Gauges(NamedTuple):
    """At one moment."""

    segments: int
    """Of the files that are open, those of logs: so many of a store are kept open, and a long log has more."""
    files: int
    """All others; where the system does not say which they are, all."""
    tasks: int
    threads: int
    memory_bytes: int
    """Resident; where the system does not say that, the most there ever was."""

    @classmethod
    def read(cls) -> Gauges:
        """Now; called in the loop."""
        linux = sys.platform == "linux"
        memory = (
            int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
            if linux
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        )
        names = [_name(number) for number in os.listdir("/proc/self/fd" if linux else "/dev/fd")]
        segments = sum(name.endswith(".jsonl") for name in names)
        return cls(segments, len(names) - segments, len(asyncio.all_tasks()), threading.active_count(), memory)

    def __str__(self) -> str:
        held = f"{self.files} files and {self.segments} segments, {self.tasks} tasks, {self.threads} threads"
        return f"{held}, {self.memory_bytes / MIB:,.0f} MiB resident"


def _name(file: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{file}")
    except OSError:  # it was closed, or the system does not say
        return ""


WARM_UP = 0.4
"""Of the samples, the first part: caches fill, threads are started."""
SEGMENTS_MAX = 2 * (OPEN_FILES_MAX + 1)
"""Of two stores."""
FILES_MORE = 16 if sys.platform == "linux" else 16 + SEGMENTS_MAX
TASKS_MORE, THREADS_MORE = 4, 4
"""So many more than at most in the warm-up are taken for flat: a log that grows has a few more indexes open."""
MEMORY_MORE, MEMORY_MORE_BYTES = 1.10, 16 * MIB
"""So much more memory, as a factor and besides: an allocator keeps what it had once."""


def grown(samples: Sequence[Gauges]) -> list[str]:
    """What was not flat, after the warm-up: by the median of the last third, so that one moment says nothing."""
    warm = samples[: max(1, int(len(samples) * WARM_UP))]
    last = samples[-max(1, len(samples) // 3) :]
    limits = Gauges(
        SEGMENTS_MAX,
        max(sample.files for sample in warm) + FILES_MORE,
        max(sample.tasks for sample in warm) + TASKS_MORE,
        max(sample.threads for sample in warm) + THREADS_MORE,
        int(max(sample.memory_bytes for sample in warm) * MEMORY_MORE) + MEMORY_MORE_BYTES,
    )
    found = [statistics.median(getattr(sample, name) for sample in last) for name in Gauges._fields]
    return [
        f"{name}: {value:,.0f}, and {limit:,} would be flat"
        for name, value, limit in zip(Gauges._fields, found, limits, strict=True)
        if value > limit
    ]
