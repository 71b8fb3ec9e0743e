"""Repairing a damaged store: the log is cut where it is damaged, and everything that was there is kept. Synchronous.

The order of the changes is such that a crash at any moment leaves a store that is repaired, or is refused as damaged
and can be repaired by another run; and that at each moment all that was there is in the store or in the evidence:

1. The evidence (see `evidence`): all files that will change, and the valid lines behind the damage, on the device with
   their directories. Nothing in the store was touched; a run that ends here leaves it as it was.
2. Files that are made from the log and are damaged, or reach beyond the cut, are removed; they are made anew. So are
   all indexes where the manifest was lost: the id in the new one may be another, with the same checksums, and then what
   they say of the old one must not be found beside it. The directory is synced.
3. The manifest, if it was lost: written anew and put in its place at once. The log is as damaged as before.
4. The head is lowered to what will be kept. It only ever says what is durable at least, so it may say less. It comes
   before the log is cut, for a head beyond the log would be damage of its own. Where the head alone knew of lost events
   at the log's end, the store could be opened from here on: it would then have just what the repair leaves.
5. The segments behind the damaged one are removed, from the last one down. Those that are left at any moment, in
   whatever order the removals come to the device, are the log's beginning and, behind the damage, parts of it in its
   old order: never a chain that looks whole and is another. The directory is synced.
6. The damaged segment is cut behind its last whole commit, and synced. With that, and not before, the log is whole.
7. The store is opened for writing and closed: recovery makes durable what is kept and was not known to be, and the
   index is made anew. That is also the proof that it can be.

Readers take no lock, so they are not kept out: those that have the store open meanwhile must open it anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

import msgspec

from aiostore.engines.file.disk import Disk
from aiostore.engines.file.engine import SEGMENT_BYTES
from aiostore.engines.file.evidence import SALVAGED_NAME, Evidence
from aiostore.engines.file.examination import Progress, examine, no_progress, store_names
from aiostore.engines.file.format import HEAD_NAME, LOCK_NAME, Manifest, encode_slot
from aiostore.engines.file.head import HEAD_BYTES
from aiostore.engines.file.lock import WriterLock
from aiostore.engines.file.manifest import write_manifest
from aiostore.engines.file.opening import Options, check_place, open_to_write
from aiostore.engines.file.patient import PatientDisk
from aiostore.engines.file.repair_plan import Plan, Steps, plan_repair
from aiostore.errors import EngineUnavailable, StoreLocked


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a repair did."""

    evidence: str
    """The directory with all that was there."""
    salvaged_file: str | None
    """The file in it with the events that can be appended again."""
    head_event_id: int
    """The last event of the store now."""


class Repair:
    """The repair of one store, under the writer's lock from the beginning to the end. A context manager.

    Raises `StoreLocked` where a process writes, `EngineUnavailable` where there is no store, `EngineUnsupported` on a
    network file system, where a lock may not keep other machines out (unless ``force_network``), and `OSError`.
    """

    def __init__(self, disk: Disk, directory: str, *, force_network: bool = False) -> None:
        store_names(disk, directory)  # before a lock file is put among what is not ours
        check_place(disk, directory, force_network=force_network)
        self._disk = disk
        self._directory = directory
        self._lock: WriterLock | None = WriterLock(disk, f"{directory}/{LOCK_NAME}")
        self.evidence: str | None = None
        """Where the evidence is, when it is complete: from then on the store is changed."""
        self._manifest: Manifest | None = None
        self._steps: Steps | None = None

    def plan(self, progress: Progress = no_progress) -> Plan:
        """Examine the store; what is to be done, and what will be lost. Nothing is changed.

        Raises `EngineUnsupported` where the store has a format that this version cannot write, and `EngineUnavailable`
        where its manifest is lost and cannot be known.
        """
        found = examine(self._disk, self._directory, exclusive=True, progress=progress)
        if found.manifest is None:
            raise EngineUnavailable(
                f"the manifest of {self._directory} cannot be used ({found.manifest_damage}), and too little is left "
                "of the log to know the store's id: it cannot be repaired; put aiostore.json back from a copy"
            )
        self._manifest = found.manifest
        plan, self._steps = plan_repair(PatientDisk(self._disk), found)
        return plan

    def carry_out(self, plan: Plan, progress: Progress = no_progress) -> Outcome:
        """Do what the plan says, which must be the last one and have something to do. The lock is let go of.

        ``progress`` may raise to end it before anything is changed: then, and on any error up to there, the evidence
        is deleted again, and the store is as it was.
        """
        assert self._steps is not None, "there is a plan"
        assert self._manifest is not None, "there is a plan"
        assert plan.needed, "there is something to do"
        evidence = self._keep_evidence(plan, self._steps, progress)
        self.evidence = evidence.path
        self._change(self._steps, self._manifest)
        self.close()
        head = self._open(progress)
        salvaged = f"{evidence.path}/{SALVAGED_NAME}" if self._steps.extents else None
        return Outcome(evidence=evidence.path, salvaged_file=salvaged, head_event_id=head)

    def _keep_evidence(self, plan: Plan, steps: Steps, progress: Progress) -> Evidence:
        patient = PatientDisk(self._disk)
        total = steps.bytes_to_copy(patient)
        done = 0

        def copied(size: int) -> None:
            nonlocal done
            done += size
            progress(min(done, total), total, "copying the evidence")

        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        evidence = Evidence(patient, self._disk, self._directory, stamp, copied)
        try:
            for path in steps.copies:
                evidence.copy(path)
            if steps.extents:
                evidence.salvage(steps.extents)
            holes = [{"file": path.rpartition("/")[2], "offset": at, "size": n} for path, at, n in _holes(patient)]
            path = os.fsencode(plan.path).decode("utf-8", "backslashreplace")  # a path need not be text
            told = {"plan": msgspec.structs.replace(plan, path=path), "unreadable_bytes_as_zeros": holes}
            evidence.complete(msgspec.json.format(msgspec.json.encode(told)) + b"\n")
        except BaseException:
            evidence.discard()
            raise
        return evidence

    def _change(self, steps: Steps, manifest: Manifest) -> None:
        """Steps 2 to 6 of the order above; nothing ends them but an error of the disk."""
        disk, directory = self._disk, self._directory
        self._remove(steps.derived)
        if steps.manifest is not None:
            write_manifest(disk, directory, manifest)
        if steps.head is not None:
            self._write(f"{directory}/{HEAD_NAME}", lambda file: self._lower_head(file, manifest, steps.head or 0))
        self._remove(steps.segments)
        if steps.cut is not None and steps.cut.path:
            size = steps.cut.size
            self._write(steps.cut.path, lambda file: disk.truncate(file, size))

    def _remove(self, paths: Sequence[str]) -> None:
        for path in paths:
            self._disk.remove(path)
        if paths:
            self._disk.sync_directory(self._directory)

    def _lower_head(self, file: int, manifest: Manifest, event_id: int) -> None:
        self._disk.write_at(file, encode_slot(event_id, manifest.store_id) * 2, 0)
        self._disk.truncate(file, HEAD_BYTES)

    def _write(self, path: str, change: Callable[[int], None]) -> None:
        file = self._disk.open_write(path)
        try:
            change(file)
            self._disk.sync(file)
        finally:
            self._disk.close(file)

    def _open(self, progress: Progress) -> int:
        def going_on() -> None:
            progress(0, 0, "making the index anew")

        try:
            writer = open_to_write(self._disk, self._directory, Options(True, SEGMENT_BYTES), going_on)
        except StoreLocked:  # another process was quicker to open it, so it can be opened
            assert self._steps is not None, "there is a plan"
            return self._steps.cut.last_event_id if self._steps.cut else 0
        try:
            return writer.index.head.event_id
        finally:
            writer.close()

    def close(self) -> None:
        """Let go of the lock; again is nothing."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _holes(patient: PatientDisk) -> list[tuple[str, int, int]]:
    return [(each.path, each.offset, each.size) for each in patient.unreadable.values()]
