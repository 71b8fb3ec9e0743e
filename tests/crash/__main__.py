"""`python -m tests.crash --states 5000000`: the same as the tests do, for hours.

Prints how far it is, and at the end how much was tried; a seed that fails is named: `--seed N --states 1` repeats it.
"""

from __future__ import annotations

import argparse
import time

from tests.crash.campaign import run
from tests.crash.judge import Tally

SECONDS_BETWEEN = 10.0


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description="Try states that power losses leave.")
    parser.add_argument("--states", type=int, default=100_000, help="how many, at least")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    arguments = parser.parse_args()
    begun = said = time.monotonic()
    seed, tally = arguments.seed, Tally()
    for seed, tally in run(arguments.seed, arguments.states):
        if time.monotonic() - said > SECONDS_BETWEEN:
            said = time.monotonic()
            print(f"seed {seed}: {tally.states:,} states, {tally.states / (said - begun):,.0f} a second", flush=True)
    print(f"seeds {arguments.seed} to {seed}: {tally}")


if __name__ == "__main__":
    main()
