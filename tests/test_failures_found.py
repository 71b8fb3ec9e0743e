"""What a review of the whole package found: each of these failed once."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest

from aiostore import (
    AppendCondition,
    EngineUnavailable,
    EngineUnsupported,
    Event,
    EventStore,
    InvalidEvent,
    NewEvent,
    Query,
    StoreFailed,
    Subscription,
)
from aiostore.drafts import draft_events, make_append
from aiostore.engines.file.disk import Disk, mounted_type
from aiostore.engines.file.engine import FileEngine
from aiostore.limits import Limits


def test_a_mount_of_any_name_says_what_it_is() -> None:
    mounts = "22 1 8:1 / / rw - ext4 /dev/a rw\n23 22 8:2 / /media/u/Donn\u00e9es\\0401 rw - nfs4 host:/x rw\n"
    assert mounted_type(mounts, "/media/u/Donn\u00e9es 1/orders") == "nfs4"
    assert mounted_type(mounts, "/media/u/Donn") == "ext4"


def test_tags_and_names_count_in_the_size_of_an_append() -> None:
    tags = [f"{n:0250}" for n in range(64)]
    drafts = draft_events([NewEvent("T", {}, tags=tags)] * 10, Limits())
    assert sum(draft.size for draft in drafts) > 10 * 64 * 250


def test_a_second_event_with_bad_tags_is_refused_as_the_first_would_be() -> None:
    plain, bad = NewEvent("A", {}), NewEvent("A", {}, tags=None)  # type: ignore[call-overload]
    with pytest.raises(InvalidEvent, match=r"events\[1\]\.tags"):
        draft_events([plain, bad], Limits())
    assert make_append([], None, None, Limits()).size == 0


async def test_a_read_that_lacks_a_descriptor_is_not_corruption(tmp_path: Path) -> None:
    class Scarce(Disk):
        scarce = False

        def open_read(self, path: str) -> int:
            if self.scarce:
                raise OSError(errno.EMFILE, "Too many open files")
            return super().open_read(path)

    disk = Scarce()
    async with EventStore(FileEngine(tmp_path / "s", disk=disk)) as store:
        event = await store.append("s", "T", {})
        disk.scarce = True
        with pytest.raises(EngineUnavailable, match="Too many"):
            await store.read_all().to_list()
        disk.scarce = False
        assert await store.read_all().to_list() == [event]


async def test_a_long_search_for_a_condition_lets_others_run(store: EventStore) -> None:
    await store.append_batch("s", [("T", {})] * 20_000)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.ensure_future(count())
    condition = AppendCondition(Query.where(stream_prefix="nowhere"))
    event = await store.append("t", "T", {}, condition=condition)
    counting.cancel()
    assert event.event_id == 20_001
    assert turns >= 5


async def test_what_on_live_appends_passes_its_own_full_queue(store: EventStore) -> None:
    async def greet(_: Subscription) -> None:
        for n in range(3):
            await store.append("s", "Hello", {"n": n})

    async with store.subscribe(on_slow="wait", queue_size=1, on_live=greet) as events:
        seen = [(await anext(events)).data["n"] for _ in range(3)]
    assert seen == [0, 1, 2]


async def test_closing_the_last_waiting_listener_lets_its_appends_go(store: EventStore) -> None:
    called, stuck = asyncio.Event(), asyncio.Event()

    async def never(events: list[Event]) -> None:
        called.set()
        await stuck.wait()

    async def quick(events: list[Event]) -> None: ...

    store.on_commit(never, wait=False)
    listener = store.on_commit(quick)
    append = asyncio.ensure_future(store.append("s", "T", {}))
    await called.wait()
    assert not append.done()
    listener.close()
    assert (await append).event_id == 1
    stuck.set()


async def test_a_commit_that_cannot_be_shown_stops_appends(store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.append("s", "T", {})

    def broken(commits: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(store._fanout, "publish", broken)
    with pytest.raises(StoreFailed, match="ZeroDivisionError"):
        await store.append("s", "T", {})
    monkeypatch.undo()
    with pytest.raises(StoreFailed):
        await store.append("s", "T", {})
    assert [event.event_id for event in await store.read_all(up_to=1).to_list()] == [1]


async def test_a_store_opened_for_reading_follows_the_writer(tmp_path: Path) -> None:
    """It was a snapshot once, of which a subscription never said anything."""
    async with EventStore(tmp_path / "s") as store:
        await store.append("s", "T", {})
        async with EventStore(tmp_path / "s", mode="r") as reader, reader.subscribe() as events:
            assert (await anext(events)).event_id == 1
            appended = await store.append("s", "T", {})
            assert await anext(events) == appended
            assert await reader.stream_version("s") == 2
            with pytest.raises(EngineUnsupported, match="it takes no appends"):
                await reader.append("s", "T", {})


async def test_an_event_larger_than_a_page_at_the_end_of_a_segment(tmp_path: Path) -> None:
    """What came behind it could not be read: IndexError."""
    async with EventStore(tmp_path / "s", segment_bytes=300_000) as store:
        for number in range(3):
            await store.append("s", "T", {"n": number, "fill": "x" * 400_000})
            await store.append("s", "T", {"n": number})
        log = await store.read_all().to_list()
        assert [event.event_id for event in log] == [1, 2, 3, 4, 5, 6]
        assert await store.read_all(backwards=True).to_list() == log[::-1]
        assert await store.read_stream("s").to_list() == log
