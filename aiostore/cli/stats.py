"""``aiostore stats``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated

import msgspec
import typer

from aiostore.cli.console import (
    AsJson,
    ForceNetwork,
    clean,
    counted,
    directory_of,
    options_of,
    say,
    say_json,
    size_text,
    told,
)
from aiostore.cli.progress import shown
from aiostore.cli.reading import Output, run
from aiostore.engines.file.disk import Disk
from aiostore.engines.file.examination import Progress
from aiostore.engines.file.statistics import FileStatistics, file_statistics
from aiostore.events import Event
from aiostore.store import EventStore

TYPES_MAX = 10_000
"""So many event types are counted; all others as one."""

OTHER_TYPES = "(other types)"
STREAMS_KEPT = 10_000


class Named(msgspec.Struct, frozen=True):
    """A stream or an event type, and how many events it has."""

    name: str
    events: int


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """What takes reading all events."""

    streams: int
    event_types: int
    largest_streams: Sequence[Named]
    largest_event_types: Sequence[Named]


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """What is told of a store."""

    location: str
    events: int | None
    head_event_id: int
    first_timestamp: str | None
    last_timestamp: str | None
    contents: Contents | None
    files: FileStatistics | None


def stats(
    location: Annotated[
        str, typer.Argument(help="A directory or a postgresql:// URL.", metavar="LOCATION", show_default=False)
    ],
    full: Annotated[
        bool, typer.Option("--full", help="Read all events, to count streams and types, and name the largest.")
    ] = False,
    top: Annotated[int, typer.Option(min=1, max=1000, help="With --full: name so many.", metavar="N")] = 10,
    force_network: ForceNetwork = False,
    as_json: AsJson = False,
) -> None:
    """Tell how large a store is and what is in it. Nothing is changed, and no lock is taken.

    Without --full the log is not read, but for its first and last event and what has no index yet. Streams and event
    types are counted with --full only: the index finds events by what they are asked for, and knows no names.

    Exit codes: 0 all was told, 1 the store is damaged where it had to be read, 2 wrong usage, 3 it cannot be read (no
    store there, no rights, no server, a format that this version does not know), 130 interrupted.

    With --json: location, events (null if that is not known without --full), head_event_id, first_timestamp,
    last_timestamp, contents (null without --full: streams, event_types, largest_streams and largest_event_types: name,
    events), files (null for a URL: store_id, format, created, writer_pid, durable_event_id, segments, indexes,
    torn_files, bytes: segments, indexes, state, torn, other, file_system). With exit codes 1 and 3: error.
    """
    with told(as_json=as_json):
        files = None
        if "://" not in location:
            files = file_statistics(Disk(), directory_of(location))
        with shown(in_events=True) as progress:
            store = EventStore(location, **options_of(location, force_network=force_network))
            statistics = run(_statistics(store, location, files, full, top, progress), Output())
        if as_json:
            say_json(statistics)
        else:
            _say(statistics)


async def _statistics(
    store: EventStore, location: str, files: FileStatistics | None, full: bool, top: int, progress: Progress
) -> Statistics:
    async with store:
        engine, _ = store._parts()
        head = await store.head()
        first = await store.read_all(limit=1).to_list()
        last = await store.read_all(up_to=head, backwards=True, limit=1).to_list()
        events = None
        if not first:
            events = 0
        elif engine.dense_positions:
            events = head - first[0].event_id + 1
        contents = None
        if full:
            counting = _Counting(top)
            async for batch in store.read_all(up_to=head).batches():
                counting.take(batch)
                progress(batch[-1].event_id, head, "reading all events")
            contents = counting.contents()
            events = counting.events
        return Statistics(
            location=location,
            events=events,
            head_event_id=head,
            first_timestamp=first[0]._timestamp if first else None,
            last_timestamp=last[0]._timestamp if last else None,
            contents=contents,
            files=files,
        )


class _Counting:
    """Counts streams and types in bounded memory, and is exact but for stores of more than `TYPES_MAX` types.

    A stream has as many events as its last version says. Kept are the largest so far; one that is to be among the
    ``top`` in the end goes beyond the smallest of these with its last event, if not before.
    """

    def __init__(self, top: int) -> None:
        self.events = 0
        self._top = top
        self._streams = 0
        self._largest: dict[str, int] = {}
        self._least = 0
        self._types: Counter[str] = Counter()

    def take(self, events: Sequence[Event]) -> None:
        """Count these."""
        self.events += len(events)
        self._types.update([event.event_type for event in events])
        largest, least = self._largest, self._least
        for event in events:
            version = event.version
            if version == 1:
                self._streams += 1
            if version > least:
                largest[event.stream_id] = version
        if len(largest) > STREAMS_KEPT:
            kept = self._ordered(largest)
            self._largest, self._least = dict(kept), kept[-1][1]
        if len(self._types) > 2 * TYPES_MAX:
            few = Counter(dict(self._types.most_common(TYPES_MAX)))
            few[OTHER_TYPES] += self._types.total() - few.total()
            self._types = few

    def _ordered(self, counts: dict[str, int]) -> list[tuple[str, int]]:
        return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: self._top]

    def contents(self) -> Contents:
        """What was counted."""
        return Contents(
            streams=self._streams,
            event_types=len(self._types),
            largest_streams=[Named(*item) for item in self._ordered(self._largest)],
            largest_event_types=[Named(*item) for item in self._ordered(self._types)],
        )


def _say(statistics: Statistics) -> None:
    rows: list[tuple[str, str]] = []
    events = statistics.events
    rows.append(("events", "not known without --full" if events is None else f"{events:,}"))
    rows.append(("head", f"event {statistics.head_event_id}"))
    if statistics.first_timestamp and statistics.last_timestamp:
        rows.append(("from", statistics.first_timestamp))
        rows.append(("to", statistics.last_timestamp))
    contents = statistics.contents
    rows.append(("streams", "not known without --full" if contents is None else f"{contents.streams:,}"))
    if contents is not None:
        rows.append(("event types", f"{contents.event_types:,}"))
    if statistics.files is not None:
        rows += _file_rows(statistics.files)
    say(clean(statistics.location))
    for name, value in rows:
        say(f"  {name:13}{value}")
    if contents is not None:
        for title, named in (
            ("largest streams", contents.largest_streams),
            ("event types", contents.largest_event_types),
        ):
            say(f"{title}")
            for each in named:
                say(f"  {each.events:>13,}  {clean(each.name)}")


def _file_rows(files: FileStatistics) -> list[tuple[str, str]]:
    sizes = {kind: size_text(size) for kind, size in files.bytes.items()}
    rows = [
        ("segments", f"{files.segments:,}, {sizes['segments']}"),
        ("indexes", f"{files.indexes:,}, {sizes['indexes']}"),
        ("state.db", sizes["state"]),
        ("all files", size_text(sum(files.bytes.values()))),
    ]
    if files.torn_files:
        rows.insert(3, ("torn tails", f"{counted(files.torn_files, 'file')} set aside, {sizes['torn']}"))
    writer = "none" if files.writer_pid is None else f"pid {files.writer_pid}" if files.writer_pid else "a process"
    rows += [
        ("durable", f"up to event {files.durable_event_id} by the head file"),
        ("writer", writer),
        ("store", files.store_id),
        ("format", str(files.format)),
        ("created", files.created),
        ("file system", files.file_system or "not known"),
    ]
    return rows
