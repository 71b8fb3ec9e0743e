"""The walk through one segment: what is taken in, what counts as damage, and what the lines vouch for."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from aiostore.engine import Head
from aiostore.engines.file import scan as scan_module
from aiostore.engines.file.index import PART_BYTES_MIN, Index
from aiostore.engines.file.scan import EVENT_ID_MAX, UNKNOWN, Scan, take_valid
from aiostore.engines.file.segment import Segment
from tests.file.disks import MemoryDisk
from tests.file.driver import nothing
from tests.file.lines import STORE_ID, TIME, line, lines, with_crc

SIZE = len(line(1))
LONG = line(1, data={"pad": "p" * 100})  # behind it, another one is not too far ahead
NO_LINE = with_crc(b'{"event_id":2,"unknown":true')
NOT_UTF8 = with_crc(b'{"event_id":2,"stream_id":"\xff"')
BAD = "the checksum does not hold"
FLIPPED = line(2).replace(b'"T"', b'"U"')


def begins(event_id: int) -> bytes:
    """What looks like the beginning of a line."""
    return b'{"event_id":%d,"stream_id":"x' % event_id


class Found(NamedTuple):
    """What is to be found in a segment that begins with event 1."""

    whole: int
    """The last event that is entered: of the last whole commit before any damage."""
    last: int
    durable: int
    damages: tuple[tuple[int, str, int, int], ...] = ()
    """Where each begins, why, and the first and last event that is lost."""
    later: tuple[int, ...] = ()
    undecodable: bool = False


def scanned(data: bytes, defer_after: int = EVENT_ID_MAX) -> Scan:
    segment = Segment("/s", STORE_ID, 1)
    disk = MemoryDisk({segment.path: data})
    index = Index(STORE_ID, PART_BYTES_MIN)
    index.add_segment(segment)
    scan = Scan(disk, segment, index, nothing, defer_after)
    scan.run()
    assert disk.held == 0
    assert scan.size == len(data)
    assert {damage.path for damage in scan.damages} <= {segment.path}
    assert index.head.event_id == segment.last_event_id
    for event_id in range(1, segment.last_event_id + 1):
        start, end = segment.span(event_id)
        assert data[start:end].startswith(b'{"event_id":%d,' % event_id)
        assert data[start:end].rstrip(b"\n").count(b"\n") == 0
    return scan


def found(scan: Scan) -> Found:
    return Found(
        scan.segment.last_event_id,
        scan.last_event_id,
        scan.durable,
        tuple((damage.offset, damage.reason, damage.first, damage.last) for damage in scan.damages),
        tuple(each.line.event_id for each in scan.later),
        scan.undecodable,
    )


CASES: dict[str, tuple[bytes, Found]] = {
    "nothing": (b"", Found(0, 0, 0)),
    "padding alone": (b"\n\n\n", Found(0, 0, 0)),
    "commits of one event": (lines(1, 3), Found(3, 3, 2)),
    "not known durable": (line(1) + line(2, open=1) + line(3, open=2), Found(3, 3, 0)),
    "the first vouches for most": (line(1) + line(2) + line(3, open=2), Found(3, 3, 1)),
    "a long commit": (line(1, more=2, key="k") + line(2, more=1) + line(3), Found(3, 3, 2)),
    "two keys": (line(1, key="a") + line(2, key="b"), Found(2, 2, 1)),
    "padding": (b"\n\n" + line(1, more=1) + b"\n" + line(2) + b"\n\n" + line(3) + b"\n\n\n", Found(3, 3, 2)),
    "a commit without its end": (line(1) + line(2, more=2) + line(3, more=1), Found(1, 3, 2, later=(2, 3))),
    "an event left out": (
        LONG + line(3) + line(4),
        Found(1, 4, 3, ((len(LONG), "event 3 stands where 2 must", 2, 2),), (3, 4)),
    ),
    "an event twice": (lines(1, 2) + line(2), Found(2, 2, 1, ((2 * SIZE, "event 2 stands where 3 must", 3, UNKNOWN),))),
    "a commit that ends early": (
        (begun := line(1, more=2)) + line(2),
        Found(0, 2, 1, ((len(begun), "0 more events of the commit are announced where 1 must be", 2, 1),), (1, 2)),
    ),
    "a commit that grows": (
        (begun := line(1, more=1)) + line(2, more=1) + line(3),
        Found(
            0,
            3,
            2,
            ((len(begun), "1 more events of the commit are announced where 0 must be", 2, 1),),
            (1, 2, 3),
        ),
    ),
    "a key in the midst": (
        (begun := line(1, more=1)) + line(2, key="k") + line(3),
        Found(0, 3, 2, ((len(begun), "a key in the midst of a commit", 2, 1),), (1, 2, 3)),
    ),
    "a flipped bit": (line(1) + FLIPPED + line(3), Found(1, 3, 2, ((SIZE, BAD, 2, 2),), (3,))),
    "a flipped bit at the end": (line(1) + FLIPPED, Found(1, 1, 0, ((SIZE, BAD, 2, UNKNOWN),))),
    "a torn line": (line(1) + line(2)[:-1], Found(1, 1, 0, ((SIZE, "the line has no end", 2, UNKNOWN),))),
    "spaces": (line(1) + b" \t", Found(1, 1, 0, ((SIZE, "the line has no end", 2, UNKNOWN),))),
    "letters": (line(1) + b"XX", Found(1, 1, 0, ((SIZE, "the line has no end", 2, UNKNOWN),))),
    "damage behind padding": (line(1) + b"\n\n\n" + FLIPPED, Found(1, 1, 0, ((SIZE + 3, BAD, 2, UNKNOWN),))),
    "damage that vouches": (line(1) + FLIPPED + line(3, open=1), Found(1, 3, 1, ((SIZE, BAD, 2, 2),), (3,))),
    "two places": (
        line(1) + FLIPPED + line(3) + FLIPPED + FLIPPED + line(7),
        Found(1, 7, 6, ((SIZE, BAD, 2, 2), (3 * SIZE, BAD, 4, 6)), (3, 7)),
    ),
    "a line from elsewhere": (line(1, first=2) + line(2), Found(0, 2, 1, ((0, BAD, 1, 1),), (2,))),
    "a newline that is gone": (line(1)[:-1] + line(2), Found(0, 2, 1, ((0, BAD, 1, 1),), (2,))),
    "glued to a damaged one": (
        line(1) + line(2)[:-9] + b"\0\0" + line(3) + line(4),
        Found(1, 4, 3, ((SIZE, BAD, 2, 2),), (3, 4)),
    ),
    "two beginnings": (
        LONG + begins(2) + begins(2) + line(3),
        Found(1, 3, 2, ((len(LONG), BAD, 2, 2),), (3,)),
    ),
    "glued to a damaged one behind another": (
        line(1) + FLIPPED + line(3)[:-9] + b"\0\0" + line(4) + line(5),
        Found(1, 5, 4, ((SIZE, BAD, 2, 3),), (4, 5)),
    ),
    "behind a byte": (LONG + b"x" + line(2) + line(3), Found(1, 3, 2, ((len(LONG), BAD, 2, 1),), (2, 3))),
    "a beginning too far ahead": (
        LONG + begins(2) + begins(99) + line(3),
        Found(1, 3, 2, ((len(LONG), BAD, 2, 2),), (3,)),
    ),
    "too far ahead": (  # so many lines do not fit before it
        line(1) + FLIPPED + line(99) + line(4),
        Found(1, 4, 3, ((SIZE, BAD, 2, 3),), (4,)),
    ),
    "an old one": (line(1) + FLIPPED + line(1) + line(3), Found(1, 3, 2, ((SIZE, BAD, 2, 2),), (3,))),
    "an old one, glued": (line(1) + b"x" + line(1) + line(2), Found(1, 2, 1, ((SIZE, BAD, 2, 1),), (2,))),
    "no line behind damage": (
        line(1) + FLIPPED + NO_LINE + line(4),
        Found(1, 4, 3, ((SIZE, BAD, 2, 3),), (4,), undecodable=True),
    ),
}


@pytest.mark.parametrize("chunk_bytes", [1, 60, SIZE, SIZE + 2, 1000, scan_module.CHUNK_BYTES])
@pytest.mark.parametrize("name", CASES)
def test_what_is_found(name: str, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "CHUNK_BYTES", chunk_bytes)
    data, expected = CASES[name]
    scan = scanned(data)
    assert found(scan) == expected
    assert scan.has_open_commit == (name == "a commit without its end")


@pytest.mark.parametrize("bad", [NO_LINE, NOT_UTF8])
def test_a_checksum_that_holds_over_something_else_is_noted(bad: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = scanned(LONG + bad + line(3))
    assert scan.undecodable
    monkeypatch.setattr(scan_module, "DAMAGES_MAX", 0)  # also where nothing is looked for behind it
    assert scanned(LONG + bad + line(3)).undecodable
    ((offset, reason, first, last),) = found(scan).damages
    assert reason.startswith("the checksum holds, but it is not a line: ")
    assert (offset, first, last) == (len(LONG), 2, 2)


def test_the_end_of_a_segment_is_that_of_its_last_whole_commit() -> None:
    padded = lines(1, 2) + b"\n\n"
    for data, end in (
        (lines(1, 3), 3 * SIZE),
        (padded, 2 * SIZE),
        (padded + line(3), 3 * SIZE + 2),
        (line(1) + line(2, more=1), SIZE),
        (line(1) + FLIPPED + line(3), SIZE),
    ):
        assert scanned(data).segment.end == end


@pytest.mark.parametrize("there", [lines(1, 2), LONG + FLIPPED, LONG + FLIPPED + line(3), line(1) + b"torn"])
def test_what_is_added_while_it_is_walked_through_is_not_looked_at(there: bytes) -> None:
    class Growing(MemoryDisk):
        def size(self, file: int) -> int:
            size = super().size(file)
            self.write_at(file, lines(4, 9), size)
            return size

    segment = Segment("/s", STORE_ID, 1)
    index = Index(STORE_ID, PART_BYTES_MIN)
    index.add_segment(segment)
    scan = Scan(Growing({segment.path: there}), segment, index, nothing)
    scan.run()
    assert (scan.size, found(scan)) == (len(there), found(scanned(there)))


def test_what_opening_takes_in_is_told_to_the_index() -> None:
    data = (
        line(1, more=1, key="k", stream_id="a") + line(2, stream_id="b", version=1) + line(3, stream_id="a", version=2)
    )
    for text in (data, b"\n" + data):  # all at once, and line by line
        segment = Segment("/s", STORE_ID, 1)
        index = Index(STORE_ID, PART_BYTES_MIN)
        index.add_segment(segment)
        Scan(MemoryDisk({segment.path: text}), segment, index, nothing).run()
        assert index.head == Head(3, TIME.format(3))
        assert (index.versions.get("a"), index.versions.get("b")) == (2, 1)
        assert [text[start:end] for start, end in segment.spans([3, 1])] == [
            data.splitlines(keepends=True)[2],
            data.splitlines(keepends=True)[0],
        ]


def test_of_what_is_deferred_whole_commits_count() -> None:
    data = line(1) + line(2) + line(3, more=1) + line(4) + line(5, more=1)
    for defer_after, entered in ((0, 0), (1, 1), (2, 2), (3, 2), (4, 4), (9, 4)):
        scan = scanned(data, defer_after)
        assert scan.segment.last_event_id == entered
        assert [each.line.event_id for each in scan.later] == list(range(entered + 1, 6))
        assert (scan.last_event_id, scan.last_whole_event_id, scan.durable) == (5, 4, 4)
        scan.enter_later(up_to=3)
        assert scan.segment.last_event_id == max(entered, 3)
        scan.enter_later()
        assert (scan.segment.last_event_id, scan.later) == (5, [])
        assert scan.segment.end == len(data)


def test_behind_damage_no_commit_is_whole() -> None:
    damaged = scanned(line(1) + line(2, more=1) + line(3) + b"x\n" + line(4), defer_after=1)
    assert (damaged.last_event_id, damaged.last_whole_event_id) == (4, 3)
    at_once = scanned(b"x\n" + line(1) + line(2))
    assert (at_once.last_event_id, at_once.last_whole_event_id) == (2, 0)


def test_what_is_lost_has_a_place_without_bytes() -> None:
    data = line(1) + FLIPPED + FLIPPED + line(4) + line(5)
    scan = scanned(data)
    scan.enter_later()
    assert scan.segment.spans([1, 2, 3, 4, 5]) == [
        (0, SIZE),
        (SIZE, SIZE),
        (SIZE, 3 * SIZE),  # up to the next: no line, which a read finds
        (3 * SIZE, 4 * SIZE),
        (4 * SIZE, 5 * SIZE),
    ]


def test_so_many_damaged_places_are_gone_past(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "DAMAGES_MAX", 2)
    data = b"".join(line(n) + b"x" * 100 + b"\n" for n in (1, 3, 5, 7))
    step = SIZE + 101
    assert found(scanned(data)).damages == (
        (SIZE, BAD, 2, 2),
        (SIZE + step, BAD, 4, 4),
        (SIZE + 2 * step, BAD, 6, UNKNOWN),
    )


def test_lines_in_the_midst_of_others_are_looked_for_in_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = b'{"event_id":2,"stream_id":"'
    data = line(1) + begun * 3 + line(2) + line(3)
    for checked_bytes, last in (
        (0, 2),
        (1, 2),  # it is spent with the first
        (3 * (len(begun) + SIZE), 1),
    ):
        monkeypatch.setattr(scan_module, "TOKEN_BYTES", checked_bytes)
        assert found(scanned(data)).damages == ((SIZE, BAD, 2, last),)
    for checked_bytes, last in ((0, 2), (1, 1)):
        monkeypatch.setattr(scan_module, "TOKEN_BYTES", checked_bytes)
        assert found(scanned(LONG + b"x" + line(2) + line(3))).damages == ((len(LONG), BAD, 2, last),)


def test_opening_can_be_ended_at_each_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(Exception):
        pass

    asked = 0

    def going_on() -> None:
        nonlocal asked
        asked += 1
        if asked == stop_at:
            raise Stopped

    monkeypatch.setattr(scan_module, "CHUNK_BYTES", SIZE)
    for stop_at in (1, 2, 6, 99):
        segment = Segment("/s", STORE_ID, 1)
        disk = MemoryDisk({segment.path: lines(1, 3) + FLIPPED + FLIPPED + line(6)})
        index = Index(STORE_ID, PART_BYTES_MIN)
        index.add_segment(segment)
        asked = 0
        scan = Scan(disk, segment, index, going_on)
        if stop_at == 99:
            scan.run()
            assert asked == 9  # four chunks until the damage, three lines behind it, one chunk more and the end
        else:
            with pytest.raises(Stopped):
                scan.run()
        assert disk.held == 0


@pytest.mark.parametrize(
    ("texts", "taken"),
    [
        ([], 0),
        ([line(5)], 1),
        ([line(5), line(6)], 2),
        ([line(6)], 0),
        ([line(5), line(7)], 0),
        ([line(5), FLIPPED], 0),
        ([line(5), NO_LINE], 0),
        ([line(5), NOT_UTF8], 0),
        ([line(5, more=1)], 0),
        ([line(5, more=2), line(6, more=1)], 0),
        ([line(5), line(6, more=1)], 1),
        ([line(5, more=1), line(6), line(7, more=3), line(8, more=2)], 2),
        ([line(5, more=1), line(6)], 2),
        ([line(5, more=2), line(6)], 0),
        ([line(5, more=1), line(6, more=1), line(7)], 0),
        ([line(5, more=1, key="k"), line(6), line(7, key="l")], 3),
        ([line(5, more=1), line(6, key="k")], 0),
        ([line(5, key="k")], 1),
    ],
)
def test_lines_are_taken_at_once_where_all_is_as_it_should_be(texts: list[bytes], taken: int) -> None:
    valid = take_valid([text[:-1] for text in texts], Segment("/s", STORE_ID, 1).seed, 5)
    assert [each.event_id for each in valid] == list(range(5, 5 + taken))
