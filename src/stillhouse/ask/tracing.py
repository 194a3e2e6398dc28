"""OpenTelemetry spans of what is asked: one for each attempt, by the semantic conventions for generative AI.

Off unless the extra `otel` is installed and the standard variables name a receiver. Nothing that was asked or
answered enters a span, no key, and no server's words about an error, which may repeat either.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

import orjson

from stillhouse.models.endpoint import Failure, Reply

# (base URL, the teacher's logical endpoint, the request's body as sent, what came of it, the ledger's number
# of the attempt, Unix nanoseconds at which it began and ended)
Trace = Callable[[str, str, bytes, Reply | Failure, int, int, int], None]

REQUEST = {
    "model": "gen_ai.request.model",
    "max_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "seed": "gen_ai.request.seed",
}
PROVIDERS = {  # the conventions' names of providers, by how the host of their API ends
    "api.openai.com": "openai",
    "openai.azure.com": "azure.ai.openai",
    "services.ai.azure.com": "azure.ai.inference",
    "api.anthropic.com": "anthropic",
    "api.cohere.com": "cohere",
    "api.deepseek.com": "deepseek",
    "api.groq.com": "groq",
    "api.mistral.ai": "mistral_ai",
    "api.perplexity.ai": "perplexity",
    "api.x.ai": "x_ai",
    "generativelanguage.googleapis.com": "gcp.gemini",
    "aiplatform.googleapis.com": "gcp.vertex_ai",
    "amazonaws.com": "aws.bedrock",
}


@contextmanager
def tracing(run: str, stage: str) -> Iterator[Trace | None]:
    """What to call after each attempt for as long as the block lasts; None where nobody wants to know. The
    spans that are left are sent at its end."""
    if not wanted(os.environ) or not _installed():
        yield None
        return
    from importlib.metadata import version

    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import SpanKind, StatusCode

    resource = Resource.create({"service.version": version("stillhouse")})
    if str(resource.attributes["service.name"]).startswith("unknown_service"):  # no variable names it
        resource = resource.merge(Resource({"service.name": "stillhouse"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    tracer = provider.get_tracer("stillhouse")
    common = {"stillhouse.run": run, "stillhouse.stage": stage}

    def trace(
        url: str,
        endpoint: str,
        request: bytes,
        outcome: Reply | Failure,
        attempt: int,
        began: int,
        ended: int,
    ) -> None:
        body = orjson.loads(request)
        asked = {**common, **_place(url, endpoint), **of_request(body), "stillhouse.attempt": attempt}
        name = f"chat {body['model']}"
        span = tracer.start_span(name, kind=SpanKind.CLIENT, attributes=asked, start_time=began)
        if span.is_recording():
            span.set_attributes(of_outcome(outcome))
            if isinstance(outcome, Failure):
                span.set_status(StatusCode.ERROR)
        span.end(ended)

    try:
        yield trace
    finally:
        provider.shutdown()


def wanted(environment: Mapping[str, str]) -> bool:
    """Whether the standard variables ask for spans by OTLP."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    named = environment.get("OTEL_TRACES_EXPORTER", "")
    if named.strip():
        return "otlp" in {name.strip() for name in named.split(",")}
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return any(environment.get(name, "").strip() for name in names)


def of_request(body: Mapping[str, Any]) -> dict[str, Any]:
    settings = {name: body[key] for key, name in REQUEST.items() if body.get(key) is not None}
    return {"gen_ai.operation.name": "chat", **settings}


def of_outcome(outcome: Reply | Failure) -> dict[str, Any]:
    """`error.type` is a FailureKind of `models.endpoint`: `rate_limited`, `timeout`, `server` and so on."""
    if isinstance(outcome, Failure):
        return {"error.type": outcome.kind}
    body, completion = orjson.loads(outcome.raw), outcome.completions[0]
    usage = body.get("usage")
    found = {
        "gen_ai.response.id": body.get("id"),
        "gen_ai.response.model": completion.model or None,
        "gen_ai.response.finish_reasons": [each.finish_reason for each in outcome.completions],
        "gen_ai.usage.input_tokens": completion.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": completion.usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": _at(usage, "prompt_tokens_details", "cached_tokens"),
        "gen_ai.usage.reasoning.output_tokens": _at(usage, "completion_tokens_details", "reasoning_tokens"),
        "openai.response.system_fingerprint": completion.fingerprint,
    }
    return {name: value for name, value in found.items() if isinstance(value, str | int | list)}


@lru_cache(maxsize=64)
def _place(url: str, endpoint: str) -> dict[str, Any]:
    parts = urlsplit(url)
    host = parts.hostname or ""
    known = next(
        (name for end, name in PROVIDERS.items() if host == end or host.endswith(f".{end}")), endpoint
    )
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return {"gen_ai.provider.name": known, "server.address": host, "server.port": port}


def _at(tree: Any, *path: str) -> int | None:
    for step in path:
        tree = tree.get(step) if isinstance(tree, dict) else None
    return tree if type(tree) is int else None


def _installed() -> bool:
    names = ("opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
    try:
        return all(find_spec(name) is not None for name in names)
    except ModuleNotFoundError:  # a parent of a name is missing
        return False
