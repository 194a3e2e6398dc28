"""The stage as a whole, on tiny random models that answer for themselves."""

import json
from dataclasses import replace

import pyarrow as pa
import pytest
from pyarrow import parquet
from tiny import tiny_model

from stillhouse.errors import ModelError, UsageError
from stillhouse.evaluate import TeacherAnswers, evaluate, read_predictions
from stillhouse.evaluate.students import model_source, tokens_per_second
from stillhouse.models import local
from stillhouse.recipe import parse_recipe
from stillhouse.records import Message, Prompt
from stillhouse.workspace import RunFolder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return tiny_model(root / "teacher", layers=4, seed=1), tiny_model(root / "student", seed=2)


@pytest.fixture
def run(tmp_path, models):
    _, student = models
    run = RunFolder(tmp_path)
    run.student.symlink_to(student)
    run.student_before.write_text(f"{student}\n")
    samples = [
        {
            "messages": [{"role": "user", "content": f"is {i} even?"}],
            "completion": "no" if i % 2 else "yes",
            "family": "even",
        }
        for i in range(20)
    ]
    parquet.write_table(pa.Table.from_pylist(samples), run.samples)
    return run


def recipe(**evaluate_settings):
    return parse_recipe(
        {
            "run": {"name": "t"},
            "teacher": {"model": "x"},
            "prompts": {"source": "p.jsonl"},
            "student": {"init": "x"},
            "evaluate": {"max_tokens": 6, "resamples": 100, **evaluate_settings},
        }
    )


PROMPTS = [
    Prompt(
        f"p{i}", (Message("user", f"is {i} even?"),), "even", f"t{i % 4}", "no" if i % 2 else "yes", "exact"
    )
    for i in range(8)
]


def teacher_of(prompts, folder=None, failed=()):
    answered = [p for p in prompts if p.id not in failed]
    return TeacherAnswers(
        texts={p.id: p.reference or "" for p in answered},
        tokens={p.id: (12, 4) for p in answered},
        failed=dict.fromkeys(failed, "HTTP 500"),
        folder=None if folder is None else str(folder),
    )


def test_the_whole_stage_writes_rows_then_figures(run, models):
    seen = []
    found = evaluate(run, recipe(), PROMPTS, teacher_of(PROMPTS, models[0], failed=["p7"]), seen.append)
    assert json.loads(run.evaluation.read_text()) == found
    rows = read_predictions(run.predictions)
    assert len(rows) == 4 * len(PROMPTS)
    assert found["teacher"]["score"] == 1.0
    assert found["teacher"]["failed"] == 1
    assert found["student"]["n"] == 8
    assert found["baseline"]["n"] == 8
    assert found["prompts"] == {"n": 8, "groups": 4, "families": 1}
    assert found["scored_by"] == ["exact"]
    assert found["parameters"]["teacher"] > found["parameters"]["student"] > 1000
    assert 0 < found["flops_ratio"] < 1
    assert found["flops_ratio"] == found["flops"]["student"] / found["flops"]["teacher"]
    assert found["flops"]["student_before"] == found["flops"]["student"], "the same weights here"
    assert found["flops_prompts"] == 7
    assert found["flops_per_token"]["student"] < found["flops_per_token"]["teacher"]
    assert min(found["tokens_per_second"].values()) > 0
    assert found["fidelity"]["divergence"]["n"] == 7
    assert found["fidelity"]["divergence"]["value"] > 0
    assert 0 <= found["fidelity"]["calibration"]["student"]["ece"] <= 1
    assert found["battery"]["n"] == len(read_predictions(run.battery)) / 2
    assert any("teacher: no answer to 1 of 8 prompts (1 x HTTP 500)" in note for note in found["notes"])
    assert (seen[-1].done, seen[-1].total, seen[-1].counts) == (16, 16, {"teacher failed": 1})


def test_the_untrained_student_is_read_through_its_pointer_and_answers_alike(run):
    """Before and after are the same weights here, so every answer must be the same text."""
    evaluate(run, recipe(baseline=False), PROMPTS, teacher_of(PROMPTS))
    answers = {(row.system, row.prompt_id): row for row in read_predictions(run.predictions)}
    for prompt in PROMPTS:
        before, after = answers["student_before", prompt.id], answers["student", prompt.id]
        assert before.answer == after.answer
        assert after.prompt_tokens >= len(prompt.messages[0].content)
        assert 0 < after.completion_tokens <= 6
        assert after.finish_reason in ("stop", "length")


def test_the_verdict_is_on_the_declared_margin_and_remembers_another_one(run):
    """A random student against a teacher that is always right: lost, whatever may be lost but nearly all."""
    alone = [replace(prompt, group="") for prompt in PROMPTS]
    undeclared = evaluate(run, recipe(baseline=False), alone, teacher_of(alone))["verdict"]
    assert (undeclared["ruling"], undeclared["margin"]) == (None, None)
    first = evaluate(run, recipe(baseline=False, margin=0.05), alone, teacher_of(alone))
    assert (first["verdict"]["ruling"], first["verdict"]["more"]) == ("inferior", 0)
    assert first["verdict"]["earlier"] == []
    again = evaluate(run, recipe(baseline=False, margin=0.9), alone, teacher_of(alone))
    assert again["verdict"]["earlier"] == [0.05]
    assert any("under another margin (0.05)" in note for note in again["notes"])


def test_scorers_that_fail_or_answer_nonsense_leave_their_rows_unscored_and_counted(run):
    def colour_blind(answer, reference):
        raise ValueError("no colour today")

    own = {
        "raises": colour_blind,
        "nan": lambda answer, reference: float("nan"),
        "words": lambda answer, reference: "right",
        "one": lambda answer, reference: 1.0,
    }
    prompts = [replace(p, scorer=name) for p, name in zip(PROMPTS, [*own] * 2, strict=True)]
    found = evaluate(run, recipe(baseline=False, margin=0.05), prompts, teacher_of(prompts), scorers=own)
    for system in ("teacher", "student", "student_before"):
        assert (found[system]["n"], found[system]["unscored"], found[system]["score"]) == (2, 6, 1.0)
    notes = "\n".join(found["notes"])
    for reason in (
        "2 x scorer 'raises' raised ValueError: no colour today",
        "returned nan",
        "returned a str",
    ):
        assert reason in notes
    broken = [replace(p, scorer="raises") for p in PROMPTS]
    nothing = evaluate(run, recipe(baseline=False, margin=0.05), broken, teacher_of(broken), scorers=own)
    assert nothing["student"]["score"] is None
    assert nothing["verdict"]["reason"] == "no prompt was scored for both teacher and student"
    assert nothing["worst_family"] is None


def test_what_is_not_known_is_none_with_a_note(run):
    run.student_before.unlink()
    found = evaluate(run, recipe(baseline=False), PROMPTS, teacher_of(PROMPTS))
    assert found["flops_ratio"] is None
    assert (found["flops"]["teacher"], found["flops_per_token"]["teacher"]) == (None, None)
    assert found["flops"]["student"] > 0
    assert found["parameters"]["teacher"] is None
    assert found["tokens_per_second"]["teacher"] is None
    assert found["student_before"]["score"] is None
    assert found["gap_closed"]["value"] is None
    assert found["baseline"]["score"] is None
    notes = "\n".join(found["notes"])
    for part in ("teacher is not on this machine", "no record of the student before", "evaluate.baseline"):
        assert part in notes
    broken = evaluate(run, recipe(baseline=False), PROMPTS, teacher_of(PROMPTS, run.root / "gone"))
    assert broken["parameters"]["teacher"] is None
    assert any("speed are unknown: no model at" in note for note in broken["notes"])


def test_memory_that_runs_out_while_speed_is_measured_costs_only_the_speed(run, models, monkeypatch):
    """The rows are written before the teacher is loaded, and its size is read from its files."""
    from stillhouse.evaluate import students

    whole = evaluate(run, recipe(baseline=False), PROMPTS, teacher_of(PROMPTS, models[0]))
    load = local.load_model

    def full(source):
        if source == str(models[0]):
            assert len(read_predictions(run.predictions)) == 3 * len(PROMPTS)
            raise ModelError("could not load the weights", "can't allocate memory", "")
        return load(source)

    def slow(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    run.predictions.unlink()
    monkeypatch.setattr(local, "load_model", full)
    monkeypatch.setattr(students, "tokens_per_second", slow)
    found = evaluate(run, recipe(baseline=False), PROMPTS, teacher_of(PROMPTS, models[0]))
    assert found["tokens_per_second"] == {"teacher": None, "student": None}
    for key in ("parameters", "flops", "flops_ratio"):
        assert found[key] == whole[key]
    notes = "\n".join(found["notes"])
    assert "the teacher's speed is unknown: could not load the weights" in notes
    assert "the student's speed is unknown" in notes


def test_progress_counts_only_the_students_that_answer(run):
    run.student_before.unlink()
    seen = []
    evaluate(run, recipe(baseline=False), PROMPTS, teacher_of(PROMPTS), seen.append)
    assert (seen[-1].done, seen[-1].total) == (8, 8)


def test_prompts_without_scorers_too_long_prompts_and_no_prompts_do_not_stop_it(run, models):
    unscored = [replace(prompt, scorer=None) for prompt in PROMPTS]
    long = Prompt("long", (Message("user", "a" * 200),), "even", "", "x", "exact")
    found = evaluate(run, recipe(), [*unscored, long], teacher_of([*unscored, long], models[0]))
    student = found["student"]
    assert (student["score"], student["n"], student["unscored"], student["failed"]) == (0.0, 1, 8, 1)
    assert found["retention"]["value"] == 0.0, "a prompt that the student cannot read is not left out"
    assert any("the prompt has 2" in note for note in found["notes"])
    empty = evaluate(run, recipe(), [], teacher_of([]))
    assert empty["student"]["score"] is None
    assert "there were no test prompts, so nothing was measured" in empty["notes"]


def test_wrong_input_is_refused_before_anything_is_loaded(tmp_path):
    nowhere = RunFolder(tmp_path / "none")
    with pytest.raises(UsageError, match="scorer"):
        evaluate(nowhere, recipe(), [replace(PROMPTS[0], scorer="exakt")], teacher_of(PROMPTS))
    with pytest.raises(UsageError, match="share an id"):
        evaluate(nowhere, recipe(), [PROMPTS[0], PROMPTS[0]], teacher_of(PROMPTS))
    with pytest.raises(ModelError):
        evaluate(nowhere, recipe(), PROMPTS, teacher_of(PROMPTS))
    assert not nowhere.evaluation.exists()


def test_own_scorers_reach_the_figures(run):
    prompts = [replace(prompt, scorer="half") for prompt in PROMPTS]
    found = evaluate(run, recipe(), prompts, teacher_of(prompts), scorers={"half": lambda a, r: 0.5})
    assert found["student"]["score"] == 0.5
    assert found["retention"]["value"] == 1.0
    assert found["scored_by"] == ["half"]


def test_speed_is_answer_tokens_over_the_fastest_rounds_time(models):
    from stillhouse.models.local import Request, generate, load_model, prompt_ids

    model = load_model(str(models[1]))
    ticks = iter([0.0, 9.0, 10.0, 12.0, 20.0, 25.0])
    speed = tokens_per_second(model, PROMPTS, 5, clock=lambda: next(ticks))
    answers = generate(model, [Request(prompt_ids(model, p.messages), 5) for p in PROMPTS])
    assert speed == sum(answer.completion_tokens for answer in answers) / 2.0
    assert tokens_per_second(model, [], 5) is None


def test_a_model_is_found_as_a_folder_or_through_a_file(tmp_path):
    assert model_source(tmp_path) == str(tmp_path)
    (tmp_path / "pointer").write_text("embedded:base\n")
    assert model_source(tmp_path / "pointer") == "embedded:base"
    (tmp_path / "empty").write_text("\n")
    assert model_source(tmp_path / "empty") is None
    assert model_source(tmp_path / "nothing") is None
