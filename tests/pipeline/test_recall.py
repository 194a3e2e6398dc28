"""A decision is recalled: its answers stay, and no sample is made from them until that is lifted."""

import json
import os
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from provider import echo
from tiny import tiny_model

from stillhouse import pipeline
from stillhouse.errors import GateRefused, UsageError
from stillhouse.ledger import Ledger
from stillhouse.ledger.permissions import revoke, standings
from stillhouse.ledger.quarantine import decisions_of, quarantined, recall
from stillhouse.recipe import parse_recipe
from stillhouse.terms import authorising


@pytest.fixture
def recipe(tmp_path, provider):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"say {n}", "id": f"p{n}"}) + "\n" for n in range(20)))
    server = provider(echo)

    def teacher(model):
        text = tmp_path / f"{model}.txt"
        text.write_text(f"you may train on the answers of {model}")
        terms = {"document": str(text), "read_on": "2026-01-02", "declared_by": "a test"}
        return {"model": model, "endpoint": server.url, "provider": model, "terms": terms}

    return parse_recipe(
        {
            "run": {"name": "t"},
            "teacher": teacher("m"),
            "teachers": [teacher("n")],
            "prompts": {"source": str(prompts)},
            "collect": {"max_tokens": 8},
            "curate": {"near_duplicates": 0.0},
            "student": {"init": str(tiny_model(tmp_path / "tiny"))},
            "evaluate": {"held_out": 0.2},
        }
    )


def samples(run):
    return {row["id"]: row["teacher"] for row in pq.read_table(run.samples).to_pylist()}


def command(workspace, *words):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-m", "stillhouse.cli", "ledger", "recall", *words],
        cwd=workspace.root.parent, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_recalled_teacher_is_in_no_sample_until_it_is_lifted(recipe, workspace):
    stages = ["collect", "curate"]
    run = pipeline.run(recipe, workspace, stages=stages).run
    before = samples(run)
    assert set(before.values()) == {"m", "n"}
    of_n = [name for name, who in before.items() if who == "n"]
    with Ledger.open(workspace) as ledger:
        (decision,) = decisions_of(ledger, "teacher", "n")
        authorisation = ledger.leaf(decision).body["authorisation"]
        ledger.append("train_run", {"run": run.root.name, "transform": _transform(ledger)})
        ledger.append("release", {"run": run.root.name, "name": "out", "decisions": [decision]})

    done = command(workspace, "--authorisation", str(authorisation), "--reason", "withdrawn", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["exchanges"], said["rows"]) == (len(of_n), len(of_n))
    assert (said["decisions"], said["runs"]) == ([decision], [run.root.name])
    assert len(said["students"]) == len(said["releases"]) == 1
    with Ledger.open(workspace) as ledger:
        leaf = ledger.leaf(said["leaves"][0])
        assert leaf.body["what"] == "quarantined"
        assert len(leaf.data) < 500
        assert quarantined(ledger) == {decision}
        with pytest.raises(UsageError, match="quarantined already"):
            recall(ledger, [decision], "again")

    with pytest.raises(GateRefused, match="n at") as caught:
        pipeline.run(recipe, workspace, stages=stages)
    assert f"the declaration of n.txt was recalled (leaf {said['leaves'][0]})" in caught.value.why
    on_it = ("--authorisation", str(authorisation), "--reason", "it was the other one")
    assert command(workspace, *on_it, "--lift").returncode == 0
    assert pipeline.run(recipe, workspace, stages=stages).skipped == ("collect", "curate")

    assert command(workspace, "--decision", str(decision), "--reason", "it was wrong").returncode == 0
    again = pipeline.run(recipe, workspace, stages=stages)
    assert "curate" not in again.skipped
    assert samples(run) == {name: who for name, who in before.items() if who == "m"}
    dropped = pq.read_table(run.dropped).to_pylist()
    assert {row["id"] for row in dropped if row["reason"] == "recalled"} == set(of_n)
    funnel = json.loads(run.marker("curate").read_bytes())["result"]["funnel"]
    assert funnel[0]["filter"] == "recalled"
    assert "curate" in pipeline.run(recipe, workspace, stages=stages).skipped

    assert command(workspace, "--teacher", "n", "--reason", "a mistake", "--lift").returncode == 0
    pipeline.run(recipe, workspace, stages=stages)
    assert samples(run) == before
    with Ledger.open(workspace) as ledger:
        assert quarantined(ledger) == frozenset()
        assert ledger.verify().ok


def test_a_recalled_permission_lets_nothing_more_be_asked_until_that_is_lifted(tmp_path, workspace, provider):
    server = provider(echo)
    scope = {"models": ["m"], "uses": ["train_target", "evaluation"], "competing": True, "servers": ["*"]}
    said = {"grantor": "Maker", "grantee": "us", "signatory": "J. Doe", "approver": "R. Ames"}
    said |= {"valid_from": "2026-01-01", "scope": scope}

    def permit(name):
        made = authorising.make_permission(said | {"id": name}, "c.txt", b"Maker permits it.", "here")
        with Ledger.open(workspace) as ledger:
            return authorising.record(made, b"Maker permits it.", ledger)

    def collect(count):
        rows = [json.dumps({"prompt": f"say {n}", "id": f"p{n}"}) + "\n" for n in range(count)]
        (tmp_path / "few.jsonl").write_text("".join(rows))
        tree = {
            "run": {"name": "few"},
            "teacher": {"model": "m", "endpoint": server.url},
            "prompts": {"source": str(tmp_path / "few.jsonl")},
            "collect": {"max_tokens": 8},
            "student": {"init": str(tiny_model(tmp_path / "tiny"))},
        }
        pipeline.run(parse_recipe(tree), workspace, stages=["collect"])
        return len(server.bodies)

    first = permit("first")
    asked = collect(5)
    on_it = ("--authorisation", str(first), "--reason", "withdrawn")
    done = command(workspace, *on_it, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["exchanges"] == asked
    with pytest.raises(GateRefused) as caught:
        collect(9)
    assert "the permission first is not in force: it was recalled" in caught.value.mend
    assert len(server.bodies) == asked
    with Ledger.open(workspace) as ledger:  # neither under a decision that a process made before
        (decision,) = [
            leaf.index for leaf in ledger.leaves("decision") if leaf.body["use"] == "train_target"
        ][:1]
        with pytest.raises(GateRefused, match="does not cover another"):
            ledger.begin(
                key="ab" * 32, run="r", prompt_id="p", teacher="m", sample_index=0, decision=decision
            ).result()
        assert ledger.verify().ok
    assert command(workspace, *on_it).returncode == 2  # all of it is recalled
    assert command(workspace, *on_it, "--lift").returncode == 0
    assert collect(9) > asked
    asked = len(server.bodies)
    assert command(workspace, *on_it).returncode == 0
    permit("second")
    assert collect(12) > asked  # under that one
    with Ledger.open(workspace) as ledger:
        revoke(ledger, first, "it ended")
    assert command(workspace, *on_it, "--lift").returncode == 0
    with Ledger.open(workspace) as ledger:
        assert standings(ledger)[first].revoked is not None
        assert [each.recalled for each in authorising.recorded(ledger)] == [None, None]


def test_what_cannot_be_recalled_is_said(workspace):
    unknown = command(workspace, "--teacher", "nobody", "--reason", "x")
    assert (unknown.returncode, "no decision" in unknown.stderr) == (2, True)
    unclear = command(workspace, "--teacher", "m", "--decision", "3", "--reason", "x")
    assert (unclear.returncode, "in one way" in unclear.stderr) == (2, True)


def _transform(ledger):
    return [leaf.index for leaf in ledger.leaves("transform") if leaf.body["stage"] == "curate"][-1]
