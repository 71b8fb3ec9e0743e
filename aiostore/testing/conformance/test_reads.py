"""Reads: bounds, order, limits and queries against a plain model; what a read sees while appends go on."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiostore import END, Event, EventStore, InvalidEvent, NewEvent, Query, QueryItem, StreamAppend
from aiostore.testing.conformance import ids, outcome, reopen
from aiostore.testing.conformance.fixtures import OpenStore

STREAMS = ("cart-1", "cart-2", "cart-10", "user-1", "c")
TYPES = ("Added", "Removed", "Paid")
TAGS = ("red", "blue", "sku:1", "sku:2")
FAR = (2**31, 2**63 - 1, 2**63, 2**64, 2**70)

REPEATABLE = settings(
    derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def some_events(count: int) -> list[tuple[str, NewEvent]]:
    """The same mixture of streams, types and tags at every call."""
    chance = random.Random(count)
    return [
        (
            chance.choice(STREAMS),
            NewEvent(chance.choice(TYPES), {"n": n}, tags=chance.sample(TAGS, chance.randrange(3))),
        )
        for n in range(count)
    ]


async def fill(store: EventStore, news: Iterable[tuple[str, NewEvent]]) -> list[Event]:
    """Store the events, in order, with few commits; returns them."""
    events: list[Event] = []
    part: dict[str, list[NewEvent]] = {}
    for stream_id, new in news:
        if stream_id in part and list(part)[-1] != stream_id:
            events += await store.append_streams([StreamAppend(*item) for item in part.items()])
            part = {}
        part.setdefault(stream_id, []).append(new)
    return events + await store.append_streams([StreamAppend(*item) for item in part.items()])


def matches(item: QueryItem, event: Event) -> bool:
    return (
        (not item.types or event.event_type in item.types)
        and set(item.tags) <= set(event.tags)
        and event.stream_id.startswith(item.stream_prefix or "")
    )


def model_all(
    events: list[Event],
    *,
    after: int = 0,
    up_to: int | None = None,
    query: Query | None = None,
    backwards: bool = False,
    limit: int | None = None,
) -> list[Event]:
    """What `read_all` must give, in plain Python."""
    items = query.items if query else ()
    found = [
        event
        for event in events
        if after < event.event_id
        and (up_to is None or event.event_id <= up_to)
        and (not items or any(matches(item, event) for item in items))
    ]
    return (found[::-1] if backwards else found)[:limit]


def model_stream(
    events: list[Event],
    stream_id: str,
    *,
    from_version: int = 1,
    to_version: int | None = None,
    backwards: bool = False,
    limit: int | None = None,
) -> list[Event]:
    """What `read_stream` must give, in plain Python."""
    stream = [event for event in events if event.stream_id == stream_id]
    found = [e for e in stream if from_version <= e.version and (to_version is None or e.version <= to_version)]
    return (found[::-1] if backwards else found)[:limit]


# Bounds


@pytest.fixture
async def six(store: EventStore) -> EventStore:
    """A store with the events 1 to 6 in the stream s, of which 1, 3 and 5 are odd, and 7 elsewhere."""
    for n in range(1, 7):
        await store.append("s", "Odd" if n % 2 else "Even", {}, tags=[f"n:{n}"])
    await store.append("t", "Odd", {})
    return store


@pytest.mark.parametrize(
    ("bounds", "forwards"),
    [
        ({}, [1, 2, 3, 4, 5, 6]),
        ({"from_version": 1}, [1, 2, 3, 4, 5, 6]),
        ({"from_version": 4}, [4, 5, 6]),
        ({"from_version": 6}, [6]),
        ({"from_version": 7}, []),
        ({"to_version": 0}, []),
        ({"to_version": 1}, [1]),
        ({"to_version": 6}, [1, 2, 3, 4, 5, 6]),
        ({"to_version": 7}, [1, 2, 3, 4, 5, 6]),
        ({"from_version": 2, "to_version": 4}, [2, 3, 4]),
        ({"from_version": 4, "to_version": 4}, [4]),
        ({"from_version": 4, "to_version": 3}, []),
        *(({"from_version": far}, []) for far in FAR),
        *(({"to_version": far}, [1, 2, 3, 4, 5, 6]) for far in FAR),
    ],
)
async def test_the_bounds_of_a_stream_are_inclusive_and_backwards_only_reverses(
    six: EventStore, bounds: dict[str, Any], forwards: list[int]
) -> None:
    assert ids(await six.read_stream("s", **bounds).to_list()) == forwards
    assert ids(await six.read_stream("s", **bounds, backwards=True).to_list()) == forwards[::-1]
    assert ids(await six.read_stream("s", **bounds, limit=2).to_list()) == forwards[:2]
    assert ids(await six.read_stream("s", **bounds, limit=2, backwards=True).to_list()) == forwards[::-1][:2]


@pytest.mark.parametrize(
    ("bounds", "forwards"),
    [
        ({}, [1, 2, 3, 4, 5, 6, 7]),
        ({"after": 0}, [1, 2, 3, 4, 5, 6, 7]),
        ({"after": 5}, [6, 7]),
        ({"after": 6}, [7]),
        ({"after": 7}, []),
        ({"after": 8}, []),
        ({"up_to": 0}, []),
        ({"up_to": 1}, [1]),
        ({"up_to": 7}, [1, 2, 3, 4, 5, 6, 7]),
        ({"up_to": 8}, [1, 2, 3, 4, 5, 6, 7]),
        ({"after": 2, "up_to": 5}, [3, 4, 5]),
        ({"after": 4, "up_to": 5}, [5]),
        ({"after": 5, "up_to": 5}, []),
        ({"after": 6, "up_to": 2}, []),
        ({"query": Query()}, [1, 2, 3, 4, 5, 6, 7]),
        ({"query": Query.where(types="Odd")}, [1, 3, 5, 7]),
        ({"query": Query.where(types="Odd"), "after": 1, "up_to": 5}, [3, 5]),
        ({"query": Query.where(tags="n:4")}, [4]),
        ({"query": Query.where(tags="n:4"), "after": 4}, []),
        ({"query": Query.where(tags="n:4"), "up_to": 3}, []),
        ({"query": Query.where(stream_prefix="t")}, [7]),
        ({"query": Query.where(types="Nothing")}, []),
        *(({"after": far}, []) for far in FAR),
        *(({"up_to": far}, [1, 2, 3, 4, 5, 6, 7]) for far in FAR),
        *(({"up_to": far, "after": 1, "query": Query.where(types="Odd")}, [3, 5, 7]) for far in FAR),
    ],
)
async def test_after_is_exclusive_up_to_inclusive_and_backwards_only_reverses(
    six: EventStore, bounds: dict[str, Any], forwards: list[int]
) -> None:
    assert ids(await six.read_all(**bounds).to_list()) == forwards
    assert ids(await six.read_all(**bounds, backwards=True).to_list()) == forwards[::-1]
    assert ids(await six.read_all(**bounds, limit=2).to_list()) == forwards[:2]
    assert ids(await six.read_all(**bounds, limit=2, backwards=True).to_list()) == forwards[::-1][:2]


@pytest.mark.parametrize("limit", [0, 1, 6, 7, 8, *FAR])
async def test_a_limit_bounds_the_number_of_events(six: EventStore, limit: int) -> None:
    assert len(await six.read_all(limit=limit).to_list()) == min(limit, 7)
    assert len(await six.read_stream("s", limit=limit).to_list()) == min(limit, 6)


async def test_a_stream_or_store_without_events_reads_empty(store: EventStore) -> None:
    assert await store.read_all().to_list() == []
    assert await store.read_stream("none").to_list() == []
    await store.append("s", "T", {})
    assert await store.read_stream("none", backwards=True).to_list() == []


async def test_a_stream_id_is_matched_whole(store: EventStore) -> None:
    for stream_id in ("a", "aa", "A", "a ", "ä", "a\u0308"):
        await store.append(stream_id, "T", {})
    for stream_id in ("a", "aa", "A", "a ", "ä", "a\u0308"):
        assert [event.stream_id for event in await store.read_stream(stream_id).to_list()] == [stream_id]


# Against the model


@pytest.mark.parametrize("count", [0, 1, 2600])
async def test_a_long_log_reads_as_the_model_says(store: EventStore, count: int) -> None:
    events = await fill(store, some_events(count))
    assert await store.read_all().to_list() == events
    assert await store.read_all(backwards=True).to_list() == events[::-1]
    for stream_id in STREAMS:
        assert await store.read_stream(stream_id).to_list() == model_stream(events, stream_id)
        reverse = await store.read_stream(stream_id, backwards=True).to_list()
        assert reverse == model_stream(events, stream_id, backwards=True)
    for query in (Query.where(types="Paid"), Query.where(tags="red") | Query.where(tags=["blue", "sku:1"])):
        for backwards in (False, True):
            found = await store.read_all(query=query, backwards=backwards).to_list()
            assert found == model_all(events, query=query, backwards=backwards)


RARE = [Query.where(stream_prefix="rare"), Query.where(tags="rare"), Query.where(types="Rare", stream_prefix="r")]


@pytest.mark.parametrize("query", RARE)
async def test_a_rare_event_is_found_from_either_end_of_a_long_log(store: EventStore, query: Query) -> None:
    assert await store.read_all(query=query).to_list() == []
    rare = [await store.append("rare-1", "Rare", {}, tags=["rare"])]
    await store.append_batch("s", [("T", {})] * 2500)
    assert await store.read_all(query=query).to_list() == rare
    assert await store.read_all(query=query, backwards=True, limit=1).to_list() == rare
    assert await store.read_all(query=query, after=1).to_list() == []
    rare += [await store.append("rare-2", "Rare", {}, tags=["rare"])]
    assert [batch async for batch in store.read_all(query=query).batches(1)] == [[event] for event in rare]
    assert await store.read_all(query=query, backwards=True).to_list() == rare[::-1]


bounds = st.one_of(st.none(), st.integers(0, 70))
some = st.lists
items = st.builds(
    QueryItem,
    types=some(st.sampled_from((*TYPES, "Never")), max_size=2),
    tags=some(st.sampled_from((*TAGS, "never")), max_size=2),
    stream_prefix=st.sampled_from((None, "", "c", "cart-", "cart-1", "user-1", "user-12", "x")),
)
queries = st.one_of(st.none(), st.builds(lambda chosen: Query(*chosen), some(items, max_size=3)))
all_arguments = st.fixed_dictionaries(
    {},
    optional={
        "after": st.integers(0, 70),
        "up_to": bounds,
        "query": queries,
        "backwards": st.booleans(),
        "limit": bounds,
    },
)
stream_arguments = st.fixed_dictionaries(
    {},
    optional={
        "from_version": st.integers(1, 20),
        "to_version": st.one_of(st.none(), st.integers(0, 20)),
        "backwards": st.booleans(),
        "limit": bounds,
    },
)


@pytest.fixture
async def sixty(store: EventStore) -> tuple[EventStore, list[Event]]:
    """A store with sixty mixed events, and these."""
    return store, await fill(store, some_events(60))


@pytest.fixture
async def sixty_anew(sixty: tuple[EventStore, list[Event]]) -> AsyncIterator[tuple[EventStore, list[Event]]]:
    """The same, in a store that was opened anew, where what is stored outlives it."""
    store, events = sixty
    async with await reopen(store) as again:
        yield again, events


@settings(REPEATABLE, max_examples=150)
@given(arguments=all_arguments)
async def test_any_read_of_all_is_as_the_model_says(
    sixty: tuple[EventStore, list[Event]], arguments: dict[str, Any]
) -> None:
    store, events = sixty
    assert await store.read_all(**arguments).to_list() == model_all(events, **arguments)


@settings(REPEATABLE, max_examples=100)
@given(stream_id=st.sampled_from((*STREAMS, "none")), arguments=stream_arguments)
async def test_any_read_of_a_stream_is_as_the_model_says(
    sixty: tuple[EventStore, list[Event]], stream_id: str, arguments: dict[str, Any]
) -> None:
    store, events = sixty
    assert await store.read_stream(stream_id, **arguments).to_list() == model_stream(events, stream_id, **arguments)


@settings(REPEATABLE, max_examples=60)
@given(arguments=all_arguments, stream_id=st.sampled_from(STREAMS), bounds=stream_arguments)
async def test_any_read_of_a_store_opened_anew_is_as_the_model_says(
    sixty_anew: tuple[EventStore, list[Event]], arguments: dict[str, Any], stream_id: str, bounds: dict[str, Any]
) -> None:
    store, events = sixty_anew
    assert await store.read_all(**arguments).to_list() == model_all(events, **arguments)
    assert await store.read_stream(stream_id, **bounds).to_list() == model_stream(events, stream_id, **bounds)


new_events = st.tuples(
    st.sampled_from(STREAMS),
    st.builds(
        NewEvent,
        st.sampled_from(TYPES),
        st.just({}),
        tags=st.lists(st.sampled_from(TAGS), max_size=2, unique=True).map(tuple),
    ),
)


@settings(REPEATABLE, max_examples=25)
@given(news=st.lists(new_events, max_size=25), arguments=st.lists(all_arguments, max_size=4), size=st.integers(1, 9))
async def test_any_log_reads_in_batches_as_the_model_says(
    open_store: OpenStore, news: list[tuple[str, NewEvent]], arguments: list[dict[str, Any]], size: int
) -> None:
    async with await open_store() as store:
        events = await fill(store, news)
        for chosen in arguments:
            batches = [batch async for batch in store.read_all(**chosen).batches(size)]
            assert all(1 <= len(batch) <= size for batch in batches)
            assert [event for batch in batches for event in batch] == model_all(events, **chosen)


# Readers


async def test_a_reader_is_an_async_iterator_that_ends(six: EventStore) -> None:
    reader = six.read_all()
    assert reader.__aiter__() is reader
    assert [event.event_id async for event in reader] == [1, 2, 3, 4, 5, 6, 7]
    assert [event async for event in reader] == []
    assert await reader.to_list() == []
    with pytest.raises(StopAsyncIteration):
        await anext(reader)


async def test_a_reader_is_one_pass_however_it_is_taken(six: EventStore) -> None:
    reader = six.read_all()
    assert (await anext(reader)).event_id == 1
    assert ids(await anext(reader.batches(2))) == [2, 3]
    assert (await anext(reader)).event_id == 4
    assert ids(await reader.to_list()) == [5, 6, 7]


@pytest.mark.parametrize("size", [1, 2, 499, 500, 501, 1200, 5000])
async def test_batches_hold_from_one_event_to_as_many_as_asked(store: EventStore, size: int) -> None:
    events = await fill(store, some_events(1100))
    batches = [batch async for batch in store.read_all().batches(size)]
    assert all(1 <= len(batch) <= size for batch in batches)
    assert [event for batch in batches for event in batch] == events


async def test_batches_have_at_most_500_events_unless_asked(store: EventStore) -> None:
    await fill(store, some_events(1100))
    batches = [batch async for batch in store.read_all().batches()]
    assert max(map(len, batches)) <= 500


async def test_a_limit_holds_across_batches(store: EventStore) -> None:
    events = await fill(store, some_events(1100))
    batches = [batch async for batch in store.read_all(limit=750).batches(200)]
    assert [event for batch in batches for event in batch] == events[:750]


async def test_a_read_ends_at_the_head_as_of_its_start(store: EventStore) -> None:
    await store.append_batch("s", [("T", {})] * 3)
    reader = store.read_all()
    await store.append("s", "T", {})  # before the first step: the read has not started
    assert (await anext(reader)).event_id == 1
    await store.append("s", "T", {})
    assert ids(await reader.to_list()) == [2, 3, 4]
    assert reader.head == 4
    assert await store.head() == 5


async def test_a_read_of_a_stream_tells_the_version_as_of_its_start(store: EventStore) -> None:
    await store.append_batch("s", [("T", {})] * 3)
    await store.append("t", "T", {})
    reader = store.read_stream("s", from_version=2, limit=1)
    await anext(reader)
    await store.append("s", "T", {})
    assert ids(await reader.to_list()) == []
    assert (reader.version, reader.head) == (3, 4)


async def test_the_version_is_0_for_no_stream_and_for_all_streams(store: EventStore) -> None:
    await store.append("s", "T", {})
    none, everything = store.read_stream("none"), store.read_all()
    await none.to_list()
    await everything.to_list()
    assert (none.head, none.version) == (1, 0)
    assert (everything.head, everything.version) == (1, 0)


async def test_head_and_version_are_told_for_any_bounds(six: EventStore) -> None:
    for reader in (
        six.read_stream("s", limit=0),
        six.read_stream("s", from_version=100),
        six.read_stream("s", to_version=0, backwards=True),
    ):
        assert await reader.to_list() == []
        assert (reader.head, reader.version) == (7, 6)
    reader = six.read_all(up_to=3, backwards=True)
    await anext(reader)
    assert reader.head == 7


async def test_before_its_start_a_read_has_no_head(store: EventStore) -> None:
    reader = store.read_stream("s")
    with pytest.raises(RuntimeError, match="not started"):
        _ = reader.head
    with pytest.raises(RuntimeError, match="not started"):
        _ = reader.version


@pytest.mark.parametrize("backwards", [False, True])
async def test_reads_while_appends_go_on_are_prefixes_of_the_log(store: EventStore, backwards: bool) -> None:
    async def write(stream_id: str) -> None:
        for _ in range(40):
            await store.append_batch(stream_id, [("T", {})] * 3)

    async def read() -> None:
        last = 0
        while last < 4 * 40 * 3:
            reader = store.read_all(backwards=backwards)
            found = ids([event async for event in reader])
            assert found == (list(range(reader.head, 0, -1)) if backwards else list(range(1, reader.head + 1)))
            assert reader.head >= last
            assert reader.head % 3 == 0  # appends are seen whole
            last = reader.head

    await asyncio.gather(read(), *(write(f"s{n}") for n in range(4)))


async def test_reads_of_a_stream_while_appends_go_on_agree_with_their_version(store: EventStore) -> None:
    async def write(stream_id: str) -> None:
        for _ in range(30):
            await store.append(stream_id, "T", {})

    async def read(stream_id: str) -> None:
        version = 0
        while version < 30:
            reader = store.read_stream(stream_id)
            versions = [event.version async for event in reader]
            assert versions == list(range(1, reader.version + 1))
            assert reader.version >= version
            version = reader.version
            await asyncio.sleep(0)

    await asyncio.gather(*(write(f"s{n}") for n in range(3)), *(read(f"s{n}") for n in range(3)))


async def test_an_abandoned_read_holds_nothing_up(store: EventStore) -> None:
    await fill(store, some_events(1100))
    async for _ in store.read_all():
        break
    assert len(await store.read_all().to_list()) == 1100


async def test_a_read_cancelled_at_any_moment_goes_on_where_it_was(store: EventStore) -> None:
    events = await fill(store, some_events(1200))
    for turns in range(1, 8):
        reader = store.read_all()
        found: list[Event] = []

        async def step(reader: Any = reader, found: list[Event] = found) -> None:
            async for event in reader:
                found.append(event)  # noqa: PERF401 (what was found before the cancellation counts)

        for _ in range(3):
            task = asyncio.ensure_future(step())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        assert found + await reader.to_list() == events


async def test_a_reader_used_by_two_tasks_at_once_gives_nothing_twice(six: EventStore) -> None:
    reader = six.read_all()
    results = await asyncio.gather(*(outcome(anext(reader)) for _ in range(3)))
    found = [result.event_id for result in results if isinstance(result, Event)]
    assert sorted(set(found)) == sorted(found)
    assert all(isinstance(result, Event | RuntimeError) for result in results)
    assert [*sorted(found), *ids(await reader.to_list())] == [1, 2, 3, 4, 5, 6, 7]


async def test_many_readers_at_once_each_get_everything(store: EventStore) -> None:
    events = await fill(store, some_events(1200))
    results = await asyncio.gather(*(store.read_all(backwards=bool(n % 2)).to_list() for n in range(8)))
    assert results == [events[::-1] if n % 2 else events for n in range(8)]


# Bad arguments

BAD_NUMBERS: list[Any] = [-1, 1.0, "1", True, b"1", object()]


@pytest.mark.parametrize("value", BAD_NUMBERS)
@pytest.mark.parametrize("name", ["after", "up_to", "limit"])
async def test_bounds_of_all_must_be_numbers(store: EventStore, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        store.read_all(**{name: value})


@pytest.mark.parametrize("value", BAD_NUMBERS)
@pytest.mark.parametrize("name", ["from_version", "to_version", "limit"])
async def test_bounds_of_a_stream_must_be_numbers(store: EventStore, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        store.read_stream("s", **{name: value})


@pytest.mark.parametrize("value", [None, END])
async def test_after_of_a_read_is_a_number(store: EventStore, value: Any) -> None:
    with pytest.raises(ValueError, match="after"):
        store.read_all(after=value)


async def test_versions_begin_at_1(store: EventStore) -> None:
    with pytest.raises(ValueError, match="from_version"):
        store.read_stream("s", from_version=0)


@pytest.mark.parametrize("query", ["T", 1, [], QueryItem(types=("T",)), object()])
async def test_a_query_must_be_a_query(store: EventStore, query: Any) -> None:
    with pytest.raises(TypeError, match="query"):
        store.read_all(query=query)
    with pytest.raises(TypeError, match="query"):
        store.subscribe(query=query)


@pytest.mark.parametrize("size", [0, *BAD_NUMBERS])
async def test_the_size_of_batches_must_be_a_number(store: EventStore, size: Any) -> None:
    with pytest.raises(ValueError, match="max_events"):
        store.read_all().batches(size)


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (InvalidEvent, lambda store: store.subscribe(stream_id="")),
        (InvalidEvent, lambda store: store.subscribe(stream_id=1)),
        (ValueError, lambda store: store.subscribe(after=-1)),
        (ValueError, lambda store: store.subscribe(after=None)),
        (ValueError, lambda store: store.subscribe(queue_size=0)),
        (ValueError, lambda store: store.subscribe(on_slow="hurry")),
        (TypeError, lambda store: store.subscribe(on_live=1)),
        (TypeError, lambda store: store.on_commit(None)),
    ],
)
async def test_bad_arguments_of_subscribe_and_on_commit_are_refused(
    store: EventStore, error: type[Exception], call: Callable[[EventStore], Any]
) -> None:
    with pytest.raises(error):
        call(store)
