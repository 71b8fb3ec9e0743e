"""Projections by key: a state for each, kept with the position in one step, and few of them in memory."""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiostore import (
    EngineUnsupported,
    Event,
    EventStore,
    InvalidEvent,
    KeyedProjection,
    ProjectionConflict,
    ProjectionStopped,
    Query,
    StreamAppend,
)
from aiostore.waiting import SEAM_EVENTS
from tests.conformance import engine_of, reopen
from tests.conformance.accounts import HANDLERS, Account, open_accounts
from tests.scheduler import running, until


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr("aiostore.kept_projection.BACKOFF_S", 0.001)
    caplog.set_level(logging.WARNING, logger="aiostore")
    return caplog


def noting(store: EventStore, name: str = "noted", **options: Any) -> KeyedProjection[Any]:
    """For each stream the list of the event_ids of type E."""
    projection: KeyedProjection[Any] = KeyedProjection(name, store, initial=list, **options)
    projection.when("E", lambda state, event: state.append(event.event_id))
    return projection


def accounts(store: EventStore, **options: Any) -> KeyedProjection[Account]:
    projection = KeyedProjection("accounts", store, state_type=Account, **options)
    for event_type, handler in HANDLERS.items():
        projection.when(event_type, handler)
    return projection


async def append(store: EventStore, *stream_ids: str, event_type: str = "E") -> None:
    for stream_id in stream_ids:
        await store.append(stream_id, event_type, {})


async def got(projection: KeyedProjection[Any], key: str) -> list[int]:
    state: list[int] | None = await projection.get(key)
    assert state is not None
    return state


async def content(projection: KeyedProjection[Any], **options: Any) -> dict[str, Any]:
    return {key: state async for key, state in projection.items(**options)}


async def keys_kept(store: EventStore) -> list[str]:
    """What the store keeps, all of it."""
    keys: list[str] = []
    while page := await engine_of(store).load_states("", after=keys[-1] if keys else ""):
        keys += page
    return keys


# What it takes


async def test_each_key_has_a_state_of_its_own(store: EventStore) -> None:
    await open_accounts(store)
    projection = accounts(store)
    assert (projection.position, projection.lag) == (0, 6)
    assert await projection.catch_up() == 6
    assert (projection.position, projection.lag) == (6, 0)
    assert await projection.get("ann") == Account("Ann", 70)
    assert await projection.get("bob") == Account("Bob", 20)
    assert await projection.get("carl") is None
    assert await content(projection) == {"ann": Account("Ann", 70), "bob": Account("Bob", 20)}
    await store.append("bob", "Deposited", {"amount": 5})
    assert await projection.catch_up() == 1
    assert await projection.get("bob") == Account("Bob", 25)


async def test_what_is_got_is_one_s_own(store: EventStore) -> None:
    await append(store, "a")
    projection = noting(store)
    await projection.catch_up()
    (await got(projection, "a")).append(7)
    assert await projection.get("a") == [1]


async def test_a_key_function_gives_one_key_or_several_or_none(store: EventStore) -> None:
    def key(event: Event) -> Any:
        return event.data["of"]

    projection: KeyedProjection[Any] = KeyedProjection("p", store, key=key, initial=list)
    projection.when("E", lambda state, event: state.append(event.event_id))
    for of in ("x", None, ["x", "y", "x"], [], "z"):
        await store.append("s", "E", {"of": of})
    await projection.catch_up()
    assert await content(projection) == {"x": [1, 3], "y": [3], "z": [5]}
    assert [await projection.as_of("x", n) for n in (0, 1, 2, 3)] == [None, [1], [1], [1, 3]]


async def test_items_come_in_the_order_of_the_keys_page_by_page_and_by_prefix(store: EventStore) -> None:
    names = [f"{letter}-{n:03}" for letter in "ba" for n in range(150)]
    await store.append_streams([StreamAppend(name, [("E", {})]) for name in names])
    projection = noting(store)
    assert await content(projection) == {}
    await projection.catch_up()
    assert list(await content(projection)) == sorted(names)
    assert list(await content(projection, prefix="b")) == sorted(names)[150:]
    assert list(await content(projection, prefix="a-14")) == [f"a-14{n}" for n in range(10)]
    assert await content(projection, prefix="c") == {}


async def test_a_query_narrows_it(store: EventStore) -> None:
    projection = noting(store, query=Query.where(stream_prefix="a"))
    await append(store, "a", "b", "a1", "b")
    assert await projection.catch_up() == 2
    assert projection.position == 4
    assert await content(projection) == {"a": [1], "a1": [3]}
    assert await projection.as_of("b", 4) is None


async def test_handlers_may_be_async_and_return_new_states(store: EventStore) -> None:
    projection: KeyedProjection[int] = KeyedProjection("count", store, initial=lambda: 0)

    @projection.when("E")
    async def count(state: int, event: Event) -> int:
        await asyncio.sleep(0)
        return state + 1

    await append(store, *"abab", "a")
    await projection.catch_up()
    assert await content(projection) == {"a": 3, "b": 2}


async def test_names_that_look_alike_do_not_mix(store: EventStore) -> None:
    await append(store, "a", "b/a", "1/a/b")
    projections = [noting(store, name) for name in ("a", "a/b", "1/a", "1/a/x")]
    for projection in projections:
        await projection.catch_up()
    for projection in projections:
        assert await content(projection) == {"1/a/b": [3], "a": [1], "b/a": [2]}


# Across restarts


async def test_another_goes_on_where_the_first_was(store: EventStore) -> None:
    for count in (1, 2, 0, 3):
        await append(store, *"abc" * count)
        projection = noting(store)
        assert await projection.catch_up() == 3 * count
    assert await content(projection) == {key: list(range(n, 19, 3)) for n, key in enumerate("abc", 1)}


async def test_it_outlives_the_process(store: EventStore) -> None:
    await append(store, *"aab")
    await noting(store).catch_up()
    async with await reopen(store) as again:
        projection = noting(again)
        assert await projection.get("a") == [1, 2]
        assert projection.position == 3
        await append(again, "a")
        assert await projection.catch_up() == 1
        assert await projection.get("a") == [1, 2, 4]


async def test_one_that_takes_nothing_itself_reads_what_another_keeps(store: EventStore) -> None:
    writer, reader = noting(store), noting(store)
    assert await reader.get("a") is None
    await append(store, *"ab")
    await writer.catch_up()
    assert await reader.get("a") == [1]
    assert await content(reader) == {"a": [1], "b": [2]}
    await append(store, *"a")
    await writer.rebuild({"E": lambda state, event: state.append(-event.event_id)})
    for _ in range(5):
        await writer.catch_up()  # removes what was before
    assert await reader.get("a") == [-1, -3]
    assert await content(reader) == {"a": [-1, -3], "b": [-2]}
    assert (reader.position, reader.lag) == (3, 0)


async def test_a_store_opened_to_read_serves_what_was_kept(store: EventStore) -> None:
    await append(store, *"ab")
    await noting(store).catch_up()
    await append(store, "a")
    if not engine_of(store).durable or engine_of(store).shared:
        pytest.skip("this engine has no mode to read only")
    async with EventStore(engine_of(store).location, mode="r") as reading, noting(reading) as projection:
        assert await content(projection) == {"a": [1], "b": [2]}
        with pytest.raises(EngineUnsupported):
            await projection.wait_for(3)
        assert not projection.is_live
        assert await projection.get("a") == [1]
        assert await projection.as_of("a", 3) == [1, 3]


async def test_other_handlers_or_types_make_all_anew(store: EventStore, log: pytest.LogCaptureFixture) -> None:
    await append(store, *"ab")
    await append(store, "a", event_type="F")
    await noting(store).catch_up()
    more = noting(store)
    more.when("F", lambda state, event: state.append("F"))
    assert await more.catch_up() == 3
    assert await more.get("a") == [1, "F"]
    assert log.text.count("are discarded, and made anew from the first event: the handlers of F are new") == 1
    typed = noting(store, state_type=list[Any])
    typed.when("F", lambda state, event: None)
    assert await typed.catch_up() == 3
    assert "state_type is another" in log.text
    await append(store, "a")
    for _ in range(3):
        await typed.catch_up()
    assert len(await keys_kept(store)) == 3, "what was discarded is removed"


async def test_handlers_that_are_missing_are_named(store: EventStore) -> None:
    await append(store, "a")
    await noting(store).catch_up()
    projection: KeyedProjection[Any] = KeyedProjection("noted", store, initial=list)
    assert await projection.get("a") == [1]
    with pytest.raises(RuntimeError, match=r"lacks the handlers .*'E'"):
        await projection.catch_up()
    projection.when("E", lambda state, event: None)
    assert await projection.catch_up() == 0


async def test_a_log_that_was_set_back_makes_all_anew(
    store: EventStore, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    await append(store, *"aab")
    await noting(store).catch_up()
    engine = engine_of(store)
    load_state = engine.load_state

    async def load_unfit(key: str) -> Any:
        kept = await load_state(key)
        return kept and kept._replace(fits=False)

    monkeypatch.setattr(engine, "load_state", load_unfit)
    projection = noting(store)
    assert await projection.get("a") is None
    assert await projection.get("a") is None
    assert log.text.count("the log does not have the event that they were made at") == 1
    assert await projection.catch_up() == 3
    monkeypatch.undo()
    again = noting(store)
    assert await content(again) == {"a": [1, 2], "b": [3]}


# In memory


class Counted(msgspec.Struct, weakref=True):
    """A state that is counted while it is there."""

    events: int = 0

    def __post_init__(self) -> None:
        Living.add(self)


class Living:
    now = most = 0

    @classmethod
    def add(cls, state: Counted) -> None:
        import weakref

        cls.now += 1
        cls.most = max(cls.most, cls.now)
        weakref.finalize(state, cls.remove)

    @classmethod
    def remove(cls) -> None:
        cls.now -= 1


async def test_of_ten_thousand_states_few_are_in_memory(store: EventStore) -> None:
    keys_count, cache_keys = 10_000, 100
    if engine_of(store).durable:
        keys_count = 1_000  # the same, and each is loaded from a disk or a server
    events = [("E", {"key": f"k-{n * 7919 % keys_count}"}) for n in range(keys_count + 500)]
    await store.append_batch("s", events)
    Living.most = 0
    projection = KeyedProjection(
        "p", store, key=lambda event: event.data["key"], state_type=Counted, cache_keys=cache_keys
    )

    @projection.when("E")
    def count(state: Counted, event: Event) -> None:
        state.events += 1

    assert await projection.catch_up() == keys_count + 500
    assert len(projection._states._cache) == cache_keys
    assert Living.most <= cache_keys + 3
    seen = {key: state.events async for key, state in projection.items()}
    assert len(seen) == keys_count
    assert sum(seen.values()) == keys_count + 500
    assert seen["k-0"] == 2


async def test_large_states_are_kept_before_they_are_many(store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiostore.keyed_states.STEP_BYTES_MAX", 10_000)
    monkeypatch.setattr("aiostore.keyed_states.CACHE_BYTES_MAX", 10_000)
    for n in range(20):
        await store.append(f"s-{n}", "E", {"text": "x" * 3_000})
    projection: KeyedProjection[Any] = KeyedProjection("p", store, initial=list)
    projection.when("E", lambda state, event: state.append(event.data["text"]))
    engine, sizes = engine_of(store), []
    save_states = engine.save_states

    async def save(position: int, savings: Any) -> Any:
        sizes.append(sum(len(saving.value) for saving in savings))
        return await save_states(position, savings)

    monkeypatch.setattr(engine, "save_states", save)
    await projection.catch_up()
    assert max(sizes) < 20_000
    assert projection._states._cache_bytes <= 10_000
    assert projection._states._cache_bytes == sum(map(len, projection._states._cache.values()))
    assert len(await content(projection)) == 20


# Where it stops


async def test_a_handler_that_raises_stops_it_at_that_event_and_nothing_of_it_is_kept(store: EventStore) -> None:
    broken = True

    async def handle(state: list[int], event: Event) -> None:
        state.append(event.event_id)
        if broken and event.event_id == 4:
            raise LookupError("mine")

    projection: KeyedProjection[Any] = KeyedProjection("p", store, initial=list)
    projection.when("E", handle)
    await append(store, *"aabab")
    for _ in range(2):
        with pytest.raises(LookupError, match="mine") as caught:
            await projection.catch_up()
        assert projection.error is caught.value
        assert (projection.position, projection.lag) == (3, 2)
        assert await content(projection) == {"a": [1, 2], "b": [3]}
    broken = False
    assert await projection.catch_up() == 2
    assert await content(projection) == {"a": [1, 2, 4], "b": [3, 5]}


@pytest.mark.parametrize(
    ("key", "error"), [("", InvalidEvent), (7, TypeError), ([7], InvalidEvent), ("a\n", InvalidEvent)]
)
async def test_what_is_no_key_stops_it_too(store: EventStore, key: Any, error: type[Exception]) -> None:
    for each in ("a", key, "a"):
        await store.append("s", "E", {"key": each})
    projection = noting(store, key=lambda event: event.data["key"])
    with pytest.raises(error):
        await projection.catch_up()
    assert projection.position == 1
    assert await content(projection) == {"a": [1]}


async def test_a_state_that_cannot_be_kept_stops_it_at_the_event_that_made_it(store: EventStore) -> None:
    projection: KeyedProjection[Any] = KeyedProjection("p", store, initial=list)
    projection.when("E", lambda state, event: state.append(object() if event.event_id == 4 else event.event_id))
    await append(store, *"aaba")
    with pytest.raises(TypeError, match="cannot be kept"):
        await projection.catch_up()
    assert projection.position == 3
    assert await content(projection) == {"a": [1, 2], "b": [3]}


async def test_of_two_the_loser_is_told_and_nothing_counts_twice(store: EventStore) -> None:
    first, second = noting(store), noting(store)
    await asyncio.gather(first.catch_up(), second.catch_up())
    await append(store, *"abab")
    outcomes = await asyncio.gather(first.catch_up(), second.catch_up(), return_exceptions=True)
    assert sum(isinstance(outcome, ProjectionConflict) for outcome in outcomes) == 1
    loser = first if first.error else second
    assert "another process runs it too" in str(loser.error)
    assert await loser.catch_up() == 0
    for projection in (first, second):
        assert await content(projection) == {"a": [1, 3], "b": [2, 4]}


# Following


async def test_it_follows_and_wait_for_is_for_reading_one_s_writes(store: EventStore) -> None:
    await append(store, *"ab")
    async with noting(store) as projection:
        for _ in range(10):
            event = await store.append("a", "E", {})
            await projection.wait_for(event.event_id, timeout=30)
            assert (await got(projection, "a"))[-1] == event.event_id
        with pytest.raises(TimeoutError):
            await projection.wait_for(1000, timeout=0.001)
        assert [key async for key, _ in projection.items()] == ["a", "b"]
        seen = await content(noting(store))  # what is got is kept
        assert seen == await content(projection)
    with pytest.raises(ProjectionStopped):
        await projection.wait_for(1000)


async def test_many_appenders_and_each_event_once_in_order(store: EventStore) -> None:
    async def appending(stream_id: str) -> None:
        for _ in range(10):
            await append(store, stream_id)

    async with noting(store, batch_events=7, cache_keys=3) as projection:
        await asyncio.gather(*(appending(f"s-{n}") for n in range(10)))
        await projection.wait_for(100)
        states = await content(projection)
    assert sorted(itertools.chain(*states.values())) == list(range(1, 101))
    for stream_id, state in states.items():
        assert state == [event.event_id async for event in store.read_stream(stream_id)]


# Made anew


def negative(state: list[int], event: Event) -> None:
    state.append(-event.event_id)


async def test_a_rebuild_during_live_appends_switches_without_a_gap(store: EventStore) -> None:
    await store.append_batch("a", [("E", {})] * (SEAM_EVENTS + 200))
    stopped = False
    seen: list[bool] = []

    async def appending() -> None:
        while not stopped:
            event = (await store.append_batch("a", [("E", {})] * 2))[-1]
            await projection.wait_for(event.event_id)
            state = await got(projection, "a")
            assert [abs(event_id) for event_id in state] == list(range(1, len(state) + 1))
            assert len(state) >= event.event_id
            assert len({event_id > 0 for event_id in state}) == 1
            seen.append(state[0] < 0)

    async with noting(store) as projection:
        await projection.wait_for(SEAM_EVENTS + 200)
        task = asyncio.create_task(appending())
        async with running(task):
            await until(lambda: len(seen) > 3 or task.done())
            await projection.rebuild({"E": negative})
            await until(lambda: (seen and seen[-1]) or task.done())
            stopped = True
            await task
        assert seen == sorted(seen)
        await projection.wait_for(await store.head())
        await until(lambda: not projection._purge_due)
        assert len(await keys_kept(store)) == 2
    again: KeyedProjection[Any] = KeyedProjection("noted", store, initial=list)
    again.when("E", negative)
    assert await again.catch_up() == 0
    assert await again.get("a") == [-n for n in range(1, await store.head() + 1)]


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_rebuild_that_fails_or_is_cancelled_leaves_all_as_it_was(store: EventStore, cancelled: bool) -> None:
    reached = asyncio.Event()

    async def handle(state: list[int], event: Event) -> None:
        if event.event_id == 5:
            reached.set()
            if cancelled:
                await asyncio.Event().wait()
            raise LookupError("mine")
        state.append(0)

    await append(store, *"aabab")
    projection = noting(store, batch_events=2)
    await projection.catch_up()
    rebuilding = asyncio.create_task(projection.rebuild({"E": handle}))
    async with running(rebuilding):
        await reached.wait()
        if cancelled:
            rebuilding.cancel()
        with pytest.raises(asyncio.CancelledError if cancelled else LookupError):
            await rebuilding
    assert await content(projection) == {"a": [1, 2, 4], "b": [3, 5]}
    await append(store, "b")
    for _ in range(3):
        await projection.catch_up()
    assert await content(projection) == {"a": [1, 2, 4], "b": [3, 5, 6]}
    assert len(await keys_kept(store)) == 3, "what was built is removed"
    await projection.rebuild()
    assert await content(projection) == {"a": [1, 2, 4], "b": [3, 5, 6]}


async def test_one_rebuild_at_a_time(store: EventStore) -> None:
    gate = asyncio.Event()

    async def slowly(state: list[int], event: Event) -> None:
        await gate.wait()

    await append(store, "a")
    projection = noting(store)
    await projection.catch_up()
    rebuilding = asyncio.create_task(projection.rebuild({"E": slowly}))
    async with running(rebuilding):
        await until(lambda: projection._rebuilding)
        with pytest.raises(RuntimeError, match="already"):
            await projection.rebuild()
        gate.set()
        await rebuilding
    assert await projection.get("a") == []


async def test_what_another_process_kept_meanwhile_stops_the_switch(store: EventStore) -> None:
    gate, reached = asyncio.Event(), asyncio.Event()

    async def slowly(state: list[int], event: Event) -> None:
        reached.set()
        await gate.wait()

    await append(store, *"ab")
    projection, other = noting(store), noting(store)
    await projection.catch_up()
    rebuilding = asyncio.create_task(projection.rebuild({"E": slowly}))
    async with running(rebuilding):
        await reached.wait()
        await append(store, "a")
        await other.catch_up()  # removes what nobody that it knows of serves
        gate.set()
        with pytest.raises(ProjectionConflict):
            await rebuilding
    assert await projection.catch_up() == 0
    assert await content(projection) == {"a": [1, 3], "b": [2]}


# As of


async def test_as_of_an_event_or_a_moment(store: EventStore) -> None:
    await open_accounts(store)
    await store.append("anna", "Opened", {"owner": "Anna"})
    projection = accounts(store)
    states = [await projection.as_of("ann", n) for n in range(8)]
    assert states[:6] == [None, Account("Ann"), *[Account("Ann", 100)] * 3, Account("Ann", 70)]
    assert states[6:] == [Account("Ann", 70)] * 2
    events = await store.read_all().to_list()
    assert await projection.as_of("anna", events[-1].timestamp) == Account("Anna")
    assert projection.position == 0
    for moment in (-1, "x", None):
        with pytest.raises(ValueError, match="moment"):
            await projection.as_of("ann", moment)  # type: ignore[arg-type]


# How it is made


async def test_bad_arguments_are_refused(store: EventStore) -> None:
    with pytest.raises(InvalidEvent, match="name"):
        KeyedProjection("", store)
    with pytest.raises(TypeError, match="key must be a function"):
        KeyedProjection("p", store, key="id")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="lambda: 0"):
        KeyedProjection("p", store, initial={})  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="cannot be kept"):
        KeyedProjection("p", store, initial=object)
    for option in ("cache_keys", "batch_events", "attempts"):
        with pytest.raises(ValueError, match=option):
            KeyedProjection("p", store, **{option: 0})  # type: ignore[call-overload]
    projection = noting(store)
    with pytest.raises(ValueError, match="already"):
        projection.when("E", lambda state, event: None)
    for key in ("", "\n", 7, None):
        with pytest.raises(InvalidEvent, match="key"):
            await projection.get(key)  # type: ignore[arg-type]
        with pytest.raises(InvalidEvent, match="key"):
            await projection.as_of(key, 0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="prefix"):
        projection.items(prefix=None)  # type: ignore[arg-type]
    assert repr(projection) == "<KeyedProjection 'noted' position=0>"


# Against a model


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.lists(st.sampled_from(["a", "ab", "b", "é", "/", "\U00010000"]), max_size=4)),
        st.tuples(st.just("catch_up"), st.none()),
        st.tuples(st.just("fail"), st.integers(1, 3)),
        st.tuples(st.just("restart"), st.none()),
        st.tuples(st.just("rebuild"), st.integers(1, 3)),
        st.tuples(st.just("look"), st.sampled_from(["", "a", "é"])),
    ),
    max_size=12,
)


class Model:
    """A projection and what a dict would be in its place: its steps by name."""

    def __init__(self, store: EventStore, **options: Any) -> None:
        self._store = store
        self._options = options
        self._log: list[list[str]] = []
        self._position = self._failing = 0
        self._factor = 1
        self._projection = self._made()

    def _made(self) -> KeyedProjection[Any]:
        projection: KeyedProjection[Any] = KeyedProjection(
            "p", self._store, key=lambda event: event.data["keys"], initial=list, **self._options
        )
        projection.when("E", self._handler(self._factor))
        return projection

    def _handler(self, factor: int) -> Any:
        def handle(state: list[int], event: Event) -> None:
            state.append(factor * event.event_id)
            if event.event_id == self._failing:
                raise LookupError

        return handle

    async def append(self, keys: list[str]) -> None:
        await self._store.append("s", "E", {"keys": keys})
        self._log.append(keys)

    async def catch_up(self, _: Any) -> None:
        await self._projection.catch_up()
        self._position = len(self._log)

    async def fail(self, ahead: int) -> None:
        self._failing = self._position + ahead
        fails = self._failing <= len(self._log) and self._log[self._failing - 1]
        try:
            await self._projection.catch_up()
        except LookupError:
            assert fails
        else:
            assert not fails
        self._position = self._failing - 1 if fails else len(self._log)
        self._failing = 0

    async def restart(self, _: Any) -> None:
        self._projection = self._made()

    async def rebuild(self, factor: int) -> None:
        self._factor = factor
        await self._projection.rebuild({"E": self._handler(factor)})

    async def look(self, prefix: str) -> None:
        states: dict[str, list[int]] = {}
        for event_id, keys in enumerate(self._log[: self._position], 1):
            for key in dict.fromkeys(keys):
                states.setdefault(key, []).append(self._factor * event_id)
        for key in "a", "ab", "é", "none":
            assert await self._projection.get(key) == states.get(key)
        expected = [(key, states[key]) for key in sorted(states) if key.startswith(prefix)]
        assert [item async for item in self._projection.items(prefix=prefix)] == expected


@given(STEPS, st.integers(1, 3), st.integers(1, 4))
@settings(deadline=None, max_examples=150)
def test_any_steps_come_to_what_a_dict_would(steps: list[Any], cache_keys: int, batch_events: int) -> None:
    async def play() -> None:
        async with EventStore() as store:
            model = Model(store, cache_keys=cache_keys, batch_events=batch_events)
            for step, value in [*steps, ("catch_up", None), ("look", "")]:
                await getattr(model, step)(value)

    asyncio.run(play())
