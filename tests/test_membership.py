"""The record of a group, changed by several at once: nobody overwrites what another has saved."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from aiostore import EventStore
from aiostore.consumer.group import Group
from aiostore.consumer.membership import Membership
from aiostore.engine import Saving

NewMembership = Callable[[], Membership]


@pytest.fixture
async def new_membership() -> AsyncIterator[NewMembership]:
    async with EventStore() as store:
        engine, fanout = store._parts()
        yield lambda: Membership(engine, "m", home=fanout.opening, alone=False, lease_s=1, after=0)


def ask(group: Group) -> Sequence[Saving]:
    group.parked_revision += 1
    return ()


async def test_what_is_forgotten_during_an_update_makes_it_overwrite_nothing(new_membership: NewMembership) -> None:
    mine, other = new_membership(), new_membership()
    seen = []

    async def ask_meanwhile(group: Group) -> None:
        seen.append(group.parked_revision)
        if len(seen) < 3:
            await other.update(ask)
            mine.forget()

    await mine.update(ask, before=ask_meanwhile)
    assert seen == [0, 1, 2]
    assert mine.group.parked_revision == 3


async def test_what_is_forgotten_during_an_update_is_looked_at_the_next_time(new_membership: NewMembership) -> None:
    mine = new_membership()
    looks = []

    async def look(group: Group) -> None:
        looks.append(group.parked_revision)
        if len(looks) == 1:
            mine.forget()

    for _ in range(3):
        await mine.update(lambda group: (), before=look)
    assert looks == [0, 0]


async def test_what_could_not_be_looked_at_is_looked_at_the_next_time(new_membership: NewMembership) -> None:
    mine = new_membership()
    looks = []

    async def fail_once(group: Group) -> None:
        looks.append(group.parked_revision)
        if len(looks) == 1:
            raise OSError("it cannot be looked at")

    with pytest.raises(OSError, match="look"):
        await mine.update(ask, before=fail_once)
    await mine.update(ask, before=fail_once)
    assert (looks, mine.group.parked_revision) == ([0, 0], 1)
