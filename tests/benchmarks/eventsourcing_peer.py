"""The library `eventsourcing`: its recorder on SQLite, in memory or on PostgreSQL, and an application as it documents.

Its recorder is what its event store ends in, without aggregates and their mapping: the fastest that it has. On SQLite
it sets WAL and leaves ``synchronous`` as SQLite has it, which is FULL: one sync for each transaction.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import ApplicationRecorder, InfrastructureFactory, StoredEvent
from eventsourcing.utils import Environment

from .peers import decode, encode


class EventsourcingStore:
    """The recorder of `eventsourcing`, as its documentation has it made; for threads. Callers know the versions."""

    def __init__(self, recorder: ApplicationRecorder) -> None:
        self._recorder = recorder
        self._versions: dict[str, int] = {}

    @classmethod
    @contextmanager
    def open(cls, environment: Mapping[str, str]) -> Iterator[Self]:
        """The store that the environment names."""
        factory: InfrastructureFactory[Any] = InfrastructureFactory.construct(Environment("bench", environment))
        try:
            yield cls(factory.application_recorder())
        finally:
            factory.close()

    @classmethod
    @contextmanager
    def open_sqlite(cls, directory: Path) -> Iterator[Self]:
        """The store of a directory, in SQLite."""
        path = str(directory / "events.db")
        with cls.open({"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": path}) as store:
            yield store

    def append(self, stream_id: str, event_type: str, data: Any) -> None:
        """One event, in a transaction of its own."""
        self.append_batch(stream_id, [(event_type, data)])

    def append_batch(self, stream_id: str, events: Sequence[tuple[str, Any]]) -> None:
        """Many events of one stream in one transaction."""
        originator_id = uuid.uuid5(uuid.NAMESPACE_URL, stream_id)
        version = self._versions.get(stream_id, 0)
        stored = [
            StoredEvent(originator_id, number, event_type, encode(data))
            for number, (event_type, data) in enumerate(events, version + 1)
        ]
        self._recorder.insert_events(stored)
        self._versions[stream_id] = version + len(events)

    def read_all(self, size: int) -> Iterator[Any]:
        """All events in order, their data decoded, by pages of so many."""
        start: int | None = None
        while page := self._recorder.select_notifications(start, size, inclusive_of_start=False):
            start = page[-1].id
            for notification in page:
                yield decode(notification.state)


class Order(Aggregate):
    """What changes with each event."""

    def __init__(self) -> None:
        self.quantity = 0

    @event("Placed")
    def place(
        self,
        order: str,
        customer: dict[str, str],
        item: str,
        quantity: int,
        price: float,
        express: bool,
        paid: bool,
    ) -> None:
        """The payload, as an event of the aggregate."""
        self.quantity += quantity


class Orders(Application[uuid.UUID]):
    """An application in memory, as it comes; the aggregates are kept at hand, so that none is rebuilt to be changed."""

    def __init__(self, orders_count: int) -> None:
        super().__init__()
        self._orders = [Order() for _ in range(orders_count)]
        self.save(*self._orders)

    def place(self, number: int, data: dict[str, Any]) -> None:
        """One event, saved."""
        order = self._orders[number % len(self._orders)]
        order.place(**data)
        self.save(order)
