import math
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stillhouse.errors import UsageError
from stillhouse.stats import holm
from stillhouse.watermark import (
    Gumbel,
    Kgw,
    Selection,
    Tournament,
    account_key,
    among_keys,
    contexts,
    decoy_keys,
    evidence,
    new_key,
    parts,
    read_key,
    word_ids,
    write_key,
)
from stillhouse.watermark.keys import Key
from stillhouse.watermark.schemes import read_scheme

NOW = datetime(2026, 3, 1, tzinfo=UTC)
SCHEMES = [Kgw(), Kgw(width=1), Kgw(self_hash=True), Gumbel(), Tournament(), Selection()]
KEYS = 400


def key(scheme, number=0):
    return Key(scheme, number.to_bytes(32, "big"), NOW)


def repetitive(rng):
    """A template filled with few words: most of its pairs occur many times."""
    frame = rng.integers(0, 50, size=24)
    rows = [np.where(np.arange(24) % 8 == 7, rng.integers(50, 60, size=24), frame) for _ in range(20)]
    return np.concatenate(rows)


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_p_values_of_a_repetitive_text_are_right_over_keys(scheme):
    """Even on a text that repeats itself: P(p <= a) <= a for each a, and near it where p is continuous."""
    text = repetitive(np.random.default_rng(3))
    found = [evidence(scheme, one.sip, [text]) for one in decoy_keys(key(scheme), KEYS)]
    assert len({one.tokens for one in found}) == 1
    assert found[0].scored < 0.9 * found[0].tokens
    p = np.array([one.p for one in found])
    for level in (0.3, 0.1, 0.03, 0.01):
        assert (p <= level).mean() <= level + 4 * math.sqrt(level * (1 - level) / KEYS)
    if isinstance(scheme, Gumbel | Tournament | Selection):
        assert stats.kstest(p, "uniform").pvalue > 1e-3


def test_pairs_counted_as_often_as_they_occur_would_be_wrong():
    """What counting a pair once is for: without it the same text fails the test that it passes with it."""
    text = repetitive(np.random.default_rng(3))
    scheme = Gumbel()
    wrong = 0
    for one in decoy_keys(key(scheme), 400):
        scores = scheme.scores(scheme.bits(one.sip, text, text[4:]))
        wrong += math.exp(scheme.log_p(float(scores.sum()), len(scores))) <= 0.01
    assert wrong > 0.05 * 400


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_evidence_is_what_the_published_laws_say(scheme):
    text = np.random.default_rng(4).integers(0, 100, size=300)
    one = evidence(scheme, key(scheme).sip, [text])
    total = one.mean * one.scored
    if isinstance(scheme, Kgw):
        assert one.p == pytest.approx(stats.binom.sf(round(total) - 1, one.scored, scheme.share))
    elif isinstance(scheme, Tournament):
        sd = math.sqrt(one.scored * sum(w * w for w in scheme.weights()) / 4)
        z = (total - 0.5 - one.scored * scheme.expected()) / sd
        assert one.p == pytest.approx(stats.norm.sf(z), abs=2e-3)
    else:
        assert one.p == pytest.approx(stats.gamma.sf(total, one.scored))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 2**31), max_size=60), st.sampled_from(SCHEMES))
def test_saying_a_text_twice_adds_nothing(ids, scheme):
    text = np.array(ids, dtype=np.int64)
    once = evidence(scheme, key(scheme).sip, [text])
    twice = evidence(scheme, key(scheme).sip, [text, text])
    assert (once.scored, once.log_p) == (twice.scored, twice.log_p)
    assert once.scored <= max(len(ids) - scheme.width, 0)
    assert 0 <= once.p <= 1
    assert (once.mean is None) == (once.scored == 0)


def marked_text(one, length=400, vocabulary=30, seed=5, start=()):
    """What a model that knows nothing writes under a key: at each place the best of three ids."""
    rng = np.random.default_rng(seed)
    ids = list(start) or rng.integers(0, vocabulary, size=one.scheme.width).tolist()
    while len(ids) < length:
        tries = rng.integers(0, vocabulary, size=3)
        context = np.array(ids[-one.scheme.width :])
        scores = [
            one.scheme.scores(one.scheme.bits(one.sip, np.append(context, t), np.array([t])))[0]
            for t in tries
        ]
        ids.append(int(tries[int(np.argmax(scores))]))
    return np.array(ids)


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_a_mark_is_found_with_its_key_and_with_no_other(scheme):
    mine = key(scheme, 1)
    text = marked_text(mine)
    others = [key(scheme, 2), account_key(mine, "a"), *decoy_keys(mine, 17)]
    found = among_keys([*others, mine], [[text]] * 20)
    assert found[0][0] == mine
    assert found[0][2] < 1e-6
    assert min(p for one, _, p in found if one != mine) > 0.01
    assert [p for _, _, p in found] == holm([e.p for _, e, _ in found])


def test_a_width_or_scheme_of_its_own_has_a_hash_of_its_own():
    assert len({key(scheme).sip for scheme in (Gumbel(), Gumbel(width=3), Kgw(), Selection())}) == 4
    assert key(Kgw(bias=1.0)).sip == key(Kgw(bias=4.0)).sip


def test_accounts_have_keys_of_their_own_and_always_the_same():
    mine = new_key(Gumbel(), NOW)
    ann, bob = account_key(mine, "ann"), account_key(mine, "bob")
    assert len({mine.id, ann.id, bob.id}) == 3
    assert ann == account_key(mine, "ann")
    assert mine.secret.hex() not in repr(ann)
    assert str(mine.secret) not in repr(mine)


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_a_key_is_read_as_it_was_written(scheme, tmp_path):
    ann = account_key(new_key(scheme, NOW), "ann")
    write_key(ann, tmp_path / "ann.json")
    assert read_key(tmp_path / "ann.json") == ann
    with pytest.raises(FileExistsError):
        write_key(ann, tmp_path / "ann.json")


def test_settings_that_make_no_sense_are_refused():
    for row in (
        {"name": "kgw", "share": 1.5},
        {"name": "gumbel", "width": 0},
        {"name": "tournament", "depth": 65},
        {"name": "gumbel", "depth": 3},
        {"name": "ink"},
        {},
    ):
        with pytest.raises(UsageError):
            read_scheme(row)


def test_a_marked_stretch_is_found_where_it_is():
    mine = key(Gumbel(), 1)
    rng = np.random.default_rng(6)
    before, after = rng.integers(0, 30, size=(2, 1000))
    text = np.concatenate([before, marked_text(mine, 300), after])
    strong = [part for part in parts(mine.scheme, mine.sip, text, 200) if part.adjusted < 1e-3]
    assert strong
    assert min(part.start for part in strong) >= 850
    assert max(part.end for part in strong) <= 1450
    covered = parts(mine.scheme, mine.sip, text, 200)
    assert covered[0].start == 0
    assert covered[-1].end == len(text)


def test_only_contexts_that_were_served_are_scored():
    """An auditor who knows what was served leaves out the rest of a long text, which bears no mark."""
    mine = key(Gumbel(), 1)
    served = marked_text(mine, 60)
    unmarked = np.random.default_rng(7).integers(0, 30, size=4000)
    mixed = [unmarked, served]
    all_of_it = evidence(mine.scheme, mine.sip, mixed)
    known = evidence(mine.scheme, mine.sip, mixed, contexts(mine.scheme, mine.sip, [served]))
    assert all_of_it.p > 1e-3 > 1e-6 > known.p
    assert known.scored < 200
    null = [
        evidence(one.scheme, one.sip, mixed, contexts(one.scheme, one.sip, [served])).p
        for one in decoy_keys(mine, 200)
    ]
    assert stats.kstest(null, "uniform").pvalue > 1e-3


def test_words_are_the_same_words_in_any_case_and_layout():
    assert word_ids("The Kettle,  is on.").tolist() == word_ids("the kettle is\nON").tolist()
    assert len(set(word_ids("one two three two").tolist())) == 3
    assert len(word_ids("")) == 0
