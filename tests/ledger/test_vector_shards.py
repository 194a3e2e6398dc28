"""Shards of vectors: what they hold to the bit, what they refuse, and that rows leave them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.errors import LedgerError
from stillhouse.ledger.targets import Binding, ShardWriter, TargetReader, open_shard, whole_targets, without
from stillhouse.ledger.targets.measure import measure
from stillhouse.ledger.targets.vectors import decode_vectors, encode_vectors

WIDTH = 6
BINDING = Binding("teacher", "r", "t" * 64, "", 1000, 0, width=WIDTH, dtype="float32", readout="e" * 64)
HALVES = replace(BINDING, dtype="bfloat16")


def vectors(positions, seed=0):
    return np.random.default_rng(seed).normal(0, 9, (positions, WIDTH)).astype(np.float32)


def sealed(folder, names, binding=BINDING):
    with ShardWriter(folder, binding) as writer:
        for n in names:
            writer.add(str(n), np.array([n, 7], np.int32), vectors(n % 5 + 1, n))
        return writer.seal()


def block(binding, values):
    return np.frombuffer(encode_vectors(binding, values), np.uint8)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=4),
    st.sampled_from([BINDING, HALVES]),
)
def test_numbers_come_back_as_torch_rounds_them(numbers, binding):
    values = np.array([numbers * WIDTH], dtype=np.float32).reshape(-1, WIDTH)
    kind = getattr(torch, binding.dtype)
    read = decode_vectors(binding, [block(binding, values)], np.array([len(values)]))
    np.testing.assert_array_equal(read, torch.from_numpy(values).to(kind).float().numpy())
    again = decode_vectors(binding, [block(binding, read)], np.array([len(values)]))
    np.testing.assert_array_equal(again, read)


@pytest.mark.parametrize(("binding", "size"), [(BINDING, 4), (HALVES, 2)])
def test_rows_are_read_in_any_order_and_take_what_their_numbers_take(tmp_path, binding, size):
    paths = [sealed(tmp_path, range(4), binding), sealed(tmp_path, range(4, 9), binding)]
    reader = TargetReader(tmp_path, [path.stem for path in paths], binding)
    found = [reader.locate(str(n), np.array([n, 7], np.int32), n % 5 + 1) for n in (7, 0, 3)]
    wanted = torch.from_numpy(np.concatenate([vectors(n % 5 + 1, n) for n in (7, 0, 3)]))
    rounded = wanted.to(getattr(torch, binding.dtype)).float().numpy()
    np.testing.assert_array_equal(reader.vectors(found), rounded)
    shard = reader.shards[0]
    assert len(shard.block(3)) == size * WIDTH * 4
    said = measure([reader])
    assert said.known == said.positions == reader.positions
    assert (said.kept, said.kept_p10, said.bias, said.variance, said.entries) == (1.0, 1.0, 0.0, 0.0, 0)


def test_vectors_are_never_taken_for_distributions(tmp_path):
    reader = TargetReader(tmp_path, [sealed(tmp_path, range(3)).stem], BINDING)
    with pytest.raises(LedgerError, match="damaged") as caught:
        reader.read([0])
    assert "vectors" in caught.value.why
    whole = replace(BINDING, vocabulary=5, width=0, dtype="", readout="")
    with ShardWriter(tmp_path, whole) as writer:
        writer.add("a", np.array([1], np.int32), whole_targets(np.log(np.full((2, 5), 0.2, np.float32))))
        other = writer.seal()
    assert b"readout" not in other.read_bytes(), "shards of distributions say what they always said"
    with pytest.raises(LedgerError) as caught:
        TargetReader(tmp_path, [other.stem], whole).vectors([0])
    assert "distributions" in caught.value.why
    with ShardWriter(tmp_path, BINDING) as writer, pytest.raises(ValueError, match="vectors"):
        writer.add("a", np.array([1], np.int32), whole_targets(np.log(np.full((2, 5), 0.2, np.float32))))


@pytest.mark.parametrize("binding", [BINDING, HALVES])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_neither_written_nor_read(tmp_path, binding, wrong):
    spoilt = vectors(2)
    spoilt[1, 3] = wrong
    with ShardWriter(tmp_path, binding) as writer:
        for bad in (spoilt, vectors(2)[:, :5], vectors(0), vectors(2)[0]):
            with pytest.raises(ValueError, match=r"."):
                writer.add("a", np.array([1], np.int32), bad)
    right = block(binding, vectors(2)).copy()
    kind = "<f4" if binding is BINDING else "<u2"
    right.view(kind)[9] = wrong if binding is BINDING else np.float32(wrong).view(np.uint32) >> 16
    with pytest.raises(ValueError, match="a number of a vector is none"):
        decode_vectors(binding, [right], np.array([2]))
    with pytest.raises(ValueError, match="does not end"):
        decode_vectors(binding, [right[:-1]], np.array([2]))


@pytest.mark.parametrize(
    "change",
    [
        {"width": 0},
        {"width": -1},
        {"dtype": "float16"},
        {"dtype": ""},
        {"head": 4},
        {"draws": 4},
        {"temperature": 2.0},
    ],
)
def test_what_binds_no_vectors_is_refused(change):
    with pytest.raises(ValueError, match=r"."):
        replace(BINDING, **change)


@pytest.mark.parametrize(
    ("name", "value"), [("width", 8), ("dtype", "bfloat16"), ("readout", "f" * 64), ("revision", "s")]
)
def test_a_shard_of_another_teacher_head_or_type_is_refused(tmp_path, name, value):
    path = sealed(tmp_path, range(3))
    with pytest.raises(LedgerError) as caught:
        TargetReader(tmp_path, [path.stem], replace(BINDING, **{name: value}))
    assert name in caught.value.what
    assert repr(value) in caught.value.why


@pytest.mark.parametrize("binding", [BINDING, HALVES])
def test_a_row_is_taken_out_and_the_others_stay_as_they_stand(tmp_path, binding):
    path = sealed(tmp_path, range(20), binding)
    fresh = without(path, {"0", "13", "19"})
    assert not path.exists()
    assert sealed(tmp_path, [n for n in range(20) if n not in (0, 13, 19)], binding) == fresh
    assert open_shard(fresh).known == sum(open_shard(fresh).positions)
    assert "13" not in open_shard(fresh).sample_ids
