"""The engine over PostgreSQL: what the contract asks, put together from the modules beside it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Literal, TypeVar

from aiostore.engine import (
    PAGE_EVENTS,
    Commit,
    Committed,
    Engine,
    Facts,
    Head,
    Outcome,
    Page,
    Plan,
    Proposal,
    Question,
    Saving,
    Selection,
    State,
    prefix_end,
)
from aiostore.engines.postgres.connections import Connector, Pool, Session, Times
from aiostore.engines.postgres.failures import mapped
from aiostore.engines.postgres.groups import Group, storable
from aiostore.engines.postgres.location import parse_location
from aiostore.engines.postgres.pages import PageReader
from aiostore.engines.postgres.rows import COLUMNS, commits_of, events_of, timestamp_text
from aiostore.engines.postgres.schema import check_or_create, check_server
from aiostore.engines.postgres.waking import Waker
from aiostore.engines.postgres.writer import Writer, deliver_later
from aiostore.errors import (
    EngineUnavailable,
    EngineUnsupported,
    EventStoreError,
    InvalidEvent,
    StateConflict,
    StoreClosed,
)
from aiostore.events import Event
from aiostore.finishing import until_done
from aiostore.limits import MIB
from aiostore.query import AppendCondition

logger = logging.getLogger("aiostore")

T = TypeVar("T")

CATCH_UP_EVENTS: Final = 2048
CATCH_UP_BYTES: Final = 4 * MIB
"""`PostgresEngine.commits_after` reads so much at a time."""

POOL_SIZE_MAX: Final = 1000
SECONDS_MAX: Final = 86_400.0


class PostgresEngine(Engine):
    """Keeps the events in a schema of a PostgreSQL database (14 or later, encoding UTF8), shared with other processes.

    ``url``: ``postgresql://user:password@host:port/database?…``, as libpq knows it; several hosts may stand there, the
    one that takes writes is used. ``schema``: which one (also in the URL, ``?schema=…``), made where it is not there.
    ``mode``: "rw", or "r" to read, from a standby too, and make nothing. ``pool_size``: connections for reading, beside
    one for appends and one that listens. Seconds: ``connect_timeout`` for one connection, ``command_timeout`` for the
    server to carry out one statement, ``retry_timeout`` to come back to a server that went away, ``poll_interval``
    between looks for what others appended where the server does not tell. ValueError if an option is not one of these.
    """

    shared = True

    def __init__(
        self,
        url: str,
        *,
        schema: str | None = None,
        mode: Literal["rw", "r"] = "rw",
        pool_size: int = 4,
        connect_timeout: float = 5.0,
        command_timeout: float = 30.0,
        retry_timeout: float = 10.0,
        poll_interval: float = 0.5,
    ) -> None:
        if mode not in ("rw", "r"):
            raise ValueError(f"mode must be 'rw' or 'r', not {mode!r}")
        if isinstance(pool_size, bool) or not isinstance(pool_size, int) or not 1 <= pool_size <= POOL_SIZE_MAX:
            raise ValueError(f"pool_size must be an int of 1 to {POOL_SIZE_MAX}, not {pool_size!r}")
        times = Times(
            _seconds("connect_timeout", connect_timeout),
            _seconds("command_timeout", command_timeout),
            _seconds("retry_timeout", retry_timeout),
        )
        self._location = parse_location(url, schema)
        self._read_only = mode == "r"
        self._connector = Connector(self._location, times, read_only=self._read_only)
        self._pages = PageReader(self._location.schema)
        self._poll_interval = _seconds("poll_interval", poll_interval)
        self._pool_size = pool_size
        self._pool: Pool | None = None
        self._writer: Writer | None = None
        self._waker: Waker | None = None
        self._closing: asyncio.Task[None] | None = None

    @property
    def location(self) -> str:
        return self._location.shown

    @property
    def read_only(self) -> bool:
        return self._read_only

    def __repr__(self) -> str:
        return f"PostgresEngine({self.location!r}, mode={'r' if self._read_only else 'rw'!r})"

    # --- opening and closing ---

    async def open(self) -> Head:
        writer = None if self._read_only else Writer(self._connector)
        session: Session | None = None
        try:
            session = await self._connector.connect()
            head = await self._open(session)
            if writer is not None:
                await writer.open()
        except BaseException as error:
            if session is not None:
                session.terminate()
            if isinstance(error, Exception):
                raise mapped(error, self.location) from error
            raise
        self._pool = Pool(self._connector, self._pool_size)
        self._pool.add(session)
        self._writer = writer
        own_pid = (lambda: None) if writer is None else writer.pid
        self._waker = Waker(self._connector, self._poll_interval, own_pid)
        return head

    async def _open(self, session: Session) -> Head:
        check_server(session)
        with session.bounded():
            await check_or_create(session, self._location.schema, create=not self._read_only)
        ((pos, moment, fsync),) = await session.ask(self._sql("SELECT pos, ts, current_setting('fsync') FROM {s}.head"))
        if fsync != "on" and not self._read_only:
            logger.warning("%s runs with fsync=%s: what it acknowledges can be lost", self.location, fsync)
        return Head(pos, timestamp_text(moment))

    async def aclose(self) -> None:
        if self._pool is None or self._waker is None:
            return
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(self._pool, self._waker), name="aiostore closing postgres")
        cancelled = await until_done(self._closing)
        if cancelled is not None:
            deliver_later(cancelled)
        self._closing.result()

    async def _close(self, pool: Pool, waker: Waker) -> None:
        listening = waker.close()
        await pool.aclose()
        if self._writer is not None:
            await self._writer.aclose()
        if listening is not None:
            await listening.close_politely()

    def abandon(self) -> None:
        self._connector.abandon()

    def _held(self) -> Pool:
        if self._pool is None or self._closing is not None:
            raise StoreClosed
        return self._pool

    def _sql(self, text: str) -> str:
        return text.replace("{s}", self._location.schema)

    # --- appending ---

    async def commit(self, plan: Plan) -> None:
        raise EngineUnsupported("a shared engine judges appends itself: commit_shared")

    async def commit_shared(self, proposals: Sequence[Proposal], timestamp: str) -> Committed:
        self._held()
        writer = self._writing()
        group = Group(proposals, timestamp)
        answer = await writer.store(group)
        commits, judged = group.outcomes(answer)
        outcomes: list[Outcome] = []
        for proposal, outcome in zip(proposals, judged, strict=True):
            outcomes.append(await self._duplicate(proposal, outcome) if isinstance(outcome, int) else outcome)
        return Committed(answer.previous_head, commits, outcomes)

    def _writing(self) -> Writer:
        if self._writer is None:
            raise EngineUnsupported(f"{self.location} was opened with mode='r': open it with mode='rw' to write")
        return self._writer

    async def _duplicate(self, proposal: Proposal, first: int) -> Outcome:
        try:
            return proposal.append.repeated(await self._stored(first))
        except EventStoreError as error:
            return error  # the others of the group are stored: they must hear so
        except asyncio.CancelledError as error:
            deliver_later(error)
            return EngineUnavailable(
                f"{self.location}: the events of a key that is stored could not be read; try again"
            )

    async def _stored(self, first: int) -> list[Event]:
        """The commit that begins with the event."""
        sql = self._sql(
            f"SELECT {COLUMNS} FROM {{s}}.events e JOIN {{s}}.streams s ON s.sid = e.sid WHERE e.pos >= $1"
            " AND e.pos <= $1 + (SELECT f.more FROM {s}.events f WHERE f.pos = $1) ORDER BY e.pos"
        )
        return events_of(await self._ask(sql, first))

    # --- following ---

    async def commits_after(self, after: int) -> Sequence[Commit]:
        sql = self._sql(
            f"SELECT * FROM (SELECT {COLUMNS}, e.key, e.more, e.size, sum(e.size) OVER (ORDER BY e.pos"
            " ROWS UNBOUNDED PRECEDING) AS bytes FROM (SELECT * FROM {s}.events WHERE pos > $1 ORDER BY pos LIMIT $2) e"
            " CROSS JOIN LATERAL (SELECT name FROM {s}.streams s WHERE s.sid = e.sid) s ORDER BY e.pos) p"
            " WHERE p.bytes - p.size < $3 ORDER BY p.pos"
        )
        args = (after, CATCH_UP_EVENTS, CATCH_UP_BYTES)
        self._held()
        assert self._waker is not None
        rows = await self._waker.ask(sql, *args)
        if rows is None:
            rows = await self._held().run_here(lambda session: session.ask(sql, *args))
        return commits_of(rows)

    async def changed(self, after: int) -> None:
        self._held()
        assert self._waker is not None
        await self._waker.changed(after)

    # --- reading ---

    async def _ask(self, sql: str, *args: object) -> list[Any]:
        return await self._with_session(lambda session: session.ask(sql, *args))

    async def _with_session(self, work: Callable[[Session], Awaitable[T]], *, again: bool = True) -> T:
        return await self._held().run(work, again=again)

    async def facts(self, question: Question) -> Facts:
        scope = question.idempotency_key
        streams = [stream_id for stream_id in question.streams if storable(stream_id)]
        args: list[object] = [streams]
        stored = "NULL::bigint"
        if scope is not None and all(map(storable, scope)):
            args.extend(scope)
            stored = (
                "(SELECT e.pos FROM {s}.streams k JOIN {s}.events e ON e.sid = k.sid WHERE k.name = $2 AND e.key = $3)"
            )
        sql = self._sql(  # one statement, of which all parts see the same
            f"SELECT h.pos, s.name, s.version, {stored} FROM {{s}}.head h LEFT JOIN LATERAL"
            " (SELECT s.name, s.version FROM unnest($1::text[]) n(name) CROSS JOIN LATERAL"
            " (SELECT * FROM {s}.streams s WHERE s.name = n.name) s) s ON true"
        )
        rows = await self._ask(sql, *args)
        head, first = rows[0][0], rows[0][3]
        versions = dict.fromkeys(question.streams, 0)
        versions.update((row[1], row[2]) for row in rows if row[1] is not None)
        kept = None if first is None else await self._stored(first)
        match = None
        if question.condition is not None:
            match = await self.first_match(question.condition, head)
        return Facts(head, versions, kept, match)

    async def first_match(self, condition: AppendCondition, up_to: int) -> int | None:
        selection = Selection(up_to=up_to, after=condition.after or 0, query=condition.query)
        page = await self.read(selection, None, 1)
        while not page.events and page.cursor is not None:
            page = await self.read(selection, page.cursor, 1)
        return page.events[0].event_id if page.events else None

    async def read(self, selection: Selection, cursor: int | None = None, max_events: int = PAGE_EVENTS) -> Page:
        return await self._with_session(lambda session: self._pages.read(session, selection, cursor, max_events))

    async def first_since(self, timestamp: str, head: int) -> int:
        sql = self._sql(  # the halving of the contract, in one round trip; OFFSET 0: each event is looked at once
            "WITH RECURSIVE halved(low, high) AS (SELECT 1::bigint, $2::bigint + 1 UNION ALL"
            " SELECT CASE WHEN e.is_before THEN m.middle + 1 ELSE m.low END,"
            " CASE WHEN e.is_before THEN m.high ELSE m.middle END"
            " FROM (SELECT low, high, (low + high) / 2 AS middle FROM halved WHERE low < high) m"
            " CROSS JOIN LATERAL (SELECT (SELECT e.ts < $1::text::timestamptz FROM {s}.events e"
            " WHERE e.pos >= m.middle AND e.pos < m.high ORDER BY e.pos LIMIT 1) AS is_before OFFSET 0) e)"
            " SELECT low FROM halved WHERE low = high"
        )
        ((first,),) = await self._ask(sql, timestamp, head)
        found: int = first
        return found

    # --- states ---

    async def load_state(self, key: str) -> State | None:
        if not storable(key):
            return None
        sql = self._sql(
            "SELECT pos, value, revision, coalesce(mark = {s}.mark_of(pos), false) FROM {s}.states WHERE key = $1"
        )
        rows = await self._ask(sql, key)
        return State(*rows[0]) if rows else None

    async def load_states(self, prefix: str, *, after: str = "", limit: int = PAGE_EVENTS) -> dict[str, State]:
        if not storable(prefix):
            return {}
        sql = self._sql(
            "SELECT key, pos, value, revision, coalesce(mark = {s}.mark_of(pos), false) FROM {s}.states"
            " WHERE key >= $1 AND key > $2 AND ($3::text IS NULL OR key < $3) ORDER BY key LIMIT $4"
        )
        rows = await self._ask(sql, prefix, after, prefix_end(prefix), limit)
        return {key: State(*state) for key, *state in rows}

    async def save_states(self, position: int, savings: Sequence[Saving]) -> Sequence[int]:
        self._held()
        self._writing()
        for key, _, _ in savings:
            if not storable(key):
                raise InvalidEvent("key", f"{key!r:.80} is not text that the server can store")
        sql = self._sql("SELECT saved, refused, actual FROM {s}.save_states($1, $2, $3, $4)")
        values = [None if saving.value is None else bytes(saving.value) for saving in savings]
        expected = [saving.expected_revision for saving in savings]
        args = (position, [saving.key for saving in savings], values, expected)
        ((saved, refused, actual),) = await self._with_session(lambda session: session.ask(sql, *args), again=False)
        if refused is not None:
            key, _, expected_revision = savings[refused - 1]
            assert expected_revision is not None, "whatever is kept is replaced"
            raise StateConflict(key, expected_revision, actual)
        revisions: list[int] = saved
        return revisions


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= SECONDS_MAX:
        raise ValueError(f"{name} must be a number of seconds above 0, at most {SECONDS_MAX:g}, not {value!r}")
    return float(value)
