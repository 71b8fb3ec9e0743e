"""A primary with a synchronous standby, and the end of a server by SIGKILL to each of its processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import asyncpg

from tests.postgres.server import Server

GONE_SECONDS_MAX = 30.0


def kill_all(server: Server) -> None:
    """SIGKILL to the server's first process and all its children, by their ids: nobody has a last word."""
    assert server.process is not None
    first = server.process.pid
    os.kill(first, signal.SIGSTOP)  # so that it makes no children while they are counted
    children = _children(first)
    for pid in (first, *children):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    server.process.wait(GONE_SECONDS_MAX)
    deadline = time.monotonic() + GONE_SECONDS_MAX
    while any(_is_running(pid) for pid in children):  # a new server refuses to start beside them
        assert time.monotonic() < deadline, "killed processes do not end"
        time.sleep(0.01)


def _children(pid: int) -> list[int]:
    return [child for child, (parent, _) in _processes().items() if parent == pid]


def _is_running(pid: int) -> bool:
    _, state = _processes().get(pid, (0, "Z"))
    return state != "Z"


def _processes() -> dict[int, tuple[int, str]]:
    """The processes of this machine with their parents and states."""
    if Path("/proc/self/stat").exists():
        found = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, parent = path.read_text().rpartition(")")[2].split()[:2]
                found[int(path.parent.name)] = (int(parent), state)
        return found
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return {int(pid): (int(parent), state[0]) for pid, parent, state in rows}


class Pair:
    """A primary and a standby that has all that is acknowledged. Further standbys may follow."""

    def __init__(self) -> None:
        self.primary = Server()
        self.standby = Server()
        self._all = [self.primary, self.standby]

    def create(self) -> Pair:
        """Make and start both; what the primary acknowledges is flushed by both from then on."""
        self.primary.create()
        self.standby.copy_of(self.primary)
        self._ask("ALTER SYSTEM SET synchronous_standby_names = '*'")
        self._ask("SELECT pg_reload_conf()")
        self.mend()
        return self

    def mend(self) -> None:
        """Start the standby if it is not there, and wait until the primary waits for it."""
        sql = "SELECT sync_state, current_setting('synchronous_standby_names') FROM pg_stat_replication"
        deadline = time.monotonic() + GONE_SECONDS_MAX
        while self._ask(sql) != "sync|*":
            if self.standby.process is None or self.standby.process.poll() is not None:
                self.standby.start()  # one that was killed may take a moment to end
            assert time.monotonic() < deadline, f"the standby does not follow: {self.primary.log[-2000:]}"
            time.sleep(0.02)

    def _ask(self, sql: str) -> str:
        return self.primary.run("psql", "-X", "-A", "-t", "-d", self.primary.url, "-c", sql).strip()

    @property
    def url(self) -> str:
        """The database ``postgres`` on whichever of the two takes writes."""
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in (self.primary, self.standby))
        return f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"

    async def fail_over(self) -> None:
        """Kill the primary while it has appends that the standby has not, and make the standby one."""
        (receiver,) = await _column(self.standby, "SELECT pid FROM pg_stat_wal_receiver")
        os.kill(receiver, signal.SIGSTOP)
        try:
            deadline = time.monotonic() + GONE_SECONDS_MAX
            while not await _column(self.primary, "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"):
                assert time.monotonic() < deadline, "no append waits for the standby"
            await asyncio.to_thread(kill_all, self.primary)
        finally:
            os.kill(receiver, signal.SIGTERM)  # before it reads on
            os.kill(receiver, signal.SIGCONT)
        await promote(self.standby)

    def stop(self) -> None:
        """Stop all."""
        for server in self._all:
            server.stop()


async def promote(standby: Server) -> None:
    """Make a standby take writes; returns when it does."""
    assert await _column(standby, "SELECT pg_promote(true)") == [True]


async def _column(server: Server, sql: str) -> list[Any]:
    connection = await asyncpg.connect(server.url)
    try:
        return [row[0] for row in await connection.fetch(sql)]
    finally:
        await connection.close()
