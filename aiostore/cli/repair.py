"""``aiostore repair``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import msgspec
import typer

from aiostore.cli.console import (
    AsJson,
    Code,
    ForceNetwork,
    clean,
    counted,
    directory_of,
    fail,
    hint,
    ids_text,
    say,
    say_json,
    told,
)
from aiostore.cli.progress import shown
from aiostore.cli.verify import say_findings
from aiostore.engines.file.disk import Disk
from aiostore.engines.file.findings import Severity
from aiostore.engines.file.repair_plan import Action, Plan
from aiostore.engines.file.repairing import Outcome, Repair

NAMED = 20
"""So many of the events that are saved are named."""


def repair(
    path: Annotated[str, typer.Argument(help="The store's directory.", metavar="PATH", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    force_network: ForceNetwork = False,
    as_json: AsJson = False,
) -> None:
    """Make a damaged store whole: cut its log behind the last whole commit before the first damage.

    It first shows what is damaged, what will be done and which events will be lost, and asks (without a terminal, it
    needs --yes). Then everything that will change is copied to PATH.damaged-TIME beside the store, with the valid
    events that stand behind the damage in salvaged.jsonl, so that they can be appended again; only then is the log
    cut. Damaged indexes are made anew, a lost aiostore.json too. A store that is whole is not changed. It holds the
    writer's lock meanwhile. Killed at any moment, it can be run again.

    Exit codes: 0 the store is whole now, 1 it is damaged (--dry-run, or the answer was no), 2 wrong usage, or --yes is
    needed, 3 it cannot be repaired (no store there, a process writes to it, no rights, no room for the copy, a format
    that this version does not know), 130 interrupted.

    With --json: plan (path, needed, kept_event_id, lost_first_event_id, lost_last_event_id, lost_events,
    salvaged_events, unreadable: first_event_id and last_event_id of each span, salvaged: event_id, stream_id, version
    and event_type of the first 1,000, actions: action, file, detail, findings as in verify), and outcome (evidence,
    salvaged_file, head_event_id; null if nothing was changed). With exit codes 2 and 3: error.
    """
    with told(as_json=as_json):
        directory = directory_of(path)
        with Repair(Disk(), directory, force_network=force_network) as work:
            with shown() as progress:
                plan = work.plan(progress)
            outcome = None
            if not as_json:
                _say_plan(plan, path)
            if plan.needed and not dry_run and (yes or _agreed(plan, as_json=as_json)):
                outcome = _carried_out(work, plan)
        if as_json:
            say_json({"plan": msgspec.to_builtins(plan), "outcome": msgspec.to_builtins(outcome)})
        elif outcome is not None:
            _say_outcome(plan, outcome)
        damaged = any(finding.severity is Severity.DAMAGE for finding in plan.findings)
        raise typer.Exit(Code.DAMAGED if damaged and outcome is None else Code.WHOLE)


def _agreed(plan: Plan, *, as_json: bool) -> bool:
    if as_json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        fail("nothing was changed: without a terminal to ask on, --yes is needed", Code.WRONG_USAGE, as_json=as_json)
    say()
    if not typer.confirm("Do this?" if not plan.lost_events else f"Take {plan.lost_events:,} events out of the log?"):
        say("Nothing was changed.")
        return False
    return True


def _carried_out(work: Repair, plan: Plan) -> Outcome:
    try:
        with shown() as progress:
            return work.carry_out(plan, progress)
    except BaseException:
        if work.evidence is None:
            hint("aiostore: nothing was changed")
        else:
            hint(f"aiostore: it was not seen through: run it again. What was there before: {work.evidence}")
        raise


def _grouped(actions: Sequence[Action]) -> dict[tuple[str, str], list[str]]:
    """The files with which the same is done."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for action in actions:
        grouped.setdefault((action.action, action.detail), []).append(action.file)
    return {key: sorted(files) for key, files in grouped.items()}


def _say_plan(plan: Plan, path: str) -> None:
    if not plan.needed:
        say(f"{clean(path)} is whole: there is nothing to repair, and nothing was changed")
        return
    say(f"{clean(path)}: what is wrong")
    say_findings(plan.findings, "  ")
    say()
    say("What will be lost")
    if not plan.lost_events:
        say("  no event")
    else:
        say(f"  the log will end with event {plan.kept_event_id}, the end of the last whole commit before the damage")
        which = ids_text(plan.lost_first_event_id, plan.lost_last_event_id)
        say(f"  {which} will be taken out of it: {counted(plan.lost_events, 'event')}")
        say(f"  {plan.salvaged_events:,} of them can be read, and will be saved in salvaged.jsonl to be appended again")
        for event in plan.salvaged[:NAMED]:
            stream_id, event_type = clean(event.stream_id), clean(event.event_type)
            say(f"    event {event.event_id}: {stream_id} version {event.version}, {event_type}")
        if plan.salvaged_events > NAMED:
            say(f"    … and {plan.salvaged_events - NAMED:,} more")
        for span in plan.unreadable[:NAMED]:
            say(f"  {ids_text(span.first_event_id, span.last_event_id)}: cannot be read any more")
        if len(plan.unreadable) > NAMED:
            say(f"  … and {len(plan.unreadable) - NAMED:,} more of these")
        say(
            f"  event_ids from {plan.kept_event_id + 1} on will be given anew: who keeps a position beyond that must go"
        )
        say(f'  back to {plan.kept_event_id}, and who has the store open with mode="r" must open it anew')
    say()
    say("What will be done, after everything was copied")
    for (action, detail), files in _grouped(plan.actions).items():
        which = clean(files[0]) if len(files) == 1 else f"{len(files):,} files, {files[0]} to {files[-1]}"
        say(f"  {action} {which}: {clean(detail)}")


def _say_outcome(plan: Plan, outcome: Outcome) -> None:
    say()
    say(f"Done: the store is whole, and its last event is {outcome.head_event_id}")
    say(f"  what was there before: {clean(outcome.evidence)}")
    if outcome.salvaged_file is not None:
        say(f"  {counted(plan.salvaged_events, 'event')} to append again: {clean(outcome.salvaged_file)}")
