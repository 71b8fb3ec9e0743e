"""What happens to the files of a store, drawn by a seed: the same number gives the same files."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from aiostore.engines.file import format as fmt
from aiostore.engines.file.format import CRC_BYTES, SLOT_BYTES
from aiostore.engines.file.run_format import HEADER_BYTES, run_name
from tests.fuzz.json_mutations import ODD_NUMBERS, changed
from tests.fuzz.mending import SIZE_MAX, header_of, mend, mended_text, with_header, with_table
from tests.fuzz.seeds import (
    DIRECTORY,
    HEAD,
    MANIFEST,
    TAILS,
    Files,
    Store,
    first_of,
    segments_of,
    stores,
    wide,
    with_tail,
)

SECTOR_BYTES = 512


@dataclass
class Mutant:
    """The files of a store after what happened to them."""

    store: Store
    files: Files
    before: Files
    """As they were."""
    mended: bool = False
    """Whether checksums were made to hold over what was never written."""

    @property
    def index_may_lie(self) -> bool:
        """Whether a run may say what the log does not, with checksums that hold."""
        return self.mended and any(path.endswith(".idx") for path in self.files)


def mutant(dice: random.Random) -> Mutant:
    """The next one."""
    store = wide() if dice.random() < 0.004 else dice.choice(stores())
    files = with_tail(store, dice.choice(TAILS) if dice.random() < 0.5 else "whole")
    made = Mutant(store, dict(files), files)
    if dice.random() < 0.15 and HEAD in made.files:
        del made.files[HEAD]
    for _ in range(dice.choice((1, 1, 1, 1, 2, 2, 3, 5))):
        kind = dice.choices(_KINDS, _WEIGHTS)[0]
        kind(made, dice)
    if dice.random() < 0.3:
        _mend_some(made, dice)
    return made


def _mend_some(made: Mutant, dice: random.Random) -> None:
    """Make the checksums hold of what was changed, and maybe have the runs say what is there now."""
    for path, data in list(made.files.items()):
        if made.before.get(path) != data and dice.random() < 0.9:
            mend(made.files, path, made.store.store_id)
            made.mended = True
    if dice.random() < 0.3:
        for path in made.files:
            if path.endswith(".idx"):
                with_table(made.files, path, made.store.store_id)
                made.mended = True


# --- bytes ---


def _some_path(made: Mutant, dice: random.Random) -> str:
    return dice.choice(list(made.files)) if made.files else ""


def _bytes(made: Mutant, dice: random.Random) -> None:
    path = _some_path(made, dice)
    if path:
        made.files[path] = damaged_bytes(made.files[path], dice, made.files)


def damaged_bytes(data: bytes, dice: random.Random, others: Files) -> bytes:
    """Bytes flipped, put in, taken out, doubled, exchanged for others, lost."""
    return dice.choice(_BYTES)(data, dice, others)


def _flip(data: bytes, dice: random.Random, _: Files) -> bytes:
    out = bytearray(data)
    for _n in range(dice.choice((1, 1, 1, 2, 8)) if out else 0):
        out[dice.randrange(len(out))] ^= 1 << dice.randrange(8)
    return bytes(out)


def _insert(data: bytes, dice: random.Random, _: Files) -> bytes:
    at = dice.randrange(len(data) + 1)
    what = dice.choice(
        (b"\n", b"\n\n", b"\0", b"{", b'"', b"x" * 100, dice.randbytes(dice.randrange(1, 20)), b"\n" * 4096)
    )
    return data[:at] + what + data[at:]


def _delete(data: bytes, dice: random.Random, _: Files) -> bytes:
    start, end = _range(data, dice)
    return data[:start] + data[end:]


def _double(data: bytes, dice: random.Random, _: Files) -> bytes:
    start, end = _range(data, dice)
    return data[:end] + data[start:end] + data[end:]


def _swap(data: bytes, dice: random.Random, _: Files) -> bytes:
    a, b, c = sorted(dice.randrange(len(data) + 1) for _n in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def _over(data: bytes, dice: random.Random, others: Files) -> bytes:
    other = others[dice.choice(list(others))]
    start, end = _range(other, dice)
    at = dice.choice((start, dice.randrange(len(data) + 1)))
    return data[:at] + other[start:end] + data[at + end - start :]


def _truncate(data: bytes, dice: random.Random, _: Files) -> bytes:
    newline = data.rfind(b"\n", 0, dice.randrange(len(data) + 1))
    return data[: newline + 1] if dice.random() < 0.5 else data[: dice.randrange(len(data) + 1)]


def _sector(data: bytes, dice: random.Random, _: Files) -> bytes:
    start = dice.randrange(len(data) // SECTOR_BYTES + 1) * SECTOR_BYTES
    end = min(len(data), start + SECTOR_BYTES * dice.choice((1, 1, 2, 8)))
    filler = dice.choice((bytes(end - start), dice.randbytes(end - start), b"\n" * (end - start)))
    return data[:start] + filler + data[end:]


def _lengthen(data: bytes, dice: random.Random, _: Files) -> bytes:
    return data + dice.choice((b"\0", b"\n", b"\0" * 5000, b"\n" * 5000, b"x", dice.randbytes(30)))


_BYTES: list[Callable[[bytes, random.Random, Files], bytes]] = [
    _flip, _flip, _flip, _insert, _delete, _double, _swap, _over, _truncate, _truncate, _sector, _sector, _lengthen,
]  # fmt: skip


def _range(data: bytes, dice: random.Random) -> tuple[int, int]:
    start = dice.randrange(len(data) + 1)
    return start, min(len(data), start + dice.choice((1, 1, 2, 4, 16, 100, 512, 2000)))


# --- lines ---


def _lines(made: Mutant, dice: random.Random) -> None:
    path = _some_segment(made, dice)
    if path:
        other = dice.choice(stores()).files if dice.random() < 0.3 else made.files
        made.files[path] = changed_lines(made.files[path], dice, other.get(_any_segment(other, dice), b""))


def changed_lines(data: bytes, dice: random.Random, other: bytes) -> bytes:
    """Lines in another order, doubled, left out, run together, taken from elsewhere."""
    lines = data.split(b"\n")
    way = dice.randrange(7)
    at, to = dice.randrange(len(lines)), dice.randrange(len(lines))
    if way == 0:
        lines[at], lines[to] = lines[to], lines[at]
    elif way == 1:
        lines.insert(to, lines[at])
    elif way == 2:
        del lines[at]
    elif way == 3 and at + 1 < len(lines):
        lines[at] += lines.pop(at + 1)
    elif way == 4:
        lines[to:to] = [b""] * dice.choice((1, 2, 50))
    elif way == 5:
        lines.insert(to, dice.choice(other.split(b"\n")))
    else:
        lines[at] = lines[to]
    return b"\n".join(lines)


def _json(made: Mutant, dice: random.Random) -> None:
    path = _some_segment(made, dice)
    if path:
        seed = fmt.line_seed(made.store.store_id, first_of(path) or 0) if dice.random() < 0.95 else 0
        made.files[path] = changed_json(made.files[path], dice, seed)
        made.mended = True


def changed_json(data: bytes, dice: random.Random, seed: int) -> bytes:
    """Some lines with other contents, and checksums that hold."""
    lines = data.split(b"\n")
    whole = [place for place, line in enumerate(lines) if line[-CRC_BYTES:].startswith(b',"crc":"')]
    for _ in range(dice.choice((1, 1, 2)) if whole else 0):
        place = dice.choice(whole)
        lines[place] = mended_text(changed(lines[place], dice), seed)
    return b"\n".join(lines)


def _shift(made: Mutant, dice: random.Random) -> None:
    """All ids of a segment are others."""
    path = _some_segment(made, dice)
    if path:
        by = dice.choice((-1, 1, 5, 10**6, 2**32, 2**63, 10**19))
        seed = fmt.line_seed(made.store.store_id, first_of(path) or 0)
        moved = re.sub(
            rb'^\{"event_id":([0-9]{1,20})',
            lambda m: b'{"event_id":%d' % (int(m[1]) + by),
            made.files[path],
            flags=re.M,
        )
        if dice.random() < 0.5 and len(segments_of(made.files)) > 0:
            name = f"{DIRECTORY}/{max(0, min(10**20 - 1, (first_of(path) or 0) + by)):020d}.jsonl"
            seed = fmt.line_seed(made.store.store_id, first_of(name) or 0)
            del made.files[path]
            path = name
        made.files[path] = b"\n".join(mended_text(line, seed) if line else line for line in moved.split(b"\n"))
        made.mended = True
        if dice.random() < 0.5:
            _set_manifest(made, "first_segment", b"%d" % (first_of(min(segments_of(made.files), default="")) or 0))


# --- files ---


def _any_segment(files: Files, dice: random.Random) -> str:
    return dice.choice(segments_of(files) or [""])


def _some_segment(made: Mutant, dice: random.Random) -> str:
    paths = segments_of(made.files)
    return dice.choice((*paths, paths[-1], paths[-1])) if paths else ""


def _name(made: Mutant, dice: random.Random) -> str:
    number = dice.choice(
        (1, 2, made.store.acknowledged, made.store.acknowledged + 1, dice.randrange(1, 99), 0, 10**20 - 1)
    )
    segment, run = fmt.segment_name(number), run_name(number)
    return dice.choice(
        (
            segment,
            segment,
            run,
            run,
            f"{segment}.tmp",
            f"{run}.tmp",
            "aiostore.json.tmp",
            "notes.txt",
            "torn-1-x.bin",
            "head",
            "aiostore.json",
            "lock",
            segment[1:],
            "٣" * 20 + ".jsonl",
        )
    )


def _remove(made: Mutant, dice: random.Random) -> None:
    path = _some_path(made, dice)
    made.files.pop(path, None)


def _rename(made: Mutant, dice: random.Random) -> None:
    path = _some_path(made, dice)
    if path:
        made.files[f"{DIRECTORY}/{_name(made, dice)}"] = made.files.pop(path)


def _add(made: Mutant, dice: random.Random) -> None:
    path = _some_path(made, dice)
    data = (
        made.files[path] if path and dice.random() < 0.6 else dice.choice((b"", b"\n", b"x", bytes(1024), b"[" * 4000))
    )
    made.files[f"{DIRECTORY}/{_name(made, dice)}"] = data


def _exchange(made: Mutant, dice: random.Random) -> None:
    a, b = _some_path(made, dice), _some_path(made, dice)
    if a:
        made.files[a], made.files[b] = made.files[b], made.files[a]


def _of_another(made: Mutant, dice: random.Random) -> None:
    """A file of another store."""
    other = dice.choice(stores()).files
    path = dice.choice(list(other))
    made.files[dice.choice((path, _some_path(made, dice) or path))] = other[path]


# --- manifest, head, runs: with checksums that hold ---


def _set_manifest(made: Mutant, name: str, value: bytes) -> None:
    text = made.files.get(MANIFEST, b"")
    changed_text = re.sub(rb'("%b":)([^,]*)' % name.encode(), lambda m: m[1] + value, text.rstrip(b"\n"), count=1)
    made.files[MANIFEST] = mended_text(changed_text, 0) + b"\n"
    made.mended = True


def _manifest(made: Mutant, dice: random.Random) -> None:
    name = dice.choice(("min_reader", "min_writer", "store_id", "created", "first_segment", "first_segment"))
    values = [b"0", b"1", b"2", b"5", b"-1", b'""', b'"x"', b'"\\u00e9"', b"null", b"{}", b"[" * 100_000, *ODD_NUMBERS]
    _set_manifest(made, name, dice.choice(values))


def _head(made: Mutant, dice: random.Random) -> None:
    last = made.store.acknowledged
    said = [dice.choice((0, 1, last - 1, last, last + 1, last + 4, 10**6, 2**63, 2**64, 10**20 - 1)) for _ in (0, 1)]
    slots = [fmt.encode_slot(max(0, number), made.store.store_id) for number in said]
    if dice.random() < 0.3:
        slots[dice.randrange(2)] = bytes(SLOT_BYTES)
    made.files[HEAD] = b"".join(slots)
    made.mended = True


def _run(made: Mutant, dice: random.Random) -> None:
    paths = [path for path in made.files if path.endswith(".idx") and len(made.files[path]) < SIZE_MAX]
    if paths:
        path = dice.choice(paths)
        made.files[path] = changed_run(made.files[path], dice, made.store.store_id)
        made.mended = True


def changed_run(data: bytes, dice: random.Random, store_id: str) -> bytes:
    """A run with other numbers in it, and checksums that hold."""
    header = header_of(data, store_id)
    if header is None or header.size > SIZE_MAX:
        return data
    out = bytearray(data)
    near = dice.choice((-1, 1, -1, 1, 4, 1000, 2**24, 10**12))
    way = dice.randrange(6)
    if way == 0:
        field = dice.choice(("first_event_id", "last_event_id", "segments", "keys"))
        header = header._replace(**{field: max(0, min(10**20 - 1, getattr(header, field) + near))})
    elif way == 1:  # the table of segments
        at = HEADER_BYTES + 4 * dice.randrange(max(1, header.segments * 6))
        _change_number(out, at, 4, dice)
    elif way == 2:  # offsets
        _change_number(out, header.blocks_at + 4 * dice.randrange(max(1, header.events)), 4, dice)
    elif way == 3:  # keys
        keys_at = header.blocks_at + header.offset_blocks * 4096
        _change_number(out, keys_at + 8 * dice.randrange(max(1, header.keys)), 8, dice)
    elif way == 4:  # the first keys of blocks
        _change_number(out, header.directory_at + 8 * dice.randrange(max(1, header.key_blocks)), 8, dice)
    else:
        at = dice.randrange(HEADER_BYTES, len(out) + 1)
        out[at : at + 1] = dice.randbytes(1)
    return with_header(bytes(out), header, store_id)


def _change_number(out: bytearray, at: int, size: int, dice: random.Random) -> None:
    was = int.from_bytes(out[at : at + size], "little")
    number = dice.choice(
        (was - 1, was + 1, was + 2, was + 200, 0, 2 ** (8 * size) - 1, was ^ 1 << dice.randrange(8 * size))
    )
    out[at : at + size] = (number % 2 ** (8 * size)).to_bytes(size, "little")


_WEIGHTED: list[tuple[Callable[[Mutant, random.Random], None], int]] = [
    (_bytes, 10),
    (_lines, 6),
    (_json, 8),
    (_shift, 1),
    (_remove, 2),
    (_rename, 2),
    (_add, 2),
    (_exchange, 1),
    (_of_another, 1),
    (_manifest, 1),
    (_head, 2),
    (_run, 5),
]
_KINDS = [kind for kind, _ in _WEIGHTED]
_WEIGHTS = [weight for _, weight in _WEIGHTED]
