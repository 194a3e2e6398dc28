"""A run whose recipe names a judge: the gate, the ledger, the bill and the figures."""

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from provider import answer
from tiny import tiny_model

from stillhouse import pipeline
from stillhouse.errors import GateRefused, UsageError
from stillhouse.ledger import Ledger
from stillhouse.recipe import parse_recipe
from stillhouse.report import write_report


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("student"))


@pytest.fixture
def recipe(tmp_path, student):
    rows = [
        {"prompt": f"say {i % 7} {i}", "id": f"p{i}", "reference": str(i % 7), "scorer": "exact"}
        for i in range(40)
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "terms.txt").write_text("you may use the answers")

    def terms(*scope):
        who = {"document": str(tmp_path / "terms.txt"), "read_on": "2026-01-02", "declared_by": "a test"}
        return who | {"scope": list(scope)}

    def make(url, judge_scope=("evaluation",), **more):
        both = ("train_target", "evaluation")
        court = {"model": "court", "endpoint": url, "provider": "court", "terms": terms(*judge_scope)}
        return parse_recipe(
            {
                "run": {"name": "t"},
                "teacher": {"model": "m", "endpoint": url, "provider": "x", "terms": terms(*both)}
                | more.get("teacher", {}),
                "prompts": {"source": str(tmp_path / "prompts.jsonl")},
                "collect": {"concurrency": 4, "max_tokens": 8} | more.get("collect", {}),
                "student": {"init": str(student)},
                "train": {"epochs": 1, "batch_tokens": 512, "dtype": "float32"},
                "evaluate": {"held_out": 0.5, "resamples": 100, "judge": court},
            }
        )

    return make


async def desk(body, number):
    """Teacher and judge in one: as judge it prefers the answer that is a digit, wherever it stands."""
    text = body["messages"][-1]["content"]
    if body["model"] == "court":
        a = re.search(r"\[answer A (\w+)\]\n(.*?)\n\[end", text, re.DOTALL)[2]
        return answer("verdict: A" if re.fullmatch(r"\d", a) else "verdict: B")
    return answer(text.split()[1])


def test_a_judge_is_admitted_asked_recorded_and_shown(provider, workspace, recipe):
    server = provider(desk)
    finished = pipeline.run(recipe(server.url), workspace)
    said = finished.evaluation["judge"]
    assert said["model"] == "court"
    assert said["usable"] is True
    assert said["verified"]["value"] == 1.0
    assert said["outcomes"] == {"teacher": said["n"]}
    asked = [body for body in server.bodies if body["model"] == "court"]
    assert len(asked) == 2 * said["n"]
    assert finished.evaluation["exchanges"]["sent"] == len(server.bodies)
    rows = pq.read_table(finished.run.judgements).to_pylist()
    with Ledger.open(workspace) as ledger:
        leaves = {leaf for row in rows for leaf in row["leaves"]}
        assert {ledger.leaf(leaf).body["stage"] for leaf in leaves} == {"judge"}
        (decision,) = {ledger.leaf(leaf).body["decision"] for leaf in leaves}
        body = ledger.leaf(decision).body
    assert (body["use"], body["teacher"]["model"]) == ("evaluation", "court")
    economics = finished.evaluation["economics"]
    assert (economics["teacher"], economics["break_even"]["answers"]) == (None, None), "no price was given"
    again = pipeline.run(recipe(server.url), workspace)
    assert again.skipped == pipeline.STAGES
    assert len([body for body in server.bodies if body["model"] == "court"]) == len(asked)


def test_a_judge_whose_terms_do_not_allow_it_stops_the_run_before_anybody_is_asked(
    provider, workspace, recipe
):
    server = provider(desk)
    with pytest.raises(GateRefused, match="court"):
        pipeline.run(recipe(server.url, judge_scope=("train_target",)), workspace)
    assert server.bodies == []


def test_a_cap_needs_the_judges_price_too(provider, workspace, recipe):
    server = provider(desk)
    priced = {"teacher": {"price": {"input": 1.0, "output": 1.0}}, "collect": {"max_cost": 5.0}}
    with pytest.raises(UsageError, match="price"):
        pipeline.run(recipe(server.url, **priced), workspace)
    assert server.bodies == []


def test_the_judges_key_is_not_echoed_when_it_stands_in_the_wrong_place(recipe):
    tree = recipe("http://localhost:1/v1").model_dump(mode="json")
    tree["evaluate"]["judge"]["key_env"] = "sk-secret-123"
    with pytest.raises(UsageError) as error:
        parse_recipe(tree)
    assert "sk-secret" not in str(error.value)


def test_relative_terms_of_a_judge_are_taken_from_the_recipes_folder(tmp_path: Path):
    from stillhouse.recipe import load_recipe

    (tmp_path / "terms.txt").write_text("yes")
    (tmp_path / "recipe.toml").write_text(
        '[run]\nname = "t"\n[teacher]\nmodel = "embedded:desk"\n[prompts]\nsource = "embedded:desk"\n'
        '[student]\ninit = "embedded:base"\n[evaluate.judge]\nmodel = "c"\nendpoint = "http://x/v1"\n'
        '[evaluate.judge.terms]\ndocument = "terms.txt"\nread_on = 2026-01-02\ndeclared_by = "a"\n'
    )
    judge = load_recipe(tmp_path / "recipe.toml").evaluate.judge
    assert judge is not None
    assert judge.terms[0].document == str(tmp_path / "terms.txt")


def test_the_teachers_bill_in_the_economics_is_without_the_judges(provider, workspace, recipe):
    server = provider(desk)
    price = {"input": 1000.0, "output": 2000.0}
    made = recipe(server.url, teacher={"price": price})
    judge = made.evaluate.judge.model_copy(update={"price": made.teacher.price})
    made = made.model_copy(
        update={"evaluate": made.evaluate.model_copy(update={"judge": judge, "machine_price": 3.6})}
    )
    for _ in range(2):  # made anew, and read again
        finished = pipeline.run(made, workspace)
        said = finished.evaluation["economics"]
        each = (10 * 1000 + 5 * 2000) / 1e6
        assert said["teacher"] == pytest.approx(1000 * each)
        assert said["spent"]["teacher"] == pytest.approx(40 * each)
        assert said["student"] > 0
    dearer = made.evaluate.model_copy(update={"machine_price": 7.2})
    again = pipeline.run(made.model_copy(update={"evaluate": dearer}), workspace)
    assert "evaluate" in again.skipped
    assert again.evaluation["economics"]["student"] == pytest.approx(2 * said["student"])
    marker = json.loads(finished.run.marker("evaluate").read_text())["result"]
    whole = marker["cost"]
    judged = 2 * finished.evaluation["judge"]["n"]
    assert whole["low"] == pytest.approx(each * (finished.evaluation["prompts"]["n"] + judged))
    assert marker["judge"] == {"answers": judged, "billed": pytest.approx(each * judged)}
    shown = write_report(finished.run).read_text()
    assert f"<dt>billed</dt><dd>US$ {40 * each:,.2f}</dd>" in shown
    assert f"<dt>billed by the judge</dt><dd>US$ {judged * each:,.2f}, {judged} answers</dd>" in shown


def test_a_plan_tells_of_the_judge_and_of_further_students(provider, workspace, recipe):
    asked = recipe(provider(desk).url)
    evaluate = asked.evaluate.model_copy(update={"seeds": 3, "curve": [5]})
    with Ledger.open(workspace) as ledger:
        planned = pipeline.plan(asked, workspace, ledger)
        more = pipeline.plan(asked.model_copy(update={"evaluate": evaluate}), workspace, ledger)
    assert planned.to_judge == 2 * len(planned.prompts.test) > 0
    assert (planned.trainings, more.trainings) == (0, 3)
