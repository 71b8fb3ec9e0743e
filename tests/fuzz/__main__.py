"""`python -m tests.fuzz --executions 1000000 --seed 7`: the same as the tests do, for as long as is wanted.

Prints how far it is, and at the end how often each target was executed; a seed that fails is named, and
`--seed N --executions 1` repeats it.
"""

from __future__ import annotations

import argparse
import time
import traceback
from collections import Counter

from tests.fuzz.bits import check_each
from tests.fuzz.campaign import BYTE_TARGETS, BYTES, STORE_TARGETS, STORES, Tally, quiet, total, try_seed
from tests.fuzz.seeds import store_named

SECONDS_BETWEEN = 10.0


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="Mutate stores, and see what comes of it."
    )
    parser.add_argument("--executions", type=int, default=100_000, help="how many, at least")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--target", choices=[BYTES, STORES, *BYTE_TARGETS, *STORE_TARGETS], help="only this")
    parser.add_argument("--failures", type=int, default=1, help="go on until so many seeds failed")
    parser.add_argument("--bits", metavar="STORE", help="instead flip every bit of this store: runs, larger, merged…")
    parser.add_argument("--every", type=int, default=1, help="or every so manieth of them")
    arguments = parser.parse_args()
    if arguments.bits:
        flip_bits(arguments.bits, arguments.every)
        return
    begun = said = time.monotonic()
    seed, tally, failed = arguments.seed, Counter[str](), list[int]()
    with quiet():
        while total(tally) < arguments.executions and len(failed) < arguments.failures:
            try:
                try_seed(seed, tally, arguments.target)
            except KeyboardInterrupt:
                break
            except Exception:
                traceback.print_exc()
                failed.append(seed)
            if time.monotonic() - said > SECONDS_BETWEEN:
                said = time.monotonic()
                speed = total(tally) / (said - begun)
                print(f"seed {seed}: {total(tally):,} executions, {speed:,.0f} a second", flush=True)
            seed += 1
    print(f"seeds {arguments.seed} to {seed - 1}: {total(tally):,} executions in {time.monotonic() - begun:,.0f} s")
    _tell(tally)
    if failed:
        raise SystemExit(f"failed: {', '.join(map(str, failed))}")


def flip_bits(name: str, every: int) -> None:
    """Flip each bit of the store of the name."""
    begun = said = time.monotonic()
    number, tally = 0, Counter[str]()
    with quiet():
        for number, tally in enumerate(check_each(store_named(name), every), 1):  # noqa: B007 (the last one is told)
            if time.monotonic() - said > SECONDS_BETWEEN:
                said = time.monotonic()
                print(f"{number:,} bits, {number / (said - begun):,.0f} a second", flush=True)
    print(f"{number:,} bits of the store {name!r} in {time.monotonic() - begun:,.0f} s, and nothing wrong was served")
    for outcome, count in sorted(tally.items()):
        print(f"  {outcome}: {count:,}")


def _tell(tally: Tally) -> None:
    for name in (*BYTE_TARGETS, *STORE_TARGETS):
        if tally[name]:
            print(f"{name:>12}: {tally[name]:,}")
        for outcome, count in sorted(tally.items()):
            if outcome.startswith(f"{name}: "):
                print(f"{'':>12}  {outcome.removeprefix(f'{name}: ')}: {count:,}")


if __name__ == "__main__":
    main()
