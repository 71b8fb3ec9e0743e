"""What an examination comes to: the report on a store. Synchronous."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from aiostore.engines.file.disk import Disk
from aiostore.engines.file.examination import Examination, Progress, examine, no_progress
from aiostore.engines.file.findings import Finding, Severity
from aiostore.engines.file.format import LOCK_NAME
from aiostore.engines.file.lock import holder_of


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a store, as of when it was examined."""

    path: str
    whole: bool
    """Every event that was acknowledged is there and as it must be."""
    store_id: str | None
    format: int | None
    created: str | None
    writer_pid: int | None
    """The process that was writing meanwhile, 0 if it is not known which; None if there was none."""
    events: int
    streams: int
    segments: int
    indexes: int
    bytes: int
    """Of the log and its indexes: so much was read."""
    head_event_id: int
    """The last event that was looked at."""
    durable_event_id: int
    """The last event that is known to be durable; what is behind it may be an append that was not acknowledged."""
    first_timestamp: str | None
    last_timestamp: str | None
    findings: Sequence[Finding]
    findings_left_out: int


def verify(disk: Disk, directory: str, *, progress: Progress = no_progress) -> Report:
    """Read every byte of the store and report on it; nothing is changed, and a writer may be at work meanwhile.

    Checked are the manifest, the head, each line of the log (its checksum and what it must be, commits that are whole,
    versions that go up by one in each stream, timestamps that do not go back), each block of the indexes and that they
    say what the log says, and ``state.db`` with the positions saved in it. Memory is bounded, whatever the log's size.

    Raises `EngineUnavailable` (there is no store), `EngineUnsupported` (of a format that this version does not know),
    and `OSError`.
    """
    found = examine(disk, directory, progress=progress)
    return report_of(disk, found)


def report_of(disk: Disk, found: Examination) -> Report:
    """The report of what was found."""
    log, result, manifest = found.log, found.survey, found.manifest
    findings = found.findings
    lock = f"{found.directory}/{LOCK_NAME}"
    return Report(
        path=found.directory,
        whole=not findings.has(Severity.DAMAGE),
        store_id=manifest.store_id if manifest is not None and not found.manifest_damage else None,
        format=manifest.min_writer if manifest is not None else None,
        created=manifest.created if manifest is not None else None,
        writer_pid=holder_of(disk, lock) if found.watching else None,
        events=log.events_count if log else 0,
        streams=log.of_streams.streams_count if log else 0,
        segments=len(log.segments) if log else 0,
        indexes=found.runs,
        bytes=found.bytes,
        head_event_id=log.extents[-1].last_event_id if log and log.extents else 0,
        durable_event_id=result.durable if result else 0,
        first_timestamp=(log.first_timestamp or None) if log else None,
        last_timestamp=log.last_timestamp if log and log.events_count else None,
        findings=findings.kept,
        findings_left_out=sum(findings.counts.values()) - len(findings.kept),
    )
