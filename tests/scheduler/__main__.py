"""`python -m tests.scheduler --seeds 100000`: the same storms as the tests have, for hours.

Prints how far it is and how many tasks were cancelled; a seed that fails is named, and again with AIOSTORE_SEED.
"""

from __future__ import annotations

import argparse
import gc
import logging.handlers
import tempfile
import time
from pathlib import Path

from tests.scheduler.campaign import rage

SECONDS_BETWEEN = 10.0


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m tests.scheduler", description="Let storms rage, seed by seed.")
    parser.add_argument("--seeds", type=int, default=1_000, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    arguments = parser.parse_args()
    logging.getLogger("aiostore").setLevel(logging.CRITICAL)  # handlers that raise are logged, in storms as elsewhere
    heard = logging.handlers.BufferingHandler(capacity=1_000_000)
    logging.getLogger().addHandler(heard)
    gc.freeze()
    said, cancellations, events = time.monotonic(), 0, 0
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        with tempfile.TemporaryDirectory() as directory:
            raged = rage(seed, Path(directory, "s"))
        gc.collect()  # a task that was left behind makes itself heard
        assert not heard.buffer, f"seed {seed}: {[record.getMessage() for record in heard.buffer]}"
        cancellations += raged.notes.cancellations
        events += len(raged.log)
        if time.monotonic() - said > SECONDS_BETWEEN or seed == arguments.seed + arguments.seeds - 1:
            said = time.monotonic()
            done = f"seeds {arguments.seed} to {seed}"
            print(f"{done}: {events:,} events stored, {cancellations:,} tasks cancelled", flush=True)


if __name__ == "__main__":
    main()
