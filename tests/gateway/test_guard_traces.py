"""Spans of what was served, as a receiver of OTLP over HTTP gets them."""

import gzip
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from recorded import event

from stillhouse.gateway.tracing import SHARE, Traces, attributes_of, share_of

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{PARENT}-00".encode()


@pytest.fixture
def receiver():
    bodies = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            bodies.append((self.path, gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body))
            reply = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.bodies = bodies
    yield server
    server.shutdown()
    server.server_close()


def spans(receiver):
    return [
        span
        for path, body in receiver.bodies
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
        if path == "/v1/traces"
    ]


def attributes(span):
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def test_a_span_goes_under_the_client_s_and_over_the_upstream_s(receiver):
    traces = Traces(f"http://127.0.0.1:{receiver.server_port}", share=1.0)
    header, span = traces.began(GIVEN)
    traces.ended(span, event(7, model="m", upstream="http://10.0.0.1:8000/v1"))
    own, failed = traces.began(None)
    traces.ended(failed, event(8, ended="upstream_cut", status=502, reason="ClientPayloadError"))
    traces.close()
    first, second = spans(receiver)
    assert first.trace_id.hex() == TRACE
    assert first.parent_span_id.hex() == PARENT
    assert header == f"00-{TRACE}-{first.span_id.hex()}-01".encode()
    assert first.name == "chat m"
    assert first.kind == Span.SPAN_KIND_CLIENT
    assert attributes(first) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "m",
        "gen_ai.provider.name": "10.0.0.1",
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 5,
        "server.address": "10.0.0.1",
        "http.response.status_code": 200,
        "stillhouse.request": "req_000007",
        "stillhouse.ended": "whole",
        "stillhouse.stream": False,
        "stillhouse.first_byte_seconds": 0.01,
    }
    assert own == f"00-{second.trace_id.hex()}-{second.span_id.hex()}-01".encode()
    assert second.status.code == Status.STATUS_CODE_ERROR
    assert attributes(second)["error.type"] == "ClientPayloadError"


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"x",
        b" " + GIVEN,
        GIVEN + b"\n",
        GIVEN + b"-00",
        GIVEN + b"\r\nx-api-key: y",
        GIVEN.upper(),
        b"ff" + GIVEN[2:],
        GIVEN.replace(TRACE.encode(), b"0" * 32),
        GIVEN.replace(PARENT.encode(), b"0" * 16),
    ],
)
def test_what_is_no_traceparent_goes_no_further(header):
    assert Traces(None).began(header) == (None, None)


def test_without_an_endpoint_the_client_s_header_is_passed_on_and_nothing_is_traced():
    traces = Traces(None, share=1.0)
    assert traces.began(GIVEN) == (GIVEN, None)
    assert traces.began(None) == (None, None)
    traces.close()


def test_a_client_cannot_have_its_requests_traced(receiver):
    traces = Traces(f"http://127.0.0.1:{receiver.server_port}", share=0.0)
    sampled = GIVEN[:-2] + b"01"
    assert all(traces.began(sampled) == (sampled, None) for _ in range(1000))
    traces.close()
    assert not receiver.bodies


def test_a_receiver_that_is_away_holds_nobody_up():
    traces = Traces("http://127.0.0.1:9", share=1.0)
    for n in range(100):
        _, span = traces.began(None)
        traces.ended(span, event(n))


def test_no_key_account_or_unprintable_name_is_in_a_span():
    said = attributes_of(event(1, model="a\nb\x1b", account="acct", key="keyid", organisation="org"))
    assert said["gen_ai.request.model"] == "a\\nb\\x1b"
    assert not {"acct", "keyid", "org"} & set(map(str, said.values()))


def test_the_standard_variables_say_how_many():
    assert share_of({}) == SHARE
    assert share_of({"OTEL_TRACES_SAMPLER": "always_on"}) == 1
    assert share_of({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}) == 0
    ratio = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio"}
    assert share_of(ratio | {"OTEL_TRACES_SAMPLER_ARG": "0.25"}) == 0.25
    assert share_of(ratio | {"OTEL_TRACES_SAMPLER_ARG": "lots"}) == SHARE
    assert share_of(ratio) == SHARE
