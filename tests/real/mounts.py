"""File systems of a campaign's own: small ones in memory, and images whose power can be cut."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

_SYS_ADMIN = 21  # CAP_SYS_ADMIN
_NEW_MOUNTS = 0x20000  # CLONE_NEWNS
_SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN, which is EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN, too


class Cut(IntEnum):
    """How the file system stops, by the numbers of the call. What is in memory only is gone in either way."""

    JOURNAL_WRITTEN = 1
    AT_ONCE = 2


@dataclass(frozen=True)
class FileSystem:
    """A kind of file system that is tried."""

    name: str
    make: Sequence[str]
    options: str
    image_bytes: int

    @property
    def missing(self) -> str | None:
        """The tool that it needs and that is not here."""
        return None if shutil.which(self.make[0]) else self.make[0]


_EXT4 = ("mkfs.ext4", "-q", "-F", "-J", "size=4")
FILE_SYSTEMS = (
    FileSystem("ext4", _EXT4, "loop", 24 << 20),
    FileSystem("ext4", _EXT4, "loop,data=writeback", 24 << 20),
    FileSystem("xfs", ("mkfs.xfs", "-q", "-f"), "loop", 300 << 20),
)


def why_not(*, loops: bool) -> str | None:
    """Why no file system can be mounted here, if it can't; ``loops``: images as well."""
    if sys.platform != "linux":
        return "mounts are made on Linux only"
    if not _may_mount():
        return "only root may mount, and in a container only if it is given that right"
    if not shutil.which("mount") or (loops and not Path("/dev/loop-control").exists()):
        return "there are no loop devices here"
    return None


def _may_mount() -> bool:
    status = Path("/proc/self/status").read_text()
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> _SYS_ADMIN & 1)


def leave_the_others_mounts() -> None:
    """From here on, what this process mounts is seen by it and its children only, and ends with the last of them."""
    if ctypes.CDLL(None, use_errno=True).unshare(_NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "a name space of mounts cannot be made")
    _run("mount", "--make-rprivate", "/")


@contextmanager
def mounted(kind: str, options: str, source: str, place: Path) -> Iterator[Path]:
    """The file system, mounted in the block; its loop device goes when it is unmounted."""
    place.mkdir(exist_ok=True)
    _run("mount", "-t", kind, "-o", options, source, str(place))
    try:
        yield place
    finally:
        _run("umount", str(place))


@contextmanager
def in_memory(place: Path, size_bytes: int) -> Iterator[Path]:
    """A file system in memory, of that size."""
    with mounted("tmpfs", f"size={size_bytes}", "tmpfs", place):
        yield place


def make_image(system: FileSystem, path: Path) -> None:
    """Make an empty file system in a file."""
    with path.open("wb") as image:
        image.truncate(system.image_bytes)
    _run(*system.make, str(path))


def cut_power(place: Path, cut: Cut) -> None:
    """Stop the mounted file system, as `xfs_io -x -c shutdown` does: nothing more comes to its device."""
    directory = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(directory, _SHUTDOWN, struct.pack("I", cut))
    finally:
        os.close(directory)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
