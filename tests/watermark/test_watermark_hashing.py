import subprocess
import sys

import numpy as np
import torch

from stillhouse.watermark import marking
from stillhouse.watermark.hashing import seeds, siphash, uniform, values

# From the reference program of SipHash (vectors.h): key 00 01 .. 0f, message 00 01 .. of 8 and of 16 bytes.
PUBLISHED_KEY = tuple(int.from_bytes(bytes(range(at, at + 8)), "little") for at in (0, 8))
PUBLISHED = {1: "6224939a79f5f593", 2: "db9bc2577fcc2a3f"}
# The first values of SplitMix64 from 1234567, as many of its implementations test them.
STREAM = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]


def words(*numbers):
    return np.array(numbers, dtype=np.uint64)


def test_the_keyed_hash_is_siphash():
    for count, expected in PUBLISHED.items():
        message = [words(int.from_bytes(bytes(range(8 * at, 8 * at + 8)), "little")) for at in range(count)]
        found = siphash(PUBLISHED_KEY, message)
        assert int(found[0]).to_bytes(8, "little").hex() == expected


def test_a_row_hashes_alike_alone_and_among_many():
    rows = np.random.default_rng(1).integers(0, 1 << 63, size=(2, 40_000)).astype(np.uint64)
    whole = siphash((5, 6), list(rows))
    for at in (0, 16_383, 16_384, 39_999):
        assert siphash((5, 6), [rows[0, at : at + 1], rows[1, at : at + 1]]) == whole[at]


def test_values_are_the_stream_of_splitmix():
    assert values(words(1234567), np.arange(4, dtype=np.uint64)).tolist() == STREAM


def test_torch_finds_the_same_values():
    seed = np.random.default_rng(2).integers(0, 1 << 64, size=7, dtype=np.uint64)
    tokens = np.arange(300, dtype=np.uint64)
    here = values(seed[:, None], tokens[None, :])
    there = marking._values(torch.from_numpy(seed.view(np.int64)), torch.arange(300))
    assert (there.numpy().view(np.uint64) == here).all()
    assert (marking._uniform(there).numpy() == uniform(here)).all()


def test_uniform_numbers_are_never_nought_or_one():
    ends = uniform(words(0, 2**64 - 1))
    assert 0 < ends[0] < ends[1] < 1


def test_a_text_shorter_than_its_context_has_no_seed():
    assert len(seeds((1, 2), np.arange(3), 4)) == 0
    assert len(seeds((1, 2), np.arange(5), 4)) == 1


def test_detection_needs_no_torch():
    code = (
        "import sys, stillhouse.watermark, stillhouse.cli.watermarks\n"
        "assert not {'torch', 'transformers', 'scipy'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
