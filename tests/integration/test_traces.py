"""OpenTelemetry traces: which spans there are, how they hang together, and that there is nothing where they are off."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import httpx
import psycopg
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from rowcast import Rowcast
from rowcast.errors import ConfigError, Unavailable
from rowcast.testing.local import LocalStream

SECRET = "0123456789abcdef0123456789abcdef"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
KEY = {"authorization": "Bearer k"}


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """OpenTelemetry has one provider in a process; nobody else here sets one."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Spans:
    exporter.clear()
    return Spans(exporter)


class Spans:
    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    def of(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    @property
    def names(self) -> list[str]:
        return sorted(span.name for span in self._exporter.get_finished_spans())


def made(**sections: Any) -> Rowcast:
    return Rowcast(auth=SECRET, api="k", **({"server": {"traces": True}} | sections))


def header(span: ReadableSpan) -> str:
    assert span.context is not None
    flags = span.context.trace_flags  # sampled, and in later versions "random" besides
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{flags:02x}"


def below(span: ReadableSpan, parent: str) -> bool:
    assert span.context is not None
    assert span.parent is not None
    return parent.startswith(f"00-{span.context.trace_id:032x}-{span.parent.span_id:016x}-")


async def test_a_call_its_publish_and_the_entry_hang_together(spans: Spans) -> None:
    cast = made()
    transport = httpx.ASGITransport(cast.asgi())
    async with cast.lifespan(), httpx.AsyncClient(transport=transport, base_url="http://x", headers=KEY) as client:
        streams = [LocalStream(cast, f"u{number}", ["t"]) for number in range(5)]
        for stream in streams:
            await stream.ready()
        sent = {"topic": "t", "data": "in the data"}
        answer = await client.post("/publish", json=sent, headers={"traceparent": PARENT})
        assert answer.status_code == 202
        for stream in streams:
            await stream.until(lambda: bool(stream.events()))  # noqa: B023  # awaited at once
        for path in ("/healthz", "/readyz", "/metrics"):
            await client.get(path)
        assert (await client.post("/publish", json={})).status_code == 400
    (call, refused), (publish,) = spans.of("POST /publish"), spans.of("rowcast.publish")
    # No span for a delivery, nor for what monitors ask.
    assert spans.names == ["POST /publish", "POST /publish", "rowcast.publish"]
    assert below(call, PARENT)
    assert below(publish, header(call))
    assert (call.kind, publish.kind) == (SpanKind.SERVER, SpanKind.PRODUCER)
    assert call.attributes is not None
    assert refused.attributes is not None
    assert call.attributes["http.response.status_code"] == 202
    assert (refused.attributes["http.response.status_code"], refused.parent) == (400, None)
    assert publish.attributes == {"rowcast.position": answer.json()["id"]}
    for stream in streams:
        assert stream.events() == [{"topic": "t", "data": "in the data", "metadata": {"traceparent": header(publish)}}]


async def test_a_publish_in_python_is_below_the_current_span(spans: Spans, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE items (id bigserial PRIMARY KEY, text text)")
    cast = made(postgres=database, route=[{"table": "items", "topic": "items"}])
    async with cast.lifespan():
        stream = LocalStream(cast, "ann", ["t", "items"])
        await stream.ready()
        with trace.get_tracer("the application").start_as_current_span("order") as order:
            await cast.publish("t", 1)
            context = order.get_span_context()

        def insert() -> None:
            with psycopg.connect(database, autocommit=True) as connection:
                connection.execute("INSERT INTO items (text) SELECT 'hidden' FROM generate_series(1, 3)")

        await asyncio.to_thread(insert)
        await stream.until(lambda: len(stream.events()) == 4)
        (publish,) = spans.of("rowcast.publish")
        assert below(publish, f"00-{context.trace_id:032x}-{context.span_id:016x}-01")
        # It went through the WAL, signed, and came back.
        assert stream.events()[0] == {"topic": "t", "data": 1, "metadata": {"traceparent": header(publish)}}
        captured = [dict(span.attributes or {}) for span in spans.of("rowcast.capture")]
        assert sum(int(str(one["rowcast.entries"])) for one in captured) == 4
        assert len(captured) <= 4
        assert all(set(one) == {"rowcast.entries", "rowcast.lsn"} for one in captured)


async def test_a_catch_up(spans: Spans) -> None:
    cast = made()
    async with cast.lifespan():
        first = LocalStream(cast, "ann", ["t"])
        await first.ready()
        position = first.position
        for number in range(100):
            await cast.publish("t", number)
        assert spans.of("rowcast.catchup") == []
        again = LocalStream(cast, "ann", ["t"], last_event_id=position)
        await again.until(lambda: len(again.events()) == 100)
        again._read()
        (span,) = spans.of("rowcast.catchup")
        assert span.attributes == {"rowcast.cause": "reconnect", "rowcast.outcome": "live"}
        assert span.start_time is not None
        assert span.end_time is not None
        assert span.start_time <= span.end_time


async def test_an_error_is_told_by_its_name(spans: Spans) -> None:
    with pytest.raises(Unavailable):
        await made().publish("t", 1)
    (span,) = spans.of("rowcast.publish")
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes == {"error.type": "Unavailable"}
    assert span.events == ()


async def test_where_they_are_off_there_is_nothing(spans: Spans) -> None:
    cast = made(server={})
    async with cast.lifespan():
        stream = LocalStream(cast, "ann", ["t"])
        await stream.ready()
        with trace.get_tracer("the application").start_as_current_span("order"):
            await cast.publish("t", 1)
        await stream.until(lambda: bool(stream.events()))
        assert stream.events() == [{"topic": "t", "data": 1}]
        assert cast.hub.wire.caught_up is None
    assert spans.names == ["order"]


def test_where_they_are_off_nothing_is_imported() -> None:
    program = (
        "import sys, rowcast; rowcast.Rowcast(auth='x' * 32).asgi();print('rowcast.telemetry.traces' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"


def test_without_the_library_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rowcast.telemetry.traces", None)
    with pytest.raises(ConfigError, match=r"rowcast\[otel\]"):
        made()
