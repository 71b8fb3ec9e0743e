"""What is done with the files of a mutated store, and what must hold of it."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from aiostore import EventStore
from aiostore.engines.file import behind, scan
from aiostore.engines.file.behind import News
from aiostore.engines.file.blocks import Blocks
from aiostore.engines.file.engine import FileEngine
from aiostore.engines.file.following import Follower
from aiostore.engines.file.format import encode_slot, line_seed
from aiostore.engines.file.opening import Options, open_to_read, open_to_write
from aiostore.engines.file.repairing import Repair
from aiostore.engines.file.verifying import verify
from aiostore.errors import EngineUnavailable, EngineUnsupported, StoreCorrupt
from aiostore.events import Event
from tests.file.disks import Inode, MemoryDisk
from tests.file.driver import nothing
from tests.fuzz.mutations import Mutant
from tests.fuzz.picky import PickyDisk
from tests.fuzz.reading import Ways, Wrong
from tests.fuzz.seeds import DIRECTORY, HEAD, LOCK, MANIFEST, Files, first_of, segments_of, stores, wide
from tests.fuzz.standing import Standing, written

Target = Callable[[Mutant, Standing, random.Random], str]
"""Says what came of it; raises `Wrong`, or what should not have been raised."""

REFUSALS = (StoreCorrupt, EngineUnsupported)


CHUNKED_BYTES_MAX = 100_000


def with_chunks(made: Mutant, dice: random.Random) -> Callable[[], None]:
    """Have scans of a small store read pieces of another size; returns what undoes that."""
    before = scan.CHUNK_BYTES
    size = dice.choice((before, before, before, 7, 100, 513, 3000))
    if sum(map(len, made.files.values())) <= CHUNKED_BYTES_MAX:
        vars(scan)["CHUNK_BYTES"] = vars(behind)["CHUNK_BYTES"] = size

    def undo() -> None:
        vars(scan)["CHUNK_BYTES"] = vars(behind)["CHUNK_BYTES"] = before

    return undo


def check_origin(made: Mutant, standing: Standing) -> None:
    """Without mended checksums, nothing stands in the files that was not written."""
    if made.mended or standing.store_id is None:
        return
    of_store = [store.events for store in (*stores(), wide(), made.store) if store.store_id == standing.store_id]
    if not all(any(event in events for events in of_store) for event in standing.events):
        raise AssertionError("the campaign is wrong: what it did not mend was never written")


def _unchanged(files: Files, disk: MemoryDisk, *, derived: bool = False) -> None:
    """Nothing was changed, but maybe what is ``derived``: the index."""
    after = disk.files()
    changed = sorted(path for path in {*files, *after} if files.get(path) != after.get(path) and path != LOCK)
    if derived:
        changed = [path for path in changed if ".idx" not in path]
    if changed:
        raise Wrong(f"files were changed: {changed}")
    _nothing_open(disk)


def _nothing_open(disk: MemoryDisk) -> None:
    if disk.held:
        raise Wrong(f"{disk.held} files stay open")


# --- opening ---


def write(made: Mutant, standing: Standing, dice: random.Random) -> str:
    """Open it for writing, read it in every way, and open it again."""
    options = Options(dice.random() < 0.5, 1000, dice.choice((1, 4000, 10**9)))
    disk, blocks = PickyDisk(made.files), Blocks()
    try:
        writer = open_to_write(disk, DIRECTORY, options, nothing, blocks)
    except REFUSALS as error:
        if standing.must_open:
            raise Wrong(f"nothing is wrong, but it does not open: {error!r}") from error
        _unchanged(made.files, disk, derived=True)
        return f"refused: {type(error).__name__}"
    try:
        head = writer.index.head.event_id
        if MANIFEST not in made.files and not segments_of(made.files):
            return "made anew, where there was nothing"
        has_runs = any(path.endswith(".idx") for path in made.files)
        lies = made.index_may_lie or standing.begins_anywhere
        whole = standing.whole and not lies
        if not standing.whole and not has_runs and not standing.begins_anywhere:
            raise Wrong(f"it opens with {head} events, but the log is damaged")
        if head < standing.durable and not standing.begins_anywhere:
            raise Wrong(f"it opens with {head} events where {standing.durable} are known to be durable")
        if whole and head != standing.last_event_id:
            raise Wrong(f"it opens with {head} events where {standing.last_event_id} are whole")
        ways = Ways(disk, writer.index, dice)
        known = ways.check(standing, lies=lies, whole=whole)
        ways.close()
        if whole and list(known.values()) != [line.event for line in standing.lines]:
            raise Wrong("what is read is not what the log has")
    finally:
        writer.close()
        blocks.close_runs()
    _nothing_open(disk)
    after = disk.files()
    _check_cut(made.files, after)
    if standing.begins_anywhere:
        return "opened, though the manifest says that the log begins elsewhere"
    again = PickyDisk(after)
    writer = open_to_write(again, DIRECTORY, options, nothing, Blocks())
    second = writer.index.head.event_id
    writer.close()
    changed = sorted(path for path in {*after, *again.files()} if after.get(path) != again.files().get(path))
    # A copy of a segment may stay where there was no segment; it is of no use.
    if second != head or [path for path in changed if not path.endswith(".jsonl.tmp")]:
        raise Wrong(f"opened again, it has {second} events where it had {head}, and other files: {changed}")
    return "opened" if after.keys() == {*made.files, LOCK} else "opened, put right"


def _check_cut(before: Files, after: Files) -> None:
    torn = [data for path, data in after.items() if "/torn-" in path and path not in before]
    for path in segments_of(before):
        old, new = before[path].rstrip(b"\n"), after.get(path, b"").rstrip(b"\n")
        if not old.startswith(new):
            raise Wrong(f"{path} has other bytes than before")
        cut = old[len(new) :].strip(b"\n")
        if cut and not any(cut in kept for kept in torn):
            raise Wrong(f"what was cut off {path} is not kept aside")


def read(made: Mutant, standing: Standing, dice: random.Random) -> str:
    """Open it to read, and read it in every way."""
    disk, blocks = PickyDisk(made.files), Blocks()
    try:
        index = open_to_read(disk, DIRECTORY, nothing, blocks, dice.choice((1, 4000, 10**9)))
    except (*REFUSALS, EngineUnavailable) as error:
        if standing.must_open:
            raise Wrong(f"nothing is wrong, but it cannot be read: {error!r}") from error
        _unchanged(made.files, disk)
        return f"refused: {type(error).__name__}"
    ways = Ways(disk, index, dice)
    try:
        whole = standing.must_open and not made.index_may_lie
        known = ways.check(standing, lies=made.index_may_lie or standing.begins_anywhere, whole=whole)
        if whole and list(known.values()) != [line.event for line in standing.lines]:
            raise Wrong("what is read is not what the log has")
    finally:
        ways.close()
        index.close()
        blocks.close_runs()
    _unchanged(made.files, disk)
    return "read" if not index.damages else "read beside damage"


# --- following ---


class _Follower(Follower):
    async def _in_thread(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)


def follow(made: Mutant, standing: Standing, dice: random.Random) -> str:
    """Have a reader open while the writer goes on, and then what was written is mutated."""
    before = Standing.of(made.before)
    start = dice.choice(sorted(before.ends))
    disk = PickyDisk(_earlier(made.before, start, made.store.store_id))
    if dice.random() < 0.5:
        disk.put(LOCK, b"{}")
        disk.lock(disk.open_write(LOCK), shared=False)
    blocks = Blocks()
    index = open_to_read(disk, DIRECTORY, nothing, blocks, dice.choice((1, 4000, 10**9)))
    if index.head.event_id != start or index.damages:
        raise Wrong(f"the reader begins with {index.head.event_id} events where {start} are there")
    follower = _Follower(disk, DIRECTORY, index, blocks, cast("Any", None), polls=True)
    ways = Ways(disk, index, dice)
    outcome = "followed"
    own = Standing.of({**made.files, MANIFEST: made.before[MANIFEST]})  # what it was when the reader opened
    seen = Standing(None, {*before.events, *own.events})
    try:
        if dice.random() < 0.5:
            durable = dice.choice([end for end in sorted(before.ends) if end >= start])
            _become(disk, {**made.before, HEAD: encode_slot(durable, made.store.store_id) * 2}, dice)
            if _advance(ways, follower, seen) is not None or index.head.event_id != durable:
                raise Wrong(f"the follower comes to {index.head.event_id} where {durable} are durable")
            ways.check(before, lies=False, whole=True)
        _become(disk, made.files, dice)
        error = _advance(ways, follower, seen)
        outcome = "followed" if error is None else f"stopped: {type(error).__name__}"
        ways.check(seen, lies=True, whole=False)
    finally:
        ways.close()
        follower.stop()
        follower.close()
        index.close()
        blocks.close_runs()
    return outcome


def _advance(ways: Ways, follower: Follower, seen: Standing) -> StoreCorrupt | None:
    while True:
        follower._head_is_new = True
        position = ways.index.head.event_id
        news = ways.now(follower.advance())
        if isinstance(news, StoreCorrupt):
            if ways.index.head.event_id != position and not ways.index.segments:
                raise Wrong("the head moved, and there was an error")
            return news
        if news is None:
            return None
        assert isinstance(news, News)
        ids = [line.event_id for line in news.lines]
        if ids != list(range(ids[0], ids[0] + len(ids))) or ids[0] <= position or news.lines[-1].more:
            raise Wrong(f"behind event {position}, the follower takes {ids} in")
        for line in news.lines:
            event = Event(
                line.event_id, line.stream_id, line.version, line.event_type, line.timestamp, line.data, line.metadata,
                line.tags,
            )  # fmt: skip
            if event not in seen.events:
                raise Wrong(f"the follower takes {event!r} in, which does not stand in the files")


def _earlier(files: Files, last_event_id: int, store_id: str) -> Files:
    """The store as it was when it had so many events."""
    earlier: Files = {}
    for path, data in files.items():
        first = first_of(path)
        if path.endswith(".idx"):
            continue
        if first is None:
            earlier[path] = data
        elif first <= last_event_id + 1:
            seed = line_seed(store_id, first)
            lines = [(text, written(text, seed)) for text in data.split(b"\n") if text]
            earlier[path] = b"".join(
                text + b"\n" for text, line in lines if line is not None and line.event_id <= last_event_id
            )
    earlier[HEAD] = encode_slot(last_event_id, store_id) * 2
    return earlier


def _become(disk: MemoryDisk, files: Files, dice: random.Random) -> None:
    """Have these files there: some are new ones of the name, some the same with other bytes."""
    for path in [path for path in disk.inodes if path not in files and path != LOCK]:
        disk.remove(path)
    for path, data in files.items():
        if path in disk.inodes and dice.random() < 0.7:
            inode = disk.inodes[path]
            inode.data[:] = data
            inode.stable = data
        elif path != LOCK:
            disk.inodes[path] = Inode(bytearray(data), data)
    disk.stable_inodes = dict(disk.inodes)


# --- verifying and repairing ---


def verify_it(made: Mutant, standing: Standing, dice: random.Random) -> str:
    """Verify it; what is said to be whole must be."""
    disk = PickyDisk(made.files)
    try:
        report = verify(disk, DIRECTORY)
    except (EngineUnavailable, EngineUnsupported) as error:
        _unchanged(made.files, disk)
        return f"not verified: {type(error).__name__}"
    _unchanged(made.files, disk)
    if standing.must_open and not report.whole and not made.mended:
        raise Wrong(f"nothing is wrong, but verifying says: {report.findings[:3]}")
    if report.whole and not standing.begins_anywhere:
        _open_and_read(made.files, standing, dice, "said to be whole")
    return "whole" if report.whole else "found damaged"


def _open_and_read(files: Files, standing: Standing, dice: random.Random, what: str) -> dict[int, Event]:
    disk = PickyDisk({path: data for path, data in files.items() if not path.endswith(".idx")})
    try:
        writer = open_to_write(disk, DIRECTORY, Options(True, 1000), nothing, Blocks())
    except EngineUnsupported:
        return {}
    except StoreCorrupt as error:
        raise Wrong(f"{what}, but it does not open: {error}") from error
    ways = Ways(disk, writer.index, dice)
    try:
        return ways.check(standing, lies=False, whole=True)
    finally:
        ways.close()
        writer.close()


def repair(made: Mutant, standing: Standing, dice: random.Random) -> str:
    """Repair it: it opens then, and everything that stood in it is somewhere."""
    if standing.begins_anywhere:
        return "not tried: the manifest says that the log begins elsewhere"
    disk = PickyDisk(made.files)
    try:
        with Repair(disk, DIRECTORY) as repairing:
            plan = repairing.plan()
            if not plan.needed:
                return "nothing to repair"
            outcome = repairing.carry_out(plan)
    except (EngineUnavailable, EngineUnsupported) as error:
        _unchanged(made.files, disk)
        return f"not repaired: {type(error).__name__}"
    _nothing_open(disk)
    after = disk.files()
    all_of_it = list(after.values())
    for path in segments_of(made.files):
        seed = line_seed(standing.store_id or made.store.store_id, first_of(path) or 0)
        for text in made.files[path].split(b"\n"):
            if text and written(text, seed) is not None and not any(text in data for data in all_of_it):
                raise Wrong(f"the repair threw a line away: {text[:80]!r}")
    known = _open_and_read(after, Standing.of(after), dice, "repaired")
    if len(known) and max(known) != outcome.head_event_id:
        raise Wrong(f"the repair says that {outcome.head_event_id} events are left, and {max(known)} are")
    report = verify(PickyDisk(after), DIRECTORY)
    if not report.whole:
        raise Wrong(f"repaired, but verifying says: {report.findings[:3]}")
    return "repaired"


# --- as users do ---


def engine(made: Mutant, standing: Standing, dice: random.Random) -> str:
    """Open it as users do, in a loop and with threads; half of the time on the real disk."""
    if standing.begins_anywhere:
        return "not tried: the manifest says that the log begins elsewhere"
    if dice.random() < 0.5:
        return asyncio.run(_use(MemoryDisk(made.files), DIRECTORY, standing, dice))
    with tempfile.TemporaryDirectory() as folder:
        for path, data in made.files.items():
            (Path(folder) / path.rpartition("/")[2]).write_bytes(data)
        return asyncio.run(_use(None, folder, standing, dice))


async def _use(disk: MemoryDisk | None, path: str, standing: Standing, dice: random.Random) -> str:
    mode: Any = dice.choice(("r", "rw"))
    store = EventStore(FileEngine(path, disk=disk, mode=mode, segment_bytes=1000, part_bytes_min=1))
    try:
        await store.__aenter__()
    except (*REFUSALS, EngineUnavailable) as error:
        return f"refused: {type(error).__name__}"
    try:
        outcome = "used"
        appended = None
        if mode == "rw":
            try:
                appended = await store.append("of the fuzzer", "Appended", {"n": 1}, idempotency_key="f")
            except StoreCorrupt:
                outcome = "used, damaged"
        for backwards in (False, True):
            events: list[Event] = []
            try:
                async for batch in store.read_all(backwards=backwards).batches(7):
                    events += batch
            except StoreCorrupt:
                outcome = "used, damaged"
            if not {event for event in events if event != appended} <= standing.events:
                raise Wrong("an event was served that does not stand in the files")
        return outcome
    finally:
        await store.__aexit__(None, None, None)
