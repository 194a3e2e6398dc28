"""Hashes of a batch against its pieces, taken apart one text at a time."""

import random
from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.similar.hashes import hashed, ngrams
from stillhouse.text import tokens, words

# White space and marks of every sort, letters whose case or form changes when normalised, half a character.
MIXED = (
    "aB9_ \t\n\r\v\f\x1c\x1f\x00\x7f.,'-\x85\xa0\u2003\u2019\u2014"
    "\u00e9e\u0301\u0130\u00df\ufb01\u4e2d\u3042\u0e01\U0001f600\ud800"
)
texts_of_any_sort = st.lists(st.text(st.sampled_from(MIXED) | st.characters(), max_size=40), max_size=8)


def hashes_of(texts, pieces):
    found, offsets = hashed(texts, pieces)
    return [found[a:b].tolist() for a, b in pairwise(offsets)]


@settings(deadline=None)
@given(texts_of_any_sort, st.sampled_from([tokens, words]))
def test_equal_pieces_have_equal_hashes_and_no_others(texts, pieces):
    shown = [text.encode("utf-8", "replace").decode() for text in texts]
    told: dict[str, int] = {}
    for text, own in zip(shown, hashes_of(texts, pieces), strict=True):
        for piece, value in zip(pieces(text), own, strict=True):
            assert told.setdefault(piece, value) == value
    assert len(set(told.values())) == len(told)


def test_pieces_of_every_length_differ_in_every_byte():
    rng = random.Random(1)
    made = {""}
    for length in [*range(1, 20), 63, 64, 65, 72, 200]:
        base = "".join(rng.choices("abcdefgh", k=length))
        made |= {base, *(base[:place] + "z" + base[place + 1 :] for place in range(length))}
    made.remove("")
    found, _ = hashed([" ".join(sorted(made))], tokens)
    assert len(set(found.tolist())) == len(made)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_an_arrow_array_counts_like_a_list(kind):
    texts = ["left out", "One, two", "", "caf\u00e9 or tea", "and \u2014 the end", "left out"]
    column = pa.array([*texts[:2], None, *texts[3:]], kind)
    assert hashes_of(column[1:5], tokens) == hashes_of(texts[1:5], tokens)
    assert hashes_of(column[:0], tokens) == hashes_of([], tokens) == []
    assert hashes_of(pa.array([None, None], kind), words) == [[], []]


def test_how_much_is_taken_at_once_does_not_matter(monkeypatch):
    rng = random.Random(2)
    texts = [
        " ".join(rng.choices(["one,", "caf\u00e9", "three", "\u4e2d\u56fd"], k=rng.randrange(9)))
        for _ in range(60)
    ]
    whole = [part.tolist() for part in hashed(["", *texts, ""], tokens)]
    for size in (1, 7, 64):
        monkeypatch.setattr("stillhouse.similar.hashes._TAKEN", size)
        assert [part.tolist() for part in hashed(["", *texts, ""], tokens)] == whole
    assert [part.tolist() for part in hashed(["", ""], tokens)] == [[], [0, 0, 0]]


def test_no_piece_and_no_ngram_spans_two_texts():
    parts, offsets = hashed(["one", "two", "onetwo"], tokens)
    assert offsets.tolist() == [0, 1, 2, 3]
    assert len(set(parts.tolist())) == 3
    grams, starts = ngrams(*hashed(["a b c", "d", "", "b c a b c"], tokens), 3)
    assert starts.tolist() == [0, 1, 1, 1, 4]
    assert grams[0] == grams[3]
    assert len(set(grams.tolist())) == 3


def test_a_short_text_is_filled_up():
    found, offsets = hashed(["", "one two", "one two three four"], tokens, least=3)
    assert offsets.tolist() == [0, 3, 6, 10]
    assert found[:3].tolist() == [0, 0, 0]
    assert found[5] == 0
    assert (found[3:5] == found[6:8]).all()
    assert found[3:5].all()
