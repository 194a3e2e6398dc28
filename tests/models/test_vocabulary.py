import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from small_models import make_byte_fallback, make_tokenizer
from tokenizers import Tokenizer

from stillhouse.errors import ModelError
from stillhouse.models.local import load_model, vocabulary
from stillhouse.models.vocabulary import read_vocabulary

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
BASE = ROOT / "src" / "stillhouse" / "models" / "embedded" / "base" / "tokenizer.json"
FILES = [
    BASE,
    DATA / "tokenizers" / "gpt2.json",
    DATA / "models" / "stories260K" / "tokenizer.json",
    DATA / "models" / "babyllama361" / "tokenizer.json",
]
TEXTS = [
    "Once upon a time there was a girl.\nShe said: (Ada), \"yes\" & 'no' - a/b {x}",
    'Grüße, 世界! <0x41> e\u0301 \U0001f642 {"name": "Ada"}\t\n\n 17 + 4',
]


def need(path):
    if not path.exists():
        pytest.skip(f"the shared {path.name} is not here")
    return path


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_tokens_spell_what_the_library_decodes(path):
    tokenizer = Tokenizer.from_file(str(need(path)))
    found = read_vocabulary(path.read_bytes())
    assert len(found.raw) == tokenizer.get_vocab_size()
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        told = found.text(b"".join(found.raw[at] for at in ids))
        unknown = tokenizer.token_to_id("<unk>")
        if unknown not in ids:
            assert told.removeprefix(" ") == tokenizer.decode(ids) == text
    random.seed(4)
    for _ in range(50):  # whatever a model might write
        ids = random.choices(range(5, tokenizer.get_vocab_size()), k=8)
        told = found.text(b"".join(found.raw[at] for at in ids))
        if "\ufffd" not in told:  # for bytes that are no character there are several customs
            assert told.removeprefix(" ") == tokenizer.decode(ids).removeprefix(" ")


def test_known_tokens_of_gpt2():
    found = read_vocabulary(need(FILES[1]).read_bytes())
    assert [found.raw[at] for at in (0, 198, 220, 262, 11, 15496)] == [
        b"!",
        b"\n",
        b" ",
        b" the",
        b",",
        b"Hello",
    ]
    assert found.ids[b" the"] == 262
    assert len(found.raw) == 50257


@pytest.mark.parametrize("make", [make_tokenizer, make_byte_fallback])
def test_it_agrees_with_what_the_server_shows(make, tiny):
    tokenizer = make()
    shown = vocabulary(replace(tiny, tokenizer=tokenizer))
    assert [token.raw for token in shown] == list(read_vocabulary(tokenizer.backend_tokenizer.to_str()).raw)


def test_texts_are_made_of_pieces_not_of_bytes():
    found = read_vocabulary(make_byte_fallback().backend_tokenizer.to_str())
    assert found.ids[b"a"] == 260  # and not 3 + 0x61
    assert found.ids[b"\xc3"] == 3 + 0xC3
    assert found.raw[3 + 0x61] == b"a"
    assert found.specials == {b"<s>": 0, b"</s>": 1, b"<unk>": 2}
    assert b"</s>" not in found.ids


def test_the_digest_is_of_meaning_not_of_spelling():
    said = json.loads(BASE.read_bytes())
    digest = read_vocabulary(BASE.read_bytes()).digest

    def changed(change):
        copy = json.loads(json.dumps(said))
        change(copy)
        return read_vocabulary(json.dumps(copy)).digest

    def older_merges(copy):
        copy["model"]["merges"] = [" ".join(pair) for pair in copy["model"]["merges"]]

    def swapped(copy):
        words = copy["model"]["vocab"]
        (a, x), (b, y), *_ = [(w, at) for w, at in words.items() if at > 300]
        words[a], words[b] = y, x

    assert digest == changed(older_merges)
    assert digest == changed(lambda copy: copy.update(truncation={"max_length": 5}, padding=None))
    assert digest != changed(swapped)
    assert digest != changed(lambda copy: copy["model"]["merges"].reverse())
    assert digest != changed(lambda copy: copy["added_tokens"][0].update(special=False))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"model": {"vocab": {}}}', '{"model": {"vocab": 3}}', "\ud800"]
)
def test_what_is_no_tokenizer_is_refused(text):
    with pytest.raises(ModelError) as caught:
        read_vocabulary(text)
    assert caught.value.why
    assert caught.value.mend


def test_tokens_without_bytes_of_their_own_are_refused():
    with pytest.raises(ModelError, match="no bytes of their own") as caught:
        read_vocabulary(need(DATA / "tokenizers" / "bert_uncased_like.json").read_bytes())
    assert "WordPiece" in caught.value.why


def test_the_folder_and_the_loaded_tokenizer_are_one():
    folder = need(DATA / "models" / "stories260K")
    loaded = load_model(str(folder)).tokenizer.backend_tokenizer.to_str()
    assert read_vocabulary(loaded).digest == read_vocabulary((folder / "tokenizer.json").read_bytes()).digest
