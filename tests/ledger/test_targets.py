import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.errors import LedgerError
from stillhouse.ledger.targets import (
    Binding,
    ShardWriter,
    TargetReader,
    Targets,
    ids_digest,
    open_shard,
    unsealed,
    verify_shard,
    whole_targets,
)
from stillhouse.ledger.targets.layout import decode, encode, pack, unpack
from stillhouse.ledger.targets.shard import _read_binding

BINDING = Binding("teacher-1", "2026-11-01", "a" * 64, "b" * 64, vocabulary=128_256, head=8)
HALF = 2.0**-11  # relative rounding error of fp16


def joined(positions):
    """Targets from a list of (ids, weights, tail) for each position."""
    sizes = [len(ids) for ids, _, _ in positions]
    with np.errstate(divide="ignore"):
        return Targets(
            np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            np.array([i for ids, _, _ in positions for i in ids], dtype=np.int32),
            np.log(np.array([w for _, weights, _ in positions for w in weights])).astype(np.float32),
            np.log(np.array([tail for _, _, tail in positions])).astype(np.float32),
        )


def likeliest(rng, positions, binding):
    """Random targets of a top-k kind; every seventh position has none."""

    def one(at):
        if at % 7 == 6:
            return [], [], 1.0
        *weights, tail = rng.dirichlet([0.3] * (binding.head + 1))
        order = np.argsort(weights)[::-1]
        weights = np.maximum(np.array(weights)[order], 1e-30)
        return rng.choice(binding.vocabulary, binding.head, replace=False), weights, tail

    return joined([one(at) for at in range(positions)])


def ids_of(length, seed=0):
    return np.random.default_rng(seed).integers(0, 128_256, length).astype(np.int32)


def write(folder, rows, binding=BINDING):
    with ShardWriter(folder, binding) as writer:
        for sample_id, ids, targets in rows:
            writer.add(sample_id, ids, targets)
        return writer.seal()


def some_rows(count=5, seed=3, binding=BINDING):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 40, count)
    return [(f"s{n}#0", ids_of(int(t) + 9, n), likeliest(rng, int(t), binding)) for n, t in enumerate(sizes)]


@pytest.fixture
def sealed(tmp_path):
    return write(tmp_path, some_rows())


def reader_of(path, binding=BINDING):
    return TargetReader(path.parent, [path.stem], binding)


# ---------------------------------------------------------------- what was written is read


@given(st.integers(1, 25), st.lists(st.lists(st.integers(0, 2**25 - 1), max_size=40), min_size=1, max_size=6))
def test_packed_numbers_are_one_long_number(bits, lists):
    lists = [[value % 2**bits for value in values] for values in lists]
    packed = [pack(np.array(values, dtype=np.int64), bits) for values in lists]
    for values, column in zip(lists, packed, strict=True):
        whole = sum(value << (bits * at) for at, value in enumerate(values))
        assert column.tobytes() == whole.to_bytes((len(values) * bits + 7) // 8, "little")
    sizes = np.array([len(column) for column in packed])
    data = np.concatenate([*packed, np.zeros(3, np.uint8)])
    counts = np.array([len(values) for values in lists])
    found = unpack(data, np.cumsum(sizes) - sizes, bits, counts)
    assert found.tolist() == [value for values in lists for value in values]


@st.composite
def bound_rows(draw):
    """A binding with any estimator, and rows of any ids and any number of entries under it."""
    vocabulary = draw(st.integers(1, 300_000))
    head = draw(st.integers(0, 20))
    draws = draw(st.integers(0 if head else 1, 60))
    binding = replace(BINDING, vocabulary=vocabulary, head=head, draws=draws)

    def position():
        room = min(vocabulary, head)
        ids = draw(st.lists(st.integers(0, vocabulary - 1), max_size=room, unique=True))
        parts = draw(st.lists(st.floats(1e-6, 1.0), min_size=len(ids) + 1, max_size=len(ids) + 1))
        shares = [part / sum(parts) for part in parts]
        weights, rest = sorted(shares[:-1], reverse=True), shares[-1]
        full = len(ids) == head
        if not draws or not full:
            return (ids, weights, rest) if ids and not draws else ([], [], 1.0)
        drawn = draw(st.lists(st.integers(0, vocabulary - 1), min_size=draws, max_size=draws))
        counts = {i: drawn.count(i) for i in drawn}
        tail = [rest * count / draws for count in counts.values()]
        return [*ids, *counts], [*weights, *tail], 0.0

    rows = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    return binding, [joined([position() for _ in range(length)]) for length in rows]


@settings(max_examples=300, deadline=None)
@given(bound_rows())
def test_any_targets_come_back_to_the_precision_of_fp16(case):
    binding, rows = case
    blocks = [np.frombuffer(encode(binding, row), np.uint8) for row in rows]
    lengths = np.array([len(row.log_tail_N) for row in rows], dtype=np.int64)
    found = decode(binding, blocks, lengths)
    offsets = np.concatenate([[0], np.cumsum(np.concatenate([np.diff(row.offsets_N1) for row in rows]))])
    assert found.offsets_N1.tolist() == offsets.tolist()
    assert found.ids_E.tolist() == [i for row in rows for i in row.ids_E]
    for name in ("logprobs_E", "log_tail_N"):
        wanted = np.concatenate([getattr(row, name) for row in rows])
        np.testing.assert_allclose(getattr(found, name), wanted, rtol=4 * HALF, atol=1e-6)


def test_counts_of_draws_come_back_exactly():
    binding = replace(BINDING, head=0, draws=50)
    counts = np.array([31, 12, 5, 1, 1])
    targets = joined([([9, 7, 128_255, 0, 3], counts / 50, 0.0), ([], [], 1.0), ([4], [1.0], 0.0)])
    found = decode(binding, [np.frombuffer(encode(binding, targets), np.uint8)], np.array([3]))
    assert np.rint(np.exp(found.logprobs_E) * 50).tolist() == [*counts, 50]
    np.testing.assert_array_equal(found.log_tail_N, np.array([-np.inf, 0, -np.inf], dtype=np.float32))


def test_rows_are_read_in_any_order_from_several_shards(tmp_path):
    rows = some_rows(12)
    paths = [write(tmp_path, rows[:5]), write(tmp_path, rows[5:])]
    reader = TargetReader(tmp_path, [path.stem for path in paths], BINDING)
    order = [7, 0, 11, 4, 5, 4]
    places = [reader.locate(rows[n][0], rows[n][1], len(rows[n][2].log_tail_N)) for n in order]
    found = reader.read(places)
    assert found.ids_E.tolist() == [i for n in order for i in rows[n][2].ids_E]
    wanted = np.concatenate([rows[n][2].log_tail_N for n in order])
    np.testing.assert_allclose(found.log_tail_N, wanted, rtol=2 * HALF, atol=1e-6)
    assert len(reader.read([]).log_tail_N) == 0
    assert reader.positions == sum(len(row[2].log_tail_N) for row in rows)
    assert reader.known == sum(int((np.diff(row[2].offsets_N1) > 0).sum()) for row in rows)
    assert reader.bytes_per_token == sum(p.stat().st_size for p in paths) / reader.positions


def test_twelve_drawn_ids_take_less_than_36_bytes_a_token(tmp_path):
    rng, binding = np.random.default_rng(0), replace(BINDING, head=0, draws=50)

    def position():
        ids = rng.choice(binding.vocabulary, 12, replace=False)
        return ids, (rng.multinomial(38, [1 / 12] * 12) + 1) / 50, 0.0

    path = write(
        tmp_path,
        [(f"s{n}", ids_of(300, n), joined([position() for _ in range(200)])) for n in range(20)],
        binding,
    )
    assert reader_of(path, binding).bytes_per_token < 36


def test_a_shard_is_named_by_its_content(tmp_path):
    first = write(tmp_path / "a", some_rows())
    again = write(tmp_path / "b", some_rows())
    other = write(tmp_path / "b", some_rows(seed=4))
    assert first.name == again.name != other.name
    assert first.stem == hashlib.sha256(first.read_bytes()[:-40]).hexdigest()
    for path in (first, again, other):
        verify_shard(path)


def test_the_digest_of_ids_is_over_little_endian_int32():
    assert (
        ids_digest(np.array([1, -1, 258], dtype=np.int64))
        == hashlib.sha256(b"\x01\0\0\0\xff\xff\xff\xff\x02\x01\0\0").digest()
    )


# ---------------------------------------------------------------- what does not match is an error


@pytest.mark.parametrize(
    ("name", "value"),
    {
        "teacher": "other",
        "revision": "later",
        "tokenizer": "c" * 64,
        "template": "",
        "vocabulary": 128_000,
        "head": 12,
        "draws": 4,
        "engine": "vllm 1",
    }.items(),
)
def test_a_shard_bound_otherwise_is_refused(sealed, name, value):
    with pytest.raises(LedgerError) as caught:
        reader_of(sealed, replace(BINDING, **{name: value}))
    assert name in caught.value.what
    assert repr(value) in caught.value.why
    assert repr(getattr(BINDING, name)) in caught.value.why
    assert caught.value.mend


def test_a_row_is_found_by_sample_and_input_ids_only(sealed):
    reader, (sample_id, ids, targets) = reader_of(sealed), some_rows()[2]
    positions = len(targets.log_tail_N)
    assert reader.locate(sample_id, ids, positions) == 2
    changed = ids.copy()
    changed[0] += 1
    for address, said in [
        (("s99#0", ids, positions), "no targets"),
        ((sample_id, changed, positions), "other input ids"),
        ((sample_id, ids[:-1], positions), "other input ids"),
        ((sample_id, ids, positions + 1), "other tokens"),
    ]:
        with pytest.raises(LedgerError, match=said) as caught:
            reader.locate(*address)
        assert caught.value.why
        assert caught.value.mend


def test_a_sample_in_two_shards_is_refused(tmp_path):
    paths = [write(tmp_path, some_rows()), write(tmp_path, some_rows(1, seed=8))]
    with pytest.raises(LedgerError, match="two shards hold targets of 's0#0'"):
        TargetReader(tmp_path, [path.stem for path in paths], BINDING)


def test_a_missing_shard_is_named(tmp_path):
    with pytest.raises(LedgerError, match=r"no shard .*abc"):
        TargetReader(tmp_path, ["abc"], BINDING)


def test_what_is_no_distribution_is_not_written(tmp_path):
    right = joined([([5, 7], [0.5, 0.25], 0.25)])
    bad = [
        replace(right, ids_E=np.array([5, 128_256], dtype=np.int32)),
        replace(right, ids_E=np.array([-1, 7], dtype=np.int32)),
        replace(right, logprobs_E=np.array([np.nan, -1], dtype=np.float32)),
        replace(right, logprobs_E=np.array([0.1, -1], dtype=np.float32)),
        replace(right, log_tail_N=np.array([-0.1], dtype=np.float32)),
        replace(right, log_tail_N=np.array([np.nan], dtype=np.float32)),
        replace(right, offsets_N1=np.array([0, 1])),
        joined([(range(9), [0.1] * 9, 0.1)]),
        joined([]),
    ]
    with ShardWriter(tmp_path, BINDING) as writer:
        for targets in bad:
            with pytest.raises(ValueError, match=r"."):
                writer.add("s", ids_of(4), targets)
        writer.add("s", ids_of(4), right)
        with pytest.raises(ValueError, match="already"):
            writer.add("s", ids_of(4), right)
    drawn = joined([([5, 7], [0.503, 0.497], 0.0)])
    with pytest.raises(ValueError, match="50 draws"):
        encode(replace(BINDING, head=0, draws=50), drawn)
    assert list(tmp_path.iterdir()) == []


def test_whole_distributions_are_kept_to_the_bit(tmp_path):
    whole = replace(BINDING, vocabulary=5, head=0, draws=0)
    shares = np.random.default_rng(4).dirichlet(np.ones(5), size=7).astype(np.float32)
    shares[2] = [0.5, 0, 0.5, 0, 0]  # what is impossible stays so
    with np.errstate(divide="ignore"):
        logprobs = np.minimum(np.log(shares), 0.0)
    with ShardWriter(tmp_path, whole) as writer:
        writer.add("a", ids_of(9), whole_targets(logprobs[:4]))
        writer.add("b", ids_of(8), whole_targets(logprobs[4:]))
        for wrong in (np.nan, 0.1):
            damaged = logprobs[:1].copy()
            damaged[0, 1] = wrong
            with pytest.raises(ValueError, match=r"."):
                writer.add("c", ids_of(7), whole_targets(damaged))
        with pytest.raises(ValueError, match="fit together"):
            writer.add("c", ids_of(7), whole_targets(logprobs[:1, :4]))
        sealed = writer.seal()
    reader = TargetReader(tmp_path, [sealed.stem], whole)
    read = reader.read([1, 0])
    np.testing.assert_array_equal(read.logprobs_E.reshape(-1, 5), logprobs[[4, 5, 6, 0, 1, 2, 3]])
    assert (read.log_tail_N == -np.inf).all()
    assert reader.known == 7


def test_a_shard_from_before_temperatures_is_of_temperature_1():
    said = {"format": 1, **asdict(BINDING)}
    del said["temperature"]
    assert _read_binding(json.dumps(said).encode()) == BINDING


@pytest.mark.parametrize(
    "change",
    [{"vocabulary": 0}, {"head": 2**16}, {"vocabulary": 2**26}, {"draws": -1}, {"temperature": 0.0}],
)
def test_what_is_no_binding_is_refused(change):
    with pytest.raises(ValueError, match=r"."):
        replace(BINDING, **change)


# ---------------------------------------------------------------- damage

KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_targets import BINDING, ShardWriter, some_rows
rows = some_rows(400)
with ShardWriter(Path(sys.argv[1]), BINDING) as writer:
    for number, row in enumerate(rows):
        writer.add(*row)
        if number == 300:
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_writer_that_is_killed_leaves_no_shard(tmp_path, sealed):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), os.path.dirname(__file__)], check=False
    )
    assert done.returncode == -signal.SIGKILL
    (torn,) = unsealed(tmp_path)
    assert torn.stat().st_size > 0
    with pytest.raises(LedgerError, match=torn.name) as caught:
        open_shard(torn)
    assert "never sealed" in caught.value.why
    assert "delete it" in caught.value.mend
    assert set(tmp_path.iterdir()) == {torn, sealed}
    assert reader_of(sealed).positions > 0


def test_an_error_while_writing_leaves_nothing(tmp_path):
    def fails():
        yield from some_rows(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, fails())
    assert list(tmp_path.iterdir()) == []


def test_a_shard_cut_anywhere_is_refused(sealed):
    whole = sealed.read_bytes()
    for length in [*range(60), *range(60, len(whole), 37), len(whole) - 1]:
        sealed.write_bytes(whole[:length])
        with pytest.raises(LedgerError, match="not a usable shard"):
            open_shard(sealed)


def test_a_shard_changed_anywhere_is_refused(sealed):
    whole = sealed.read_bytes()
    for at in range(0, len(whole), 11):
        changed = bytearray(whole)
        changed[at] ^= 1 << at % 8
        sealed.write_bytes(changed)
        with pytest.raises(LedgerError, match="not a usable shard"):
            verify_shard(sealed)


def resealed(path, change):
    """The same shard with other content, as a program with a bug would have sealed it."""
    data = bytearray(path.read_bytes()[:-40])
    change(data)
    digest = hashlib.sha256(data).digest()
    fresh = path.with_name(digest.hex() + path.suffix)
    fresh.write_bytes(bytes(data) + digest + path.read_bytes()[-8:])
    return fresh


def test_a_nan_in_a_shard_names_shard_and_sample(sealed):
    shard = open_shard(sealed)
    positions = shard.positions[3]
    at = shard.borders[3] + (positions * BINDING.size_bits + 7) // 8

    def spoil(data):
        data[at : at + 2] = np.array([np.nan], dtype="<f2").tobytes()

    spoilt = resealed(sealed, spoil)
    verify_shard(spoilt)
    reader = reader_of(spoilt)
    reader.read([0, 1, 2, 4])
    with pytest.raises(LedgerError, match=r"'s3#0'") as caught:
        reader.read(range(5))
    assert spoilt.name in caught.value.what


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_damaged_shard_reads_as_targets_or_not_at_all(tmp_path_factory, at, flips):
    """Whatever one byte says, nothing comes out that a loss could not take."""
    folder = tmp_path_factory.mktemp("damaged")
    path = write(folder, some_rows(3))

    def spoil(data):
        data[at % len(data)] ^= flips

    spoilt = resealed(path, spoil)
    try:
        found = TargetReader(folder, [spoilt.stem], BINDING).read([0, 1, 2])
    except LedgerError:
        return
    assert ((found.ids_E >= 0) & (found.ids_E < BINDING.vocabulary)).all()
    assert (found.logprobs_E <= 0).all()
    assert (found.log_tail_N <= 0).all()
