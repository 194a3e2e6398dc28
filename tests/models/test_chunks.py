"""Chunks of a text that two tokenizers cut out: the smallest, over bytes, with what was said of each."""

import math
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models.test_alignment import vocabulary_of
from small_models import make_byte_fallback, make_tokenizer

from stillhouse.models.chunks import UNKNOWN, Spoken, borders, likelihoods, shared_ends, spoken
from stillhouse.models.logprobs import Likely, TeacherToken
from stillhouse.models.reading import Reader, load_part
from stillhouse.models.vocabulary import read_vocabulary

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "models"
STUDENT = vocabulary_of(b"a", b"b", b"c", b" ", b"\xc3", b"\xa9", b"ab", b"abc", b" a")
END = 0


def ids_of(*pieces):
    return [*(STUDENT.ids[piece] for piece in pieces), END]


def test_chunks_are_the_smallest_stretches_that_both_cut_out():
    assert shared_ends([b"ab", b"c", b"de"], [b"a", b"bc", b"d", b"e"]) == [(2, 2), (3, 4)]
    assert shared_ends([b"abc"], [b"a", b"b", b"c"]) == [(1, 3)]
    assert shared_ends([b"a"], [b"b"]) == []
    assert shared_ends([b"ab"], [b"a"]) == []
    assert shared_ends([], []) == []


def test_a_character_may_be_cut_by_one_and_not_by_the_other():
    assert shared_ends([b"\xc3", b"\xa9", b"a"], ["\u00e9".encode(), b"a"]) == [(2, 1), (3, 2)]
    assert shared_ends([b"\xc3", b"\xa9a"], [b"\xc3", b"\xa9", b"a"]) == [(1, 1), (2, 3)]


def test_the_blank_that_one_tokenizer_puts_before_a_text():
    assert shared_ends([b" a", b"b"], [b"a", b"b"]) == [(1, 1), (2, 2)]
    assert shared_ends([b"a", b"b"], [b" ", b"a", b"b"]) == [(1, 2), (2, 3)]
    assert shared_ends([b" ", b" a"], [b" ", b"a"]) == [(2, 2)]
    assert shared_ends([b"  a"], [b"a"]) == []


def test_a_token_that_spells_nothing_belongs_to_what_stands_before():
    assert shared_ends([b"a", b"", b"b"], [b"a", b"b"]) == [(2, 1), (3, 2)]


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=12), st.data())
def test_any_two_cuts_of_a_text(text, data):
    """Against the definition: a place is shared if it is an end in both, and nothing else is."""
    raw = text.encode()
    one, other = (
        sorted({*data.draw(st.sets(st.integers(1, max(1, len(raw))))), len(raw)} - {0}) for _ in range(2)
    )
    one, other = ([end for end in ends if end <= len(raw)] for ends in (one, other))
    pieces = [[raw[a:b] for a, b in zip([0, *ends], ends, strict=False)] for ends in (one, other)]
    found = shared_ends(*pieces)
    ends = [list(accumulate(map(len, each))) for each in pieces]
    assert [ends[0][count - 1] for count, _ in found] == sorted({*ends[0]} & {*ends[1]})
    assert all(ends[0][a - 1] == ends[1][b - 1] for a, b in found)


def end(logprob, border=None):
    return Spoken(b"", logprob, logprob if border is None else border)


def test_a_chunk_is_a_word_with_its_border_and_the_end_is_its_own():
    said = [
        Spoken(b"a", -1.0, -9.0),
        Spoken(b"bc", -2.0, -9.0),
        Spoken(b" ", -0.5, -0.25),
        Spoken(b"a", -4.0, -9.0),
    ]
    found = likelihoods(ids_of(b"ab", b"c", b" a"), STUDENT, said, end(-0.125, -0.1))
    assert found == [None, -3.25, -4.6, -0.125]


def test_a_word_ends_where_both_go_on_with_white_space():
    said = [Spoken(b"ab", -1.0, -9.0), Spoken(b"c a", -2.0, -9.0)]
    assert likelihoods(ids_of(b"ab", b"c", b" a"), STUDENT, said, end(-1.0)) == [None, None, -4.0, -1.0]


def test_where_a_server_does_not_show_the_end_the_last_word_has_no_border():
    said = [Spoken(b"ab", -1.0, -9.0), Spoken(b" ", -0.5, -0.25), Spoken(b"a", -2.0, -9.0)]
    found = likelihoods(ids_of(b"ab", b" ", b"a"), STUDENT, said, Spoken(b"", None))
    assert found == [-1.25, None, -2.5, UNKNOWN]


def test_what_is_not_known_spoils_its_own_chunk_alone():
    said = [Spoken(b"ab", None, -9.0), Spoken(b" ", -0.5, -0.25), Spoken(b"c", -2.0, -9.0)]
    assert likelihoods(ids_of(b"a", b"b", b" ", b"c"), STUDENT, said, end(-1.0)) == [
        None,
        UNKNOWN,
        None,
        -3.5,
        -1.0,
    ]
    said = [Spoken(b"ab", -1.0, -9.0), Spoken(b" ", -0.5, None), Spoken(b"c", -2.0, -9.0)]
    assert likelihoods(ids_of(b"a", b"b", b" ", b"c"), STUDENT, said, end(-1.0))[1] == UNKNOWN


def test_a_special_token_in_a_text_is_no_text():
    said = [Spoken(b"<", -1.0), Spoken(b"end>", -1.0), Spoken(b" ", -1.0, -1.0), Spoken(b"a", -3.0)]
    found = likelihoods([0, STUDENT.ids[b" "], STUDENT.ids[b"a"], END], STUDENT, said, end(-1.0))
    assert found == [UNKNOWN, None, -5.0, -1.0]


def test_another_text_has_no_chunks():
    assert likelihoods(ids_of(b"a"), STUDENT, [Spoken(b"b", -1.0)], end(-1.0)) == [None, None]
    assert likelihoods(ids_of(b"a"), STUDENT, [], end(-1.0)) == [None, None]
    longer = [Spoken(b"a", -1.0), Spoken(b"b", -1.0)]
    assert likelihoods(ids_of(b"a"), STUDENT, longer, end(-1.0)) == [None, None]


def test_borders_are_ids_that_begin_with_white_space_and_ends():
    assert [STUDENT.raw[at] for at in borders(STUDENT, [END])] == [b"<end>", b" ", b" a"]


def told(*tokens):
    return [
        TeacherToken(raw, logprob, tuple(Likely(each, math.log(p)) for each, p in rivals))
        for raw, logprob, *rivals in tokens
    ]


def test_the_tokens_of_a_served_answer_and_its_end():
    tokens = told((b"ab", -1.0, (b"ab", 0.4), (b" c", 0.25), (b" ", 0.25)), (b"c", -2.0), (b"<|stop|>", -0.5))
    first = Spoken(b"ab", -1.0, math.log(0.5))
    assert spoken(tokens, b"abc") == ([first, Spoken(b"c", -2.0)], Spoken(b"", -0.5, -0.5))
    assert spoken(tokens[:2], b"abc") == ([first, Spoken(b"c", -2.0)], Spoken(b"", None))
    assert spoken(told((b" ab", -1.0), (b"c", -2.0)), b"abc")[0] == [Spoken(b" ab", -1.0), Spoken(b"c", -2.0)]
    assert spoken(tokens[:2], b"abd")[0] == []
    assert spoken([], b"a")[0] == []


@settings(max_examples=80, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), min_size=1, max_size=20))
def test_two_tokenizers_meet_at_the_end_of_any_text(text):
    """One of bytes, one of SentencePiece's kind, which writes a blank as U+2581 and rare letters by byte."""
    ends = []
    for tokenizer in (make_tokenizer(), make_byte_fallback()):
        vocabulary = read_vocabulary(tokenizer.backend_tokenizer.to_str())
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        ends.append([vocabulary.raw[at] for at in ids])
    found = shared_ends(*ends)
    if "\u2581" in text:
        assert found == []  # which SentencePiece makes a blank of
    else:
        assert found[-1] == (len(ends[0]), len(ends[1]))


@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is absent")
def test_the_chunks_of_two_public_tokenizers():
    """Each piece of the one is a chunk, as the other has characters."""
    readers = [
        Reader(load_part("tokenizer", name, str(DATA / name)), frozenset({2}))
        for name in ("stories260K", "babyllama361")
    ]
    pieces, letters = (
        [reader.vocabulary().raw[at] for at in reader.tokenizer(text, add_special_tokens=False)["input_ids"]]
        for text in ("Once upon a time, there was a caf\u00e9.",)
        for reader in readers
    )
    assert b"".join(pieces) == b"".join(letters) == " Once upon a time, there was a caf\u00e9.".encode()
    found = shared_ends(pieces, letters)
    assert [count for count, _ in found] == list(range(1, len(pieces) + 1))
    assert max(map(len, pieces)) > 1 == min(map(len, letters))
    assert math.isclose(found[-1][1], len(letters))
