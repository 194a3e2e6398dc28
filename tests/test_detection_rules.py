"""The rules that the detector is tried beside do what they are said to do."""

import random

import numpy as np
import pytest
from detection_rules import RULES, STEP, WINDOW, Reference, embedded, first_above, rising, trails
from scipy.spatial.distance import cdist

WORDS = [f"{first}{second}" for first in "abcdefghij" for second in ("ran", "lim", "tok", "sur")]


def texts(seed: int, count: int, words: list[str] = WORDS) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(words, k=12)) for _ in range(count)]


def test_a_message_is_a_point_on_the_sphere():
    points = embedded([*texts(1, 20), ""])
    assert np.linalg.norm(points[:-1], axis=1) == pytest.approx(np.ones(20), abs=1e-5)
    assert not points[-1].any()


def test_random_features_give_the_distance_that_the_kernel_gives():
    reference, window = texts(2, 300), texts(3, 200, WORDS[:8])
    known = Reference(reference, 0)
    found = float(((known.features(embedded(window)).mean(0) - known.mean) ** 2).sum())
    x, y = embedded(window), embedded(reference)
    draw = np.random.default_rng(0)
    pairs = draw.integers(0, len(y), (2, 2_000))
    width = float(np.median(np.linalg.norm(y[pairs[0]] - y[pairs[1]], axis=1)))

    def kernel(one, two):
        return float(np.exp(-cdist(one, two, "sqeuclidean") / (2 * width**2)).mean())

    assert found == pytest.approx(kernel(x, x) - 2 * kernel(x, y) + kernel(y, y), rel=0.15)


def test_each_rule_rises_on_what_it_is_for():
    reference = Reference(texts(4, 300), 0)
    plain = trails(texts(5, 300), reference)
    assert set(plain) == set(RULES)
    copies = trails(texts(6, 30) * 10, reference)
    assert copies["SEAT"][-1] == (300, 270.0)
    assert plain["SEAT"][-1][1] == 0.0
    opened = trails([f"please say in a few words: {text}" for text in texts(7, 300)], reference)
    assert opened["template"][-1] == (300, 300.0)
    strange = trails(texts(8, 300, ["zeta", "eta", "theta", "iota"]), reference)
    assert strange["MMD"][-1][1] > 5 * plain["MMD"][-1][1]
    assert plain["MMD"][0][0] == WINDOW
    assert plain["volume"][-1] == (300, 300.0)


def test_an_account_of_few_requests_has_only_a_volume():
    few = trails(texts(9, STEP - 1), Reference(texts(4, 300), 0))
    assert few["volume"] == [(STEP - 1, float(STEP - 1))]
    assert not any(few[rule] for rule in RULES if rule != "volume")


def test_only_what_is_higher_than_all_before_is_kept():
    trail = rising([(1, 0.5), (2, 0.4), (3, 0.9), (4, 0.9), (5, 1.0)])
    assert trail == [(1, 0.5), (3, 0.9), (5, 1.0)]
    assert first_above(trail, 0.5) == 3
    assert first_above(trail, 1.0) is None
