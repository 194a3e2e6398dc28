"""A student of a student: the release names both teachers, and the decision that allowed it."""

import json

import pytest
from provider import answer
from tiny import tiny_model

from stillhouse import pipeline
from stillhouse.audit import verify
from stillhouse.ledger import Ledger
from stillhouse.recipe import parse_recipe

pytestmark = pytest.mark.usefixtures("one_thread")


def test_both_teachers_stand_in_the_release_of_a_students_student(tmp_path, workspace, provider):
    async def digit(body, number):
        return answer(body["messages"][-1]["content"].split()[1])

    rows = [
        {"prompt": f"say {i % 7} {i}", "id": f"p{i}", "reference": str(i % 7), "scorer": "exact"}
        for i in range(20)
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "terms.txt").write_text("you may train on the answers")
    terms = {"document": str(tmp_path / "terms.txt"), "read_on": "2026-01-02", "declared_by": "a test"}

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
    (of_first,) = taught["upstream"]["teachers"]
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
