"""Waking: learning that others have appended, by NOTIFY where that works and by asking now and then."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from aiostore.engines.postgres.connections import Connector, Session, backoff_seconds
from aiostore.engines.postgres.failures import is_lost
from aiostore.engines.postgres.schema import channel_of
from aiostore.errors import StoreClosed

logger = logging.getLogger("aiostore")


class Waker:
    """A connection that listens, and may be asked for what it told of. One task waits at a time.

    ``own_pid``: the server's process that does this engine's own appends. What it says wakes nobody: who appends is
    told so. (Looking for it again would have each own event read again.)
    """

    def __init__(self, connector: Connector, poll_seconds: float, own_pid: Callable[[], int | None]) -> None:
        schema = connector.location.schema
        self._connector = connector
        self._poll_seconds = poll_seconds
        self._own_pid = own_pid
        self._channel = channel_of(schema)
        self._head = f"SELECT pos FROM {schema}.head"
        self._session: Session | None = None
        self._one_question = asyncio.Lock()
        self._woken = asyncio.Event()
        self._known = 0
        self._answered = (-1, -1)
        self._tries = 0
        self._closed = False

    async def changed(self, after: int) -> None:
        """Return when there may be events above ``after``; see `Engine.changed`."""
        while not self._closed:
            try:
                if await self._is_above(after):
                    return
            except Exception as error:
                await self._lost(error)
        if self._session is not None:  # it came while the engine closed
            self._session.terminate()
        raise StoreClosed

    async def _is_above(self, after: int) -> bool:
        """Whether there is news, waited for a while."""
        session = self._session
        if session is None or session.is_closed():
            session = self._session = await self._listen()
            await self._ask(session)
            if self._tries:
                self._tries = 0
                logger.info("%s is there again", self._connector.location.shown)
        if self._known > after:
            if self._answered != (after, self._known):
                self._answered = (after, self._known)
                return True
            await self._ask(session)  # what a notification said was not so, or was not read yet
            self._answered = (-1, -1)
            if self._known > after:
                return True
        if not self._woken.is_set():
            try:
                async with asyncio.timeout(self._poll_seconds):
                    await self._woken.wait()
            except TimeoutError:
                if not session.is_closed():
                    await self._ask(session)
        self._woken.clear()
        return self._known > after and not session.is_closed()  # that it went is no news

    async def _ask(self, session: Session) -> None:
        async with self._one_question:
            ((self._known,),) = await session.ask(self._head)

    async def ask(self, sql: str, *args: object) -> list[Any] | None:
        """The rows that a statement gives; None where the connection is not there, or busy, or fails.

        What has just told of news is awake, in the server too: any other takes 0.1 ms longer to answer.
        """
        session = self._session
        if session is None or session.is_closed() or self._one_question.locked():
            return None
        async with self._one_question:
            try:
                return await session.ask(sql, *args)
            except Exception:
                return None  # another is asked, and finds out what that means

    async def _listen(self) -> Session:
        session = await self._connector.connect()
        try:
            session.add_termination_listener(self._ended)
            if not session.is_standby:
                with session.bounded():
                    await session.add_listener(self._channel, self._notified)
        except BaseException:
            session.terminate()
            raise
        return session

    def _notified(self, _: object, pid: int, channel: str, payload: object) -> None:
        try:
            self._known = max(self._known, int(str(payload)))
        except ValueError:
            self._known += 1  # something happened: look
        if pid != self._own_pid():
            self._woken.set()

    def _ended(self, _: object) -> None:
        self._woken.set()

    async def _lost(self, error: Exception) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.terminate()
        if self._closed:
            return
        if self._tries == 0 or not is_lost(error):
            logger.warning("the connection that listens to %s is lost: %s", self._connector.location.shown, error)
        pause = backoff_seconds(self._tries)
        self._tries += 1
        self._woken.clear()
        try:
            async with asyncio.timeout(pause):
                await self._woken.wait()
        except TimeoutError:
            pass

    def close(self) -> Session | None:
        """End the waiting with `StoreClosed`; returns the connection, to be closed."""
        self._closed = True
        self._woken.set()
        session, self._session = self._session, None
        return session
