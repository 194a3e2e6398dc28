"""What a word is, in any script, and where it stands."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.text import host_name, normalise, placed_words, tokens, words

# Accents apart from their letters, ligatures, wide and unspaced letters, odd white space, half characters.
awkward = st.text(
    st.sampled_from(
        "aB3 _.\u00e9e\u0301\ufb01\u00a8\u2003\u00a0\x1c\n\uff21\u0130\u00df\u4e2d\u6587"
        "\u0e44\u0e17\u0e22\u0939\u093f\u1100\u1161\u11a8\U0001f600\ud800-+"
    )
)
any_text = st.text() | awkward


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What is 3 + 4?", ["what", "is", "3", "+", "4", "?"]),
        ("It's  a\tSTRASSE, a stra\u00dfe.", ["it", "'", "s", "a", "strasse", ",", "a", "strasse", "."]),
        ("\u4eca\u5929\u5929\u6c14", ["\u4eca", "\u5929", "\u5929", "\u6c14"]),
        ("GPT\u6a21\u578b", ["gpt", "\u6a21", "\u578b"]),
        ("\u0939\u093f\u0928\u094d\u0926\u0940\u0964", ["\u0939\u093f\u0928\u094d\u0926\u0940", "\u0964"]),
        ("re\u0301sume\u0301", ["r\u00e9sum\u00e9"]),
        ("\uff21\uff22 \ufb01n", ["ab", "fin"]),
        ("\U0001f600\U0001f600 snake_case", ["\U0001f600", "\U0001f600", "snake_case"]),
        (" \n\t", []),
    ],
)
def test_tokens_of_many_scripts(text, expected):
    assert tokens(text) == expected


def test_a_mark_tells_two_sums_apart_and_is_no_word():
    assert tokens("3 + 4") != tokens("3 - 4")
    assert words("3 + 4") == words("3 - 4") == ["3", "4"]


@given(any_text)
def test_words_are_the_tokens_that_are_no_marks(text):
    known = set(words(text))
    assert [token for token in tokens(text) if token in known] == words(text)
    assert not any(character.isalnum() for token in set(tokens(text)) - known for character in token)


@given(any_text, any_text)
def test_a_text_has_the_tokens_of_its_parts(first, second):
    assert tokens(f"{first} {second}") == tokens(first) + tokens(second)


@given(any_text)
def test_every_word_has_a_place_that_holds_it(text):
    places = list(placed_words(text))
    assert len(places) == len(words(text))
    for word, (start, end) in zip(words(text), places, strict=True):
        assert 0 <= start < end <= len(text)
        assert word in normalise(text[start:end])
    assert [start for start, _ in places] == sorted(start for start, _ in places)


def test_places_are_those_of_the_raw_text():
    text = "  The \ufb01rst\u00a0STRASSE\u2026 (\u4e2d\u6587)"
    assert [text[start:end] for start, end in placed_words(text)] == [
        "The",
        "\ufb01rst",
        "STRASSE",
        "\u4e2d",
        "\u6587",
    ]


@given(any_text | st.text(st.sampled_from("aZ.\u3002\uff0e\u00fc\u00df\u0130-_*:1%[]\ud800 \u200d")))
def test_a_hosts_name_is_the_same_when_it_is_taken_again(typed):
    name = host_name(typed)
    assert host_name(name) == name
    assert name == host_name(typed.upper().lower()) or not typed.isascii()


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("API.Example.com.", "api.example.com"),
        ("B\u00fccher.example", "xn--bcher-kva.example"),
        ("*.b\u00fccher.example", "*.xn--bcher-kva.example"),
        ("api\u3002example\u3002", "api.example"),
        ("0:0::1", "::1"),
        ("api.example . ", "api.example"),
        ("//import", "//import"),
        ("*", "*"),
    ],
)
def test_hosts_and_patterns_of_hosts_have_one_spelling(typed, name):
    assert host_name(typed) == name
