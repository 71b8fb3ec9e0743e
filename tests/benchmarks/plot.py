"""The plot of cost against size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

INCHES = (7.5, 4.5)
TICKS_MS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


def draw(path: Path, sizes: Sequence[int], costs: Mapping[str, Sequence[float]], machine: str) -> None:
    """Write an SVG: how many milliseconds each of the costs is, at each of the sizes."""
    with mpl.rc_context({"svg.hashsalt": "aiostore", "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=INCHES, layout="constrained")
        axes = figure.subplots()
        for name, values in costs.items():
            axes.plot(sizes, values, marker="o", markersize=4, label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        low = min(min(values) for values in costs.values()) * 0.7
        high = max(max(values) for values in costs.values()) * 1.4
        axes.set_ylim(low, high)
        shown = [tick for tick in TICKS_MS if low <= tick <= high]
        axes.set_yticks(shown, [f"{tick:g}" for tick in shown])
        axes.set_xlabel("events in the store")
        axes.set_ylabel("milliseconds, median")
        axes.set_title(machine, fontsize=9)
        axes.grid(visible=True, which="major", linewidth=0.4, alpha=0.6)
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None})
