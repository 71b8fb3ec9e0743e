"""Measure how flat aiostore is: stores of ten thousand, a hundred thousand … up to ten million events.

    pip install ".[benchmarks]"
    python -m tests.benchmarks.big --plot costs.svg         # ten million, some minutes and about 5 GB of disk
    python -m tests.benchmarks.big --events 100000          # for CI: small, and its numbers say little

Events have payloads of about 150 bytes and a tag, which 100 of all have. They come by 20 into streams of 100, of which
200 are in use at a time. Each figure is measured in a process of its own; what is compared across sizes is done in one
process, at each turn on each of the stores, which are opened anew for each round.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from . import machine
from .big_store import bytes_in
from .contest import Goal
from .table import VERDICT

CHECKOUT = Path(__file__).parents[2]
SMALL_EVENTS = 10_000
SQLITE_EVENTS_MAX = 1_000_000
TIMES_OPENED = 5
MB = 1_000_000

APPEND, APPEND_COLD = "append", "append, stream not in use"
READ, QUERY, OPEN = "read a stream of 100", "query by tag, 100 found", "open and first read"


@dataclass(frozen=True)
class Figure:
    """One line of the result."""

    name: str
    value: float
    unit: str
    goal: Goal | None = None

    def line(self) -> str:
        """In a table."""
        verdict = VERDICT[self.goal.met(self.value) if self.goal else None]
        value = f"{self.value:,.0f}" if self.value >= 1000 else f"{self.value:.3g}"
        return f"| {self.name} | {value} {self.unit} | {self.goal or ''} | {verdict} |"


def work(name: str, *arguments: object) -> Any:
    """What a process of its own finds."""
    print(f"{name} {' '.join(map(str, arguments))} …", file=sys.stderr)
    command = [sys.executable, "-m", "tests.benchmarks.big_work", name, *map(str, arguments)]
    done = subprocess.run(command, cwd=CHECKOUT, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def sizes_up_to(events_count: int) -> list[int]:
    """Ten thousand, or a tenth of it all, and so on by tens."""
    sizes = [min(SMALL_EVENTS, events_count // 10)]
    while sizes[-1] * 10 < events_count:
        sizes.append(sizes[-1] * 10)
    return [*sizes, events_count]


@dataclass(frozen=True)
class Found:
    """What was found."""

    figures: Sequence[Figure]
    sizes: Sequence[int]
    costs: dict[str, list[float]]
    """Milliseconds by name, at each of the sizes."""
    rounds: dict[str, list[list[float]]]
    """The same by round."""


def measure(directory: Path, events_count: int, rounds: int) -> Found:
    """Fill and measure."""
    sizes = sizes_up_to(events_count)
    stores = {size: directory / f"{size}" for size in sizes}
    filled = {size: work("fill", store, size) for size, store in stores.items()}
    big = stores[events_count]
    bytes_per_event = bytes_in(big) / events_count

    sqlite_count = min(events_count, SQLITE_EVENTS_MAX)
    (directory / "sqlite").mkdir()
    sqlite_filled = work("fill_sqlite", directory / "sqlite" / "events.db", sqlite_count)
    sqlite_bytes_per_event = bytes_in(directory / "sqlite") / sqlite_count

    opened = [work("open_and_read", big, events_count, seed)["open and read"] for seed in range(TIMES_OPENED)]
    memory = work("memory", big, events_count)
    by_round = work("costs", rounds, *(part for size, store in stores.items() for part in (store, size)))
    costs: dict[str, list[float]] = {
        name: [median(values) for values in zip(*found, strict=True)] for name, found in by_round.items()
    }

    def grown(name: str) -> float:
        return costs[name][-1] / costs[name][0]

    small = f"{sizes[0]:,}"
    flat = Goal(1.15, at_most=True)
    figures = [
        Figure("open and first read", median(opened), "s", Goal(0.3, at_most=True)),
        Figure("peak memory, opened and 1,000 streams read", memory["read"] / MB, "MB", Goal(80, at_most=True)),
        Figure("of which imports", memory["imported"] / MB, "MB"),
        Figure(f"append, to that of {small}", grown(APPEND), "×", flat),
        Figure(f"append to a stream not in use, to that of {small}", grown(APPEND_COLD), "×", flat),
        Figure(f"read a stream of 100, to that of {small}", grown(READ), "×", flat),
        Figure("query by one tag that 100 have", costs[QUERY][-1], "ms", Goal(20, at_most=True)),
        Figure(
            f"bytes on disk an event, to sqlite3's of {sqlite_count:,}",
            bytes_per_event / sqlite_bytes_per_event,
            "×",
            Goal(1.5, at_most=True),
        ),
        Figure("bytes on disk an event", bytes_per_event, "bytes"),
        Figure("bytes on disk an event, sqlite3", sqlite_bytes_per_event, "bytes"),
        Figure("filled, durably", events_count / filled[events_count]["seconds"], "events/s"),
        Figure("filled, durably, sqlite3", sqlite_count / sqlite_filled["seconds"], "events/s"),
        Figure("peak memory of filling", filled[events_count]["peak bytes"] / MB, "MB"),
    ]
    return Found(figures, sizes, costs, by_round)


def markdown(described: dict[str, str], found: Found) -> str:
    """What was found, as text."""
    lines = [
        ", ".join(f"{name}: {value}" for name, value in described.items()),
        "",
        f"| {found.sizes[-1]:,} events | | goal | |",
        "|---|---:|---:|---|",
        *(figure.line() for figure in found.figures),
        "",
        f"| p50, ms | {' | '.join(f'{size:,}' for size in found.sizes)} |",
        f"|---|{'---:|' * len(found.sizes)}",
    ]
    lines += [f"| {name} | {' | '.join(f'{ms:.3f}' for ms in values)} |" for name, values in found.costs.items()]
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.big", description=__doc__.partition("\n")[0])
    parser.add_argument("--events", type=int, default=10_000_000, help="in the largest store (default: ten million)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--directory", type=Path, help="where to write, on a real disk (default: for temporary files)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a plot of cost against size, as SVG")
    parser.add_argument("--json", action="store_true", help="print JSON, with the numbers of each round")
    options = parser.parse_args()
    if options.events < 10_000 or options.events % 1_000:
        parser.error("--events must be a multiple of 1,000, and at least 10,000")

    with tempfile.TemporaryDirectory(prefix="aiostore-big-", dir=options.directory) as name:
        directory = Path(name)
        described = machine.describe(directory)
        described["load before"] = f"{os.getloadavg()[0]:.2f}"
        if described["file system"] == "tmpfs":
            print("warning: this is memory, not a disk; give --directory", file=sys.stderr)
        found = measure(directory, options.events, options.rounds)
    if options.plot:
        from .plot import draw

        where = f"{described['processor']}, {described['cores']} cores, {described['file system']}"
        draw(options.plot, found.sizes, found.costs, where)
    if options.json:
        print(json.dumps({"machine": described, **asdict(found)}, indent=2))
    else:
        print(markdown(described, found))


if __name__ == "__main__":
    main()
