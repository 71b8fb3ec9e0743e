"""``aiostore cat``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

import typer

from aiostore.cli.console import ForceNetwork, options_of, told
from aiostore.cli.reading import Output, ended_when_closed, run
from aiostore.drafts import check_stream_id
from aiostore.engine import Selection
from aiostore.events import Event
from aiostore.limits import check_bound, check_number
from aiostore.query import Query
from aiostore.reader import Reader
from aiostore.store import EventStore
from aiostore.timestamps import check_moment

NO_BOUND = 2**63 - 1


def cat(
    location: Annotated[
        str, typer.Argument(help="A directory or a postgresql:// URL.", metavar="LOCATION", show_default=False)
    ],
    stream: Annotated[str | None, typer.Option(help="Only events of this stream.", metavar="STREAM_ID")] = None,
    event_types: Annotated[
        list[str] | None, typer.Option("--type", help="Only of this type; repeated: of any of these.", metavar="TYPE")
    ] = None,
    tags: Annotated[
        list[str] | None, typer.Option("--tag", help="Only with this tag; repeated: with all of these.", metavar="TAG")
    ] = None,
    prefix: Annotated[str | None, typer.Option(help="Only of streams whose stream_id begins so.")] = None,
    after: Annotated[int, typer.Option(help="Only events behind this event_id.", metavar="EVENT_ID")] = 0,
    up_to: Annotated[int | None, typer.Option(help="Only up to this event_id.", metavar="EVENT_ID")] = None,
    since: Annotated[
        str | None, typer.Option(help="Only from this time on: ISO 8601, in UTC if it names no zone.", metavar="TIME")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Only before this time.", metavar="TIME")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many events.", metavar="N")] = None,
    backwards: Annotated[bool, typer.Option("--backwards", help="The last one first.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is appended, until Ctrl-C.")] = False,
    force_network: ForceNetwork = False,
) -> None:
    """Write events to stdout, one JSON object a line.

    Each has event_id, stream_id, version, event_type, timestamp, data, metadata and tags. All filters must hold.
    Nothing is changed and no lock is taken, so a directory may be written to meanwhile; what is shown is durable.

    Exit codes: 0 all was written (also if the reader of a pipe ended before), 1 the store is damaged (after all that
    stands before the damage), 2 wrong usage, 3 it cannot be read (no store there, no rights, no server, a format that
    this version does not know), 130 interrupted.
    """
    with told():
        if follow and (backwards or up_to is not None or until is not None):
            raise ValueError("--follow has no end: it does not go with --backwards, --up-to and --until")
        query = Query.where(types=event_types or (), tags=tags or (), stream_prefix=prefix)
        chosen = _Chosen(stream, query, after, up_to, _moment("--since", since), _moment("--until", until), limit)
        output = Output()
        store = EventStore(location, **options_of(location, force_network=force_network))
        run(_cat(store, chosen, output, backwards=backwards, follow=follow), output)


def _moment(name: str, text: str | None) -> str | None:
    """The time as a timestamp."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{name}: {text!r} is not a time in ISO 8601, such as 2026-11-23T04:50:00+01:00") from None
    return check_moment(name, moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC))


class _Chosen:
    """Which events."""

    def __init__(
        self,
        stream_id: str | None,
        query: Query,
        after: int,
        up_to: int | None,
        since: str | None,
        until: str | None,
        limit: int | None,
    ) -> None:
        self.stream_id = None if stream_id is None else check_stream_id(stream_id, "--stream")
        self.query = query if query.items else None
        self.after = check_number("--after", after, 0)
        self.up_to = check_bound("--up-to", up_to)
        self.since = since
        self.until = until
        self.limit = check_bound("--limit", limit)

    def reader(self, store: EventStore, *, backwards: bool) -> Reader:
        """A pass over those that are there; it has all bounds at once, as no method of the store does."""
        engine, _ = store._parts()
        selection = Selection(
            up_to=NO_BOUND if self.up_to is None else self.up_to,
            after=self.after,
            stream_id=self.stream_id,
            query=self.query,
            backwards=backwards,
        )
        return Reader(engine, selection, self.limit, store._check, self.since, self.until)


async def _cat(store: EventStore, chosen: _Chosen, output: Output, *, backwards: bool, follow: bool) -> None:
    async with store:
        reader = chosen.reader(store, backwards=backwards)
        left = NO_BOUND if chosen.limit is None else chosen.limit
        async for batch in reader.batches():
            _put(batch, output)
            left -= len(batch)
        if not follow or left <= 0:
            return
        with ended_when_closed():
            subscription = store.subscribe(
                stream_id=chosen.stream_id, query=chosen.query, after=max(chosen.after, reader.head)
            )
            async with subscription:
                async for batch in subscription.batches():
                    wanted = [event for event in batch if chosen.since is None or event._timestamp >= chosen.since]
                    _put(wanted[:left], output)
                    left -= len(wanted)
                    if left <= 0:
                        return


def _put(events: Sequence[Event], output: Output) -> None:
    if events:
        output.put(b"\n".join([event.to_json() for event in events]) + b"\n")
