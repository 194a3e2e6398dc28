"""What a judge's verdicts are worth and what they say: known truth in, figures out."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from stillhouse.ask.judge import Judged
from stillhouse.evaluate.predictions import Prediction
from stillhouse.evaluate.preference import (
    Judgement,
    judge_pairs,
    length_adjusted,
    preference_figures,
    write_judgements,
)
from stillhouse.records import Message, Prompt


def prompts(n):
    return [Prompt(f"p{i}", (Message("user", f"q{i}"),), "f", f"g{i}", "x", "exact") for i in range(n)]


def prediction(i, system, answer, score):
    return Prediction(f"p{i}", "f", f"g{i}", system, answer, score, "", 1, 1, "stop")


def rows(n, scores):
    """`scores(i)` gives the scores of student and teacher."""
    made = []
    for i in range(n):
        student, teacher = scores(i)
        made += [prediction(i, "student", f"s{i}", student), prediction(i, "teacher", f"t{i}", teacher)]
    return made


def court(prefer, asked):
    def ask(pairs):
        asked.append([pair.prompt_id for pair in pairs])
        return [Judged(pair.prompt_id, prefer(pair), None, None) for pair in pairs]

    return ask


def by_number(pair):
    return int(pair.prompt_id[1:])


def test_a_judge_that_knows_is_used_on_all_pairs_and_verified_ones_come_first():
    made = rows(40, lambda i: (1.0, 0.0) if i % 4 == 0 else (0.0, 1.0) if i % 4 == 1 else (None, 1.0))
    asked = []
    judged = judge_pairs(
        made, prompts(40), court(lambda p: "first" if by_number(p) % 4 == 0 else "second", asked)
    )
    assert [len(each) for each in asked] == [20, 20]
    assert all(by % 4 < 2 for by in (int(name[1:]) for name in asked[0]))
    figures = preference_figures(judged, 17, 200)
    assert figures["usable"] is True
    assert figures["verified"]["value"] == 1.0
    assert figures["verified"]["low"] > 0.8
    assert figures["win_rate"]["value"] == 0.25
    assert figures["outcomes"] == {"student": 10, "teacher": 30}


def test_a_judge_below_chance_is_asked_no_further_and_not_usable():
    asked = []
    made = rows(40, lambda i: (1.0, 0.0) if i < 20 else (1.0, 1.0))
    judged = judge_pairs(made, prompts(40), court(lambda p: "second", asked))
    assert [len(each) for each in asked] == [20]
    figures = preference_figures(judged, 17, 200)
    assert figures["usable"] is False
    assert "no better than chance" in figures["why"]
    assert figures["verified"] == {
        "value": 0.0, "low": 0.0, "high": pytest.approx(0.161, abs=1e-3), "n": 20, "unscored": 0
    }  # fmt: skip


def test_without_verified_pairs_nobody_can_say_what_the_verdicts_are_worth():
    made = rows(10, lambda i: (None, None))
    figures = preference_figures(judge_pairs(made, prompts(10), court(lambda p: "first", [])), 17, 100)
    assert (figures["usable"], figures["verified"]["n"], figures["win_rate"]["value"]) == (None, 0, 1.0)
    few = rows(3, lambda i: (1.0, 0.0))
    figures = preference_figures(judge_pairs(few, prompts(3), court(lambda p: "first", [])), 17, 100)
    assert figures["usable"] is None
    assert "not shown to be above chance" in figures["why"]


def test_a_judge_that_only_talks_nonsense_has_no_figures_but_its_reasons_and_is_asked_no_further():
    asked = []

    def ask(pairs):
        asked.append(len(pairs))
        return [Judged(pair.prompt_id, "unscored", None, None, "no verdict") for pair in pairs]

    made = rows(9, lambda i: (1.0, 0.0) if i < 6 else (1.0, 1.0))
    figures = preference_figures(judge_pairs(made, prompts(9), ask), 17, 100)
    assert asked == [6]
    assert figures["usable"] is False
    assert figures["why"] == "it gave no verdict on any of 6 pairs whose better answer is known"
    assert figures["reasons"] == {"no verdict": 6}
    assert figures["verified"]["unscored"] == 6
    assert (figures["win_rate"]["value"], figures["length_adjusted"]["value"]) == (None, None)
    assert preference_figures([], 17, 100)["usable"] is None


def test_failed_answers_are_no_pairs_and_a_count_bounds_the_questions():
    made = rows(10, lambda i: (None, None))
    made = [
        row if row.prompt_id != "p3" else Prediction(*[*_values(row)[:4], None, *_values(row)[5:]])
        for row in made
    ]
    asked = []
    judge_pairs(made, prompts(10), court(lambda p: "tie", asked))
    assert len(asked[0]) == 9
    judge_pairs(made, prompts(10), court(lambda p: "tie", asked), count=4)
    assert len(asked[1]) == 4


def _values(row):
    return [getattr(row, name) for name in Prediction.__dataclass_fields__]


def simulated(n, bias, skill, seed):
    """A judge that likes the longer answer: logit = skill + bias * tanh(d / s)."""
    rng = np.random.default_rng(seed)
    longer = rng.normal(80, 100, n)
    logit = skill + bias * np.tanh(longer / longer.std())
    return (rng.random(n) < 1 / (1 + np.exp(-logit))).astype(float), longer


def test_the_adjusted_rate_is_the_regression_at_equal_length():
    """Against scikit-learn's logistic regression on the same numbers."""
    preferred, longer = simulated(600, 2.0, -0.3, 5)
    found = length_adjusted(preferred, longer, np.arange(600), np.random.default_rng(1), 300)
    x = np.tanh(longer / longer.std())[:, None]
    reference = LogisticRegression(C=1e6).fit(x, preferred)
    assert found["slope"] == pytest.approx(reference.coef_[0, 0], rel=0.02)
    assert found["value"] == pytest.approx(1 / (1 + np.exp(-reference.intercept_[0])), abs=0.005)
    assert found["low"] < found["value"] < found["high"]


def test_length_is_taken_out_of_a_judge_that_looks_at_nothing_else():
    preferred, longer = simulated(3000, 3.0, 0.0, 6)
    assert preferred.mean() > 0.6
    found = length_adjusted(preferred, longer, np.arange(3000), np.random.default_rng(1), 200)
    assert found["low"] <= 0.5 <= found["high"]


def test_lengths_that_separate_all_verdicts_or_are_equal_break_nothing():
    longer = np.array([-3.0, -2, -1, 1, 2, 3])
    found = length_adjusted((longer > 0).astype(float), longer, np.arange(6), np.random.default_rng(1), 50)
    assert found["value"] == pytest.approx(0.5, abs=0.01)
    assert np.isfinite(found["slope"])
    same = length_adjusted(np.ones(3), np.zeros(3), np.arange(3), np.random.default_rng(1), 50)
    assert (same["value"], same["n"]) == (None, 3)


def test_judgements_are_written_row_by_row(tmp_path):
    from pyarrow import parquet

    row = Judgement("p", "f", "", "unscored", "why", "A", None, None, 3, 4, (7,))
    write_judgements(tmp_path / "j.parquet", [row])
    (read,) = parquet.read_table(tmp_path / "j.parquet").to_pylist()
    assert (read["outcome"], read["leaves"], read["better"]) == ("unscored", [7], None)
