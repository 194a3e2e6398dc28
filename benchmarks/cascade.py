"""A student that answers where it is sure enough and a teacher behind it: what is kept, deferred, saved.

    .venv/bin/python benchmarks/cascade.py [--quick] [--folder FOLDER] [--json FILE]

On `embedded:desk` (the quickstart's student) and on CLINC150 (the example's, taught by a linear SVM). Both
answer a pool of prompts that neither run has seen. The pool is taken for the distribution itself: a
calibration takes 3,000 draws from it, 200 times anew, and its promise is held against what the threshold
loses on the pool, which is then known exactly. A third of the pool, by the prompts' ids, only ever fits
scores and is not judged by. What is lost is an answer that the teacher has right and the cascade has not;
`score` takes the difference of the scores instead. Intervals are the middle 95 % of the repetitions, those of
the scores at a share deferred are of independent rows. Then traffic of another kind (cascade_drift.py), and a
second student that has learned what the first deferred (cascade_desk.py). What is in --folder is not done
again. --quick takes small runs and pools: it shows that the path works, not what it reaches.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from cascade_desk import DESK, LEARNED, QUICK_LEARNED, desk_pool, second_round
from cascade_drift import drift_rows
from cascade_pool import BROKEN, CALIBRATED, NO_SKETCH, REPEATS, SEED, Pool, drawn, judged_by, kept_by
from clinc150 import QUICK, QUICK_CHANGES, QUICK_INTENTS, smaller
from clinc150 import run as run_clinc
from rows import DATA, Row, arguments, header, part, show, working_folder

from stillhouse.cascade.calibration import (
    area,
    calibrate,
    curve,
    judge,
    mean_logprob_order,
    risk_of,
)
from stillhouse.cascade.risk import MOST
from stillhouse.cascade.scores import Sketch, Token
from stillhouse.stats import Floats

SHOWN = (0.0, 0.1, 0.25, 0.5, 1.0)  # shares deferred


def curves(name: str, pool: Pool, count: int, repeats: int) -> list[Row]:
    """The scores of the first calibration's order, and what the orders of all save. How much that depends on
    the pool is told by judging each of them by the pool's rows drawn anew."""
    rng, truth = np.random.default_rng(SEED), judged_by(pool)
    plain, rows = mean_logprob_order(truth.rows), []
    areas: dict[str, list[tuple[float, float]]] = {"the score": [], "right answers saved": []}
    for repeat in range(repeats):
        sample = drawn(pool, rng, count)
        order, net = (
            risk_of(calibrate(each, NO_SKETCH, name), truth.rows.signals)
            for each in (sample.rows, sample.netted())
        )
        if repeat == 0:
            points = {point["deferred"]: point for point in curve(truth.rows, net)}
            rows = [
                Row(
                    f"{name}: score, {share:.0%} deferred",
                    points[share]["score"],
                    "",
                    points[share]["low"],
                    points[share]["high"],
                )
                for share in SHOWN
            ]
        again = rng.integers(0, len(plain), len(plain))
        for what, losses, by in (
            ("the score", truth.net, net),
            ("right answers saved", truth.rows.losses, order),
        ):
            areas[what].append((area(losses[again], by[again]), area(losses[again], plain[again])))
    return [
        *rows,
        *(row for what, found in areas.items() for row in _areas(f"{name}: area of {what}", found)),
    ]


def _areas(what: str, found: Sequence[tuple[float, float]]) -> list[Row]:
    """What an order is worth, on average over all shares, above deferral at random and above the order of the
    mean log-probability."""
    ours, theirs = np.array(found).T
    plain = float(theirs.mean())
    row = _spread(f"{what}, above random deferral", ours)
    row = replace(row, peer="mean log-probability", peer_value=plain, ratio=float(ours.mean()) / plain)
    return [
        _above_0(row),
        _above_0(_spread(f"{what}, above the mean log-probability's", ours - theirs)),
    ]


def _above_0(row: Row) -> Row:
    assert row.low is not None
    return replace(row, target="> 0 in 95 of 100", holds=row.low > 0)


def promises(name: str, pool: Pool, count: int, repeats: int, signed: bool = False) -> list[Row]:
    """Calibrations drawn anew, each judged by what it promised for."""
    rng, truth, what = np.random.default_rng(SEED), judged_by(pool), "score" if signed else "right answers"
    broken, none, deferred, losses, kept, costs = 0, 0, [], [], [], []
    for _ in range(repeats):
        sample = drawn(pool, rng, count)
        calibration = calibrate(sample.netted() if signed else sample.rows, NO_SKETCH, name)
        keep, rows = kept_by(calibration, truth.rows.signals), truth.rows
        none += calibration.promise.threshold is None
        losses.append(float(np.where(keep, truth.net if signed else rows.losses, 0.0).mean()))
        broken += losses[-1] > MOST
        deferred.append(float(1 - keep.mean()))
        kept.append(float(np.where(keep, rows.student, rows.teacher).mean() / rows.teacher.mean()))
        costs.append(_cost(truth, keep))
    full = repeats == REPEATS
    label = f"{name}, {what}"
    rows_ = [
        Row(
            f"{label}: promises broken, of {repeats}",
            broken,
            "",
            target=f"<= {BROKEN}" if full else None,
            holds=broken <= BROKEN if full else None,
        ),
        Row(f"{label}: nothing could be promised, of {repeats}", none, ""),
        _spread(f"{label}: share deferred", deferred),
        _spread(f"{label}: lost", losses),
    ]
    if not np.isnan(costs).any():
        share, cost = _spread(f"{label}: share of the score kept", kept), _spread(f"{label}: FLOPs", costs)
        assert share.value is not None
        assert cost.value is not None
        rows_ += [
            replace(share, target=">= 0.99", holds=share.value >= 0.99),
            replace(cost, unit="of the teacher's", target="<= 0.25", holds=cost.value <= 0.25),
        ]
    return rows_


def _cost(pool: Pool, keep: np.ndarray) -> float:
    """FLOPs of the cascade to those of the teacher: the student's on every request."""
    whole = float(pool.teacher_flops.sum())
    spent = float(pool.student_flops.sum() + pool.teacher_flops[~keep].sum())
    return spent / whole if whole else float("nan")


def _spread(what: str, values: Sequence[float] | Floats) -> Row:
    """The mean, with the middle 95 % of the repetitions."""
    low, high = np.quantile(values, [0.025, 0.975])
    return Row(what, float(np.mean(values)), "", float(low), float(high))


def decision(pool: Pool) -> Row:
    """CPU time of one decision: a prompt of 60 words, an answer of 40 tokens."""
    calibration = replace(calibrate(pool.rows, NO_SKETCH, ""), sketch=Sketch(bytes(1 << 17)))
    tokens = [Token(-0.1, (-0.1, -2.5, -4.0, -5.0, -6.0))] * 40
    prompt, text = "Where is order 4711 of Ms Weber please? " * 8, "the answer is here " * 10
    times = []
    for _ in range(300):
        began = time.process_time()
        judge(calibration, tokens, text, "stop", prompt)
        times.append(1000 * (time.process_time() - began))
    spent = float(np.median(times))
    return Row("decision, CPU time, median", spent, "ms", target="<= 2", holds=spent <= 2)


def clinc_pool(folder: Path, quick: bool) -> Pool | None:
    """Validation and test queries: the teacher is the SVM itself, asked here and not over HTTP."""
    source = DATA / "intents" / "data_full.json"
    if not source.exists():
        return None
    data = json.loads(source.read_text())
    if quick:
        data = smaller(data, QUICK_INTENTS, QUICK, SEED)
        source = folder / "quick.json"
        source.write_text(json.dumps(data))
    runs = folder / ".stillhouse" / "runs"
    if not any(runs.glob("*/evaluation.json")):
        run_clinc(source, folder, QUICK_CHANGES if quick else {})
    from cascade_clinc import queries_pool

    return queries_pool(folder, next(runs.glob("clinc150-*")), data)


def desk_run(folder: Path, quick: bool) -> Path:
    """The quickstart's run; `stillhouse run` does only what is missing."""
    found = sorted(folder.glob(".stillhouse/runs/quickstart-*/evaluation.json"))
    if found:
        return found[-1].parent
    recipe = DESK.read_text()
    if quick:
        recipe = recipe.replace(f"count = {LEARNED}", f"count = {QUICK_LEARNED}")
        recipe = recipe.replace("epochs = 8", "epochs = 2").replace("count = 1000", "count = 100")
    path = folder / "recipe.toml"
    path.write_text(recipe)
    command = [sys.executable, "-m", "stillhouse.cli", "run", str(path), "--json"]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    return Path(json.loads(done.stdout)["folder"])


def measured(name: str, pool: Pool, quick: bool) -> list[Row]:
    count = CALIBRATED
    repeats = 20 if quick else REPEATS
    return [
        Row(f"{name}: prompts of the pool", len(pool.rows.ids), ""),
        Row(f"{name}: score of the teacher", float(pool.rows.teacher.mean()), ""),
        Row(f"{name}: score of the student alone", float(pool.rows.student.mean()), ""),
        *curves(name, pool, count, repeats),
        *promises(name, pool, count, repeats),
        *promises(name, pool, count, repeats, signed=True),
    ]


def main() -> None:
    options = arguments(__doc__ or "", resumable=True)
    quick = options.quick
    with working_folder(options.folder) as folder:
        desk, clinc = folder / "desk", folder / "clinc"
        for each in (desk, clinc):
            each.mkdir(exist_ok=True)
        run = desk_run(desk, quick)
        pool = desk_pool(desk, run, quick)
        rows = part(folder / "desk.json", lambda: [*measured("desk", pool, quick), decision(pool)])
        queries = clinc_pool(clinc, quick)
        if queries is not None:
            rows += part(folder / "clinc150.json", lambda: measured("clinc150", queries, quick))
        rows += part(folder / "drift.json", lambda: drift_rows(desk, run, pool, quick))
        rows += part(folder / "second.json", lambda: second_round(desk, run, pool, quick))
    show(header(SEED, ["stillhouse", "torch", "transformers", "scikit-learn"]), rows, options.json)


if __name__ == "__main__":
    main()
