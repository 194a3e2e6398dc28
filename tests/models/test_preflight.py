"""What is said of two tokenizers before anything is paid for: by what they do, not by name or size."""

import json
from pathlib import Path

import pytest
from small_models import TEMPLATE, make_byte_fallback, make_tokenizer
from tokenizers import Tokenizer, normalizers
from transformers import PreTrainedTokenizerFast

from stillhouse.errors import ModelError, UsageError
from stillhouse.models import preflight, source_folder
from stillhouse.models.reading import Reader, load_part, teacher_reader

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "models"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is absent")


def reader(tokenizer, stops=(0,)):
    return Reader(tokenizer, frozenset(stops))


def changed(change):
    """The tokenizer of bytes, with its tokenizer.json changed."""
    own = make_tokenizer()
    said = json.loads(own.backend_tokenizer.to_str())
    change(said)
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(said)), eos_token=own.eos_token
    )
    made.chat_template = TEMPLATE
    return reader(made)


def refused(student, teacher):
    with pytest.raises(UsageError) as found:
        preflight.check(student, teacher)
    return found.value


def test_models_that_read_alike():
    assert "260" in preflight.check(reader(make_tokenizer()), reader(make_tokenizer()))
    assert "6 of 6" in preflight.check_chunks(reader(make_tokenizer()), reader(make_tokenizer()))
    desk, base = (teacher_reader(source_folder(f"embedded:{name}")) for name in ("desk", "base"))
    assert "same" in preflight.check(base, desk)


def test_two_tokenizers_of_one_size_with_swapped_ids_are_named_by_their_first_ids():
    def swap(said):
        vocabulary = said["model"]["vocab"]
        for one, other in (("a", "b"), ("c", "d")):
            vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]

    error = refused(reader(make_tokenizer()), changed(swap))
    ids = make_tokenizer().get_vocab()
    assert "ids that differ: 4 " in error.why
    assert f"{ids['a']} is 'a' and 'b'" in error.why
    assert error.why.count(" is ") == 3
    assert 'unit = "chunk"' in error.mend


def test_a_teacher_with_more_real_tokens_is_another_tokenizer():
    def add(said):
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        said["added_tokens"].append({"id": 260, "content": "<|tool|>", "special": True, **flags})

    error = refused(reader(make_tokenizer()), changed(add))
    assert "ids that differ: 1 " in error.why
    assert "260 is no token and special '<|tool|>'" in error.why


def test_a_token_that_is_special_to_one_only():
    def unmark(said):
        said["added_tokens"][1]["special"] = False

    assert (
        "1 is special '<|system|>' and '<|system|>'" in refused(reader(make_tokenizer()), changed(unmark)).why
    )


def test_the_same_tokens_merged_in_another_order():
    def merge(*pairs):
        def change(said):
            said["model"]["vocab"] |= {"ab": 260, "bc": 261}
            said["model"]["merges"] = [list(pair) for pair in pairs]

        return changed(change)

    error = refused(merge("ab", "bc"), merge("bc", "ab"))
    assert "other pairs are merged" in error.why


def test_a_text_that_one_normalises_first():
    plain, lowered = make_tokenizer(), make_tokenizer()
    lowered.backend_tokenizer.normalizer = normalizers.Lowercase()
    error = refused(reader(plain), reader(lowered))
    assert "'I' for the student and" in error.why
    assert "'i' for the teacher" in error.why
    assert "3 of 6 probes" in preflight.check_chunks(reader(plain), reader(lowered))


def test_a_teacher_that_opens_a_text_with_a_token_of_its_own():
    from tokenizers.processors import TemplateProcessing

    own, opened = make_tokenizer(template=None), make_tokenizer(template=None)
    opened.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|system|> $A", special_tokens=[("<|system|>", 1)]
    )
    error = refused(reader(own), reader(opened))
    assert "token 1 of" in error.why
    assert "special '<|system|>' for the teacher" in error.why


def test_templates_are_compared_whole():
    error = refused(reader(make_tokenizer()), reader(make_tokenizer(TEMPLATE + " ")))
    assert "templates differ" in error.why
    preflight.check_chunks(reader(make_tokenizer()), reader(make_tokenizer(TEMPLATE + " ")))


def test_a_teacher_that_ends_where_the_student_does_not_stop():
    """A base student and a chat teacher of one family: what is learned is an end that nobody heeds."""
    chat = make_tokenizer()
    chat.eos_token = "<|user|>"
    error = refused(reader(make_tokenizer()), reader(chat, stops=(0, 2)))
    assert "'<|user|>'" in error.why
    assert "add 2 to" in error.mend
    preflight.check(reader(make_tokenizer(), stops=(0, 2)), reader(chat, stops=(0, 2)))


def test_padding_of_a_head_is_no_difference_and_a_missing_row_is():
    preflight.check_outputs(260, 260, 320)
    preflight.check_outputs(260, 300, 264)
    with pytest.raises(ModelError, match="same tokens") as found:
        preflight.check_outputs(260, 259, 320)
    assert "outputs for 259, and the teacher for 260" in found.value.why


def test_tokenizers_that_have_no_text_in_common():
    def upper(said):
        said["normalizer"] = {"type": "Prepend", "prepend": "x"}

    with pytest.raises(UsageError) as found:
        preflight.check_chunks(reader(make_tokenizer()), changed(upper))
    assert "once upon a time" in found.value.why
    assert "6 of 6" in preflight.check_chunks(reader(make_tokenizer()), reader(make_byte_fallback(), (1,)))


@needs_data
def test_two_public_tokenizers():
    """Of one family and kind; the first 259 ids are the same."""
    pieces, letters = (
        Reader(load_part("tokenizer", name, str(DATA / name)), frozenset({2}))
        for name in ("stories260K", "babyllama361")
    )
    error = refused(pieces, letters)
    raw = pieces.vocabulary().raw, letters.vocabulary().raw
    first = next(at for at in range(361) if raw[0][at] != raw[1][at])
    apart = sum(raw[0][at] != (raw[1][at] if at < 361 else b"") for at in range(512))
    assert first == 259
    assert f"ids that differ: {apart} " in error.why
    assert f"{first} is {raw[0][first].decode()!r} and {raw[1][first].decode()!r}" in error.why
    assert "different tokenizers" in preflight.check_chunks(pieces, letters)
