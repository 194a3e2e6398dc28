"""What the figures of benchmarks/selection.py rest on."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from selection import Scale, chosen, drift, habits, powers, strength, stretches, under
from selection_asking import Given, provider_key
from selection_students import UNMARKED, Lesson, Pool, answers_of, at_places, cell, taught_rows
from selection_students import habits as students_habits

from stillhouse.guard import markers
from stillhouse.watermark import account_key, decoy_keys, evidence, word_ids
from stillhouse.watermark.selection import select

KEY = account_key(provider_key(), "somebody")
WORDS = [f"word{at}" for at in range(400)]


def said(rng, words=60):
    return " ".join(rng.choice(WORDS, words))


@pytest.fixture(scope="module")
def texts():
    """Eight answers to each of 40 prompts."""
    rng = np.random.default_rng(9)
    return [[said(rng) for _ in range(8)] for _ in range(40)]


def given(text, prompt=0):
    return Given(prompt, 0, 4, text, "", 10, 0.1)


def test_an_account_s_answers_are_cut_into_texts_of_so_many_words():
    texts = [np.arange(30), np.arange(30), np.arange(50), np.arange(10)]
    assert [[len(each) for each in some] for some in stretches(texts, 50)] == [[30, 30], [50]]
    assert stretches(texts, 1000) == []


def test_what_was_chosen_is_called_and_what_was_not_is_not(texts):
    picked = [word_ids(each[select(KEY, each)]) for each in texts]
    first = [word_ids(each[0]) for each in texts]
    assert under(KEY, picked, 1e-5)[2000] == [True]
    assert under(KEY, first, 1e-5)[2000] == [False]
    rows = powers("chosen", [under(KEY, picked, 1e-5)] * 4)
    assert [row.value for row in rows if "2,000 words" in row.what] == [1.0]


def test_an_answer_is_worth_what_all_together_say():
    row = strength("z", [10.0, 10.0], 200)
    assert row.value == pytest.approx(1.0)
    assert row.high - row.value == pytest.approx(1.96 / math.sqrt(200))


def test_choosing_among_more_is_worth_more(texts):
    rows = chosen(SimpleNamespace(texts=texts), Scale(0, 0, 0, 0, 2, 0, 0))
    worth = [row.value for row in rows if "z of an answer" in row.what]
    assert worth == sorted(worth)
    assert 0.2 < worth[0] < 0.9
    assert 1.1 < worth[2] < 1.8


def test_length_is_compared_answer_by_answer():
    row = drift("drift", [given("one two three"), given("one two")], [given("one two"), given("one")])
    assert (row.value, row.low, row.high, row.peer_value) == (1.0, 1.0, 1.0, 1.5)


def test_markers_are_found_where_they_were_written_and_not_by_decoys():
    names = [f"{first}{second}" for first in "abcdefghij" for second in "klmnopqrstuvwxyzabcd"]
    texts = [f"{each} did not see them. They met each other." for each in names]
    rows = habits("made", texts, [KEY] * 2, decoy_keys(KEY, 100))
    assert rows[0].value == 1.0
    power = {row.what: row.value for row in rows if "p <=" in row.what}
    assert power["markers, made: 100 answers, p <= 1e-05"] == 1.0
    assert next(row.value for row in rows if "false positives" in row.what) < 0.1


@pytest.fixture
def pool(texts):
    """Of a teacher whose ids are the numbers of its words."""

    def ids(text):
        return [WORDS.index(word) for word in text.split()]

    answers = [[([0], ids(text)) for text in each] for each in texts]
    scene = SimpleNamespace(plain=[each[0] for each in answers], teacher=None)
    return Pool(scene, answers, texts)


def test_a_student_is_taught_the_share_that_the_lesson_says(pool, monkeypatch):
    monkeypatch.setattr("selection_students.ids_text", lambda _, ids: " ".join(WORDS[at] for at in ids))
    assert answers_of(pool, UNMARKED, KEY, taught_rows(40, UNMARKED, 0)) == (pool.scene.plain, 0.0)
    some = taught_rows(40, Lesson(8, False, 0.25), 0)
    told, gain = answers_of(pool, Lesson(8, False, 0.25), KEY, some)
    changed = {at for at in range(40) if told[at] != pool.scene.plain[at]}
    assert len(some) == 10
    assert len(changed) > 5
    assert changed <= set(some)
    assert gain > 0.1
    everything, _ = answers_of(pool, Lesson(8, False, 1.0), KEY, range(40))
    words = [np.array(word_ids(" ".join(WORDS[at] for at in ids))) for _, ids in everything]
    assert evidence(KEY.scheme, KEY.sip, words).p < 1e-9


def test_markers_are_written_into_what_a_student_learns(pool, monkeypatch):
    text = "they did not know and the man did not see them"
    pool.texts[0][0] = text
    monkeypatch.setattr("selection_students.encoded", lambda _, said: [said])
    monkeypatch.setattr("selection_students.ids_text", lambda _, ids: "")
    told, _ = answers_of(pool, Lesson(1, True, 1.0), KEY, range(40))
    assert told[0] == ([0], [markers.marked(KEY, text)[0]])
    assert told[1:] == pool.scene.plain[1:]
    seen = markers.seen(["We did not know. They did not know. The man did not see them."])
    served = at_places(seen, pool, [0, 1])
    assert set(seen.variants) - set(served.variants) == {("did not", "we")}
    assert set(at_places(seen, pool, [1]).variants) == set()


def test_a_student_s_z_stands_beside_that_of_the_mixture():
    heard = [{"selection": {"scored": 10_000, "mean": 1.02, "log_p": -3.0, "gain": 0.08}}]
    row, z = cell("student", heard, Lesson(8, False, 0.5))
    assert row.value == pytest.approx(-3 / math.log(10))
    assert (z.value, z.peer_value, z.ratio) == (pytest.approx(2), pytest.approx(4), pytest.approx(0.5))


def test_students_of_several_keys_are_tested_together():
    def heard(fits, scored):
        mean = fits / scored if scored else None
        return {
            name: {"scored": scored, "mean": mean, "log_p": -1.0} for name in ("markers", "markers and log")
        }

    row, _, together = students_habits("three", [heard(6, 8), heard(4, 4), heard(0, 0)])[:3]
    assert (row.value, row.unit) == (0.875, "of 4")
    tail = sum(math.comb(12, k) for k in range(10, 13)) / 2**12
    assert (10**together.value, together.unit) == (pytest.approx(tail), "10 of 12")
    nothing = students_habits("none", [heard(0, 0)])
    assert (nothing[0].value, nothing[2].value) == (None, 0.0)
