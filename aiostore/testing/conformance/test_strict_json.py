"""What can be stored: JSON objects and what has a JSON form; anything else is refused, nothing changes in silence."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import datetime as dt
import enum
import math
import types
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiostore import EventStore, InvalidEvent
from aiostore.testing.conformance import reopen
from aiostore.testing.conformance.fixtures import OpenStore


class Colour(enum.Enum):
    RED = "red"
    TWO = 2


class Level(enum.IntEnum):
    HIGH = 9


class Kind(enum.StrEnum):
    CART = "cart"


class NotFinite(enum.Enum):
    NAN = float("nan")


@dataclasses.dataclass
class Price:
    amount: Decimal
    tags: tuple[str, ...] = ()
    note: Any = None


class Address(msgspec.Struct):
    city: str
    since: dt.date
    extra: Any = None


class Short(msgspec.Struct, rename="camel", omit_defaults=True):
    long_name: int
    left_out: int | None = None


class Row(msgspec.Struct, array_like=True):
    a: int
    b: int


class Point(tuple[int, int]):
    __slots__ = ()


class Pair(NamedTuple):
    left: int
    right: Any


class Bag(dict[str, Any]):
    pass


class FirstOnly(dict[str, Any]):
    """As a MultiDict: it holds lists, and shows their first elements."""

    def items(self) -> Any:
        return iter([(key, value[0]) for key, value in super().items()])


class Shy(list[Any]):
    def __iter__(self) -> Any:
        return iter(())


class ShyPair(tuple[Any, ...]):
    __slots__ = ()

    def __iter__(self) -> Any:
        return iter(())


class Custom:
    def __init__(self) -> None:
        self.value = 1


class SlyText(str):
    __slots__ = ()


class SlyNumber(int):
    pass


UTC_NOON = dt.datetime(2026, 1, 2, 12, 0, 0, 5, tzinfo=dt.UTC)

PLAIN: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    2**63 - 1,
    2**63,
    2**64 - 1,
    -(2**63),
    0.0,
    -0.0,
    1.5,
    0.1,
    1e-320,
    5e-324,
    1.7976931348623157e308,
    1e22,
    1e19,
    123456789012345680.0,
    "",
    "text",
    "é\u0301 🜁 \U0010ffff",
    "\u2028\u2029\u0085\ufeff\ufffe\uffff",
    "\u0000",
    "".join(map(chr, range(0x20))) + '"\\/\x7f',
    "line\nbreak\r\n",
    "9" * 30,
    "1" * 5000,
    '{"event_id":1,"crc":"00000000"}\n',
    ',"crc":"1a2b3c4d"}',
    [],
    {},
    [[], {}, [{}]],
    {"": "", "\u0000": "\u0000", "a b": 1, "\n": 2, '"': 3, "é": 4, "e\u0301": 5, "\u2028": 6, "__class__": 7},
    {"data": {"event_id": 1, "crc": "x"}, "key": "k", "more": 1, "open": 2},
    {str(n): n for n in range(1000)},
    list(range(1000)),
    "x" * 100_000,
]


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: repr(value)[:30])
async def test_plain_json_values_come_back_as_they_went_in(store: EventStore, value: Any) -> None:
    event = await store.append("s", "T", {"value": value, "list": [value]}, metadata={"value": value})
    (read,) = await store.read_all().to_list()
    assert read == event
    for shell in (event, read):
        assert shell.data == {"value": value, "list": [value]}
        assert shell.metadata == {"value": value}
        assert type(shell.data["value"]) is type(value)
        assert repr(shell.data["value"]) == repr(value)  # also the sign of a zero, and the order of keys


JSON_FORMS: list[tuple[Any, Any]] = [
    ((1, (2,)), [1, [2]]),
    ([(), ({"a": ()},)], [[], [{"a": []}]]),
    (Pair(1, (2,)), [1, [2]]),
    (UTC_NOON, "2026-01-02T12:00:00.000005Z"),
    (UTC_NOON.astimezone(dt.timezone(dt.timedelta(hours=-3))), "2026-01-02T09:00:00.000005-03:00"),
    (dt.datetime(2026, 1, 2), "2026-01-02T00:00:00"),
    (dt.date(2026, 1, 2), "2026-01-02"),
    (dt.time(1, 2, 3), "01:02:03"),
    (dt.timedelta(seconds=90), "PT90S"),
    (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (Decimal("1.10"), "1.10"),
    (Decimal("1e500"), "1E+500"),
    (Colour.RED, "red"),
    (Colour.TWO, 2),
    (Level.HIGH, 9),
    (Kind.CART, "cart"),
    ({Kind.CART: Kind.CART}, {"cart": "cart"}),
    (Price(Decimal("1.10"), ("a",)), {"amount": "1.10", "tags": ["a"], "note": None}),
    (Address("Bonn", dt.date(2026, 1, 2), [Colour.RED]), {"city": "Bonn", "since": "2026-01-02", "extra": ["red"]}),
    (Short(1), {"longName": 1}),
    (Row(1, 2), [1, 2]),
    (Bag(a=Bag(b=(1,))), {"a": {"b": [1]}}),
    (collections.OrderedDict(a=1), {"a": 1}),
    (collections.defaultdict(int, a=1), {"a": 1}),
    (collections.Counter("aab"), {"a": 2, "b": 1}),
]


@pytest.mark.parametrize(("value", "form"), JSON_FORMS, ids=lambda value: repr(value)[:30])
async def test_what_has_a_json_form_is_stored_as_that(store: EventStore, value: Any, form: Any) -> None:
    event = await store.append("s", "T", {"value": value, "list": [value]}, metadata={"value": value})
    (read,) = await store.read_all().to_list()
    assert read == event
    assert read.data == {"value": form, "list": [form]}
    assert read.metadata == {"value": form}


@pytest.mark.parametrize(
    ("data", "form"),
    [
        (Price(Decimal(1)), {"amount": "1", "tags": [], "note": None}),
        (Short(1), {"longName": 1}),
        (Bag(a=1), {"a": 1}),
        (collections.OrderedDict(a=1), {"a": 1}),
    ],
    ids=lambda value: repr(value)[:30],
)
async def test_data_and_metadata_may_be_anything_that_becomes_an_object(
    store: EventStore, data: Any, form: Any
) -> None:
    await store.append("s", "T", data, metadata=data)
    (read,) = await store.read_all().to_list()
    assert (read.data, read.metadata) == (form, form)


async def test_unset_fields_are_left_out_and_unset_is_no_value_elsewhere(store: EventStore) -> None:
    event = await store.append("s", "T", Price(Decimal(1), note=msgspec.UNSET))
    assert event.data == {"amount": "1", "tags": []}
    for value in (msgspec.UNSET, [msgspec.UNSET]):
        with pytest.raises(InvalidEvent):
            await store.append("s", "T", {"value": value})


async def test_data_and_metadata_without_fields_are_empty(store: EventStore) -> None:
    class Empty(msgspec.Struct):
        pass

    event = await store.append("s", "T", Empty(), metadata=Empty())
    assert (event.data, event.metadata) == ({}, {})
    assert await store.read_all().to_list() == [event]


def cycle() -> Any:
    value: list[Any] = []
    value.append({"again": value})
    return value


def nested_lists(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def nested_dicts(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


REFUSED: list[Any] = [
    math.nan,
    math.inf,
    -math.inf,
    [1, [math.nan]],
    (math.nan,),
    Decimal("NaN"),
    Decimal("sNaN"),
    Decimal("-Infinity"),
    NotFinite.NAN,
    2**64,
    -(2**63) - 1,
    10**30,
    -(10**30),
    10**5000,
    SlyNumber(2**64),
    "\ud800",
    "a\udfff",
    "\ud83d\ude00",
    {"\ud800": 1},
    {"a": {"\udc00": 1}},
    {1: 1},
    {"a": 1, 2: 2},
    {None: 1},
    {True: 1},
    {1.5: 1},
    {("a",): 1},
    {b"a": 1},
    {UUID(int=1): 1},
    {Colour.RED: 1},
    {Level.HIGH: 1},
    {UTC_NOON: 1},
    b"",
    b"bytes",
    bytearray(b"bytes"),
    memoryview(b"bytes"),
    set(),
    {1},
    frozenset({1}),
    cycle(),
    nested_lists(100_000),
    nested_dicts(100_000),
    Custom(),
    object(),
    int,
    Price,
    print,
    ...,
    NotImplemented,
    1j,
    Fraction(1, 3),
    range(3),
    iter([1]),
    (n for n in range(3)),
    {"a": 1}.keys(),
    collections.deque([1]),
    collections.ChainMap({"a": 1}),
    collections.UserDict(a=1),
    types.MappingProxyType({"a": 1}),
    types.SimpleNamespace(a=1),
    msgspec.Raw(b"1"),
    msgspec.Raw(b"1}\n{"),
    Price(Decimal(1), note={1}),
    Price(Decimal(1), note=math.nan),
    Price(Decimal(1), note={1: 1}),
    Price(Decimal(1), note=msgspec.Raw(b"NaN")),
    Address("Bonn", dt.date(2026, 1, 2), {b"k": 1}),
    Address("\ud800", dt.date(2026, 1, 2)),
    Bag(a=math.inf),
    collections.defaultdict(list, {1: []}),
    ValueError("no"),
]


@pytest.mark.parametrize("value", REFUSED, ids=lambda value: type(value).__name__)
async def test_what_is_not_json_is_refused_wherever_it_stands(store: EventStore, value: Any) -> None:
    await store.append("s", "T", {})
    for data, metadata, where in (
        ({"value": value}, None, "data"),
        ({"a": [1, {"value": value}]}, None, "data"),
        (Price(Decimal(1), note=value), None, "data"),
        ({}, {"value": value}, "metadata"),
    ):
        with pytest.raises(InvalidEvent) as caught:
            await store.append("s", "T", data, metadata=metadata)
        assert caught.value.where.startswith(where)
        assert caught.value.reason
        assert len(str(caught.value)) < 2000
    assert await store.head() == 1


@pytest.mark.parametrize("value", REFUSED, ids=lambda value: type(value).__name__)
async def test_what_is_not_json_is_refused_as_data_and_in_a_batch(store: EventStore, value: Any) -> None:
    if not isinstance(value, dict):
        with pytest.raises(InvalidEvent):
            await store.append("s", "T", value)
        with pytest.raises(InvalidEvent):
            await store.append("s", "T", {}, metadata=value)
    with pytest.raises(InvalidEvent) as caught:
        await store.append_batch("s", [("T", {"n": 1}), ("T", {"value": value}), ("T", {"n": 2})])
    assert caught.value.where.startswith("events[1].data")
    assert await store.head() == 0


@pytest.mark.parametrize("value", [None, True, 0, 1, 1.5, "", "text", [], [1], (), (("a", 1),), UTC_NOON, Row(1, 2)])
async def test_data_must_be_an_object(store: EventStore, value: Any) -> None:
    with pytest.raises(InvalidEvent, match="object") as caught:
        await store.append("s", "T", value)
    assert caught.value.where == "data"
    if value is not None:
        with pytest.raises(InvalidEvent, match="object") as caught:
            await store.append("s", "T", {}, metadata=value)
        assert caught.value.where == "metadata"


@pytest.mark.parametrize(
    ("data", "where"),
    [
        ({"price": math.nan}, "data.price"),
        ({"lines": [{"price": 1}, {"price": math.nan}]}, "data.lines[1].price"),
        ({"a": {"b": {1: 1}}}, "data.a.b"),
        ({"a": (1, 2, {3})}, "data.a[2]"),
        ({"price": Price(Decimal("NaN"))}, "data.price.amount"),
        ({"at": Address("Bonn", dt.date(2026, 1, 2), [b""])}, "data.at.extra[0]"),
    ],
)
async def test_the_error_says_which_element(store: EventStore, data: Any, where: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        await store.append("s", "T", data)
    assert caught.value.where == where
    with pytest.raises(InvalidEvent) as caught:
        await store.append_batch("s", [("T", {}), ("T", data)])
    assert caught.value.where == f"events[1].{where}"


@pytest.mark.parametrize("nested", [nested_lists, nested_dicts])
async def test_values_nest_at_most_100_levels(store: EventStore, nested: Any) -> None:
    event = await store.append("s", "T", {"value": nested(99)}, metadata={"value": nested(99)})
    assert event.data["value"] == event.metadata["value"] == nested(99)
    for data, metadata in (({"value": nested(100)}, {}), ({}, {"value": nested(100)})):
        with pytest.raises(InvalidEvent, match="100 levels"):
            await store.append("s", "T", data, metadata=metadata)
    assert await store.read_all().to_list() == [event]


async def test_wide_values_do_not_count_as_deep(store: EventStore) -> None:
    data = {"rows": [{"cells": [[n], {"n": n}]} for n in range(500)], "text": "[{" * 500}
    assert (await store.append("s", "T", data)).data == data


async def test_what_a_text_subclass_stands_for_is_stored_or_refused_never_changed(store: EventStore) -> None:
    for value in (SlyText("x"), SlyNumber(5), Point((1, 2))):
        try:
            event = await store.append("s", "T", {"value": value})
        except InvalidEvent:
            continue
        assert event.data["value"] in ("x", 5, [1, 2])


@pytest.mark.parametrize(
    "value", [FirstOnly(a=[1, math.nan]), FirstOnly(a=[1, {1: 1}]), Shy([math.nan]), ShyPair([{1: 1}]), Shy([{1}])]
)
async def test_a_container_is_judged_by_what_it_holds_not_by_its_own_methods(store: EventStore, value: Any) -> None:
    with pytest.raises(InvalidEvent):
        await store.append("s", "T", {"value": value})


async def test_a_container_is_stored_as_what_it_holds(store: EventStore) -> None:
    event = await store.append("s", "T", {"a": FirstOnly(a=[1, 2]), "b": Shy([1]), "c": ShyPair([1])})
    assert event.data == {"a": {"a": [1, 2]}, "b": [1], "c": [1]}


async def test_odd_values_come_back_from_a_store_opened_anew(store: EventStore) -> None:
    events = await store.append_batch("s", [("T", {"value": value}, {"value": value}) for value in PLAIN])
    async with await reopen(store) as again:
        read = await again.read_all().to_list()
        assert read == events
        assert [event.data["value"] for event in read] == PLAIN


json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4)),
    max_leaves=12,
)
json_objects = st.dictionaries(st.text(), json_values, max_size=5)


@settings(derandomize=True, deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(st.tuples(json_objects, json_objects), min_size=1, max_size=5))
async def test_any_json_object_is_read_back_equal(open_store: OpenStore, pairs: list[tuple[Any, Any]]) -> None:
    async with await open_store() as store:
        events = await store.append_batch("batch", [("T", data, metadata) for data, metadata in pairs])
        events += await asyncio.gather(*(store.append("s", "T", data, metadata=more) for data, more in pairs))
        read = await store.read_all().to_list()
        assert sorted(read, key=lambda event: event.event_id) == sorted(events, key=lambda event: event.event_id)
        for found in (events[: len(pairs)], read[: len(pairs)], events[len(pairs) :]):
            assert [(event.data, event.metadata) for event in found] == pairs
            assert repr([(event.data, event.metadata) for event in found]) == repr(pairs)
