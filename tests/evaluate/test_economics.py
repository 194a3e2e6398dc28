"""What an answer costs, and after how many the distillation has paid: sums that anyone can redo."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stillhouse.evaluate.economics import Ledgered, claim, economics, flops_share
from stillhouse.evaluate.predictions import Prediction
from stillhouse.evaluate.students import Measured, latency
from stillhouse.money import Price
from stillhouse.records import Message, Prompt


def rows(n=20, student_tokens=50):
    made = []
    for i in range(n):
        made += [
            Prediction(f"p{i}", "f", f"g{i}", "teacher", "a", 1.0, "", 1000, 100, "stop"),
            Prediction(f"p{i}", "f", f"g{i}", "student", "a", 1.0, "", 900, student_tokens, "stop"),
        ]
    return made


EVALUATION = {
    "retention": {"value": 0.9, "low": 0.85, "high": 0.95, "n": 20},
    "flops_share": {"value": 0.1, "low": 0.08, "high": 0.12, "n": 20},
    "tokens_per_second": {"teacher": 10.0, "student": 100.0},
}
ELSEWHERE = Ledgered(Price(1.0, 10.0), False, 0.36, 5.0, 60.0, 36_000.0)


def found(run, made=None, **more):
    return economics(rows() if made is None else made, {**EVALUATION, **more}, run, 17, 200)


def test_a_priced_teacher_against_a_machine_by_the_hour():
    said = found(ELSEWHERE)
    assert said["teacher"] == pytest.approx(1000 * (1000 * 1 + 100 * 10) / 1e6)  # 2 dollars
    assert said["student"] == pytest.approx(1000 * 0.5 / 3600 * 0.36)  # half a second each: 5 cents
    assert said["spent"] == {"teacher": 5.0, "training": pytest.approx(3.6), "total": pytest.approx(8.6)}
    assert said["break_even"]["answers"] == pytest.approx(8.6 / (0.002 - 0.00005))
    flops, dollars = said["pairs"]
    assert (flops["basis"], flops["claim"]) == ("FLOPs per answer", "holds")
    assert dollars["cost"]["value"] == pytest.approx(0.025)
    assert dollars["kept"]["low"] == 0.85


def test_a_teacher_served_here_costs_the_machines_time():
    said = found(replace(ELSEWHERE, price=None, served_here=True, billed=0.0))
    assert said["teacher"] == pytest.approx(1000 * 10 / 3600 * 0.36)
    assert said["spent"]["teacher"] == pytest.approx(60 / 3600 * 0.36)
    assert said["break_even"]["answers"] > 0


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"machine": None}, "machine_price"),
        ({"price": None}, "teacher's price"),
        ({"billed": None}, "answers cost"),
    ],
)
def test_what_is_not_known_stays_unknown_and_is_named(change, word):
    said = found(replace(ELSEWHERE, **change))
    assert said["break_even"]["answers"] is None
    assert word in said["break_even"]["why"]
    if "billed" not in change:
        assert said["pairs"][1]["claim"] == "unknown"
    assert said["pairs"][0]["claim"] == "holds", "FLOPs need no price"


def test_a_student_that_costs_more_never_pays():
    said = found(replace(ELSEWHERE, machine=360.0))
    assert said["break_even"] == {
        "answers": None, "why": "never: an answer of the student costs as much as one of the teacher"
    }  # fmt: skip


def test_without_answers_there_are_no_figures():
    said = found(ELSEWHERE, [])
    assert (said["teacher"], said["student"], said["break_even"]["answers"]) == (None, None, None)
    assert "speeds or token counts" in said["break_even"]["why"]


@pytest.mark.parametrize(
    ("kept", "cost", "wanted"),
    [
        ((0.9, 0.82, 0.95), (0.1, 0.1, 0.19), "holds"),
        ((0.9, 0.78, 0.95), (0.1, 0.1, 0.19), "not decided"),
        ((0.7, 0.6, 0.79), (0.1, 0.1, 0.1), "does not hold"),
        ((0.9, 0.85, 0.95), (0.3, 0.21, 0.4), "does not hold"),
        ((0.9, None, None), (0.1, 0.1, 0.1), "not decided"),
        ((None, None, None), (0.1, 0.1, 0.1), "unknown"),
    ],
)
def test_the_claim_of_80_for_20_is_decided_by_both_intervals(kept, cost, wanted):
    names = ("value", "low", "high")
    assert claim(dict(zip(names, kept, strict=True)), dict(zip(names, cost, strict=True))) == wanted


def test_the_share_of_flops_is_that_of_the_sums_and_has_an_interval(tmp_path):
    from tiny import tiny_model

    from stillhouse.models.flops import flops_per_answer
    from stillhouse.models.local import load_model

    small = load_model(str(tiny_model(tmp_path / "s"))).model.config
    large = load_model(str(tiny_model(tmp_path / "l", layers=4))).model.config
    sizes = {"teacher": Measured(large, 1, None), "student": Measured(small, 1, None)}
    made = rows() + rows(20, 10)[1::2]
    share = flops_share(made, sizes, 17, 100)
    assert share["value"] == pytest.approx(
        flops_per_answer(small, 900, 10) / flops_per_answer(large, 1000, 100)
    )
    assert share["low"] <= share["value"] <= share["high"]
    assert flops_share(made, {"student": sizes["student"]}, 17, 100)["value"] is None


def test_latency_is_the_wait_of_one_answer_at_a_time(tmp_path):
    from tiny import tiny_model

    from stillhouse.models.local import load_model

    model = load_model(str(tiny_model(tmp_path / "m")))
    prompts = [Prompt(f"p{i}", (Message("user", f"is {i} even?"),)) for i in range(3)]
    ticks = iter([0.0, 1.0, 10.0, 14.0, 20.0, 22.0])
    found = latency(model, prompts, 5, clock=lambda: next(ticks))
    assert (found.median, found.slowest, found.n) == (2.0, 4.0, 3)
    assert latency(model, [], 5) is None
