"""How the targets of a row are laid out in a shard, and back: columns of bits, read many rows at once.

A row's block is five columns, each rounded up to whole bytes: the number of entries of each position, the
log mass outside the head (fp16, where a position has entries), the head's log-probabilities (fp16), how
often each drawn id was drawn, and all ids. All is little-endian, the lowest bit first. A block of whole
distributions is one column: the log-probabilities of all ids of each position, in order of id (float32).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WIDEST = 25  # bits that lie within four bytes wherever they begin
_MASS_ERROR = 1e-3  # what a distribution may miss of 1; providers round their log-probabilities
NUMBERS = {"float32": 4, "bfloat16": 2}  # bytes of a number of a vector
LEAST = -65504.0  # the least number of fp16
LEAST_TAIL = 1e-6  # mass below which what a server did not name cannot be told from its rounding


@dataclass(frozen=True, slots=True)
class Binding:
    """Whose probabilities a shard holds, and in which ids. A reader states what it expects.

    `tokenizer` is the digest of the vocabulary whose ids are stored (`models.vocabulary`), `vocabulary` its
    number of real ids, which may be fewer than a model's padded output. `template` is the SHA-256 of the
    chat template that made the input ids, and `engine` names what computed the probabilities; both are empty
    where there is none or nobody said.

    The estimator is two numbers. Of each position the `head` likeliest ids keep a log-probability of their
    own, and `draws` ids are drawn, with replacement, from what the head leaves:

        head 0, draws 0    no estimate: whole distributions, four bytes an id and nothing rounded
        head k, draws 0    the k likeliest and the mass of the tail
        head 0, draws N    counts of N draws ("Sparse Logit Sampling", arXiv 2503.16870)
        head m, draws n    both: a head without variance, and an unbiased tail

    All of it is of the teacher at `temperature`. Of a part of a distribution another cannot be had, as the
    tail's mass at another is not known; of a whole one every other can.

    A shard of vectors (see `vectors`) has no estimator. Of each position it holds what enters the teacher's
    head, `width` numbers of a `dtype`; `readout` is the digest of that head, without which they say nothing.
    """

    teacher: str
    revision: str
    tokenizer: str
    template: str
    vocabulary: int
    head: int
    draws: int = 0
    engine: str = ""
    temperature: float = 1.0
    width: int = 0
    dtype: str = ""
    readout: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.vocabulary <= 2**_WIDEST:
            raise ValueError(f"a vocabulary of {self.vocabulary} tokens cannot be stored")
        if min(self.head, self.draws) < 0 or not self.head + self.draws < 2**16:
            raise ValueError(f"head {self.head} and draws {self.draws} are no estimator")
        if not 0.0 < self.temperature < np.inf:
            raise ValueError(f"a temperature is above 0 and not {self.temperature}")
        if self.width < 0 or (self.dtype in NUMBERS) != (self.width > 0):
            raise ValueError(f"{self.width} numbers in {self.dtype or 'nothing'} are no vector")
        if self.width and (self.head or self.draws or self.temperature != 1.0):
            raise ValueError("vectors have no head, draws or temperature")

    @property
    def whole(self) -> bool:
        """Whether whole distributions are stored as such."""
        return not self.head + self.draws + self.width

    @property
    def id_bits(self) -> int:
        return max(1, (self.vocabulary - 1).bit_length())

    @property
    def size_bits(self) -> int:
        """Bits for the number of entries of a position."""
        return (self.head + self.draws).bit_length()

    @property
    def count_bits(self) -> int:
        """Bits for how often an id was drawn, less one."""
        return max(0, self.draws - 1).bit_length()


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """Sparse distributions over the next token at N positions, with E entries together.

    Position n has the entries `offsets_N1[n]` up to `offsets_N1[n + 1]`, likeliest first and drawn ones last,
    or none where the teacher's probabilities are not known. `logprobs_E` are the logs of the entries' weights
    (nats), and `log_tail_N` that of the mass outside them: -inf where nothing is, 0 where there is no entry.
    Whole distributions have all ids in their order, some perhaps of weight 0 (-inf), and no tail.
    """

    offsets_N1: NDArray[np.int64]
    ids_E: NDArray[np.int32]
    logprobs_E: NDArray[np.float32]
    log_tail_N: NDArray[np.float32]

    def __len__(self) -> int:
        """Positions."""
        return len(self.log_tail_N)

    @property
    def known(self) -> int:
        """Positions of which something is known."""
        return int((np.diff(self.offsets_N1) > 0).sum())


def encode(binding: Binding, targets: Targets) -> bytes:
    """The block of one row. Raises ValueError for targets that are no distributions under this binding."""
    _of_distributions(binding)
    sizes_N = np.diff(targets.offsets_N1)
    if not _fit_together(binding, targets, sizes_N):
        raise ValueError("the arrays of the targets do not fit together")
    if not _are_valid(binding, targets) or not (binding.whole or np.isfinite(targets.logprobs_E).all()):
        raise ValueError("an id lies outside the vocabulary, or a log-probability is none")
    position_E, drawn_E = _places(binding, targets.offsets_N1)
    known_N, weights_E = sizes_N > 0, np.exp(targets.logprobs_E.astype(np.float64))
    tail_N = np.exp(targets.log_tail_N.astype(np.float64))
    mass_N = np.bincount(position_E, weights_E, len(sizes_N)) + tail_N
    if not (np.abs(mass_N[known_N] - 1.0) <= _MASS_ERROR).all():
        raise ValueError("the mass of a position is not 1")
    if binding.whole:
        return targets.logprobs_E.astype("<f4").tobytes()
    rest_N, counts_E = tail_N, np.zeros(0)
    if binding.draws:
        rest_N = np.bincount(position_E[drawn_E], weights_E[drawn_E], len(sizes_N))
        exact_E = binding.draws * weights_E[drawn_E] / rest_N[position_E[drawn_E]]
        counts_E = np.rint(exact_E)
        if not ((np.abs(exact_E - counts_E) < 1e-2) & (counts_E > 0)).all():
            raise ValueError(f"the weights of the drawn ids are not made of {binding.draws} draws")
    columns = [pack(sizes_N, binding.size_bits)]
    if binding.head:
        with np.errstate(divide="ignore"):
            columns.append(np.log(np.minimum(rest_N[known_N], 1.0)).astype("<f2"))
        columns.append(np.maximum(targets.logprobs_E[~drawn_E], LEAST).astype("<f2"))
    columns += [pack(counts_E - 1, binding.count_bits), pack(targets.ids_E, binding.id_bits)]
    return b"".join(column.tobytes() for column in columns)


def decode(binding: Binding, blocks: Sequence[NDArray[np.uint8]], positions: NDArray[np.int64]) -> Targets:
    """The targets of the rows whose blocks these are, one row after the other.

    `positions` is how many each row has, none of them 0. Raises ValueError for a block that does not end
    where its row does, or holds what no shard holds.
    """
    _of_distributions(binding)
    if binding.whole:
        return _whole(binding, blocks, positions)
    at = np.zeros(len(blocks), dtype=np.int64)
    first = np.cumsum(positions) - positions

    def of_rows(numbers_N: NDArray[Any]) -> NDArray[np.int64]:
        return np.add.reduceat(numbers_N.astype(np.int64), first) if len(first) else positions

    sizes_N = _numbers(blocks, at, positions, binding.size_bits)
    if (sizes_N > binding.head + binding.draws).any():
        raise ValueError("a position has more entries than the shard allows")
    offsets_N1 = np.zeros(len(sizes_N) + 1, dtype=np.int64)
    np.cumsum(sizes_N, out=offsets_N1[1:])
    known_N, entries = sizes_N > 0, of_rows(sizes_N)
    rest_N = np.zeros(len(sizes_N), dtype=np.float32)
    if binding.head:
        rest_N[known_N] = _halves(blocks, at, of_rows(known_N))
    heads = of_rows(np.minimum(sizes_N, binding.head)) if binding.draws else entries
    values = _halves(blocks, at, heads)
    counts = _numbers(blocks, at, entries - heads, binding.count_bits)
    ids_E = _numbers(blocks, at, entries, binding.id_bits)
    if at.tolist() != [len(block) for block in blocks]:
        raise ValueError("a row does not end where its block does")
    if binding.draws:
        shares = np.log(np.arange(1, 2**binding.count_bits + 1) / binding.draws).astype(np.float32)
        logprobs_E, nothing_left = shares[counts], np.where(known_N, np.float32(-np.inf), np.float32(0.0))
        if binding.head:
            position_E, drawn_E = _places(binding, offsets_N1)
            drawn = logprobs_E + rest_N[position_E[drawn_E]]
            logprobs_E = np.empty(len(ids_E), dtype=np.float32)
            logprobs_E[~drawn_E], logprobs_E[drawn_E] = values, drawn
        targets = Targets(offsets_N1, ids_E, logprobs_E, nothing_left)
    else:
        targets = Targets(offsets_N1, ids_E, values, rest_N)
    if not _are_valid(binding, targets):
        raise ValueError("an id lies outside the vocabulary, or a log-probability is none")
    return targets


def whole_targets(logprobs_NV: NDArray[np.float32]) -> Targets:
    """Of whole distributions, as a binding that is `whole` has them."""
    positions, width = logprobs_NV.shape
    return Targets(
        np.arange(positions + 1, dtype=np.int64) * width,
        np.tile(np.arange(width, dtype=np.int32), positions),
        logprobs_NV.ravel(),
        np.full(positions, -np.inf, dtype=np.float32),
    )


def log_tail(mass_N: NDArray[Any], sizes_N: NDArray[np.int64], vocabulary: int) -> NDArray[np.float32]:
    """The log mass of what a server did not name, where `sizes_N` ids of a position hold `mass_N`: what they
    lack of 1, and at least `LEAST_TAIL` where any id is left. Were it none, a divergence that weighs by the
    student's own distribution would be without bound there."""
    tail_N = np.maximum(1.0 - mass_N, LEAST_TAIL) * (sizes_N < vocabulary)
    with np.errstate(divide="ignore"):
        logs_N: NDArray[np.float32] = np.log(tail_N).astype(np.float32)
    return logs_N


def pack(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Whole numbers below 2**bits side by side, the lowest bit first; at most 25 bits each."""
    rows = values.astype(np.uint32)[:, None] >> np.arange(bits, dtype=np.uint32)
    return np.packbits((rows & 1).astype(np.uint8), bitorder="little")


def unpack(
    data: NDArray[np.uint8], begins: NDArray[np.int64], bits: int, counts: NDArray[np.int64]
) -> NDArray[np.int32]:
    """What `pack` made of several lists that begin at the bytes `begins` of `data`; each has its count.

    Each number is read as the four bytes that it begins in, so three more bytes must follow the last list.
    """
    total = int(counts.sum())
    if not bits:
        return np.zeros(total, dtype=np.int32)
    narrow = np.dtype(np.int32 if 8 * len(data) < 2**31 else np.int64)  # of half the size is twice as fast
    first = np.cumsum(counts) - counts
    at = np.arange(0, total * bits, bits, dtype=narrow)
    if len(counts) > 1:
        at += np.repeat((8 * begins - bits * first).astype(narrow), counts)
    every_four: NDArray[np.uint32] = np.ndarray((len(data) - 3,), np.dtype("<u4"), data, strides=(1,))
    words = every_four.take(at >> 3)
    words >>= (at & 7).astype(np.uint32)
    words &= np.uint32((1 << bits) - 1)
    return words.view(np.int32)


def _of_distributions(binding: Binding) -> None:
    if binding.width:
        raise ValueError("the shard holds vectors and no distributions")


def _whole(binding: Binding, blocks: Sequence[NDArray[np.uint8]], positions: NDArray[np.int64]) -> Targets:
    """Raises ValueError as `decode` does."""
    width = binding.vocabulary
    if [len(block) for block in blocks] != (4 * width * positions).tolist():
        raise ValueError("a row does not end where its block does")
    data = np.concatenate([*blocks, np.zeros(0, dtype=np.uint8)])
    targets = whole_targets(data.view("<f4").astype(np.float32, copy=False).reshape(-1, width))
    if not _are_valid(binding, targets):
        raise ValueError("a log-probability is none")
    return targets


def _numbers(
    blocks: Sequence[NDArray[np.uint8]], at: NDArray[np.int64], counts: NDArray[np.int64], bits: int
) -> NDArray[np.int32]:
    """The next column of every block as whole numbers of `bits` bits; moves `at` past it."""
    lengths = (counts * bits + 7) // 8
    return unpack(_gather(blocks, at, lengths, spare=3), np.cumsum(lengths) - lengths, bits, counts)


def _halves(
    blocks: Sequence[NDArray[np.uint8]], at: NDArray[np.int64], counts: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The next column of every block as fp16 numbers; moves `at` past it."""
    return _gather(blocks, at, 2 * counts).view("<f2").astype(np.float32)


def _gather(
    blocks: Sequence[NDArray[np.uint8]], at: NDArray[np.int64], lengths: NDArray[np.int64], spare: int = 0
) -> NDArray[np.uint8]:
    begins = at.tolist()
    at += lengths
    parts = [block[begin:end] for block, begin, end in zip(blocks, begins, at.tolist(), strict=True)]
    data = np.concatenate([*parts, np.zeros(spare, dtype=np.uint8)])
    if len(data) != spare + lengths.sum():
        raise ValueError("a row does not end where its block does")
    return data


def _places(binding: Binding, offsets_N1: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The position of every entry, and whether the entry was drawn and is none of the head."""
    position_E = np.repeat(np.arange(len(offsets_N1) - 1), np.diff(offsets_N1))
    return position_E, np.arange(len(position_E)) - offsets_N1[position_E] >= binding.head


def _fit_together(binding: Binding, targets: Targets, sizes_N: NDArray[np.int64]) -> bool:
    entries = len(targets.ids_E)
    least, most = 0, binding.head + binding.draws
    if binding.whole:
        least = most = binding.vocabulary
        if not np.array_equal(targets.ids_E, np.tile(np.arange(most), len(sizes_N))):
            return False
    return bool(
        len(sizes_N) > 0
        and targets.offsets_N1[0] == 0
        and targets.offsets_N1[-1] == entries == len(targets.logprobs_E)
        and len(targets.log_tail_N) == len(sizes_N)
        and sizes_N.min() >= least
        and sizes_N.max() <= most
    )


def _are_valid(binding: Binding, targets: Targets) -> bool:
    ids_E = targets.ids_E
    in_range = not ids_E.size or bool(ids_E.min() >= 0 and ids_E.max() < binding.vocabulary)
    return in_range and bool((targets.logprobs_E <= 0).all() and (targets.log_tail_N <= 0).all())  # no NaN is
