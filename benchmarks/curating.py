"""The whole stage of curation, from exchanges to samples with every kept row in the ledger.

    .venv/bin/python benchmarks/curating.py [--quick] [--json FILE]

The rows are exchanges whose prompts and answers are pieces of real answers, 72 words together, no two alike:
the most that comparing can have to remember. They are written to Parquet first, and the stage runs in a
process of its own with the recipe's default filters (but for boilerplate, which real answers are full of), a
ledger on disk, and a test set to hold the prompts against. 20,000 rows for --quick, else 1,000,000.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from dedup import recombined, stretches
from rows import Row, arguments, header, peak_memory, show

from stillhouse.collect import EXCHANGES
from stillhouse.curate import curate
from stillhouse.curate.rows import MESSAGES
from stillhouse.ledger import Ledger
from stillhouse.recipe import parse_recipe
from stillhouse.workspace import RunFolder, init_workspace

SEED = 1
TEST = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."
RECIPE: dict[str, Any] = {
    "run": {"name": "curating"},
    "teacher": {"model": "m", "endpoint": "http://127.0.0.1:9/v1"},
    "prompts": {"source": "p"},
    "student": {"init": "s"},
    "curate": {"boilerplate": False},
}


def exchange(number: int, text: str) -> dict[str, Any]:
    told = text.split(" ")
    return {
        "key": f"{number:064x}",
        "leaf": number,
        "decision": 0,
        "prompt_id": f"p{number}",
        "sample_index": 0,
        "messages": [{"role": "user", "content": " ".join(told[:20]), "extra": ""}],
        "answer": " ".join(told[20:]),
        "finish_reason": "stop",
        "family": f"family {number % 20}",
        "group": "",
        "teacher": "m",
    }


def prepare(run: RunFolder, count: int) -> None:
    rng = random.Random(SEED)
    real = stretches(rng)
    run.root.mkdir(parents=True)
    schema = pa.schema([("id", pa.string()), ("messages", MESSAGES), ("split", pa.string())])
    test = {"id": "t", "messages": [{"role": "user", "content": TEST, "extra": ""}], "split": "test"}
    pq.write_table(pa.Table.from_pylist([test], schema=schema), run.prompts)
    with pq.ParquetWriter(run.exchanges, EXCHANGES) as writer:
        for first in range(0, count, 10_000):
            texts = recombined(real, min(10_000, count - first), rng)
            rows = [exchange(first + i, text) for i, text in enumerate(texts)]
            writer.write_table(pa.Table.from_pylist(rows, schema=EXCHANGES), row_group_size=1024)


def work(folder: Path) -> None:
    """In a process of its own: curate, and print what it took."""
    workspace = init_workspace(folder)
    started, busy = time.perf_counter(), time.process_time()
    with Ledger.open(workspace) as ledger:
        done = curate(RunFolder(workspace.runs / "r"), parse_recipe(RECIPE), ledger)
    used = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - busy, "kept": done.kept}
    lost = sum(done.reasons.values()) + sum(done.unscored.values())
    print(json.dumps({**used, "peak": peak_memory(), "lost": lost}))


def main() -> None:
    options = arguments(__doc__ or "")
    count = 20_000 if options.quick else 1_000_000
    with tempfile.TemporaryDirectory() as name:
        prepare(RunFolder(init_workspace(Path(name)).runs / "r"), count)
        command = [sys.executable, __file__, "--work", name]
        done = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    rows = [
        Row(f"curation of {count:,} rows, ledger included", count / done["seconds"], "rows/s"),
        Row("  CPU", done["cpu"] / count * 1e6, "us/row"),
        Row("  peak memory", done["peak"] / 1e9, "GB", target="< 2 GB", holds=done["peak"] < 2e9),
        Row("  kept", done["kept"], "rows"),
        Row(
            "  rows in, less kept, dropped and unscored",
            count - done["kept"] - done["lost"],
            "",
            target="0",
            holds=count == done["kept"] + done["lost"],
        ),
    ]
    show(header(SEED, ["stillhouse", "rensa", "numpy", "pyarrow"]), rows, options.json)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(Path(sys.argv[2]))
    else:
        main()
