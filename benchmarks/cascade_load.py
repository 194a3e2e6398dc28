"""What a cascade's decision adds to its student's latency.

    .venv/bin/python benchmarks/cascade_load.py [--quick] [--json FILE]

One gateway with everything on (gateway_stillhouse.py) before one mock upstream (gateway_upstream.py) serves
the student by itself, and as the first of a cascade that is always sure of it: the answer is waited for
whole, with the probabilities of its 60 tokens and of four others beside each, read, judged and given. The
cascade's teacher is a port where nobody listens, so that an answer that was not the student's would be an
error. Both get every load in turn, for some rounds: one request in flight to a student that answers at once,
and 50 a second on a fixed schedule to one that thinks for 20 ms. Latency is to the last byte: a cascade's
stream begins when the student's answer is whole, so that its first byte comes when the last one would have.

What is added is the difference of the medians (p50) or of the 99th percentiles (p99) in the same round,
beside it the student's own. Values are medians of the rounds, in brackets the least and the most of them. CPU
is of the gateway and its children.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
from gateway import Cell, Found, Pick, at_most, measured, p50, p99
from gateway_arms import Arm, free_port, upstream
from gateway_load import PROMPT
from gateway_stillhouse import customers, serving, settings, toml
from rows import Row, arguments, header, show

from stillhouse.cascade.calibration import Rows, calibrate, written
from stillhouse.cascade.scores import SIGNALS, sketch_of

SEED = 7
CELLS = (Cell("1 in flight", "0", in_flight=1, scored=True), Cell("50/s", "20", rate=50.0))
WAYS = ("think", "sure")  # the student by itself, and the cascade
Table = dict[tuple[str, bool, str], list[Found]]  # by cell, streamed, way: one for each round


def calibration() -> str:
    """Of a student that lost nothing: every answer is kept. The prompt of the load is a familiar one."""
    rng, count = np.random.default_rng(SEED), 1200
    signals = rng.normal(size=(count, len(SIGNALS)))
    signals[:, -1] = math.nan
    right, same = np.ones(count), np.zeros(count, np.bool_)
    ids = tuple(f"row-{n}" for n in range(count))
    rows = Rows(ids, ("load",) * count, signals, np.zeros(count), right, right, same, False)
    return json.dumps(written(calibrate(rows, sketch_of([PROMPT]), "student")))


@contextmanager
def cascade(folder: Path, upstream_port: int) -> Iterator[Arm]:
    folder.mkdir(parents=True)
    (folder / "cascade.json").write_text(calibration())
    nobody, url = f"http://127.0.0.1:{free_port()}/v1", f"http://127.0.0.1:{upstream_port}/v1"
    models = [
        {"name": f"think-{cell.model}", "upstreams": [{"url": url}], "price": "listed"} for cell in CELLS
    ]
    for cell in CELLS:
        student = {"upstreams": [{"url": url, "model": f"think-{cell.model}"}], "audit": 0.0}
        first = student | {"calibration": "cascade.json"}
        behind = {"upstreams": [{"url": nobody}], "cascade": first}
        models.append({"name": f"sure-{cell.model}", "price": "listed"} | behind)
    (folder / "guard.toml").write_text(toml(settings(upstream_port, models=models)))
    (key,) = customers(folder, 1)
    with serving(folder, key) as arm:
        yield arm


def rounds(arm: Arm, count: int, seconds: float) -> Table:
    table: Table = {}
    for _ in range(count):
        for streamed in (False, True):
            for cell in CELLS:
                for way in WAYS:
                    asked = replace(cell, model=f"{way}-{cell.model}", temperature=0.0)
                    found = measured(arm, asked, streamed, seconds)
                    table.setdefault((cell.name, streamed, way), []).append(found)
    return table


def added(what: str, unit: str, alone: list[Found], within: list[Found], pick: Pick) -> Row:
    """What the cascade's figure is above the student's own, round by round, beside that."""
    own = [pick(each) for each in alone]
    more = [pick(each) - other for each, other in zip(within, own, strict=True)]
    return Row(what, median(more), unit, min(more), max(more), "the student alone", median(own))


def figures(table: Table, full: bool) -> list[Row]:
    rows = []
    for streamed, kind in ((False, "whole"), (True, "streamed")):
        for cell in CELLS:
            alone, within = (table[cell.name, streamed, way] for way in WAYS)
            name = f"{cell.name}, {kind}: added"
            median_row = added(f"{name} p50", "ms", alone, within, p50)
            rows += [
                at_most(median_row, 2.0) if cell.scored and full else median_row,
                added(f"{name} p99", "ms", alone, within, p99),
                added(f"{name} CPU of a request", "us", alone, within, lambda found: found.cpu),
            ]
    every = [found.told for key, found in table.items() if key[2] == "sure" for found in found]
    good = sum(told.good for told in every)
    others = sum(sum(told.statuses.values()) for told in every) - good
    what = f"answers that were not the student's, or cut, of {good + others:,}"
    return [*rows, Row(what, others, "", target="0", holds=others == 0)]


def compare(folder: Path, quick: bool) -> list[Row]:
    with upstream(folder / "upstream") as student, cascade(folder / "gateway", student.port) as arm:
        table = rounds(arm, 2 if quick else 7, 0.5 if quick else 5.0)
    return figures(table, not quick)


def main() -> None:
    options = arguments(__doc__ or "")
    with tempfile.TemporaryDirectory() as name:
        rows = compare(Path(name), options.quick)
    show(header(SEED, ["stillhouse", "uvicorn", "uvloop", "aiohttp", "orjson"]), rows, options.json)


if __name__ == "__main__":
    main()
