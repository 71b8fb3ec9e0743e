"""What only a process of its own can show: pipes, signals, terminals, a missing extra."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from aiostore import EventStore
from tests.cli.commands import argv, content, damage, fill, segments, started

SECONDS = 60


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    await fill(tmp_path / "orders", rounds=300)
    return tmp_path / "orders"


def ended(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    out, err = process.communicate(timeout=SECONDS)
    return process.returncode, out, err


def test_a_pipe_that_is_closed_ends_it_quietly(path: Path) -> None:
    for command in (["cat"], ["cat", "--follow"]):
        process = started(*command, path)
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event_id"] == 1
        process.stdout.close()
        assert process.wait(SECONDS) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""
        process.stderr.close()


def test_following_ends_when_the_pipe_is_closed_though_nothing_is_written(path: Path) -> None:
    process = started("cat", path, "-f", "--after", 1799)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["event_id"] == 1800
    process.stdout.close()
    assert process.wait(SECONDS) == 0
    assert process.stderr is not None
    process.stderr.close()


async def test_following_shows_what_is_appended_and_ends_at_ctrl_c(path: Path) -> None:
    process = started("cat", path, "--follow", "--after", 1799, "--stream", "a-1")
    async with EventStore(path) as store:
        assert process.stdout is not None
        await store.append("b", "Third", {})
        for n in range(3):
            await store.append("a-1", "Third", {"n": n})
            line = await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), SECONDS)
            assert json.loads(line)["data"] == {"n": n}
    process.send_signal(signal.SIGINT)
    assert await asyncio.to_thread(ended, process) == (130, b"", b"")


async def test_following_ends_at_its_limit(path: Path) -> None:
    process = started("cat", path, "--follow", "--after", 1798, "--limit", 4)
    async with EventStore(path) as store:
        for n in range(5):
            await store.append("a-1", "Third", {"n": n})
        code, out, err = await asyncio.to_thread(ended, process)
    assert (code, err) == (0, b"")
    assert [json.loads(line)["event_id"] for line in out.splitlines()] == [1799, 1800, 1801, 1802]


def test_ctrl_c_ends_it_while_nobody_reads_from_the_pipe(path: Path) -> None:
    process = started("cat", path)
    assert process.stdout is not None
    held = bytearray(4)
    while int.from_bytes(held, sys.byteorder) < 60_000:  # as much as the pipe takes, which is less than there is
        assert process.poll() is None
        fcntl.ioctl(process.stdout, termios.FIONREAD, held)
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(SECONDS) == 130
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stdout.close()
    process.stderr.close()


def test_output_that_finds_no_room_is_an_error(path: Path) -> None:
    with open("/dev/full", "wb") as full:
        ran = subprocess.run(argv("cat", path), stdout=full, stderr=subprocess.PIPE, timeout=SECONDS, check=False)
    assert ran.returncode == 3
    assert ran.stderr.startswith(b"aiostore: No space left on device")


# --- terminals ---


def on_terminal(args: list[str], answers: dict[bytes, bytes]) -> tuple[int, bytes]:
    """Run on a terminal; each answer is typed when its question is there.

    Ctrl-C is typed again if nothing happens: between showing a question and waiting for its answer, Python notes a
    signal and does not look at it before the next key.
    """
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(args[0], args)
    shown = typed = b""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            if select.select([terminal], [], [], 2)[0]:
                shown += os.read(terminal, 65536)
            elif time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                break
            elif typed == b"\x03":
                os.write(terminal, typed)
        except OSError:
            break
        for question in [question for question in answers if question in shown]:
            typed = answers.pop(question)
            os.write(terminal, typed)
    _, status = os.waitpid(pid, 0)
    os.close(terminal)  # now: a process that is about to end would be hung up on
    return os.waitstatus_to_exitcode(status), shown


@pytest.mark.parametrize(("answer", "code"), [(b"y\n", 0), (b"n\n", 1), (b"\n", 1), (b"\x03", 130)])
def test_repair_asks_on_a_terminal(path: Path, answer: bytes, code: int) -> None:
    damage(segments(path)[0], 100_000)
    before = content(path)
    ended_with, shown = on_terminal(argv("repair", path), {b"out of the log?": answer})
    assert ended_with == code
    assert (b"Done: the store is whole" in shown) == (code == 0)
    assert (content(path) == before) == (code != 0)
    assert len([*path.parent.glob("orders.damaged-*")]) == (code == 0)


def test_progress_is_shown_on_a_terminal_only(path: Path) -> None:
    code, shown = on_terminal(argv("verify", path), {})
    assert (code, b"reading the log" in shown) == (0, True)
    ran = subprocess.run(argv("verify", path, "--json"), capture_output=True, timeout=SECONDS, check=True)
    assert ran.stderr == b""
    assert json.loads(ran.stdout)["whole"]


@pytest.mark.parametrize("command", [["verify"], ["repair", "--yes"], ["stats", "--full"]])
def test_ctrl_c_during_long_work_leaves_all_as_it_was(tmp_path: Path, path: Path, command: list[str]) -> None:
    damage(segments(path)[0], 100_000)
    before = content(path)
    ready, go = tmp_path / "ready", tmp_path / "go"
    program = (
        "import sys, time, pathlib\n"
        "from aiostore.engines.file import examination, disk\n"
        "from aiostore.__main__ import main\n"
        "read = disk.Disk.read\n"
        "def slow(*args):\n"
        f"    pathlib.Path({str(ready)!r}).touch()\n"
        f"    while not pathlib.Path({str(go)!r}).exists():\n"
        "        time.sleep(0.01)\n"
        "    return read(*args)\n"
        "disk.Disk.read = slow\n"
        "main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, *command, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while not ready.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    time.sleep(1)  # it is told of the signal, and is still at its first read
    go.touch()
    code, out, err = ended(process)
    assert (code, out) == (130, b""), err
    assert b"Traceback" not in err
    assert content(path) == before
    assert {each.name for each in path.parent.iterdir()} == {"orders", "ready", "go"}


# --- installation ---


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_there_is_a_hint(missing: str) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None; from aiostore.__main__ import main; main()"
    ran = subprocess.run([sys.executable, "-c", program, "verify"], capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert len(ran.stderr.splitlines()) == 1
    assert "pip install '.[cli]' from the checkout" in ran.stderr
    assert "pip install aiostore" not in ran.stderr


def test_bytes_that_are_no_text_in_a_path(path: Path) -> None:
    odd = os.fsencode(path.parent) + b"/\xff\n"
    os.rename(path, odd)
    for command in ("verify", "stats", "cat"):
        ran = subprocess.run([*argv(command), odd], capture_output=True, timeout=SECONDS, check=False)
        assert (ran.returncode, ran.stderr) == (0, b"")
    ran = subprocess.run([*argv("verify", "--json"), odd], capture_output=True, timeout=SECONDS, check=False)
    assert json.loads(ran.stdout)["whole"]
    name = os.fsencode(segments(path.parent / os.fsdecode(b"\xff\n"))[0])
    with open(name, "r+b") as file:
        file.seek(100_000)
        file.write(b"!")
    ran = subprocess.run([*argv("repair", "--yes", "--json"), odd], capture_output=True, timeout=SECONDS, check=False)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert os.path.isdir(os.fsencode(json.loads(ran.stdout)["outcome"]["evidence"].replace("\\xff\\n", "\udcff\n")))
    ran = subprocess.run([*argv("repair"), odd + b"x"], capture_output=True, timeout=SECONDS, check=False)
    assert (ran.returncode, ran.stderr) == (3, b"aiostore: there is no %s/\\xff\\nx\n" % os.fsencode(path.parent))
