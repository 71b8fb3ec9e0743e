"""Given–when–then: what a decider decides, without a store and without a loop."""

from __future__ import annotations

import re
from typing import Any, Generic, TypeVar

from aiostore.decider import Decider
from aiostore.testing.expectation import check_equal, shown, stored

C = TypeVar("C")
S = TypeVar("S")


def given(decider: Decider[C, S], *events: Any) -> Given[C, S]:
    """The decider after these events, for example ``given(account, ("Opened", {})).when(command).then(…)``.

    ``events``: as `EventStore.append_batch` takes them; `StreamAppend`, where it matters in which stream they stand;
    an `Event` of a store; or with ``decoded=True`` the typed objects themselves.
    """
    return Given(decider, events)


class Given(Generic[C, S]):
    """A decider, and the events that have happened."""

    def __init__(self, decider: Decider[C, S], events: tuple[Any, ...]) -> None:
        self._decider = decider
        self._events = stored(events)

    def _state(self) -> S:
        return self._decider.evolve(self._decider.initial(), self._events)

    def when(self, command: C) -> Outcome[S]:
        """What the command comes to; TypeError where ``decide`` waits for something: then use `when_async`."""
        deciding = self._decider.decide(command, self._state())
        try:
            deciding.send(None)
        except StopIteration as end:
            return Outcome(self._decider, self._events, end.value, None)
        except Exception as error:
            return Outcome(self._decider, self._events, [], error)
        deciding.close()
        raise TypeError("decide waits for something: use `(await given(…).when_async(command)).then(…)`")

    async def when_async(self, command: C) -> Outcome[S]:
        """What the command comes to, where ``decide`` is async."""
        try:
            decided = await self._decider.decide(command, self._state())
        except Exception as error:
            return Outcome(self._decider, self._events, [], error)
        return Outcome(self._decider, self._events, decided, None)


class Outcome(Generic[S]):
    """What a command came to. Each ``then…`` raises AssertionError with what came instead, or returns this."""

    def __init__(
        self, decider: Decider[Any, S], events: list[Any], decided: list[Any], error: Exception | None
    ) -> None:
        self._decider = decider
        self._events = events
        self._decided = decided
        self._error = error

    def then(self, *events: Any) -> Outcome[S]:
        """Just these events were decided, in this order: their streams, types, data, metadata and tags."""
        self._check_not_raised("events were")
        check_equal("other events were decided", shown(events), shown(self._decided))
        return self

    def then_nothing(self) -> Outcome[S]:
        """Nothing was decided, and nothing raised."""
        return self.then()

    def then_raises(self, error: type[Exception], *, match: str | None = None) -> Outcome[S]:
        """The command was refused with this error, whose text has a place that the regular expression matches."""
        if self._error is None:
            lines = "".join(f"\n+ {event!r}" for event in shown(self._decided)) or "\n+ nothing"
            raise AssertionError(f"{error.__name__} was to be raised, but this was decided:{lines}")
        if not isinstance(self._error, error):
            raise AssertionError(f"{error.__name__} was to be raised, but it was {self._error!r}") from self._error
        if match is not None and not re.search(match, str(self._error)):
            text = f"the error says {str(self._error)!r}, which {match!r} does not match"
            raise AssertionError(text) from self._error
        return self

    def then_state(self, state: S) -> Outcome[S]:
        """The state after the events that were decided, if any, is equal to this one."""
        self._check_not_raised("a state was")
        events = [*self._events, *stored(self._decided, self._events)]
        check_equal("the state is another", state, self._decider.evolve(self._decider.initial(), events))
        return self

    def _check_not_raised(self, what: str) -> None:
        if self._error is not None:
            raise AssertionError(f"{what} expected, but decide raised {self._error!r}") from self._error
