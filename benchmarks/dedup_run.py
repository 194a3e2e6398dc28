"""One near-duplicate pass over Parquet: python dedup_run.py stillhouse|datasketch IN OUT THRESHOLD

Reads IN (column `text`), writes the kept rows to OUT/kept.parquet and (row, of, jaccard) of the others to
OUT/dropped.parquet, and prints seconds, CPU seconds and peak memory as JSON. Both read, write and decide
alike: a row is dropped if its exact Jaccard similarity with an earlier kept row reaches the threshold.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rows import peak_memory

from stillhouse.text import tokens

ROWS = 4096
DROPPED = pa.schema([("row", pa.int64()), ("of", pa.int64()), ("jaccard", pa.float64())])

Found = tuple[int, float] | None  # the kept row that is repeated, and the similarity
Judge = Callable[[pa.Array], list[Found]]


def with_stillhouse(threshold: float) -> Judge:
    from stillhouse.similar import NearIndex

    index = NearIndex(threshold)

    def judge(texts: pa.Array) -> list[Found]:
        return [None if r is None else (r.of, r.jaccard) for r in index.add_batch(texts)]

    return judge


def with_datasketch(threshold: float) -> Judge:
    """As its documentation has it: one MinHash a row, an LSH queried and filled; sets kept to verify with."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=threshold, num_perm=64, params=(16, 4))
    kept: dict[int, frozenset[str]] = {}
    given = 0

    def judge(texts: pa.Array) -> list[Found]:
        nonlocal given
        sets = [shingles(text) for text in texts.to_pylist()]
        sketches = MinHash.bulk(([s.encode() for s in own] for own in sets), num_perm=64)
        found: list[Found] = []
        for own, sketch in zip(sets, sketches, strict=True):
            near = [(len(own & kept[k]) / len(own | kept[k]), -k) for k in index.query(sketch)]
            best, of = max(near, default=(0.0, 0))
            found.append((-of, best) if best >= threshold else None)
            if best < threshold:
                kept[given] = own
                index.insert(given, sketch)
            given += 1
        return found

    return judge


def shingles(text: str) -> frozenset[str]:
    found = tokens(text)
    return frozenset(" ".join(found[i : i + 3]) for i in range(max(1, len(found) - 2)))


def run(judge: Judge, source: Path, folder: Path) -> int:
    given = 0
    file = pq.ParquetFile(source)
    with (
        pq.ParquetWriter(folder / "kept.parquet", file.schema_arrow) as kept,
        pq.ParquetWriter(folder / "dropped.parquet", DROPPED) as dropped,
    ):
        for batch in file.iter_batches(batch_size=ROWS):
            found = judge(batch.column("text"))
            kept.write_batch(batch.filter(pa.array([pair is None for pair in found])))
            pairs = [(given + i, *pair) for i, pair in enumerate(found) if pair is not None]
            columns = [list(column) for column in zip(*pairs, strict=True)] or [[], [], []]
            dropped.write_batch(
                pa.RecordBatch.from_arrays(
                    [pa.array(c, type=f.type) for c, f in zip(columns, DROPPED, strict=True)], schema=DROPPED
                )
            )
            given += len(batch)
    return given


def main() -> None:
    name, source, folder, threshold = sys.argv[1:]
    judge = {"stillhouse": with_stillhouse, "datasketch": with_datasketch}[name](float(threshold))
    started, busy = time.perf_counter(), time.process_time()
    rows = run(judge, Path(source), Path(folder))
    seconds, cpu = time.perf_counter() - started, time.process_time() - busy
    print(json.dumps({"rows": rows, "seconds": seconds, "cpu": cpu, "peak": peak_memory()}))


if __name__ == "__main__":
    main()
