"""The tailer reads what others appended once it is told, before an own group that lies above it, and not otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from aiostore import EngineUnavailable, Event, EventStore, OutcomeUnknown, StoreFailed
from aiostore.engine import Commit, Committed, Proposal
from tests.conformance import ids
from tests.scheduler import take, turns, until
from tests.shared.database import Database, SharedEngine


class ToldEngine(SharedEngine):
    """Hears of news only when it is told, and counts its reads."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.told = asyncio.Event()
        self.reads = 0
        self.away = False
        self.reading = asyncio.Event()
        self.reading.set()
        self.loses_its_answer = False

    async def changed(self, after: int) -> None:
        await self.told.wait()
        while self._database.head <= after:
            self.told.clear()
            await self.told.wait()

    async def commits_after(self, after: int) -> Sequence[Commit]:
        self.reads += 1
        await self.reading.wait()
        if self.away:
            raise EngineUnavailable("away")
        return await super().commits_after(after)

    async def commit_shared(self, proposals: Sequence[Proposal], timestamp: str) -> Committed:
        committed = await super().commit_shared(proposals, timestamp)
        if self.loses_its_answer:
            raise OutcomeUnknown("the answer got lost")
        return committed


@pytest.fixture
def database() -> Database:
    return Database()


@pytest.fixture
def engine(database: Database) -> ToldEngine:
    return ToldEngine(database)


@pytest.fixture
async def here(engine: ToldEngine) -> AsyncIterator[EventStore]:
    async with EventStore(engine) as store:
        yield store


@pytest.fixture
async def there(database: Database) -> AsyncIterator[EventStore]:
    async with EventStore(SharedEngine(database)) as store:
        yield store


@pytest.fixture
async def heard(here: EventStore) -> list[int]:
    heard: list[int] = []

    async def hear(events: list[Event]) -> None:
        heard.extend(ids(events))

    here.on_commit(hear)
    return heard


async def test_news_costs_one_read(engine: ToldEngine, here: EventStore, there: EventStore, heard: list[int]) -> None:
    await there.append_batch("s", [("E", {})] * 3)
    engine.told.set()
    await until(lambda: heard == [1, 2, 3])
    await turns(50)
    assert engine.reads == 1


async def test_what_one_read_does_not_reach_is_read_too(
    engine: ToldEngine, here: EventStore, there: EventStore, heard: list[int]
) -> None:
    for _ in range(12):  # the reference tells of five at a time
        await there.append("s", "E", {})
    engine.told.set()
    await until(lambda: heard == list(range(1, 13)))
    assert engine.reads == 3


async def test_own_appends_are_not_read(
    engine: ToldEngine, here: EventStore, there: EventStore, heard: list[int]
) -> None:
    async def append_some() -> None:
        for _ in range(20):
            await here.append("s", "E", {})

    await there.append("s", "E", {})
    engine.told.set()
    await until(lambda: heard == [1])
    own = [asyncio.create_task(append_some()) for _ in range(3)]
    while not all(task.done() for task in own):
        engine.told.set()  # of what turns out to be their own
        await asyncio.sleep(0)
    assert heard == list(range(1, 62))
    assert engine.reads == 1


async def test_what_lies_before_an_own_group_is_read_first_whether_it_is_told_or_not(
    engine: ToldEngine, here: EventStore, there: EventStore, heard: list[int]
) -> None:
    for head in range(0, 20, 2):
        await there.append("s", "E", {})
        assert heard == list(range(1, head + 1))
        await here.append("s", "E", {})
        assert heard == list(range(1, head + 3))
    assert engine.reads == 10


async def test_what_comes_while_there_is_a_read_is_not_missed(
    engine: ToldEngine, here: EventStore, there: EventStore, heard: list[int]
) -> None:
    await there.append("s", "E", {})
    engine.reading.clear()
    engine.told.set()
    await until(lambda: engine.reads)
    own = asyncio.create_task(here.append("s", "E", {}))
    await until(lambda: engine._database.head == 2)
    await there.append("s", "E", {})
    engine.told.set()
    engine.reading.set()
    assert (await own).event_id == 2
    await until(lambda: heard == [1, 2, 3])


async def test_what_could_not_be_read_before_an_own_group_is_read_later(
    engine: ToldEngine, here: EventStore, there: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiostore.tailer.RETRY_S", 0)
    await there.append("s", "E", {})
    engine.away = True
    async with here.subscribe() as events:
        own = await here.append("s", "E", {})
        assert own.event_id == 2
        assert events.lag == 0, "it is stored, and its caller need not wait until it can be shown"
        engine.away = False
        assert await take(events, 2) == [1, 2]


async def test_an_own_append_of_unknown_outcome_is_looked_for(
    engine: ToldEngine, here: EventStore, heard: list[int]
) -> None:
    engine.loses_its_answer = True
    with pytest.raises(OutcomeUnknown):
        await here.append("s", "E", {})
    await until(lambda: heard == [1])


@pytest.mark.parametrize("name", ["aiostore tailer", "aiostore watcher"])
async def test_a_worker_that_is_cancelled_goes_on(
    engine: ToldEngine, here: EventStore, there: EventStore, heard: list[int], name: str
) -> None:
    await there.append("s", "E", {})
    engine.reading.clear()
    engine.told.set()
    await until(lambda: engine.reads)
    for task in asyncio.all_tasks():
        if task.get_name() == name:
            task.cancel()
    await turns(10)
    engine.reading.set()
    await until(lambda: heard == [1])
    await there.append("s", "E", {})
    engine.told.set()
    await until(lambda: heard == [1, 2])


async def test_what_cannot_be_shown_is_not_tried_for_ever(
    here: EventStore, engine: ToldEngine, there: EventStore, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(commits: Sequence[Commit]) -> None:
        raise RuntimeError("so it was chosen")

    here._fanout.publish = fail  # type: ignore[method-assign]
    await there.append("s", "E", {})
    engine.told.set()
    await until(lambda: caplog.records)
    await turns(100)
    assert [record.levelname for record in caplog.records] == ["CRITICAL"]
    with pytest.raises(StoreFailed):
        await here.append("s", "E", {})
