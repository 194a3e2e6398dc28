import math

from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import make_byte_fallback, make_tokenizer

from stillhouse.models.alignment import align
from stillhouse.models.logprobs import Likely, TeacherToken
from stillhouse.models.vocabulary import Vocabulary, read_vocabulary

BYTES = tuple(bytes([byte]) for byte in b"abc \xc3\xa9")


def vocabulary_of(*pieces, specials=(b"<end>",)):
    raw = (*specials, *pieces)
    ids = {piece: at for at, piece in reversed([*enumerate(raw)]) if at >= len(specials)}
    return Vocabulary(raw, ids, {piece: at for at, piece in enumerate(specials)}, (), "d")


def token(raw, *rivals, own=0.5, **more):
    """A token of probability `own`, and its rivals as (bytes, probability)."""
    likely = [Likely(raw, math.log(own), more.get("id")), *(Likely(r, math.log(p)) for r, p in rivals)]
    return TeacherToken(raw, math.log(own), tuple(sorted(likely, key=lambda each: -each.logprob)), **more)


def spoken(entries, vocabulary):
    """Entries with the student's bytes and probabilities."""
    return [[(vocabulary.raw[at], round(math.exp(value), 6)) for at, value in each] for each in entries]


STUDENT = vocabulary_of(*BYTES, b"ab", b"ca", b"abc", b" a")


def ids_of(*pieces):
    return [STUDENT.ids[piece] for piece in pieces]


# ---------------------------------------------------------------- by bytes


def test_alternatives_become_the_students_ids_by_their_bytes():
    tokens = [token(b"ab", (b"abc", 0.2), (b"xyz", 0.2)), token(b"c", (b" a", 0.4))]
    found = align(tokens, ids_of(b"ab", b"c"), STUDENT)
    assert spoken(found.entries, STUDENT) == [[(b"ab", 0.5), (b"abc", 0.2)], [(b"c", 0.5), (b" a", 0.4)]]
    assert math.isclose(found.given, 1.8)
    assert math.isclose(found.mapped, 1.6)
    assert found.reason == ""


def test_where_the_cuts_differ_there_is_no_target():
    tokens = [token(b"ab"), token(b"c"), token(b"c"), token(b"ab")]
    found = align(tokens, ids_of(b"a", b"b", b"c", b"ca", b"b"), STUDENT)
    assert [bool(each) for each in found.entries] == [False, False, True, False, False]
    assert found.reason == ""


def test_a_character_cut_into_bytes():
    tokens = [token(b"\xc3", (b"a", 0.5)), token(b"\xa9")]
    found = align(tokens, ids_of(b"\xc3", b"\xa9"), STUDENT)
    assert spoken(found.entries, STUDENT) == [[(b"\xc3", 0.5), (b"a", 0.5)], [(b"\xa9", 0.5)]]


def test_another_text_has_no_targets():
    for tokens, ids in [
        ([token(b"ab")], ids_of(b"a", b"c")),
        ([token(b"a")], ids_of(b"ab")),
        ([], ids_of(b"a")),
    ]:
        found = align(tokens, ids, STUDENT)
        assert found.entries == ((),) * len(ids)
        assert found.reason == "the sample is another text than the answer"
    assert align([token(b"a")], [0], STUDENT).reason == "no text"


def test_a_sample_that_was_cut_keeps_what_comes_before():
    found = align([token(b"ab"), token(b"c"), token(b" a")], [*ids_of(b"ab", b"c"), 0], STUDENT)
    assert [bool(each) for each in found.entries] == [True, True, False]


def test_the_blank_that_sentencepiece_puts_before_a_text():
    blank = [token(b" a"), token(b"b")]
    plain = [token(b"a"), token(b"b")]
    for tokens, ids, wanted in [
        (blank, ids_of(b" a", b"b"), [True, True]),
        (blank, ids_of(b"a", b"b"), [False, True]),
        (plain, ids_of(b" a", b"b"), [False, True]),
        (plain, ids_of(b" ", b"a", b"b"), [False, True, True]),
    ]:
        assert [bool(each) for each in align(tokens, ids, STUDENT).entries] == wanted


def test_a_name_of_a_special_token_means_nothing_to_another_tokenizer():
    tokens = [token(b"a", (b"<end>", 0.3)), token(b"<end>", (b"b", 0.2))]
    other = align(tokens, [*ids_of(b"a"), 0], STUDENT)
    assert spoken(other.entries, STUDENT) == [[(b"a", 0.5)], []]
    same = align(tokens, [*ids_of(b"a"), 0], STUDENT, same=True)
    assert spoken(same.entries, STUDENT) == [[(b"a", 0.5), (b"<end>", 0.3)], [(b"<end>", 0.5), (b"b", 0.2)]]


def test_ids_count_where_the_tokenizer_is_the_same():
    twins = vocabulary_of(b"a", b"b", b"a")  # ids 1 and 3 spell the same
    one = TeacherToken(b"a", -0.7, (Likely(b"a", -0.7, 3), Likely(b"a", -1.5, 1), Likely(b"", -2.0, 99)), 3)
    assert align([one], [3], twins, same=True).entries == (((3, -0.7), (1, -1.5)),)
    assert align([one], [1], twins).entries == (((1, -0.7),),)


def test_an_empty_token_of_the_teacher_takes_no_place():
    tokens = [TeacherToken(b"", None, ()), token(b"ab"), TeacherToken(b"", None, ()), token(b"c")]
    assert [bool(each) for each in align(tokens, ids_of(b"ab", b"c"), STUDENT).entries] == [True, True]


# ---------------------------------------------------------------- any two tokenizers


@st.composite
def two_tokenisations(draw):
    """A text cut in two ways, and two vocabularies that have these pieces among others."""
    text = draw(st.lists(st.sampled_from(BYTES), min_size=1, max_size=14).map(b"".join))

    def cut():
        places = sorted(draw(st.sets(st.integers(1, len(text) - 1)))) if len(text) > 1 else []
        return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]

    pieces = st.lists(st.sampled_from(BYTES), min_size=1, max_size=3).map(b"".join)
    theirs, ours = cut(), cut()
    rivals = draw(st.lists(pieces, min_size=1, max_size=8, unique=True))
    student = vocabulary_of(*dict.fromkeys([*BYTES, *ours, *draw(st.lists(pieces, max_size=6))]))
    tokens = []
    for raw in theirs:
        likely = [rival for rival in rivals if rival != raw and draw(st.booleans())]
        tokens.append(token(raw, *((rival, 0.5 / len(likely)) for rival in likely)))
    return text, tokens, [student.ids[piece] for piece in ours], student


def spans(pieces):
    begins = [sum(map(len, pieces[:at])) for at in range(len(pieces))]
    return [(begin, begin + len(piece)) for begin, piece in zip(begins, pieces, strict=True)]


@settings(max_examples=400, deadline=None)
@given(two_tokenisations())
def test_bytes_are_conserved_and_targets_stand_where_both_cut_alike(case):
    text, tokens, ids, student = case
    found = align(tokens, ids, student)
    ours = [student.raw[at] for at in ids]
    assert b"".join(ours) == b"".join(each.raw for each in tokens) == text
    theirs = dict(zip(spans([each.raw for each in tokens]), tokens, strict=True))
    for place, entries, own in zip(spans(ours), found.entries, ids, strict=True):
        teacher = theirs.get(place)
        assert bool(entries) == (teacher is not None)
        if teacher is None:
            continue
        told = {student.raw[at]: value for at, value in entries}
        given = {each.raw: each.logprob for each in teacher.likely}
        assert told.items() <= given.items()
        assert all(raw not in student.ids for raw in given.keys() - told.keys())
        assert dict(entries)[own] == teacher.logprob
        assert [value for _, value in entries] == sorted((value for _, value in entries), reverse=True)
    assert found.mapped <= found.given + 1e-9
    total = sum(math.exp(value) for entries in found.entries for _, value in entries)
    assert math.isclose(found.mapped, total, abs_tol=1e-9)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="abcOH17 .,é世\n", min_size=1, max_size=20), st.booleans())
def test_with_one_tokenizer_every_position_maps(text, byte_level):
    tokenizer = (make_tokenizer if byte_level else make_byte_fallback)()
    student = read_vocabulary(tokenizer.backend_tokenizer.to_str())
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id
    rivals = [(student.raw[at], 0.1) for at in (end, 40, 80)]
    tokens = [token(student.raw[at], *(r for r in rivals if r[0] != student.raw[at])) for at in [*ids, end]]
    found = align(tokens, [*ids, end], student, same=True)
    assert found.reason == ""
    assert all(found.entries)
    assert math.isclose(found.mapped, found.given)
    assert [dict(entries)[at] for entries, at in zip(found.entries, [*ids, end], strict=True)] == [
        math.log(0.5)
    ] * (len(ids) + 1)
