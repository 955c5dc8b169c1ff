"""Traces by OpenTelemetry, as an extra: `pip install raftkv[otel]`.

Off by default. One request in so many is followed, or whatever arrives with a `traceparent` (W3C
Trace Context) that says it is sampled. Spans are sent in batches by a thread of the exporter's.
"""

from __future__ import annotations

import random
from typing import Any, Final

from raftkv.errors import ConfigError

SAMPLED: Final = 0x01


class Span:
    """A span under way, or a part of it."""

    __slots__ = ("_span", "_tracing", "name")

    def __init__(self, tracing: Tracing, name: str, span: Any) -> None:
        self._tracing = tracing
        self.name = name
        self._span = span

    def child(self, name: str) -> Span:
        """A part of this one, begun now."""
        return self._tracing.part(self._span, name)

    def end(self, name: str, outcome: str, code: str) -> None:
        """It is over; `name` is what it turned out to be."""
        self._span.update_name(name)
        self._span.set_attribute("raftkv.outcome", outcome)
        if code:
            self._span.set_attribute("raftkv.code", code)
        self._span.end()


class Tracing:
    """Begins spans with a tracer of OpenTelemetry's API. Sampling is decided here, so that a
    request that is not sampled makes no object at all."""

    def __init__(self, provider: Any, one_in: int, chance: random.Random | None = None) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation import tracecontext

        self._provider = provider
        self._tracer = provider.get_tracer("raftkv")
        self._one_in = one_in
        self._chance = chance or random.Random()  # noqa: S311  # chooses what is looked at
        self._in_context = trace.set_span_in_context
        self._extract = tracecontext.TraceContextTextMapPropagator().extract
        self._server = trace.SpanKind.SERVER

    def begin(self, name: str, traceparent: str | None) -> Span | None:
        """The span of a request, if it is one of those to follow."""
        if _sampled(traceparent):
            context = self._extract({"traceparent": traceparent})
        elif self._chance.randrange(self._one_in):
            return None
        else:
            context = None
        span = self._tracer.start_span(name or "request", context=context, kind=self._server)
        return Span(self, name, span)

    def part(self, parent: Any, name: str) -> Span:
        """A child of a span."""
        span = self._tracer.start_span(name, context=self._in_context(parent))
        return Span(self, name, span)

    def close(self) -> None:
        """Send what waits, within the exporter's own deadline."""
        self._provider.shutdown()


def _sampled(traceparent: str | None) -> bool:
    """Whether a `traceparent` asks that its request be followed."""
    if traceparent is None:
        return False
    parts = traceparent.split("-")
    try:
        return len(parts) >= 4 and bool(int(parts[3][:2], 16) & SAMPLED)
    except ValueError:
        return False


def open_tracing(endpoint: str, one_in: int, name: str, version: str) -> Tracing:
    """Send spans to the collector at `endpoint` (OTLP over HTTP). Raises ConfigError when the
    extra is not installed."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(
            "--trace-endpoint needs the extra: pip install 'raftkv[otel]'", setting="trace-endpoint"
        ) from error
    resource = Resource.create(
        {"service.name": "raftkv", "service.instance.id": name, "service.version": version}
    )
    provider = TracerProvider(resource=resource)
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider, one_in)
