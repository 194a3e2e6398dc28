"""The chance that two texts are compared: what the docstrings say, measured."""

import math

import numpy as np
import pytest

from stillhouse.errors import UsageError
from stillhouse.similar.bands import BANDS, Buckets, band_keys, band_length, chance


def pairs(jaccard: float, size: int, count: int, rng: np.random.Generator):
    """Hashes of `count` pairs of sets with `size` members each, and the Jaccard similarity that they have."""
    common = round(2 * size * jaccard / (1 + jaccard))
    members = rng.integers(0, 2**64, size=(count, 2 * size - common), dtype=np.uint64)
    one, other = members[:, :size], np.concatenate([members[:, :common], members[:, size:]], axis=1)
    return one.ravel(), other.ravel(), np.arange(count + 1) * size, common / (2 * size - common)


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("size", [20, 75, 400])
def test_pairs_are_compared_with_the_stated_chance(threshold, size):
    rng = np.random.default_rng(size)
    length = band_length(threshold)
    for jaccard in (0.2, 0.4, 0.6, 0.7, 0.8, 0.9):
        one, other, offsets, exact = pairs(jaccard, size, 1500, rng)
        shared = (band_keys(one, offsets, length) == band_keys(other, offsets, length)).any(axis=1).mean()
        expected = chance(exact, length)
        error = math.sqrt(max(expected * (1 - expected), 1e-3) / 1500)
        # Of few members most are in the signature: a little better than independent values.
        assert expected - 4 * error <= shared <= expected + 4 * error + (0.05 if size == 20 else 0.0)


def test_band_lengths_are_those_that_the_docstring_states():
    lengths = {0.5: 2, 0.6: 2, 0.7: 4, 0.8: 6, 0.9: 8, 1.0: 8, 0.25: 1}
    assert {threshold: band_length(threshold) for threshold in lengths} == lengths
    stated = {0.5: 0.990, 0.6: 0.9992, 0.7: 0.988, 0.8: 0.992, 0.9: 0.9999}
    for threshold, recall in stated.items():
        assert chance(threshold, lengths[threshold]) == pytest.approx(recall, abs=6e-4)


@pytest.mark.parametrize("threshold", [0, 0.2, 1.01, -1, math.nan])
def test_a_threshold_that_cannot_be_held_is_refused(threshold):
    with pytest.raises(UsageError) as error:
        band_length(threshold)
    assert "0.7" in error.value.mend


def test_equal_sets_have_equal_keys_whatever_the_order_and_the_repetitions():
    rng = np.random.default_rng(1)
    members = rng.integers(0, 2**64, 50, dtype=np.uint64)
    shuffled = np.concatenate([rng.permutation(members), members[:20]])
    keys = band_keys(np.concatenate([members, shuffled]), np.array([0, 50, 120]), 4)
    assert (keys[0] == keys[1]).all()
    assert len(set(keys[0].tolist())) == BANDS


def test_buckets_find_what_was_inserted_through_growth_and_collisions():
    """Against a dictionary; keys that differ in their high bits alone share a slot."""
    rng = np.random.default_rng(2)
    buckets, truth = Buckets(), {}
    number = 0
    for size in (1, 3, 700, 5_000, 2, 20_000):
        keys = rng.integers(0, 3000, size=(size, 2), dtype=np.uint32) * np.uint32(1 << 19)
        texts = np.arange(number, number + size, dtype=np.int32)
        number += size
        buckets.insert(keys.ravel(), np.repeat(texts, 2))
        for key, text in zip(keys.ravel().tolist(), np.repeat(texts, 2).tolist(), strict=True):
            truth.setdefault(key, []).append(text)
    asked = np.concatenate([np.array([*truth], dtype=np.uint32), np.array([5, 7, 5], dtype=np.uint32)])
    meetings = buckets.meet(asked[:, None])
    for key, found in zip(asked.tolist(), meetings, strict=True):
        assert sorted(text for _, bucket in found for text in bucket) == sorted(truth.get(key, []))
    assert [len(found) for found in meetings[-3:]] == [1, 0, 1], "5 is asked twice: those two meet"
    assert meetings[-3][0][1] is meetings[-1][0][1]
