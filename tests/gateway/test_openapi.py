"""The gateway against its own OpenAPI document: what schemathesis makes of it is never a fault of ours."""

import pytest
import schemathesis
from behind import Behind
from gate import SECRET, gate, tree_of
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from stillhouse.gateway.admin import openapi_paths
from stillhouse.gateway.openapi import document

CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]
QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


def operations():
    """Every other request names a model that is served: else nothing but a 404 would be seen."""
    raw = document(openapi_paths())
    for path in raw["paths"].values():
        body = path.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json", {})
        properties = body.get("schema", {}).get("properties", {})
        if "model" in properties:
            properties["model"] = {"enum": ["whole", "another"]}
    return [result.ok() for result in schemathesis.openapi.from_dict(raw).get_all_operations()]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("openapi")
    terms = folder / "terms.txt"
    terms.write_text("be kind")
    with Behind() as behind:
        tree = tree_of(folder, behind.url, "whole")
        tree["terms"] = {"version": "1", "document": str(terms), "training": "forbidden"}
        with gate(folder, tree) as running:
            yield running


@pytest.mark.parametrize("operation", operations(), ids=lambda each: each.label)
@pytest.mark.parametrize("examples", [12, pytest.param(300, marks=pytest.mark.slow)])
def test_nothing_that_is_sent_makes_it_fail(operation, examples, made):
    ours = operation.path.startswith("/admin") or operation.path == "/metrics"
    headers = {"authorization": f"Bearer {SECRET if ours else made.key}"}
    headers |= {"x-operator": "schemathesis"} if ours else {}

    @settings(max_examples=examples, deadline=None, suppress_health_check=QUIET, derandomize=True)
    @given(case=operation.as_strategy())
    def tried(case):
        base = made.url.removesuffix("/v1")
        case.call_and_validate(base_url=base, headers=headers, checks=CHECKS, timeout=20)

    tried()
