"""Which events: queries over type, tags and stream prefix, and the condition of an append."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiostore.limits import check_bound

if TYPE_CHECKING:
    from aiostore.events import Event


def _names(name: str, value: Iterable[str]) -> tuple[str, ...]:
    # One name may stand bare: iterating over its letters is never what was meant.
    names = (value,) if isinstance(value, str) else tuple(value)
    for element in names:
        if not isinstance(element, str) or not element:
            raise ValueError(f"{name} must be strings that are not empty, not {element!r}")
    return tuple(dict.fromkeys(names))


@dataclass(frozen=True, slots=True)
class QueryItem:
    """Matches an event that has any of ``types`` AND all of ``tags`` AND a stream_id with ``stream_prefix``.

    What is left out does not restrict; an item without anything matches every event.
    """

    types: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    stream_prefix: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "types", _names("types", self.types))
        object.__setattr__(self, "tags", _names("tags", self.tags))
        if self.stream_prefix is not None and not isinstance(self.stream_prefix, str):
            raise ValueError(f"stream_prefix must be a string, not {self.stream_prefix!r}")
        if self.stream_prefix == "":
            object.__setattr__(self, "stream_prefix", None)

    def matches(self, event: Event) -> bool:
        """Whether the event is meant."""
        if self.types and event.event_type not in self.types:
            return False
        if self.stream_prefix is not None and not event.stream_id.startswith(self.stream_prefix):
            return False
        return all(tag in event.tags for tag in self.tags)


class Query:
    """The events that match any of its items; ``Query()`` is every event. Immutable; ``q1 | q2`` matches either."""

    __slots__ = ("items",)

    items: tuple[QueryItem, ...]

    def __init__(self, *items: QueryItem) -> None:
        for item in items:
            if not isinstance(item, QueryItem):
                raise TypeError(f"a Query is made of QueryItem, not {item!r}; Query.where(types=…, tags=…) makes one")
        # An item that matches everything makes the others superfluous: everything is the query without items.
        everything = any(item == QueryItem() for item in items)
        object.__setattr__(self, "items", () if everything else tuple(dict.fromkeys(items)))

    @classmethod
    def where(cls, *, types: Iterable[str] = (), tags: Iterable[str] = (), stream_prefix: str | None = None) -> Query:
        """The query of one item: any of the types AND all of the tags AND the prefix."""
        return cls(QueryItem(_names("types", types), _names("tags", tags), stream_prefix))

    def matches(self, event: Event) -> bool:
        """Whether the event is meant."""
        return not self.items or any(item.matches(event) for item in self.items)

    def __or__(self, other: Query) -> Query:
        if not isinstance(other, Query):
            return NotImplemented
        return Query(*self.items, *other.items) if self.items and other.items else Query()

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a Query is immutable")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("a Query is immutable")

    def __reduce__(self) -> tuple[type[Query], tuple[QueryItem, ...]]:
        return (Query, self.items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Query) and self.items == other.items

    def __hash__(self) -> int:
        return hash(self.items)

    def __repr__(self) -> str:
        return f"Query({', '.join(map(repr, self.items))})"


@dataclass(frozen=True, slots=True)
class AppendCondition:
    """An append fails if an event matches ``query`` with event_id > ``after`` (None: any event at all).

    The dynamic consistency boundary: read by a query, decide, and append on condition that nothing came in between.
    """

    query: Query
    after: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.query, Query):
            raise TypeError(f"the query of an AppendCondition must be a Query, not {self.query!r}")
        check_bound("after", self.after)
