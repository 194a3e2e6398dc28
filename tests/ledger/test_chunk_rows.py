"""How likely chunks of an answer were, kept in a shard and read again."""

import math

import numpy as np
import pytest

from stillhouse.ledger.targets import (
    Binding,
    ShardWriter,
    TargetReader,
    chunk_binding,
    chunk_row,
    chunks_of,
    holds_chunks,
)

ROWS = {
    "two words": [None, -7.5, -0.25, -0.125],
    "no text of the teacher's": [None, None],
    "an unknown word": [-math.inf, None, -3.0, -1.0],
    "an unknown end": [-2.0, None, -4.0, -math.inf],
    "a certain word": [0.0, -1e-6],
}


@pytest.fixture
def read(tmp_path):
    binding = chunk_binding("t", "r", "tok", "", 40, "here")
    ids = {name: np.arange(len(row) + 2, dtype=np.int32) for name, row in ROWS.items()}
    with ShardWriter(tmp_path, binding) as writer:
        for name, row in ROWS.items():
            writer.add(name, ids[name], chunk_row(ids[name][2:], row))
        shard = writer.seal()
    reader = TargetReader(tmp_path, [shard.stem], binding)

    def rows(*names):
        places = [reader.locate(name, ids[name], len(ROWS[name])) for name in names]
        return chunks_of(reader.read(places), [len(ROWS[name]) for name in names])

    return rows


def test_what_was_kept_is_read_again_in_any_order(read):
    found = read("two words", "no text of the teacher's", "an unknown word")
    assert found.logprobs_C.tolist() == [-7.5, -0.25, -0.125, -3.0, -1.0]
    assert found.chunk_N.tolist() == [0, 0, 1, 2, 5, 5, 5, 3, 3, 4]
    assert found.before_N.tolist() == [5, 5, 0, 1, 5, 5, 5, 5, 5, 3]
    assert found.known == 7
    other = read("an unknown word", "two words")
    assert other.chunk_N.tolist() == [5, 0, 0, 1, 2, 2, 3, 4]
    assert other.before_N.tolist() == [5, 5, 5, 0, 5, 5, 2, 3]
    assert read("no text of the teacher's").known == 0


def test_an_end_that_is_not_known_is_no_border_of_the_word_before_it(read):
    found = read("an unknown end")
    assert found.chunk_N.tolist() == [0, 1, 1, 2]
    assert found.before_N.tolist() == [2, 0, 2, 2]


def test_numbers_have_the_sixteen_bits_of_a_shard(read):
    assert read("a certain word").logprobs_C == pytest.approx([0.0, -1e-6], abs=6e-8)


def test_a_binding_says_that_it_holds_chunks():
    assert holds_chunks(chunk_binding("t", "", "tok", "", 40, "host/v1"))
    assert not holds_chunks(Binding("t", "", "tok", "", 40, 1, engine="host/v1"))
