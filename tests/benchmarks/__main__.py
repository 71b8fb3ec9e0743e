"""Measure aiostore against event stores that one would write by hand over SQLite.

    pip install ".[benchmarks]"
    python -m tests.benchmarks                      # about a minute
    python -m tests.benchmarks --engine postgres    # on a server of its own, some minutes
    python -m tests.benchmarks --quick              # for CI: small, and its numbers say little

Run it from the checkout, on a machine that does nothing else. The contenders of a contest do the same work in turn,
round by round (A B A B …), each in a directory of its own on the same disk, which must be a real one: give it with
``--directory``. The ratio is that of the medians over the rounds; "at best" is that of the best round of each, which
other programs disturb least; the spread is that of the ratios of the single rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from . import machine
from .measures import LIMITS, Contest, Row, contests
from .projections import projection_contests

FILE_CONTESTS = range(1, 8)
POSTGRES_CONTESTS = range(8, 12)

PAUSE_S = 0.02
"""Between two contenders, so that what one left to its threads is not measured with the next."""


@dataclass(frozen=True)
class Result:
    """One line of the result."""

    measure: str
    unit: str
    ours: str
    ours_median: float
    peer: str
    peer_median: float
    ratio: float
    ratio_at_best: float
    ratio_low: float
    ratio_high: float
    goal: str
    met: bool | None


async def hold(contest: Contest, directory: Path, rounds: int) -> dict[str, list[float]]:
    """Let the contenders do their work in turn; returns the numbers of each, by round."""
    numbers: dict[str, list[float]] = {name: [] for name in contest.contenders}
    async with AsyncExitStack() as stack:
        measures = {}
        for index, (name, contender) in enumerate(contest.contenders.items()):
            own = directory / f"{index}"
            own.mkdir(parents=True)
            measures[name] = await stack.enter_async_context(contender(own))
        for _ in range(rounds):
            for name, measure in measures.items():
                gc.collect()
                await asyncio.sleep(PAUSE_S)
                numbers[name].append(await measure())
    return numbers


@contextmanager
def chosen(numbers: set[int], scale: float, described: dict[str, str]) -> Iterator[dict[int, Contest]]:
    """The contests with these numbers; a server runs meanwhile, if any of them is on one."""
    with ExitStack() as stack:
        found = [*contests(scale), *projection_contests(scale)]
        if not numbers.isdisjoint(POSTGRES_CONTESTS):
            from .postgres import postgres_contests, running_server  # the drivers may not be there

            server = stack.enter_context(running_server())
            described["server"] = server.run("postgres", "--version").strip()
            described["its file system"] = machine.describe(server.directory)["file system"]
            found += postgres_contests(scale, server)
        yield {number: contest for number, contest in enumerate(found, 1) if number in numbers}


def compare(contest: Contest, row: Row, numbers: dict[str, list[float]]) -> Result:
    """The row, filled in."""
    ours, peer = numbers[row.ours], numbers[row.peer]
    ratio = median(ours) / median(peer)
    ratios = [a / b for a, b in zip(ours, peer, strict=True)]
    best = max if contest.more_is_better else min
    return Result(
        measure=contest.name,
        unit=contest.unit,
        ours=row.ours,
        ours_median=median(ours),
        peer=row.peer,
        peer_median=median(peer),
        ratio=ratio,
        ratio_at_best=best(ours) / best(peer),
        ratio_low=min(ratios),
        ratio_high=max(ratios),
        goal=str(row.goal or ""),
        met=row.goal.met(ratio) if row.goal else None,
    )


def markdown(described: dict[str, str], results: list[Result], limits: dict[str, float]) -> str:
    """The results as text."""
    verdict = {True: "met", False: "**missed**", None: ""}
    lines = [
        ", ".join(f"{name}: {value}" for name, value in described.items()),
        "",
        "| measure | ours | | peer | | ratio | at best | spread | goal | |",
        "|---|---|---:|---|---:|---:|---:|---:|---:|---|",
    ]
    lines += [
        f"| {result.measure} | {result.ours} | {result.ours_median:,.0f} {result.unit} "
        f"| {result.peer} | {result.peer_median:,.0f} {result.unit} "
        f"| {result.ratio:.2f} | {result.ratio_at_best:.2f} | {result.ratio_low:.2f}–{result.ratio_high:.2f} "
        f"| {result.goal} | {verdict[result.met]} |"
        for result in results
    ]
    if limits:
        lines += ["", "| the machine's own limits: 300 bytes, p50 | |", "|---|---:|"]
    lines += [f"| {name} | {value:,.0f} µs |" for name, value in limits.items()]
    return "\n".join(lines)


async def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the size and three rounds")
    parser.add_argument("--scale", type=float, default=1.0, help="size, 1 is full")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--only", type=int, action="append", help="only this measure, 1 to 11; may be repeated")
    parser.add_argument("--engine", choices=["file", "postgres", "all"], default="file", help="1 to 7, or 8 to 11")
    parser.add_argument("--directory", type=Path, help="where to write, on a real disk (default: for temporary files)")
    parser.add_argument("--json", action="store_true", help="print JSON, with the numbers of each round")
    options = parser.parse_args()
    scale, rounds = (0.1, 3) if options.quick else (options.scale, options.rounds)

    by_engine = {"file": FILE_CONTESTS, "postgres": POSTGRES_CONTESTS, "all": [*FILE_CONTESTS, *POSTGRES_CONTESTS]}
    asked = set(options.only or by_engine[options.engine])

    results: list[Result] = []
    rounds_by_contest: dict[str, dict[str, list[float]]] = {}
    limits: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="aiostore-benchmarks-", dir=options.directory) as name:
        directory = Path(name)
        described = machine.describe(directory)
        if described["file system"] == "tmpfs":
            print("warning: this is memory, not a disk; give --directory", file=sys.stderr)
        with chosen(asked, scale, described) as to_hold:
            for number, contest in to_hold.items():
                print(f"({number}) {contest.name} …", file=sys.stderr)
                numbers = await hold(contest, directory / f"{number}", rounds)
                rounds_by_contest[contest.name] = numbers
                results += [compare(contest, row, numbers) for row in contest.rows]
                limits |= {name: median(values) for name, values in numbers.items() if name in LIMITS}
    if options.json:
        found = {"machine": described, "results": [asdict(result) for result in results], "rounds": rounds_by_contest}
        print(json.dumps(found, indent=2))
    else:
        print(markdown(described, results, limits))


if __name__ == "__main__":
    asyncio.run(main())
