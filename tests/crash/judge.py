"""What must hold in a state that a power loss left: the store opens, with all that was promised and nothing else."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from aiostore.engines.file.blocks import Blocks
from aiostore.engines.file.format import LOCK_NAME, MANIFEST_NAME
from aiostore.engines.file.head import read_head
from aiostore.engines.file.opening import Options, open_to_write
from tests.crash.life import DIRECTORY, Life
from tests.crash.tape import Files, Moment, RecordingDisk
from tests.file.disks import MemoryDisk, UnsharedDisk
from tests.file.driver import nothing, read_now

LOCK = f"{DIRECTORY}/{LOCK_NAME}"


class Line(msgspec.Struct):
    event_id: int
    stream_id: str
    more: int = 0


_line = msgspec.json.Decoder(Line).decode


class Wrong(AssertionError):
    """A promise that was broken, and the state in which it was."""

    def __init__(self, reason: str, files: Files) -> None:
        super().__init__(reason)
        self.files = files


def segments_of(files: Files) -> list[tuple[str, bytes]]:
    """The segments' lines, without what was prepared behind them."""
    found = sorted((path, data) for path, data in files.items() if path.endswith(".jsonl"))
    return [(path, data.rstrip(b"\n") + b"\n" if data.rstrip(b"\n") else b"") for path, data in found]


@dataclass(frozen=True)
class Log:
    """What a log may hold at most, and where its commits end."""

    text: bytes
    ends: dict[int, int]
    """By the length of the text up to there, the last event."""

    @classmethod
    def of(cls, files: Files, known: Log | None) -> Log:
        """The log of these files; what is known already is not looked at again."""
        text = b"".join(data for _, data in segments_of(files))
        if known is not None and known.text == text:
            return known
        ends = {0: 0}
        place = 0
        if known is not None and text.startswith(known.text):
            ends = dict(known.ends)
            place = max(ends)
        for raw in text[place:].split(b"\n")[:-1]:
            place += len(raw) + 1
            if not raw:
                continue
            try:
                line = _line(raw)
            except msgspec.MsgspecError:
                break  # a write was cut off here
            if not line.more:
                ends[place] = line.event_id
        return cls(text, ends)


@dataclass
class Tally:
    """How much was tried."""

    states: int = 0
    recoveries_cut: int = 0
    read_whole: int = 0
    torn: int = 0


class Judge:
    """Checks the states of one life. ``deep_every``: so often a state is also read as users do."""

    def __init__(self, life: Life, tally: Tally, *, deep_every: int = 50) -> None:
        self._options = Options(life.durability == "fsync", life.segment_bytes, life.part_bytes_min)
        self._tally = tally
        self._deep_every = deep_every

    def check(self, files: Files, logs: list[Log], at_least: int, disk: MemoryDisk | None = None) -> int:
        """Open the state, say how many events it has. ``logs``: it must hold a prefix of one of these."""
        self._tally.states += 1
        disk = disk or UnsharedDisk(files)
        try:
            writer = open_to_write(disk, DIRECTORY, self._options, nothing, Blocks())
        except Exception as error:
            raise Wrong(f"it does not open: {error!r}", files) from error
        head = writer.index.head.event_id
        try:
            self._check_log(files, disk.files(), logs, head, at_least)
            if self._tally.states % self._deep_every == 0:
                self._read(files, disk, writer.index)
        finally:
            writer.close()
        if disk.held:
            raise Wrong("files stay open", files)
        after = disk.files()
        if any(files.get(path) != data for path, data in after.items() if path != LOCK) or len(after) < len(files):
            self._check_again(files, after, head)
        return head

    def _check_log(self, files: Files, after: Files, logs: list[Log], head: int, at_least: int) -> None:
        text = b"".join(data for _, data in segments_of(after))
        if not any(log.text.startswith(text) and log.ends.get(len(text)) == head for log in logs):
            raise Wrong(f"with head {head}, the log is not a prefix of whole commits", files)
        if head < at_least:
            raise Wrong(f"{head} events are there, {at_least} were promised", files)
        torn = [data for path, data in after.items() if "/torn-" in path]
        if torn:
            self._tally.torn += 1
        before = dict(segments_of(files))
        for path, data in segments_of(after):
            cut = before.get(path, b"")[len(data) :]
            if cut.strip(b"\n") and not any(cut.rstrip(b"\n") in kept for kept in torn):
                raise Wrong(f"what was cut off {path} is not kept aside", files)

    def _check_again(self, files: Files, before: Files, head: int) -> None:
        disk = UnsharedDisk(before)
        writer = open_to_write(disk, DIRECTORY, self._options, nothing, Blocks())
        found = writer.index.head.event_id
        writer.close()
        if found != head or disk.files() != before:
            raise Wrong("another recovery changes something", files)

    def _read(self, files: Files, disk: MemoryDisk, index: object) -> None:
        self._tally.read_whole += 1
        lines = [_line(raw) for _, data in segments_of(disk.files()) for raw in data.split(b"\n") if raw]
        events, error = read_now(disk, index)  # type: ignore[arg-type]
        if error is not None or [event.event_id for event in events] != list(range(1, len(lines) + 1)):
            raise Wrong(f"reading it gives {len(events)} events, then {error}", files)
        for stream_id in {line.stream_id for line in lines}:
            mine, error = read_now(disk, index, stream_id=stream_id)  # type: ignore[arg-type]
            ids = [line.event_id for line in lines if line.stream_id == stream_id]
            if error is not None or [event.event_id for event in mine] != ids:
                raise Wrong(f"stream {stream_id} is not what the log has", files)
            if [event.version for event in mine] != list(range(1, len(ids) + 1)):
                raise Wrong(f"the versions of {stream_id} are not dense", files)


def crashes(life: Life, dice: random.Random, tally: Tally, states_max: int) -> Iterator[tuple[Files, int]]:
    """Try the power losses of a life, up to ``states_max`` at each moment; yields some states, and their heads."""
    judge = Judge(life, tally)
    moment = Moment(life.disk)
    log: Log | None = None
    before: Log | None = None
    for entry in (None, *life.disk.tape):
        if entry is not None:
            moment.play(entry)
        seen = moment.seen()
        log = Log.of(seen, log)
        before = Log.of(moment.before_cuts(), before)
        logs = [log] if before.text == log.text else [log, before]
        promised = max(moment.promised, _shown(seen) if life.durability == "fsync" else 0)
        for number, files in enumerate(moment.states(dice, states_max)):
            if number % 16 == 5:
                head = _cut_recovery(judge, files, logs, promised, dice, tally)
            else:
                head = judge.check(files, logs, promised)
            if dice.random() < 0.003:
                yield files, head
        judge.check(seen, logs, max(promised, moment.told))  # killed: nothing that was told is gone


def check_end(life: Life, dice: random.Random, tally: Tally, states_max: int) -> None:
    """Check what a process finds that goes on after the life, and what power losses leave of its end."""
    judge = Judge(life, tally)
    moment = Moment(life.disk)
    for entry in life.disk.tape:
        moment.play(entry)
    seen = moment.seen()
    log, before = Log.of(seen, None), Log.of(moment.before_cuts(), None)
    for files in moment.states(dice, states_max):
        judge.check(files, [log, before], moment.promised)
    disk = MemoryDisk(seen)
    moment.show_device(disk)
    read = {path: bytes(inode.data) if inode.pending else inode.stable for path, inode in disk.inodes.items()}
    judge.check(read, [log, before], moment.promised, disk)


def _shown(files: Files) -> int:
    """What followers may have shown: what the head file says."""
    names = [path for path in files if path.endswith(MANIFEST_NAME)]
    if not names or f"{DIRECTORY}/head" not in files:
        return 0
    store_id = msgspec.json.decode(files[names[0]])["store_id"]
    return read_head(MemoryDisk({f"{DIRECTORY}/head": files[f"{DIRECTORY}/head"]}), f"{DIRECTORY}/head", store_id)


def _cut_recovery(judge: Judge, files: Files, logs: list[Log], promised: int, dice: random.Random, tally: Tally) -> int:
    """Check the state, and then each power loss in the midst of its recovery, too."""
    disk = RecordingDisk(files)
    head = judge.check(files, logs, promised, disk)
    moment = Moment(disk)
    for place, entry in enumerate(disk.tape, 1):
        moment.play(entry)
        at_least = head if place == len(disk.tape) else promised  # once open, it may have been read
        for again in moment.states(dice, 4):
            tally.recoveries_cut += 1
            judge.check(again, logs, at_least)
    return head
