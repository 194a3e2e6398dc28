"""What a template says in all rows is set aside, and both directions of an overlap, against brute force."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.similar import Coverage, NearIndex, NgramIndex, shared_wording
from stillhouse.text import words

WORDS = "a b c d e f g h i j k l m n".split()
TEXT = st.lists(st.sampled_from(WORDS), max_size=24).map(" ".join)
PARTS = ["a b c d e f g h i", "b a c e d g f i", "n m l k j h g f e d", "a a a a a a a a a a", "k l"]
SHARING = st.lists(st.sampled_from(PARTS), max_size=5).map(" ".join)  # texts that have stretches in common
RULE = " ".join(f"rule {i} of the house says this" for i in range(20))


def grams(text: str) -> list[tuple[str, ...]]:
    found = words(text)
    return [tuple(found[i : i + 8]) for i in range(len(found) - 7)]


@settings(deadline=None)
@given(st.lists(TEXT | SHARING, max_size=6), st.lists(TEXT | SHARING, max_size=6))
def test_ratios_and_coverage_are_those_of_brute_force(texts: list[str], rows: list[str]):
    index = NgramIndex(texts)
    held = {gram for text in texts for gram in grams(text)}
    for row, ratio in zip(rows, index.ratios(rows), strict=True):
        own = grams(row)
        if not own:
            assert ratio is None
            continue
        shares = [sum(gram in held for gram in own) / len(own)]
        shares += [
            sum(gram in own for gram in grams(text)) / len(grams(text)) for text in texts if grams(text)
        ]
        assert ratio == max(shares)
    coverage = Coverage(index)
    for row in rows:
        coverage.add([row])
    said = {gram for row in rows for gram in grams(row)}
    assert coverage.shares() == [
        sum(gram in said for gram in grams(text)) / len(grams(text)) if grams(text) else None
        for text in texts
    ]
    hit = sum(
        any(gram in said for gram in grams(text)[max(0, place - 7) : place + 1])
        for text in texts
        for place in range(len(words(text)))
    )
    assert coverage.words() == (hit, sum(len(words(text)) for text in texts))


def test_what_many_texts_of_the_set_say_does_not_count():
    texts = [f"{RULE} and number {i} asks for {i * i} of {i * 7}" for i in range(40)]
    row = f"{RULE} but this one wants something else by far and says so at some length"
    assert (NgramIndex(texts).ratios([row])[0] or 0) > 0.8
    assert NgramIndex(texts, 0.1).ratios([row, texts[3], RULE])[0] == 0.0
    assert NgramIndex(texts, 0.1).ratios([texts[3]]) == [1.0]
    assert NgramIndex(texts, 0.1).ratios([RULE]) == [None]


def test_the_wording_of_a_kind_is_what_over_half_of_it_says():
    rows = [
        ("kind", f"{RULE} and now number {i} with {i * 3} more words of {i * i} its own") for i in range(20)
    ]
    plain, aside = NearIndex(0.8), NearIndex(0.8, wording=shared_wording(rows))
    texts = [text for _, text in rows]
    assert sum(repeat is not None for repeat in plain.add_batch(texts)) > 15
    assert sum(repeat is not None for repeat in aside.add_batch(texts)) == 0
    assert [repeat is not None for repeat in aside.add_batch([texts[4], RULE, RULE])] == [True, False, True]
    assert len(shared_wording(rows[:7])) == 0


@settings(deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), max_size=12))
def test_with_answers_a_repeat_is_one_in_whole_and_in_its_answer(rows: list[tuple[str, str]]):
    def shingles(text: str) -> set[tuple[str, ...]]:
        found = text.split()
        return {tuple(found[i : i + 3]) for i in range(max(1, len(found) - 2))}

    def alike(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> float:
        return len(one & other) / len(one | other)

    answers = [f"y z {answer}" for _, answer in rows]
    texts = [f"{prompt} {answer}" for (prompt, _), answer in zip(rows, answers, strict=True)]
    repeats = NearIndex(0.5).add_batch(texts, answers)
    for row, repeat in enumerate(repeats):
        if repeat is not None:
            assert alike(shingles(texts[row]), shingles(texts[repeat.of])) == repeat.jaccard >= 0.5
            ends = [answers[row], answers[repeat.of]]
            if all(len(end.split()) > 2 for end in ends):
                assert alike(*map(shingles, ends)) >= 0.5
    kept = [row for row, repeat in enumerate(repeats) if repeat is None]
    for one, two in pairwise(kept):
        assert texts[one] != texts[two]
