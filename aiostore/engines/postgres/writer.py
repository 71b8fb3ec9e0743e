"""The one connection that appends, and how the outcome of a group is found out when it breaks."""

from __future__ import annotations

import asyncio
import logging
import secrets
import uuid
from functools import cache
from typing import Final

from aiostore.engines.postgres.connections import Connector, Session, backoff_seconds, unavailable
from aiostore.engines.postgres.failures import is_lost, is_refusal, mapped
from aiostore.engines.postgres.groups import Answer, Group
from aiostore.errors import OutcomeUnknown

logger = logging.getLogger("aiostore")

_TOKEN_BITS: Final = 62


def deliver_later(cancelled: asyncio.CancelledError) -> None:
    """Have the cancellation that this task caught raised at its next await, counted as it was."""
    task = asyncio.current_task()
    assert task is not None, "a coroutine of asyncio runs in a task"
    task.uncancel()
    task.cancel(*cancelled.args)


@cache
def _parameters(count: int) -> str:
    return "(" + ", ".join(f"${n}" for n in range(1, count + 1)) + ")"


class Writer:
    """Stores groups, one at a time. See `functions` for the fence that tells what became of one.

    ``begun``: whether the group in hand may be stored already, or become so.
    """

    def __init__(self, connector: Connector) -> None:
        schema = connector.location.schema
        self._connector = connector
        self._id = uuid.uuid4()
        self._token = 0
        self._number = 0
        self._session: Session | None = None
        self.begun = False
        self._asked = False  # whether the last try got as far as to send the group
        self._append = f"SELECT previous, ts, refused, verdicts, details, versions FROM {schema}.append_group"
        self._take_over = (
            "SELECT group_number, (result).previous, (result).ts, (result).refused, (result).verdicts,"
            f" (result).details, (result).versions FROM {schema}.take_over($1, $2)"
        )
        self._leave = f"DELETE FROM {schema}.writers WHERE writer = $1 AND token = $2"

    def pid(self) -> int | None:
        """The process in the server that stores the groups now."""
        return None if self._session is None or self._session.is_closed() else self._session.get_server_pid()

    async def store(self, group: Group) -> Answer:
        """Have the group judged and stored. The connection is made anew where it is lost, for a bounded time.

        Raises `OutcomeUnknown` where the server is not there any more to be asked what became of it; all other errors
        say that nothing was stored, and so does CancelledError: once it has begun, cancelling only costs a connection.
        """
        self._number += 1
        cancelled: asyncio.CancelledError | None = None
        until: float | None = None
        pause: float | None = None
        tries = 0
        try:
            while True:
                try:
                    if pause is not None:
                        await asyncio.sleep(pause)
                    return await self._try(group, until)
                except Exception as error:
                    until = self._give_up_or_until(error, until, backoff_seconds(tries))
                    pause = backoff_seconds(tries)
                    tries += 1
                except asyncio.CancelledError as error:
                    self._drop()
                    if not self.begun:
                        raise
                    # What may be stored must not be taken for what is not, and be stored again: it is found out.
                    cancelled = error
                    until = until or self._until()
                    pause = 0.0
        finally:
            self.begun = False
            if cancelled is not None:
                deliver_later(cancelled)

    def _until(self) -> float:
        return asyncio.get_running_loop().time() + self._connector.times.retry

    def _give_up_or_until(self, error: Exception, until: float | None, pause: float) -> float:
        """Until when to try again after the error, which is the last one where it is raised."""
        seconds = self._connector.times.retry
        location = self._connector.location.shown
        if self._asked and is_refusal(error):
            self.begun = False
        # What refuses a new connection says nothing of the group that was sent over the one before.
        if not is_lost(error) and (self._asked or not self.begun):
            raise mapped(error, location) from error
        self._drop()
        if until is None:
            until = self._until()
            logger.warning("the connection to %s is lost: %s", location, error)
        if asyncio.get_running_loop().time() + pause < until:
            return until
        if self.begun:
            raise OutcomeUnknown(
                f"the connection to {location} went while an append was under way, and it could not be "
                f"reached for {seconds:g} s: it may or may not be stored; retry with a key ({error})"
            ) from error
        raise unavailable(location, seconds, error) from error

    async def _try(self, group: Group, until: float | None) -> Answer:
        self._asked = False
        session = self._session
        if session is None or session.is_closed():
            seconds = None if until is None else until - asyncio.get_running_loop().time()
            session, earlier, answer = await self._connect(seconds)
            if self.begun and earlier == self._number:
                assert answer is not None, "a group that was stored has a result"
                return answer
            self.begun = False  # it was not stored, and from now on it is refused
        session.warned = ""
        self.begun = self._asked = True
        arguments = (self._id, self._token, self._number, *group.arguments)
        (row,) = await session.ask(self._append + _parameters(len(arguments)), *arguments)
        if session.warned:
            # The server gave up waiting for its standby: what is stored might be lost with this server.
            self._drop()
            raise OutcomeUnknown(f"{self._connector.location.shown} stored an append, but warned: {session.warned}")
        return Answer(*row)

    async def _connect(self, seconds: float | None) -> tuple[Session, int, Answer | None]:
        """Take over from the connection before: afterwards, nothing that was sent over it can be stored any more."""
        session = await self._connector.connect()
        token = secrets.randbits(_TOKEN_BITS)
        try:
            ((number, *result),) = await session.ask(self._take_over, self._id, token, seconds=seconds)
        except BaseException:
            session.terminate()
            raise
        self._session = session
        self._token = token
        return session, number, None if result[0] is None else Answer(*result)

    async def open(self) -> None:
        """Connect."""
        await self._connect(None)

    def _drop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.terminate()

    async def aclose(self) -> None:
        """Leave the server."""
        session, self._session = self._session, None
        if session is not None and not session.is_closed():
            try:
                await session.ask(self._leave, self._id, self._token, seconds=self._connector.times.connect)
            except Exception as error:
                logger.info("the row of a writer stays in %s: %s", self._connector.location.shown, error)
            await session.close_politely()
