"""`python -m tests.real kills --count 5000`: the same as the tests do, for hours.

Prints how far it is, and at the end how much was tried. Where a promise is broken, it says how to repeat that, and the
directory stays.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

from tests.real import full_disks, kills, power_cuts
from tests.real.budgets import budget
from tests.real.mounts import why_not

SECONDS_BETWEEN = 10.0
CAMPAIGNS = {"kills": kills.run, "power-cuts": power_cuts.run, "full-disks": full_disks.run}


def main() -> None:
    """Run a campaign."""
    parser = argparse.ArgumentParser(prog="python -m tests.real", description="Try what the store must survive.")
    parser.add_argument("campaign", choices=CAMPAIGNS)
    parser.add_argument("--count", type=int, help="how many, at least")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--directory", type=Path, help="where, in a directory of its own; by default that for such")
    arguments = parser.parse_args()
    reason = None if arguments.campaign == "kills" else why_not(loops=arguments.campaign == "power-cuts")
    if reason:
        parser.error(reason)
    count = arguments.count or budget(arguments.campaign)
    signal.signal(signal.SIGTERM, _interrupted)
    logging.disable(logging.ERROR)  # what recovery says of each torn tail is not for reading here
    directory = Path(tempfile.mkdtemp(prefix=f"aiostore-{arguments.campaign}-", dir=arguments.directory))
    seed = arguments.seed
    begun = said = time.monotonic()
    tally: object = ""
    try:
        for seed, tally in CAMPAIGNS[arguments.campaign](directory, arguments.seed, count):
            if time.monotonic() - said > SECONDS_BETWEEN:
                said = time.monotonic()
                print(f"seed {seed}, {said - begun:,.0f} s: {tally}", flush=True)
    except (AssertionError, OSError):
        print(f"{directory} stays as it is. To repeat: python -m tests.real {arguments.campaign} --seed {seed}")
        raise
    except BaseException:
        shutil.rmtree(directory)
        raise
    shutil.rmtree(directory)
    print(f"seeds {arguments.seed} to {seed}, {time.monotonic() - begun:,.0f} s: {tally}")


def _interrupted(*_: object) -> NoReturn:
    sys.exit("interrupted")


if __name__ == "__main__":
    main()
