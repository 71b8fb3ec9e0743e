"""What a repair will do and what will be lost, decided from an examination, before anything is changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, NamedTuple

import msgspec

from aiostore.engines.file.disk import Disk, OpenFile
from aiostore.engines.file.examination import STATE_JOURNAL, Examination, size_of
from aiostore.engines.file.findings import Finding, Severity
from aiostore.engines.file.format import (
    HEAD_NAME,
    MANIFEST_NAME,
    Damaged,
    Manifest,
    decode_line,
    segment_first,
)
from aiostore.engines.file.head import read_head
from aiostore.engines.file.index import Index
from aiostore.engines.file.log_check import Extent
from aiostore.engines.file.run_format import HEADER_BYTES, decode_header, run_first
from aiostore.engines.file.scan import CHUNK_BYTES, Scan
from aiostore.engines.file.segment import Segment
from aiostore.engines.file.state import STATE_NAME

NAMED_MAX = 1000
"""So many of the events that can be saved are named in a plan; the file with them has all."""


class Cut(NamedTuple):
    """Where the log is to end."""

    path: str
    """The file to be cut; empty where the log ends with a file that is whole."""
    size: int
    last_event_id: int


class Span(msgspec.Struct, frozen=True):
    """Events from the first to the last."""

    first_event_id: int
    last_event_id: int


class Readable(msgspec.Struct, frozen=True):
    """An event that is taken out of the log, and can still be read."""

    event_id: int
    stream_id: str
    version: int
    event_type: str


class Action(msgspec.Struct, frozen=True):
    """One change."""

    action: Literal["write", "remove", "cut"]
    file: str
    detail: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong, what will be done, and what will be lost."""

    path: str
    needed: bool
    """Whether there is anything to repair."""
    kept_event_id: int
    """The log will end with this event."""
    lost_first_event_id: int | None
    lost_last_event_id: int | None
    lost_events: int
    """So many events are taken out of the log."""
    salvaged_events: int
    """So many of them can be read, and are saved to be appended again."""
    unreadable: Sequence[Span]
    """Those that cannot."""
    salvaged: Sequence[Readable]
    """The first `NAMED_MAX` of those that are saved."""
    actions: Sequence[Action]
    findings: Sequence[Finding]


@dataclass(frozen=True, slots=True)
class Steps:
    """What carrying a plan out takes. Files are paths."""

    manifest: Manifest | None
    """To be written anew."""
    head: int | None
    """What the head is to say; None if it stays."""
    derived: Sequence[str]
    """Files that are made from the log, to be removed."""
    segments: Sequence[str]
    """To be removed, in this order."""
    cut: Cut | None
    extents: Sequence[Extent]
    """The valid lines behind the cut."""
    copies: Sequence[str]
    """What is kept as evidence."""

    @property
    def needed(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.manifest or self.derived or self.segments or self.cut) or self.head is not None

    def bytes_to_copy(self, disk: Disk) -> int:
        """How much evidence there is."""
        salvaged = sum(extent.end - extent.start for extent in self.extents)
        return salvaged + sum(size_of(disk, path) for path in self.copies)


def plan_repair(reading: Disk, found: Examination) -> tuple[Plan, Steps]:
    """The steps that make the store whole, none where it is, and what they come to."""
    assert found.log is not None, "the log was looked at"
    assert found.manifest is not None, "the store's id is known"
    directory = found.directory
    head_path = f"{directory}/{HEAD_NAME}"
    cut = _cut(reading, found)
    in_chain = [segment.path for segment in found.log.segments]
    removed = [f"{directory}/{name}" for name in found.names if segment_first(name)]
    removed = [path for path in removed if path not in in_chain]
    derived = [path for path in found.bad_files if path != head_path]
    if f"{directory}/{STATE_NAME}" in derived and STATE_JOURNAL in found.names:
        derived.append(f"{directory}/{STATE_JOURNAL}")  # it must not be played back into another file of that name
    said = read_head(reading, head_path, found.manifest.store_id)
    head = said if head_path in found.bad_files else None
    extents: list[Extent] = []
    if cut is not None:
        removed += [path for path in reversed(in_chain) if _first(path) > cut.last_event_id and path != cut.path]
        derived += [path for path in _runs_beyond(reading, found, cut.last_event_id) if path not in derived]
        extents = _behind(cut, found.log.extents)
        if said > cut.last_event_id:
            head = cut.last_event_id
    always = (f"{directory}/{name}" for name in (MANIFEST_NAME, HEAD_NAME, STATE_NAME, STATE_JOURNAL))
    copies = [path for path in always if reading.exists(path)]
    if cut is not None and cut.path:
        copies.append(cut.path)
    copies += sorted(removed)
    manifest = found.manifest if found.manifest_damage else None
    if manifest is not None:  # it may have another id, with the same checksums: the hashes in an index begin with it
        derived = list(dict.fromkeys([*derived, *(f"{directory}/{name}" for name in found.names if run_first(name))]))
    steps = Steps(manifest, head, derived, removed, cut, extents, copies)
    return _described(reading, found, steps), steps


# --- where the log is to end ---


def _cut(reading: Disk, found: Examination) -> Cut | None:
    """Behind the last whole commit before the first damage; None where the log is whole."""
    assert found.log is not None, "the log was looked at"
    assert found.survey is not None, "the log was looked at"
    in_chain = {segment.path: segment for segment in found.log.segments}
    cuts: list[Cut] = []
    for damage in found.survey.damages:
        segment = in_chain.get(damage.path)
        if segment is not None:
            cuts.append(_before_damage(reading, found, segment))
            break  # they stand in the order of the log
        if damage.last >= damage.first:  # a segment is missing; else it is one outside of the chain, and none misses it
            cuts.append(Cut("", 0, damage.first - 1))
            break
    cuts += [Cut(each.path, each.commit_offset, each.commit_event_id - 1) for each in found.log.breaks.kept]
    return min(cuts, key=lambda cut: cut.last_event_id, default=None)


def _before_damage(reading: Disk, found: Examination, segment: Segment) -> Cut:
    """Where the whole commits before the damage in the segment end: as far as a scan enters them as it goes."""
    assert found.manifest is not None, "the store's id is known"
    index = Index(found.manifest.store_id)
    again = Segment(found.directory, found.manifest.store_id, segment.first_event_id)
    index.add_segment(again)
    Scan(reading, again, index, lambda: None).run()
    return Cut(again.path, again.end, again.last_event_id)


def _first(path: str) -> int:
    """The first event_id of a segment."""
    return segment_first(path.rpartition("/")[2]) or 0


def _behind(cut: Cut, extents: Sequence[Extent]) -> list[Extent]:
    """The parts of the extents that are behind the cut."""
    behind: list[Extent] = []
    for extent in extents:
        if extent.first_event_id > cut.last_event_id:
            behind.append(extent)
        elif extent.last_event_id > cut.last_event_id:
            behind.append(extent._replace(start=cut.size, first_event_id=cut.last_event_id + 1))
    return behind


def _runs_beyond(reading: Disk, found: Examination, last_event_id: int) -> list[str]:
    """The runs that are of events behind this one too; those that are damaged are known."""
    assert found.manifest is not None, "the store's id is known"
    beyond: list[str] = []
    for name in found.names:
        path = f"{found.directory}/{name}"
        if run_first(name):
            opened = OpenFile(reading, path)
            try:
                header = decode_header(reading.read(opened.file, HEADER_BYTES, 0), found.manifest.store_id)
            except Damaged:
                continue
            finally:
                opened.close()
            if header.last_event_id > last_event_id:
                beyond.append(path)
    return beyond


# --- what it comes to ---


def _described(reading: Disk, found: Examination, steps: Steps) -> Plan:
    assert found.log is not None, "the log was looked at"
    assert found.survey is not None, "the log was looked at"
    last = max([found.survey.durable, *(extent.last_event_id for extent in found.log.extents)])
    last = max([last, *(damage.last for damage in found.survey.damages)])
    kept = last if steps.cut is None else steps.cut.last_event_id
    told = (Severity.DAMAGE, Severity.DERIVED)
    return Plan(
        path=found.directory,
        needed=steps.needed,
        kept_event_id=kept,
        lost_first_event_id=kept + 1 if last > kept else None,
        lost_last_event_id=last if last > kept else None,
        lost_events=last - kept,
        salvaged_events=sum(extent.last_event_id - extent.first_event_id + 1 for extent in steps.extents),
        unreadable=list(_between(kept + 1, last, steps.extents)),
        salvaged=list(islice(_readable(reading, steps.extents), NAMED_MAX)),
        actions=list(_actions(steps)),
        findings=[finding for finding in found.findings.kept if finding.severity in told],
    )


def _between(first: int, last: int, extents: Sequence[Extent]) -> Iterator[Span]:
    """What of the events the extents leave out."""
    for extent in extents:
        if extent.first_event_id > first:
            yield Span(first, extent.first_event_id - 1)
        first = extent.last_event_id + 1
    if last >= first:
        yield Span(first, last)


def _readable(reading: Disk, extents: Sequence[Extent]) -> Iterator[Readable]:
    """The events of the extents."""
    for extent in extents:
        opened = OpenFile(reading, extent.path)
        rest = b""
        try:
            for offset in range(extent.start, extent.end, CHUNK_BYTES):
                rest += reading.read(opened.file, min(CHUNK_BYTES, extent.end - offset), offset)
                *texts, rest = rest.split(b"\n")
                for text in texts:
                    line = decode_line(text)
                    yield Readable(line.event_id, line.stream_id, line.version, line.event_type)
        finally:
            opened.close()


def _actions(steps: Steps) -> Iterator[Action]:
    if steps.manifest is not None:
        yield Action("write", MANIFEST_NAME, f"anew, for the store {steps.manifest.store_id}")
    if steps.head is not None:
        yield Action("write", HEAD_NAME, f"to say that event {steps.head} is durable")
    for path in steps.derived:
        name = path.rpartition("/")[2]
        yield Action(
            "remove",
            name,
            "snapshots and checkpoints, kept as evidence" if name.startswith(STATE_NAME) else "an index, made anew",
        )
    for path in steps.segments:
        yield Action("remove", path.rpartition("/")[2], "a segment, kept as evidence")
    if steps.cut is not None and steps.cut.path:
        detail = f"to {steps.cut.size:,} bytes, behind event {steps.cut.last_event_id}"
        yield Action("cut", steps.cut.path.rpartition("/")[2], detail)
