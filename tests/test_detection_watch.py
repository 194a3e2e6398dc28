"""The benchmark of detection scores what it has walked as the guard does, and goes on where it stopped."""

import numpy as np
import pytest
from detection_watch import KEY, Look, read, scores, walked, watched
from rows import DATA
from traffic.people import person, requests

from stillhouse.guard.evidence import Evidence, observe
from stillhouse.guard.scoring import score, shipped
from stillhouse.guard.seen import seen_of

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="no shared data")
LOOK = Look("calibrate", 5, {"chat:many": 2, "coding": 1, "distiller:mix25": 1}, rate=0.3)


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


def test_a_run_goes_on_where_it_stopped(tmp_path):
    before = watched({"month": LOOK}, tmp_path, 2)["month"]
    first, *others = sorted(tmp_path.iterdir())
    kept = first.stat().st_mtime_ns
    others[0].unlink()
    again = watched({"month": LOOK}, tmp_path, 2)["month"]
    assert [each.trail for each in again] == [each.trail for each in before]
    assert first.stat().st_mtime_ns == kept
