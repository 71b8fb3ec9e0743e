"""What an examination finds in a directory: each finding with its place, the events it concerns, and what it means."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

FINDINGS_MAX: Final = 10_000
"""So many findings are kept; beyond, they are counted."""


class Severity(StrEnum):
    """What a finding means for the store."""

    DAMAGE = "damage"
    """Events that were acknowledged cannot be read, or contradict each other: nothing is appended until a repair."""

    TORN = "torn"
    """What a crash left of an append that nobody was told of; the next to open the store sets it aside."""

    DERIVED = "derived"
    """A file that is made from the log (index, head, state) is damaged; no event is concerned, it is made anew."""

    NOTE = "note"
    """Worth knowing, and as it may be."""


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """One finding. ``offset`` and the event_ids are None where there are none to name."""

    severity: Severity
    file: str
    """Its name in the store's directory."""
    offset: int | None = None
    first_event_id: int | None = None
    last_event_id: int | None = None
    reason: str


class Findings:
    """The findings of one examination, in the order in which they were made; a bounded number of them."""

    def __init__(self, findings_max: int = FINDINGS_MAX) -> None:
        self.kept: list[Finding] = []
        self.counts: dict[Severity, int] = dict.fromkeys(Severity, 0)
        self._findings_max = findings_max

    def add(self, finding: Finding) -> None:
        """Take in one more."""
        self.counts[finding.severity] += 1
        if len(self.kept) < self._findings_max:
            self.kept.append(finding)

    def note(self, file: str, reason: str, severity: Severity = Severity.NOTE) -> None:
        """Take in one about a whole file."""
        self.add(Finding(severity=severity, file=file, reason=reason))

    def has(self, *severities: Severity) -> bool:
        """Whether there is one of these severities."""
        return any(self.counts[severity] for severity in severities)
