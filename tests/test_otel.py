"""OpenTelemetry: spans, metrics, and traces that go on where events are handled."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, NumberDataPoint
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags, TraceState, use_span

from aiostore import ConcurrencyConflict, Event, EventStore, InvalidEvent, StreamAppend, correlate
from aiostore.otel import OpenTelemetry


class Observed:
    """What was told to the SDK."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._reader = InMemoryMetricReader()
        self.meters = MeterProvider([self._reader])
        self.tracing = OpenTelemetry(self.tracers, self.meters)

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def span(self, name: str) -> ReadableSpan:
        (span,) = [span for span in self.spans if span.name == name]
        return span

    def metric(self, name: str) -> list[tuple[dict[str, Any], int]]:
        """Each set of attributes, without those that all have, and the sum or the count of it."""
        data = self._reader.get_metrics_data()
        found: list[tuple[dict[str, Any], int]] = []
        for scope in data.resource_metrics[0].scope_metrics if data else ():
            for metric in scope.metrics:
                if metric.name == name:
                    for point in metric.data.data_points:
                        attributes = dict(point.attributes or {})
                        assert attributes.pop("messaging.system") == "aiostore"
                        assert attributes.pop("messaging.operation.type") == attributes["messaging.operation.name"]
                        if isinstance(point, HistogramDataPoint):
                            assert point.explicit_bounds[-1] == 10
                            found.append((attributes, point.count))
                        elif isinstance(point, NumberDataPoint):
                            found.append((attributes, int(point.value)))
        return found


@pytest.fixture
def observed() -> Observed:
    return Observed()


@pytest.fixture
async def store(observed: Observed) -> AsyncIterator[EventStore]:
    async with EventStore(tracing=observed.tracing) as store:
        yield store


def traceparent(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags:02x}"


async def test_an_append_is_a_span_that_its_event_carries(observed: Observed, store: EventStore) -> None:
    event = await store.append("order-1", "T", {}, metadata={"by": "me"})
    span = observed.span("send order-1")
    assert span.kind is SpanKind.PRODUCER
    assert dict(span.attributes or {}) == {
        "messaging.system": "aiostore",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "order-1",
        "messaging.message.id": "1",
    }
    assert event.metadata == {"traceparent": traceparent(span), "by": "me"}
    assert observed.metric("messaging.client.sent.messages") == [({"messaging.operation.name": "send"}, 1)]
    assert observed.metric("messaging.client.operation.duration") == [({"messaging.operation.name": "send"}, 1)]


async def test_batches_are_one_span(observed: Observed, store: EventStore) -> None:
    events = await store.append_batch("order-1", [("T", {}), ("T", {})])
    more = await store.append_streams([StreamAppend("a", [("T", {})]), StreamAppend("b", [("T", {})] * 2)])
    for name, appended in (("send order-1", events), ("send streams", more)):
        span = observed.span(name)
        assert span.attributes is not None
        assert span.attributes["messaging.batch.message_count"] == len(appended)
        assert {event.metadata["traceparent"] for event in appended} == {traceparent(span)}
    assert observed.metric("messaging.client.sent.messages") == [({"messaging.operation.name": "send"}, 5)]


async def test_an_append_belongs_to_the_trace_it_is_made_in(observed: Observed, store: EventStore) -> None:
    state = TraceState([("vendor", "x")])
    outer = SpanContext(7, 8, is_remote=False, trace_flags=TraceFlags(1), trace_state=state)
    with use_span(NonRecordingSpan(outer)):
        event = await store.append("a", "T", {})
    span = observed.span("send a")
    assert span.parent is not None
    assert (span.parent.trace_id, span.parent.span_id) == (7, 8)
    assert event.metadata == {"traceparent": traceparent(span), "tracestate": "vendor=x"}


async def test_what_the_caller_says_stands(observed: Observed, store: EventStore) -> None:
    event = await store.append("a", "T", {}, metadata={"traceparent": "mine"})
    assert event.metadata == {"traceparent": "mine"}
    with observed.tracing.process("mail", event):
        pass  # what is no context is as none
    assert observed.span("process mail").parent is None


async def test_an_append_that_fails_says_so(observed: Observed, store: EventStore) -> None:
    with pytest.raises(InvalidEvent):
        await store.append("a", "T", {"n": float("nan")})
    with pytest.raises(ConcurrencyConflict):
        await store.append("b", "T", {}, expected_version=7)
    for name, error in (("send a", "InvalidEvent"), ("send b", "ConcurrencyConflict")):
        span = observed.span(name)
        assert span.attributes is not None
        assert span.attributes["error.type"] == error
        assert span.status.status_code is StatusCode.ERROR
        assert [event.name for event in span.events] == ["exception"]
    assert observed.metric("messaging.client.sent.messages") == []
    failed = [attributes["error.type"] for attributes, _ in observed.metric("messaging.client.operation.duration")]
    assert failed == ["InvalidEvent", "ConcurrencyConflict"]


async def test_a_cancelled_append_ends_its_span(observed: Observed, store: EventStore) -> None:
    appending = asyncio.ensure_future(store.append("a", "T", {}))
    await asyncio.sleep(0)
    appending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await appending
    assert (observed.span("send a").attributes or {})["error.type"] == "CancelledError"


async def test_a_repeat_in_another_trace_is_a_repeat(observed: Observed, store: EventStore) -> None:
    first = await store.append("a", "T", {}, idempotency_key="k")
    again = await store.append("a", "T", {}, idempotency_key="k")
    assert again == first
    assert len(observed.spans) == 2


async def test_the_handling_of_an_event_goes_on_in_its_trace(observed: Observed, store: EventStore) -> None:
    with correlate("req-7"):
        event = await store.append("order-1", "T", {})
    with observed.tracing.process("mail", event):
        answer = await store.append("mails", "Sent", {})
    sent, processed, answered = (observed.span(name) for name in ("send order-1", "process mail", "send mails"))
    assert processed.kind is SpanKind.CONSUMER
    assert processed.parent is not None
    assert answered.parent is not None
    assert sent.context is not None
    assert processed.context is not None
    assert processed.parent.span_id == sent.context.span_id
    assert answered.parent.span_id == processed.context.span_id
    assert {span.context.trace_id for span in observed.spans if span.context} == {sent.context.trace_id}
    assert answer.metadata["traceparent"] == traceparent(answered)
    assert dict(processed.attributes or {}) == {
        "messaging.system": "aiostore",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.consumer.group.name": "mail",
        "messaging.destination.name": "order-1",
        "messaging.message.id": "1",
        "messaging.message.conversation_id": "req-7",
    }
    of_group = {"messaging.operation.name": "process", "messaging.consumer.group.name": "mail"}
    assert observed.metric("messaging.process.duration") == [(of_group, 1)]
    assert observed.metric("messaging.client.consumed.messages") == [(of_group, 1)]


async def test_several_events_are_linked_to(observed: Observed, store: EventStore) -> None:
    events = await store.append_batch("a", [("T", {}), ("T", {})])
    events.append(await store.append("b", "T", {}))
    with observed.tracing.process("mail", events):
        pass
    span = observed.span("process mail")
    assert span.parent is None
    sent = [observed.span(name).context for name in ("send a", "send b")]
    assert [link.context.span_id for link in span.links] == [context.span_id for context in sent if context]
    assert (span.attributes or {})["messaging.batch.message_count"] == 3


async def test_a_handler_that_raises_says_so(observed: Observed, store: EventStore) -> None:
    event = await store.append("a", "T", {})
    with pytest.raises(LookupError), observed.tracing.process("mail", event):
        raise LookupError("no address")
    span = observed.span("process mail")
    assert (span.attributes or {})["error.type"] == "LookupError"
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "no address")


async def test_a_listener_with_a_name_is_told_of(observed: Observed, store: EventStore) -> None:
    async def answer(events: list[Event]) -> None:
        if events[0].stream_id == "asked":
            await store.append("answers", "A", {})

    async def quiet(events: list[Event]) -> None:
        pass

    listener = store.on_commit(answer, name="mail")
    store.on_commit(quiet)
    assert "mail" in repr(listener)
    await store.append("asked", "T", {})
    await store.append("other", "T", {})
    processed = [span for span in observed.spans if span.name == "process mail"]
    assert [(span.attributes or {})["messaging.destination.name"] for span in processed][:1] == ["asked"]
    (answered,) = await store.read_stream("answers").to_list()
    span = observed.span("send answers")
    assert answered.metadata == {"correlation_id": "1", "causation_id": 1, "traceparent": traceparent(span)}
    assert span.parent is not None
    assert processed[0].context is not None
    assert span.parent.span_id == processed[0].context.span_id


async def test_without_a_trace_nothing_is_carried() -> None:
    async with EventStore(tracing=OpenTelemetry()) as store:  # nobody has set a provider
        assert (await store.append("a", "T", {})).metadata == {}
    tracing = OpenTelemetry(TracerProvider(sampler=ALWAYS_OFF))
    async with EventStore(tracing=tracing) as store:  # not recorded, and known as such downstream
        _, _, _, flags = (await store.append("a", "T", {})).metadata["traceparent"].split("-")
        assert not int(flags, 16) & TraceFlags.SAMPLED


def test_the_core_does_not_import_it() -> None:
    code = "import sys, aiostore; assert 'opentelemetry' not in sys.modules; assert 'pydantic' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
