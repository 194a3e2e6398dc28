"""Carlini et al. 2024 (arXiv 2403.06634) on a real small model: what its output layer is worth to whom.

The bounds were written down before the figures were seen: the hidden size is found where the largest ratio of
neighbouring singular values stands at it and is at least 3.
"""

from __future__ import annotations

from pathlib import Path

import extraction as bench
import numpy as np
import pytest

from stillhouse.guard.config import Leaks

STORIES = Path(__file__).parents[3] / "shared" / "data" / "models" / "stories260K"
PROMPTS = 76
SIZE = 64


@pytest.fixture(scope="module")
def model(one_thread: None) -> tuple[bench.Array, bench.Array]:
    if not STORIES.is_dir():
        pytest.skip("stories260K is not in ../shared/data")
    return bench.read_model(STORIES, 400)


def found(
    model: tuple[bench.Array, bench.Array],
    leaks: Leaks,
    attack: bench.Attack,
    prompts: int = PROMPTS,
    after_bias: bool = True,
) -> bench.Found:
    logits, layer = model
    server = bench.Server(logits[:prompts], leaks, after_bias)
    return bench.judged(attack(server, prompts, len(layer)), layer, server)


def test_the_published_attack_finds_the_output_layer_where_all_is_allowed(model) -> None:
    stolen = found(model, bench.OPEN, bench.by_bias_and_logprobs)
    assert stolen.has(SIZE)
    assert stolen.tokens == 512
    assert stolen.error < 1e-4
    assert stolen.queries == PROMPTS * (1 + 128)


def test_the_default_refuses_every_query_of_it(model) -> None:
    stolen = found(model, Leaks(), bench.by_bias_and_logprobs)
    assert stolen.refused == PROMPTS * 128
    assert not stolen.has(SIZE)
    assert stolen.seen == 1
    assert stolen.error > 0.5


def test_the_likeliest_alone_never_show_more_than_the_cap(model) -> None:
    stolen = found(model, Leaks(), bench.by_logprobs, prompts=400)
    assert stolen.refused == 0
    assert stolen.seen == Leaks().top_logprobs
    assert not stolen.has(SIZE)
    assert stolen.error > 0.5


def test_sampling_hot_shows_every_token_unless_the_unlikely_are_not_told(model) -> None:
    def sampled(server: bench.Server, prompts: int, vocabulary: int) -> bench.Array:
        return bench.by_hot_sampling(server, prompts, vocabulary, most=60)

    # 240 tokens drawn almost at random from 512
    told = found(model, Leaks(logprobs="allow"), sampled, prompts=20, after_bias=False)
    assert told.seen > 150
    kept = found(model, Leaks(), sampled, prompts=20, after_bias=False)
    assert kept.refused == 0
    assert kept.seen <= Leaks().top_logprobs


def test_a_bias_of_five_makes_the_text_alone_tell_enough_and_the_default_does_not(model) -> None:
    """Of a prompt of which no more logits are known than the hidden size, nothing is learned: some hidden
    state explains them under any output layer."""

    def seen(bias: float) -> float:
        def attack(server: bench.Server, prompts: int, vocabulary: int) -> bench.Array:
            return bench.by_bias(server, prompts, vocabulary, bias, Leaks().logit_bias_tokens - 1, 0.1)

        told = found(model, Leaks(logit_bias_size=bias), attack, prompts=16)
        assert told.refused == 0
        return told.seen

    assert seen(5.0) > SIZE
    assert seen(Leaks().logit_bias_size) < SIZE


def test_a_larger_bias_than_the_cap_is_refused_however_it_is_asked(model) -> None:
    logits, layer = model
    server = bench.Server(logits[:1], Leaks())
    known = bench.by_bias(server, 1, len(layer), 30.0, 0, 0.1)
    assert server.refused == len(layer) - 1
    assert np.count_nonzero(~np.isnan(known)) == 1
