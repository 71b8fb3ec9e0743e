"""Queries as values: what matches, how they are made, joined, compared and copied."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from aiostore import AppendCondition, Event, EventStore, Query, QueryItem


@pytest.fixture
async def event() -> Event:
    """An event of type A in the stream cart-1 with the tags x and y."""
    async with EventStore() as store:
        return await store.append("cart-1", "A", {}, tags=["x", "y"])


MATCHING = [
    QueryItem(),
    QueryItem(types=("A",)),
    QueryItem(types=("B", "A")),
    QueryItem(tags=("x",)),
    QueryItem(tags=("y", "x")),
    QueryItem(stream_prefix=""),
    QueryItem(stream_prefix="c"),
    QueryItem(stream_prefix="cart-1"),
    QueryItem(types=("A",), tags=("x", "y"), stream_prefix="cart-"),
]
OTHERS = [
    QueryItem(types=("B",)),
    QueryItem(types=("a",)),
    QueryItem(types=("AA",)),
    QueryItem(tags=("z",)),
    QueryItem(tags=("x", "z")),
    QueryItem(stream_prefix="art"),
    QueryItem(stream_prefix="cart-10"),
    QueryItem(types=("A",), tags=("x",), stream_prefix="user"),
    QueryItem(types=("A",), tags=("z",), stream_prefix="cart"),
    QueryItem(types=("B",), tags=("x",), stream_prefix="cart"),
]


@pytest.mark.parametrize("item", MATCHING)
def test_an_item_asks_for_any_type_and_all_tags_and_the_prefix(event: Event, item: QueryItem) -> None:
    assert item.matches(event)
    assert Query(item).matches(event)
    assert Query(OTHERS[0], item, OTHERS[3]).matches(event)


@pytest.mark.parametrize("item", OTHERS)
def test_an_item_that_lacks_one_part_does_not_match(event: Event, item: QueryItem) -> None:
    assert not item.matches(event)
    assert not Query(item).matches(event)
    assert not Query(OTHERS[0], item, OTHERS[3]).matches(event)


def test_a_query_without_items_is_everything(event: Event) -> None:
    assert Query().matches(event)
    assert Query() == Query.where() == Query(QueryItem()) == Query.where(types=[], tags=(), stream_prefix="")


def test_an_item_that_matches_everything_makes_the_others_superfluous() -> None:
    assert Query(OTHERS[0], QueryItem(), OTHERS[3]) == Query()


def test_where_makes_a_query_of_one_item() -> None:
    query = Query.where(types=["A", "B"], tags=iter(["x"]), stream_prefix="c")
    assert query == Query(QueryItem(("A", "B"), ("x",), "c"))
    assert query.items == (QueryItem(("A", "B"), ("x",), "c"),)


def test_a_single_name_may_stand_bare() -> None:
    assert Query.where(types="Added", tags="red") == Query.where(types=["Added"], tags=["red"])
    assert QueryItem(types="Added").types == ("Added",)  # type: ignore[arg-type]


def test_names_become_tuples_without_doubles() -> None:
    item = QueryItem(types=["A", "B", "A"], tags=["x", "x"])  # type: ignore[arg-type]
    assert (item.types, item.tags) == (("A", "B"), ("x",))


def test_or_matches_either() -> None:
    first, second = Query.where(types="A"), Query.where(tags="x") | Query.where(tags="y")
    assert first | second == Query(QueryItem(types=("A",)), QueryItem(tags=("x",)), QueryItem(tags=("y",)))
    assert first | first == first
    assert first | Query() == Query() | first == Query()


def test_or_takes_queries_only() -> None:
    with pytest.raises(TypeError):
        Query() | "A"  # type: ignore[operator]


def test_queries_are_values() -> None:
    one, same, other = Query.where(types="A"), Query.where(types=["A"]), Query.where(tags="A")
    assert one == same != other
    assert one != "A"
    assert len({one, same, other}) == 2


@pytest.mark.parametrize("value", [Query.where(types="A"), AppendCondition(Query.where(tags="x"), 5)])
def test_queries_and_conditions_copy_and_pickle(value: Query | AppendCondition) -> None:
    assert copy.copy(value) == copy.deepcopy(value) == pickle.loads(pickle.dumps(value)) == value


def test_queries_are_read_only() -> None:
    query = Query.where(types="A")
    for name in ("items", "other"):
        with pytest.raises(AttributeError):
            setattr(query, name, ())
    with pytest.raises(AttributeError):
        query.items[0].types = ()  # type: ignore[misc]
    with pytest.raises(AttributeError):
        del query.items
    assert query == Query.where(types="A")


def test_repr_can_be_read_back() -> None:
    for query in (Query(), Query.where(types="A", stream_prefix="c") | Query.where(tags=["x", "y"])):
        assert eval(repr(query), {"Query": Query, "QueryItem": QueryItem}) == query


@pytest.mark.parametrize("names", [[""], ["A", ""], "", [1], [None], [b"A"], [["A"]]])
def test_names_that_are_no_text_are_refused(names: Any) -> None:
    for name in ("types", "tags"):
        with pytest.raises(ValueError, match=name):
            Query.where(**{name: names})
        with pytest.raises(ValueError, match=name):
            QueryItem(**{name: names})


@pytest.mark.parametrize("prefix", [1, b"c", ["c"]])
def test_a_prefix_that_is_no_text_is_refused(prefix: Any) -> None:
    with pytest.raises(ValueError, match="stream_prefix"):
        Query.where(stream_prefix=prefix)


@pytest.mark.parametrize("item", ["A", None, Query(), ("A",)])
def test_a_query_is_made_of_items_only(item: Any) -> None:
    with pytest.raises(TypeError, match="QueryItem"):
        Query(item)


@pytest.mark.parametrize("query", ["A", None, QueryItem()])
def test_a_condition_is_made_of_a_query(query: Any) -> None:
    with pytest.raises(TypeError, match="Query"):
        AppendCondition(query)


@pytest.mark.parametrize("after", [-1, 1.0, "1", True])
def test_after_of_a_condition_is_an_event_id(after: Any) -> None:
    with pytest.raises(ValueError, match="after"):
        AppendCondition(Query(), after)
