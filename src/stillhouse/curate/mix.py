"""How many rows of which teacher and family: proportions, caps and how hard the rows are for the student.

Rows are only left out, never repeated. Which ones is decided by a hash of the seed and the row's id, so a
larger cap keeps all the rows of a smaller one, and the order of the rows plays no part.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stillhouse.curate.funnel import KEEP, Judged, Row
from stillhouse.curate.rows import ROWS, UNMIXED
from stillhouse.errors import storage
from stillhouse.recipe import Mix
from stillhouse.records import Verdict
from stillhouse.workspace import RunFolder

Losses = Callable[[Sequence[Row]], Sequence[float]]
"""Of each row the student's mean loss over its answer, in nats a token; NaN where it has none."""

_VERDICTS = (
    KEEP,
    Verdict("drop", "mix: easy"),
    Verdict("drop", "mix: hard"),
    Verdict("drop", "mix: teacher"),
    Verdict("drop", "mix: family"),
    Verdict("unscored", "no loss of the student"),
)
_EASY, _HARD, _TEACHER, _FAMILY, _LOSSLESS = range(1, 6)


def quotas(counts: Mapping[str, int], weights: Mapping[str, float], cap: int | None) -> dict[str, int]:
    """How many of each are kept: at most `cap`, and those with a weight in proportion to it.

    As many as the scarcest allows; a weight of 0 keeps none, and one without a weight is only capped.
    """
    most = {name: n if cap is None else min(n, cap) for name, n in counts.items()}
    named = {name: weights[name] for name in most if name in weights}
    unit = min((most[name] / weight for name, weight in named.items() if weight > 0), default=0.0)
    for name, weight in named.items():
        most[name] = int(min(most[name], unit * weight + 1e-9)) if weight else 0
    return most


@dataclass(slots=True)
class Lots:
    """What is remembered of each row until all are known: 16 bytes, and 4 more with a loss."""

    seed: int
    losses: Losses | None = None
    _draws: array[int] = field(default_factory=lambda: array("Q"))
    _families: array[int] = field(default_factory=lambda: array("i"))
    _teachers: array[int] = field(default_factory=lambda: array("i"))
    _losses: array[float] = field(default_factory=lambda: array("f"))
    _names: dict[str, int] = field(default_factory=dict)

    def add(self, rows: Sequence[Row]) -> None:
        for row in rows:
            mark = f"mix:{self.seed}:{row['teacher']}:{row['prompt_id']}#{row['sample_index']}"
            digest = hashlib.blake2b(mark.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            self._draws.append(int.from_bytes(digest))
            self._families.append(self._names.setdefault(row["family"], len(self._names)))
            self._teachers.append(self._names.setdefault(row["teacher"], len(self._names)))
        if self.losses is not None:
            self._losses.extend(_safe(self.losses, rows))

    def verdicts(self, settings: Mix) -> list[Verdict]:
        """One for each row, in the order in which they were added."""
        codes = np.zeros(len(self._draws), dtype=np.int8)
        if self.losses is not None:
            _by_difficulty(codes, np.array(self._losses), settings.easiest, settings.hardest)
        draws, names = np.array(self._draws, dtype=np.uint64), list(self._names)
        for groups, weights, cap, code in (
            (self._teachers, settings.teachers, settings.teacher_cap, _TEACHER),
            (self._families, settings.families, settings.family_cap, _FAMILY),
        ):
            _by_quota(codes, draws, np.array(groups), names, weights, cap, code)
        return [_VERDICTS[code] for code in codes.tolist()]


def _by_difficulty(
    codes: NDArray[np.int8], losses: NDArray[np.float64], easiest: float, hardest: float
) -> None:
    known = np.isfinite(losses)
    codes[~known] = _LOSSLESS
    order = np.flatnonzero(known)[np.argsort(losses[known], kind="stable")]
    easy, hard = int(easiest * len(order)), int(hardest * len(order))
    codes[order[:easy]] = _EASY
    codes[order[len(order) - hard :]] = _HARD


def _by_quota(
    codes: NDArray[np.int8],
    draws: NDArray[np.uint64],
    groups: NDArray[np.int64],
    names: Sequence[str],
    weights: Mapping[str, float],
    cap: int | None,
    code: int,
) -> None:
    alive = np.flatnonzero(codes == 0)
    order = alive[np.lexsort((draws[alive], groups[alive]))]
    present, starts, counts = np.unique(groups[order], return_index=True, return_counts=True)
    listed = [names[group] for group in present.tolist()]
    most = quotas(dict(zip(listed, counts.tolist(), strict=True)), weights, cap)
    rank = np.arange(len(order)) - np.repeat(starts, counts)
    codes[order[rank >= np.repeat([most[name] for name in listed], counts)]] = code


def _unmeasured(rows: Sequence[Row]) -> Sequence[float]:
    """Where a loss is asked for and nobody can tell it, no row is taken for easy or hard."""
    return ()


def _safe(losses: Losses, rows: Sequence[Row]) -> list[float]:
    try:
        found = [float(loss) for loss in losses(rows)]
    except Exception:  # counted like any other filter that raises
        found = []
    return found if len(found) == len(rows) else [float("nan")] * len(rows)


def mixed(
    batches: Iterable[list[Judged]], settings: Mix, seed: int, losses: Losses | None, run: RunFolder
) -> Iterator[list[Judged]]:
    """The same rows, those that the mix leaves out dropped. They come in two passes: rows that other steps
    took out in the first, and the others, from a file in the run's folder, in the second."""
    if settings.checkpoint is not None and losses is None:
        losses = _unmeasured
    lots = Lots(seed, losses)
    marks: dict[int, tuple[tuple[str, str], ...]] = {}
    scratch = run.unmixed
    count = 0
    try:
        with storage("write", scratch), pq.ParquetWriter(scratch, UNMIXED) as writer:
            for batch in batches:
                alive = [one for one in batch if one.verdict.ruling == "keep"]
                rows = [one.row for one in alive]
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=UNMIXED))
                lots.add(rows)
                marks.update((count + i, one.marks) for i, one in enumerate(alive) if one.marks)
                count += len(rows)
                yield [one for one in batch if one.verdict.ruling != "keep"]
        verdicts = lots.verdicts(settings)
        place = 0
        for read in pq.ParquetFile(scratch).iter_batches(batch_size=ROWS):
            yield [
                Judged(row, verdict, "" if verdict is KEEP else "mix", marks.get(number, ()))
                for number, (row, verdict) in enumerate(
                    zip(read.to_pylist(), verdicts[place : place + len(read)], strict=True), place
                )
            ]
            place += len(read)
    finally:
        scratch.unlink(missing_ok=True)
