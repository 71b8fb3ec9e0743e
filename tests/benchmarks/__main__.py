"""Measure aiostore against its peers, and against event stores that one would write by hand over SQLite.

    pip install ".[benchmarks]"
    python -m tests.benchmarks                      # about ten minutes, and 2 GB of disk
    python -m tests.benchmarks --engine postgres    # on a server of its own, some minutes
    python -m tests.benchmarks --quick              # for CI: small, and its numbers say little
    python -m tests.benchmarks.big                  # ten million events: see there

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
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median

from . import machine
from .appending import LIMITS, batches, in_memory, many_tasks, one_at_a_time
from .consuming import consuming
from .contest import TASKS, Contest, Goal
from .deciding import decisions
from .following import fan_out, live, streams_followed, sustained
from .projections import projection_contests
from .reading import Layout, replay, streams
from .table import compare, markdown
from .typed import typed_replay

PAUSE_S = 0.02
"""Between two contenders, so that what one left to its threads is not measured with the next."""


def file_contests(scale: float) -> list[Contest]:
    """Those on the embedded log, and in memory; ``scale`` 1 is the full size."""

    def scaled(times: int, least: int = 1) -> int:
        return max(least, round(times * scale))

    together, scattered = Layout(scaled(10_000), 20), Layout(scaled(10_000), 1)
    return [
        one_at_a_time(scaled(200)),
        many_tasks(scaled(12_800), scaled(1_280)),
        batches(scaled(30)),
        replay(scaled(200_000)),
        streams(together, Goal(0.6, at_most=True), scaled(100)),
        streams(scattered, Goal(0.9, at_most=True), scaled(100)),
        live(scaled(200)),
        fan_out(scaled(1_000), scaled(1_000)),
        streams_followed(scaled(10_000), scaled(200)),
        sustained(scaled(200_000), scaled(12_800, TASKS)),
        in_memory(scaled(10_000)),
        *projection_contests(scale),
        typed_replay(scaled(200_000)),
        consuming(10, scaled(200_000)),
        consuming(1_000, scaled(200_000)),
        decisions(scaled(200)),
    ]


@contextmanager
def chosen(
    engine: str, only: Sequence[int] | None, scale: float, described: dict[str, str]
) -> Iterator[dict[int, Contest]]:
    """The contests of an engine with these numbers; a server runs meanwhile, if they are on one."""
    with ExitStack() as stack:
        found = file_contests(scale) if engine != "postgres" else []
        if engine != "file":
            from .postgres import postgres_contests, running_server  # the drivers may not be there

            server = stack.enter_context(running_server())
            described["server"] = server.run("postgres", "--version").strip()
            described["its file system"] = machine.describe(server.directory)["file system"]
            found += postgres_contests(scale, server)
        yield {number: contest for number, contest in enumerate(found, 1) if not only or number in only}


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
    shutil.rmtree(directory)
    return numbers


async def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the size and three rounds")
    parser.add_argument("--scale", type=float, default=1.0, help="size, 1 is full")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--only", type=int, action="append", help="only this contest of those; may be repeated")
    parser.add_argument("--engine", choices=["file", "postgres", "all"], default="file", help="whose contests")
    parser.add_argument("--directory", type=Path, help="where to write, on a real disk (default: for temporary files)")
    parser.add_argument("--json", action="store_true", help="print JSON, with the numbers of each round")
    options = parser.parse_args()
    scale, rounds = (0.1, 3) if options.quick else (options.scale, options.rounds)

    results = []
    rounds_by_contest: dict[str, dict[str, list[float]]] = {}
    limits: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="aiostore-benchmarks-", dir=options.directory) as name:
        directory = Path(name)
        described = machine.describe(directory)
        described["load before"] = f"{os.getloadavg()[0]:.2f}"
        if described["file system"] == "tmpfs":
            print("warning: this is memory, not a disk; give --directory", file=sys.stderr)
        with chosen(options.engine, options.only, scale, described) as to_hold:
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
