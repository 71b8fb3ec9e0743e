"""Small stores in memory to be damaged, the kinds of damage, and what is left of the events somewhere."""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Callable
from typing import NamedTuple

from aiostore.engines.file import format as fmt
from aiostore.engines.file.blocks import Blocks
from aiostore.engines.file.findings import Severity
from aiostore.engines.file.recovery import survey
from aiostore.engines.file.sealed import seal
from aiostore.engines.file.verifying import Report, verify
from aiostore.engines.postings import Kind as TermKind
from aiostore.events import Event
from tests.file.disks import MemoryDisk
from tests.file.driver import nothing, opened_to_write, read_now
from tests.file.sealed_stores import Model, flipped, sealed_store

Files = dict[str, bytes]


class Sound(NamedTuple):
    """A store that is whole."""

    files: Files
    model: Model

    @property
    def events(self) -> list[Event]:
        return self.model.events

    @property
    def segments(self) -> list[str]:
        return segments_of(self.files)


@functools.cache
def sound(count: int = 60) -> Sound:
    """One of some forty small segments with merged indexes, and commits of all kinds. Its files must be copied."""
    disk = MemoryDisk()
    model = asyncio.run(sealed_store(disk, count))
    return Sound(disk.files(), model)


def segments_of(files: Files) -> list[str]:
    return [path for path in sorted(files) if re.fullmatch(r"/s/\d{20}\.jsonl", path)]


def indexes_of(files: Files) -> list[str]:
    return [path for path in sorted(files) if path.startswith("/s/") and path.endswith(".idx")]


def verified(files: Files) -> Report:
    """The report on a store with these files; nothing is changed, and nothing stays open."""
    disk = MemoryDisk(files)
    report = verify(disk, "/s")
    assert disk.files() == files
    assert disk.held == 0
    return report


def opened(disk: MemoryDisk) -> list[Event]:
    """What a store has when it is opened for writing."""
    writer = opened_to_write(disk)
    try:
        events, error = read_now(disk, writer.index)
        assert error is None
        return events
    finally:
        writer.close()


def lines_in(files: Files, store_id: str) -> dict[int, bytes]:
    """Every valid line anywhere: in the store, in evidence, set aside; by its event_id."""
    found: dict[int, bytes] = {}
    seeds = {fmt.line_seed(store_id, first) for path in files if (first := fmt.segment_first(path.rpartition("/")[2]))}
    for data in files.values():
        for match in re.finditer(rb'\{"event_id":(\d+),"stream_id":"[^\n]*', data):
            if any(fmt.checksum_holds(match[0], seed) for seed in seeds):
                found[int(match[1])] = match[0]
    return found


# --- kinds of damage ---


class Kind(NamedTuple):
    """A kind of damage to the files of `sound`, and what is found then."""

    change: Callable[[Files], None]
    severity: Severity | None
    """The worst finding; None if there is nothing to tell."""
    file: str
    """The file that it names first, by a regular expression."""
    lost: bool = True
    """Whether a repair has to take events out of the log."""


def _flip(path_of: Callable[[Files], str], place_of: Callable[[bytes], int]) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        path = path_of(files)
        files[path] = flipped(files[path], place_of(files[path]))

    return change


def _segment(number: int) -> Callable[[Files], str]:
    return lambda files: segments_of(files)[number]


def _index(number: int) -> Callable[[Files], str]:
    return lambda files: indexes_of(files)[number]


def _remove(path_of: Callable[[Files], str]) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        del files[path_of(files)]

    return change


def _set(path_of: Callable[[Files], str], make: Callable[[bytes], bytes]) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        path = path_of(files)
        files[path] = make(files.get(path, b""))

    return change


def _at(name: str) -> Callable[[Files], str]:
    return lambda _: f"/s/{name}"


def _last_line(data: bytes) -> int:
    """Where the last line begins."""
    return data.rstrip(b"\n").rfind(b"\n") + 1


def _stray(files: Files) -> None:
    path = segments_of(files)[3]
    first = fmt.segment_first(path[-26:])
    assert first is not None
    files[f"/s/{fmt.segment_name(first + 1)}"] = files[path]


def _other_index(files: Files) -> None:
    """Put a valid index in the place of another, made for a segment in which one event had another type."""
    path = indexes_of(files)[-1]
    segment = f"{path[:-4]}.jsonl"
    first = fmt.segment_first(segment.rpartition("/")[2])
    assert first is not None
    store_id = store_id_of(files)
    disk = MemoryDisk({segment: files[segment]})
    part = survey(disk, "/s", fmt.Manifest(1, 1, store_id, "now", first)).index.newest
    types = part.by_kind[TermKind.TYPE]
    types["Other"] = types.pop(next(iter(types)))
    seal(disk, "/s", store_id, part, Blocks(), nothing).close()
    files[path] = disk.files()[path]


def _both(*changes: Callable[[Files], None]) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        for each in changes:
            each(files)

    return change


def _put(path_of: Callable[[Files], str], data_of: Callable[[Files], bytes]) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        files[path_of(files)] = data_of(files)

    return change


def _no_indexes(files: Files) -> None:
    for path in indexes_of(files):
        del files[path]


KINDS: dict[str, Kind] = {
    "a bit in a sealed segment": Kind(_flip(_segment(5), lambda d: len(d) // 2), Severity.DAMAGE, r"\d+\.jsonl"),
    "a bit in the first line": Kind(_flip(_segment(0), lambda d: 10), Severity.DAMAGE, r"\d+1\.jsonl"),
    "a bit in the newest segment": Kind(_flip(_segment(-1), lambda d: 5), Severity.DAMAGE, r"\d+\.jsonl"),
    "a newline is lost": Kind(_flip(_segment(4), lambda d: d.index(b"\n")), Severity.DAMAGE, r"\d+\.jsonl"),
    "the newest segment is cut": Kind(_set(_segment(-1), lambda d: d[: len(d) // 2]), Severity.DAMAGE, r"\d+\.jsonl"),
    "a sealed segment is cut in a line": Kind(_set(_segment(6), lambda d: d[:-30]), Severity.DAMAGE, r"\d+\.jsonl"),
    "a sealed segment is cut behind a line": Kind(
        _set(_segment(6), lambda d: d[: _last_line(d)]), Severity.DAMAGE, r"\d+\.jsonl"
    ),
    "a sealed segment is empty": Kind(_set(_segment(6), lambda d: b""), Severity.DAMAGE, r"\d+\.jsonl"),
    "zeros in a sealed segment": Kind(
        _set(_segment(6), lambda d: d[:300] + bytes(512) + d[812:]), Severity.DAMAGE, r"\d+\.jsonl"
    ),
    "garbage between two lines": Kind(
        _set(_segment(6), lambda d: d[: _last_line(d)] + b"garbage\n" + d[_last_line(d) :]),
        Severity.DAMAGE,
        r"\d+\.j.*",
    ),
    "a segment is missing": Kind(_remove(_segment(7)), Severity.DAMAGE, r"\d+\.jsonl"),
    "the first segment is missing": Kind(_remove(_segment(0)), Severity.DAMAGE, r"0{19}1\.jsonl"),
    "the newest segment is missing": Kind(_remove(_segment(-1)), Severity.DAMAGE, r"\d+\.jsonl"),
    "two segments are damaged": Kind(
        _both(_flip(_segment(5), lambda d: 40), _remove(_segment(9))),
        Severity.DAMAGE,
        r"\d+\.jsonl",
    ),
    "another store's segment": Kind(
        _put(_segment(8), lambda files: files[_segment(9)(files)]), Severity.DAMAGE, r"\d+\.jsonl"
    ),
    "a segment outside of the chain": Kind(_stray, Severity.DAMAGE, r"\d+\.jsonl", lost=False),
    "a torn tail": Kind(_set(_segment(-1), lambda d: d + b'{"event_id":9'), Severity.TORN, r"\d+\.jsonl", lost=False),
    "a torn tail before blank lines": Kind(
        _set(_segment(-1), lambda d: d + b'{"event_id":9' + b"\n" * 999), Severity.TORN, r"\d+\.jsonl", lost=False
    ),
    "blank lines at the end": Kind(_set(_segment(-1), lambda d: d + b"\n" * 4096), None, "", lost=False),
    "a bit in the manifest": Kind(
        _flip(_at("aiostore.json"), lambda d: 40), Severity.DAMAGE, "aiostore.json", lost=False
    ),
    "a bit in the store's id": Kind(
        _flip(_at("aiostore.json"), lambda d: d.index(b'"store_id":"') + 15),
        Severity.DAMAGE,
        "aiostore.json",
        lost=False,
    ),
    "no manifest": Kind(_remove(_at("aiostore.json")), Severity.DAMAGE, "aiostore.json", lost=False),
    "an empty manifest": Kind(_set(_at("aiostore.json"), lambda d: b""), Severity.DAMAGE, "aiostore.json", lost=False),
    "no manifest and a bit": Kind(
        _both(_remove(_at("aiostore.json")), _flip(_segment(5), lambda d: 40)),
        Severity.DAMAGE,
        "aiostore.json",
    ),
    "no head": Kind(_remove(_at("head")), Severity.NOTE, "head", lost=False),
    "zeros for a head": Kind(_set(_at("head"), lambda d: bytes(1024)), Severity.DERIVED, "head", lost=False),
    "a slot of the head": Kind(_set(_at("head"), lambda d: d[:512] + bytes(512)), Severity.NOTE, "head", lost=False),
    "the head of another time": Kind(
        _put(_at("head"), lambda files: fmt.encode_slot(10**6, store_id_of(files)) * 2),
        Severity.DAMAGE,
        r"\d+\.jsonl",
    ),
    "a bit in an index's header": Kind(_flip(_index(0), lambda d: 30), Severity.DERIVED, r"\d+\.idx", lost=False),
    "a bit in an index's block": Kind(_flip(_index(0), lambda d: 5000), Severity.DERIVED, r"\d+\.idx", lost=False),
    "a bit at the end of an index": Kind(_flip(_index(0), lambda d: -1), Severity.DERIVED, r"\d+\.idx", lost=False),
    "an index that says other things": Kind(_other_index, Severity.DERIVED, r"\d+\.idx", lost=False),
    "an index of another segment": Kind(
        _put(_index(0), lambda files: files[_index(1)(files)]),
        Severity.DERIVED,
        r"\d+\.idx",
        lost=False,
    ),
    "no index": Kind(_no_indexes, None, "", lost=False),
    "what is left of an index": Kind(
        _put(lambda files: f"{_index(0)(files)}.tmp", lambda _: b"x"), Severity.NOTE, r".*\.idx\.tmp", lost=False
    ),
    "what is left of a recovery": Kind(
        _set(_at("00000000000000000001.jsonl.tmp"), lambda d: b"x"), Severity.NOTE, r"0+1\.jsonl\.tmp", lost=False
    ),
    "a tail that was set aside": Kind(_set(_at("torn-9-now.bin"), lambda d: b"x"), Severity.NOTE, "torn.*", lost=False),
    "a file of somebody": Kind(_set(_at("notes.txt"), lambda d: b"x"), Severity.NOTE, r"notes\.txt", lost=False),
}


def store_id_of(files: Files) -> str:
    return fmt.decode_manifest(files["/s/aiostore.json"]).store_id


def damaged(name: str) -> Files:
    files = dict(sound().files)
    KINDS[name].change(files)
    return files
