"""The machine that is measured, and its own limits: a write and a sync without any store around them."""

from __future__ import annotations

import os
import platform
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RECORD = b"x" * 299 + b"\n"
"""About what one event takes in the log."""


@contextmanager
def open_file(path: Path, flags: int = 0) -> Iterator[int]:
    """A new file to append to."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | flags, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write_and_fdatasync(descriptor: int) -> None:
    """What a durable append cannot go below with two calls."""
    os.write(descriptor, RECORD)
    getattr(os, "fdatasync", os.fsync)(descriptor)


def write(descriptor: int) -> None:
    """What a durable append cannot go below with one call, on a descriptor opened with O_DSYNC."""
    os.write(descriptor, RECORD)


def describe(directory: Path) -> dict[str, str]:
    """The machine in words."""
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.release()}",
        "file system": _file_system(directory),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "sqlite": sqlite3.sqlite_version,
    }


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _file_system(directory: Path) -> str:
    """The type of the file system that the directory is on, where the system says so."""
    if sys.platform != "linux":
        return "unknown"
    place = str(directory.resolve())
    best = ("", "unknown")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount_point, kind, *_ = line.split()
        inside = place == mount_point or place.startswith(mount_point.rstrip("/") + "/")
        if inside and len(mount_point) >= len(best[0]):
            best = (mount_point, kind)
    return best[1]
