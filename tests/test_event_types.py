"""The registry of event types: what it takes, what it refuses, its JSON Schema and its samples."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pydantic
import pytest

from aiostore import Event, EventStore, EventTypes, InvalidEvent


class Address(msgspec.Struct):
    city: str


class Placed(msgspec.Struct):
    to: Address


@dataclass
class Paid:
    amount: int


class Parcel(pydantic.BaseModel):
    weight: int
    inside: list[Parcel] = []


class Shipped(pydantic.BaseModel):
    parcels: list[Parcel]


class Tree(pydantic.BaseModel):
    children: list[Tree] = []


class Listed(msgspec.Struct, array_like=True):
    n: int


class Foreign(msgspec.Struct):
    what: Address | Placed


class Missing(msgspec.Struct):
    what: Nowhere  # type: ignore[name-defined]  # noqa: F821


def test_decorators_register_and_give_the_class_back() -> None:
    types = EventTypes()

    @types.event
    class Left(msgspec.Struct):
        pass

    @types.event("was.taken", version=1, tags=lambda event: ["t"])
    @dataclass
    class Taken:
        n: int

    assert types.name(Left()) == ("Left", Left())
    assert types.name(Taken(1)) == ("was.taken", Taken(1))
    assert types.name(Address("Rome")) is None
    assert repr(types) == "<EventTypes unknown='raise': Left v1, was.taken v1>"
    assert repr(EventTypes(unknown="skip")) == "<EventTypes unknown='skip': none>"


def once(types: EventTypes) -> None:
    types.add(Paid)


REFUSED: dict[str, tuple[Callable[[EventTypes], object], type[Exception], str]] = {
    "no class": (lambda types: types.add(5), TypeError, "must be a msgspec Struct, a dataclass or a pydantic"),  # type: ignore[arg-type]
    "another class": (lambda types: types.add(dict), TypeError, "must be a msgspec Struct"),
    "an empty name": (lambda types: types.add(Placed, ""), InvalidEvent, "event_type: must be 1 to 256"),
    "version 0": (lambda types: types.add(Placed, version=0), ValueError, "version must be"),
    "version true": (lambda types: types.add(Placed, version=True), ValueError, "version must be"),
    "tags that are none": (lambda types: types.add(Placed, tags=["t"]), TypeError, "must be a function"),  # type: ignore[arg-type]
    "a name twice": (lambda types: types.add(Placed, "Paid"), ValueError, "'Paid' is registered already"),
    "a class twice": (lambda types: types.add(Paid, "Other"), ValueError, "Paid is registered already, as 'Paid'"),
    "a rename of a type": (lambda types: types.renamed("Paid", "Other"), ValueError, "registered already"),
    "from version 0": (lambda types: types.upcast("Paid", from_version=0), ValueError, "from_version must be"),
    "a word for unknown": (lambda types: EventTypes(unknown="drop"), ValueError, "raise, skip, raw"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize(("act", "error", "told"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_at_once(act: Callable[[EventTypes], object], error: type[Exception], told: str) -> None:
    types = EventTypes()
    once(types)
    with pytest.raises(error, match=told):
        act(types)
    types.check()


def test_a_step_twice_is_refused() -> None:
    types = EventTypes()
    types.upcast("Paid", from_version=1)(lambda data: data)
    with pytest.raises(ValueError, match="an upcaster of 'Paid' from version 1 already"):
        types.upcast("Paid", from_version=1)


def with_steps(kind: type, version: int, *steps: int) -> Callable[[EventTypes], None]:
    def act(types: EventTypes) -> None:
        types.add(kind, version=version)
        for step in steps:
            types.upcast(kind.__name__, from_version=step)(lambda data: data)

    return act


NOT_WHOLE: dict[str, tuple[Callable[[EventTypes], object], type[Exception], str]] = {
    "no step": (with_steps(Paid, 2), ValueError, "'Paid' is of version 2, .* of version 1 .*from_version=1"),
    "a gap below": (with_steps(Paid, 3, 2), ValueError, "from_version=1"),
    "a gap between": (with_steps(Paid, 4, 1, 3), ValueError, "from_version=2"),
    "a step too many": (with_steps(Paid, 2, 1, 2), ValueError, "from version 2, .* of version 2: raise that to 3"),
    "a step of nothing": (
        lambda types: types.upcast("Gone", from_version=1)(lambda data: data),
        ValueError,
        "'Gone', and no class",
    ),
    "a rename to nothing": (lambda types: types.renamed("Old", "New"), ValueError, "'Old' is renamed to 'New'"),
    "an array": (lambda types: types.add(Listed), TypeError, "Listed is array_like"),
    "no JSON form": (lambda types: types.add(Foreign), TypeError, "Foreign cannot be decoded"),
    "an unknown name": (lambda types: types.add(Missing), TypeError, "Missing cannot be decoded.*Nowhere"),
}


@pytest.mark.parametrize(("act", "error", "told"), NOT_WHOLE.values(), ids=NOT_WHOLE)
def test_what_is_not_whole_is_refused_when_it_is_first_used(
    act: Callable[[EventTypes], object], error: type[Exception], told: str
) -> None:
    types = EventTypes()
    act(types)
    for use in (types.check, lambda: types.name(Paid(1)), lambda: types.json_schema()):
        with pytest.raises(error, match=told):
            use()


def test_steps_are_chained() -> None:
    types = EventTypes()
    types.add(Paid, version=4)
    for step in (3, 1, 2):
        types.upcast("Paid", from_version=step)(lambda data, step=step: {"amount": data["amount"] * 10 + step})
    types.check_samples({"Paid": {n: {"amount": 0} for n in range(1, 5)}})
    event = Event(1, "s", 1, "Paid", "", msgspec.Raw(b'{"amount":7}'))
    assert types.decode(event) == Paid(7123)


async def test_what_is_registered_later_is_known_to_an_open_store() -> None:
    types = EventTypes(unknown="skip")
    async with EventStore(types=types) as store:
        event = await store.append("s", "Paid", {"amount": 1})
        assert event.decode() is None
        types.add(Paid)
        assert event.decode() == Paid(1)


async def test_a_decoded_event_copies_with_its_types_and_pickles_without() -> None:
    types = EventTypes()
    types.add(Paid, tags=lambda event: [])
    async with EventStore(types=types) as store:
        event = await store.append("s", Paid(1))
    assert copy.copy(event).decode() == copy.deepcopy(event).decode() == Paid(1)
    assert pickle.loads(pickle.dumps(event)) == event
    assert copy.deepcopy(event) == event


async def test_a_function_for_tags_that_gives_none_is_refused_with_its_place() -> None:
    types = EventTypes()
    types.add(Paid, tags=lambda event: [""])
    async with EventStore(types=types) as store:
        with pytest.raises(InvalidEvent, match=r"events\[0\].tags\[0\]: must be 1 to 256"):
            await store.append_batch("s", [Paid(1)])


# JSON Schema


async def test_json_schema_describes_events_as_they_are_told() -> None:
    types = EventTypes()
    for kind in (Placed, Paid, Shipped, Tree):
        types.add(kind)
    types.add(Address, "moved/to~100%", version=2)
    types.upcast("moved/to~100%", from_version=1)(lambda data: data)
    schema = types.json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    objects: list[Any] = [
        Placed(Address("Rome")),
        Paid(1),
        Shipped(parcels=[Parcel(weight=1)]),
        Tree(children=[Tree()]),
    ]
    async with EventStore(types=types) as store:
        events = await store.append_batch("s", [*objects, Address("Oslo")])
    for event in events:
        told: dict[str, Any] = json.loads(event.to_json())
        validator.validate(told)
        for key in told["data"]:
            wrong = {**told, "data": {**told["data"], key: "wrong"}}
            assert validator.is_valid(wrong) is (key == "city"), wrong
    assert not validator.is_valid({**json.loads(events[-1].to_json()), "metadata": {}})
    assert {"Placed", "Address", "Paid", "Shipped.Shipped", "Shipped.Parcel"} <= schema["$defs"].keys()
    assert EventTypes().json_schema()["oneOf"] == []


# Samples


def two_versions() -> EventTypes:
    types = EventTypes(unknown="skip")
    types.add(Paid, "paid/in full", version=2)
    types.upcast("paid/in full", from_version=1)(lambda data: {"amount": data["value"]})
    return types


SAMPLES: dict[str, tuple[dict[str, dict[int, Any]], str | None]] = {
    "whole": ({"paid/in full": {1: {"value": 1}, 2: {"amount": 1}}}, None),
    "no old one": ({"paid/in full": {2: {"amount": 1}}}, "version 1: there is no sample; add paid%2Fin%20full.v1.json"),
    "no current one": ({"paid/in full": {1: {"value": 1}}}, "version 2: there is no sample"),
    "a wrong old one": (
        {"paid/in full": {1: {}, 2: {"amount": 1}}},
        "version 1: .*upcaster from version 1 raised KeyE",
    ),
    "a wrong new one": ({"paid/in full": {1: {"value": 1}, 2: {"amount": "x"}}}, "version 2: .*Expected `int`"),
    "a newer one": ({"paid/in full": {1: {"value": 1}, 2: {"amount": 1}, 3: {}}}, "version 3: there is a sample, and"),
    "a foreign one": ({"paid/in full": {1: {"value": 1}, 2: {"amount": 1}}, "X": {1: {}}}, "'X' version 1: there is a"),
}


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(("samples", "told"), SAMPLES.values(), ids=SAMPLES)
def test_samples_of_every_version_are_decoded(
    samples: dict[str, dict[int, Any]], told: str | None, stored: bool, tmp_path: Path
) -> None:
    given: Any = samples
    if stored:
        given = tmp_path
        (tmp_path / "README").write_text("no sample")
        for name, each in samples.items():
            for version, data in each.items():
                quoted = name.replace("/", "%2F").replace(" ", "%20")
                (tmp_path / f"{quoted}.v{version}.json").write_text(json.dumps(data, indent=2))
    if told is None:
        two_versions().check_samples(given)
    else:
        with pytest.raises(AssertionError, match=told):
            two_versions().check_samples(given)


def test_a_sample_that_is_no_json_is_named(tmp_path: Path) -> None:
    types = EventTypes()
    types.add(Paid)
    (tmp_path / "Paid.v1.json").write_text("{")
    with pytest.raises(AssertionError, match="'Paid' version 1"):
        types.check_samples(tmp_path)
