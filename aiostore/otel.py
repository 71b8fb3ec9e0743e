"""OpenTelemetry: spans, metrics and trace context for what a store does, by the conventions for messaging.

https://opentelemetry.io/docs/specs/semconv/messaging/ (of v1.27 and later)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from opentelemetry.context import Context
from opentelemetry.metrics import MeterProvider, get_meter
from opentelemetry.trace import (
    Link,
    Span,
    SpanKind,
    Status,
    StatusCode,
    TracerProvider,
    get_current_span,
    get_tracer,
    use_span,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from aiostore.context import CORRELATION_ID
from aiostore.events import Event

SCHEMA_URL = "https://opentelemetry.io/schemas/1.27.0"
_DURATION_BOUNDARIES_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
LINKS_MAX = 128
"""So many events of a batch are linked to; more, a span does not keep."""

_SYSTEM = {"messaging.system": "aiostore"}
_SEND = {**_SYSTEM, "messaging.operation.name": "send", "messaging.operation.type": "send"}
_PROCESS = {**_SYSTEM, "messaging.operation.name": "process", "messaging.operation.type": "process"}


class _Sending:
    """An append under way, and its span."""

    def __init__(self, span: Span, metadata: Mapping[str, str], *, batch: bool) -> None:
        self.metadata = metadata
        self.sent_count = 0
        self._span = span
        self._batch = batch

    def sent(self, events: Sequence[Event]) -> None:
        self.sent_count = len(events)
        if self._batch:
            self._span.set_attribute("messaging.batch.message_count", len(events))
        elif events:
            self._span.set_attribute("messaging.message.id", str(events[0].event_id))


class OpenTelemetry:
    """Tells OpenTelemetry of a store's work; for `EventStore`'s ``tracing``. Needs the extra ``otel``.

    Each append is a span ``send <stream>`` (``send streams`` for several), kind PRODUCER; its context goes into the
    events' metadata as W3C ``traceparent`` and ``tracestate``, unless the caller gave these. Each call of a consumer's
    handler, or of a listener that has a name, is a span ``process <name>``, kind CONSUMER, that continues the trace of
    the event in hand; where several are, it is linked to theirs.

    Metrics: ``messaging.client.sent.messages`` (of appends that succeeded), ``messaging.client.operation.duration``,
    ``messaging.client.consumed.messages``, ``messaging.process.duration``. They have no stream among their attributes:
    there are too many. ``error.type`` is the name of the error's class.

    ``tracer_provider``, ``meter_provider``: None for those that the program has set for all.
    """

    def __init__(
        self, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
    ) -> None:
        self._tracer = get_tracer("aiostore", tracer_provider=tracer_provider, schema_url=SCHEMA_URL)
        meter = get_meter("aiostore", meter_provider=meter_provider, schema_url=SCHEMA_URL)
        self._propagator = TraceContextTextMapPropagator()
        self._sent = meter.create_counter("messaging.client.sent.messages", "{message}", "Events appended.")
        self._consumed = meter.create_counter("messaging.client.consumed.messages", "{message}", "Events handled.")
        self._operation_duration = meter.create_histogram(
            "messaging.client.operation.duration",
            "s",
            "How long appends took.",
            explicit_bucket_boundaries_advisory=_DURATION_BOUNDARIES_S,
        )
        self._process_duration = meter.create_histogram(
            "messaging.process.duration",
            "s",
            "How long handlers took.",
            explicit_bucket_boundaries_advisory=_DURATION_BOUNDARIES_S,
        )

    @contextmanager
    def send(self, destination: str, *, batch: bool) -> Iterator[_Sending]:
        """The span of an append, as the current one."""
        span = self._tracer.start_span(
            f"send {destination}",
            kind=SpanKind.PRODUCER,
            attributes={**_SEND, "messaging.destination.name": destination},
        )
        started, told = perf_counter(), dict[str, Any](_SEND)
        with use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            metadata: dict[str, str] = {}
            self._propagator.inject(metadata)
            sending = _Sending(span, metadata, batch=batch)
            try:
                yield sending
            except BaseException as error:
                _failed(span, told, error)
                raise
            finally:
                self._operation_duration.record(perf_counter() - started, told)
                if sending.sent_count:
                    self._sent.add(sending.sent_count, told)

    @contextmanager
    def process(self, name: str, events: Event | Sequence[Event]) -> Iterator[Span]:
        """The span of a handler's call, as the current one."""
        some = [events] if isinstance(events, Event) else events
        told: dict[str, Any] = {**_PROCESS, "messaging.consumer.group.name": name}
        about, parent, links = dict(told), None, list[Link]()
        if len(some) == 1:
            metadata = some[0]._decode_metadata()
            parent = self._context_of(metadata)
            about["messaging.destination.name"] = some[0].stream_id
            about["messaging.message.id"] = str(some[0].event_id)
            if isinstance(metadata.get(CORRELATION_ID), str):
                about["messaging.message.conversation_id"] = metadata[CORRELATION_ID]
        else:
            about["messaging.batch.message_count"] = len(some)
            links = self._links(some)
        span = self._tracer.start_span(
            f"process {name}", context=parent, kind=SpanKind.CONSUMER, attributes=about, links=links
        )
        started = perf_counter()
        with use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            try:
                yield span
            except BaseException as error:
                _failed(span, told, error)
                raise
            finally:
                self._process_duration.record(perf_counter() - started, told)
                self._consumed.add(len(some), told)

    def _context_of(self, metadata: Mapping[str, Any]) -> Context | None:
        """The context that an event was appended in; None if it says nothing of it."""
        carrier = {key: metadata[key] for key in ("traceparent", "tracestate") if isinstance(metadata.get(key), str)}
        context = self._propagator.extract(carrier, Context())
        return context if get_current_span(context).get_span_context().is_valid else None

    def _links(self, events: Sequence[Event]) -> list[Link]:
        links: dict[tuple[int, int], Link] = {}
        for event in events[:LINKS_MAX]:
            context = self._context_of(event._decode_metadata())
            if context is not None:
                of = get_current_span(context).get_span_context()
                links.setdefault((of.trace_id, of.span_id), Link(of))
        return list(links.values())


def _failed(span: Span, told: dict[str, Any], error: BaseException) -> None:
    told["error.type"] = type(error).__qualname__
    span.set_attribute("error.type", type(error).__qualname__)
    span.set_status(Status(StatusCode.ERROR, str(error)))
    span.record_exception(error)
