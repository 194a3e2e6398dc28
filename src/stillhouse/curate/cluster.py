"""The steps that look at one row alone, taken by the machines of a Ray cluster with Ray Data.

The rows come back in their order, so what compares rows is done here and the result is the same as without a
cluster. Each machine must see the run's folder under the same path.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from stillhouse.ask.cluster import join
from stillhouse.curate.funnel import Judged, Row, put_through
from stillhouse.curate.rows import ROWS, References, joined, references
from stillhouse.curate.steps import alone_of, knows_references
from stillhouse.errors import UsageError
from stillhouse.recipe import Curate, Recipe
from stillhouse.scoring import BUILTIN, Scorer
from stillhouse.workspace import RunFolder

_WHOLE = "judged"  # the column of pickled rows: a verdict has parts that no exchange has


def on_ray(
    scorers: Mapping[str, Scorer] = BUILTIN,
) -> Callable[[RunFolder, Recipe], Iterator[list[Judged]]]:
    """For `curate(alone=...)`: over the cluster that RAY_ADDRESS names, else over the cores of this machine.

    Raises UsageError where Ray is not installed or the cluster cannot be joined.
    """
    ray = _ray()

    def alone(run: RunFolder, recipe: Recipe) -> Iterator[list[Judged]]:
        settings = recipe.curate
        alone_of(settings, scorers)  # a missing file or package is told here, and not by a worker
        known = references(run.prompts) if knows_references(settings) else {}
        joined_here = not ray.is_initialized()
        if joined_here:
            _join(ray)
        try:
            ray.data.DataContext.get_current().execution_options.preserve_order = True
            ray.data.DataContext.get_current().enable_progress_bars = False
            given = ray.put((settings, scorers, known))
            rows = ray.data.read_parquet(str(run.exchanges)).map_batches(
                _Judge,
                fn_constructor_args=(given,),
                batch_size=ROWS,
                batch_format="pyarrow",
                concurrency=_cores(ray),
            )
            for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
                yield [one for part in batch.column(_WHOLE).to_pylist() for one in pickle.loads(part)]
        finally:
            if joined_here:
                ray.shutdown()

    return alone


class _Judge:
    """One worker's steps, made once."""

    def __init__(self, given: Any) -> None:
        import ray

        settings: Curate
        known: References
        settings, scorers, known = ray.get(given) if isinstance(given, ray.ObjectRef) else given
        self._steps = alone_of(settings, scorers)
        self._known = known

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows: list[Row] = batch.to_pylist()
        judged = put_through(joined(rows, self._known), self._steps)
        return pa.table({_WHOLE: [pickle.dumps(judged)]})


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError:
        raise UsageError(
            "Ray Data is not installed",
            "`--on ray` needs the extra `ray`, here and on each machine of the cluster",
            "pip install 'stillhouse[ray]'",
        ) from None
    return ray


def _join(ray: Any) -> None:
    address = os.environ.get("RAY_ADDRESS") or "local"
    join(ray, address, {"include_dashboard": False} if address == "local" else {})


def _cores(ray: Any) -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)) - 1)
