"""Targets: a teacher's probabilities for the tokens of training rows, packed into sealed shards.

A shard is bound to a teacher, a tokenizer and a chat template, and a row is found by its sample id together
with the digest of its input ids. What does not match is an error; there is no fallback.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from stillhouse.errors import LedgerError
from stillhouse.ledger.targets.chunks import chunk_binding, chunk_row, chunks_of, holds_chunks
from stillhouse.ledger.targets.layout import (
    LEAST_TAIL,
    Binding,
    Targets,
    decode,
    encode,
    log_tail,
    whole_targets,
)
from stillhouse.ledger.targets.shard import (
    SUFFIX,
    Shard,
    ShardWriter,
    ids_digest,
    open_shard,
    sweep,
    unsealed,
    verify_shard,
    without,
)
from stillhouse.ledger.targets.vectors import decode_vectors

__all__ = [
    "LEAST_TAIL",
    "SUFFIX",
    "Binding",
    "Shard",
    "ShardWriter",
    "TargetReader",
    "Targets",
    "chunk_binding",
    "chunk_row",
    "chunks_of",
    "decode",
    "encode",
    "holds_chunks",
    "ids_digest",
    "log_tail",
    "open_shard",
    "sweep",
    "unsealed",
    "verify_shard",
    "whole_targets",
    "without",
]

T = TypeVar("T")
Decoder = Callable[[Binding, Sequence[NDArray[np.uint8]], NDArray[np.int64]], T]

_AGAIN = (
    "`stillhouse collect RECIPE`, or `train` where the teacher reads the rows, writes again what is missing, "
    "and asks nobody twice"
)


class TargetReader:
    """The shards of `folder` named by `digests` (hex), which all must be bound as `binding` says.

    Raises LedgerError for a shard that is missing, unusable or bound otherwise, and for a sample that stands
    in two of them.
    """

    def __init__(self, folder: Path, digests: Sequence[str], binding: Binding) -> None:
        self.binding = binding
        self.shards = tuple(_bound(folder / (digest + SUFFIX), binding) for digest in digests)
        self._rows = [(shard, row) for shard in self.shards for row in range(len(shard.sample_ids))]
        self._numbers: dict[str, int] = {}
        for number, (shard, row) in enumerate(self._rows):
            if (first := self._numbers.setdefault(shard.sample_ids[row], number)) != number:
                raise LedgerError(
                    f"two shards hold targets of {shard.sample_ids[row]!r}",
                    f"{shard.path.name} and {self._rows[first][0].path.name}",
                    "name the shards of one writing only",
                )

    @property
    def positions(self) -> int:
        return sum(sum(shard.positions) for shard in self.shards)

    @property
    def known(self) -> int:
        """Positions that have targets."""
        return sum(shard.known for shard in self.shards)

    @property
    def bytes_per_token(self) -> float:
        """Bytes of the files, all that is in them, for each position."""
        return sum(len(shard.data) for shard in self.shards) / max(1, self.positions)

    def __contains__(self, sample_id: str) -> bool:
        return sample_id in self._numbers

    def locate(self, sample_id: str, ids: NDArray[np.int32], positions: int) -> int:
        """The row of a sample with these input ids, of which the last `positions` tokens are trained.

        Raises LedgerError when there are no targets for exactly this.
        """
        number = self._numbers.get(sample_id)
        if number is None:
            raise LedgerError(
                f"there are no targets for the sample {sample_id!r}",
                f"{len(self.shards)} shards hold {len(self._rows)} other samples",
                _AGAIN,
            )
        shard, row = self._rows[number]
        if shard.digests[row] != ids_digest(ids):
            raise LedgerError(
                f"the targets of the sample {sample_id!r} are of other input ids",
                "the sample, the tokenizer or the chat template changed after they were written",
                _AGAIN,
            )
        if shard.positions[row] != positions:
            raise LedgerError(
                f"the targets of the sample {sample_id!r} cover other tokens",
                f"they are of {shard.positions[row]} positions, and {positions} are trained",
                _AGAIN,
            )
        return number

    def read(self, rows: Sequence[int]) -> Targets:
        """The targets of located rows, one row after the other.

        Raises LedgerError for values that no shard holds, naming the shard and the sample.
        """
        return self._read(rows, decode)

    def vectors(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """The vectors (N, D) of located rows, where the shards hold vectors. Raises as `read` does."""
        return self._read(rows, decode_vectors)

    def _read(self, rows: Sequence[int], decoder: Decoder[T]) -> T:
        try:
            return self._decode(rows, decoder)
        except ValueError as error:
            self._name_the_bad_row(rows, decoder, error)

    def _decode(self, rows: Sequence[int], decoder: Decoder[T]) -> T:
        places = [self._rows[number] for number in rows]
        positions = np.array([shard.positions[row] for shard, row in places], dtype=np.int64)
        return decoder(self.binding, [shard.block(row) for shard, row in places], positions)

    def _name_the_bad_row(self, rows: Sequence[int], decoder: Decoder[T], error: ValueError) -> NoReturn:
        for number in rows:
            try:
                self._decode([number], decoder)
            except ValueError as found:
                shard, row = self._rows[number]
                raise LedgerError(
                    f"the targets of {shard.sample_ids[row]!r} in {shard.path} are damaged",
                    str(found),
                    "delete the shard; " + _AGAIN,
                ) from found
        raise error


def _bound(path: Path, binding: Binding) -> Shard:
    if not path.is_file():
        why = "it was never sealed, or deleted, or an answer in it was erased"
        raise LedgerError(f"there is no shard {path}", why, _AGAIN)
    shard = open_shard(path)
    for field in fields(Binding):
        found, wanted = getattr(shard.binding, field.name), getattr(binding, field.name)
        if found != wanted:
            raise LedgerError(
                f"the targets in {path} have another {field.name} than this run",
                f"they were written for {found!r}, and this run has {wanted!r}",
                "write them again for this run, or go back to the recipe that they were written for",
            )
    return shard
