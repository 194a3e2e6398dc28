"""n-grams in common against brute force, and leaks planted among real questions."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.similar import NgramIndex
from stillhouse.text import words

GSM8K = Path(__file__).parents[3] / "shared/data/math"

PASSAGE = (
    "It was a bright cold day in the village and the clocks of the two churches never struck as one so "
    "that a traveller could leave the one at noon and come to the other a little before it which pleased the "
    "children \u4e2d \u6587 and it was a bright cold day in the village once more"
).split()


def grams(text: str, n: int) -> list[tuple[str, ...]]:
    found = words(text)
    return [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]


@st.composite
def copied(draw):
    """Pieces of one passage, with words of their own between and their own case, marks and spaces."""
    parts = []
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(PASSAGE)))
        parts += PASSAGE[start : start + draw(st.integers(0, 30))]
        parts += draw(
            st.lists(st.sampled_from(["own", "words", "stra\u00dfe", "e\u0301", "..."]), max_size=3)
        )
    look = draw(st.sampled_from([str, str.upper, str.title]))
    return draw(st.sampled_from([" ", ", ", "\n"])).join(look(part) for part in parts)


texts = st.lists(copied(), max_size=6)


@settings(deadline=None)
@given(texts, texts)
def test_ratio_and_spans_are_those_of_brute_force(rows, reference):
    index = NgramIndex(reference)
    eights, thirteens = ({g for text in reference for g in grams(text, n)} for n in (8, 13))
    overlaps = list(index.overlaps(rows))
    assert [overlap.row for overlap in overlaps] == list(range(len(rows)))
    assert index.too_short == tuple(i for i, text in enumerate(reference) if len(words(text)) < 8)
    for row, overlap in zip(rows, overlaps, strict=True):
        own = grams(row, 8)
        assert overlap.ratio == (sum(g in eights for g in own) / len(own) if own else None)
        assert overlap.copied == any(g in thirteens for g in grams(row, 13))
        shown = set()
        for span in overlap.spans:
            there = reference[span.reference][span.reference_start : span.reference_end]
            assert words(row[span.start : span.end]) == words(there)
            assert len(words(there)) == span.words >= 8
            shown |= {g for n in (8, 13) for g in grams(there, n)}
        assert {g for g in own if g in eights} | {g for g in grams(row, 13) if g in thirteens} <= shown
        assert [span.start for span in overlap.spans] == sorted(span.start for span in overlap.spans)


@settings(deadline=None)
@given(texts, texts)
def test_the_share_of_the_set_that_rows_hold_is_that_of_brute_force(rows, reference):
    held = {g for row in rows for g in grams(row, 8)}
    expected = [
        sum(g in held for g in own) / len(own) if own else None for own in (grams(t, 8) for t in reference)
    ]
    assert NgramIndex(reference).covered(rows) == expected


@settings(deadline=None)
@given(texts, texts, st.randoms(use_true_random=False))
def test_order_changes_neither_ratio_nor_verdict(rows, reference, rng):
    def verdicts(texts: list[str], against: list[str]) -> list[tuple[str, float | None, bool]]:
        found = NgramIndex(against).overlaps(texts)
        return sorted((text, o.ratio or 0.0, o.copied) for text, o in zip(texts, found, strict=True))

    mixed = verdicts(rng.sample(rows, len(rows)), rng.sample(reference, len(reference)))
    assert mixed == verdicts(rows, reference)


def test_a_span_names_where_it_stands_in_both():
    reference = ["too short", "Unrelated words at first. " + " ".join(PASSAGE[:20]) + "!"]
    row = "Please answer: " + ", ".join(PASSAGE[:20]).upper() + " \u2014 thank you"
    overlap = next(NgramIndex(reference).overlaps([row]))
    (span,) = overlap.spans
    assert overlap.copied
    assert span.words == 20
    assert row[span.start : span.end] == ", ".join(PASSAGE[:20]).upper()
    assert span.reference == 1
    assert reference[1][span.reference_start : span.reference_end] == " ".join(PASSAGE[:20])


def test_twelve_words_are_measured_but_not_called_copied():
    overlap = next(NgramIndex([" ".join(PASSAGE[:40])]).overlaps([" ".join([*PASSAGE[3:15], "and", "then"])]))
    assert not overlap.copied
    assert [span.words for span in overlap.spans] == [12]
    assert overlap.ratio == 5 / 7


def test_repetition_and_size_take_no_quadratic_time():
    loop = "round and round the garden like a teddy bear " * 20_000
    overlap = next(NgramIndex([loop[:900], "x" * 1_000_000, ""]).overlaps([loop]))
    assert overlap.ratio == 1.0
    assert overlap.copied
    assert max(span.words for span in overlap.spans) <= 180


@pytest.mark.skipif(not GSM8K.is_dir(), reason="the shared GSM8K questions are not here")
def test_test_questions_planted_among_training_questions_are_found():
    def questions(name: str) -> list[str]:
        return [json.loads(line)["question"] for line in (GSM8K / name).read_text().splitlines()]

    rng = random.Random(1)
    train, test = questions("gsm8k_train.jsonl"), questions("gsm8k_test.jsonl")
    planted = rng.sample(range(len(test)), 200)
    disguised = [test[i].upper().replace(".", " !").replace(",", "\n") for i in planted]
    index = NgramIndex(test)
    before = [overlap for overlap in index.overlaps(train) if overlap.copied]
    assert len(before) < 0.01 * len(train), "the data set's own overlap"
    found = list(index.overlaps(disguised))
    assert all(overlap.ratio == 1.0 for overlap in found)
    assert sum(overlap.copied for overlap in found) >= 198, "all but questions of fewer than 13 words"
    shares = index.covered(disguised)
    assert all(shares[i] == 1.0 for i in planted)
