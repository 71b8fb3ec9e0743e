"""Examining a directory: every byte of it is read and judged, and nothing is changed. Synchronous.

It judges the log as recovery does (it is the same `survey`), and beside it what recovery takes on trust. Beside a
writer it looks at what is durable, as a reader does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import msgspec

from aiostore.engines.file.blocks import Blocks
from aiostore.engines.file.compaction import choose_runs
from aiostore.engines.file.disk import Disk, OpenFile
from aiostore.engines.file.findings import Finding, Findings, Severity
from aiostore.engines.file.format import (
    HEAD_NAME,
    LOCK_NAME,
    MANIFEST_NAME,
    Damaged,
    Manifest,
    segment_first,
    segment_name,
)
from aiostore.engines.file.head import HEAD_BYTES, decode_slots
from aiostore.engines.file.index import PART_BYTES_MIN, Damage
from aiostore.engines.file.line_walk import LineWalk
from aiostore.engines.file.lock import writer_lives
from aiostore.engines.file.log_check import LogCheck
from aiostore.engines.file.lost_manifest import lost_manifest
from aiostore.engines.file.manifest import check_format, read_manifest
from aiostore.engines.file.patient import PatientDisk, Unreadable
from aiostore.engines.file.recovery import Survey, is_copy, is_torn, survey
from aiostore.engines.file.run import Run
from aiostore.engines.file.run_check import RunCheck
from aiostore.engines.file.run_format import is_temporary, run_first
from aiostore.engines.file.state import STATE_NAME
from aiostore.engines.file.state_check import StateReport, check_state
from aiostore.errors import EngineUnavailable, StoreCorrupt

HEAD_TRIES = 5
"""So often the head is read beside a writer that may be writing it just then."""

STATE_JOURNAL = f"{STATE_NAME}-journal"
"""What SQLite has to undo of a save that was cut off."""

_PARTS = frozenset({MANIFEST_NAME, HEAD_NAME, LOCK_NAME, STATE_NAME, STATE_JOURNAL, "lost+found"})

Progress = Callable[[int, int, str], None]
"""Told how many bytes were gone over, of how many, and what is being done. It may raise, to end the work."""


def no_progress(_done: int, _total: int, _what: str) -> None:
    """Tell nobody."""


@dataclass(slots=True)
class Examination:
    """All that was found. ``manifest`` is None where it is lost, and cannot be known."""

    directory: str
    names: Sequence[str]
    watching: bool
    """A writer was at work: only what is durable was judged."""
    manifest: Manifest | None = None
    manifest_damage: str = ""
    """Why the manifest cannot be read; ``manifest`` is then what it must have said."""
    findings: Findings = field(default_factory=Findings)
    survey: Survey | None = None
    log: LogCheck | None = None
    state: StateReport | None = None
    bad_files: list[str] = field(default_factory=list)
    """Paths of derived files that are damaged."""
    unreadable: Sequence[Unreadable] = ()
    bytes: int = 0
    """Of the log and its index."""
    runs: int = 0


def examine(disk: Disk, directory: str, *, exclusive: bool = False, progress: Progress = no_progress) -> Examination:
    """Examine the store. ``exclusive`` says that the caller has the writer's lock.

    Raises `EngineUnavailable` (there is no store), `EngineUnsupported` (of a format that this version does not know),
    and `OSError`.
    """
    watching = not exclusive and _writer_lives(disk, directory)
    found = _examined(disk, directory, watching, exclusive, progress)
    if not watching and not exclusive and _writer_lives(disk, directory):  # it began meanwhile
        found = _examined(disk, directory, True, False, progress)
    return found


def _writer_lives(disk: Disk, directory: str) -> bool:
    return writer_lives(disk, f"{directory}/{LOCK_NAME}")


def _examined(disk: Disk, directory: str, watching: bool, exclusive: bool, progress: Progress) -> Examination:
    names = store_names(disk, directory)
    found = Examination(directory, names, watching)
    try:
        found.manifest = read_manifest(disk, directory)
    except FileNotFoundError:
        found.manifest_damage = "it is missing, but there are segments"
    except StoreCorrupt as corrupt:
        found.manifest_damage = corrupt.reason
    if found.manifest is None:
        found.manifest = lost_manifest(disk, directory, names)
        known = "what it said can be known" if found.manifest else "too little is left to know the store's id"
        found.findings.note(MANIFEST_NAME, f"{found.manifest_damage}; {known}", Severity.DAMAGE)
        if found.manifest is None:
            return found
    check_format(found.manifest, directory, writing=exclusive)
    with ExitStack() as closing:
        _examine_files(disk, found, found.manifest, closing, progress)
    return found


def store_names(disk: Disk, directory: str) -> list[str]:
    """The names in the directory of a store; `EngineUnavailable` if it is none."""
    try:
        names = disk.names(directory)
    except FileNotFoundError:
        raise EngineUnavailable(f"there is no {directory}") from None
    except NotADirectoryError:
        raise EngineUnavailable(f"{directory} is not a directory; a store is one") from None
    if MANIFEST_NAME not in names and not any(segment_first(name) for name in names):
        raise EngineUnavailable(f"there is no store in {directory}: it has no {MANIFEST_NAME} and no segments")
    return names


def _examine_files(disk: Disk, found: Examination, manifest: Manifest, closing: ExitStack, progress: Progress) -> None:
    # In this order: what is saved is bound to what is durable, and runs are of what is sealed, before it is looked at.
    state_path = f"{found.directory}/{STATE_NAME}"
    if disk.exists(state_path):
        found.state = check_state(state_path)
    checks = _open_runs(disk, found, manifest, closing)
    _examine_head(disk, found, manifest)
    _examine_log(disk, found, manifest, checks, progress)
    _examine_state(found)
    _examine_names(disk, found)


# --- runs ---


def _open_runs(disk: Disk, found: Examination, manifest: Manifest, closing: ExitStack) -> list[RunCheck]:
    """The runs in use, opened; what is wrong with others is told."""
    blocks = Blocks()
    closing.callback(blocks.close_runs)
    runs: list[Run] = []
    for name in [name for name in disk.names(found.directory) if run_first(name)]:
        path = f"{found.directory}/{name}"
        try:
            runs.append(Run.open(disk, path, manifest.store_id, blocks))
        except FileNotFoundError:
            pass  # merged meanwhile; what it says stands in another one now
        except Damaged as damaged:
            _bad_run(found, path, str(damaged))
    used, superfluous = choose_runs(runs)
    for run in superfluous:
        reason = "superfluous beside the index that it was merged into; the next to open the store deletes it"
        if not found.watching:
            found.findings.note(run.path.rpartition("/")[2], reason)
    found.runs = len(used)
    found.bytes += sum(run.size for run in used)
    return [RunCheck(run, manifest.store_id) for run in used]


def _bad_run(found: Examination, path: str, reason: str) -> None:
    found.bad_files.append(path)
    found.findings.note(path.rpartition("/")[2], f"{reason}; an index is made anew from the log", Severity.DERIVED)


# --- the log ---


def _examine_log(
    disk: Disk, found: Examination, manifest: Manifest, checks: Sequence[RunCheck], progress: Progress
) -> None:
    patient = PatientDisk(disk)
    total = found.bytes + sum(
        size_of(patient, f"{found.directory}/{name}") for name in found.names if segment_first(name)
    )
    found.bytes = total

    meter = _Meter(total, progress)
    log = found.log = LogCheck(
        patient,
        manifest.store_id,
        manifest.first_segment,
        checks,
        {saved.position for saved in found.state.saved} if found.state else (),
        meter.advanced,
        from_device=not found.watching,
    )
    result = found.survey = _walk(patient, found, manifest, log, meter)
    log.finish()
    meter.what = "reading the log again, for the versions of more streams"
    while log.of_streams.begin():
        again = LineWalk(
            manifest.store_id,
            manifest.first_segment,
            log.of_streams,
            log.breaks,
            meter.advanced,
        )
        _walk(patient, found, manifest, again, meter)
    found.unreadable = list(patient.unreadable.values())
    _tell_damage(patient, found, result, log)
    _tell_runs(found, result, log, checks)
    _tell_tail(found, result, log)


def _walk(disk: Disk, found: Examination, manifest: Manifest, walk: LineWalk, meter: _Meter) -> Survey:
    return survey(
        disk, found.directory, manifest, watching=found.watching, tolerant=True, going_on=meter.going_on, index=walk
    )


class _Meter:
    """How far it is, told also where nothing is got on with."""

    def __init__(self, total: int, progress: Progress) -> None:
        self.what = "reading the log"
        self._total = total
        self._progress = progress
        self._done = 0

    def advanced(self, done: int) -> None:
        self._done = min(done, self._total)
        self.going_on()

    def going_on(self) -> None:
        self._progress(self._done, self._total, self.what)


def size_of(disk: Disk, path: str) -> int:
    """The size of a file; 0 if it is not there."""
    try:
        opened = OpenFile(disk, path)
    except FileNotFoundError:
        return 0
    try:
        return disk.size(opened.file)
    finally:
        opened.close()


def _tell_damage(disk: Disk, found: Examination, result: Survey, log: LogCheck) -> None:
    for damage in result.damages:
        if found.watching and damage.first > result.durable:
            continue  # it is being written
        finding = _damage_finding(damage)
        if damage.last >= damage.first and damage.offset and damage.offset == size_of(disk, damage.path):
            missing = f"{finding.reason}, or {segment_name(damage.first)} is missing"
            finding = msgspec.structs.replace(finding, reason=missing)
        found.findings.add(finding)
    damaged = {damage.path for damage in result.damages}
    for path, offset, size in found.unreadable:
        reason = f"the device cannot read these {size} bytes: it may be failing, so copy the store to another one"
        name = path.rpartition("/")[2]
        severity = Severity.DAMAGE if path in damaged else Severity.NOTE
        found.findings.add(Finding(severity=severity, file=name, offset=offset, reason=reason))
    for each in sorted(log.breaks.kept, key=lambda each: each.event_id):
        found.findings.add(
            Finding(
                severity=Severity.DAMAGE,
                file=each.path.rpartition("/")[2],
                offset=each.offset,
                first_event_id=each.event_id,
                last_event_id=each.event_id,
                reason=each.reason,
            )
        )


def _damage_finding(damage: Damage) -> Finding:
    some = damage.last >= damage.first
    return Finding(
        severity=Severity.DAMAGE,
        file=damage.path.rpartition("/")[2],
        offset=damage.offset,
        first_event_id=damage.first if some else None,
        last_event_id=damage.last if some else None,
        reason=damage.reason if some else f"{damage.reason}; no event is missing here, behind {damage.first - 1}",
    )


def _tell_runs(found: Examination, result: Survey, log: LogCheck, checks: Sequence[RunCheck]) -> None:
    damaged = {damage.path for damage in result.damages}
    for check in checks:
        if not check.reason or found.manifest_damage:
            continue  # without the store's own id, the hashes in it cannot be compared
        own = {f"{found.directory}/{segment_name(segment.first_event_id)}" for segment in check.run.segments}
        if own & damaged:
            continue  # its segments cannot be compared; the damage is told
        _bad_run(found, check.run.path, check.reason.removeprefix(f"{check.run.path}: "))
    newest = log.segments[-1] if log.segments else None
    bare = [segment for segment in log.uncovered if segment is not newest]
    if sum(segment.end for segment in bare) >= PART_BYTES_MIN:
        first, last = bare[0], bare[-1]
        reason = f"{len(bare)} full segments, events {first.first_event_id} to {last.last_event_id}, have no index; "
        found.findings.note(
            first.path.rpartition("/")[2], reason + "it is made when the store is next open for writing"
        )


def _tell_tail(found: Examination, result: Survey, log: LogCheck) -> None:
    if found.watching or not log.segments:
        return
    newest = log.segments[-1]
    torn = result.size - newest.end
    if torn > 0 and not any(damage.path == newest.path for damage in result.damages):
        reason = (
            f"the last {torn:,} bytes are what a crash left of an append that was not acknowledged; "
            "the next to open the store sets them aside"
        )
        name = newest.path.rpartition("/")[2]
        found.findings.add(Finding(severity=Severity.TORN, file=name, offset=newest.end, reason=reason))


# --- the other files ---


def _examine_head(disk: Disk, found: Examination, manifest: Manifest) -> None:
    path = f"{found.directory}/{HEAD_NAME}"
    if not disk.exists(path):
        if any(segment_first(name) for name in found.names):
            found.findings.note(HEAD_NAME, "it is missing; the next to open the store makes it anew")
        return
    slots: list[int | None] = []
    for _ in range(HEAD_TRIES):
        slots = _slots(disk, path, manifest.store_id)
        if None not in slots or not found.watching:
            break
    if not any(slot is not None for slot in slots):
        reason = "neither of its slots is valid; the next to open the store makes it anew"
        found.bad_files.append(path)
        found.findings.note(HEAD_NAME, reason, Severity.DERIVED)
    elif None in slots and not found.watching:
        found.findings.note(
            HEAD_NAME, "one of its two slots is not valid, as a crash may leave it; the other one counts"
        )


def _slots(disk: Disk, path: str, store_id: str) -> list[int | None]:
    opened = OpenFile(disk, path)
    try:
        return decode_slots(disk.read(opened.file, HEAD_BYTES, 0), store_id)
    finally:
        opened.close()


def _examine_state(found: Examination) -> None:
    if found.state is None:
        return
    if found.state.damage:
        found.bad_files.append(f"{found.directory}/{STATE_NAME}")
        reason = f"{found.state.damage}; without it, projections begin without snapshots and checkpoints"
        found.findings.note(STATE_NAME, reason, Severity.DERIVED)
        return
    if found.state.note:
        found.findings.note(STATE_NAME, found.state.note)
    assert found.log is not None, "the log was looked at"
    assert found.survey is not None, "the log was looked at"
    for key, position, crc in found.state.saved:
        if found.watching and position > found.survey.durable:
            continue
        if crc != (found.log.crcs.get(position) if position else ""):
            reason = f"what is saved as {key!r} at event {position} is not of this log: it is discarded when loaded"
            found.findings.note(STATE_NAME, reason)


def _examine_names(disk: Disk, found: Examination) -> None:
    for name in found.names:
        if name in _PARTS or segment_first(name) or run_first(name):
            continue
        if is_torn(name):
            size = size_of(disk, f"{found.directory}/{name}")
            found.findings.note(name, f"{size:,} bytes that an earlier recovery set aside; of no use to the store")
        elif is_temporary(name) or is_copy(name) or name == f"{MANIFEST_NAME}.tmp":
            if not found.watching:
                found.findings.note(name, "left by a crash; the next to open the store deletes or replaces it")
        else:
            found.findings.note(name, "not a file of the store")
