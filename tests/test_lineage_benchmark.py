"""What the figures of benchmarks/lineage.py rest on."""

import numpy as np
import pytest
from lineage import grid, left_out_scores, over_models

PAIRS = [(0, 1), (2, 1), (3, 4), (5, 6), (7, 6)]


@pytest.fixture
def means():
    made = np.random.default_rng(0).normal(size=(3, 9, 9))
    return made + made.transpose(0, 2, 1)


def test_weights_never_see_the_tested_teacher(means):
    """Whatever its other students look like, and whichever of them are stated."""
    for at, (_, teacher) in enumerate(PAIRS):
        others = [pair for pair in PAIRS if pair[1] != teacher]
        alone = left_out_scores(means, [PAIRS[at], *others])[0]
        np.testing.assert_allclose(left_out_scores(means, PAIRS)[at], alone)


def test_the_grid_is_of_weights_that_sum_to_one():
    assert all(each.sum() == 1 for each in grid(3))
    assert len(grid(3)) == 15


def test_accusations_of_one_model_make_the_interval_wide():
    pairs = [(a, b) for a in range(12) for b in range(12) if a != b]
    one = {pair: pair[0] == 3 for pair in pairs}
    rng = np.random.default_rng(1)
    spread = dict(zip(pairs, rng.permutation(list(one.values())).tolist(), strict=True))
    share, low, high = over_models(one, 12)
    _, apart_low, apart_high = over_models(spread, 12)
    assert share == pytest.approx(11 / 132)
    assert high - low > 1.3 * (apart_high - apart_low)
    assert over_models(dict.fromkeys(pairs, False), 12)[2] > 0.1
