"""Traces: one request in so many, whatever asks for it, and nothing at all when off."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from raftkv.api.gate import Gate
from raftkv.api.observe import Observer
from raftkv.api.tracing import Tracing, open_tracing
from raftkv.errors import ConfigError
from raftkv.server.config import ServerConfig
from raftkv.server.local import LocalStore
from tests.unit.http_support import serving

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


def tracing(one_in: int) -> tuple[Tracing, InMemorySpanExporter]:
    provider, memory = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    return Tracing(provider, one_in, random.Random(1)), memory


async def calls(
    tracing: Tracing, count: int, headers: dict[str, str] | None = None
) -> Sequence[Any]:
    async with serving(
        gate=lambda store: Gate(store, observer=Observer(store, None, tracing))
    ) as s:
        answers = [await s.call("PUT", "/api/kv/a", b"hush", headers) for _ in range(count)]
        missing = await s.call("GET", "/api/kv/none", headers=headers)
        assert missing.status == 404
    return answers


def named(spans: Sequence[ReadableSpan], name: str) -> list[ReadableSpan]:
    return [span for span in spans if span.name == name]


async def test_a_request_is_a_span_with_its_waits_inside() -> None:
    tracer, memory = tracing(1)
    await calls(tracer, 1)
    spans = memory.get_finished_spans()
    [put], [propose] = named(spans, "putKey"), named(spans, "propose")
    assert put.context and propose.parent and propose.parent.span_id == put.context.span_id
    assert (put.start_time or 0) <= (propose.start_time or 0)
    assert (propose.end_time or 0) <= (put.end_time or 0)
    assert put.attributes == {"raftkv.outcome": "done"}
    [get] = named(spans, "getKey")
    assert get.attributes == {"raftkv.outcome": "refused", "raftkv.code": "key_not_found"}
    assert "hush" not in str([span.to_json() for span in spans])


async def test_one_in_so_many_is_followed() -> None:
    tracer, memory = tracing(10)
    await calls(tracer, 200)
    assert 8 <= len(named(memory.get_finished_spans(), "putKey")) <= 35


@pytest.mark.parametrize(
    ("traceparent", "followed"),
    [
        (f"00-{TRACE}-{PARENT}-01", True),
        (f"00-{TRACE}-{PARENT}-00", False),
        ("garbage", False),
        ("00-0-0-zz", False),
    ],
)
async def test_a_sampled_traceparent_is_followed(traceparent: str, followed: bool) -> None:
    tracer, memory = tracing(10**9)
    await calls(tracer, 1, {"traceparent": traceparent})
    spans = named(memory.get_finished_spans(), "putKey")
    assert bool(spans) is followed
    if followed:
        context, parent = spans[0].context, spans[0].parent
        assert context is not None and f"{context.trace_id:032x}" == TRACE
        assert parent is not None and f"{parent.span_id:016x}" == PARENT


async def test_off_is_the_default_and_the_extra_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = LocalStore()
    assert ServerConfig().trace_endpoint == ""
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"pip install 'raftkv\[otel\]'"):
        open_tracing("http://127.0.0.1:4318", 1, "m1", "1.0")
    store.close()
