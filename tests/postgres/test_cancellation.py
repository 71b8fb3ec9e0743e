"""Whichever task is cancelled, the engine's own too: an append is stored once or not at all, and its answer is true."""

from __future__ import annotations

import asyncio

import pytest

from aiostore import EngineUnavailable, EventStore
from aiostore.engine import Committed
from aiostore.engines.postgres.engine import PostgresEngine
from tests.postgres.appends import append, commit, ids, read_all, stored
from tests.postgres.fixtures import NewUrl
from tests.scheduler import until


def tasks_named(name: str) -> list[asyncio.Task[object]]:
    return [task for task in asyncio.all_tasks() if task.get_name() == name]


def is_writing(store: EventStore) -> bool:
    engine = store._engine
    assert isinstance(engine, PostgresEngine)
    return engine._writer is not None and engine._writer.begun


async def spin(seconds: float) -> None:
    """Give way to all others, for less time than a timer takes."""
    due = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < due:  # noqa: ASYNC110 (what is waited for is the time)
        await asyncio.sleep(0)


@pytest.mark.parametrize("cancels", [1, 3])
async def test_an_append_whose_writing_is_cancelled_is_stored_once(new_postgres_url: NewUrl, cancels: int) -> None:
    async with EventStore(new_postgres_url()) as store:
        for number in range(30):
            appending = asyncio.create_task(store.append("s", "E", {"n": number}))
            await until(lambda: is_writing(store))
            for _ in range(cancels):
                await spin(number * 3e-5)  # before it is sent, while it is in the server, when it has ended
                for task in tasks_named("aiostore committer"):
                    task.cancel()
            event = await appending
            assert (event.event_id, event.data) == (number + 1, {"n": number})
        assert [event.data["n"] async for event in store.read_all()] == list(range(30))


async def test_all_tasks_are_cancelled_at_once_again_and_again(new_postgres_url: NewUrl) -> None:
    async with EventStore(new_postgres_url()) as store:
        acknowledged: list[int] = []

        async def append_some(name: str) -> None:
            for number in range(3):
                event = await store.append(name, "E", {"n": number})
                acknowledged.append(event.event_id)

        for turn in range(30):
            appending = [asyncio.create_task(append_some(f"s-{turn}-{n}")) for n in range(4)]
            await spin(turn * 2e-4)
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.wait(appending)
        await store.append("end", "E", {})
        log = await store.read_all().to_list()
        assert ids(log) == list(range(1, len(log) + 1))
        assert set(acknowledged) <= set(ids(log))
        for name in {event.stream_id for event in log}:
            numbers = [event.data["n"] for event in log if event.stream_id == name and name != "end"]
            assert numbers == list(range(len(numbers))), "each once, none before the one it waited for"
        async with store.subscribe() as events:
            assert [(await anext(events)).event_id for _ in log] == ids(log)


async def test_where_the_events_of_a_key_cannot_be_read_the_others_of_the_group_are_stored(
    engine: PostgresEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await commit(engine, append("s", key="k"))
    reading = asyncio.Event()

    async def never(first: int) -> None:
        reading.set()
        await asyncio.sleep(3600)

    monkeypatch.setattr(engine, "_stored", never)
    results: list[Committed] = []

    async def committing() -> None:
        results.append(await commit(engine, append("s", key="k"), append("t")))
        await asyncio.sleep(3600)

    task = asyncio.create_task(committing())
    await reading.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (committed,) = results
    assert isinstance(committed.outcomes[0], EngineUnavailable)
    assert ids(stored(committed, 1)) == [2]
    assert ids(await read_all(engine)) == [1, 2]
