"""The manifest: the file that makes a directory a store, and making that directory."""

from __future__ import annotations

from collections.abc import Sequence

from aiostore.engines.file.disk import Disk
from aiostore.engines.file.format import (
    FORMAT,
    LOCK_NAME,
    MANIFEST_NAME,
    Damaged,
    Manifest,
    decode_manifest,
    encode_manifest,
    segment_first,
)
from aiostore.errors import EngineUnsupported, StoreCorrupt

MANIFEST_BYTES_MAX = 65536
_TEMPORARY = MANIFEST_NAME + ".tmp"
_LEFT_BY_CREATION = frozenset({LOCK_NAME, _TEMPORARY, "lost+found"})


def read_manifest(disk: Disk, directory: str) -> Manifest:
    """The manifest of the directory, or `StoreCorrupt`."""
    path = f"{directory}/{MANIFEST_NAME}"
    file = disk.open_read(path)
    try:
        data = disk.read(file, MANIFEST_BYTES_MAX, 0)
    finally:
        disk.close(file)
    try:
        manifest = decode_manifest(data)
    except Damaged as damaged:
        raise StoreCorrupt(path, 0, str(damaged)) from damaged
    return manifest


def check_format(manifest: Manifest, directory: str, *, writing: bool) -> None:
    """Raise `EngineUnsupported` if this code is too old for the store."""
    if manifest.min_reader > FORMAT:
        raise EngineUnsupported(
            f"{directory} needs a reader of format {manifest.min_reader}; this version reads format {FORMAT}: "
            "update aiostore"
        )
    if writing and manifest.min_writer > FORMAT:
        raise EngineUnsupported(
            f"{directory} needs a writer of format {manifest.min_writer}; this version writes format {FORMAT}: "
            "update aiostore, or open it with mode='r'"
        )


def has_store(names: Sequence[str], directory: str) -> bool:
    """Whether the directory is a store; False if one can be made in it.

    A directory with other files is `EngineUnsupported`, a store without its manifest `StoreCorrupt`.
    """
    if MANIFEST_NAME in names:
        return True
    if any(segment_first(name) for name in names):
        raise StoreCorrupt(f"{directory}/{MANIFEST_NAME}", 0, "there are segments, but the manifest is missing")
    foreign = [name for name in names if name not in _LEFT_BY_CREATION and not name.startswith(".")]
    if foreign:
        raise EngineUnsupported(
            f"{directory} has no {MANIFEST_NAME} but other files ({', '.join(foreign[:3])}…): not a store; "
            "name a new or an empty directory"
        )
    return False


def make_directories(disk: Disk, directory: str) -> None:
    """Make the directory, and those above it that are missing, durably."""
    missing = []
    path = directory
    while not disk.exists(path):
        missing.append(path)
        path = path.rpartition("/")[0] or "/"
    for made in reversed(missing):
        disk.make_directory(made)
        disk.sync_directory(made.rpartition("/")[0] or "/")


def create_manifest(disk: Disk, directory: str, store_id: str, created: str) -> Manifest:
    """Write the manifest of a new store, durably and at once: a crash leaves it whole or not there."""
    manifest = Manifest(FORMAT, FORMAT, store_id, created, first_segment=1)
    write_manifest(disk, directory, manifest)
    # A crash may have come between making the directory and syncing the one above.
    disk.sync_directory(directory.rpartition("/")[0] or "/")
    return manifest


def write_manifest(disk: Disk, directory: str, manifest: Manifest) -> None:
    """Write it in the place of what is there, durably and at once: a crash leaves the one or the other."""
    temporary = f"{directory}/{_TEMPORARY}"
    file = disk.open_write(temporary)
    try:
        disk.truncate(file, 0)
        disk.write_at(file, encode_manifest(manifest), 0)
        disk.sync(file)
    finally:
        disk.close(file)
    disk.replace(temporary, f"{directory}/{MANIFEST_NAME}")
    disk.sync_directory(directory)
