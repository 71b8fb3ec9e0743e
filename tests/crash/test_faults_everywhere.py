"""Every call of the disk fails once, or from then on: nothing promised is lost, and each failure is named."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import random
from collections.abc import Iterator

import pytest

from aiostore import EngineUnavailable, StoreCorrupt, StoreFailed, StoreFull
from tests.crash.faulty import OPERATIONS, Fault, FaultyDisk
from tests.crash.judge import Tally, check_end
from tests.crash.life import Life

SEEDS = range(int(os.environ.get("AIOSTORE_FAULT_SEEDS", "2" if os.environ.get("CI") else "1")))

FAULTS = [
    *((operation, fault, number)
      for operation in OPERATIONS
      for fault in (Fault.ONCE, Fault.FROM_THEN_ON)
      for number in (errno.EIO, errno.ENOSPC)),
    ("write_log", Fault.SHORT, 0),
    ("write_log", Fault.LOST, errno.EIO),
    ("sync", Fault.LOST, errno.EIO),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    ("operation", "fault", "number"),
    FAULTS,
    ids=[
        f"{operation}-{fault.name.lower()}-{errno.errorcode.get(number, 'short')}"
        for operation, fault, number in FAULTS
    ],
)
def test_each_call_fails(operation: str, fault: Fault, number: int) -> None:
    tally = Tally()
    for seed in SEEDS:
        _each_call(seed, operation, fault, number, tally)


def _each_call(seed: int, operation: str, fault: Fault, number: int, tally: Tally) -> None:
    for at in itertools.count(1):
        disk = FaultyDisk(None, operation, fault, number, at)
        life = Life(seed, None, disk)
        life.live()
        disk.armed = False
        for refusal in life.refusals:
            assert isinstance(refusal, StoreFull | StoreFailed | EngineUnavailable | StoreCorrupt)
            assert not isinstance(refusal, StoreFull) or number == errno.ENOSPC
        check_end(life, random.Random(seed), tally, 8)
        assert disk.held == 0, "no file stays open"
        if not disk.has_failed:
            break
