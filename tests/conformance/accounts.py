"""A bank: accounts as streams, and the projections that tests make of them."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from aiostore import Event, EventStore, LiveProjection, Projection

P = TypeVar("P", bound=Projection[Any])

HANDLED = ("Opened", "Deposited", "Withdrawn")


class Account(msgspec.Struct):
    """What is known of an account."""

    owner: str = ""
    balance: int = 0


def opened(account: Account, event: Event) -> None:
    """Changes the state."""
    account.owner = event.data["owner"]


def deposited(account: Account, event: Event) -> Account:
    """Returns a new state."""
    return Account(account.owner, account.balance + event.data["amount"])


async def withdrawn(account: Account, event: Event) -> None:
    """Changes the state, and is async."""
    account.balance -= event.data["amount"]


HANDLERS: dict[str, Any] = {"Opened": opened, "Deposited": deposited, "Withdrawn": withdrawn}


def with_balances(projection: P) -> P:
    """The projection, with handlers that keep the balance of each stream in a dict, in each of the ways there are."""

    def open_account(state: dict[str, int], event: Event) -> None:
        state[event.stream_id] = 0

    def deposit(state: dict[str, int], event: Event) -> dict[str, int]:
        return {**state, event.stream_id: state.get(event.stream_id, 0) + event.data["amount"]}

    @projection.when("Withdrawn")
    async def withdraw(state: dict[str, int], event: Event) -> None:
        state[event.stream_id] -= event.data["amount"]

    projection.when("Opened", open_account)
    projection.when("Deposited", deposit)
    return projection


def balances(store: EventStore, **options: Any) -> Projection[dict[str, Any]]:
    """The balance of each account."""
    return with_balances(Projection("balances", store, **options))


def live_balances(store: EventStore, **options: Any) -> LiveProjection[dict[str, Any]]:
    """The same, live."""
    return with_balances(LiveProjection("balances", store, **options))


async def open_accounts(store: EventStore) -> None:
    """Six events: ann has 70, bob 20."""
    await store.append_batch("ann", [("Opened", {"owner": "Ann"}), ("Deposited", {"amount": 100})])
    await store.append_batch("bob", [("Opened", {"owner": "Bob"}), ("Deposited", {"amount": 20})])
    await store.append("ann", "Withdrawn", {"amount": 30})
    await store.append("ann", "Audited", {})
