"""Spans as a receiver of OTLP over HTTP gets them."""

import gzip
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from aiohttp import web
from provider import Provider, answer, echo

from stillhouse.ask import Limits, Question, Sampling, Teacher, ask
from stillhouse.ask.tracing import of_outcome, tracing, wanted
from stillhouse.ledger import Ledger
from stillhouse.models.endpoint import Reply, parse_chat
from stillhouse.records import Message
from stillhouse.workspace import Workspace

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

Serve = Callable[..., Provider]
LIMITS = Limits(concurrency=4, timeout=5.0, retries=3)
KEY = "sk-0123456789abcdef"


class Receiver:
    """Keeps what it is sent."""

    def __init__(self) -> None:
        received: list[bytes] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/traces"
                received.append(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)
                reply = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *_: object) -> None:
                pass

        self.received = received
        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def spans(self) -> list[tuple[Span, dict]]:
        found = []
        for body in self.received:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                service = {a.key: a.value.string_value for a in resource.resource.attributes}
                assert service["service.name"] == "stillhouse"
                for scope in resource.scope_spans:
                    found += [
                        (span, {a.key: plain(a.value) for a in span.attributes}) for span in scope.spans
                    ]
        return found


def plain(value: object) -> object:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(each) for each in value.array_value.values]
    return getattr(value, kind)


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    made = Receiver()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.url)
    yield made
    made.server.shutdown()
    made.server.server_close()


def put(workspace: Workspace, server: Provider, count: int, sampling: Sampling | None = None) -> None:
    asked = [Question(f"p{i}", (Message("user", f"secret question {i}"),)) for i in range(count)]
    teacher = Teacher("m", "somewhere", "r1", lambda: server.url, key_env="TEACHER_KEY")
    with Ledger.open(workspace) as ledger:
        ask(asked, teacher, sampling or Sampling(0.0, 0.9, 16), LIMITS, ledger, "run-1", 0)


def test_each_attempt_is_a_span_and_none_tells_what_was_said(
    provider: Serve, workspace: Workspace, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
):
    async def flaky(body: dict, number: int) -> web.Response:
        if number in (2, 3):
            said = {"error": {"message": f"busy with {body['messages'][-1]['content']}"}}
            return web.json_response(said, status=503)
        return answer("hidden answer", model="m-1", fingerprint="fp_7")

    monkeypatch.setenv("TEACHER_KEY", KEY)
    server = provider(flaky)
    before = time.time_ns()
    put(workspace, server, 5)
    spans = receiver.spans()
    assert len(spans) == len(server.bodies) == 7
    port = int(server.url.split(":")[2].split("/")[0])
    for span, attributes in spans:
        assert span.name == "chat m"
        assert span.kind == Span.SPAN_KIND_CLIENT
        assert before <= span.start_time_unix_nano < span.end_time_unix_nano <= time.time_ns()
        asked = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "somewhere",
            "gen_ai.request.model": "m",
            "gen_ai.request.max_tokens": 16,
            "gen_ai.request.temperature": 0.0,
            "gen_ai.request.top_p": 0.9,
            "server.address": "127.0.0.1",
            "server.port": port,
            "stillhouse.run": "run-1",
            "stillhouse.stage": "collect",
            "stillhouse.attempt": attributes["stillhouse.attempt"],
        }
        if "error.type" in attributes:
            assert attributes == {**asked, "error.type": "server"}
            assert span.status.code == Status.STATUS_CODE_ERROR
            assert not span.status.message
        else:
            assert attributes == {
                **asked,
                "gen_ai.response.id": "x",
                "gen_ai.response.model": "m-1",
                "gen_ai.response.finish_reasons": ["stop"],
                "gen_ai.usage.input_tokens": 10,
                "gen_ai.usage.output_tokens": 5,
                "openai.response.system_fingerprint": "fp_7",
            }
    assert sum("error.type" in attributes for _, attributes in spans) == 2
    assert len({attributes["stillhouse.attempt"] for _, attributes in spans}) == 7
    whole = b"".join(receiver.received)
    for hidden in ("secret question", "hidden answer", "busy", KEY, KEY[3:]):
        assert hidden.encode() not in whole


def test_a_seed_is_told_where_one_was_sent(
    provider: Serve, workspace: Workspace, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    put(workspace, provider(echo), 1, Sampling(0.7, 1.0, 16))
    ((_, attributes),) = receiver.spans()
    assert (attributes["gen_ai.request.seed"], attributes["gen_ai.request.temperature"]) == (0, 0.7)


def test_details_of_the_usage_are_told_where_the_server_counts_them():
    raw = b"""{"id": "c", "model": "m", "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 8, "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 6}}}"""
    found = of_outcome(Reply(200, raw, {}, parse_chat(raw)))
    assert found["gen_ai.usage.cache_read.input_tokens"] == 4
    assert found["gen_ai.usage.reasoning.output_tokens"] == 6
    assert found["gen_ai.response.finish_reasons"] == ["length"]


@pytest.mark.parametrize(
    ("environment", "on"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://here:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://here:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "console,otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://here:4318"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://here:4318"}, False),
    ],
)
def test_the_standard_variables_turn_it_on(environment: dict, on: bool):
    assert wanted(environment) is on


def test_off_it_loads_nothing():
    code = (
        "import sys\n"
        "from stillhouse.ask.tracing import tracing\n"
        "with tracing('run', 'collect') as trace:\n"
        "    assert trace is None\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://api.openai.com/v1", "openai"),
        ("https://mine.openai.azure.com/openai/v1", "azure.ai.openai"),
        ("https://bedrock-runtime.eu-west-1.amazonaws.com/openai/v1", "aws.bedrock"),
        ("https://notapi.openai.com.example/v1", "the-name"),
    ],
)
def test_known_providers_have_the_conventions_names(receiver: Receiver, url: str, name: str):
    raw = b'{"choices": [{"index": 0, "message": {"content": "x"}, "finish_reason": "stop"}]}'
    with tracing("run", "collect") as trace:
        assert trace is not None
        trace(url, "the-name", b'{"model": "m"}', Reply(200, raw, {}, parse_chat(raw)), 1, 10, 20)
    ((span, attributes),) = receiver.spans()
    assert attributes["gen_ai.provider.name"] == name
    assert attributes["server.port"] == 443
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (10, 20)


def test_nobody_there_to_receive_harms_no_run(
    provider: Serve, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    server = provider(echo)
    started = time.monotonic()
    put(workspace, server, 20)
    assert len(server.bodies) == 20
    assert time.monotonic() - started < 20
