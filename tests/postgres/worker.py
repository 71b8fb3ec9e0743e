"""Clients of a store that append, are cut off, and note all they are told: as tasks, and as a program of its own.

``python -m tests.postgres.worker '{…}'`` (a `Job`) says "ready", waits for a line, works, says "done", waits for a line
with the head of the store, follows up to it, and ends. `Child` is what its parent has of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

import asyncpg
import msgspec

from aiostore import (
    AppendCondition,
    AppendConditionFailed,
    ConcurrencyConflict,
    EngineUnavailable,
    Event,
    EventStore,
    InvalidEvent,
    Listener,
    LiveProjection,
    NewEvent,
    OutcomeUnknown,
    Query,
    StreamAppend,
)
from tests.postgres.notes import CONFLICT, MATCHED, REFUSED, STORED, UNKNOWN, Conflict, Content, Noted, Tally

DEADLINE_S = 120.0
"""Longer, and something is stuck."""

STREAMS = tuple(f"Konto-{number}" for number in range(5))
TYPES = ("Opened", "Moved", "Closed")
TAGS = ("rot", "grün", "blau")
SHARED_KEYS = 40

Note = Callable[[Noted], None]
Way = Literal["free", "batch", "expected", "streams", "condition", "keyed", "shared key", "invalid"]

WAYS: tuple[Way, ...] = ("free", "batch", "expected", "streams", "condition", "keyed", "shared key", "invalid")


class Client:
    """Appends in many ways to a few streams. ``restless``: it takes its time, and is cancelled now and then."""

    def __init__(self, store: EventStore, name: str, dice: random.Random, note: Note, *, restless: bool = True) -> None:
        self._store = store
        self._name = name
        self._dice = dice
        self._note = note
        self._restless = restless
        self.heard = 0
        """The last event of this store's listener."""
        self.stored_count = 0

    async def hear(self, events: Sequence[Event]) -> None:
        """A listener: it gets all events, in order."""
        for event in events:
            assert self.heard in (0, event.event_id - 1), f"heard {event.event_id} after {self.heard}"
            self.heard = event.event_id

    async def run(self, count: int, ways: Sequence[Way] = WAYS) -> None:
        """So many appends, one after another."""
        for number in range(count):
            if self._restless:
                await asyncio.sleep(self._dice.choice((0, 0, 0.002, 0.01)))
            await self.append(f"{self._name}-{number}", self._dice.choice(ways))

    async def append(self, op: str, way: Way) -> Noted:
        """One append; with a key it is repeated until its outcome is known."""
        noted, condition, key = await self._prepare(op, way)
        before = {stream_id: await self._store.stream_version(stream_id) for stream_id in noted.expected}
        while True:
            await self._try(noted, condition, key, before)
            if noted.outcome == STORED or key is None:
                break
        if noted.outcome == STORED:
            self.stored_count += 1
        self._note(noted)
        return noted

    async def _prepare(self, op: str, way: Way) -> tuple[Noted, AppendCondition | None, str | None]:
        dice = self._dice
        key, condition = None, None
        if way == "shared key":  # others use it too, for the same events
            number = dice.randrange(SHARED_KEYS)
            key = op = f"shared-{number}"
            return (
                Noted(op=op, events=_contents(op, [STREAMS[number % 5]] * 2, random.Random(op)), keyed=True),
                None,
                op,
            )
        if way == "keyed":
            key = op
        if way == "streams":
            chosen = dice.sample(STREAMS, dice.randrange(2, 4))
            streams = [stream_id for stream_id in chosen for _ in range(dice.randrange(1, 3))]
        else:
            streams = [dice.choice(STREAMS)] * (dice.randrange(2, 6) if way == "batch" else 1)
        noted = Noted(op=op, events=_contents(op, streams, dice), keyed=key is not None)
        if way == "expected" or (way == "streams" and dice.random() < 0.3):
            late = dice.random() < 0.2
            noted.expected = {
                stream_id: max(0, await self._store.stream_version(stream_id) - late) for stream_id in set(streams)
            }
        if way == "condition":
            tag, after = dice.choice(TAGS), await self._store.head()
            noted.condition = (tag, after)
            condition = AppendCondition(Query.where(tags=tag), after)
        if way == "invalid":
            noted.events[0].data["nan"] = float("nan")
        return noted, condition, key

    async def _try(
        self, noted: Noted, condition: AppendCondition | None, key: str | None, before: dict[str, int]
    ) -> None:
        noted.outcome, noted.error = REFUSED, ""
        patience = self._dice.uniform(0, 0.03) if self._restless and self._dice.random() < 0.15 else None
        try:
            async with asyncio.timeout(patience):
                events = await self._send(noted, condition, key)
        except ConcurrencyConflict as error:
            stream_id = error.stream_id
            later = await self._store.stream_version(stream_id)
            noted.outcome = CONFLICT
            noted.conflict = Conflict(
                stream_id, noted.expected[stream_id], error.actual, before.get(stream_id, 0), later
            )
        except AppendConditionFailed as error:
            noted.outcome, noted.match = MATCHED, error.event_id
        except (TimeoutError, OutcomeUnknown) as error:
            noted.outcome, noted.error = UNKNOWN, repr(error)
        except InvalidEvent:
            noted.events[0].data.pop("nan")  # it is told by it, and NaN is not to be noted
        except EngineUnavailable as error:
            noted.error = repr(error)
        else:
            noted.outcome = STORED
            noted.places = [(event.event_id, event.version) for event in events]
            if self.heard and key is None:  # with a key, it may be another's, which is on its way here
                assert self.heard >= events[-1].event_id, "what has returned was heard"

    async def _send(self, noted: Noted, condition: AppendCondition | None, key: str | None) -> list[Event]:
        parts: dict[str, list[NewEvent]] = {}
        for content in noted.events:
            parts.setdefault(content.stream_id, []).append(
                NewEvent(content.event_type, content.data, tags=content.tags)
            )
        ((stream_id, events), *others) = parts.items()
        expected = noted.expected.get(stream_id)
        if others:
            appends = [StreamAppend(name, news, noted.expected.get(name)) for name, news in parts.items()]
            return await self._store.append_streams(appends, condition=condition, idempotency_key=key)
        if len(events) > 1:
            return await self._store.append_batch(
                stream_id, events, expected_version=expected, condition=condition, idempotency_key=key
            )
        (new,) = events
        event = await self._store.append(
            stream_id,
            new.event_type,
            new.data,
            tags=new.tags,
            expected_version=expected,
            condition=condition,
            idempotency_key=key,
        )
        return [event]


def _contents(op: str, streams: Sequence[str], dice: random.Random) -> list[Content]:
    return [
        Content(
            stream_id,
            dice.choice(TYPES),
            tuple(tag for tag in TAGS if dice.random() < 0.2),
            {"op": op, "n": number, "fill": "é" * dice.choice((0, 1, 50))},
        )
        for number, stream_id in enumerate(streams)
    ]


def tally_projection(store: EventStore, name: str = "tally") -> LiveProjection[Tally]:
    """A projection of all events."""
    projection: LiveProjection[Tally] = LiveProjection(name, store, initial=Tally, state_type=Tally)
    for event_type in TYPES:
        projection.when(event_type, lambda state, event: state.add(event))
    return projection


async def end_backends(url: str, dice: random.Random, pause_s: float) -> None:
    """End backends of stores, any of them, one after another, to the end of the task."""
    connection = await asyncpg.connect(url.partition("?")[0], server_settings={"application_name": "killer"})
    try:
        while True:
            await asyncio.sleep(dice.uniform(0.2, 1) * pause_s)
            pids = await connection.fetch("SELECT pid FROM pg_stat_activity WHERE application_name = 'aiostore'")
            if pids:
                await connection.execute("SELECT pg_terminate_backend($1)", dice.choice(pids)["pid"])
    finally:
        connection.terminate()


class _Whim:
    """A listener that fails again and again, and is registered again: nobody else must notice."""

    def __init__(self, store: EventStore, dice: random.Random) -> None:
        self._store = store
        self._dice = dice
        self._listener: Listener = store.on_commit(self._hear)

    async def _hear(self, events: Sequence[Event]) -> None:
        if self._dice.random() < 0.05:
            raise RuntimeError("so it was chosen")

    async def keep_on(self) -> None:
        """To the end of the task."""
        while True:
            await asyncio.sleep(0.05)
            if self._listener.error is not None:
                self._listener = self._store.on_commit(self._hear)


class Job(msgspec.Struct, kw_only=True):
    """What a child is to do: ``count`` appends in each of ``tasks``, or to follow what it chooses, and to note it."""

    url: str
    notes: str
    name: str
    seed: int
    options: dict[str, Any] = {}
    tasks: int = 0
    count: int = 0
    ending: bool = False
    """Whether it ends backends, its own and others'."""
    stream_id: str | None = None
    types: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    slow: bool = False


async def _line() -> str:
    return await asyncio.to_thread(sys.stdin.readline)


@contextlib.asynccontextmanager
async def _beside(*coroutines: Any) -> AsyncIterator[None]:
    """Run them beside the block, and end them behind it; one that fails is an error."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result


async def _append(job: Job, store: EventStore, notes: BinaryIO) -> None:
    """Append; then note the state of the projection."""
    dice = random.Random(job.seed)

    def note(noted: Noted) -> None:
        notes.write(msgspec.json.encode(noted) + b"\n")

    async with tally_projection(store) as projection:
        clients = [
            Client(store, f"{job.name}-{number}", random.Random(dice.random()), note) for number in range(job.tasks)
        ]
        listeners = [store.on_commit(client.hear) for client in clients]
        print("ready", flush=True)
        await _line()
        beside = [_Whim(store, dice).keep_on()]
        if job.ending:
            beside.append(end_backends(job.url, dice, 0.3))
        async with _beside(*beside):
            await asyncio.gather(*(client.run(job.count) for client in clients))
        print("done", flush=True)
        head = int(await _line())
        await projection.wait_for(head, timeout=DEADLINE_S)
        assert [listener.error for listener in listeners] == [None] * len(listeners)
        notes.write(msgspec.json.encode(projection.state) + b"\n")


async def _follow(job: Job, store: EventStore, notes: BinaryIO) -> None:
    """Note each event."""
    dice = random.Random(job.seed)
    query = Query.where(types=job.types, tags=job.tags) if job.types or job.tags else None
    async with store.subscribe(
        stream_id=job.stream_id, query=query, queue_size=5 if job.slow else 1024
    ) as subscription:

        async def read() -> None:
            async for event in subscription:
                notes.write(event.to_json() + b"\n")
                if job.slow and dice.random() < 0.3:
                    await asyncio.sleep(0.003)

        print("ready", flush=True)
        await _line()
        print("done", flush=True)
        async with _beside(read()):
            head = int(await _line())
            async with asyncio.timeout(DEADLINE_S):
                while subscription.position < head:  # noqa: ASYNC110 (a position has no event of its own)
                    await asyncio.sleep(0.01)


async def main(job: Job, notes: BinaryIO) -> None:
    """The program."""
    async with await EventStore.open(job.url, **job.options) as store:
        await (_append if job.tasks else _follow)(job, store, notes)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"left behind: {left}"


class Child:
    """A process that does a job; leaving the block ends it by its id, whatever it does."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._process: asyncio.subprocess.Process
        self._errors = Path(f"{job.notes}.stderr")

    async def __aenter__(self) -> Self:
        with self._errors.open("wb") as errors:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tests.postgres.worker",
                msgspec.json.encode(self.job).decode(),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                cwd=Path(__file__).parent.parent.parent,
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()

    async def hear(self, word: str) -> None:
        """Wait until it says so."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(DEADLINE_S):
                line = await self._process.stdout.readline()
        except TimeoutError:
            line = b"nothing"
        said = line.decode().strip()
        assert said == word, f"{self.job.name} said {said!r}, not {word!r}: {self._complaints()}"

    async def tell(self, word: object) -> None:
        """Give it the line that it waits for."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n".encode())
        await self._process.stdin.drain()

    async def end(self) -> list[bytes]:
        """Wait for its end; returns the lines of its notes."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                code = await self._process.wait()
        except TimeoutError:
            code = -1
        assert code == 0, f"{self.job.name} ended with {code}: {self._complaints()}"
        return self._noted()

    def _noted(self) -> list[bytes]:
        return Path(self.job.notes).read_bytes().splitlines()

    def _complaints(self) -> str:
        return self._errors.read_text(errors="replace")[-5000:]


if __name__ == "__main__":
    the_job = msgspec.json.decode(sys.argv[1], type=Job)
    with open(the_job.notes, "wb") as the_notes:
        asyncio.run(main(the_job, the_notes))
