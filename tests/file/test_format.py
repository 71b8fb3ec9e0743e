"""The bytes: golden lines, a table of what is valid, and that what is encoded is what is decoded."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiostore.engine import Commit, Plan
from aiostore.engines.file import format as fmt
from aiostore.engines.file.format import Damaged
from aiostore.events import NO_METADATA, Event
from tests.file.disks import MemoryDisk
from tests.file.driver import started

STORE_ID = "000102030405060708090a0b0c0d0e0f"
TIME = "2026-11-23T04:50:00.123456Z"
SEED = fmt.line_seed(STORE_ID, 1)


def raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


EXAMPLE = [
    Commit([Event(1, "cart-1", 1, "Opened", TIME, raw({}))], None),
    Commit(
        [
            Event(2, "cart-1", 2, "ItemAdded", TIME, raw({"sku": "a"}), tags=("sku:a",)),
            Event(3, "stock-a", 1, "Reserved", TIME, raw({"n": 1}), raw({"by": "cart-1"})),
        ],
        "k-1",
    ),
]
GOLDEN = (
    b'{"event_id":1,"stream_id":"cart-1","version":1,"event_type":"Opened","timestamp":"2026-11-23T04:50:00.123456Z",'
    b'"data":{},"crc":"1a4fc882"}\n'
    b'{"event_id":2,"stream_id":"cart-1","version":2,"event_type":"ItemAdded","timestamp":"2026-11-23T04:50:00.123456Z",'
    b'"data":{"sku":"a"},"tags":["sku:a"],"key":"k-1","more":1,"open":1,"crc":"fb4b4b2d"}\n'
    b'{"event_id":3,"stream_id":"stock-a","version":1,"event_type":"Reserved","timestamp":"2026-11-23T04:50:00.123456Z",'
    b'"data":{"n":1},"metadata":{"by":"cart-1"},"open":2,"crc":"f72bef58"}\n'
)


def encoded(commits: list[Commit], seed: int = SEED, durable: int = 0) -> bytes:
    return b"".join(lines.data for lines in fmt.encode_group(commits, seed, durable))


def test_the_example_of_the_specification_is_what_is_written() -> None:
    assert encoded(EXAMPLE) == GOLDEN
    document = re.sub(r'",\n    "', '","', fmt.__doc__ or "")
    for line in GOLDEN.decode().splitlines():
        assert line in document
    assert f"0x{SEED:08x}" in document


def test_each_line_begins_where_it_is_said_to() -> None:
    lines = list(fmt.encode_group([Commit([event], None) for event in many(1200)], SEED, 0))
    assert [len(piece.starts) for piece in lines] == [512, 512, 176]
    for piece in lines:
        assert [piece.data[start : start + 12] for start in piece.starts] == [b'{"event_id":'] * len(piece.starts)


def many(count: int) -> list[Event]:
    return [Event(n + 1, "s", n + 1, "T", TIME, raw({"n": n})) for n in range(count)]


def test_open_counts_what_was_not_durable() -> None:
    events = [Event(n, "s", n, "T", TIME, raw({})) for n in (8, 9)]
    lines = encoded([Commit([event], None) for event in events], SEED, durable=5).splitlines()
    assert [fmt.decode_line(line).unsynced for line in lines] == [2, 3]
    lone = encoded([Commit(events[:1], None)], SEED, durable=7)
    assert b'"open"' not in lone


@pytest.mark.parametrize("count", [fmt.ENDS_MAX, fmt.ENDS_MAX + 1, fmt.ENDS_MAX + 600])
def test_a_long_commit_counts_down_and_what_was_not_durable_up(count: int) -> None:
    events = [Event(n + 8, "s", n + 1, "T", TIME, raw({})) for n in range(count)]
    for unsynced in (0, 7):
        data = encoded([Commit(events, "k")], durable=7 - unsynced)
        assert b'"more":0' not in data
        assert b'"open":0' not in data
        lines = [fmt.decode_line(line) for line in data.splitlines()]
        assert [line.more for line in lines] == [*range(count - 1, -1, -1)]
        assert [line.unsynced for line in lines] == [*range(unsynced, unsynced + count)]
        assert [line.key for line in lines] == ["k", *[None] * (count - 1)]


def test_many_short_commits_have_nothing_to_count_down() -> None:
    events = many(fmt.ENDS_MAX + 10)
    data = encoded([Commit([event], None) for event in events])
    assert b'"more"' not in data
    assert [fmt.decode_line(line).unsynced for line in data.splitlines()] == [*range(len(events))]


def test_the_checksum_covers_all_but_the_last_nineteen_bytes_of_a_line() -> None:
    from zlib import crc32

    line = GOLDEN.splitlines(keepends=True)[0]
    assert line[-19:] == b',"crc":"%08x"}\n' % crc32(line[:-19], SEED)


def changed(**keys: Any) -> bytes:
    """A line with a checksum that holds, and these keys changed or (…) left out."""
    line = msgspec.json.decode(GOLDEN.splitlines()[0])
    line.update(keys)
    line = {key: value for key, value in line.items() if value is not ...}
    del line["crc"]
    return with_crc(msgspec.json.encode(line)[:-1])


def with_crc(text: bytes) -> bytes:
    from zlib import crc32

    return b'%b,"crc":"%08x"}\n' % (text, crc32(text, SEED))


BAD_EVENTS = {
    "a flipped bit": GOLDEN.splitlines(keepends=True)[0].replace(b"Opened", b"Opeled"),
    "another checksum": GOLDEN.splitlines(keepends=True)[0].replace(b"1a4fc882", b"1a4fc883"),
    "upper case digits": GOLDEN.splitlines(keepends=True)[0].replace(b"1a4fc882", b"1A4FC882"),
    "another segment": encoded(EXAMPLE[:1], fmt.line_seed(STORE_ID, 2)),
    "another store": encoded(EXAMPLE[:1], fmt.line_seed("f" * 32, 1)),
    "no newline": GOLDEN.splitlines()[0],
    "half a line": GOLDEN[:60] + b"\n",
    "two lines": GOLDEN.splitlines(keepends=True)[0] * 2,
    "nothing": b"",
    "padding alone": b"\n\n",
    "another event": changed(event_id=2),
    "no event_id": changed(event_id=...),
    "an event_id that is text": changed(event_id="1"),
    "a version that is text": changed(version="1"),
    "tags that are not texts": changed(tags=[1]),
    "not JSON": with_crc(b'{"event_id":1,'),
    "not UTF-8": with_crc(b'{"event_id":1,"stream_id":"\xff"'),
    "not an object": with_crc(b"[1"),
}


@pytest.mark.parametrize("name", BAD_EVENTS)
def test_what_is_not_valid_is_not_served(name: str) -> None:
    with pytest.raises(Damaged):
        fmt.decode_events(fmt.lines_of(BAD_EVENTS[name]), [SEED], [1])


def test_why_lines_are_not_served_is_told() -> None:
    """And no less than all of them is served."""
    valid = fmt.lines_of(GOLDEN)
    seeds = [SEED] * 3
    for lines, ids, reason in (
        (valid[:2], [1, 2, 3], "^2 lines where 3 must be$"),
        (valid, [1, 2], "^3 lines where 2 must be$"),
        ([*valid[:2], valid[2][:-1]], [1, 2, 3], "^the checksum does not hold$"),
        ([*valid[:2], valid[0]], [1, 2, 3], "^event 1 is not where it must be$"),
        (valid, [2, 3, 4], "^event 2 is not where it must be$"),
        (
            [*valid[:2], fmt.lines_of(BAD_EVENTS["not UTF-8"])[0]],
            [1, 2, 3],
            "^the checksum holds, but it is not a line: ",
        ),
    ):
        with pytest.raises(Damaged, match=reason):
            fmt.decode_events(lines, seeds, ids)
        with pytest.raises(Damaged, match=reason):
            fmt.decode_lines(lines, seeds, ids)
    assert [line.event_id for line in fmt.decode_lines(valid[::-1], seeds, [3, 2, 1])] == [3, 2, 1]


LINES = [name for name, data in BAD_EVENTS.items() if data.count(b"\n") == 1 and name != "another event"]


@pytest.mark.parametrize("name", LINES)
def test_one_line_that_is_not_valid_is_told_to_be_damaged(name: str) -> None:
    line = BAD_EVENTS[name][:-1]
    reason = "it is not a line: " if fmt.checksum_holds(line, SEED) else "^the checksum does not hold$"
    with pytest.raises(Damaged, match=reason):
        fmt.decode_checked_line(line, SEED)


def test_one_valid_line_is_decoded_whole() -> None:
    line = fmt.decode_checked_line(GOLDEN.splitlines()[1], SEED)
    assert (line.event_id, line.stream_id, line.version, line.event_type, line.timestamp) == (
        (2, "cart-1", 2, "ItemAdded", TIME)
    )
    assert (bytes(line.data), bytes(line.metadata), line.tags) == (b'{"sku":"a"}', bytes(NO_METADATA), ("sku:a",))
    assert (line.key, line.more, line.unsynced, line.crc) == ("k-1", 1, 1, "fb4b4b2d")


@pytest.mark.parametrize(
    "keys",
    [
        {"unknown": 1},
        {"_data_decoded": {}},
        {"key": 1},
        {"more": "1"},
        {"open": None},
        {"data": ...},
        {"metadata": ..., "stream_id": None},
    ],
)
def test_recovery_refuses_a_line_whose_keys_are_not_the_formats(keys: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        fmt.decode_line(changed(**keys))


def test_padding_is_skipped() -> None:
    assert fmt.decode_events(
        fmt.lines_of(b"\n\n" + GOLDEN.replace(b"\n", b"\n\n")), [SEED] * 3, [1, 2, 3]
    ) == events_of(EXAMPLE)


def events_of(commits: list[Commit]) -> list[Event]:
    return [event for commit in commits for event in commit.events]


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
OBJECTS = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), JSON, max_size=3)
PARTS = st.tuples(NAMES, st.integers(1, 2**40), NAMES, OBJECTS, OBJECTS, st.lists(NAMES, max_size=3))
COMMITS = st.lists(st.tuples(st.none() | NAMES, st.lists(PARTS, min_size=1, max_size=4)), min_size=1, max_size=4)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(COMMITS, st.integers(1, 2**62), st.integers(0, 100))
def test_what_is_encoded_is_what_is_decoded(
    drawn: list[tuple[str | None, list[Any]]], first: int, unsynced: int
) -> None:
    commits: list[Commit] = []
    event_id = first
    for key, parts in drawn:
        events = []
        for stream_id, version, event_type, data, metadata, tags in parts:
            encoded_metadata = raw(metadata) if metadata else NO_METADATA
            events.append(
                Event(event_id, stream_id, version, event_type, TIME, raw(data), encoded_metadata, tuple(tags))
            )
            event_id += 1
        commits.append(Commit(events, key))
    data = encoded(commits, SEED, durable=first - 1 - unsynced)
    assert fmt.decode_events(fmt.lines_of(data), [SEED] * (event_id - first), range(first, event_id)) == events_of(
        commits
    )
    lines = [fmt.decode_line(line) for line in data.splitlines()]
    assert [line.more for line in lines] == [n for c in commits for n in range(len(c.events) - 1, -1, -1)]
    assert [line.unsynced for line in lines] == list(range(unsynced, unsynced + len(lines)))
    keys = [key for c in commits for key in (c.idempotency_key, *[None] * (len(c.events) - 1))]
    assert [line.key for line in lines] == keys


def test_the_manifest_is_one_checked_line() -> None:
    manifest = fmt.Manifest(1, 1, STORE_ID, TIME, 1)
    data = fmt.encode_manifest(manifest)
    assert data == (
        b'{"min_reader":1,"min_writer":1,"store_id":"000102030405060708090a0b0c0d0e0f",'
        b'"created":"2026-11-23T04:50:00.123456Z","first_segment":1,"crc":"7586463b"}\n'
    )
    assert fmt.decode_manifest(data) == manifest
    for bad in (b"", data[:-1], data[:-2] + b"\n", data.replace(b"00", b"01", 1), data + data):
        with pytest.raises(Damaged, match=r"^the checksum of the manifest does not hold$"):
            fmt.decode_manifest(bad)


@pytest.mark.parametrize("text", [b'{"min_reader":1', b'{"min_reader":"1"', b'{"store_id":"\xff"', b"[1", b"{"])
def test_what_is_not_a_manifest_is_damaged_where_its_checksum_holds(text: bytes) -> None:
    from zlib import crc32

    with pytest.raises(Damaged, match=r"^the checksum holds, but it is not a manifest: "):
        fmt.decode_manifest(b'%b,"crc":"%08x"}\n' % (text, crc32(text)))


def test_other_keys_of_the_manifest_are_left_alone() -> None:
    from zlib import crc32

    manifest = fmt.Manifest(1, 1, STORE_ID, TIME, 1)
    text = msgspec.json.encode(manifest)[:-1] + b',"later":[1]'
    assert fmt.decode_manifest(b'%b,"crc":"%08x"}\n' % (text, crc32(text))) == manifest


def test_a_slot_of_the_head_is_512_checked_bytes() -> None:
    slot = fmt.encode_slot(1234, STORE_ID)
    assert slot == b'{"durable":1234,"crc":"7fa360fd"}'.ljust(511) + b"\n"
    assert fmt.decode_slot(slot, STORE_ID) == 1234
    assert fmt.decode_slot(slot, "f" * 32) is None
    for bad in (b"", slot[:-1], slot.replace(b"1234", b"1235"), slot.replace(b"  ", b" x", 1), b"\0" * 512):
        assert fmt.decode_slot(bad, STORE_ID) is None


def test_segments_are_named_by_their_first_event() -> None:
    assert fmt.segment_name(7) == "00000000000000000007.jsonl"
    assert fmt.segment_first("00000000000000000007.jsonl") == 7
    for other in ("7.jsonl", "0" * 20 + ".jsonl", "00000000000000000007.idx", "x0000000000000000007.jsonl"):
        assert fmt.segment_first(other) is None


async def test_the_files_of_a_small_store() -> None:
    """Byte for byte: a change here is a change of the format."""

    class Named(MemoryDisk):
        def process(self) -> tuple[int, str]:
            return 77, "machine"

    manifest = fmt.encode_manifest(fmt.Manifest(1, 1, STORE_ID, TIME, 1))
    disk = Named({"/s/aiostore.json": manifest})
    engine, _ = await started("/s", disk, segment_bytes=300)
    await engine.commit(Plan(EXAMPLE))
    await engine.commit(Plan([Commit([Event(4, "cart-1", 3, "Closed", TIME, raw({}))], None)]))
    await engine.aclose()
    slots = (b'{"durable":3,"crc":"bfde2bbe"}', b'{"durable":4,"crc":"21babe1d"}')
    assert disk.files() == {
        "/s/00000000000000000001.jsonl": GOLDEN,
        "/s/00000000000000000004.jsonl": b'{"event_id":4,"stream_id":"cart-1","version":3,"event_type":"Closed",'
        b'"timestamp":"2026-11-23T04:50:00.123456Z","data":{},"crc":"f6c2d2cc"}\n',
        "/s/aiostore.json": manifest,
        "/s/head": b"".join(slot.ljust(511) + b"\n" for slot in slots),
        "/s/lock": b'{"pid":77,"host":"machine"}\n',
    }
