"""The benchmark of detection scores what it has walked as the guard does, and goes on where it stopped."""

import json
from pathlib import Path

import numpy as np
import pytest
from detection_lines import raised
from detection_watch import KEY, Look, read, scores, walked, watched
from rows import DATA
from traffic.people import person, requests

from stillhouse.guard import lines
from stillhouse.guard.evidence import Evidence, observe
from stillhouse.guard.scoring import score, shipped
from stillhouse.guard.seen import seen_of

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "detection.json"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no shared data")
LOOK = Look("calibrate", 5, {"chat:many": 2, "coding": 1, "distiller:mix25": 1}, rate=0.3)


@needs_data
def test_what_was_walked_is_scored_as_the_guard_scores_it(tmp_path):
    walks = {
        account.id: walk
        for file in walked({"month": LOOK}, tmp_path, 4)["month"]
        for account, walk in read(file)
    }
    assert len(walks) == 4
    for name, walk in walks.items():
        kind, _, number = name.rpartition("/")
        evidence, reached = Evidence(), []
        for request in requests(person("calibrate", 5, kind, int(number)), "calibrate", 5, 0.3):
            seen = seen_of(KEY, request.body(), "chat/completions", request.output_tokens, request.at)
            reached.append(score(evidence, observe(evidence, seen), shipped()))
        assert scores(walk, shipped()) == pytest.approx(np.array(reached[: len(walk.uses)]), abs=1e-4)


@needs_data
def test_a_run_goes_on_where_it_stopped(tmp_path):
    before = watched({"month": LOOK}, tmp_path, 2)["month"]
    first, *others = sorted(tmp_path.iterdir())
    kept = first.stat().st_mtime_ns
    others[0].unlink()
    again = watched({"month": LOOK}, tmp_path, 2)["month"]
    assert [each.trail for each in again] == [each.trail for each in before]
    assert first.stat().st_mtime_ns == kept


def test_the_shipped_thresholds_are_those_by_which_the_benchmark_counts():
    told = {row["what"]: row["value"] for row in json.loads(RESULTS.read_text())["rows"]}
    shipped = lines.shipped()
    for what, line in (
        ("flag", shipped.flag),
        ("kill", shipped.kill),
        ("kill, declared use", shipped.declared_kill),
    ):
        assert 0.0 <= line.score - told[f"{what}: threshold"] < 1e-4
    assert shipped.kill.alarm == told["kill: alarms to an account-month, at most"]
    assert shipped.flag.accounts == shipped.kill.accounts == told["calibration accounts, ordinary"]
    assert shipped.declared_kill.accounts == told["calibration accounts with a declared use"]


def test_a_threshold_is_rounded_up_and_none_stays_none():
    line = lines.Line(score=1.00001, alarm=0.01, accounts=99)
    assert raised(line).score == 1.0001
    assert raised(line.model_copy(update={"score": 1.5})).score == 1.5
    assert raised(line.model_copy(update={"score": float("inf")})).score == float("inf")
