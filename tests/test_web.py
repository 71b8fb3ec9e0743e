"""The web example as its users meet it: a process of its own, real HTTP, and a real browser."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from aiostore import EventStore

EXAMPLES = Path(__file__).parents[1] / "examples"
DEADLINE_S = 60.0
EXIT_S_MAX = 2.0
"""It takes 0.7 s at most; on a machine that has more to do than processors, so much longer."""
MIB = 1024 * 1024

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="there is no /proc to read the memory of a process from"
)

# The app with a way to append much at once, to close its store under it, and to bound the size of its files.
RUNNER = """
import resource, sys, uvicorn
from fastapi import Request
from web import create_app

app = create_app(sys.argv[1])

@app.post("/bulk/{count}")
async def bulk(count: int, request: Request) -> None:
    for _ in range(count // 250):
        events = [("ItemAdded", {"item": "bulk" * 400, "quantity": 1})] * 250
        await request.state.shop.store.append_batch("order-bulk", events)

@app.post("/close")
async def close(request: Request) -> None:
    await request.state.shop.store.aclose()

if sys.argv[2:]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
uvicorn.run(app, port=0, timeout_graceful_shutdown=1)
"""


@dataclass
class Server:
    """The app in a process of its own."""

    process: subprocess.Popen[bytes]
    log: Path
    url: str = ""

    def wait_until_up(self) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not (said := re.search(r"running on (http://\S+)", self.log.read_text())):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)
        self.url = said[1]

    @property
    def port(self) -> int:
        return httpx.URL(self.url).port or 80

    def stop(self, timeout: float = DEADLINE_S) -> float:
        """Stop it as Ctrl-C does; returns how long it took."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        self.process.wait(timeout)
        return time.monotonic() - started

    def rss_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found
        return int(found[1]) * 1024


@contextmanager
def run(log: Path, *arguments: str) -> Iterator[Server]:
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", *arguments], cwd=EXAMPLES, stdout=subprocess.DEVNULL, stderr=stderr
        )
    server = Server(process, log)
    try:
        server.wait_until_up()
        yield server
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in log.read_text()


@contextmanager
def serving(directory: Path, port: int = 0) -> Iterator[Server]:
    """The example itself, with its store in the directory."""
    with run(directory.with_suffix(".log"), "web.py", str(directory), "--port", str(port)) as server:
        yield server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "store") as server:
        yield server


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """For tests that can share one, each with orders of its own."""
    with serving(tmp_path_factory.mktemp("shared") / "store") as server:
        yield server


@pytest.fixture
def shop(shared_server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=shared_server.url, timeout=DEADLINE_S, trust_env=False) as client:
        yield client


def connected(server: Server) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=server.url, timeout=DEADLINE_S, trust_env=False)


def exit_s_max() -> float:
    return EXIT_S_MAX * max(1, os.getloadavg()[0] / (os.cpu_count() or 1))


def item(name: str = "teapot", quantity: int = 1) -> dict[str, Any]:
    return {"item": name, "quantity": quantity}


def match(version: int) -> dict[str, str]:
    return {"If-Match": f'"{version}"'}


class Messages:
    """What comes by server-sent events, as the events in it."""

    def __init__(self, response: httpx.Response) -> None:
        self._chunks = response.aiter_bytes()
        self._text = b""

    async def take(self, count: int) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        while len(events) < count:
            while b"\r\n\r\n" not in self._text:
                self._text += await anext(self._chunks)
            message, self._text = self._text.split(b"\r\n\r\n", 1)
            fields = dict(line.split(b": ", 1) for line in message.split(b"\r\n"))
            if b"data" in fields:  # else it is a ping
                event = json.loads(fields[b"data"])
                assert int(fields[b"id"]) == event["event_id"]
                events.append(event)
        return events

    async def ids(self, count: int) -> list[int]:
        return [event["event_id"] for event in await self.take(count)]

    async def rest(self) -> bytes:
        return self._text + b"".join([chunk async for chunk in self._chunks])


@asynccontextmanager
async def following(client: httpx.AsyncClient, last_event_id: int | None = None) -> AsyncIterator[Messages]:
    headers = {} if last_event_id is None else {"Last-Event-ID": str(last_event_id)}
    async with client.stream("GET", "/events", headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        yield Messages(response)


async def place(client: httpx.AsyncClient, order: str, version: int = 0) -> None:
    response = await client.post(f"/orders/{order}", json=item(), headers=match(version))
    assert response.status_code == 201, response.text


async def streams(client: httpx.AsyncClient, count: int) -> list[dict[str, Any]]:
    """Wait until the server has so many subscriptions; returns how they are doing."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            status = (await client.get("/status")).json()
            if len(status["streams"]) == count:
                found: list[dict[str, Any]] = status["streams"]
                return found
            await asyncio.sleep(0.01)


# --- orders ---


def test_an_order_is_placed_added_to_and_shown(shop: httpx.Client) -> None:
    assert shop.get("/orders/first").status_code == 404

    placed = shop.post("/orders/first", json=item("teapot", 2), headers=match(0))
    assert (placed.status_code, placed.headers["ETag"]) == (201, '"1"')
    assert placed.headers["content-type"] == "application/json"
    event = placed.json()
    assert (event["stream_id"], event["version"], event["event_type"]) == ("order-first", 1, "OrderPlaced")
    assert event["data"] == {"item": "teapot", "quantity": 2}

    added = shop.post("/orders/first", json=item("cup", 6), headers=match(1))
    assert (added.status_code, added.headers["ETag"], added.json()["event_type"]) == (201, '"2"', "ItemAdded")

    shown = shop.get("/orders/first")
    assert (shown.status_code, shown.headers["ETag"]) == (200, '"2"')
    assert shown.json() == {"order_id": "first", "version": 2, "items": {"teapot": 2, "cup": 6}}


def test_a_conflict_tells_the_version_to_go_on_with(shop: httpx.Client) -> None:
    assert shop.post("/orders/contested", json=item(), headers=match(0)).status_code == 201
    late = shop.post("/orders/contested", json=item("cup"), headers=match(0))
    assert (late.status_code, late.headers["ETag"]) == (412, '"1"')
    assert "is at version 1" in late.json()["detail"]
    retried = shop.post("/orders/contested", json=item("cup"), headers={"If-Match": late.headers["ETag"]})
    assert (retried.status_code, retried.headers["ETag"]) == (201, '"2"')

    ahead = shop.post("/orders/nobody-placed", json=item(), headers=match(7))
    assert (ahead.status_code, ahead.headers["ETag"]) == (412, '"0"')


async def test_of_those_who_saw_the_same_version_one_wins(shared_server: Server) -> None:
    async with connected(shared_server) as client:
        answers = await asyncio.gather(
            *(client.post("/orders/race", json=item(f"cup {n}"), headers=match(0)) for n in range(20))
        )
        assert sorted(answer.status_code for answer in answers) == [201] + [412] * 19
        assert (await client.get("/orders/race")).json()["version"] == 1


def test_a_request_sent_again_is_stored_once(shop: httpx.Client) -> None:
    headers = match(0) | {"Idempotency-Key": "request-1"}
    first, again = (shop.post("/orders/repeated", json=item(), headers=headers) for _ in range(2))
    assert first.status_code == again.status_code == 201
    assert first.json() == again.json()
    assert again.headers["ETag"] == '"1"'

    other = shop.post("/orders/repeated", json=item("cup"), headers=headers)
    assert other.status_code == 409
    assert "request-1" in other.json()["detail"]
    assert shop.get("/orders/repeated").json()["items"] == {"teapot": 1}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 428),
        ([("If-Match", "3")], 400),
        ([("If-Match", "")], 400),
        ([("If-Match", '""')], 400),
        ([("If-Match", '"-1"')], 400),
        ([("If-Match", '"03"')], 400),
        ([("If-Match", '"1.0"')], 400),
        ([("If-Match", '"\xb2"')], 400),
        ([("If-Match", 'W/"3"')], 400),
        ([("If-Match", "*")], 400),
        ([("If-Match", '"0", "1"')], 400),
        ([("If-Match", '"0"'), ("If-Match", '"1"')], 400),
        ([("If-Match", f'"{"9" * 4_000}"')], 400),
        ([("If-Match", f'"{"9" * 18}"')], 412),
        ([("If-Match", '"0"'), ("Idempotency-Key", "")], 422),
        ([("If-Match", '"0"'), ("Idempotency-Key", "k" * 257)], 422),
    ],
)
def test_headers_that_are_not_right_are_refused(
    shop: httpx.Client, headers: list[tuple[str, str]], status: int
) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    refused = shop.post("/orders/headers", json=item(), headers=raw)
    assert refused.status_code == status, refused.text
    assert refused.json()["detail"]
    assert shop.get("/orders/headers").status_code == 404


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"[]", 422),
        (b"{}", 422),
        (b'{"item": "", "quantity": 1}', 422),
        (b'{"item": 7, "quantity": 1}', 422),
        (b'{"item": "cup"}', 422),
        (b'{"item": "cup", "quantity": 0}', 422),
        (b'{"item": "cup", "quantity": 1001}', 422),
        (b'{"item": "cup", "quantity": 1.5}', 422),
        (b'{"item": "cup", "quantity": true}', 422),
        (b'{"item": "cup", "quantity": "1"}', 422),
        (b'{"item": "cup", "quantity": NaN}', 422),
        (b'{"item": "cup", "quantity": 1e400}', 422),
        (b'{"item": "cup", "quantity": ' + b"9" * 5_000 + b"}", 400),
        (b'{"item": "\\ud800", "quantity": 1}', 422),
        (b'{"item": "' + b"c" * 101 + b'", "quantity": 1}', 422),
        (b'{"item": "cup", "quantity": 1', 422),
        (b"\xff", 400),
        (b"[" * 60_000, 400),
        (b'{"item": "' + b"c" * 70_000 + b'", "quantity": 1}', 413),
    ],
    ids=range(20),
)
def test_bodies_that_are_no_item_are_refused(shop: httpx.Client, body: bytes, status: int) -> None:
    headers = match(0) | {"Content-Type": "application/json"}
    refused = shop.post("/orders/bodies", content=body, headers=headers)
    assert refused.status_code == status, refused.text
    assert shop.get("/orders/bodies").status_code == 404


@needs_proc
@pytest.mark.parametrize("chunked", [False, True])
def test_a_huge_body_is_not_kept_in_memory(shared_server: Server, shop: httpx.Client, chunked: bool) -> None:
    before = shared_server.rss_bytes()
    body = iter([b"x" * MIB] * 100) if chunked else b"x" * (100 * MIB)
    try:
        refused = shop.post("/orders/huge", content=body, headers=match(0))
    except httpx.NetworkError:
        pass  # it may hang up before it has heard it all
    else:
        assert refused.status_code == 413
    assert shop.get("/orders/huge").status_code == 404
    assert shared_server.rss_bytes() - before < 20 * MIB


@pytest.mark.parametrize(
    ("path", "order", "status"),
    [
        ("/orders/t%C3%A9i%E8%8C%B6%F0%9F%AB%96", "téi茶🫖", 201),
        ("/orders/a%20b%22%3Cb%3E'", "a b\"<b>'", 201),
        ("/orders/%FF", "\N{REPLACEMENT CHARACTER}", 201),
        ("/orders/a%2Fb", None, 404),
        ("/orders/a/b", None, 404),
        ("/orders/..%2F..%2Fetc", None, 404),
        ("/orders/%00", None, 422),
        ("/orders/a%0Ab", None, 422),
        ("/orders/%C2%85", None, 422),
        (f"/orders/{'x' * 1_025}", None, 422),
        ("/orders/", None, 404),
    ],
)
def test_the_name_of_an_order_is_what_the_store_takes(
    shop: httpx.Client, path: str, order: str | None, status: int
) -> None:
    answer = shop.post(path, json=item(), headers=match(0))
    assert answer.status_code == status, answer.text
    shown = shop.get(path)
    if order is None:
        assert shown.status_code in (404, 422)
    else:
        assert answer.json()["stream_id"] == f"order-{order}"
        assert shown.json()["order_id"] == order


def test_the_totals_have_what_was_posted_before_the_post_returns(shop: httpx.Client) -> None:
    for version in range(50):
        shop.post("/orders/counted", json=item("counted", 3), headers=match(version)).raise_for_status()
        assert shop.get("/totals").json()["counted"] == 3 * (version + 1)


def test_a_full_disk_is_507_and_what_was_stored_stays(tmp_path: Path) -> None:
    with (
        run(tmp_path / "log", "-c", RUNNER, str(tmp_path / "store"), str(16 * 1024)) as server,
        httpx.Client(base_url=server.url, timeout=DEADLINE_S, trust_env=False) as client,
    ):
        version = 0
        while (answer := client.post("/orders/1", json=item("x" * 100), headers=match(version))).is_success:
            version += 1
        assert answer.status_code == 507
        assert "nothing was stored" in answer.json()["detail"]
        assert client.get("/orders/1").json()["version"] == version


def test_a_store_that_is_closed_is_503(tmp_path: Path) -> None:
    with (
        run(tmp_path / "log", "-c", RUNNER, str(tmp_path / "store")) as server,
        httpx.Client(base_url=server.url, timeout=DEADLINE_S, trust_env=False) as client,
    ):
        client.post("/close").raise_for_status()
        assert client.post("/orders/1", json=item(), headers=match(0)).status_code == 503
        assert {client.get(path).status_code for path in ("/orders/1", "/totals", "/events", "/status")} == {503}


# --- events ---


async def test_history_then_live_for_two_clients_at_once(server: Server) -> None:
    count = 100

    async def place_all(prefix: str) -> None:
        for number in range(count):
            await place(client, f"{prefix}-{number}")

    async with connected(server) as client:
        await place_all("before")
        async with following(client) as one, following(client) as another, asyncio.TaskGroup() as group:
            for prefix in ("a", "b", "c"):
                group.create_task(place_all(prefix))
            received = [group.create_task(messages.ids(4 * count)) for messages in (one, another)]
        assert [task.result() for task in received] == [list(range(1, 4 * count + 1))] * 2


async def test_what_is_seen_at_events_is_in_the_totals(server: Server) -> None:
    async with connected(server) as client, following(client) as messages, asyncio.TaskGroup() as group:
        for number in range(50):
            placing = group.create_task(place(client, f"seen-{number}"))
            await messages.take(1)
            assert (await client.get("/totals")).json() == {"teapot": number + 1}
            await placing


async def test_a_client_that_comes_back_gets_what_it_missed(server: Server) -> None:
    async with connected(server) as client:
        for number in range(10):
            await place(client, f"early-{number}")
        async with following(client) as messages:
            last = (await messages.ids(6))[-1]
        for number in range(10):
            await place(client, f"late-{number}")
        async with following(client, last) as messages:
            assert await messages.ids(14) == list(range(7, 21))
        async with following(client, 20) as messages:
            await place(client, "new")
            assert await messages.ids(1) == [21]


@pytest.mark.parametrize("last_event_id", ["", "-1", "+1", "1.0", "01", "1_0", "\xb2", "latest", "9" * 17, "9" * 5_000])
def test_a_last_event_id_that_was_never_sent_is_refused(shop: httpx.Client, last_event_id: str) -> None:
    refused = shop.get("/events", headers=[(b"Last-Event-ID", last_event_id.encode("latin-1"))])
    assert refused.status_code == 400, refused.text


async def test_line_breaks_of_all_kinds_come_through(server: Server) -> None:
    name = "a\nb\r\nc\rd\x0b\x85\u2028\u2029\0 data: x"
    async with connected(server) as client, following(client) as messages:
        answer = await client.post("/orders/1", json=item(name), headers=match(0))
        (event,) = await messages.take(1)
        assert event == answer.json()
        assert event["data"]["item"] == name


async def test_a_client_that_goes_away_frees_its_subscription(server: Server) -> None:
    async with connected(server) as client:
        assert await streams(client, 0) == []
        async with following(client) as staying:
            async with following(client), following(client):
                await streams(client, 3)
            await streams(client, 1)
            await place(client, "1")
            assert await staying.ids(1) == [1]
        await streams(client, 0)


# --- stopping ---


async def test_it_stops_at_once_with_clients_connected(server: Server, tmp_path: Path) -> None:
    async with connected(server) as client:
        for number in range(20):
            await place(client, f"order-{number}")
        async with following(client) as one, following(client) as two, following(client, 20) as three:
            assert await one.ids(20) == await two.ids(20) == list(range(1, 21))
            took = await asyncio.to_thread(server.stop)
            # They end as a response ends that is complete.
            assert [await messages.rest() for messages in (one, two, three)] == [b""] * 3

    log = server.log.read_text()
    assert server.process.returncode == 0, log
    assert took < exit_s_max()
    assert "ERROR" not in log
    async with EventStore(tmp_path / "store") as store:
        assert [event.event_id async for event in store.read_all()] == list(range(1, 21))


async def test_a_second_server_on_the_directory_says_who_has_it(server: Server, tmp_path: Path) -> None:
    second = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "web.py", str(tmp_path / "store"), "--port", "0"),
        cwd=EXAMPLES,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    _, said = await second.communicate()
    assert second.returncode == 3
    assert f"locked for writing by process {server.process.pid}" in said.decode()


# --- a client that does not read ---


def stalled_client(server: Server) -> socket.socket:
    """A client that asks for the events and does not read them."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    client.settimeout(DEADLINE_S)
    client.connect(("127.0.0.1", server.port))
    client.sendall(b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    return client


def read_ids(client: socket.socket, up_to: int) -> list[int]:
    """Read as a client does that was stalled and reads again."""
    ids: list[int] = []
    text = b""
    while not ids or ids[-1] < up_to:
        chunk = client.recv(MIB)
        assert chunk, f"the stream ended after event {ids[-1:]}"
        text += chunk
        whole, separator, text = text.rpartition(b"\r\n")
        ids += map(int, re.findall(rb"^id: (\d+)\r$", whole + separator, re.MULTILINE))
    return ids


@needs_proc
async def test_a_client_that_does_not_read_costs_little_and_holds_up_nobody(tmp_path: Path) -> None:
    warm, count = 5_000, 50_000  # of 1.8 KB as JSON each: 90 MB
    with run(tmp_path / "log", "-c", RUNNER, str(tmp_path / "store")) as server:
        async with connected(server) as client:
            (await client.post(f"/bulk/{warm}")).raise_for_status()
            with stalled_client(server) as stalled:
                await streams(client, 1)
                async with following(client) as reading:
                    assert await reading.ids(warm) == list(range(1, warm + 1))
                    before = server.rss_bytes()

                    bulk = asyncio.create_task(client.post(f"/bulk/{count}"))
                    received = asyncio.create_task(reading.ids(count + 10))
                    for number in range(10):
                        await place(client, f"meanwhile-{number}")
                    (await bulk).raise_for_status()
                    head = warm + count + 10
                    assert await received == list(range(warm + 1, head + 1))
                    grown = server.rss_bytes() - before

                    slow = max(await streams(client, 2), key=lambda stream: int(stream["lag"]))
                    assert slow["lag"] > count // 2
                    assert slow["queued_count"] <= 500
                assert grown < 30 * MIB

                ids = await asyncio.to_thread(read_ids, stalled, head)
                assert ids == list(range(1, head + 1))
            await streams(client, 0)


async def test_it_stops_with_a_client_that_does_not_read(tmp_path: Path) -> None:
    # uvicorn leaves the transport of such a client to the end of the process, with a ResourceWarning.
    ignored = ("-W", "ignore::ResourceWarning")
    with run(tmp_path / "log", *ignored, "-c", RUNNER, str(tmp_path / "store")) as server:
        async with connected(server) as client:
            (await client.post("/bulk/10000")).raise_for_status()
            with stalled_client(server):
                await streams(client, 1)
                took = await asyncio.to_thread(server.stop)
    assert server.process.returncode == 0
    assert took < exit_s_max()


# --- the page ---


def find_browser() -> str:
    """A Chromium; skips the test without one, but where everything must be tested."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if found := shutil.which(name):
            return found
    if os.environ.get("CI") == "true":
        pytest.fail("chromium is not installed")
    pytest.skip("chromium is not installed")


class Browser:
    """A headless Chromium with one page, driven over the DevTools protocol by two pipes."""

    def __init__(self, profile: Path) -> None:
        command = [
            *(find_browser(), "--headless", "--remote-debugging-pipe", f"--user-data-dir={profile}"),
            *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
            *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "about:blank"),
        ]
        (browser_in, self._out), (self._in, browser_out) = os.pipe(), os.pipe()
        # It reads from file descriptor 3 and writes to 4; numbers above those do not get in each other's way.
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (browser_in, browser_out)]
        start = "import os, sys; r, w, *c = sys.argv[1:]; os.dup2(int(r), 3); os.dup2(int(w), 4); os.execv(c[0], c)"
        self.process = subprocess.Popen(
            [sys.executable, "-c", start, *map(str, high), *command],
            pass_fds=high,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for fd in (browser_in, browser_out, *high):
            os.close(fd)
        self._text = b""
        self._calls_count = 0
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def call(self, method: str, **parameters: Any) -> Any:
        self._calls_count += 1
        message: dict[str, Any] = {"id": self._calls_count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._calls_count:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + DEADLINE_S
        while b"\0" not in self._text:
            ready, _, _ = select.select([self._in], [], [], max(0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            chunk = os.read(self._in, MIB)
            assert chunk, "the browser is gone"
            self._text += chunk
        message, _, self._text = self._text.partition(b"\0")
        decoded: dict[str, Any] = json.loads(message)
        return decoded

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait_for(f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'")

    def evaluate(self, script: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, script: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not self.evaluate(script):
            assert time.monotonic() < deadline, f"{script}\n{self.evaluate('document.body.innerText')}"
            time.sleep(0.02)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._in)
        os.close(self._out)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    browser = Browser(tmp_path / "profile")
    try:
        yield browser
    finally:
        browser.close()


def shown(text: str) -> str:
    """Whether the table of events has the text, as an expression in the page."""
    return f"document.querySelector('#events').innerText.includes({json.dumps(text)})"


def outcome(text: str) -> str:
    return f"document.querySelector('#outcome').innerText.includes({json.dumps(text)})"


def fill_and_send(order: str, name: str) -> str:
    return f"""
        for (const [field, value] of [[orderField, {json.dumps(order)}], [itemField, {json.dumps(name)}]]) {{
            field.value = value;
            field.dispatchEvent(new Event("input", {{ bubbles: true }}));
        }}
        form.requestSubmit();
    """


def post(server: Server, order: str, name: str, version: int = 0) -> None:
    with httpx.Client(base_url=server.url, timeout=DEADLINE_S, trust_env=False) as client:
        client.post(f"/orders/{order}", json=item(name), headers=match(version)).raise_for_status()


def test_the_page_shows_events_before_and_after_it_was_loaded(server: Server, browser: Browser) -> None:
    post(server, "1", "before")
    browser.open(server.url)
    browser.wait_for(shown("OrderPlaced: 1 × before"))
    browser.wait_for("document.querySelector('#connection').innerText === 'live'")

    post(server, "1", "after", 1)
    browser.wait_for(shown("ItemAdded: 1 × after"))
    browser.wait_for("document.querySelector('#totals').innerText === 'after\\t1\\nbefore\\t1'")
    ids = "[...document.querySelectorAll('#events tr')].map((tr) => Number(tr.cells[0].innerText))"
    assert browser.evaluate(ids) == [2, 1]


def test_the_page_shows_what_it_gets_as_text(server: Server, browser: Browser) -> None:
    attack = "<img src=x onerror='window.hacked = 1'>"
    post(server, "%3Cb%3E", attack)
    browser.open(server.url)
    browser.wait_for(shown(attack))
    browser.wait_for("document.querySelector('#totals').innerText.includes('<img')")
    browser.evaluate(fill_and_send("<b>", attack))
    browser.wait_for(outcome("Stored as event 2"))
    browser.wait_for("document.querySelector('#order-seen').innerText.includes('2 × <img')")
    assert browser.evaluate("document.querySelectorAll('img, b').length + (window.hacked ?? 0)") == 0


def test_the_form_tells_of_a_conflict_and_goes_on_from_there(server: Server, browser: Browser) -> None:
    browser.open(server.url)
    browser.wait_for("document.querySelector('#order-seen').innerText === 'A new order'")
    browser.evaluate(fill_and_send("7", "teapot"))
    browser.wait_for(outcome("Stored as event 1"))
    browser.wait_for("document.querySelector('#order-seen').innerText === 'Version 1: 1 × teapot'")

    post(server, "7", "cup", 1)
    browser.wait_for("document.querySelector('#order-seen').innerText.includes('changed it since')")
    browser.evaluate("itemField.value = 'spoon'; form.requestSubmit()")
    browser.wait_for(outcome("the order is at version 2 now"))
    browser.wait_for("document.querySelector('#order-seen').innerText === 'Version 2: 1 × teapot, 1 × cup'")
    browser.evaluate("form.requestSubmit()")
    browser.wait_for(outcome("Stored as event 3"))
    browser.wait_for("document.querySelector('#order-seen').innerText === 'Version 3: 1 × teapot, 1 × cup, 1 × spoon'")


def test_the_page_goes_on_when_the_server_was_away(tmp_path: Path, browser: Browser) -> None:
    with serving(tmp_path / "store") as server:
        post(server, "1", "first")
        browser.open(server.url)
        browser.wait_for(shown("first"))
        port = server.port
        server.stop()
    browser.wait_for("document.querySelector('#connection').innerText === 'reconnecting'")
    browser.evaluate(fill_and_send("2", "lost"))
    browser.wait_for(outcome("No answer"))
    with serving(tmp_path / "store", port) as server:
        post(server, "3", "second")
        browser.wait_for(shown("second"))
        browser.evaluate("form.requestSubmit()")
        browser.wait_for(outcome("Stored as event 3"))
        browser.wait_for(shown("lost"))
    assert browser.evaluate("document.querySelectorAll('#events tr').length") == 3
