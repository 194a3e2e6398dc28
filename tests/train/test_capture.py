"""What a local teacher holds likely, packed; and a capture that is stopped."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import VOCABULARY, tiny_llama

from stillhouse.errors import ModelError
from stillhouse.ledger.targets import Binding, TargetReader, decode, encode
from stillhouse.train import capture as module
from stillhouse.train.capture import capture, read_here, sparse_targets, spread
from stillhouse.train.rows import Row

BINDING = Binding("teacher", "", "t" * 64, "", VOCABULARY, head=3, draws=5)


def dense(targets, vocabulary):
    """The weights of all ids, position by position."""
    whole = np.zeros((len(targets.log_tail_N), vocabulary))
    places = np.repeat(np.arange(len(whole)), np.diff(targets.offsets_N1))
    np.add.at(whole, (places, targets.ids_E), np.exp(targets.logprobs_E.astype(np.float64)))
    return whole


@given(st.integers(0, 2**32 - 1), st.integers(0, 6), st.integers(0, 9), st.floats(0.1, 30))
@settings(max_examples=60, deadline=None)
def test_every_position_is_a_distribution_that_a_shard_holds(seed, head, draws, sharpness):
    if head + draws == 0:
        head = 1
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 6, generator=generator) * sharpness
    uniform = torch.rand(4, draws, generator=generator, dtype=torch.float64)
    made = sparse_targets(logits, head, draws, uniform)
    binding = replace(BINDING, vocabulary=6, head=head, draws=draws)
    block = np.frombuffer(encode(binding, made), np.uint8)
    read = decode(binding, [block], np.array([4]))
    np.testing.assert_array_equal(read.ids_E, made.ids_E)
    np.testing.assert_allclose(dense(read, 6), dense(made, 6), atol=2e-3)
    mass = dense(made, 6).sum(1) + np.exp(made.log_tail_N)
    np.testing.assert_allclose(mass, 1.0, atol=1e-5)


def uniform(count, draws, seed, evenly):
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(count, 1 if evenly else draws, generator=generator, dtype=torch.float64)
    return spread(start, draws) if evenly else start


@pytest.mark.parametrize("evenly", [False, True])
@pytest.mark.parametrize(("head", "draws"), [(0, 4), (2, 4)])
def test_the_mean_over_draws_is_the_whole_distribution(head, draws, evenly):
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(3)) * 2
    points = uniform(4000, draws, 4, evenly)
    drawn = dense(sparse_targets(logits.expand(4000, 12), head, draws, points), 12)
    error = drawn.std(0) / 4000**0.5
    truth = logits.softmax(-1)[0].numpy()
    assert (np.abs(drawn.mean(0) - truth) <= 4 * error + 1e-6).all()
    likeliest = np.argsort(-truth)[:head]
    assert (drawn.std(0)[likeliest] < 1e-6).all()  # the head is exact


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.floats(0.1, 30))
@settings(max_examples=60, deadline=None)
def test_draws_that_are_spread_round_each_probability_up_or_down(seed, draws, sharpness):
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(seed)) * sharpness
    counts = draws * dense(sparse_targets(logits, 0, draws, uniform(5, draws, seed, True)), 9)
    wanted = draws * logits.double().softmax(-1).numpy()
    assert np.abs(counts - wanted).max() < 1 + 1e-4


def test_a_head_as_wide_as_the_vocabulary_is_everything():
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(dense(sparse_targets(logits, 9, 0), 7), logits.softmax(-1).numpy(), atol=1e-6)


def rows(count, seed=0):
    source = np.random.default_rng(seed)
    return [
        Row(source.integers(0, VOCABULARY, n).astype(np.int32), int(source.integers(1, n)), "", f"s{i}")
        for i, n in enumerate(source.integers(2, 20, count))
    ]


def reads(teacher, binding=BINDING, seed=1):
    return partial(read_here, teacher, binding=binding, seed=seed, batch_tokens=64)


def captured(folder, some, seed=1, stop_after=None):
    """The digests; stops as if killed once so many rows are done."""
    told = []

    def advance(more):
        told.append(more)
        if stop_after is not None and sum(told) >= stop_after:
            raise KeyboardInterrupt

    done = capture(
        reads(tiny_llama(), seed=seed), some, folder, folder / "record.json", BINDING, seed, advance
    )
    return done, told


def test_a_stopped_capture_goes_on_after_its_last_whole_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD_ROWS", 8)
    some = rows(30)
    whole, _ = captured(tmp_path / "whole", some)
    with pytest.raises(KeyboardInterrupt):
        captured(tmp_path / "cut", some, stop_after=20)
    again, told = captured(tmp_path / "cut", some)
    assert (again, told[0], sum(told)) == (whole, 16, 30)
    assert captured(tmp_path / "cut", some) == (whole, [30])
    assert not list((tmp_path / "cut").glob("unsealed*"))
    other, told = captured(tmp_path / "cut", some, seed=2)
    assert told[0] == 0
    assert other != whole


@pytest.mark.parametrize(("head", "error"), [(VOCABULARY, 2e-3), (0, 1e-7)])
def test_the_shards_hold_what_the_teacher_says(tmp_path, head, error):
    some, teacher = rows(12), tiny_llama()
    binding = replace(BINDING, head=head, draws=0)
    record = tmp_path / "record.json"
    digests = capture(reads(teacher, binding), some, tmp_path, record, binding, 1, lambda more: None)
    reader = TargetReader(tmp_path, digests, binding)
    for row in some:
        number = reader.locate(row.id, row.ids, len(row.ids) - row.start)
        with torch.no_grad():
            logits = teacher(input_ids=torch.from_numpy(row.ids[None].astype(np.int64))).logits[0]
        wanted = logits[row.start - 1 : len(row.ids) - 1].softmax(-1).numpy()
        np.testing.assert_allclose(dense(reader.read([number]), VOCABULARY), wanted, atol=error)


def test_a_teacher_whose_logits_are_no_numbers_is_named(tmp_path):
    teacher = tiny_llama()
    with torch.no_grad():
        teacher.get_output_embeddings().weight[5, 0] = float("nan")
    with pytest.raises(ModelError, match="no probabilities"):
        capture(reads(teacher), rows(2), tmp_path, tmp_path / "record.json", BINDING, 1, lambda more: None)
