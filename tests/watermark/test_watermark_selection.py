import math
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from stillhouse.watermark import Selection, contexts, evidence, radioactivity, word_ids
from stillhouse.watermark.detect import judged
from stillhouse.watermark.hashing import seeds
from stillhouse.watermark.keys import Key
from stillhouse.watermark.selection import select

STORIES = Path(__file__).resolve().parents[3] / "shared" / "data" / "text" / "tinystories_sample_2MB.txt"
NOW = datetime(2026, 3, 1, tzinfo=UTC)


def key(number):
    return Key(Selection(), number.to_bytes(32, "big"), NOW)


@pytest.fixture(scope="module")
def stories():
    if not STORIES.exists():
        pytest.skip("shared/data is not there")
    return [one.strip() for one in STORIES.read_text().split("<|endoftext|>") if len(one) > 300][:400]


def p_of(mine, answers):
    return evidence(mine.scheme, mine.sip, [word_ids(answer) for answer in answers]).p


def test_chosen_answers_are_heard_together_and_others_are_not(stories):
    """23 answers of the best of four: theory expects a shift of one standard deviation for each."""
    mine = key(1)
    groups = [stories[at : at + 4] for at in range(0, 92, 4)]
    chosen = [group[select(mine, group)] for group in groups]
    assert p_of(mine, chosen) < 1e-3
    assert p_of(key(2), chosen) > 1e-3
    assert p_of(mine, [group[0] for group in groups]) > 1e-3
    assert p_of(mine, [answer.upper() for answer in chosen]) == p_of(mine, chosen)


def test_over_keys_each_answer_is_given_as_often(stories):
    """Long ones too: otherwise the mark would change what the model is like."""
    answers = [" ".join(stories[0].split()[:20]), stories[1], " ".join(stories[2:6])]
    given = np.bincount([select(key(number), answers) for number in range(600)], minlength=3)
    assert stats.chisquare(given).pvalue > 1e-3


def test_answers_without_anything_to_score():
    assert select(key(1), ["No.", ""]) == 0
    assert select(key(1), ["No."]) == 0
    with pytest.raises(ValueError, match="no answer"):
        select(key(1), [])


def teller(rng, length=40, words=10):
    """A text of few words in which many contexts come again, mostly with the same word after them."""
    said = [int(word) for word in rng.integers(0, words, 3)]
    while len(said) < length:
        a, b, c = said[-3:]
        odd = 0 if rng.random() < 0.8 else int(rng.integers(1, words))
        said.append((7 * a + 3 * b + c + odd) % words)
    return " ".join(f"w{word}" for word in said)


def test_contexts_of_chosen_answers_would_accuse_whoever_talks_like_them_so_they_are_refused():
    """Text that has nothing to do with the key, by the same teller: right as a whole, far from it with the
    filter."""
    filtered, whole = [], []
    for number in range(40):
        rng = np.random.default_rng(number)
        mine = Key(Selection(), rng.bytes(32), NOW)
        groups = [[teller(rng) for _ in range(4)] for _ in range(30)]
        given = [word_ids(group[select(mine, group)]) for group in groups]
        other = [word_ids(teller(rng)) for _ in range(60)]
        served = contexts(mine.scheme, mine.sip, given)
        bits = [mine.scheme.bits(mine.sip, ids, ids[3:]) for ids in other]
        bits = [one[np.isin(seeds(mine.sip, ids, 3), served)] for one, ids in zip(bits, other, strict=True)]
        assert sum(map(len, bits)) > 500
        filtered.append(judged(mine.scheme, np.concatenate(bits), 1).p)
        whole.append(evidence(mine.scheme, mine.sip, other).p)
    assert np.median(filtered) < 0.15
    assert stats.kstest(whole, "uniform").pvalue > 1e-3
    with pytest.raises(ValueError, match="depends on what follows"):
        evidence(mine.scheme, mine.sip, other, served)
    with pytest.raises(ValueError, match="depends on what follows"):
        radioactivity.answers(mine.scheme, mine.sip, other, other, served)
    with pytest.raises(ValueError, match="depends on what follows"):
        radioactivity.reading(mine.scheme, mine.sip, other, other, served)


def test_the_best_of_m_has_the_p_value_that_theory_says(stories):
    """The smallest of four uniform p-values is below a with chance 1 - (1 - a)^4."""
    below = 0
    for number in range(400):
        at = 4 * (number % 90)
        group = stories[at : at + 4]
        below += p_of(key(number), [group[select(key(number), group)]]) <= 0.25
    expected = 1 - 0.75**4
    assert abs(below / 400 - expected) < 4 * math.sqrt(expected * (1 - expected) / 400)
