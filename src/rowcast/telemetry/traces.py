"""OpenTelemetry traces, for who asks for them: `[server] traces = true`, with `pip install 'rowcast[otel]'`.

One span for each capture batch, publish, catch-up and API call; never one for a delivery. Nothing is made, and nothing
asked, where they are off: whoever could make a span has None in its place.

Only OpenTelemetry's API is used: where spans go is for the program to say, or for `opentelemetry-instrument`, which
sets the SDK up from `OTEL_…` variables before `rowcast serve` begins.

Sources: OpenTelemetry's semantic conventions for HTTP and messaging; W3C Trace Context for `traceparent`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from rowcast.core.position import Position
    from rowcast.core.stream import Stream

_W3C = TraceContextTextMapPropagator()

UNTRACED = frozenset({"/events", "/healthz", "/readyz", "/health", "/metrics"})
"""Paths without a span: streams last, and monitors ask all the time."""

NAMED = frozenset(
    {"/publish", "/control/resubscribe", "/control/disconnect", "/control/drain", "/users/me/channels", "/events/count"}
    | {"/webhooks/sequin", "/webhooks/debezium"}
)
"""Paths that stand in a span's name; others have the method alone."""


class Traces:
    """Makes the spans of one replica. The tracer is that of the provider which is global when this is made."""

    def __init__(self) -> None:
        self._tracer = trace.get_tracer("rowcast", version("rowcast"))
        self._behind: dict[Stream, tuple[int, str]] = {}

    @contextmanager
    def span(self, name: str, kind: SpanKind = SpanKind.INTERNAL, context: Context | None = None) -> Iterator[Span]:
        """A span around a block, below the current one or that of `context`. An error is told by its name only: what it
        says may be of a row."""
        with self._tracer.start_as_current_span(
            name, context=context, kind=kind, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield span
            except Exception as error:
                span.set_status(StatusCode.ERROR)
                span.set_attribute("error.type", type(error).__qualname__)
                raise

    @contextmanager
    def publishing(self) -> Iterator[Publishing]:
        """A span around the appending of what is published."""
        with self.span("rowcast.publish", SpanKind.PRODUCER) as span:
            yield Publishing(span)

    def captured(self, begun: int, entries: int, position: tuple[int, int]) -> None:
        """A batch was captured since `begun` (nanoseconds since 1970): so many entries, up to a place."""
        span = self._tracer.start_span("rowcast.capture", start_time=begun)
        span.set_attribute("rowcast.entries", entries)
        span.set_attribute("rowcast.lsn", f"{position[0] >> 32:X}/{position[0] & 0xFFFFFFFF:X}")
        span.end()

    # Catch-ups

    def behind(self, stream: Stream, cause: str) -> None:
        """A stream fell behind, if it was not already."""
        self._behind.setdefault(stream, (time.time_ns(), cause))

    def caught_up(self, stream: Stream) -> None:
        """A stream is live again."""
        self._end(stream, "live")

    def gone(self, stream: Stream) -> None:
        """A stream has ended, perhaps while it was behind."""
        if stream in self._behind:
            self._end(stream, "ended")

    def _end(self, stream: Stream, outcome: str) -> None:
        begun, cause = self._behind.pop(stream, (0, ""))
        if begun:
            span = self._tracer.start_span("rowcast.catchup", start_time=begun)
            span.set_attribute("rowcast.cause", cause)
            span.set_attribute("rowcast.outcome", outcome)
            span.end()


class Publishing:
    """The span of something that is being published, which is the current one."""

    def __init__(self, span: Span) -> None:
        self._span = span

    @property
    def traceparent(self) -> str:
        """The span as it travels with the entry; "" when there is none."""
        carrier: dict[str, str] = {}
        _W3C.inject(carrier)
        return carrier.get("traceparent", "")

    def published(self, position: Position) -> None:
        """It is in the log."""
        self._span.set_attribute("rowcast.position", str(position))


def parent(headers: Mapping[str, str]) -> Context | None:
    """The context that a request's `traceparent` tells; None: that of whoever runs us."""
    if "traceparent" not in headers:
        return None
    return _W3C.extract({name: headers[name] for name in ("traceparent", "tracestate") if name in headers})


class Traced:
    """A plain ASGI middleware: a span for each API call. Streams pass through it untouched."""

    def __init__(self, app: ASGIApp, traces: Traces) -> None:
        self._app = app
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "")
        root: str = scope.get("root_path", "")
        if scope["type"] != "http" or path.removeprefix(root) in UNTRACED:
            await self._app(scope, receive, send)
            return
        name = f"{scope['method']} {_route(path.removeprefix(root))}".rstrip()
        with self._traces.span(name, SpanKind.SERVER, parent(Headers(scope=scope))) as span:
            span.set_attribute("http.request.method", scope["method"])
            span.set_attribute("url.path", path)

            async def watched(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(StatusCode.ERROR)
                await send(message)

            await self._app(scope, receive, watched)


def _route(path: str) -> str:
    """What a span is named by: few names, whatever is asked for."""
    if path.startswith("/users/me/channels/"):
        return "/users/me/channels/{type}"
    return path if path in NAMED else ""
