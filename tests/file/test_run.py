"""Runs: their bytes, what is damaged and found out, lookups, and the blocks held in memory."""

from __future__ import annotations

import gc
import re
import struct
import threading
from array import array
from collections.abc import Callable
from zlib import crc32

import pytest

from aiostore.engines.file import run_format as fmt
from aiostore.engines.file import terms as terms_module
from aiostore.engines.file.blocks import BLOCK_BYTES, Blocks
from aiostore.engines.file.disk import WouldBlock
from aiostore.engines.file.format import Damaged
from aiostore.engines.file.run import Run
from aiostore.engines.postings import Kind, Term, key_text
from aiostore.errors import StoreClosed
from tests.file.disks import MemoryDisk
from tests.file.runs import (
    DIRECTORY,
    OTHER_ID,
    STORE_ID,
    Entry,
    built,
    check_answers,
    naive,
    new_disk,
    sealed,
    segments_of,
    some_entries,
)

EXAMPLE = [
    Entry("cart-1", "Opened"),
    Entry("cart-1", "ItemAdded", ("sku:a",), "k-1"),
    Entry("stock-a", "Reserved"),
    Entry("cart-1", "Closed"),
]
PATH = f"{DIRECTORY}/00000000000000000001.idx"


def example() -> tuple[bytes, Run]:
    disk = new_disk()
    run = built(disk, segments_of([3, 1], EXAMPLE))
    assert run.path == PATH
    return disk.files()[PATH], run


def opened_from(data: bytes, path: str = PATH, store_id: str = STORE_ID, blocks: Blocks | None = None) -> Run:
    return Run.open(MemoryDisk({path: data}), path, store_id, blocks or Blocks())


# --- the bytes ---


def test_the_example_of_the_specification_is_what_is_written() -> None:
    data, run = example()
    header = data[: data.index(b"}") + 1].decode()
    assert header in (fmt.__doc__ or "")
    assert data[len(header) : 512] == b" " * (511 - len(header)) + b"\n"
    assert len(data) == run.size == fmt.decode_header(data[:512], STORE_ID).size


def test_the_bytes_are_what_the_specification_says() -> None:
    from hashlib import blake2b

    data, run = example()
    assert data[512:560] == struct.pack("<QQIIQQII", 1, 549, 1, 0, 4, 249, 4, 0)
    assert data[560:BLOCK_BYTES] == bytes(BLOCK_BYTES - 560)
    assert data[BLOCK_BYTES : BLOCK_BYTES + 16] == struct.pack("<4I", 0, 151, 302, 0)
    keys = []
    for (kind, text), ids in naive(1, EXAMPLE).items():
        digest = blake2b(STORE_ID.encode() + kind.value + text.encode(), digest_size=5).digest()
        keys += [int.from_bytes(digest, "little") << 24 | event_id - 1 for event_id in ids]
    assert run.keys_count == len(keys) == 10
    assert data[2 * BLOCK_BYTES : 3 * BLOCK_BYTES] == struct.pack("<10Q", *sorted(keys)).ljust(BLOCK_BYTES, b"\0")
    blocks = data[BLOCK_BYTES : 2 * BLOCK_BYTES], data[2 * BLOCK_BYTES : 3 * BLOCK_BYTES]
    assert data[3 * BLOCK_BYTES :] == struct.pack("<QII", min(keys), *map(crc32, blocks))
    text, _, crc = data[:512].decode().rstrip().rpartition(',"crc":')
    assert crc == f'"{crc32(text.encode(), crc32(STORE_ID.encode() + b"index")):08x}"}}'
    assert f'"tables":"{crc32(data[3 * BLOCK_BYTES :], crc32(data[512:BLOCK_BYTES])):08x}"' in text


@pytest.mark.parametrize("name", ["1.idx", "00000000000000000000.idx", "00000000000000000001.jsonl", "x.idx.tmp"])
def test_what_is_not_the_name_of_a_run(name: str) -> None:
    assert fmt.run_first(name) is None
    assert not fmt.is_temporary(name)


def test_names() -> None:
    assert fmt.run_first(fmt.run_name(70)) == 70
    assert fmt.is_temporary(fmt.run_name(70) + fmt.TEMPORARY_SUFFIX)
    assert not fmt.is_temporary(fmt.run_name(70))


# --- damage ---


def answers(run: Run) -> object:
    """Everything that a run says."""
    postings = [
        (run.ids(Term(kind, text), run.places(Term(kind, text), 1, 9)), list(run.places(Term(kind, text), 2, 3)))
        for kind, text in [*naive(1, EXAMPLE), (Kind.STREAM, "no"), (Kind.TAG, "no")]
    ]
    offsets = [list(run.offsets(1, 3)), list(run.offsets(4, 4)), list(run.scan_offsets())]
    counts = run.first_event_id, run.last_event_id, run.events_count, run.keys_count, run.size, run.level
    return postings, offsets, list(run.scan_keys()), run.segments, counts


def test_each_flipped_byte_is_found_out() -> None:
    data, run = example()
    assert answers(run) == answers(opened_from(data))
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        with pytest.raises(Damaged):
            answers(opened_from(bytes(changed)))


def test_no_cut_or_longer_file_is_opened() -> None:
    data, _ = example()
    for size in [*range(600), *range(600, len(data), 97), len(data) - 1]:
        with pytest.raises(Damaged):
            opened_from(data[:size])
    with pytest.raises(Damaged, match="bytes"):
        opened_from(data + b"\0")


def remade(data: bytes, **numbers: int) -> bytes:
    """The file with these numbers in its header, and checksums that hold."""
    header = fmt.decode_header(data[:512], STORE_ID)
    changed = header._replace(**numbers)
    if "tables" not in numbers:
        tables = crc32(data[header.directory_at :], crc32(data[512 : header.blocks_at]))
        changed = changed._replace(tables=tables)
    return fmt.encode_header(changed, STORE_ID) + data[512:]


def with_table(*rows: tuple[int, int, int, int]) -> Callable[[bytes], bytes]:
    table = b"".join(struct.pack("<QQII", *row) for row in rows)
    return lambda data: remade(data[:512] + table + data[560:])


def with_text(pattern: bytes, text: bytes) -> Callable[[bytes], bytes]:
    """The header's text changed, with a checksum that holds."""

    def change(data: bytes) -> bytes:
        changed, _, _ = data[:512].partition(b',"crc"')
        changed = re.sub(pattern, text, changed)
        crc = crc32(changed, crc32(STORE_ID.encode() + b"index"))
        return (changed + b',"crc":"%08x"}' % crc).ljust(511) + b"\n" + data[512:]

    return change


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "another format": with_text(b'"format":1', b'"format":2'),
    "no events": lambda data: remade(data, last_event_id=0),
    "the last before the first": lambda data: remade(data, first_event_id=9),
    "event 0": lambda data: remade(data, first_event_id=0),
    "one event more": lambda data: remade(data, last_event_id=5, segments=6),
    "more events than blocks": lambda data: remade(data, last_event_id=1025),
    "more events than a run has": lambda data: remade(data, last_event_id=2**24 + 1),
    "events without end": lambda data: remade(data, last_event_id=10**20 - 1),
    "no segments": lambda data: remade(data, segments=0),
    "more segments": lambda data: remade(data, segments=5),
    "segments without end": lambda data: remade(data, segments=10**20 - 1),
    "more keys than blocks": lambda data: remade(data, keys=513),
    "keys without end": lambda data: remade(data, keys=10**20 - 1),
    "no keys": lambda data: remade(data, keys=0),
    "another checksum of the tables": lambda data: remade(data, tables=1),
    "a number with a zero before it": with_text(b'"keys":10', b'"keys":010'),
    "a number with a sign": with_text(b'"keys":10', b'"keys":-10'),
    "a number of too many digits": with_text(b'"keys":10', b'"keys":' + b"9" * 400),
    "a key more": with_text(b'"keys":10', b'"keys":10,"more":1'),
    "a space": with_text(b'"keys":10', b'"keys": 10'),
    "the segments begin later": with_table((2, 549, 1, 0), (4, 249, 4, 0)),
    "the segments are not in order": with_table((1, 549, 1, 0), (1, 249, 4, 0)),
    "a segment beyond the last event": with_table((1, 549, 1, 0), (5, 249, 4, 0)),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_not_opened(name: str) -> None:
    data, _ = example()
    changed = DAMAGES[name](data)
    assert changed != data
    disk = MemoryDisk({PATH: changed})
    with pytest.raises(Damaged):
        Run.open(disk, PATH, STORE_ID, Blocks())
    assert disk.held == 0


def test_a_run_of_another_store_or_name_is_not_opened() -> None:
    data, _ = example()
    with pytest.raises(Damaged, match="checksum"):
        opened_from(data, store_id=OTHER_ID)
    with pytest.raises(Damaged, match="name"):
        opened_from(data, f"{DIRECTORY}/00000000000000000002.idx")
    with pytest.raises(FileNotFoundError):
        Run.open(new_disk(), PATH, STORE_ID, Blocks())


def test_a_block_that_goes_bad_under_an_open_run_is_found_out_when_it_is_read() -> None:
    disk = new_disk()
    entries = some_entries(3000)
    run = built(disk, segments_of([3000], entries))
    disk.inodes[PATH].data[-run.size // 2] ^= 1
    damaged = 0
    for (kind, text), ids in naive(1, entries).items():
        try:
            assert run.ids(Term(kind, text), run.places(Term(kind, text), 1, 3000)) == ids
        except Damaged:
            damaged += 1
    assert 0 < damaged < len(entries)
    del disk.inodes[PATH].data[BLOCK_BYTES + 100 :]
    with pytest.raises(Damaged):
        run.offsets(1, 1)


# --- lookups ---


@pytest.mark.parametrize("count", [1, 2, 511, 512, 513, 1023, 1024, 1025, 4000])
def test_answers_at_the_borders_of_blocks(count: int) -> None:
    entries = some_entries(count)
    segments = segments_of([count], entries, 8)
    check_answers(built(new_disk(), segments), 8, segments, entries)


@pytest.mark.parametrize("count", [511, 512, 513, 1024, 1536])
def test_a_term_that_fills_blocks_exactly(count: int) -> None:
    entries = [Entry("s")] * count
    segments = segments_of([count], entries, 5)
    run = built(new_disk(), segments)
    check_answers(run, 5, segments, entries)
    term = Term(Kind.STREAM, "s")
    ids = range(5, 5 + count)
    for low in (0, 5, 6, 500, 516, 517, 518, 5 + count - 1, 5 + count):
        for high in (0, 5, 6, 515, 516, 517, 518, 5 + count - 1, 5 + count, 2**64):
            assert run.ids(term, run.places(term, low, high)) == [n for n in ids if low <= n <= high]


def test_places_can_be_sliced() -> None:
    run = built(new_disk(), segments_of([2000], [Entry("s")] * 2000))
    term = Term(Kind.STREAM, "s")
    places = run.places(term, 1, 2000)
    assert run.ids(term, places[500:600]) == list(range(501, 601))
    assert run.ids(term, places[::-1][:600]) == list(range(2000, 1400, -1))
    assert run.ids(term, range(7, 7)) == []
    for wrong in (range(-1, 3), range(3999, 4001), range(0, 10, 2)):
        with pytest.raises(IndexError):
            run.ids(term, wrong)
    for first, last in ((0, 1), (1, 2001)):
        with pytest.raises(IndexError):
            run.offsets(first, last)


def test_a_run_without_postings_finds_nothing() -> None:
    segment = sealed(1, [Entry("s")])._replace(postings=[])
    run = built(new_disk(), [segment])
    assert run.keys_count == 0
    assert not run.places(Term(Kind.STREAM, "s"), 1, 9)
    assert list(run.offsets(1, 1)) == [0]


def test_kinds_are_kept_apart_and_texts_of_any_kind_can_be_asked_for() -> None:
    run = built(new_disk(), segments_of([1], [Entry("a", "b", ("c",), "d")]))
    there = [Term(*each) for each in zip(Kind, ["a", "b", "c", key_text("a", "d")], strict=True)]
    absent = [Term(*each) for each in zip(Kind, ["b", "a", "a", key_text("a", "a")], strict=True)]
    absent.append(Term(Kind.STREAM, "\ud800"))
    assert [run.ids(term, run.places(term, 1, 1)) for term in there + absent] == [[1]] * 4 + [[]] * 5
    assert repr(there[0]) == "Term(STREAM, 'a')"


class Crowded:
    """A hash with few values."""

    def __init__(self, data: bytes, digest_size: int) -> None:
        self.data = data
        self.size = digest_size

    def copy(self) -> Crowded:
        return Crowded(self.data, self.size)

    def update(self, data: bytes) -> None:
        self.data += data

    def digest(self) -> bytes:
        return bytes([sum(self.data) % 3]).rjust(self.size, b"\0")


def test_terms_with_one_hash_give_more_ids_but_miss_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terms_module, "_new_hash", Crowded)
    entries = some_entries(1500)
    run = built(new_disk(), segments_of([700, 800], entries))
    for (kind, text), expected in naive(1, entries).items():
        term = Term(kind, text)
        for low, high in ((1, 1500), (expected[0], expected[-1]), (400, 1100)):
            ids = run.ids(term, run.places(term, low, high))
            assert set(ids) >= {event_id for event_id in expected if low <= event_id <= high}
            assert sorted(set(ids)) == ids
            assert not ids or low <= ids[0] <= ids[-1] <= high


# --- blocks in memory ---


class Uncached(MemoryDisk):
    """Nothing of a file is in memory at first."""

    def read_nowait(self, file: int, size: int, offset: int) -> bytes | None:
        return None


def test_a_thread_that_must_not_wait_gets_would_block_and_repeats_elsewhere() -> None:
    data, _ = example()
    may_block = False
    blocks = Blocks(may_block=lambda: may_block)
    run = Run.open(Uncached({PATH: data}), PATH, STORE_ID, blocks)
    term = Term(Kind.STREAM, "cart-1")
    for ask in (lambda: run.places(term, 1, 4), lambda: run.offsets(1, 2)):
        may_block = False
        with pytest.raises(WouldBlock):
            ask()
        may_block = True
        answer = ask()
        may_block = False
        assert ask() == answer, "what was read is held"


def test_what_is_in_the_systems_memory_is_read_at_once() -> None:
    data, true = example()
    run = opened_from(data, blocks=Blocks(may_block=lambda: False))
    assert answers(run) == answers(true)


def test_blocks_are_held_in_bounded_memory_and_the_latest_stay() -> None:
    blocks = Blocks(10 * 4608)
    for number in range(100):
        blocks.put(number, array("Q", [number]))
        assert len(blocks) <= 10
        assert blocks.recent.get(0) or blocks.promoted(0), "what is used stays"
    assert blocks.promoted(1) is None
    assert sum(blocks.recent.get(number) is not None for number in range(90, 100)) > 1


def test_runs_share_blocks_without_mixing_them_up() -> None:
    blocks = Blocks()
    entries = some_entries(600)
    segments = segments_of([300, 300], entries)
    disk = new_disk()
    runs = [built(disk, [segment], blocks) for segment in segments]
    for _ in range(2):
        for run in runs:
            check_answers(run, 1, segments, entries)


def test_the_file_is_closed_when_nothing_refers_to_the_run() -> None:
    disk = new_disk()
    run = built(disk, segments_of([4], EXAMPLE))
    assert disk.held == 1
    del run
    gc.collect()
    assert disk.held == 0


def test_a_run_that_is_dropped_while_all_are_closed_is_closed_once() -> None:
    """It can still be found while its end is being noted, by a thread that closes the store at that moment."""
    closed: list[int] = []

    class Counting(MemoryDisk):
        def close(self, file: int) -> None:
            closed.append(file)

    blocks = Blocks()
    data, _ = example()
    run = Run.open(Counting({PATH: data}), PATH, STORE_ID, blocks)

    def aside(work: Callable[[], object]) -> None:
        blocks.close_runs()
        work()

    blocks.aside = aside
    del run
    gc.collect()
    assert len(closed) == 1


def test_a_closed_run_says_so() -> None:
    disk = new_disk()
    run = built(disk, segments_of([4], EXAMPLE))
    run.close()
    run.close()
    assert disk.held == 0
    term = Term(Kind.STREAM, "cart-1")
    for ask in (lambda: run.places(term, 1, 4), lambda: run.offsets(1, 2), lambda: list(run.scan_keys())):
        with pytest.raises(StoreClosed):
            ask()


def test_threads_look_up_while_blocks_are_evicted() -> None:
    entries = some_entries(6000)
    run = built(new_disk(), segments_of([6000], entries), Blocks(6 * 4608))
    expected = list(naive(1, entries).items())
    errors: list[object] = []

    def look_up(stride: int) -> None:
        try:
            for place in range(0, len(expected) * stride, stride):
                (kind, text), ids = expected[place % len(expected)]
                assert run.ids(Term(kind, text), run.places(Term(kind, text), 1, 6000)) == ids
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=look_up, args=(stride,)) for stride in (1, 7, 31, 101)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
