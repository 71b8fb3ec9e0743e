"""Turns: while groups are committed, those who read history get one page for each, all together.

Without them, a subscription that catches up would take most of the loop, and appends a third of their rate.
"""

from __future__ import annotations

from aiostore.inbox import Inbox

TURN_EVENTS = 128
"""So many events are read in one turn."""


class Turns:
    """Who waits to read on, in the order in which they came; each is woken once, or all when nothing is committed."""

    def __init__(self) -> None:
        self.busy = False
        """Whether a group is being committed, or will be: then who reads must wait for a turn."""
        self._waiting: dict[Inbox, None] = {}

    def begin(self) -> None:
        """Note that a group is being formed that nothing holds back."""
        self.busy = True

    def give(self) -> None:
        """Let the next one read, while a group is being written."""
        while self._waiting:
            inbox = next(iter(self._waiting))
            del self._waiting[inbox]
            if inbox.waiter is not None:  # it still waits
                inbox.wake()
                return

    def end(self) -> None:
        """Let all read: nothing is committed for now."""
        self.busy = False
        waiting, self._waiting = self._waiting, {}
        for inbox in waiting:
            inbox.wake()

    def enter(self, inbox: Inbox) -> None:
        """Have the inbox's reader woken in its turn."""
        self._waiting[inbox] = None

    def leave(self, inbox: Inbox) -> None:
        """It does not wait any more."""
        self._waiting.pop(inbox, None)
