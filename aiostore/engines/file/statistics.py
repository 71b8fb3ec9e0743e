"""What of a store can be told from its files, without reading the log. Synchronous; it changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from aiostore.engines.file.disk import Disk
from aiostore.engines.file.examination import STATE_JOURNAL, size_of, store_names
from aiostore.engines.file.format import HEAD_NAME, LOCK_NAME, segment_first
from aiostore.engines.file.head import read_head
from aiostore.engines.file.lock import holder_of, writer_lives
from aiostore.engines.file.manifest import check_format, read_manifest
from aiostore.engines.file.recovery import is_torn
from aiostore.engines.file.run_format import run_first
from aiostore.engines.file.state import STATE_NAME

KINDS: Sequence[str] = ("segments", "indexes", "state", "torn", "other")


class FileStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """The files of a store, as of now."""

    store_id: str
    format: int
    created: str
    writer_pid: int | None
    """The process that has it open for writing, 0 if it is not known which; None if there is none."""
    durable_event_id: int
    """The last event that the head file says is durable; there may be more, it is only written unsynced."""
    segments: int
    indexes: int
    torn_files: int
    """Tails that recoveries set aside."""
    bytes: Mapping[str, int]
    """By `KINDS`."""
    file_system: str
    """The type, empty where that cannot be told."""


def file_statistics(disk: Disk, directory: str) -> FileStatistics:
    """The statistics of the store.

    Raises `EngineUnavailable` (there is no store), `EngineUnsupported`, `StoreCorrupt` (its manifest) and `OSError`.
    """
    names = store_names(disk, directory)
    manifest = read_manifest(disk, directory)
    check_format(manifest, directory, writing=False)
    sizes: dict[str, int] = dict.fromkeys(KINDS, 0)
    counts: dict[str, int] = dict.fromkeys(KINDS, 0)
    for name in names:
        kind = _kind(name)
        sizes[kind] += size_of(disk, f"{directory}/{name}")
        counts[kind] += 1
    lock = f"{directory}/{LOCK_NAME}"
    return FileStatistics(
        store_id=manifest.store_id,
        format=manifest.min_writer,
        created=manifest.created,
        writer_pid=holder_of(disk, lock) if writer_lives(disk, lock) else None,
        durable_event_id=read_head(disk, f"{directory}/{HEAD_NAME}", manifest.store_id),
        segments=counts["segments"],
        indexes=counts["indexes"],
        torn_files=counts["torn"],
        bytes=sizes,
        file_system=disk.file_system(directory),
    )


def _kind(name: str) -> str:
    if segment_first(name):
        return "segments"
    if run_first(name):
        return "indexes"
    if name in (STATE_NAME, STATE_JOURNAL):
        return "state"
    return "torn" if is_torn(name) else "other"
