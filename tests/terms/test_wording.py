"""What is said of a row: which text, of which day, on whose reading; never that a use is lawful."""

from dataclasses import replace
from datetime import date

import pytest

from stillhouse.terms import wording
from stillhouse.terms.registry import Match, shipped

DAY = date(2026, 11, 20)


def row(key):
    return shipped().row(key)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("gemma4", "no restriction found in Apache License 2.0, second-hand, known on 2026-11-20"),
        ("gpt-oss", "no restriction found in Apache License 2.0, read in a copy without a day"),
        ("stillhouse", "no restriction found in Apache License 2.0, read as it stood on 2026-11-20"),
        ("deepseek-api", "nothing but obligations found in DeepSeek Open Platform"),
        ("openrouter", "a person has to look: OpenRouter Terms of Service"),
        ("moonshot-api", "what it says of training is not known: Kimi Open Platform terms, the text was not"),
        ("openai-api", "training restricted by OpenAI Services Agreement, read as it stood on 2026-08-22"),
    ],
)
def test_a_finding_names_text_and_day(key, words):
    assert wording.finding(row(key), DAY).startswith(words)


def test_only_a_refusal_can_be_lifted():
    assert wording.lifting(row("gemma4")) == ""
    assert wording.lifting(row("perplexity-api")).startswith("Perplexity's prior written permission")
    assert wording.lifting(row("cohere-api")).startswith("a written permission")
    assert wording.lifting(row("llama2")).startswith("nothing that is known")


def test_every_row_has_words_for_all_of_its_parts():
    for one in shipped().rows():
        parts = [wording.finding(one, DAY), wording.layer_words(Match("model", one, "*"))]
        parts += [wording.case_words(case) for case in one.cases]
        parts += [wording.condition_words(condition) for condition in one.conditions]
        parts += [wording.obligation_words(owed) for owed in one.obligations]
        for text in (*parts, one.clause, one.notes):
            assert "compliant" not in text.lower()
            assert "None" not in text
            assert "  " not in text


def test_conditions_in_words():
    assert wording.condition_words(row("minimax-m3").conditions[0]) == (
        "above USD 20,000,000 of revenue a year: refuse: above it MiniMax must authorise in writing first"
    )
    (k3, *_) = row("kimi-k3").conditions
    assert "where student is offered as a service or given out and the operator sells access" in (
        wording.condition_words(k3)
    )
    eu = row("llama4").conditions[-1]
    assert "refuse for multimodal models, an operator in EU" in wording.condition_words(eu)
    (prefix, *_) = row("llama3.1").obligations
    assert wording.obligation_words(prefix) == 'its name begins with "Llama"'
    notice = replace(row("llama3.1").obligations[-1], where="in NOTICE")
    assert wording.obligation_words(notice).endswith(
        ", where the teacher's own weights are in it (in NOTICE)"
    )
