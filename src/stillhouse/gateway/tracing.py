"""OpenTelemetry spans of what was served, by the semantic conventions for generative AI.

Off without `record.traces`. A share of the requests is traced, drawn at random: a client that says in its
`traceparent` header that its request is traced does not thereby have it traced here. The header goes on to
the upstream, with our span in the client's place where there is one. A thread of the SDK sends the spans, and
drops what it has no room for. Nothing that was asked or answered enters a span, no key and no account.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from stillhouse.errors import UsageError
from stillhouse.guard.events import Event, label

if TYPE_CHECKING:
    from opentelemetry.trace import Span

SHARE = 0.05
OPERATIONS = {
    "chat/completions": "chat",
    "responses": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
}
_PARENT = re.compile(rb"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")


class Traces:
    """`endpoint` receives spans by OTLP over HTTP; with None nothing is traced. Close it."""

    def __init__(self, endpoint: str | None, share: float | None = None) -> None:
        """`share` of the requests is traced; left out, what OTEL_TRACES_SAMPLER and its argument say. Raises
        UsageError when the packages for it are not installed."""
        self._share = share_of(os.environ) if share is None else share
        if endpoint is None:
            self._share = 0.0
            return
        if find_spec("opentelemetry") is None:
            raise UsageError(
                "`record.traces` needs packages of OpenTelemetry",
                "they are not installed",
                "pip install 'stillhouse[otel]', or leave the setting out",
            )
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON

        resource = Resource.create({"service.name": "stillhouse-guard"})
        self._provider = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=_full(endpoint))))
        self._tracer = self._provider.get_tracer("stillhouse.gateway")

    def began(self, traceparent: bytes | None) -> tuple[bytes | None, Span | None]:
        """The header for the upstream, and the span to give to `ended` where the request is traced. A header
        that is none is dropped."""
        given = None if traceparent is None else _PARENT.fullmatch(traceparent)
        if random.random() >= self._share:
            return (traceparent if given else None), None
        from opentelemetry.trace import (
            NonRecordingSpan,
            SpanContext,
            SpanKind,
            TraceFlags,
            set_span_in_context,
        )

        parent = None
        if given:
            trace, span, flags = (int(part, 16) for part in given.groups())
            parent = set_span_in_context(NonRecordingSpan(SpanContext(trace, span, True, TraceFlags(flags))))
        ours = self._tracer.start_span("request", context=parent, kind=SpanKind.CLIENT)
        named = ours.get_span_context()
        return f"00-{named.trace_id:032x}-{named.span_id:016x}-01".encode(), ours

    def ended(self, span: Span, event: Event) -> None:
        from opentelemetry.trace import StatusCode

        span.update_name(f"{OPERATIONS.get(event.route, 'request')} {label(event.model)}".strip())
        span.set_attributes(attributes_of(event))
        if event.ended in ("failed", "upstream_cut"):
            span.set_status(StatusCode.ERROR)
        span.end()

    def close(self) -> None:
        """Send what is left."""
        if hasattr(self, "_provider"):
            self._provider.shutdown()


def attributes_of(event: Event) -> dict[str, str | int | float | bool]:
    found: dict[str, str | int | float | bool | None] = {
        "gen_ai.operation.name": OPERATIONS.get(event.route),
        "gen_ai.request.model": label(event.model) or None,
        "gen_ai.request.choice.count": event.choices if event.choices != 1 else None,
        "gen_ai.provider.name": urlsplit(event.upstream).hostname,
        "server.address": urlsplit(event.upstream).hostname,
        "http.response.status_code": event.status,
        "error.type": event.reason or str(event.status) if event.status >= 400 else event.reason or None,
        "stillhouse.request": label(event.id),
        "stillhouse.ended": event.ended,
        "stillhouse.stream": event.stream,
        "stillhouse.first_byte_seconds": event.first_byte,
    }
    if event.ended != "refused":
        found["gen_ai.usage.input_tokens"] = event.input_tokens
        found["gen_ai.usage.output_tokens"] = event.output_tokens
    return {name: value for name, value in found.items() if value is not None}


def share_of(environment: Mapping[str, str]) -> float:
    """What the standard variables say of the share that is traced; SHARE where they say nothing usable."""
    sampler = environment.get("OTEL_TRACES_SAMPLER", "").strip().lower().removeprefix("parentbased_")
    if sampler in ("always_on", "always_off"):
        return float(sampler == "always_on")
    try:
        share = float(environment["OTEL_TRACES_SAMPLER_ARG"]) if sampler == "traceidratio" else SHARE
    except (KeyError, ValueError):
        return SHARE
    return share if 0 <= share <= 1 else SHARE


def _full(endpoint: str) -> str:
    return f"{endpoint.rstrip('/')}/v1/traces" if urlsplit(endpoint).path in ("", "/") else endpoint
