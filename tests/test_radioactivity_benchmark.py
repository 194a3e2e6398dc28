"""What the figures of benchmarks/radioactivity.py rest on."""

import numpy as np
import pytest
from radioactivity import GUMBEL, KGW, TESTS, Seen, hear, key_of, log_p, over, scored_pairs, uniform

from stillhouse.watermark import decoy_keys

PIECES = 12


def ids(rng, length):
    return rng.integers(0, PIECES, size=length).tolist()


@pytest.fixture
def seen():
    """A student that says things at random, and a log of what was served to its maker."""
    rng = np.random.default_rng(3)
    log = [(ids(rng, 6), ids(rng, 40)) for _ in range(2)]
    unseen = [np.array(ids(rng, length)) for length in (1, 2, 30, 60)]
    again = [np.array([*before, *after]) for before, after in log]
    read = [[(text, np.array(ids(rng, len(text)))) for text in texts] for texts in (unseen, again)]
    return Seen(*read, [(ids(rng, 6), ids(rng, length)) for length in (2, 30, 50)]), log


@pytest.mark.parametrize("scheme", [GUMBEL, KGW])
def test_decoys_are_given_what_the_tests_themselves_score(seen, scheme):
    looked, log = seen
    pairs = scored_pairs(scheme.width, looked, log)
    assert 0 < len(pairs["weights and log"]) < PIECES**scheme.width
    assert 0 < len(pairs["answers and log"]) < len(pairs["answers"])
    for key in [key_of(1, scheme), *decoy_keys(key_of(1, scheme), 3)]:
        for test in TESTS:
            heard = hear(key, looked, log, test, 1.0)
            assert heard.scored == len(pairs[test])
            assert heard.log_p == pytest.approx(log_p(key, pairs[test]), rel=1e-9)


def test_deviations_are_those_of_the_scheme():
    assert over(GUMBEL, 1.1, 10_000) == pytest.approx(10)
    assert over(KGW, 0.35, 7500) == pytest.approx(20)
    assert over(KGW, None, 0) == 0


def test_p_values_that_are_not_uniform_are_told():
    rng = np.random.default_rng(5)
    right = [np.log(rng.random(400)).tolist() for _ in range(3)]
    wrong = np.log(rng.random(400) ** 2).tolist()
    assert uniform("right", right).holds
    row = uniform("one wrong", [*right, wrong])
    assert not row.holds
    assert row.value > 3 * row.peer_value > 0
