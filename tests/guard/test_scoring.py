"""What an account's evidence comes to, and why."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.guard import evidence as module
from stillhouse.guard.evidence import FEATURES, USES, Evidence, observe
from stillhouse.guard.scoring import WORDS, in_words, read_weights, reading, score, shipped
from stillhouse.guard.seen import seen_of

DATA = Path(__file__).parents[3] / "shared" / "data"
KEY = b"a key of the guard, 32 bytes long"
K = len(FEATURES)
PLAIN = """
prior = 10.0
[ordinary]
single = 0.5
[[patterns]]
name = "answers"
words = "Copies answers"
use = { single = 2.0, new = 1.0 }
account = { single = 4.0 }
[[patterns]]
name = "grades"
words = "Has answers graded"
use = { grades = 3.0 }
account = {}
"""


def evidence_of(use: int, requests: float, means: dict[str, float], whole: dict[str, float]) -> Evidence:
    """As if it had seen so many requests of one use, of these means."""
    evidence = Evidence()
    row = evidence.row
    module._NUMBERS.pack_into(row, 0, 0, requests, 0, 0, 0)
    module._TIMES.pack_into(row, module._TIMED + use * module._TIMES.size, requests, 0.0, 0.0)
    for place, each in ((use, means), (USES, whole)):
        sums = [requests * each.get(feature, 0.0) for feature in FEATURES]
        module._SUMS.pack_into(row, module._SUMMED + place * module._SUMS.size, *sums)
    return evidence


def test_a_score_is_the_sum_that_its_weights_say():
    weights = read_weights(PLAIN)
    evidence = evidence_of(2, 30.0, {"single": 1.0, "new": 0.8}, {"single": 0.75})
    # three quarters of (1 - 0.5) 2 + 0.8, and of (0.75 - 0.5) 4
    assert score(evidence, 2, weights) == pytest.approx(0.75 * 1.8 + 0.75 * 1.0)
    found = reading(evidence, 2, weights)
    assert (found.pattern.name, found.requests) == ("answers", 30.0)
    assert [(each.feature, each.where, round(each.adds, 4)) for each in found.reasons[:3]] == [
        ("single", "use", 0.75),
        ("single", "account", 0.75),
        ("new", "use", 0.6),
    ]


def test_the_pattern_that_fits_best_is_named():
    weights = read_weights(PLAIN)
    evidence = evidence_of(1, 90.0, {"single": 0.5, "grades": 1.0}, {"single": 0.5})
    found = reading(evidence, 1, weights)
    assert found.pattern.name == "grades"
    assert in_words(found) == (
        "Has answers graded: answers to be judged or graded (1.00, in ordinary accounts 0.00)"
    )


def test_few_requests_weigh_little():
    weights = read_weights(PLAIN)
    scores = [score(evidence_of(1, n, {"single": 1.0}, {}), 1, weights) for n in (0.0, 1.0, 10.0, 100.0)]
    assert scores[0] == 0.0
    assert sorted(scores) == scores


def test_an_account_of_which_nothing_is_known_scores_nothing():
    assert score(Evidence(), 0, shipped()) == 0.0
    assert "nothing out of the ordinary" in in_words(reading(Evidence(), 0, shipped()))


def test_an_account_like_the_ordinary_ones_scores_nothing():
    weights = shipped()
    means = dict(zip(FEATURES, weights.ordinary, strict=True))
    assert score(evidence_of(3, 200.0, means, means), 3, weights) == pytest.approx(0.0, abs=1e-4)


@settings(deadline=None)
@given(
    st.lists(st.floats(0, 1, width=32), min_size=2 * K, max_size=2 * K),
    st.floats(0, 256),
    st.integers(0, USES - 1),
)
def test_the_reasons_add_up_to_the_score(means, requests, use):
    weights = shipped()
    own, whole = (dict(zip(FEATURES, part, strict=True)) for part in (means[:K], means[K:]))
    evidence = evidence_of(use, requests, own, whole)
    found = reading(evidence, use, weights)
    assert found.score == pytest.approx(score(evidence, use, weights), abs=1e-3)
    assert sum(each.adds for each in found.reasons) == pytest.approx(found.score, abs=1e-9)
    assert list(found.reasons) == sorted(found.reasons, key=lambda each: -each.adds)


def test_every_feature_is_told_in_words():
    assert set(WORDS) == set(FEATURES)


def test_a_weight_for_what_is_no_feature_is_refused():
    with pytest.raises(ValueError, match="no such feature: sinlge"):
        read_weights(PLAIN.replace("single = 4.0", "sinlge = 4.0"))


def scores(texts, tokens: int = 150, **settings: object) -> list[float]:
    evidence, weights, found = Evidence(), shipped(), []
    for number, text in enumerate(texts):
        body = {"model": "m", "messages": [{"role": "user", "content": text}], **settings}
        seen = seen_of(KEY, body, "chat/completions", tokens, 1.8e9 + 97 * number)
        found.append(score(evidence, observe(evidence, seen), weights))
    return found


@pytest.mark.skipif(not DATA.is_dir(), reason="no shared data")
def test_a_stream_of_new_instructions_outranks_an_application_and_a_test_that_is_repeated():
    """On a scale on which one ordinary account in a hundred reaches 1."""
    rows = json.loads((DATA / "prompts" / "alpaca_5000.json").read_text())
    draw = random.Random(1)
    tasks = [f"{row['instruction']}\n{row['input']}".strip() for row in draw.sample(rows, 200)]
    story = (DATA / "text" / "tinystories_sample_2MB.txt").read_text()
    ask = "Summarise this story for parents, in one sentence.\n\n"
    summaries = [ask + story[n * 900 : n * 900 + 800] for n in range(200)]
    harvest, repeated = scores(tasks, max_tokens=2048), scores(tasks[:20] * 10, max_tokens=2048)
    assert max(harvest) > 1.25
    assert max(scores(summaries, tokens=40, max_tokens=100)) < 1.0
    assert repeated[-1] < harvest[-1]
