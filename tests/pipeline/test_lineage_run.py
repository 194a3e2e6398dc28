"""A student of a student: the release names both teachers, and the decision that allowed it."""

import json

import pytest
from provider import answer
from taught import decided, entry
from taught import released as taught
from tiny import tiny_model

from stillhouse import pipeline
from stillhouse.audit import verify
from stillhouse.errors import GateRefused
from stillhouse.ledger import Ledger
from stillhouse.ledger.keys import read_signing_key
from stillhouse.ledger.manifest import seal
from stillhouse.recipe import parse_recipe
from stillhouse.terms.lineage import read_lineage

pytestmark = pytest.mark.usefixtures("one_thread")


async def digit(body, number):
    return answer(body["messages"][-1]["content"].split()[1])


def prompts_and_terms(tmp_path):
    rows = [
        {"prompt": f"say {i % 7} {i}", "id": f"p{i}", "reference": str(i % 7), "scorer": "exact"}
        for i in range(20)
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "terms.txt").write_text("you may train on the answers")
    return {"document": str(tmp_path / "terms.txt"), "read_on": "2026-01-02", "declared_by": "a test"}


def test_both_teachers_stand_in_the_release_of_a_students_student(tmp_path, workspace, provider):
    terms = prompts_and_terms(tmp_path)

    def released(name, teacher):
        tree = {
            "run": {"name": name},
            "teacher": {"terms": terms, **teacher},
            "prompts": {"source": str(tmp_path / "prompts.jsonl")},
            "collect": {"max_tokens": 4},
            "student": {"init": str(tiny_model(tmp_path / name))},
            "train": {"epochs": 1, "batch_tokens": 512, "dtype": "float32"},
            "evaluate": {"held_out": 0.2, "resamples": 20},
        }
        return pipeline.run(parse_recipe(tree), workspace).run.release

    first = released("first", {"model": "m", "endpoint": provider(digit).url, "provider": "somewhere"})
    second = released("second", {"model": str(first)})
    (taught,) = json.loads((second / "provenance" / "teachers.json").read_bytes())
    assert taught["model"] == "release"
    assert (taught["upstream"]["release"], taught["upstream"]["unknown"]) == ("first", "")
    of_first, its_base = taught["upstream"]["teachers"]
    assert (its_base["use"], its_base["model"]) == ("base", "first")
    assert (of_first["model"], of_first["known"]["model"]) == ("m", "m")
    own = json.loads((first / "provenance" / "teachers.json").read_bytes())
    assert of_first["decisions"] == [
        {"leaf": each["leaf"], "verdict": each["verdict"]} for each in own[0]["decisions"]
    ]
    assert taught["known"]["model"] == "release"
    assert taught["known"]["architectures"]
    with Ledger.open(workspace) as ledger:
        for decision in taught["decisions"]:
            body = ledger.leaf(decision["leaf"]).body
            assert body["upstream"] == taught["upstream"]
            assert any("m, which taught first" in reason["text"] for reason in body["reasons"])
    card = (second / "README.md").read_text()
    assert "`release` is the release `first`, and was itself taught by `m`" in card
    done = verify(second)
    assert done.ok, [check for check in done.checks if not check.ok]

    third = json.loads((second / "provenance" / "teachers.json").read_bytes())
    third[0]["upstream"]["teachers"] = []
    third[0]["known"]["architectures"] = ["another"]
    (second / "provenance" / "teachers.json").write_text(json.dumps(third))
    said = {check.name: check.detail for check in verify(second).checks if not check.ok}
    assert "names other teachers of it than the decisions" in said["teachers"]
    assert "knows it by other facts than the decisions" in said["teachers"]


def test_who_taught_the_base_of_a_release_stands_in_it_and_is_weighed_of_the_next(
    tmp_path, workspace, provider
):
    """P taught T1, T2 began as T1: what is taught by T2, or begins as it, learned from P."""
    first = tmp_path / "first"
    tiny = tiny_model(tmp_path / "tiny")
    said = {"row": "gone", "kind": "notice", "texts": ["N"], "modes": ["weights"], "redistributes": False}
    with Ledger.open(workspace) as ledger:
        taught(first, ledger.workspace, entry("embedded:desk", "shipped", None, obligations=[said]))
    for path in tiny.iterdir():
        (first / path.name).write_bytes(path.read_bytes())
    seal(first, "stillhouse/0011223344556677", "first", read_signing_key(workspace))
    tree = {
        "run": {"name": "second"},
        "teacher": {
            "model": "m",
            "endpoint": provider(digit).url,
            "provider": "somewhere",
            "terms": prompts_and_terms(tmp_path),
        },
        "prompts": {"source": str(tmp_path / "prompts.jsonl")},
        "collect": {"max_tokens": 4},
        "student": {"init": str(first)},
        "train": {"epochs": 1, "batch_tokens": 512, "dtype": "float32"},
        "evaluate": {"held_out": 0.2, "resamples": 20},
    }
    second = pipeline.run(parse_recipe(tree), workspace).run.release
    done = verify(second)
    assert done.ok, [check for check in done.checks if not check.ok]
    card = (second / "README.md").read_text()
    assert "Its base `first` is the release `first`, and was itself taught by `embedded:desk`" in card
    lineage = read_lineage(second, workspace)
    assert lineage is not None
    assert lineage.unknown == ""
    owed = [
        (past.model, past.is_base, [each.obligation.texts for each in past.owed]) for past in lineage.teachers
    ]
    assert owed == [
        ("m", False, []),
        ("first", True, [("N",)]),
        ("embedded:desk", False, [("N",)]),
    ]
    with Ledger.open(workspace) as ledger:
        decision = decided(ledger, second)
        assert decision.verdict == "allow_with_obligations"
        assert ("N",) in [each.obligation.texts for each in decision.obligations]

    told = second / "provenance" / "base.json"
    changed = json.loads(told.read_bytes())
    changed["upstream"]["teachers"] = []
    told.write_text(json.dumps(changed))
    fails = {check.name: check.detail for check in verify(second).checks if not check.ok}
    assert "base.json is not what the decision about the base says" in fails["teachers"]
    told.unlink()
    fails = {check.name: check.detail for check in verify(second).checks if not check.ok}
    assert "base.json is missing" in fails["teachers"]
    without = read_lineage(second, workspace)
    assert without is not None
    assert "base.json is missing" in without.unknown


def test_what_a_base_asks_is_met_and_checked_in_the_release_of_its_students_student(
    tmp_path, workspace, provider
):
    llama = tiny_model(tmp_path / "models--meta-llama--Llama-3.1-8B" / "snapshots" / "x")
    (llama / "LICENSE").write_text("Llama 3.1 Community License, as it came")
    workspace.operator.write_text("monthly_users = 5\n")
    teacher = {"model": "m", "endpoint": provider(digit).url, "provider": "somewhere"}
    terms = prompts_and_terms(tmp_path)

    def begun_from(init, run, **settings):
        tree = {
            "run": {"name": run},
            "teacher": {**teacher, "terms": terms},
            "prompts": {"source": str(tmp_path / "prompts.jsonl")},
            "collect": {"max_tokens": 4},
            "student": {"init": str(init)},
            "train": {"epochs": 1, "batch_tokens": 512, "dtype": "float32"},
            "evaluate": {"held_out": 0.2, "resamples": 20},
            "release": settings,
        }
        return pipeline.run(parse_recipe(tree), workspace).run.release

    first = begun_from(llama, "first", name="Llama-first")
    base = json.loads((first / "provenance" / "base.json").read_bytes())
    assert (base["model"], base["upstream"]) == ("meta-llama/Llama-3.1-8B", None)
    assert base["known"]["model"] == "meta-llama/Llama-3.1-8B"
    with pytest.raises(GateRefused, match="does not meet what it owes") as caught:
        begun_from(first, "second")
    assert "must begin with 'Llama'" in caught.value.why
    second = begun_from(first, "second", name="Llama-second")
    for release in (first, second):
        done = verify(release)
        assert done.ok, [check for check in done.checks if not check.ok]
        (copy,) = (release / "LICENSES").iterdir()
        assert copy.read_text() == "Llama 3.1 Community License, as it came"
        assert "Built with Llama" in (release / "README.md").read_text()

    llama = "`meta-llama/Llama-3.1-8B`"
    assert f"The base {llama} is no release of stillhouse" in (first / "README.md").read_text()
    told = "Its base `release` is the release `Llama-first`, and was itself taught by `m`, as its signed"
    assert f"{told} record says; it began as {llama}." in (second / "README.md").read_text()

    (second / "NOTICE").write_text("nothing")
    copy.unlink()
    said = {check.name: check.detail for check in verify(second).checks if not check.ok}
    assert "NOTICE lacks" in said["obligations"]
    assert "asks for a copy of its licence" in said["obligations"]
