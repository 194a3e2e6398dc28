"""Markers: an account's habits of writing, which change no meaning, and are found with an exact p-value."""

import json
import math
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.guard.config import Guard
from stillhouse.guard.markers import heard, marked, seen
from stillhouse.guard.marking import disclosed
from stillhouse.watermark import Key, Selection, account_key

ALPACA = Path(__file__).resolve().parents[3] / "shared" / "data" / "prompts" / "alpaca_5000.json"
MINE = Key(Selection(), bytes([7]) * 32, datetime(2026, 3, 1, tzinfo=UTC))
TEXT = """## What to do:

In addition, cats do not swim. They help each other (e.g., at night), although it is dark; someone is near.
For example, a bird flew toward the tree \u2013 slowly... Perhaps everyone saw it.

- **Look at** the sky
- Wait

1. Go
2. Come back
"""
PIECES = st.sampled_from(
    [
        "For example, ",
        "e.g., ",
        "(e.g., a cat) ",
        "(for example, a dog) ",
        "they do not swim ",
        "isn't ",
        "we don't know ",
        "you cannot go ",
        "In addition, ",
        "Though it rained, ",
        "although they came ",
        "towards the sea ",
        "\n- one\n",
        "\n* two\n",
        "\n1. x\n",
        "\n2) y\n",
        "## A heading\n",
        "## Another:\n",
        "**bold words** ",
        "__other words__ ",
        "wait... ",
        "wait\u2026 ",
        " a \u2013 b ",
        " a \u2014 b ",
        "`don't` ",
        '"he did not go" ',
        "```\nis not it\n```\n",
        "word ",
        ". ",
        "\n\n",
        "  indented\n",
        "perhaps ",
        "Maybe ",
        "each other ",
        "First, ",
        "\u201cI am not here\u201d ",
        "is not isn't does not ",
        "'",
        '"',
        "$",
        "<",
        "*",
        "_",
        "#",
        "is not",
        "Thus, ",
        "(",
        "1 - 2 ",
    ]
)


def key(number):
    return account_key(MINE, str(number))


def test_every_kind_of_site_gets_one_or_the_other_by_its_key():
    written = [marked(key(n), TEXT) for n in range(40)]
    assert {count for _, count in written} == {16}
    for first, second in (
        ("What to do:\n", "What to do\n"),
        ("In addition,", "Additionally,"),
        ("cats do not swim", "cats don't swim"),
        ("each other", "one another"),
        ("(e.g., at", "(for example, at"),
        (", although it", ", though it"),
        ("someone is", "somebody is"),
        ("For example, a", "For instance, a"),
        ("toward the", "towards the"),
        ("tree \u2013 slowly", "tree \u2014 slowly"),
        ("slowly... ", "slowly\u2026 "),
        ("Perhaps ", "Maybe "),
        ("everyone saw", "everybody saw"),
        ("\n- ", "\n* "),
        ("1. Go\n2. C", "1) Go\n2) C"),
    ):
        found = [(first in text, second in text) for text, _ in written]
        assert set(found) == {(True, False), (False, True)}, first


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=25).map("".join), st.integers(0, 9), st.integers(10, 19))
def test_what_is_written_reads_back_whoever_wrote_before(text, one, other):
    first, count = marked(key(one), text)
    if count:
        said = heard(key(one), seen([first]))
        assert said.tokens == count
        assert said.mean in (1.0, None)
        again, places = marked(key(other), first)
        if places:
            assert marked(key(one), again)[0] == first
    else:
        assert first == text


UNTOUCHED = [
    "Call `do not touch` and `is not` now.",
    "```\n# is not done - for example, x...\nif a is not b: pass\n```",
    "    if a is not b:  # indented code",
    'He said: "They do not know, for example, that everyone left..." and went.',
    "\u201cFor example, they do not know\u201d was all.",
    "She wrote 'they do not know anyone' there.",
    "> they do not know anyone",
    "| they do not know anyone |",
    "See https://example.org/for-example,everyone... now",
    "$a is not b$ holds",
    '{"text": "they do not know anyone"}',
    "<p>they do not know anyone</p>",
    "The method __init__ is called",
    "- 3 apples\n- 4 pears",
    "Do not go. Why don't you stay? It is not the end; he is not my friend.",
    "He ran as though it burned. At first, nothing. Finally, it came.",
    "  * nested\n* list",
]


@pytest.mark.parametrize("text", UNTOUCHED)
def test_code_quotations_data_and_what_could_mean_something_else_stay_as_they_are(text):
    assert {marked(key(n), text)[0] for n in range(20)} == {text}


def test_without_a_key_p_values_are_right_and_with_it_small():
    texts = [TEXT.replace("cats", f"cats{n}").replace("a bird", f"a b{n}") for n in range(5)]
    plain = seen(texts)
    p = [heard(key(n), plain).p for n in range(800)]
    for level in (0.05, 0.2, 0.5):
        share = sum(one <= level for one in p) / len(p)
        assert share <= level + 4 * math.sqrt(level * (1 - level) / len(p))
    mine = seen([marked(key(1), text)[0] for text in texts])
    said = heard(key(1), mine)
    assert (said.mean, said.expected) == (1.0, 0.5)
    assert said.p == pytest.approx(0.5**said.scored)
    assert said.p < 1e-3
    assert heard(key(2), mine).p > 1e-3
    assert heard(key(1), seen(["Nothing here."])).p == 1.0


def test_a_long_line_of_signs_that_open_and_never_close_takes_no_time():
    for sign in "<'\"$`*_(\u201c[":
        assert marked(key(1), sign * 20_000)[1] == 0
        assert marked(key(1), f" {sign}a" * 8_000)[1] == 0


def test_real_answers_of_one_account_are_told_from_those_of_another():
    if not ALPACA.exists():
        pytest.skip("shared/data is not there")
    rows = [row["output"] for row in json.loads(ALPACA.read_text())[:300]]
    mine = seen([marked(key(1), text)[0] for text in rows])
    assert heard(key(1), mine).p < 1e-9
    assert min(heard(key(n), mine).p for n in range(2, 12)) > 1e-4
    assert min(heard(key(n), seen(rows)).p for n in range(10)) > 1e-4


def test_the_terms_say_to_machines_whose_answers_are_marked():
    def said(mark, **watermark):
        models = [{"name": "m", "upstreams": [{"url": "http://127.0.0.1:1/v1"}]}]
        if watermark:
            models[0]["watermark"] = {"key": "k", **watermark}
        return disclosed(Guard.model_validate({"models": models, "detection": {"mark": mark}}))

    assert said(True) == {"selection": "none", "markers": "none"}
    assert said(False, markers=True) == {"selection": "all_accounts", "markers": "none"}
    assert said(True, accounts="on_mark") == {"selection": "accounts_under_review", "markers": "none"}
    assert said(False, accounts="on_mark") == {"selection": "none", "markers": "none"}
    assert said(True, best_of=1, markers=True) == {"selection": "none", "markers": "accounts_under_review"}
    with pytest.raises(ValueError, match="nothing would be marked"):
        said(True, best_of=1)
