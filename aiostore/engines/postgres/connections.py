"""Connections: how they are made, a pool of them for reading, and how a forked child lets go of its copies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from weakref import WeakSet

import asyncpg
import msgspec
from asyncpg.connect_utils import SessionAttribute

from aiostore.engines.postgres.failures import is_lost, mapped
from aiostore.engines.postgres.location import Location
from aiostore.errors import EngineUnavailable, StoreClosed

T = TypeVar("T")

CLOSE_SECONDS_MAX: Final = 2.0
"""So long a connection may take to be closed politely."""

BACKOFF_SECONDS: Final = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)
"""How long to wait before each further try; the last is that of all later ones."""

# What each page needs is in an index, in order: the planner is kept from guessing otherwise where it has no statistics
# yet, and from planning anew what is asked again and again.
_SETTINGS: Final = {
    "application_name": "aiostore",
    "default_transaction_isolation": "read committed",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_seqscan": "off",
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
    "plan_cache_mode": "force_generic_plan",
    "search_path": "pg_catalog",
    "tcp_keepalives_count": "3",
    "tcp_keepalives_idle": "15",
    "tcp_keepalives_interval": "5",
}

_INTRODUCTION: Final = """
SELECT pg_is_in_recovery(), CASE WHEN current_setting('synchronous_commit') IN ('off', 'local')
    THEN set_config('synchronous_commit', 'on', false) END
"""


@dataclass(frozen=True, slots=True)
class Times:
    """Bounds in seconds."""

    connect: float
    """To make one connection."""
    command: float
    """For the server to carry out one statement, and as much again for the way there and back."""
    retry: float
    """To come back to a server that went away, in all."""


def backoff_seconds(tries: int) -> float:
    """How long to wait before the next try, after so many."""
    return BACKOFF_SECONDS[min(tries, len(BACKOFF_SECONDS) - 1)]


class Session(asyncpg.Connection):
    """A connection whose statements are bounded in time; past it, it is dropped without a word to the server.

    Nothing is cancelled in the server: a statement that waits for a standby would then be taken for replicated.
    """

    def __init__(self, protocol: Any, transport: Any, *args: Any) -> None:
        super().__init__(protocol, transport, *args)
        self.ask_seconds_max = 60.0
        self.is_standby = False
        """Whether the server was one when this was connected: it takes no writes, and does not notify."""
        self.warned = ""
        """The last warning that came with an answer; none is harmless in a commit."""
        made = transport.get_extra_info("socket")
        self._descriptor: int = made.fileno()
        if made.family != socket.AF_UNIX:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
                if hasattr(socket, name):
                    made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    async def ask(self, sql: str, *args: object, seconds: float | None = None) -> list[Any]:
        """The rows that a statement gives."""
        with self.bounded(seconds):
            rows: list[Any] = await self.fetch(sql, *args)
        return rows

    @contextlib.contextmanager
    def bounded(self, seconds: float | None = None) -> Iterator[None]:
        """Drop the connection if the block takes too long, is interrupted, or finds that it is lost."""
        bound = self.ask_seconds_max if seconds is None else min(seconds, self.ask_seconds_max)
        alarm = asyncio.get_running_loop().call_later(bound, self.terminate)
        try:
            yield
        except BaseException as error:
            if is_lost(error) or not isinstance(error, Exception):
                self.terminate()
            raise
        finally:
            alarm.cancel()

    async def close_politely(self) -> None:
        """Close the connection; what is in the way does not matter."""
        try:
            await self.close(timeout=CLOSE_SECONDS_MAX)
        except Exception:  # noqa: BLE001, RUF100
            self.terminate()
        except BaseException:
            self.terminate()
            raise

    def abandon(self) -> None:
        """In a forked child: close its copy of the socket, which the parent goes on using."""
        if not self.is_closed():
            with contextlib.suppress(OSError):
                nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
                os.dup2(nothing, self._descriptor, inheritable=False)  # the number stays taken: it may be closed later
                os.close(nothing)

    def note(self, _: object, message: asyncpg.PostgresLogMessage) -> None:
        """A message that came beside an answer."""
        if getattr(message, "severity_en", None) == "WARNING":
            self.warned = str(message)


class Connector:
    """Makes connections to one server, and knows those that are open."""

    def __init__(self, location: Location, times: Times, *, read_only: bool) -> None:
        self.location = location
        self.times = times
        self._read_only = read_only
        self._sessions: WeakSet[Session] = WeakSet()

    async def connect(self) -> Session:
        """A new connection: to a server that takes writes, unless the store is opened for reading."""
        milliseconds = str(max(1, round(self.times.command * 1000)))
        settings = {
            **_SETTINGS,
            "statement_timeout": milliseconds,
            "idle_in_transaction_session_timeout": milliseconds,
        }
        session: Session = await asyncpg.connect(
            self.location.dsn,
            timeout=self.times.connect,
            server_settings=settings,
            connection_class=Session,
            target_session_attrs=None if self._read_only else SessionAttribute.read_write,
        )
        self._sessions.add(session)
        session.ask_seconds_max = 2 * self.times.command
        try:
            session.add_log_listener(session.note)
            await session.set_type_codec(
                "json", schema="pg_catalog", encoder=bytes, decoder=msgspec.Raw, format="binary"
            )
            ((session.is_standby, _),) = await session.ask(_INTRODUCTION)
            if session.is_standby and not self._read_only:
                raise ConnectionError("the server is a standby, which takes no writes")
        except BaseException:
            session.terminate()
            raise
        return session

    def abandon(self) -> None:
        """See `Session.abandon`."""
        for session in tuple(self._sessions):
            session.abandon()


class Pool:
    """A few connections for what may be asked twice: reading. Each question has one to itself while it runs."""

    def __init__(self, connector: Connector, size: int) -> None:
        self._connector = connector
        self._slots = asyncio.Semaphore(size)
        self._idle: list[Session] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    def add(self, session: Session) -> None:
        """Take a connection in."""
        self._idle.append(session)

    async def run(self, work: Callable[[Session], Awaitable[T]], *, again: bool = True) -> T:
        """What the work comes to, tried again while the connection is lost, for a bounded time.

        ``again``: whether it may be repeated once it has begun.

        It runs in a task of its own: one that is cancelled while it waits for an answer must not cost a connection.
        """
        self._check()
        task = asyncio.create_task(self._run(work, again), name="aiostore reading")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        await asyncio.wait([task])
        if task.cancelled():
            raise StoreClosed
        return task.result()

    async def run_here(self, work: Callable[[Session], Awaitable[T]]) -> T:
        """The same without a task of its own, which is quicker; cancelled in the middle, it costs a connection."""
        self._check()
        return await self._run(work, True)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever asked may be gone: that is no mistake

    def _check(self) -> None:
        if self._closed:
            raise StoreClosed

    async def _run(self, work: Callable[[Session], Awaitable[T]], again: bool) -> T:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._connector.times.retry
        tries = 0
        await self._wait_for_slot(until)
        try:
            while True:
                session = None
                try:
                    session = self._take() or await self._connector.connect()
                    return await self._try(session, work)
                except Exception as error:
                    self._check()
                    pause = backoff_seconds(tries)
                    late = loop.time() + pause >= until
                    if not is_lost(error) or late or not (again or session is None):
                        raise mapped(error, self._connector.location.shown) from error
                    tries += 1
                await asyncio.sleep(pause)
        finally:
            self._slots.release()

    async def _wait_for_slot(self, until: float) -> None:
        """Those before may wait for a server that does not answer: each would add its own time to ours."""
        try:
            async with asyncio.timeout_at(until):
                await self._slots.acquire()
        except TimeoutError as error:
            seconds, location = self._connector.times.retry, self._connector.location.shown
            raise EngineUnavailable(f"{location}: no connection for reading was free for {seconds:g} s") from error

    async def _try(self, session: Session, work: Callable[[Session], Awaitable[T]]) -> T:
        try:
            result = await work(session)
        except BaseException as error:
            if is_lost(error):
                self._drop_idle()  # they went the same way, most likely
            self._give_back(session, sound=isinstance(error, Exception))
            raise
        self._give_back(session, sound=True)
        return result

    def _take(self) -> Session | None:
        while self._idle:
            session = self._idle.pop()
            if not session.is_closed():
                return session
        return None

    def _give_back(self, session: Session, *, sound: bool) -> None:
        if session.is_closed():
            return
        if self._closed or not sound or session.is_in_transaction():
            session.terminate()
        else:
            self._idle.append(session)

    def _drop_idle(self) -> None:
        while self._idle:
            self._idle.pop().terminate()

    async def aclose(self) -> None:
        """End what is running with `StoreClosed`, and close the connections."""
        self._closed = True
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        idle, self._idle = self._idle, []
        await asyncio.gather(*(session.close_politely() for session in idle))


def unavailable(location: str, seconds: float, error: BaseException) -> EngineUnavailable:
    """That the server did not come back in time."""
    ours = EngineUnavailable(f"{location} could not be reached for {seconds:g} s: {error}")
    ours.__cause__ = error
    return ours
