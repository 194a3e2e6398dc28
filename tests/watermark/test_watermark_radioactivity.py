"""A student of marked text is heard, one of other text is not, and copying is not taken for learning."""

from datetime import UTC, datetime

import numpy as np
import pytest
from scipy import stats

from stillhouse.watermark import Gumbel, Kgw, contexts, decoy_keys
from stillhouse.watermark.keys import Key
from stillhouse.watermark.radioactivity import answers, reading

NOW = datetime(2026, 3, 1, tzinfo=UTC)
VOCABULARY, WIDTH = 8, 2
MINE = Key(Gumbel(width=WIDTH), bytes([1] * 32), NOW)


def teach(key, length, seed):
    """Text whose next id is, at each place, what the key holds best of two."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, VOCABULARY, size=WIDTH).tolist()
    while len(ids) < length:
        tries = rng.integers(0, VOCABULARY, size=2)
        if key is not None:
            context = np.array([*ids[-WIDTH:], 0])
            scores = [key.scheme.scores(key.scheme.bits(key.sip, context, np.array([t])))[0] for t in tries]
            tries = tries[np.argsort(scores)[::-1]]
        ids.append(int(tries[0]))
    return np.array(ids)


class Student:
    """Counts what followed each context in its training text: the smallest language model there is."""

    def __init__(self, text):
        self.counts = np.ones((VOCABULARY,) * (WIDTH + 1))
        for at in range(len(text) - WIDTH):
            self.counts[tuple(text[at : at + WIDTH + 1])] += 1

    def predicts(self, ids):
        found = np.zeros(len(ids), dtype=np.int64)
        for at in range(WIDTH - 1, len(ids)):
            found[at] = self.counts[tuple(ids[at - WIDTH + 1 : at + 1])].argmax()
        return found

    def writes(self, length, seed):
        rng = np.random.default_rng(seed)
        ids = rng.integers(0, VOCABULARY, size=WIDTH).tolist()
        while len(ids) < length:
            shares = self.counts[tuple(ids[-WIDTH:])]
            ids.append(int(rng.choice(VOCABULARY, p=shares / shares.sum())))
        return np.array(ids)


READ = [np.random.default_rng(9).integers(0, VOCABULARY, size=60) for _ in range(4)]


def test_a_student_of_marked_text_predicts_by_the_key():
    taught, untaught = Student(teach(MINE, 3000, 1)), Student(teach(None, 3000, 1))
    heard = reading(MINE.scheme, MINE.sip, READ, [taught.predicts(ids) for ids in READ])
    assert heard.p < 1e-6
    assert heard.scored <= VOCABULARY**WIDTH
    assert reading(MINE.scheme, MINE.sip, READ, [untaught.predicts(ids) for ids in READ]).p > 1e-3
    others = [
        reading(one.scheme, one.sip, READ, [taught.predicts(ids) for ids in READ]).p
        for one in decoy_keys(MINE, 200)
    ]
    assert stats.kstest(others, "uniform").pvalue > 1e-3


def test_its_answers_bear_the_mark_as_well():
    taught = Student(teach(MINE, 3000, 1))
    written = [taught.writes(80, seed) for seed in range(5)]
    none = [np.zeros(0, dtype=np.int64)] * 5
    assert answers(MINE.scheme, MINE.sip, written, none).p < 1e-3
    others = [answers(one.scheme, one.sip, written, none).p for one in decoy_keys(MINE, 200)]
    assert stats.kstest(others, "uniform").pvalue > 1e-3


def test_a_model_that_copies_marked_text_is_not_taken_for_a_student():
    """It was never taught: it repeats what followed the same context earlier in what it reads."""
    marked = teach(MINE, 400, 3)

    def copies(ids):
        found = np.random.default_rng(4).integers(0, VOCABULARY, size=len(ids))
        last = {}
        for at in range(WIDTH - 1, len(ids)):
            context = tuple(ids[at - WIDTH + 1 : at + 1])
            found[at] = last.get(context, found[at])
            if at + 1 < len(ids):
                last[context] = ids[at + 1]
        return found

    assert reading(MINE.scheme, MINE.sip, [marked], [copies(marked)]).p > 1e-3
    again = [np.concatenate([marked[:-1], marked])]
    assert answers(MINE.scheme, MINE.sip, again, [marked]).p > 1e-3


def test_what_was_served_narrows_the_question():
    half = teach(MINE, 120, 5)
    served = contexts(MINE.scheme, MINE.sip, [half])
    student = Student(np.concatenate([half] * 3))
    told = [student.predicts(ids) for ids in READ]
    all_of_it = reading(MINE.scheme, MINE.sip, READ, told)
    known = reading(MINE.scheme, MINE.sip, READ, told, served)
    assert known.scored < all_of_it.scored
    assert known.mean > all_of_it.mean


@pytest.mark.parametrize("scheme", [Gumbel(), Kgw(self_hash=True)], ids=repr)
def test_texts_too_short_to_have_a_context_say_nothing(scheme):
    short = np.arange(2)
    said = reading(scheme, MINE.sip, [short], [short])
    assert (said.scored, said.p, said.mean) == (0, 1.0, None)
    assert answers(scheme, MINE.sip, [short], [short]).p == 1.0


def test_predictions_of_another_length_are_refused():
    with pytest.raises(ValueError, match="2 predictions for 3 tokens"):
        reading(MINE.scheme, MINE.sip, [np.arange(3)], [np.arange(2)])
    with pytest.raises(ValueError, match="0 prompts for 1 answers"):
        answers(MINE.scheme, MINE.sip, [np.arange(3)], [])
