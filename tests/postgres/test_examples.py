"""The examples with a URL: the web app in two workers, the flights killed and started again."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aiostore import EventStore
from tests.test_examples import flights
from tests.test_web import EXAMPLES, Server, connected, exit_s_max, following, place, run

__all__ = ["flights"]

FLIGHTS = 300


async def test_two_workers_of_the_web_app_show_all_the_same_events(
    new_postgres_url: Callable[[], str], tmp_path: Path
) -> None:
    url, count = new_postgres_url(), 60
    with run(tmp_path / "web.log", "web.py", url, "--port", "0", "--workers", "2") as server:
        await workers_are_up(server, 2)
        async with connected(server) as client, asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(place(client, f"order-{number}"))
        # Each connection may go to either worker: what one stored, the other shows.
        for _ in range(6):
            async with connected(server) as client:
                assert (await client.get("/totals")).json() == {"teapot": count}
                async with following(client) as messages:
                    assert await messages.ids(count) == list(range(1, count + 1))
        async with connected(server) as client, following(client) as one, following(client, count) as another:
            assert await one.ids(count) == list(range(1, count + 1))
            await place(client, "last")
            assert await one.ids(1) == await another.ids(1) == [count + 1]
            took = await asyncio.to_thread(server.stop)
    log = server.log.read_text()
    assert server.process.returncode == 0, log
    assert "ERROR" not in log
    assert took < 2 * exit_s_max()
    async with EventStore(url) as store:
        assert await store.head() == count + 1


async def workers_are_up(server: Server, count: int) -> None:
    async with asyncio.timeout(60):
        while server.log.read_text().count("Application startup complete") < count:  # noqa: ASYNC110 (a log has no event)
            await asyncio.sleep(0.02)


def test_several_workers_on_a_directory_are_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "web.py", str(tmp_path / "s"), "--workers", "2"]
    done = subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "several workers need a postgresql:// URL" in done.stderr


@pytest.mark.usefixtures("flights")
def test_the_flights_killed_and_started_again_come_to_the_same_table(new_postgres_url: Callable[[], str]) -> None:
    url = new_postgres_url()
    command = [sys.executable, "-W", "error", "flights.py", url, "--limit", str(FLIGHTS), "--every", "0.01"]
    with subprocess.Popen(command, cwd=EXAMPLES, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as first:
        assert first.stderr is not None
        for line in first.stderr:
            if " events, " in line and int(line.split(" ")[0].replace(",", "")) > FLIGHTS:
                break
        first.kill()
    done = subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stderr.split(" ")[0].replace(",", "")) > FLIGHTS, "the first run is gone on with"
    assert "these totals are those of the data set" in done.stdout


def test_orders_are_counted_once_by_processes_that_are_killed_and_by_two_at_once(
    new_postgres_url: Callable[[], str],
) -> None:
    command = [sys.executable, "-W", "error", "orders_sqlalchemy.py", new_postgres_url(), "--orders", "60"]

    def started() -> subprocess.Popen[str]:
        return subprocess.Popen(command, cwd=EXAMPLES, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    for lines in (5, 25):
        with started() as process:
            assert process.stdout is not None
            for _ in range(lines):
                assert "in the table" in process.stdout.readline()
            process.kill()
    ends = []
    for count in (1, 2, 1):
        for process in [started() for _ in range(count)]:
            printed, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
            ends.append(printed.splitlines()[-1])
    assert any("each of them once" in end for end in ends[1:3])
    assert all("each of them once" in end or "another process counts" in end for end in ends)
    total = re.match(r"these are the (\d+) orders", ends[-1])
    assert total is not None, ends
    assert int(total[1]) >= 30 + 4 * 60
