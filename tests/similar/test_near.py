"""Near duplicates against brute force, and what must not matter: cuts, hash seeds, sizes, scripts."""

import os
import random
import subprocess
import sys
import time
import tracemalloc
from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.similar import NearIndex, Repeat, exact_repeats, near_repeats
from stillhouse.text import normalise, tokens

VOCABULARY = "the a ship sails sea \u98ce stra\u00dfe Stra\u00dfe 3 4 + - , . caf\u00e9 cafe\u0301 _".split()


def shingles(text: str) -> set[tuple[str, ...]]:
    found = tokens(text)
    return {tuple(found[i : i + 3]) for i in range(max(1, len(found) - 2))}


def jaccard(one: str, other: str) -> float:
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b)


def edited(text: str, changes: int, rng: random.Random) -> str:
    found = text.split()
    for place in rng.sample(range(len(found)), changes):
        found[place] = f"new{rng.randrange(10**9)}"
    return " ".join(found)


def passage(rng: random.Random, length: int) -> str:
    return " ".join(f"w{rng.randrange(5000)}" for _ in range(length))


@st.composite
def alike(draw):
    """Texts of a few words, many of them made from an earlier one by one edit."""
    made = [""]
    for _ in range(draw(st.integers(1, 25))):
        base = draw(st.sampled_from(made)).split()
        if draw(st.booleans()):
            base = draw(st.lists(st.sampled_from(VOCABULARY), max_size=30))
        elif base:
            base[draw(st.integers(0, len(base) - 1))] = draw(st.sampled_from(VOCABULARY))
        made.append(draw(st.sampled_from([" ", "  ", "\n"])).join(base))
    return draw(st.permutations(made))


@settings(deadline=None)
@given(alike(), st.sampled_from([0.3, 0.5, 0.7, 0.8, 1.0]))
def test_a_reported_pair_is_a_pair_by_brute_force(texts, threshold):
    found = list(near_repeats(texts, threshold))
    dropped = {repeat.row for repeat in found}
    assert [repeat.row for repeat in found] == sorted(dropped)
    for repeat in found:
        assert repeat.of < repeat.row
        assert repeat.of not in dropped, "a dropped text names a kept one"
        assert repeat.jaccard == jaccard(texts[repeat.row], texts[repeat.of]) >= threshold
        assert not repeat.reference


@settings(deadline=None)
@given(alike(), st.lists(st.integers(0, 26), max_size=4))
def test_the_cut_into_calls_does_not_matter(texts, cuts):
    whole = list(NearIndex().add_all(texts))
    one_by_one = NearIndex()
    assert [one_by_one.add(text) for text in texts] == whole
    in_parts, bounds = NearIndex(), sorted({0, len(texts), *(min(cut, len(texts)) for cut in cuts)})
    arrow = NearIndex().add_batch(pa.array([None, *texts]))
    assert arrow == list(NearIndex().add_all(["", *texts])), "a null is an empty text"
    parts = [texts[a:b] for a, b in pairwise(bounds)]
    assert [found for part in parts for found in in_parts.add_all(part)] == whole
    assert len(in_parts) == len(one_by_one) == whole.count(None)


@settings(deadline=None)
@given(alike())
def test_equal_sets_of_shingles_are_always_found(texts):
    kept = set(range(len(texts))) - {repeat.row for repeat in near_repeats(texts)}
    seen = [frozenset(shingles(texts[row])) for row in sorted(kept)]
    assert len(seen) == len(set(seen))


@settings(deadline=None)
@given(alike(), st.randoms(use_true_random=False))
def test_exact_repeats_keep_the_same_texts_in_any_order(texts, rng):
    def kept(rows: list[str]) -> list[str]:
        dropped = {repeat.row for repeat in exact_repeats(rows)}
        return sorted(normalise(text) for row, text in enumerate(rows) if row not in dropped)

    assert kept(texts) == sorted({normalise(text) for text in texts})
    assert kept(rng.sample(texts, len(texts))) == kept(texts)
    for repeat in exact_repeats(texts):
        assert normalise(texts[repeat.row]) == normalise(texts[repeat.of])
        assert repeat.of == min(
            r for r, t in enumerate(texts) if normalise(t) == normalise(texts[repeat.row])
        )


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9])
def test_recall_of_brute_force(threshold):
    """Of the texts that repeat a kept one at the threshold or above at least 95 % are found."""
    rng = random.Random(1)
    texts = [passage(rng, rng.randint(20, 90)) for _ in range(400)]
    texts += [edited(rng.choice(texts), rng.randint(0, 4), rng) for _ in range(1000)]
    rng.shuffle(texts)
    found = {repeat.row: repeat for repeat in near_repeats(texts, threshold)}
    sets = [shingles(text) for text in texts]
    holders: dict[tuple[str, ...], list[int]] = {}  # the kept texts that have a shingle
    due, named_best = 0, 0
    for row, own in enumerate(sets):
        near = {kept for shingle in own for kept in holders.get(shingle, ())}
        best = max((len(own & sets[kept]) / len(own | sets[kept]) for kept in near), default=0.0)
        due += best >= threshold
        named_best += row in found and found[row].jaccard == best
        assert row not in found or best >= threshold
        if row not in found:
            for shingle in own:
                holders.setdefault(shingle, []).append(row)
    assert due > 200
    assert len(found) >= 0.95 * due
    assert named_best >= 0.95 * len(found), "the most similar kept text is named"


def test_the_first_is_kept_and_named():
    texts = [
        "One two three four five.",
        "six seven",
        "one two  THREE four five.",
        "",
        "Seven six",
        " \n",
        "six Seven",
    ]
    assert list(near_repeats(texts)) == [Repeat(2, 0, 1.0), Repeat(5, 3, 1.0), Repeat(6, 1, 1.0)]
    assert list(exact_repeats(texts)) == [Repeat(2, 0, 1.0), Repeat(5, 3, 1.0), Repeat(6, 1, 1.0)]


def test_of_two_kept_texts_the_more_similar_is_named():
    rng = random.Random(3)
    middle = passage(rng, 100).split()
    left, right = [["left"] * 16 + middle[16:], middle[:-11] + ["right"] * 11]
    index = NearIndex(0.7)
    assert index.add(" ".join(left)) is None
    assert index.add(" ".join(right)) is None, "further apart than 0.7"
    found = index.add(" ".join(middle))
    assert found is not None
    assert found.of == 1
    assert found.jaccard == jaccard(" ".join(middle), " ".join(right))


def test_one_changed_word_in_nineteen_is_the_threshold():
    rng = random.Random(4)
    for length, repeated in ((19, True), (18, False)):
        base = passage(rng, length).split()
        other = [*base[:8], "changed", *base[9:]]
        assert bool(list(near_repeats([" ".join(base), " ".join(other)]))) is repeated


def test_a_reference_set_is_never_repeated_and_never_judged():
    rng = random.Random(5)
    held_out = passage(rng, 60)
    reference = [held_out, edited(held_out, 1, rng), held_out.upper()]
    index = NearIndex(reference=reference)
    assert len(index) == 2, "near texts of the set are both kept, the same text once"
    assert index.add(passage(rng, 60)) is None
    assert index.add(held_out) == Repeat(1, 0, 1.0, reference=True)
    assert index.add(reference[1]) == Repeat(2, 1, 1.0, reference=True)
    fresh = passage(rng, 60)
    assert index.add(fresh) is None
    assert index.add(fresh) == Repeat(4, 3, 1.0)


@pytest.mark.parametrize("word", ["a", "\u4e2d", "\ud800", "\U0001f600", "\x00"])
def test_texts_of_one_word(word):
    assert [
        bool(found) for found in NearIndex().add_all([word, "b", word, f" {word}\n", f"{word} {word}"])
    ] == [
        False,
        False,
        True,
        True,
        False,
    ]


def test_texts_without_spaces_are_compared_by_their_letters():
    text = "".join(chr(0x4E00 + i) for i in range(200))
    found = list(near_repeats([text, text[:100] + "\u9fa0" + text[101:]]))
    assert [(repeat.row, repeat.of) for repeat in found] == [(1, 0)]


def test_huge_texts():
    rng = random.Random(6)
    found = [f"w{rng.randrange(50_000)}" for _ in range(150_000)]
    changed = [w if i % 40 else "x" for i, w in enumerate(found)]
    repeats = list(
        near_repeats(["short", " ".join(found), " ".join(changed), "x" * 3_000_000, "y" * 3_000_000])
    )
    assert [(repeat.row, repeat.of) for repeat in repeats] == [(2, 1)]
    assert repeats[0].jaccard == jaccard(" ".join(found), " ".join(changed))


@pytest.mark.parametrize(
    "texts",
    [
        pytest.param(["the very same row, word for word"] * 50_000, id="identical"),
        pytest.param(
            [
                f"dear customer {i}, your order has left us and will be with you two or three days from now"
                for i in range(20_000)
            ],
            id="one word differs",
        ),
    ],
)
def test_many_rows_that_are_alike_take_no_quadratic_time(texts):
    started = time.process_time()
    repeats = list(near_repeats(texts))
    assert time.process_time() - started < 15, "about 1 s alone"
    assert len(repeats) >= len(texts) - 3


def test_a_long_common_opening_takes_no_quadratic_time():
    """Pairs just below the threshold share bands by the thousand; the first texts of each are compared."""
    rng = random.Random(7)
    opening = passage(rng, 20)
    texts = [f"{opening} {passage(rng, 9)}" for _ in range(6_000)]
    texts += [f"{text} too" for text in texts[::60]]
    started = time.process_time()
    found = list(near_repeats(texts))
    assert time.process_time() - started < 30, "about 2 s alone"
    late = [repeat for repeat in found if repeat.row >= 6_000]
    assert len(late) >= 95, "the crowd does not hide those that are very alike"
    assert all(repeat.of == 60 * (repeat.row - 6_000) for repeat in late)


def test_memory_of_a_kept_text():
    rng = random.Random(8)
    texts = [passage(rng, 75) for _ in range(8_000)]
    index = NearIndex()
    for text in texts[:200]:
        index.add(text)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        assert list(index.add_all(texts[200:])).count(None) == len(texts) - 200
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown / (len(texts) - 200) <= 8 * 75 + 650


def test_the_same_is_found_under_any_hash_seed():
    code = (
        "import random; from stillhouse.similar import near_repeats; r = random.Random(1)\n"
        "texts = [' '.join(r.choices('abcd', k=6)) for _ in range(900)]\n"
        "print(list(near_repeats(texts, 0.4)))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
    assert b"Repeat" in found.pop()
