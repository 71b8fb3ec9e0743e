"""Opening a directory, to write or to read. Synchronous; what fails half-way leaves nothing held."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

from aiostore.engine import Head
from aiostore.engines.file.disk import Disk
from aiostore.engines.file.format import HEAD_NAME, LOCK_NAME, MANIFEST_NAME, segment_first
from aiostore.engines.file.head import HeadFile
from aiostore.engines.file.index import Index
from aiostore.engines.file.lock import WriterLock, writer_lives
from aiostore.engines.file.log import Log
from aiostore.engines.file.manifest import check_format, create_manifest, has_store, make_directories, read_manifest
from aiostore.engines.file.recovery import repair, survey
from aiostore.errors import EngineUnavailable, EngineUnsupported, StoreCorrupt

_log = logging.getLogger("aiostore")

SYSTEMS = ("linux", "darwin")
NETWORK_FILE_SYSTEMS = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "gpfs", "beegfs", "glusterfs", "ncpfs")
)
NETWORK_FUSE = frozenset(
    ("fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse", "fuse.juicefs")
)
DAMAGES_LOGGED_MAX = 10


@dataclass(frozen=True, slots=True)
class Options:
    """How the log is written."""

    synced: bool
    segment_bytes: int


@dataclass(frozen=True, slots=True)
class Writer:
    """A store opened for writing."""

    lock: WriterLock
    index: Index
    log: Log

    def close(self) -> None:
        """Sync what is not and let go of everything, the lock last."""
        try:
            self.log.close()
        finally:
            self.lock.close()

    def abandon(self) -> None:
        """Close this forked child's copies."""
        self.log.abandon()
        self.lock.abandon()


def check_place(disk: Disk, directory: str, *, force_network: bool, system: str = sys.platform) -> None:
    """Raise `EngineUnsupported` where flock or syncs cannot be relied on."""
    if system not in SYSTEMS:
        raise EngineUnsupported(f"the file engine needs Linux or macOS (flock, O_DSYNC), not {system}")
    kind = disk.file_system(directory)
    if kind in NETWORK_FILE_SYSTEMS | NETWORK_FUSE and not force_network:
        raise EngineUnsupported(
            f"{directory} is on a network file system ({kind}), where a lock may not keep other machines out and a "
            "sync may not reach a disk; use a local disk, or force_network=True if yours does both"
        )


def open_to_write(disk: Disk, directory: str, options: Options, going_on: Callable[[], None]) -> Writer:
    """Take the lock, make the store if there is none, recover it and open its end."""
    if disk.exists(directory):
        has_store(disk.names(directory), directory)  # before a lock file is put among what is not ours
    make_directories(disk, directory)
    with ExitStack() as undo:
        lock = WriterLock(disk, f"{directory}/{LOCK_NAME}")
        undo.callback(lock.close)
        now = datetime.now(UTC)
        if has_store(disk.names(directory), directory):
            manifest = read_manifest(disk, directory)
        else:
            manifest = create_manifest(disk, directory, uuid4().hex, now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))
        check_format(manifest, directory, writing=True)
        found = survey(disk, directory, manifest, going_on=going_on)
        if found.damages:
            raise found.damages[0].error()
        if found.index.segments:
            repair(disk, directory, found, now.strftime("%Y%m%dT%H%M%S.%fZ"))
        head = HeadFile(disk, f"{directory}/{HEAD_NAME}", manifest.store_id)
        undo.callback(head.close)
        head.advance(found.durable)
        log = Log(
            disk,
            directory,
            manifest.store_id,
            found.index,
            head,
            durable=found.durable,
            synced=options.synced,
            segment_bytes=options.segment_bytes,
        )
        undo.pop_all()
    return Writer(lock, found.index, log)


def open_to_read(disk: Disk, directory: str, going_on: Callable[[], None]) -> Index:
    """What can be read; nothing is written, and nothing held. Damage is logged, and reads keep clear of it."""
    names = disk.names(directory) if disk.exists(directory) else []
    if MANIFEST_NAME not in names:
        if any(segment_first(name) for name in names):
            raise StoreCorrupt(f"{directory}/{MANIFEST_NAME}", 0, "there are segments, but the manifest is missing")
        raise EngineUnavailable(f"there is no store in {directory}: it has no {MANIFEST_NAME}")
    manifest = read_manifest(disk, directory)
    check_format(manifest, directory, writing=False)
    lock = f"{directory}/{LOCK_NAME}"
    watching = writer_lives(disk, lock)
    found = survey(disk, directory, manifest, watching=watching, tolerant=True, going_on=going_on)
    if not watching and writer_lives(disk, lock):  # it may have begun meanwhile: what it has not synced is not read
        found = survey(disk, directory, manifest, watching=True, tolerant=True, going_on=going_on)
    index = found.index
    for damage in found.damages[:DAMAGES_LOGGED_MAX]:
        _log.warning("%s", damage.error())
    if len(found.damages) > DAMAGES_LOGGED_MAX:
        _log.warning("%s: %d more places are damaged", directory, len(found.damages) - DAMAGES_LOGGED_MAX)
    index.damages = sorted((d for d in found.damages if d.last >= d.first), key=lambda d: d.first)
    last = max([index.head.event_id, *(damage.last for damage in index.damages)])
    index.head = Head(last, index.head.timestamp)
    return index
