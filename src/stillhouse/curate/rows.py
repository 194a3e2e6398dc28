"""Rows from and to the run's files, a batch at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.curate.duplicates import prompt_of
from stillhouse.curate.funnel import Judged, Row, Tally
from stillhouse.curate.leaks import Exam
from stillhouse.errors import storage
from stillhouse.ledger import Ledger, canonical
from stillhouse.records import Progress, Watch
from stillhouse.workspace import RunFolder

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("extra", pa.string())]))
SAMPLES = pa.schema(
    [
        ("id", pa.string()),
        ("messages", MESSAGES),
        ("completion", pa.string()),
        ("rationale", pa.string()),
        ("family", pa.string()),
        ("group", pa.string()),
        ("teacher", pa.string()),
        ("leaves", pa.list_(pa.int64())),
    ]
)
DROPPED = pa.schema([*SAMPLES, ("reason", pa.string()), ("ruling", pa.string()), ("filter", pa.string())])
UNMIXED = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample_index", pa.int32()),
        ("messages", MESSAGES),
        ("answer", pa.string()),
        ("reasoning", pa.string()),
        ("family", pa.string()),
        ("group", pa.string()),
        ("teacher", pa.string()),
        ("leaf", pa.int64()),
    ]
)
ROWS = 4096  # rows read, written and logged at once,
BYTES = 1 << 25  # or fewer where they are long: comparing takes several times the size of their text
SAMPLED = 64  # rows of a family from which the wording of its template is learnt

References = Mapping[str, tuple[str | None, str | None]]


def exchanges(path: Path, known: References) -> Iterator[list[Judged]]:
    """The rows of `exchanges.parquet`, each with the reference and the scorer of its prompt."""
    for batch in pq.ParquetFile(path).iter_batches(batch_size=ROWS):
        size = max(1, min(ROWS, len(batch) * BYTES // max(1, batch.nbytes)))
        for start in range(0, len(batch), size):
            yield joined(batch.slice(start, size).to_pylist(), known)


def joined(rows: list[Row], known: References) -> list[Judged]:
    for row in rows:
        row["reference"], row["scorer"] = known.get(row["prompt_id"], (None, None))
    return [Judged(row) for row in rows]


def references(prompts: Path) -> References:
    """Of each prompt that has one: (reference, scorer), held in memory."""
    columns = ["id", "reference", "scorer"]
    found: dict[str, tuple[str | None, str | None]] = {}
    for batch in pq.ParquetFile(prompts).iter_batches(columns=columns):
        for row in batch.to_pylist():
            if row["reference"] is not None or row["scorer"] is not None:
                found[row["id"]] = row["reference"], row["scorer"]
    return found


def sample_of_each(path: Path) -> Iterator[Row]:
    """Up to 64 rows of every family, spread over the file; they hold only `family` and `messages`."""
    families = pq.read_table(path, columns=["family"])["family"].combine_chunks().dictionary_encode()
    codes = families.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    starts = np.concatenate(([0], np.cumsum(np.bincount(codes, minlength=1))))
    wanted = np.zeros(len(codes), dtype=np.bool_)
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        if end > start:
            wanted[order[np.linspace(start, end - 1, min(SAMPLED, end - start), dtype=np.int64)]] = True
    at = 0
    for batch in pq.ParquetFile(path).iter_batches(batch_size=ROWS, columns=["family", "messages"]):
        yield from batch.filter(pa.array(wanted[at : at + len(batch)])).to_pylist()
        at += len(batch)


def write(
    batches: Iterable[list[Judged]],
    run: RunFolder,
    ledger: Ledger,
    transform: int,
    exams: Sequence[Exam],
    total: int,
    watch: Watch,
) -> tuple[Tally, str]:
    """Put every row where its verdict says; the counts, and the digest over the kept rows in order."""
    tally, digest = Tally(), hashlib.sha256()
    with (
        storage("write", run.samples),
        pq.ParquetWriter(run.samples, SAMPLES) as samples,
        pq.ParquetWriter(run.dropped, DROPPED) as dropped,
    ):
        for batch in batches:
            kept = [one.row for one in batch if one.verdict.ruling == "keep"]
            good, leaves = [], []
            for row in kept:
                sample = _sample(row)
                content = canonical(sample)
                digest.update(content)
                good.append(sample)
                leaves.append(_row_leaf(sample, content, run, transform))
            samples.write_batch(pa.RecordBatch.from_pylist(good, schema=SAMPLES))
            dropped.write_batch(pa.RecordBatch.from_pylist(list(_lost(batch)), schema=DROPPED))
            ledger.append_many(leaves)
            for exam in exams:
                exam.coverage.add([prompt_of(row) for row in kept])
            tally.add(batch)
            counts = {"kept": sum(tally.reasons("keep").values()), **tally.reasons("drop")}
            watch(Progress("curate", tally.rows, total, "rows", counts | tally.reasons("unscored")))
    return tally, digest.hexdigest()


def _lost(batch: Iterable[Judged]) -> Iterator[Row]:
    for one in batch:
        verdict = one.verdict
        if verdict.ruling != "keep":
            why = {"reason": verdict.reason, "ruling": verdict.ruling, "filter": one.step}
            yield {**_sample(one.row), **why}


def _sample(row: Row) -> Row:
    """The columns of a `records.Sample`, plain."""
    return {
        "id": f"{row['prompt_id']}#{row['sample_index']}",
        "messages": [
            {"role": m["role"], "content": m["content"], "extra": m.get("extra") or ""}
            for m in row["messages"]
        ],
        "completion": row["answer"],
        "rationale": row["reasoning"],
        "family": row["family"],
        "group": row["group"],
        "teacher": row["teacher"],
        "leaves": [row["leaf"]],
    }


def _row_leaf(
    sample: Row, content: bytes, run: RunFolder, transform: int
) -> tuple[Any, dict[str, Any], dict[str, bytes]]:
    body = {"run": run.root.name, "transform": transform, "exchanges": sample["leaves"]}
    return "row", body, {"row": content}
