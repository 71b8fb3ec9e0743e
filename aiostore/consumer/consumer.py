"""The consumer: what an application holds. It reads, has events handled, and records how far it came."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Literal, Self

from anyio.abc import AsyncResource

from aiostore.consumer.delivery import ConsumerStatistics, Delivery, Retry
from aiostore.consumer.group import PARTITIONS
from aiostore.consumer.lanes import Lane
from aiostore.consumer.membership import Membership
from aiostore.consumer.parked import Parked, ParkedRows, Row, row_error
from aiostore.consumer.parking import Parking
from aiostore.consumer.work import PASSING, Work
from aiostore.context import handling
from aiostore.drafts import check_name, check_stream_id
from aiostore.errors import ConsumerHalted, Fenced
from aiostore.events import Event, Position, untouched
from aiostore.finishing import finished
from aiostore.limits import NAME_BYTES_MAX, check_bound, check_number, check_seconds
from aiostore.query import Query
from aiostore.reader import check_query
from aiostore.states import states_of
from aiostore.store import EventStore
from aiostore.subscription import RETRY_S
from aiostore.tracing import UNTRACED

logger = logging.getLogger("aiostore")

TURN_EVENTS = 200
"""After so many events, the next stream has its turn, and other tasks."""

PARKED_STREAMS_MAX = 10_000
"""So many streams of its share may be parked; then it halts."""

EventHandler = Callable[[Event], Awaitable[object] | object]
"""``handler(event)``, plain or async; what it returns is not looked at."""


class Consumer(AsyncResource, AsyncIterator[Delivery]):
    """Has every event handled at least once, those of one stream one at a time and in order, different ones at once.

    ``name``: of the group, 1 to 200 bytes. What was handled is kept under it: another start of the same name goes on
    there. Several consumers of one name, in one process or (on PostgreSQL) in many, share the streams; what one has
    that dies, the others get after ``lease_s`` seconds, and if it comes back to life, it records nothing more and joins
    anew. ``handler(event)``, plain or async; without one, iterate over the consumer. ``query``: only these events; one
    that is changed later holds for what comes from then on, and for what is parked. ``concurrency``: so many events are
    handled at once. ``order_by``: ``"stream"``, or a function of an event that gives a text of 1 to 1,024 bytes, such
    as ``lambda event: event.tags[0]``: what is kept in order, and what is parked; what it raises ends the consumer.
    ``after``: where the group begins the first time, not beyond the head; `END` for the head.

    What a handler raises is retried as ``retry`` says. Then, ``on_error="halt"``: the consumer finishes what is in hand
    and ends with `ConsumerHalted`; that event is the first to come at the next start. ``"park"``: the event *and all
    later ones of its stream* are set aside, in order, while the others go on: see `parked`, `retry_parked`,
    `skip_parked`.

    What was handled is recorded every ``checkpoint_every_s`` seconds, at least four times in ``lease_s``, and at its
    end: after a crash, what was handled since comes again. ``window_events``: at most so many events, and one batch of
    up to 500 more, lie between the first that is not handled and the last that is; then it waits for the slow one.
    ``state``: a file of its own for all of this, where the store was opened with ``mode="r"``.

    `run` runs it until `stop`; ``async with consumer:`` runs it in the background, and raises at its end what it ended
    with. To iterate without that block starts it too; then `stop` it. It belongs to the loop of its store.
    """

    def __init__(
        self,
        store: EventStore,
        name: str,
        handler: EventHandler | None = None,
        *,
        query: Query | None = None,
        concurrency: int = 16,
        order_by: Literal["stream"] | Callable[[Event], str] = "stream",
        retry: Retry | None = None,
        on_error: Literal["halt", "park"] = "halt",
        after: int | Position = 0,
        state: str | os.PathLike[str] | None = None,
        lease_s: float = 10.0,
        checkpoint_every_s: float = 1.0,
        window_events: int = 4096,
    ) -> None:
        if not isinstance(store, EventStore):
            raise TypeError(f"a consumer is of an EventStore, not {store!r}")
        if handler is not None and not callable(handler):
            raise TypeError(f"handler must be callable, not {handler!r}")
        if order_by != "stream" and not callable(order_by):
            raise TypeError(f"order_by must be 'stream' or a function of an event, not {order_by!r}")
        if on_error not in ("halt", "park"):
            raise ValueError(f"on_error must be 'halt' or 'park', not {on_error!r}")
        if retry is not None and not isinstance(retry, Retry):
            raise TypeError(f"retry must be a Retry, not {retry!r}")
        self._store = store
        self._name = check_name(name, "name", NAME_BYTES_MAX)
        self._handler = handler
        self._query = check_query(query)
        self._concurrency = check_number("concurrency", concurrency, 1)
        self._order_by = None if order_by == "stream" else _checked(order_by)
        self._retry = retry or Retry()
        self._parks = on_error == "park"
        self._after = after if isinstance(after, Position) else check_number("after", after, 0)
        self._state = state
        self._lease_s = check_seconds("lease_s", lease_s)
        self._checkpoint_every_s = check_seconds("checkpoint_every_s", checkpoint_every_s)
        self._window_events = check_number("window_events", window_events, 1)
        self._main: asyncio.Task[None] | None = None
        self._joined: asyncio.Future[None]
        self._stopping = asyncio.Event()
        self._work: Work | None = None
        self._deliveries: set[Delivery] = set()
        self._free = asyncio.Semaphore(self._concurrency)
        self._handled_count = 0
        self._turn_count = 0
        self._retried_count = 0

    @property
    def name(self) -> str:
        """The name of its group."""
        return self._name

    # --- running ---

    async def run(self) -> None:
        """Run until `stop`. Raises `ConsumerHalted`, `StoreClosed`, `StoreCorrupt`, and what keeps it from starting.

        Cancelled, it cancels the handlers in hand, records what was handled, leaves its group, and is cancelled.
        """
        if self._handler is None:
            raise RuntimeError("a consumer without a handler is iterated over: async for delivery in consumer")
        main = self._start()
        try:
            await asyncio.shield(main)
        except asyncio.CancelledError:
            if main.cancelled() and self._stopping.is_set():  # `stop` has waited long enough
                task = asyncio.current_task()
                if task is not None and not task.cancelling():
                    return
            main.cancel()
            await finished(asyncio.wait([main]))
            raise

    def _start(self) -> asyncio.Task[None]:
        self._store._parts()
        if self._main is not None and not self._main.done():
            raise RuntimeError(f"consumer {self._name!r} runs already")
        self._stopping.clear()
        self._work = None
        loop = asyncio.get_running_loop()
        joined = self._joined = loop.create_future()

        def ended(main: asyncio.Task[None]) -> None:
            if not main.cancelled():
                main.exception()  # whoever asks gets it: run(), "async with", wait_idle(), error
            if not joined.done():
                joined.set_result(None)

        self._main = loop.create_task(self._run(joined), name=f"consumer {self._name!r}")
        self._main.add_done_callback(ended)
        return self._main

    async def _run(self, joined: asyncio.Future[None]) -> None:
        _, fanout = self._store._parts()
        after = fanout.head if isinstance(self._after, Position) else self._after

        def has_joined() -> None:
            self._work = work
            if not joined.done():
                joined.set_result(None)

        while not self._stopping.is_set():
            work = Work(
                self._store,
                self._name,
                *self._kept(after),
                query=self._query,
                order_by=self._order_by,
                checkpoint_every_s=self._checkpoint_every_s,
                window_events=self._window_events,
            )
            count = 0 if self._handler is None else self._concurrency
            try:
                await work.run(self._stopping, functools.partial(self._handle_all, work), count, has_joined)
            except Fenced:
                logger.warning(
                    "a worker of consumer %r was taken for dead and its share given to others, it joins again: the "
                    "loop was blocked for longer than lease_s=%g, or its state could not be reached",
                    self._name,
                    self._lease_s,
                )
                while work.lanes.busy_count:  # deliveries: none of their streams may come again before
                    await work.news()
            except PASSING as error:
                if self._work in (None, work):
                    raise
                logger.warning("consumer %r cannot join again now, it is tried again: %s", self._name, error)
                await asyncio.sleep(RETRY_S)

    def _kept(self, after: int) -> tuple[Membership, ParkedRows]:
        """What is kept of the group, which begins behind ``after`` where nothing is: its record, and what is parked."""
        engine, fanout = self._store._parts()
        states = states_of(engine, self._state, "a consumer")
        membership = Membership(
            states,
            self._name,
            home=fanout.opening,
            alone=not engine.shared and self._state is None,
            lease_s=self._lease_s,
            after=after,
        )
        return membership, ParkedRows(states, self._name)

    # --- handling ---

    async def _handle_all(self, work: Work) -> None:
        """Handle what there is to do, lane by lane; ``concurrency`` of these run at once."""
        lanes, handler = work.lanes, self._traced()
        is_async = inspect.iscoroutinefunction(handler)
        lane: Lane | None = None
        count = 0  # of events of this lane, one after another
        try:
            while True:
                if lane is None:
                    lane, count = lanes.begin() or await lanes.next_lane(), 0
                    if lane is None:
                        return
                event = lane.events[0]
                handling(event)
                try:
                    result: Any = handler(event)
                    if is_async or hasattr(result, "__await__"):
                        await result
                except asyncio.CancelledError as error:
                    task = asyncio.current_task()
                    if task is None or task.cancelling():
                        raise
                    self._failed(work, lane, event, error)  # something that the handler awaits was cancelled
                except Exception as error:
                    self._failed(work, lane, event, error)
                else:
                    self._handled_count += 1
                    self._turn_count += 1
                    count += 1
                    if self._turn_count < TURN_EVENTS:
                        before, lane = lane, lanes.go_on(lane, event, stays=count < TURN_EVENTS)
                        if lane is not before:
                            count = 0
                        continue
                    lanes.done(lane, event)
                lanes.give_back(lane)
                lane = None
                if self._turn_count >= TURN_EVENTS:
                    self._turn_count = 0
                    await asyncio.sleep(0)  # handlers that never wait must not keep the loop to themselves
        finally:
            if lane is not None:
                lanes.give_back(lane)

    def _traced(self) -> EventHandler:
        """The handler, in a span of its own for each event where the store is traced."""
        handler, tracing, name = self._handler, self._store._tracing, self._name
        assert handler is not None
        if tracing is UNTRACED:
            return handler

        async def traced(event: Event) -> None:
            with tracing.process(name, event):
                result: Any = handler(event)
                if hasattr(result, "__await__"):
                    await result

        return traced

    def _failed(self, work: Work, lane: Lane, event: Event, error: BaseException) -> None:
        """An attempt has failed: wait, park or halt."""
        lanes = work.lanes
        self._retried_count += 1
        if lane.parked is not None and event.event_id in lane.parked.row.skipped:  # asked for meanwhile
            lanes.done(lane, event)
            return
        lane.attempts_count += 1
        attempts, where = lane.attempts_count, f"event {event.event_id} of stream {event.stream_id!r}"
        if attempts < self._retry.attempts:
            wait_s = self._retry.wait_s(attempts)
            logger.warning(
                "consumer %r: attempt %d of %d with %s failed, the next one in %.1f s: %s",
                *(self._name, attempts, self._retry.attempts, where, wait_s, row_error(error)),
            )
            lane.events[0] = untouched(event)
            lanes.wait(lane, wait_s)
        elif lane.parked is None and not (self._parks and len(lanes.parked) < PARKED_STREAMS_MAX):
            halted = ConsumerHalted(self._name, event.event_id, event.stream_id, attempts, row_error(error))
            halted.__cause__ = error
            work.halt(halted)
        else:
            logger.error("consumer %r parks %s, and what comes behind it", self._name, where, exc_info=error)
            skipped = [] if lane.parked is None else lane.parked.row.skipped
            lanes.park(lane, Row(event.event_id, event.version, row_error(error), attempts, skipped=skipped))

    async def __anext__(self) -> Delivery:
        if self._handler is not None:
            raise RuntimeError("a consumer with a handler is run: await consumer.run(), or async with consumer")
        if self._main is None:
            self._start()
        await self._free.acquire()
        try:
            lane, work = await self._next_lane()
        except BaseException:
            self._free.release()
            raise
        ended = functools.partial(self._delivered, lane, work)
        span = self._store._tracing.process(self._name, lane.events[0])
        delivery = Delivery(lane.events[0], lane.attempts_count + 1, span, ended)
        self._deliveries.add(delivery)
        return delivery

    async def _next_lane(self) -> tuple[Lane, Work]:
        while self._main is not None and not self._main.done():
            await asyncio.shield(self._joined)
            work = self._work
            lane = None if work is None else await work.lanes.next_lane()
            if lane is not None and work is not None:
                return lane, work
            if self._stopping.is_set() or (work is not None and work.failure is not None):
                break
            await asyncio.sleep(0.01)  # it joins again
        if self._main is not None and not self._stopping.is_set():
            await asyncio.shield(self._main)
        raise StopAsyncIteration

    def _delivered(self, lane: Lane, work: Work, delivery: Delivery, error: BaseException | None) -> None:
        self._deliveries.discard(delivery)
        self._free.release()
        if error is None:
            self._handled_count += 1
            work.lanes.done(lane, delivery.event)
        elif isinstance(error, Exception):
            self._failed(work, lane, delivery.event, error)
        else:
            lane.events[0] = untouched(delivery.event)
        work.lanes.give_back(lane)

    # --- its end ---

    async def stop(self, *, timeout_s: float | None = None) -> None:
        """Finish what is in hand, record how far it came, leave the group, and end; returns when that is done.

        What takes longer than ``timeout_s`` is cancelled. From any task, again and at once. Called by a handler (or in
        the block of a delivery), it returns at once, and the consumer ends behind it.
        """
        self._stopping.set()
        if self._work is not None:
            self._work.lanes.close()
        main, task = self._main, asyncio.current_task()
        if main is None or (self._work is not None and self._work.has(task)):
            return
        if any(delivery.task is task for delivery in self._deliveries):
            return
        for delivery in list(self._deliveries):
            delivery.abandon()
        done, _ = await asyncio.wait([main], timeout=timeout_s)
        if not done:
            main.cancel()
            await finished(asyncio.wait([main]))

    async def aclose(self) -> None:
        """The same as `stop`."""
        await self.stop()

    async def __aenter__(self) -> Self:
        main = self._start()
        try:
            await asyncio.shield(self._joined)
        except asyncio.CancelledError:
            main.cancel()
            await finished(asyncio.wait([main]))
            raise
        if main.done():
            main.result()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()
        if error is None:
            self._raise_if_ended()

    def _raise_if_ended(self) -> None:
        if self._main is not None and self._main.done() and not self._main.cancelled():
            self._main.result()

    @property
    def error(self) -> BaseException | None:
        """What it ended with, such as `ConsumerHalted`; None while it runs, and after `stop`."""
        main = self._main
        return main.exception() if main is not None and main.done() and not main.cancelled() else None

    async def wait_idle(self) -> None:
        """Return when all events up to the head as of now are handled or parked, by the whole group, and this is kept.

        Parked streams that were asked to be retried count, too. Raises what the consumer ended with, RuntimeError
        where it does not run.
        """
        target = await self._store.head()
        while self._main is not None and not self._main.done():
            waiting = asyncio.ensure_future(self._wait_for_news(target))
            try:
                await asyncio.wait([self._main, waiting], return_when=asyncio.FIRST_COMPLETED)
                if waiting.done() and waiting.result():
                    return
            finally:
                waiting.cancel()
        self._raise_if_ended()
        raise RuntimeError(f"consumer {self._name!r} does not run")

    async def _wait_for_news(self, target: int) -> bool:
        """Whether it is idle; if not, after a while."""
        await asyncio.shield(self._joined)
        work = self._work
        if work is None:  # it has ended before it joined
            return False
        if await work.is_idle(target):
            return True
        await work.news()
        return False

    # --- what is parked ---

    async def parked(self, *, limit: int | None = None) -> list[Parked]:
        """What is parked, stream by stream, in order: the event that failed, and all that wait behind it.

        At most ``limit`` events. Also while it does not run, or another worker of the group has the stream.
        """
        return await self._parking().parked(check_bound("limit", limit))

    async def retry_parked(self, stream_id: str | None = None) -> int:
        """Have what is parked of a stream, or of all, handled again, in order; returns of how many streams.

        Whichever worker has a stream does it, now or when one is started; where the handler fails again, the stream is
        parked there. Until all of it is handled, what comes is parked behind it. With ``order_by`` a function,
        ``stream_id`` is the text that it gives.
        """
        return await self._parking().retry(stream_id)

    async def skip_parked(self, event_id: int) -> None:
        """Pass a parked event over, for good; where its stream waits for it, the stream is tried again behind it.

        LookupError if it is not parked.
        """
        await self._parking().skip(check_number("event_id", event_id, 1))

    def _parking(self) -> Parking:
        wake = None if self._work is None else self._work.look
        return Parking(self._store, *self._kept(0), self._query, self._order_by, wake)

    # --- how it is doing ---

    def stats(self) -> ConsumerStatistics:
        """How it is doing, as of now."""
        work = self._work
        running = self._main is not None and not self._main.done()
        lanes = work.lanes if work is not None and running else None
        return ConsumerStatistics(
            lag=work.lag if work is not None and lanes and lanes.shares else 0,
            in_hand_count=lanes.busy_count if lanes else 0,
            queued_count=lanes.queued_count if lanes else 0,
            handled_count=self._handled_count,
            retried_count=self._retried_count,
            parked_count=len(lanes.parked) if lanes else 0,
            share=len(lanes.shares) / PARTITIONS if lanes else 0.0,
            is_running=running,
        )

    def __repr__(self) -> str:
        stats = self.stats()
        state = "running" if stats.is_running else "not running"
        return (
            f"<Consumer {self._name!r} {state} lag={stats.lag} in_hand={stats.in_hand_count} "
            f"handled={stats.handled_count} retried={stats.retried_count} parked={stats.parked_count}>"
        )


def _checked(order_by: Callable[[Event], str]) -> Callable[[Event], str]:
    """The function, whose texts are checked as the names of streams are: rows are kept under them."""

    def key_of(event: Event) -> str:
        try:
            return check_stream_id(order_by(event), "order_by")
        except Exception as error:
            error.add_note(f"order_by was called with event {event.event_id} of stream {event.stream_id!r}")
            raise

    return key_of
