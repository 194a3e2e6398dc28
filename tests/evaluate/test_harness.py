"""lm-eval through its own API, on a tiny model, with a task file and data of our own and no network."""

from __future__ import annotations

import json

import pytest
from tiny import tiny_model

from stillhouse.errors import UsageError
from stillhouse.evaluate.harness import open_tasks, read_metrics, run_harness
from stillhouse.recipe import Evaluate

TASK = """\
task: even_numbers
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}} "
doc_to_choice: ["yes", "no"]
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 3.0
"""


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (the extra `lmeval`)")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"question": f"is {i} even?", "answer": i % 2} for i in range(10)]
    data = folder / "even.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "even_numbers.yaml").write_text(TASK.format(data=data))
    return folder


def test_a_local_task_is_scored_before_and_after(tasks, tmp_path, capsys):
    settings = Evaluate(harness=["even_numbers"], harness_path=str(tasks), harness_limit=8)
    log = tmp_path / "logs" / "harness.log"
    manager = open_tasks(settings, log)
    models = {
        "student_before": str(tiny_model(tmp_path / "a", seed=1)),
        "student": str(tiny_model(tmp_path / "b", seed=2)),
    }
    found = run_harness(models, manager, settings, 17, log)
    assert found["failed"] == {}
    task = found["tasks"]["even_numbers"]
    assert (task["n"], task["version"]) == (8, "3.0")
    for name in models:
        figure = task["metrics"]["acc"][name]
        assert figure["value"] * 8 == round(figure["value"] * 8)
        assert figure["error"] is not None
    assert found == run_harness(models, manager, settings, 17, log), "the same again"
    assert capsys.readouterr().out == ""


def test_a_task_that_nobody_knows_is_refused_with_the_way_out(tasks, tmp_path):
    with pytest.raises(UsageError, match="no task evn"):
        open_tasks(Evaluate(harness=["evn"], harness_path=str(tasks)), tmp_path / "log")


def test_a_task_whose_data_are_missing_is_a_reason_and_no_crash(tasks, tmp_path):
    (tasks / "even.jsonl").unlink()
    settings = Evaluate(harness=["even_numbers"], harness_path=str(tasks))
    log, model = tmp_path / "log", str(tiny_model(tmp_path / "m"))
    found = run_harness({"student": model}, open_tasks(settings, log), settings, 17, log)
    assert found["tasks"] == {}
    assert "even.jsonl" in found["failed"]["student"]


def test_metrics_are_read_with_their_errors_and_filters():
    given = {
        "alias": "x",
        "acc,none": 0.5,
        "acc_stderr,none": 0.1,
        "exact_match,strict": 0.25,
        "exact_match_stderr,strict": "N/A",
    }
    assert read_metrics(given) == {
        "acc": {"value": 0.5, "error": 0.1},
        "exact_match (strict)": {"value": 0.25, "error": None},
    }
