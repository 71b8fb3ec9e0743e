"""Events as values: read-only, equal by what is stored, copied, pickled and told as JSON."""

from __future__ import annotations

import copy
import json
import pickle
import tracemalloc
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from xml.etree import ElementTree

import pytest

from aiostore import END, NO_STREAM, STREAM_EXISTS, Event, EventStore, NewEvent, StreamAppend
from aiostore.events import version_matches
from aiostore.limits import NESTING_MAX

NOON = datetime(2026, 1, 2, 12, 0, 0, 5, tzinfo=UTC)
FIELDS = ["event_id", "stream_id", "version", "event_type", "timestamp", "data", "metadata", "tags"]


async def events() -> list[Event]:
    """An event with everything, and one with nothing beside its data."""
    async with EventStore(clock=lambda: NOON) as store:
        return await store.append_batch(
            "cart-1", [NewEvent("ItemAdded", {"sku": "A", "n": [1]}, {"user": 7}, ["a", "b"]), NewEvent("Left", {})]
        )


COPIES: dict[str, Callable[[Event], Event]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"pickle {n}": lambda event, n=n: pickle.loads(pickle.dumps(event, n)) for n in range(2, 6)},  # type: ignore[misc]
}


@pytest.mark.parametrize("way", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("decoded", [False, True])
async def test_copies_are_equal_and_whole(way: Callable[[Event], Event], decoded: bool) -> None:
    for event in await events():
        if decoded:
            assert event.data is event.data
            assert event.metadata is event.metadata
        copied = way(event)
        assert copied is not event
        assert copied == event
        assert hash(copied) == hash(event)
        assert copied.to_dict() == event.to_dict()
        assert (copied.data, copied.metadata) == (event.data, event.metadata)


async def test_deep_copies_and_pickles_share_nothing() -> None:
    event, _ = await events()
    for way in (copy.deepcopy, COPIES["pickle 5"]):
        copied = way(event)
        copied.data["n"].append(2)
        assert event.data == {"sku": "A", "n": [1]}


@pytest.mark.parametrize("name", [*FIELDS, "nothing", "_data", "_timestamp"])
async def test_events_are_read_only(name: str) -> None:
    event, _ = await events()
    with pytest.raises(AttributeError):
        setattr(event, name, 1)
    with pytest.raises(AttributeError):
        delattr(event, name)


async def test_to_dict_has_the_eight_fields() -> None:
    event, bare = await events()
    assert event.to_dict() == {
        "event_id": 1,
        "stream_id": "cart-1",
        "version": 1,
        "event_type": "ItemAdded",
        "timestamp": NOON,
        "data": {"sku": "A", "n": [1]},
        "metadata": {"user": 7},
        "tags": ("a", "b"),
    }
    assert list(event.to_dict()) == list(bare.to_dict()) == FIELDS
    assert (bare.to_dict()["metadata"], bare.to_dict()["tags"]) == ({}, ())


async def test_to_json_is_one_line_named_as_in_the_log() -> None:
    event, bare = await events()
    assert event.to_json() == (
        b'{"event_id":1,"stream_id":"cart-1","version":1,"event_type":"ItemAdded",'
        b'"timestamp":"2026-01-02T12:00:00.000005Z","data":{"sku":"A","n":[1]},"metadata":{"user":7},"tags":["a","b"]}'
    )
    assert list(json.loads(bare.to_json())) == FIELDS
    assert b"\n" not in event.to_json()


async def test_attributes_and_dict_say_the_same() -> None:
    for event in await events():
        assert {name: getattr(event, name) for name in FIELDS} == event.to_dict()


async def test_data_is_decoded_once() -> None:
    event, _ = await events()
    assert event.data is event.data
    assert event.metadata is event.metadata


async def test_the_timestamp_is_an_aware_datetime_in_utc() -> None:
    event, _ = await events()
    assert event.timestamp == NOON
    assert event.timestamp.tzinfo is UTC


async def test_equal_events_are_not_unequal() -> None:
    one, other = (await events())[0], (await events())[0]
    assert one is not other
    assert (one == other, one != other) == (True, False)
    assert one != one.to_dict()


async def test_events_are_equal_by_all_that_is_stored() -> None:
    same, again = await events(), await events()
    assert same == again
    assert same[0] != same[1]
    assert same[0] != same[0].to_dict()
    assert len({*same, *again}) == 2
    same[0].data["sku"] = "changed in this shell only"
    assert same == again


@pytest.mark.parametrize(
    "other",
    [
        ("cart-1", "ItemAdded", {"sku": "B"}, {"user": 7}, ["a"]),
        ("cart-1", "Other", {"sku": "A"}, {"user": 7}, ["a"]),
        ("cart-2", "ItemAdded", {"sku": "A"}, {"user": 7}, ["a"]),
        ("cart-1", "ItemAdded", {"sku": "A"}, {"user": 8}, ["a"]),
        ("cart-1", "ItemAdded", {"sku": "A"}, None, ["a"]),
        ("cart-1", "ItemAdded", {"sku": "A"}, {"user": 7}, ["b"]),
        ("cart-1", "ItemAdded", {"sku": True}, {"user": 7}, ["a"]),
    ],
)
async def test_events_that_differ_in_anything_are_not_equal(other: tuple[str, str, object, object, list[str]]) -> None:
    async def stored(stream_id: str, event_type: str, data: object, metadata: object, tags: list[str]) -> Event:
        async with EventStore(clock=lambda: NOON) as store:
            return await store.append(stream_id, event_type, data, metadata=metadata, tags=tags)

    event = await stored("cart-1", "ItemAdded", {"sku": "A"}, {"user": 7}, ["a"])
    assert not event == await stored(*other)  # noqa: SIM201 (this asks __eq__, the next line __ne__)
    assert event != await stored(*other)
    assert event == await stored("cart-1", "ItemAdded", {"sku": "A"}, {"user": 7}, ["a"])


async def test_repr_tells_what_is_in_it() -> None:
    event, bare = await events()
    assert repr(event) == (
        "Event(1, 'cart-1' v1, 'ItemAdded', 2026-01-02T12:00:00.000005Z, data={'sku': 'A', 'n': [1]}, "
        "metadata={'user': 7}, tags=('a', 'b'))"
    )
    assert repr(bare) == "Event(2, 'cart-1' v2, 'Left', 2026-01-02T12:00:00.000005Z, data={})"


async def stored(data: object, metadata: object = None, tags: Iterable[str] = ()) -> Event:
    async with EventStore(clock=lambda: NOON) as store:
        return await store.append("s", "T", data, metadata=metadata, tags=tags)


def nested(levels: int, inmost: object = None) -> dict[str, object]:
    value = inmost
    for level in range(levels - 1):
        value = [value] if level % 2 else {"a": value}
    return {"a": value}


HUGE = 16 * 2**20 - 1000
ODD: dict[str, dict[str, object]] = {
    "script": {"</pre><script>alert(1)</script>": "<img src=x onerror='y'> &amp; \"quoted\""},
    "nested": nested(NESTING_MAX),
    "nested and long": nested(NESTING_MAX, "x" * 9000),
    "huge string": {"text": "x" * HUGE},
    "huge list": {"list": [1] * (2**20)},
    "huge, of backslashes": {"text": "\\" * (2**20)},
    "controls": {"text": "".join(map(chr, range(0xA0))) + "\u2028\u202e"},
    "numbers": {"n": [2**63 - 1, 2**64 - 1, -(2**63), 1e308, 5e-324, -0.0]},
    "a long key": {"k" * 9000: None},
    # A cut at any number of bytes goes through the midst of a character of one of these.
    **{f"wide {n}": {"x" * n: "\U0001f600" * 9000} for n in range(4)},
    **{f"wide and short {n}": {"x" * n: "\U0001f600" * 250} for n in range(4)},
    "unprintable": {"x": "\U000e0001" * 9000},
}


@pytest.mark.parametrize("data", ODD.values(), ids=ODD)
async def test_whatever_is_stored_is_shown_in_bounds(data: dict[str, object]) -> None:
    tags = [f"{n:02}" + "<&'\u2028\U0001f600" * 20 for n in range(64)]
    for event in (await stored(data), await stored({}, metadata=data), await stored(nested(9), data, tags)):
        for shown in (repr(event), str(event)):
            assert len(shown) < 900
            assert shown.isprintable()
            assert shown.endswith(")")
        assert "\ufffd" not in repr(event) + event._repr_html_()
        assert len(event._repr_html_()) < 60_000  # an escaped character takes at most six
        assert_well_formed(event._repr_html_())
        assert event._data_decoded is event._metadata_decoded is None, "showing an event makes it no larger"


async def test_a_huge_event_is_shown_by_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    event = await stored({"text": "x" * HUGE})
    monkeypatch.setattr("aiostore.events.decode_object", None)
    tracemalloc.start()
    try:
        shown, page = repr(event), event._repr_html_()
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 100_000
    assert """data='{"text":"xxxxx""" in shown
    assert shown.endswith(f"xxx… ({HUGE + 11:,} bytes of JSON))")
    assert f"xxx… ({HUGE + 11:,} bytes of JSON)</pre>" in page


async def test_a_long_event_is_cut() -> None:
    event = await stored({"text": "x" * 300, "last": True}, {"short": None})
    assert f"data={{'text': '{'x' * 190}… (323 bytes of JSON), metadata={{'short': None}})" in repr(event)
    assert "&quot;last&quot;: true\n}</pre>" in event._repr_html_()
    event = await stored({"list": list(range(1000))})
    assert "list&quot;: [\n    0,\n    1,\n" in event._repr_html_()
    assert "… (3,900 bytes of JSON)</pre>" in event._repr_html_()


async def test_what_is_shown_is_what_is_stored() -> None:
    event = await stored({"a": 1}, {"b": 2})
    event.data["a"] = event.metadata["b"] = "changed in this shell only"
    assert "data={'a': 1}, metadata={'b': 2}" in repr(event)
    assert "changed" not in event._repr_html_()


async def test_html_is_a_table_of_what_there_is() -> None:
    event, bare = await events()
    rows = text_of(event._repr_html_())
    assert rows[:10] == [
        *("event_id", "1", "stream_id", "cart-1", "version", "1", "event_type", "ItemAdded"),
        *("timestamp", "2026-01-02 12:00:00.000005 UTC"),
    ]
    assert rows[10:12] == ["data", '{\n  "sku": "A",\n  "n": [\n    1\n  ]\n}']
    assert rows[12:] == ["metadata", '{\n  "user": 7\n}', "tags", "a, b"]
    assert text_of(bare._repr_html_())[10:] == ["data", "{}"]


async def test_html_is_escaped() -> None:
    hostile = "<script>'\"&amp;"
    async with EventStore() as store:
        event = await store.append(hostile, hostile, {hostile: hostile}, metadata={hostile: 1}, tags=[hostile])
    assert "<script" not in event._repr_html_()
    rows = text_of(event._repr_html_())
    assert (rows[3], rows[7], rows[-1]) == (hostile, hostile, hostile)
    assert json.loads(rows[11]) == {hostile: hostile}
    assert json.loads(rows[13]) == {hostile: 1}


def text_of(page: str) -> list[str]:
    """The texts of the cells, as a browser shows them."""
    return ["".join(cell.itertext()) for cell in assert_well_formed(page).iter() if cell.tag in ("th", "td")]


def assert_well_formed(page: str) -> ElementTree.Element:
    """Only the tags that are meant; a text that is not escaped makes others, or no XML at all."""
    table = ElementTree.fromstring(page.translate(NOT_IN_XML))
    assert {element.tag for element in table.iter()} == {"table", "tr", "th", "td", "pre"}
    return table


# HTML takes these characters and XML does not.
NOT_IN_XML = dict.fromkeys([*range(9), 0xB, 0xC, *range(0xE, 0x20), 0xFFFE, 0xFFFF])


def test_sentinels_show_their_names_and_stay_themselves() -> None:
    for sentinel, name in ((STREAM_EXISTS, "STREAM_EXISTS"), (END, "END")):
        assert repr(sentinel) == name
        assert copy.copy(sentinel) is copy.deepcopy(sentinel) is pickle.loads(pickle.dumps(sentinel)) is sentinel
    assert NO_STREAM == 0


@pytest.mark.parametrize(
    ("expected", "versions"),
    [(None, [0, 1, 2]), (NO_STREAM, [0]), (1, [1]), (2, [2]), (3, []), (STREAM_EXISTS, [1, 2])],
)
def test_version_matches(expected: int | None, versions: list[int]) -> None:
    assert [version for version in range(3) if version_matches(expected, version)] == versions


@pytest.mark.parametrize("value", [NewEvent("T", {"a": 1}, None, ("t",)), StreamAppend("s", [("T", {})], 1)])
def test_what_is_appended_is_a_frozen_value(value: NewEvent | StreamAppend) -> None:
    assert pickle.loads(pickle.dumps(value)) == copy.copy(value) == value
    for name in value.__slots__:
        with pytest.raises(AttributeError):
            setattr(value, name, "other")
