"""Signals are what servers tell, and the score that is fitted on them tells losses apart."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.cascade.scores import (
    SIGNALS,
    Token,
    entropy,
    fit,
    is_broken,
    margin,
    risks,
    signals_of,
    sketch_of,
    tokens_told,
    unfamiliar,
)


def entry(logprob, *top):
    return {"token": "x", "logprob": logprob, "top_logprobs": [{"token": "y", "logprob": t} for t in top]}


def test_tokens_are_read_as_a_server_tells_them():
    told = tokens_told({"logprobs": {"content": [entry(-0.5, -0.5, -1.5), entry(-9999.0, -0.1)]}})
    assert told == (Token(-0.5, (-0.5, -1.5)), Token(-50.0, (-0.1,)))


odd = st.sampled_from(
    [None, True, 7, -1.5, math.inf, "x", [], {}, [None], [{"logprob": "x"}], [{"logprob": True}]]
)


@given(odd, odd)
def test_an_odd_choice_tells_nothing_and_raises_nothing(told, top):
    tokens_told({"logprobs": told})
    tokens_told({"logprobs": {"content": told}})
    tokens_told({"logprobs": {"content": [{"logprob": -0.5, "top_logprobs": top}]}})


@pytest.mark.parametrize(
    "choice",
    [{}, {"logprobs": None}, {"logprobs": {"content": None}}, {"logprobs": {"content": [entry(math.nan)]}}],
)
def test_probabilities_that_are_not_there_are_not_known(choice):
    assert tokens_told(choice) is None


def test_entropy_and_margin_of_known_laws():
    half = Token(math.log(0.5), (math.log(0.5), math.log(0.5)))
    assert entropy(half) == pytest.approx(math.log(2))
    assert margin(half) == pytest.approx(0.0)
    rest = Token(math.log(0.7), (math.log(0.7), math.log(0.1)))  # 0.2 is not told
    assert entropy(rest) == pytest.approx(-(0.7 * math.log(0.7) + 0.1 * math.log(0.1) + 0.2 * math.log(0.2)))
    assert margin(Token(math.log(0.1), (math.log(0.7), math.log(0.1)))) == pytest.approx(math.log(1 / 7))


@pytest.mark.parametrize(
    ("text", "broken"),
    [("", True), ('{"a": 1', True), ('{"a": 1}', False), ("no " * 40, True), ("a plain answer", False)],
)
def test_forms_that_no_question_asks_for(text, broken):
    assert is_broken(text) is broken


def test_a_sketch_knows_its_words_and_holds_no_text():
    sketch = sketch_of(["Where is order 4711 of Ms Weber?", "Cancel the order, please."])
    assert unfamiliar(sketch, "Where is order 12 of Ms Weber?") == (0.0, 0.0)
    words, pairs = unfamiliar(sketch, "Translate quartz fjords into verse")
    assert words > 0.6
    assert pairs > 0.6
    assert b"Weber" not in sketch.bits
    assert unfamiliar(sketch, "") == (0.0, 0.0)


def rows(rng, n):
    """Answers whose loss follows two of the signals."""
    signals = np.column_stack([rng.normal(size=n) for _ in SIGNALS])
    signals[:, -1] = math.nan
    chance = 1 / (1 + np.exp(2 - 1.5 * signals[:, 3] + 1.0 * signals[:, 4]))
    return signals, (rng.random(n) < chance).astype(float)


def test_the_score_is_calibrated_and_ranks_losses_above_the_rest():
    rng = np.random.default_rng(7)
    scale = fit(*rows(rng, 2000))
    signals, costs = rows(rng, 4000)
    risk = risks(scale, signals)
    assert abs(risk.mean() - costs.mean()) < 0.02
    for low, high in ((0.0, 0.1), (0.1, 0.3), (0.3, 1.0)):
        chosen = (risk >= low) & (risk < high)
        assert abs(risk[chosen].mean() - costs[chosen].mean()) < 0.04
    order = risk[costs == 1][:, None] > risk[costs == 0][None, :]
    assert order.mean() > 0.8
    assert scale == fit(*rows(np.random.default_rng(7), 2000))  # no chance in it
    assert scale.weight[-1] == 0.0


def test_rows_without_a_loss_are_not_said_to_be_without_risk():
    signals, _ = rows(np.random.default_rng(1), 50)
    risk = risks(fit(signals, np.zeros(50)), signals)
    assert risk.min() > 0
    assert risk.max() < 0.2
    with pytest.raises(ValueError, match="no rows"):
        fit(np.zeros((0, len(SIGNALS))), np.zeros(0))


def test_an_answer_without_tokens_has_signals():
    signals = signals_of((), "", "length", (0.5, 1.0))
    assert len(signals) == len(SIGNALS)
    assert signals[SIGNALS.index("broken form")] == 1.0
    assert math.isnan(signals[SIGNALS.index("draws that differ")])
