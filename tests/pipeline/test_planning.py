"""What a plan says beforehand, held against what a run then does."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from provider import Provider, echo

from stillhouse import pipeline
from stillhouse.ask.pace import MARGIN
from stillhouse.cli.show import duration, money, plan_text
from stillhouse.ledger import Ledger
from stillhouse.money import UNKNOWN, Estimate
from stillhouse.pipeline import Plan
from stillhouse.pipeline.planning import slowest
from stillhouse.recipe import Price, Recipe, parse_recipe
from stillhouse.workspace import Workspace

Serve = Callable[..., Provider]


def recipe(folder: Path, url: str, count: int, **collect: object) -> Recipe:
    rows = [{"prompt": f"say {i}", "id": f"p{i}"} for i in range(count)]
    (folder / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "terms.txt").write_text("you may")
    terms = {"document": str(folder / "terms.txt"), "read_on": "2026-01-02", "declared_by": "a test"}
    return parse_recipe(
        {
            "run": {"name": "t"},
            "teacher": {"model": "m", "endpoint": url, "provider": "somewhere", "terms": terms},
            "prompts": {"source": str(folder / "prompts.jsonl")},
            "collect": {"concurrency": 8, **collect},
            "student": {"init": "config"},
            "evaluate": {"held_out": 0.0},
        }
    )


def planned(settings: Recipe, workspace: Workspace) -> Plan:
    with Ledger.open(workspace) as ledger:
        return pipeline.plan(settings, workspace, ledger)


def test_the_time_is_that_of_the_slowest_bound(provider: Serve, workspace: Workspace, tmp_path: Path):
    server = provider(echo)  # 10 tokens in, 5 out, at once
    before = planned(recipe(tmp_path, server.url, 40, requests_per_minute=60), workspace)
    assert before.seconds == Estimate(pytest.approx(40 / MARGIN), None, None)
    assert before.slowed_by == "requests_per_minute"
    assert "at least 41 s, by collect.requests_per_minute" in duration(before.seconds, before.slowed_by)
    unlimited = recipe(tmp_path, server.url, 40)
    assert planned(unlimited, workspace).seconds == UNKNOWN
    pipeline.run(unlimited, workspace, stages=("collect",))

    def after(**rates: float) -> Plan:
        return planned(recipe(tmp_path, server.url, 140, **rates), workspace)

    free = after()
    assert free.slowed_by == "concurrency"
    assert free.seconds.expected is not None
    assert free.seconds.expected < 10
    by_requests = after(requests_per_minute=60, tokens_per_minute=15 * 120)
    assert by_requests.slowed_by == "requests_per_minute"
    assert by_requests.seconds.expected == pytest.approx(100 / MARGIN)
    by_tokens = after(requests_per_minute=60, tokens_per_minute=15 * 30)
    assert by_tokens.slowed_by == "tokens_per_minute"
    assert by_tokens.seconds.expected == pytest.approx(200 / MARGIN)
    assert after(requests_per_minute=1e9).slowed_by == "concurrency"


def test_a_small_sum_is_not_shown_as_nothing():
    assert money(Estimate(0.0021, 0.0023, 0.0034)) == "US$ 0.0023 (0.0021 to 0.0034)"
    assert money(Estimate(None, None, 0.00031)).startswith("at most US$ 0.00031 (")
    assert money(Estimate(4.1, 12.0, 1234.5)) == "US$ 12.00 (4.10 to 1,234.50)"
    assert money(Estimate(0.0, 0.0, 0.0)) == "nothing"


def test_of_several_teachers_a_plan_names_each_price(workspace: Workspace, tmp_path: Path):
    one = recipe(tmp_path, "https://a.example/v1", 4, max_cost=0.004)
    price = Price(input=1.0, output=4.0)
    others = [
        one.teacher.model_copy(update={"model": "n", "price": Price(input=2.0, output=3.0)}),
        one.teacher.model_copy(update={"model": "o", "price": price}),
    ]
    settings = one.model_copy(
        update={"teacher": one.teacher.model_copy(update={"price": price}), "teachers": others}
    )
    lines = plan_text(settings, planned(settings, workspace)).splitlines()
    assert [line for line in lines if line.startswith("price")] == [
        "price      m: US$ 1 in, 4 out, per million tokens, by the recipe",
        "price      n: US$ 2 in, 3 out, per million tokens, by the recipe",
        "price      o: US$ 1 in, 4 out, per million tokens, by the recipe",
    ]
    assert any(line.endswith("stops at US$ 0.0040") for line in lines)


def test_of_an_unknown_time_only_the_least_is_said():
    assert slowest([(UNKNOWN, "a"), (UNKNOWN, "b")]) == (UNKNOWN, "")
    assert slowest([(UNKNOWN, "a"), (Estimate(3, 3, 3), "b")]) == (Estimate(3, None, None), "b")
    assert slowest([(Estimate(1, 2, 9), "a"), (Estimate(3, 3, 3), "b")]) == (Estimate(3, 3, 9), "b")


def test_the_same_question_under_two_ids_is_sent_once(provider: Serve, workspace: Workspace, tmp_path: Path):
    server = provider(echo)
    settings = recipe(tmp_path, server.url, 10)
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"prompt": "say 3", "id": "again"}))
    plan = planned(settings, workspace)
    assert (plan.questions, plan.answered, plan.to_send) == (11, 0, 10)
    pipeline.run(settings, workspace, stages=("collect",))
    assert len(server.bodies) == 10
    assert planned(settings, workspace).to_send == 0
