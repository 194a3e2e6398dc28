"""A stage that is run alone asks the gate, as it does among the others."""

import json
from datetime import datetime, timedelta

import pytest
from provider import answer
from tiny import tiny_model

from stillhouse import pipeline
from stillhouse.errors import GateRefused
from stillhouse.ledger import Ledger
from stillhouse.ledger.permissions import revoke
from stillhouse.ledger.quarantine import decisions_of, recall
from stillhouse.pipeline import releasing
from stillhouse.recipe import parse_recipe, run_digest
from stillhouse.terms import authorising

TEXT = b"Maker permits it."
SCOPE = {
    "models": ["zz-*"], "uses": ["train_target", "evaluation"], "competing": True, "servers": ["127.0.0.1"]
}  # fmt: skip
SAID = {"grantor": "Maker", "grantee": "us", "signatory": "J. Doe", "approver": "R. Ames", "scope": SCOPE}


@pytest.fixture
def permission(workspace):
    made = authorising.make_permission(SAID | {"valid_from": "2026-01-01"}, "contract.txt", TEXT, "here")
    with Ledger.open(workspace) as ledger:
        return authorising.record(made, TEXT, ledger)


@pytest.fixture
def recipe(tmp_path, provider):
    async def digit(body, number):
        return answer(body["messages"][-1]["content"].split()[1])

    rows = [
        {"prompt": f"say {i % 7} {i}", "id": f"p{i}", "reference": str(i % 7), "scorer": "exact"}
        for i in range(30)
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return parse_recipe(
        {
            "run": {"name": "t"},
            "teacher": {"model": "zz-1", "endpoint": provider(digit).url},
            "prompts": {"source": str(tmp_path / "prompts.jsonl")},
            "collect": {"max_tokens": 8},
            "student": {"init": str(tiny_model(tmp_path / "tiny"))},
            "train": {"epochs": 1, "batch_tokens": 512, "dtype": "float32"},
            "evaluate": {"held_out": 0.2, "resamples": 50},
        }
    )


def test_no_stage_alone_goes_on_with_what_was_recalled(recipe, workspace, permission):
    both = recipe.model_dump(mode="json")
    both["teachers"] = [{**both["teacher"], "model": "zz-2"}]
    recipe = parse_recipe(both)

    def stage(*names):
        return pipeline.run(recipe, workspace, stages=names).skipped

    before = json.loads(pipeline.run(recipe, workspace).run.marker("train").read_bytes())["result"]["weights"]
    with Ledger.open(workspace) as ledger:
        recall(ledger, theirs := decisions_of(ledger, "teacher", "zz-2"), "a letter came")
    for name, what in (("train", "samples of"), ("release", f"decisions {theirs[:1]}"[:-1])):
        with pytest.raises(GateRefused, match="recalled") as caught:
            stage(name)
        assert what in f"{caught.value.what} {caught.value.why}"
        assert "stillhouse run RECIPE" in caught.value.mend
    assert stage("curate") == ()
    with pytest.raises(GateRefused, match="recalled") as caught:  # the samples are clean, the student is not
        stage("release")
    assert "this student was trained on some of them" in caught.value.why
    assert stage("train") == ()
    stage("evaluate", "release")
    run = workspace.run(recipe.run.name, run_digest(recipe))
    result = json.loads(run.marker("train").read_bytes())["result"]
    assert result["weights"] != before
    assert set(result["decisions"]).isdisjoint(theirs)


class _Tomorrow(datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.now(tz) + timedelta(days=1)


def test_what_a_stage_may_do_is_decided_before_it_is_found_done(recipe, workspace, permission, monkeypatch):
    run = pipeline.run(recipe, workspace).run

    def release():
        return "release" not in pipeline.run(recipe, workspace, stages=["release"]).skipped

    assert not release()
    with monkeypatch.context() as patched:
        patched.setattr(releasing, "datetime", _Tomorrow)
        assert not release()
    workspace.operator.write_text('territory = "DE"\n')
    assert release()
    assert not release()
    with Ledger.open(workspace) as ledger:
        revoke(ledger, permission, "enough")
    with pytest.raises(GateRefused, match="zz-1"):
        release()
    assert pipeline.run(recipe, workspace, stages=["train"]).skipped == ("train",)
    run.marker("train").unlink()
    with pytest.raises(GateRefused, match="zz-1"):
        pipeline.run(recipe, workspace, stages=["train"])
