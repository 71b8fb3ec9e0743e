"""What takes bytes alone: the codec of lines, head, manifest and runs, and the files of runs by themselves."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from itertools import repeat
from typing import Any, NamedTuple

from aiostore.engines.file import format as fmt
from aiostore.engines.file.behind import look_behind, whole_commits
from aiostore.engines.file.blocks import Blocks
from aiostore.engines.file.format import Damaged
from aiostore.engines.file.head import decode_head
from aiostore.engines.file.run import Run
from aiostore.engines.file.run_format import HEADER_BYTES, Header, decode_header, decode_segments, encode_header
from aiostore.engines.file.scan import take_valid
from aiostore.engines.file.segment import Segment
from aiostore.engines.postings import Kind, Term, key_text
from aiostore.errors import StoreCorrupt
from tests.fuzz.json_mutations import changed
from tests.fuzz.mending import mended_lines, mended_run, mended_text
from tests.fuzz.mutations import changed_json, changed_lines, changed_run, damaged_bytes
from tests.fuzz.picky import PickyDisk
from tests.fuzz.reading import Wrong
from tests.fuzz.seeds import DIRECTORY, HEAD, MANIFEST, Files, Store, first_of, segments_of, stores, wide
from tests.fuzz.standing import Written, served, written

ByteTarget = Callable[[random.Random], None]


class Excerpt(NamedTuple):
    """Some neighbouring lines of a segment."""

    store: Store
    first: int
    """Of the segment."""
    event_id: int
    data: bytes


@functools.cache
def excerpts() -> list[Excerpt]:
    found = []
    for store in stores():
        for path in segments_of(store.files):
            first = first_of(path) or 0
            lines = store.files[path].rstrip(b"\n").split(b"\n")
            for at in range(0, len(lines), 2):
                data = b"".join(line + b"\n" for line in lines[at : at + 4] if line)
                if len(data) < 4000:
                    found.append(Excerpt(store, first, first + at, data))
    return found


def _others() -> Files:
    return stores()[5].files


def lines(dice: random.Random) -> None:
    """All that reads lines: each agrees with the others, and with the specification."""
    store, first, event_id, data = dice.choice(excerpts())
    seed = fmt.line_seed(store.store_id, first)
    mended = False
    for _ in range(dice.choice((1, 1, 2))):
        way = dice.random()
        if way < 0.4:
            data = damaged_bytes(data, dice, {"/s/x": data})
        elif way < 0.6:
            data = changed_lines(data, dice, dice.choice(excerpts()).data)
        else:
            data = changed_json(data, dice, seed)
            mended = True
    if dice.random() < 0.3:
        data = mended_lines(data, seed)
        mended = True
    check_lines(data, seed, first, event_id, None if mended else store)


def line(dice: random.Random) -> None:
    """A line alone."""
    store, first, _, data = dice.choice(excerpts())
    seed = fmt.line_seed(store.store_id, first)
    text = dice.choice(data.split(b"\n"))
    mended = dice.random() < 0.5
    if mended:
        text = mended_text(changed(text, dice), seed) if text else text
    else:
        text = damaged_bytes(text, dice, {"/s/x": data})
    valid = check_line(text, seed)
    if valid is not None and not mended and valid.event not in store.events:
        raise Wrong("a checksum holds over what was never written")


def check_line(text: bytes, seed: int) -> Written | None:
    """The line by the specification, which is what decoding says."""
    valid = written(text, seed)
    try:
        decoded = fmt.decode_checked_line(text, seed)
    except Damaged:
        if valid is not None:
            raise Wrong(f"a valid line is refused: {text[:200]!r}") from None
    else:
        if valid is None or not _same(decoded, valid):
            raise Wrong(f"{text[:200]!r} is taken for {decoded}")
    return valid


def check_lines(data: bytes, seed: int, first: int, event_id: int, origin: Store | None) -> None:
    """Read them in every way. ``origin``: all that is valid must have been written there."""
    texts = fmt.lines_of(data)
    reference = [check_line(text, seed) for text in texts]
    holding = [fmt.checksum_holds(text, seed) for text in texts]
    if fmt.checksums_hold(texts, repeat(seed)) != all(holding):
        raise Wrong("checksums at once say other than one by one")
    if origin is not None and not all(line.event in origin.events for line in reference if line is not None):
        raise Wrong("a checksum holds over what was never written")
    ids = range(event_id, event_id + len(texts))
    right = all(line is not None and line.event_id == place for line, place in zip(reference, ids, strict=True))
    try:
        decoded_lines = fmt.decode_lines(texts, [seed] * len(texts), ids)
    except Damaged:
        if right:
            raise Wrong("valid lines are refused") from None
    else:
        if not right or not all(map(_same, decoded_lines, reference)):
            raise Wrong("what is not valid is decoded")
    shown = [served(text, seed) for text in texts]
    right = all(event is not None and event.event_id == place for event, place in zip(shown, ids, strict=True))
    try:
        if fmt.decode_events(texts, [seed] * len(texts), ids) != shown or not right:
            raise Wrong("what is not valid is decoded as events")
    except Damaged:
        if right:
            raise Wrong("valid events are refused") from None
    _check_commits(texts, data, seed, first, event_id, reference)


def _check_commits(
    texts: list[bytes], data: bytes, seed: int, first: int, event_id: int, reference: list[Written | None]
) -> None:
    wanted = _whole(reference, event_id)
    taken = take_valid(texts, seed, event_id)
    if taken and not (len(taken) <= len(wanted) and all(map(_same, taken, wanted))):
        raise Wrong("lines are taken in that are not whole commits")
    if len(wanted) == len(texts) != len(taken):
        raise Wrong("whole commits are not taken in at once")
    segment = Segment(DIRECTORY, "", first)
    segment.seed = seed
    segment.last_event_id = event_id - 1
    news = whole_commits(data, segment, event_id + 100)
    if [line.event_id for line in (news.lines if news else ())] != [line.event_id for line in wanted]:
        raise Wrong(f"a follower takes {news} in, not {wanted}")
    if news:
        for line, start, end in zip(news.lines, news.starts, news.starts[1:], strict=False):
            piece = data[start:end].strip(b"\n")
            if written(piece, seed) is None or not _same(line, written(piece, seed)):
                raise Wrong("a follower takes a line for another")
    try:
        disk = PickyDisk({segment.path: data})
        opened, _ = look_behind(disk, DIRECTORY, segment, None, event_id + 100)
        opened.close()
    except StoreCorrupt:
        if wanted and wanted[-1].event_id >= event_id:
            raise Wrong("a follower stops before whole commits") from None


def _whole(reference: list[Written | None], event_id: int) -> list[Written]:
    """The whole commits that the lines begin with, by the specification."""
    kept: list[Written] = []
    pending: list[Written] = []
    more = 0
    for line in reference:
        if line is None or line.event_id != event_id + len(kept) + len(pending):
            break
        if more and (line.more != more - 1 or line.key is not None):
            break
        more = line.more
        pending.append(line)
        if not more:
            kept, pending = kept + pending, []
    return kept


def _same(line: Any, other: Written | None) -> bool:
    return other is not None and all(getattr(line, name) == getattr(other, name) for name in _NAMES)


_NAMES = ("event_id", "stream_id", "version", "event_type", "timestamp", "crc", "tags", "key", "more", "unsynced")


def head(dice: random.Random) -> None:
    """The head file: what it says was said, whatever happened to the rest."""
    store = dice.choice(stores())
    data = damaged_bytes(
        store.files[HEAD], dice, {"/s/x": store.files[HEAD], "/s/y": dice.choice(stores()).files[HEAD]}
    )
    said = decode_head(data, store.store_id)
    if said and not any(decode_head(each.files[HEAD], store.store_id) >= said for each in stores()):
        raise Wrong(f"the head says {said}")


def manifest(dice: random.Random) -> None:
    """The manifest: it is what was written, or refused."""
    store = dice.choice(stores())
    data = damaged_bytes(store.files[MANIFEST], dice, {"/s/x": store.files[MANIFEST]})
    mended = dice.random() < 0.4
    if mended:
        data = mended_text(data.rstrip(b"\n"), 0) + b"\n"
    try:
        decoded = fmt.decode_manifest(data)
    except Damaged:
        return
    if not mended and decoded != fmt.decode_manifest(store.files[MANIFEST]):
        raise Wrong(f"the manifest says {decoded}")


# --- runs ---


class Truth(NamedTuple):
    """A run, and what it answers."""

    store: Store
    path: str
    data: bytes
    first: int
    last: int
    terms: list[tuple[Kind, str]]
    answers: dict[tuple[Kind, str], list[int]]
    offsets: list[int]


@functools.cache
def truths() -> list[Truth]:
    found = []
    for store in (*stores(), wide()):
        for path in store.files:
            if path.endswith(".idx"):
                run = Run.open(PickyDisk(store.files), path, store.store_id, Blocks())
                first, last = run.first_event_id, run.last_event_id
                answers = _answers(store, first, last)
                found.append(
                    Truth(
                        store, path, store.files[path], first, last, list(answers), answers, [*run.offsets(first, last)]
                    )
                )
                run.close()
    return found


def _answers(store: Store, first: int, last: int) -> dict[tuple[Kind, str], list[int]]:
    answers: dict[tuple[Kind, str], list[int]] = {(Kind.STREAM, "nowhere"): []}
    for path in segments_of(store.files):
        for text in fmt.lines_of(store.files[path]):
            line = fmt.decode_line(text)
            if first <= line.event_id <= last:
                terms = [(Kind.STREAM, line.stream_id), (Kind.TYPE, line.event_type)]
                terms += [(Kind.TAG, tag) for tag in dict.fromkeys(line.tags)]
                terms += [(Kind.KEY, key_text(line.stream_id, line.key))] if line.key is not None else []
                for term in terms:
                    answers.setdefault(term, []).append(line.event_id)
    return answers


def header(dice: random.Random) -> None:
    """A run's header alone, and a table of segments."""
    truth = dice.choice(truths())
    data = damaged_bytes(truth.data[:HEADER_BYTES], dice, {"/s/x": dice.choice(truths()).data[:HEADER_BYTES]})
    if dice.random() < 0.5:
        numbers = [dice.choice((0, 1, 2, 5, 2**24, 2**32, 2**64, 10**19)) for _ in range(5)]
        data = encode_header(Header(*numbers), truth.store.store_id)
    try:
        decoded = decode_header(data, truth.store.store_id)
    except Damaged:
        return
    if encode_header(decoded, truth.store.store_id) != data:
        raise Wrong("a header is taken for another")
    table = damaged_bytes(truth.data[HEADER_BYTES:4096], dice, {"/s/x": truth.data})
    if decoded.segments * 24 <= len(table):
        try:
            segments = decode_segments(table, decoded)
        except Damaged:
            return
        firsts = [segment.first_event_id for segment in segments]
        if firsts != sorted(set(firsts)) or firsts[0] != decoded.first_event_id or firsts[-1] > decoded.last_event_id:
            raise Wrong(f"the table of segments is {segments}")


def run_file(dice: random.Random) -> None:
    """A run's file: what it answers is right, or it is damaged."""
    truth = dice.choice(truths())
    if len(truth.data) > 40_000 and dice.random() < 0.9:
        truth = dice.choice(truths())
    data, mended = truth.data, False
    if dice.random() < 0.5:
        data = damaged_bytes(data, dice, {"/s/x": dice.choice(truths()).data})
        if dice.random() < 0.4:
            data, mended = mended_run(data, truth.store.store_id), True
    else:
        data, mended = changed_run(data, dice, truth.store.store_id), True
    check_run_file(truth, data, dice, mended=mended)


def check_run_file(truth: Truth, data: bytes, dice: random.Random, *, mended: bool) -> bool:
    """Ask it; whether it answers. Not mended, it must be right."""
    disk = PickyDisk({truth.path: data})
    try:
        run = Run.open(disk, truth.path, truth.store.store_id, Blocks())
    except Damaged:
        return False
    try:
        _ask(run, truth, dice, mended)
        return True
    except Damaged:
        return False
    finally:
        run.close()


def _ask(run: Run, truth: Truth, dice: random.Random, mended: bool) -> None:
    first, last = run.first_event_id, run.last_event_id
    for kind, text in dice.sample(truth.terms, min(4, len(truth.terms))):
        term = Term(kind, text)
        ids = run.ids(term, run.places(term, 1, 2**63))
        low = dice.randrange(first, last + 1)
        some = run.ids(term, run.places(term, low, low + 3)[::-1])
        if not mended and (ids, some) != (
            truth.answers[kind, text],
            [each for each in truth.answers[kind, text] if low <= each <= low + 3][::-1],
        ):
            raise Wrong(f"the run says {ids} of {term}, and {some}")
        if ids != sorted(ids) and not mended:
            raise Wrong(f"the run says {ids} of {term}")
        if ids and not mended and not first <= min(ids) <= max(ids) <= last:
            raise Wrong(f"the run of {first} to {last} says {ids} of {term}")
    offsets = list(run.offsets(first, last))
    if not mended and offsets != truth.offsets:
        raise Wrong("the run says other places")
    if sum(map(len, run.scan_keys())) != run.keys_count or sum(map(len, run.scan_offsets())) != 4 * run.events_count:
        raise Wrong("the run is not read whole")
