"""What the figures of benchmarks/radioactivity.py rest on."""

import numpy as np
import pytest
from radioactivity import SCHEME, TESTS, Seen, hear, key_of, log_p, scored_pairs

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


def test_decoys_are_given_what_the_tests_themselves_score(seen):
    looked, log = seen
    pairs = scored_pairs(SCHEME.width, looked, log)
    assert 0 < len(pairs["weights and log"]) < PIECES**SCHEME.width
    assert 0 < len(pairs["answers and log"]) < len(pairs["answers"])
    for key in [key_of(1), *decoy_keys(key_of(1), 3)]:
        for test in TESTS:
            heard = hear(key, looked, log, test, 1.0)
            assert heard.scored == len(pairs[test])
            assert heard.log_p == pytest.approx(log_p(key, pairs[test]), rel=1e-9)
