"""The provider's terms: told to machines, accepted by version, and obeyed by our own collector."""

import hashlib
import json

import pytest
from behind import Behind
from gate import gate, tree_of

from stillhouse import pipeline
from stillhouse.errors import GateRefused
from stillhouse.ledger import Ledger
from stillhouse.recipe import parse_recipe
from stillhouse.workspace import init_workspace

TEXT = "Answers may not train another model.\n"
HELLO = {"model": "whole", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("terms")
    (folder / "terms.txt").write_text(TEXT)
    with Behind() as behind:
        tree = tree_of(folder, behind.url, "whole")
        tree["terms"] = {
            "version": "2026-11",
            "document": str(folder / "terms.txt"),
            "training": "forbidden",
            "must_accept": True,
        }
        with gate(folder, tree) as running:
            running.behind = behind
            yield running


def test_the_terms_are_served_to_people_and_to_machines(made):
    origin = made.url.removesuffix("/v1")
    with made.client(key="nobody") as client:
        said = client.get(f"{origin}/.well-known/ai-terms.json").json()
        text = client.get(said["terms"]["url"])
    assert text.text == TEXT
    assert said["terms"]["sha256"] == hashlib.sha256(text.content).hexdigest()
    assert said["answers"]["train_other_models"] == "forbidden"


def test_nobody_is_served_who_has_not_accepted_the_version_in_force(made):
    with made.client() as client:
        refused = client.post("/chat/completions", json=HELLO)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "terms_not_accepted")
        assert client.post("/terms/acceptance", json={"version": "2025"}).status_code == 409
        assert client.post("/terms/acceptance", content=b" " * (70 << 10)).status_code == 413
        assert client.post("/terms/acceptance", json={"version": "2026-11"}).status_code == 200
        assert client.post("/chat/completions", json=HELLO).status_code == 200


def test_our_collector_asks_nothing_of_a_gateway_that_forbids_training(made, tmp_path, monkeypatch):
    workspace = init_workspace(tmp_path)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "why?", "id": "p"}) + "\n")
    monkeypatch.setenv("GATE_KEY", made.key)
    recipe = parse_recipe(
        {
            "run": {"name": "copy"},
            "teacher": {"model": "whole", "endpoint": made.url, "key_env": "GATE_KEY", "access": "api"},
            "prompts": {"source": str(prompts)},
            "student": {"init": "embedded:base"},
        }
    )
    made.behind.seen.clear()
    with pytest.raises(GateRefused) as caught:
        pipeline.run(recipe, workspace)
    assert "/.well-known/ai-terms.json" in f"{caught.value.what} {caught.value.why} {caught.value.mend}"
    assert not made.behind.seen
    with Ledger.open(workspace) as ledger:
        assert any(leaf.kind == "decision" for leaf in ledger.leaves())
