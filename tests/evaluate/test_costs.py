"""FLOPs over the same prompts for teacher and student, and unknown where no formula or count is there."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from stillhouse.evaluate.costs import cost_figures
from stillhouse.evaluate.predictions import Prediction
from stillhouse.evaluate.students import Measured


def config(layers):
    return SimpleNamespace(
        model_type="llama",
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=32,
    )


def row(prompt_id, system, read, written):
    return Prediction(prompt_id, "f", "", system, "a", 1.0, "", read, written, "stop")


TEACHER, STUDENT = Measured(config(4), 1000, 50.0), Measured(config(1), 100, 200.0)
ROWS = [row("p", "teacher", 10, 1), row("p", "student", 8, 1), row("q", "student", 80, 9)]


def one_answer(layers, read):
    """A single answer token: `read` tokens pass the layers, the head is used once."""
    weights = 2 * 8 * 2 * 4 + 2 * 8 * 1 * 4 + 3 * 8 * 16
    return layers * (read * 2 * weights + 4 * 8 * read * (read + 1) / 2) + 2 * 8 * 32


def test_means_are_over_the_prompts_that_both_answered_each_by_its_own_count():
    found = cost_figures(ROWS, {"teacher": TEACHER, "student": STUDENT})
    assert found["flops"] == {
        "teacher": one_answer(4, 10),
        "student_before": None,
        "student": one_answer(1, 8),
    }
    assert found["flops_ratio"] == pytest.approx(one_answer(1, 8) / one_answer(4, 10))
    assert found["flops_per_token"]["student"] == pytest.approx(one_answer(1, 8) / 9)
    assert found["flops_prompts"] == 1
    assert found["parameters"] == {"teacher": 1000, "student_before": None, "student": 100}
    assert found["tokens_per_second"] == {"teacher": 50.0, "student": 200.0}
    assert found["notes"] == []


def test_without_the_teacher_the_student_stands_alone():
    found = cost_figures(ROWS, {"student": STUDENT})
    assert found["flops"]["student"] > one_answer(1, 8), "both of its answers now"
    assert (found["flops"]["teacher"], found["flops_ratio"], found["tokens_per_second"]["teacher"]) == (
        None,
    ) * 3


def test_uncounted_tokens_and_unknown_architectures_are_unknown_and_said():
    silent = [replace(r, prompt_tokens=None) if r.system == "teacher" else r for r in ROWS]
    found = cost_figures(silent, {"teacher": TEACHER, "student": STUDENT})
    assert (found["flops"]["teacher"], found["flops_ratio"]) == (None, None)
    assert found["notes"] == ["teacher: FLOPs unknown, for no answer has token counts"]
    experts, odd = config(4), SimpleNamespace(model_type="mamba", hidden_size=8, num_hidden_layers=1)
    experts.num_experts = 8
    for unknown, said in ((experts, "8 experts"), (odd, "no formula fits")):
        found = cost_figures(ROWS, {"teacher": replace(TEACHER, config=unknown), "student": STUDENT})
        assert found["flops_ratio"] is None
        assert said in found["notes"][0]
    assert cost_figures([], {"teacher": TEACHER, "student": STUDENT})["flops_ratio"] is None
