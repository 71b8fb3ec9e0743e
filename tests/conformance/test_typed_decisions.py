"""Decisions on objects: what is evolved and what is decided are of the store's types, whatever version was stored."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from aiostore import Decider, EventTypes, NewEvent, NoEventTypes, Query, StreamAppend, UnknownEventType
from tests.conftest import OpenStore


class Deposited(msgspec.Struct):
    cents: int


class Withdrawn(msgspec.Struct):
    cents: int


def known() -> EventTypes:
    types = EventTypes()
    types.add(Deposited, version=2, tags=lambda event: ["money"])
    types.add(Withdrawn, tags=lambda event: ["money"])
    types.upcast("Deposited", from_version=1)(lambda data: {"cents": data["euros"] * 100})
    return types


def evolve(balance: int, event: Deposited | Withdrawn) -> int:
    return balance + (event.cents if isinstance(event, Deposited) else -event.cents)


def withdraw(cents: int, balance: int) -> list[Withdrawn]:
    return [Withdrawn(cents)] if cents <= balance else []


ACCOUNT = Decider(0, evolve, withdraw, decoded=True)


async def test_objects_of_every_version_are_evolved_and_objects_are_stored(open_store: OpenStore) -> None:
    store = await open_store(types=known())
    await store.append("account", Deposited(50))
    await store.append_batch("account", [NewEvent(Deposited(70), metadata={"by": "me"})])
    decision = await ACCOUNT.execute(store, "account", 100)
    assert (decision.state, decision.version) == (20, 3)
    assert decision.events[0].decode() == Withdrawn(100)
    assert (await ACCOUNT.execute(store, "account", 100)).events == ()


async def test_sent_twice_with_a_key_the_answer_is_that_of_the_first_time(open_store: OpenStore) -> None:
    store = await open_store(types=known())
    await store.append("account", Deposited(50))
    for _ in range(2):
        decision = await ACCOUNT.execute(store, "account", 30, idempotency_key="k", metadata={"by": "me"})
        assert (decision.state, [event.decode() for event in decision.events]) == (20, [Withdrawn(30)])
        assert decision.events[0].metadata == {"by": "me"}


async def test_over_a_query_too(open_store: OpenStore) -> None:
    store = await open_store(types=known())
    await store.append_batch("a", [Deposited(50)])
    await store.append_batch("b", [Deposited(60)])

    def withdraw_from_b(cents: int, balance: int) -> StreamAppend:
        return StreamAppend("b", withdraw(cents, balance))

    pot: Decider[Any, Any] = Decider(0, evolve, withdraw_from_b, decoded=True)
    decision = await pot.execute_over(store, Query.where(tags="money"), 100)
    assert (decision.state, [event.decode() for event in decision.events]) == (10, [Withdrawn(100)])


async def test_what_cannot_be_decoded_decides_nothing(open_store: OpenStore) -> None:
    plain = await open_store()
    await plain.append("account", "Deposited", {"cents": 5})
    with pytest.raises(NoEventTypes):
        await ACCOUNT.execute(plain, "account", 1)
    assert await plain.stream_version("account") == 1
    typed = await open_store(types=known())
    await typed.append("account", Deposited(5))
    await typed.append("account", "Moved", {})
    with pytest.raises(UnknownEventType, match="Moved"):
        await ACCOUNT.execute(typed, "account", 1)
    assert await typed.stream_version("account") == 2
