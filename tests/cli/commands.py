"""Running commands, in this process and in one of their own, over small stores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from typer.testing import CliRunner

from aiostore import EventStore, NewEvent
from aiostore.cli.app import app


class Ran(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


def run(*args: object, stdin: str | None = None) -> Ran:
    """Run a command in this process."""
    result = CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ran(result.exit_code, result.stdout, result.stderr)


def argv(*args: object) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "aiostore", *(os.fsdecode(str(arg)) for arg in args)]


def started(*args: object, **options: Any) -> subprocess.Popen[bytes]:
    """Start a command in a process of its own."""
    return subprocess.Popen(argv(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


async def fill(path: Path, streams: Sequence[str] = ("a-1", "a-2", "b"), rounds: int = 20, **options: Any) -> None:
    """Make a store: in each round, one commit of two events in each of the streams."""
    async with EventStore(path, **options) as store:
        for n in range(rounds):
            for stream_id in streams:
                second = NewEvent("Second", {"n": n}, tags=[f"n:{n}", "all"])
                await store.append_batch(stream_id, [("First", {"n": n}), second])


def segments(path: Path) -> list[Path]:
    return sorted(path.glob("*.jsonl"))


def damage(path: Path, place: int = 300) -> None:
    """Change a byte."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def content(path: Path) -> dict[str, bytes]:
    """All files of a directory but the lock, which says who was the last to hold it."""
    return {each.name: each.read_bytes() for each in path.iterdir() if each.name != "lock"}
