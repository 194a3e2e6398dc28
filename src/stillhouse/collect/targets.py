"""From recorded answers to targets: what the teacher held likely, in the student's ids, in sealed shards.

The answers in the ledger keep the teacher's own tokens and bytes. What lies in the shards is made from them
for one student, and can be made for another without asking anybody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.ledger.targets import (
    Binding,
    ShardWriter,
    Targets,
    chunk_row,
    chunks_of,
    holds_chunks,
    log_tail,
)
from stillhouse.models.alignment import Aligned, align
from stillhouse.models.chunks import likelihoods, spoken
from stillhouse.models.logprobs import read_answer
from stillhouse.models.vocabulary import Vocabulary

SHARD_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, eq=False)
class TaughtRow:
    """A sample as the student reads it, and the response (a chat completion) that its completion came from.
    Tokens of `ids` from `start` on are trained and get targets."""

    sample_id: str
    response: bytes
    ids: NDArray[np.int32]
    start: int
    choice: int = 0


@dataclass(slots=True)
class TargetTally:
    """rows = `with_targets` + the sum of `reasons`. `counts` says how often each rule of `models.logprobs`
    was used, `shards` are digests (hex), `bytes` is the size of their files."""

    rows: int = 0
    with_targets: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    positions: int = 0
    known: int = 0
    given: float = 0.0
    mapped: float = 0.0
    shards: list[str] = field(default_factory=list)
    bytes: int = 0

    @property
    def coverage(self) -> float:
        """Share of the trained positions that have targets."""
        return self.known / max(1, self.positions)

    @property
    def mass_mapped(self) -> float:
        """Share of the probability named at these positions that became ids of the student."""
        return self.mapped / self.given if self.given else 0.0

    @property
    def bytes_per_token(self) -> float:
        """Bytes of the shards' files for each trained position."""
        return self.bytes / max(1, self.positions)

    def record(self) -> dict[str, Any]:
        """As JSON has it. `dataclasses.asdict` would count the items of a counter instead of copying it."""
        plain = {part.name: getattr(self, part.name) for part in fields(self)}
        return {**plain, "reasons": dict(self.reasons), "counts": dict(self.counts)}


def write_targets(
    rows: Iterable[TaughtRow],
    folder: Path,
    binding: Binding,
    student: Vocabulary,
    asked: int,
    teacher: Vocabulary | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> TargetTally:
    """Write the targets of all rows into shards, as `write_shards` does; the tally of all of them."""
    return total(write_shards(rows, folder, binding, student, asked, teacher, shard_bytes))


def write_shards(
    rows: Iterable[TaughtRow],
    folder: Path,
    binding: Binding,
    student: Vocabulary,
    asked: int,
    teacher: Vocabulary | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Iterator[TargetTally]:
    """Write the targets of all rows into shards in `folder`, at most `binding.head` entries a position, and
    give the tally of each shard when it is sealed. A binding of chunks asks for these, and for no
    alternatives.

    `asked` is the number of top_logprobs that was asked for; `teacher` is the teacher's own vocabulary,
    where it is known. Every row is written, also one without a single target: a reader tells it from a row
    that is missing. A shard is closed when it passes `shard_bytes`.

    Raises ValueError when `binding` is of another vocabulary than `student`, or draws ids, and StorageError
    when the disk is full; shards that were sealed before stay.
    """
    if (binding.tokenizer, binding.vocabulary, binding.draws) != (student.digest, len(student.raw), 0):
        raise ValueError("the binding is not that of the likeliest ids of the student's vocabulary")
    left = iter(rows)
    for first in left:
        tally = TargetTally()
        with ShardWriter(folder, binding) as writer:
            for row in chain((first,), left):
                if holds_chunks(binding):
                    targets = _chunked(row, student, asked, teacher, tally)
                else:
                    aligned = _aligned(row, student, asked, teacher, tally)
                    targets = _targets(aligned.entries, binding)
                writer.add(row.sample_id, row.ids, targets)
                if writer.size >= shard_bytes:
                    break
            sealed = writer.seal()
        tally.shards.append(sealed.stem)
        tally.bytes += sealed.stat().st_size
        yield tally


def total(tallies: Iterable[TargetTally]) -> TargetTally:
    """All of them as one."""
    whole = TargetTally()
    for tally in tallies:
        for part in fields(TargetTally):
            setattr(whole, part.name, getattr(whole, part.name) + getattr(tally, part.name))
    return whole


def _aligned(
    row: TaughtRow, student: Vocabulary, asked: int, teacher: Vocabulary | None, tally: TargetTally
) -> Aligned:
    answer = read_answer(row.response, asked, teacher, row.choice)
    same = teacher is not None and teacher.digest == student.digest
    aligned = align(answer.tokens, row.ids[row.start :].tolist(), student, same)
    known = sum(1 for entries in aligned.entries if entries)
    if reason := answer.reason or aligned.reason or ("" if known else "no token in common"):
        tally.reasons[reason] += 1
    tally.rows += 1
    tally.with_targets += known > 0
    tally.counts.update(answer.counts)
    tally.positions += len(aligned.entries)
    tally.known += known
    tally.given += aligned.given
    tally.mapped += aligned.mapped
    return aligned


def _chunked(
    row: TaughtRow, student: Vocabulary, asked: int, teacher: Vocabulary | None, tally: TargetTally
) -> Targets:
    answer, ids_N = read_answer(row.response, asked, teacher, row.choice), row.ids[row.start :]
    text = b"".join(student.raw[at] for at in ids_N[:-1])
    targets = chunk_row(ids_N, likelihoods(ids_N.tolist(), student, *spoken(answer.tokens, text)))
    known = chunks_of(targets, [len(ids_N)]).known
    if reason := answer.reason or ("" if known else "the sample is another text than the answer"):
        tally.reasons[reason] += 1
    tally.rows += 1
    tally.with_targets += known > 0
    tally.counts.update(answer.counts)
    tally.positions += len(ids_N)
    tally.known += known
    return targets


def _targets(entries: Sequence[Sequence[tuple[int, float]]], binding: Binding) -> Targets:
    """The likeliest entries of each position; whatever they lack of a mass of 1 is the tail."""
    sizes_N = np.array([min(len(position), binding.head) for position in entries], dtype=np.int64)
    kept = [entry for position in entries for entry in position[: binding.head]]
    logprobs_E = np.array([logprob for _, logprob in kept], dtype=np.float64)
    mass_N = np.bincount(np.repeat(np.arange(len(sizes_N)), sizes_N), np.exp(logprobs_E), len(sizes_N))
    return Targets(
        np.concatenate([[0], np.cumsum(sizes_N)]),
        np.array([at for at, _ in kept], dtype=np.int32),
        logprobs_E.astype(np.float32),
        log_tail(mass_N, sizes_N, binding.vocabulary),
    )
