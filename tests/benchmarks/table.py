"""The table that the benchmarks print: each row of the contests, filled in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from .contest import Contest, Row

VERDICT = {True: "met", False: "**missed**", None: ""}


@dataclass(frozen=True)
class Result:
    """One line of the result; what compares with a peer is None where there is none."""

    measure: str
    unit: str
    ours: str
    ours_median: float
    ours_at_best: float
    peer: str | None
    peer_median: float | None
    ratio: float | None
    ratio_at_best: float | None
    ratio_low: float | None
    ratio_high: float | None
    goal: str
    met: bool | None


def compare(contest: Contest, row: Row, numbers: dict[str, list[float]]) -> Result:
    """The row, filled in."""
    ours = numbers[row.ours]
    best = max if contest.more_is_better else min
    if row.peer is None:
        peer_median = ratio = ratio_at_best = ratio_low = ratio_high = None
        judged = median(ours)
    else:
        peer = numbers[row.peer]
        peer_median = median(peer)
        judged = ratio = median(ours) / peer_median
        ratio_at_best = best(ours) / best(peer)
        ratios = [a / b for a, b in zip(ours, peer, strict=True)]
        ratio_low, ratio_high = min(ratios), max(ratios)
    return Result(
        measure=contest.name,
        unit=contest.unit,
        ours=row.ours,
        ours_median=median(ours),
        ours_at_best=best(ours),
        peer=row.peer,
        peer_median=peer_median,
        ratio=ratio,
        ratio_at_best=ratio_at_best,
        ratio_low=ratio_low,
        ratio_high=ratio_high,
        goal=str(row.goal or ""),
        met=row.goal.met(judged) if row.goal else None,
    )


def _line(result: Result) -> str:
    cells = [result.measure, result.ours, f"{result.ours_median:,.0f} {result.unit}"]
    if result.peer is None:
        cells += ["", "", "", f"{result.ours_at_best:,.0f} {result.unit}", ""]
    else:
        cells += [
            result.peer,
            f"{result.peer_median:,.0f} {result.unit}",
            f"{result.ratio:.2f}",
            f"{result.ratio_at_best:.2f}",
            f"{result.ratio_low:.2f}–{result.ratio_high:.2f}",
        ]
    return f"| {' | '.join([*cells, result.goal, VERDICT[result.met]])} |"


def markdown(described: dict[str, str], results: Sequence[Result], limits: dict[str, float]) -> str:
    """The results as text."""
    lines = [
        ", ".join(f"{name}: {value}" for name, value in described.items()),
        "",
        "| measure | ours | | peer | | ratio | at best | spread | goal | |",
        "|---|---|---:|---|---:|---:|---:|---:|---:|---|",
    ]
    lines += map(_line, results)
    if limits:
        lines += ["", "| the machine's own limits: 300 bytes, p50 | |", "|---|---:|"]
    lines += [f"| {name} | {value:,.0f} µs |" for name, value in limits.items()]
    return "\n".join(lines)
