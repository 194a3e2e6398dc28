"""Further students: which a recipe asks for, what each learns from, and what their scores show."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from pyarrow import parquet

from stillhouse.evaluate.further import Further, further_figures
from stillhouse.evaluate.predictions import Prediction


def row(i, system, score):
    return Prediction(f"p{i}", "f", f"g{i}", system, "a", score, "", 1, 1, "stop")


def student(name, kind, seed=17, samples=100):
    return Further(name, kind, seed, samples, Path("nowhere"))


def test_scores_by_seed_and_their_spread():
    rows = [row(i, "student", float(i < 8)) for i in range(10)]
    rows += [row(i, "seed-18", float(i < 9)) for i in range(10)]
    rows += [row(i, "seed-19", float(i < 7)) for i in range(10)]
    found = further_figures(
        rows, [student("seed-18", "seed", 18), student("seed-19", "seed", 19)], 17, 100, {}
    )
    seeds = found["seeds"]
    assert [(of["seed"], of["score"]) for of in seeds["rows"]] == [(17, 0.8), (18, 0.9), (19, 0.7)]
    assert (seeds["mean"], seeds["sd"]) == (pytest.approx(0.8), pytest.approx(0.1))
    # t with two degrees of freedom is 4.303 (any table)
    assert seeds["mean"] - seeds["low"] == pytest.approx(4.303 * 0.1 / 3**0.5, rel=1e-3)
    assert (found["hard_labels"], found["curve"]) == (None, None)


def test_seeds_that_score_alike_do_not_show_how_sure_that_is_and_no_interval_leaves_the_scale():
    students = [student("seed-18", "seed", 18)]
    alike = [row(i, name, float(i < 5)) for name in ("student", "seed-18") for i in range(10)]
    seeds = further_figures(alike, students, 17, 100, {})["seeds"]
    assert (seeds["mean"], seeds["low"], seeds["high"]) == (0.5, None, None)
    apart = [row(i, "student", float(i < 9)) for i in range(10)] + [row(i, "seed-18", 1.0) for i in range(10)]
    seeds = further_figures(apart, students, 17, 100, {})["seeds"]
    assert (seeds["low"], seeds["high"]) == (pytest.approx(0.95 - 12.706 * 0.05, abs=1e-3), 1.0)


def test_hard_labels_are_compared_on_the_same_prompts():
    rows = [row(i, "student", 1.0) for i in range(10)]
    rows += [row(i, "hard-labels", None if i == 0 else float(i % 2)) for i in range(10)]
    hard = further_figures(rows, [student("hard-labels", "hard_labels", samples=60)], 17, 100, {})[
        "hard_labels"
    ]
    assert (hard["n"], hard["samples"]) == (9, 60)
    assert hard["ahead"]["value"] == pytest.approx(4 / 9)
    assert hard["ahead"]["low"] > 0
    same = [row(i, name, 1.0) for name in ("student", "hard-labels") for i in range(10)]
    ahead = further_figures(same, [student("hard-labels", "hard_labels")], 17, 100, {})["hard_labels"][
        "ahead"
    ]
    assert ahead["low"] < ahead["value"] == 0.0 < ahead["high"]


def test_the_curve_ascends_and_ends_with_the_student_itself():
    rows = [row(i, "student", 1.0) for i in range(4)]
    rows += [row(i, name, float(i < keep)) for name, keep in (("b", 2), ("a", 1)) for i in range(4)]
    students = [student("b", "samples", samples=50), student("a", "samples", samples=10)]
    curve = further_figures(rows, students, 17, 100, {})["curve"]
    assert [(of["samples"], of["score"]) for of in curve] == [(10, 0.25), (50, 0.5), (100, 1.0)]


def test_no_scores_are_no_crash():
    students = [student("seed-18", "seed", 18), student("hard-labels", "hard_labels")]
    found = further_figures([], students, 17, 0, {})
    assert found["seeds"]["mean"] is None
    assert found["hard_labels"]["ahead"]["value"] is None


def test_a_run_trains_and_scores_them_once_and_keeps_no_copy_of_the_samples(
    provider, workspace, tmp_path_factory
):
    import json

    from provider import answer
    from tiny import tiny_model

    from stillhouse import pipeline
    from stillhouse.recipe import parse_recipe
    from stillhouse.report import write_report

    async def digit(body, number):
        return answer("the " + body["messages"][-1]["content"].split()[1])

    server, folder = provider(digit), tmp_path_factory.mktemp("task")
    rows = [
        {"prompt": f"say {i % 7} {i}", "id": f"p{i}", "reference": str(i % 7), "scorer": "exact"}
        for i in range(40)
    ]
    (folder / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "terms.txt").write_text("you may")
    terms = {"document": str(folder / "terms.txt"), "read_on": "2026-01-02", "declared_by": "a test"}
    tree = {
        "run": {"name": "t", "seed": 3},
        "teacher": {"model": "m", "endpoint": server.url, "provider": "x", "terms": terms},
        "prompts": {"source": str(folder / "prompts.jsonl")},
        "student": {"init": str(tiny_model(folder / "student"))},
        "collect": {"concurrency": 4, "max_tokens": 8},
        "train": {"epochs": 1, "batch_tokens": 512, "dtype": "float32"},
        "evaluate": {"held_out": 0.3, "resamples": 50, "seeds": 2, "hard_labels": True, "curve": [20, 10]},
    }
    tree["evaluate"]["students"] = [{"init": str(tiny_model(folder / "large", layers=3))}]
    finished = pipeline.run(parse_recipe(tree), workspace)
    found = finished.evaluation["further"]
    assert [of["seed"] for of in found["seeds"]["rows"]] == [3, 4]
    kept = parquet.read_metadata(finished.run.samples).num_rows
    assert found["hard_labels"]["samples"] == kept
    assert [of["samples"] for of in found["curve"]] == [10, 20, kept]
    systems = set(parquet.read_table(finished.run.predictions)["system"].to_pylist())
    assert {"seed-4", "hard-labels", "samples-10", "samples-20", "student-1"} <= systems
    small, large = found["sizes"]
    assert (small["label"], large["label"]) == ("", str(folder / "large"))
    assert small["parameters"] < large["parameters"]
    assert small["flops"] < large["flops"]
    assert small["score"] == finished.evaluation["student"]["score"]
    assert small["retention"] == finished.evaluation["retention"]
    assert not finished.run.further("samples-10").samples.exists()
    weights = finished.run.further("seed-4").student / "model.safetensors"
    assert weights.read_bytes() != (finished.run.student / "model.safetensors").read_bytes()
    before = weights.stat().st_mtime_ns
    tree["evaluate"]["resamples"] = 60  # evaluated again, trained once
    again = pipeline.run(parse_recipe(tree), workspace)
    assert "evaluate" not in again.skipped
    assert weights.stat().st_mtime_ns == before
    text = write_report(again.run).read_text()
    assert "Other students" in text
    for row in rows:  # the teacher's answers stay what they were
        row["reference"] = str((int(row["reference"]) + 1) % 7)
    (folder / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    labels = again.run.further("hard-labels").marker("train").read_text()
    pipeline.run(parse_recipe(tree), workspace)
    assert again.run.further("hard-labels").marker("train").read_text() != labels
    assert weights.stat().st_mtime_ns == before
    shutil.rmtree(weights.parent)
    pipeline.run(parse_recipe(tree), workspace)
    assert not weights.exists(), "nothing else changed, and its scores stand"
    tree["evaluate"]["resamples"] = 70
    pipeline.run(parse_recipe(tree), workspace)
    assert weights.exists()
