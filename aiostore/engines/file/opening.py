"""Opening a directory, to write or to read. Synchronous; what fails half-way leaves nothing held."""

from __future__ import annotations

import errno
import functools
import logging
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

from aiostore.engine import Head
from aiostore.engines.file.blocks import Blocks
from aiostore.engines.file.disk import Disk
from aiostore.engines.file.format import HEAD_NAME, LOCK_NAME, MANIFEST_NAME, segment_first
from aiostore.engines.file.head import HeadFile
from aiostore.engines.file.index import PART_BYTES_MIN, Index, Part, runs_of
from aiostore.engines.file.lock import WriterLock, writer_lives
from aiostore.engines.file.log import Log
from aiostore.engines.file.manifest import check_format, create_manifest, has_store, make_directories, read_manifest
from aiostore.engines.file.recovery import is_copy, repair, survey
from aiostore.engines.file.run import Run, RunDamaged
from aiostore.engines.file.sealed import merge, open_runs, seal, too_many
from aiostore.errors import EngineUnavailable, EngineUnsupported, StoreCorrupt

_log = logging.getLogger("aiostore")

SYSTEMS = ("linux", "darwin")
NETWORK_FILE_SYSTEMS = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "gpfs", "beegfs", "glusterfs", "ncpfs")
)
NETWORK_FUSE = frozenset(
    ("fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse", "fuse.juicefs")
)
NOTHING_TO_SYNC = frozenset({errno.EINVAL, errno.EROFS, errno.ENOTSUP})
"""What a file system says that is only read, where it does not just succeed."""

DAMAGES_LOGGED_MAX = 10


@dataclass(frozen=True, slots=True)
class Options:
    """How the log is written."""

    synced: bool
    segment_bytes: int
    part_bytes_min: int = PART_BYTES_MIN


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
            self.index.close()
            self.lock.close()

    def abandon(self) -> None:
        """Close this forked child's copies."""
        self.log.abandon()
        self.index.close()
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


def open_to_write(
    disk: Disk, directory: str, options: Options, going_on: Callable[[], None], blocks: Blocks | None = None
) -> Writer:
    """Take the lock, make the store if there is none, recover it and its index, and open its end."""
    if blocks is None:  # an empty one is false
        blocks = Blocks()
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
        rebuilt = _Rebuilding(disk, directory, manifest.store_id, blocks, going_on)
        undo.callback(rebuilt.close)
        found = survey(
            disk,
            directory,
            manifest,
            runs=rebuilt.runs,
            going_on=going_on,
            sealed=rebuilt.seal,
            part_bytes_min=options.part_bytes_min,
        )
        if found.damages:
            raise found.damages[0].error()
        if found.index.segments:
            repair(disk, directory, found, now.strftime("%Y%m%dT%H%M%S.%fZ"))
            _remove_copies(disk, directory)
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
        rebuilt.tidy(found.index)
        undo.pop_all()
    return Writer(lock, found.index, log)


def _remove_copies(disk: Disk, directory: str) -> None:
    """Delete what a crash in the midst of recovery left."""
    for name in disk.names(directory):
        if is_copy(name):
            with suppress(OSError):
                disk.remove(f"{directory}/{name}")


PROGRESS_SECONDS = 5.0


class _Rebuilding:
    """The runs that an opening writer finds, and makes anew where they are missing."""

    def __init__(self, disk: Disk, directory: str, store_id: str, blocks: Blocks, going_on: Callable[[], None]) -> None:
        self._disk = disk
        self._directory = directory
        self._store_id = store_id
        self._blocks = blocks
        self._going_on = going_on
        self.runs, self._useless = open_runs(disk, directory, store_id, blocks)
        self._made: set[Run] = set()
        self._said = time.monotonic()
        self._failing = False

    def seal(self, index: Index, part: Part) -> None:
        """Write the index of the part, which takes its place in memory; it stays there where that fails."""
        try:
            run = seal(self._disk, self._directory, self._store_id, part, self._blocks, self._going_on)
            self._take(index, [part], run)
            runs = too_many(index)
            if runs:
                made = merge(self._disk, self._directory, self._store_id, runs, self._blocks, self._going_on)
                self._take(index, runs, made)
        except RunDamaged:
            pass  # it is mended when it is merged beside the open store
        except OSError as error:
            if not self._failing:
                _log.warning("%s: the index on disk cannot be brought up to date now: %s", self._directory, str(error))
            self._failing = True
            return
        now = time.monotonic()
        if now - self._said > PROGRESS_SECONDS:
            self._said = now
            _log.warning("%s: the index is made anew, up to event %d so far", self._directory, part.last_event_id)

    def _take(self, index: Index, old: Sequence[Part | Run], made: Run) -> None:
        self._made.add(made)
        index.exchange(old, [made])
        for source in old:
            if isinstance(source, Run):
                source.close()
                self._made.discard(source)

    def tidy(self, index: Index) -> None:
        """Delete what is of no use."""
        for run in self.runs:
            if run not in index.sources:
                run.close()
                self._useless.append(run.path)
        for path in {*self._useless} - {run.path for run in runs_of(index)}:
            with suppress(OSError):
                self._disk.remove(path)

    def close(self) -> None:
        """Close all runs, where opening failed."""
        for run in (*self.runs, *self._made):
            run.close()


def _synced(disk: Disk, directory: str, names: Sequence[str]) -> bool:
    """Have the newest segment on the device, and read from there; False where that cannot be.

    What a writer that died had not synced may be taken back: by a power loss, or where its sync had failed, by the next
    writer. No reader may have seen it by then.
    """
    segments = [name for name in names if segment_first(name)]
    if not segments:
        return True
    path = f"{directory}/{segments[-1]}"
    try:
        file = disk.open_read(path)
        try:
            try:
                disk.sync(file)
            except OSError as error:
                if error.errno not in NOTHING_TO_SYNC:
                    raise
            disk.drop_cache(file)
        finally:
            disk.close(file)
    except OSError as error:
        _log.warning("%s cannot be synced: only what is known to be durable is read: %s", path, error)
        return False
    return True


def open_to_read(
    disk: Disk,
    directory: str,
    going_on: Callable[[], None],
    blocks: Blocks | None = None,
    part_bytes_min: int = PART_BYTES_MIN,
) -> Index:
    """What can be read; nothing is written, and nothing held. Damage is logged, and reads keep clear of it."""
    names = disk.names(directory) if disk.exists(directory) else []
    if MANIFEST_NAME not in names:
        if any(segment_first(name) for name in names):
            raise StoreCorrupt(f"{directory}/{MANIFEST_NAME}", 0, "there are segments, but the manifest is missing")
        raise EngineUnavailable(f"there is no store in {directory}: it has no {MANIFEST_NAME}")
    manifest = read_manifest(disk, directory)
    check_format(manifest, directory, writing=False)
    lock = f"{directory}/{LOCK_NAME}"
    watching = writer_lives(disk, lock) or not _synced(disk, directory, names)
    runs, _ = open_runs(disk, directory, manifest.store_id, Blocks() if blocks is None else blocks)
    with ExitStack() as undo:
        for run in runs:
            undo.callback(run.close)
        look = functools.partial(
            survey,
            disk,
            directory,
            manifest,
            runs=runs,
            tolerant=True,
            going_on=going_on,
            part_bytes_min=part_bytes_min,
        )
        found = look(watching=watching)
        if not watching and writer_lives(disk, lock):  # it may have begun meanwhile: what is not synced is not read
            found = look(watching=True)
        undo.pop_all()
    index = found.index
    for run in runs:
        if run not in index.sources:
            run.close()
    for damage in found.damages[:DAMAGES_LOGGED_MAX]:
        _log.warning("%s", damage.error())
    if len(found.damages) > DAMAGES_LOGGED_MAX:
        _log.warning("%s: %d more places are damaged", directory, len(found.damages) - DAMAGES_LOGGED_MAX)
    index.damages = sorted((d for d in found.damages if d.last >= d.first), key=lambda d: d.first)
    last = max([index.head.event_id, *(damage.last for damage in index.damages)])
    index.head = Head(last, index.head.timestamp)
    return index
