"""A group of proposals as the arguments of ``append_group``, and its answer as outcomes. Plain functions, no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec

from aiostore.drafts import Append, Draft
from aiostore.engine import Commit, Outcome, Proposal
from aiostore.engines.postgres.functions import CONFLICT, DUPLICATE, MATCHED, SEPARATOR
from aiostore.engines.postgres.rows import timestamp_text
from aiostore.errors import AppendConditionFailed, ConcurrencyConflict
from aiostore.events import Event
from aiostore.query import Query

BIGINT_MAX: Final = 2**63 - 1
_EXISTS: Final = -1


def storable(text: str) -> bool:
    """Whether the server can hold the text at all; what it cannot, nothing stored there has."""
    return "\0" not in text and (text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text))


class Item(NamedTuple):
    """A `QueryItem` of which only what may match is left; None does not restrict."""

    types: Sequence[str] | None
    tags: Sequence[str] | None
    prefix: str | None


def items_of(query: Query) -> Sequence[Item] | None:
    """The items of a query that may match anything at all; None where every event does."""
    if not query.items:
        return None
    items: list[Item] = []
    for item in query.items:
        types = [name for name in item.types if storable(name)]
        if (item.types and not types) or not all(map(storable, (*item.tags, item.stream_prefix or ""))):
            continue
        items.append(Item(types or None, item.tags or None, item.stream_prefix))
    return items


@dataclass(slots=True)
class _Arguments:
    """The arrays of ``append_group``, in its order."""

    streams: list[str] = field(default_factory=list)
    e_type: list[str] = field(default_factory=list)
    e_data: list[msgspec.Raw] = field(default_factory=list)
    e_size: list[int] = field(default_factory=list)
    e_append: list[int] = field(default_factory=list)
    e_stream: list[int] = field(default_factory=list)
    e_nth: list[int] = field(default_factory=list)
    e_more: list[int] = field(default_factory=list)
    e_key: list[str | None] = field(default_factory=list)
    e_metadata: list[msgspec.Raw | None] = field(default_factory=list)
    e_tags: list[str | None] = field(default_factory=list)
    k_append: list[int] = field(default_factory=list)
    k_stream: list[int] = field(default_factory=list)
    k_key: list[str] = field(default_factory=list)
    x_append: list[int] = field(default_factory=list)
    x_stream: list[int] = field(default_factory=list)
    x_expected: list[int] = field(default_factory=list)
    c_append: list[int] = field(default_factory=list)
    c_above: list[int] = field(default_factory=list)
    c_match: list[int | None] = field(default_factory=list)
    c_items: list[str] = field(default_factory=list)

    def all(self, appends_count: int) -> list[Any]:
        """The arrays, without those that ``append_group`` can do without, or None in their place."""
        needless = [array for array in (self.e_metadata, self.e_tags, self.e_key, self.e_more) if not any(array)]
        if appends_count == 1:
            needless += [self.e_append, self.e_more]
        if len(self.streams) == 1:
            needless += [self.e_stream, self.e_nth]
        for array in needless:
            array.clear()
        arrays = [getattr(self, name) or None for name in _ARRAYS]
        return arrays if any(arrays[_NEEDED_COUNT:]) else arrays[:_NEEDED_COUNT]


_ARRAYS: Final = tuple(array.name for array in fields(_Arguments))

_NEEDED_COUNT: Final = 4
"""The first arrays: streams, types, data and sizes."""


class Answer(NamedTuple):
    """What the server says of a group: see ``append_group``."""

    previous_head: int
    timestamp: datetime
    refused: Sequence[int] | None
    """The places of the appends that did not pass, from 1, None where all did; with each of them…"""
    verdicts: Sequence[int] | None
    details: Sequence[int] | None
    """…the first event of a duplicate, the place of the expectation, the event that matched."""
    versions: Sequence[int] | None
    """Of each stream of the group, before it; None where there are none."""


class Group:
    """Proposals with their arguments."""

    def __init__(self, proposals: Sequence[Proposal], timestamp: str) -> None:
        self.proposals = proposals
        self._places: dict[str, int] = {}
        self._counts: dict[int, int] = {}
        self._expectations: list[tuple[str, Any]] = []
        arrays = _Arguments()
        for place, proposal in enumerate(proposals, start=1):
            self._add(arrays, place, proposal)
        arrays.streams = list(self._places)
        self.arguments: Sequence[Any] = (
            datetime.fromisoformat(timestamp),
            len(proposals),
            *arrays.all(len(proposals)),
        )

    def _stream(self, stream_id: str) -> int:
        return self._places.setdefault(stream_id, len(self._places) + 1)

    def _add(self, arrays: _Arguments, place: int, proposal: Proposal) -> None:
        append = proposal.append
        key = append.idempotency_key
        scope = append.key_scope
        if scope is not None:
            arrays.k_append.append(place)
            arrays.k_stream.append(self._stream(scope[0]))
            arrays.k_key.append(scope[1])
        condition = append.condition
        if condition is not None:
            arrays.c_append.append(place)
            arrays.c_above.append(min(max(proposal.searched_up_to, condition.after or 0), BIGINT_MAX))
            arrays.c_match.append(proposal.match)
            arrays.c_items.append(_encoded_items(condition.query))
        more = append.events_count
        for part in append.parts:
            stream = self._stream(part.stream_id)
            if part.expected_version is not None:
                expected = part.expected_version
                arrays.x_append.append(place)
                arrays.x_stream.append(stream)
                arrays.x_expected.append(min(expected, BIGINT_MAX) if isinstance(expected, int) else _EXISTS)
                self._expectations.append((part.stream_id, expected))
            if part.drafts:
                more -= len(part.drafts)
                self._add_events(arrays, place, stream, part.drafts, more)
                arrays.e_key[-len(part.drafts)], key = key, None

    def _add_events(self, arrays: _Arguments, place: int, stream: int, drafts: Sequence[Draft], more: int) -> None:
        """Add some of one stream, after which so many of the append follow."""
        count = len(drafts)
        before = self._counts.get(stream, 0)
        self._counts[stream] = before + count
        arrays.e_append += [place] * count
        arrays.e_stream += [stream] * count
        arrays.e_nth += range(before + 1, before + count + 1)
        arrays.e_type += [draft.event_type for draft in drafts]
        arrays.e_data += [draft.data for draft in drafts]
        arrays.e_metadata += [draft.metadata if bytes(draft.metadata) else None for draft in drafts]
        arrays.e_tags += [SEPARATOR.join(draft.tags) if draft.tags else None for draft in drafts]
        arrays.e_key += [None] * count
        arrays.e_more += range(more + count - 1, more - 1, -1)
        arrays.e_size += [draft.size for draft in drafts]

    def outcomes(self, answer: Answer) -> tuple[list[Commit], list[Outcome | int]]:
        """The commits that were stored, and what each proposal came to.

        For one whose key is stored already it is a number: the first event of the commit that has it.
        """
        commits: list[Commit] = []
        outcomes: list[Outcome | int] = []
        before = answer.versions or ()
        versions = dict(zip(self._places, before, strict=True))
        verdicts = zip(answer.verdicts or (), answer.details or (), strict=True)
        refused = dict(zip(answer.refused or (), verdicts, strict=True))
        event_id, timestamp = answer.previous_head, timestamp_text(answer.timestamp)
        for place, (append, _, _) in enumerate(self.proposals, start=1):
            if place not in refused:
                events = _placed(append, event_id, timestamp, versions)
                event_id += len(events)
                if events:
                    commits.append(Commit(events, append.idempotency_key, append.size))
                outcomes.append(events)
                continue
            verdict, detail = refused[place]
            if verdict == DUPLICATE:
                outcomes.append(detail)
            elif verdict == CONFLICT:
                stream_id, expected = self._expectations[detail - 1]
                actual = before[self._places[stream_id] - 1]
                outcomes.append(ConcurrencyConflict(stream_id, expected, actual))
            else:
                assert verdict == MATCHED, f"{verdict} is no verdict"
                outcomes.append(AppendConditionFailed(detail))
        return commits, outcomes


def _placed(append: Append, event_id: int, timestamp: str, versions: dict[str, int]) -> list[Event]:
    """The events of an append that passed, the first right above ``event_id``; the versions are brought up to date."""
    events: list[Event] = []
    for part in append.parts:
        version = versions[part.stream_id]
        events += part.placed(event_id + len(events), version, timestamp)
        versions[part.stream_id] = version + len(part.drafts)
    return events


def _encoded_items(query: Query) -> str:
    items = items_of(query)
    shown = [{}] if items is None else [item._asdict() for item in items]
    return msgspec.json.encode(shown).decode()
