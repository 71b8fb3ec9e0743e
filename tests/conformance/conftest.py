"""What all conformance tests run under: a call of the library that blocks the loop fails the test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from blockbuster import blockbuster_ctx


@pytest.fixture(autouse=True)
def nothing_blocks() -> Iterator[None]:
    """Files, sockets, locks and sleeps that the library waits for in the loop raise `BlockingError`."""
    # The tests that are part of the package may block, as tests may; what they call of the library may not.
    with blockbuster_ctx("aiostore", excluded_modules=["aiostore.testing.conformance"]) as found:
        for function in found.functions.values():
            # asyncpg looks for a file of passwords when it connects; asyncinotify reads what is there already.
            function.can_block_in("asyncpg/connect_utils.py", {"_parse_connect_arguments"})
            function.can_block_in("asyncinotify/__init__.py", {"_get"})
        yield
