"""``aiostore verify``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Annotated

import typer

from aiostore.cli.console import (
    AsJson,
    Code,
    clean,
    counted,
    directory_of,
    ids_text,
    say,
    say_json,
    size_text,
    told,
)
from aiostore.cli.progress import shown
from aiostore.engines.file.disk import Disk
from aiostore.engines.file.findings import Finding, Severity
from aiostore.engines.file.verifying import Report
from aiostore.engines.file.verifying import verify as verify_store

TOLD = 100
"""So many findings are told in text."""

LABELS = {
    Severity.DAMAGE: "damage",
    Severity.TORN: "torn",
    Severity.DERIVED: "derived",
    Severity.NOTE: "note",
}


def verify(
    path: Annotated[str, typer.Argument(help="The store's directory.", metavar="PATH", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Read every byte of a store and check it; nothing is changed.

    Works beside a process that writes to the store; it takes no lock, and checks what is durable when it begins.
    Findings are "damage" (acknowledged events are lost, or contradict each other), "torn" (what a crash left of an
    append that was not acknowledged: the next to open the store sets it aside), "derived" (a damaged index, head or
    state.db: no event is concerned, it is made anew) and "note".

    Exit codes: 0 the store is whole (nothing but torn, derived and note), 1 it is damaged, 2 wrong usage, 3 it cannot
    be examined (no store there, no rights, a format that this version does not know), 130 interrupted.

    With --json: path, whole, store_id, format, created, writer_pid, events, streams, segments, indexes, bytes,
    head_event_id, durable_event_id, first_timestamp, last_timestamp, findings (each: severity, file, offset,
    first_event_id, last_event_id, reason), findings_left_out. With exit code 3: error.
    """
    with told(as_json=as_json):
        directory = directory_of(path)
        with shown() as progress:
            report = verify_store(Disk(), directory, progress=progress)
        if as_json:
            say_json(report)
        else:
            _say(report, path)
        raise typer.Exit(Code.WHOLE if report.whole else Code.DAMAGED)


def _say(report: Report, path: str) -> None:
    say(f"{clean(path)} is {'whole' if report.whole else 'DAMAGED'}")
    events = counted(report.events, "event") + f" in {counted(report.streams, 'stream')}"
    if report.events and report.first_timestamp and report.last_timestamp:
        events += f", {report.first_timestamp} to {report.last_timestamp}"
    say(f"  {events}")
    files = f"{counted(report.segments, 'segment')}, {counted(report.indexes, 'index')}"
    say(f"  {files}, {size_text(report.bytes)} read; head {report.head_event_id}")
    if report.writer_pid is not None:
        who = f" (pid {report.writer_pid})" if report.writer_pid else ""
        say(f"  a process is writing{who}: checked is what was durable when this began, up to event "
            f"{report.durable_event_id}")  # fmt: skip
    say_findings(report.findings, left_out=report.findings_left_out)
    if not report.whole:
        named = shlex.quote(path) if path.isprintable() else "PATH"
        say('It opens with mode="r" only. To see what can be done:')
        say(f"  python -m aiostore repair --dry-run {named}")


def say_findings(findings: Sequence[Finding], indent: str = "", left_out: int = 0) -> None:
    """Tell the first findings, each on a line, and how many more there are."""
    for finding in findings[:TOLD]:
        say(f"{indent}{finding_text(finding)}")
    left_out += max(0, len(findings) - TOLD)
    if left_out:
        say(f"{indent}… and {counted(left_out, 'finding')} more, with --json")


def finding_text(finding: Finding) -> str:
    """The finding on a line."""
    place = clean(finding.file)
    if finding.offset is not None:
        place += f" at byte {finding.offset}"
    ids = ids_text(finding.first_event_id, finding.last_event_id)
    return f"{LABELS[finding.severity]:8}{place}{', ' + ids if ids else ''}: {clean(finding.reason)}"
