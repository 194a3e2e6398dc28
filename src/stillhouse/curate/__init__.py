"""curate: from exchanges to samples. Every row is kept, dropped or set aside as unscored, with a reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq

from stillhouse.curate import leaks
from stillhouse.curate.funnel import Filter, Judged, Row, put_through
from stillhouse.curate.mix import Losses, mixed
from stillhouse.curate.recalled import NAME, recalled_of, resting_on
from stillhouse.curate.rows import DROPPED, SAMPLES, exchanges, references, sample_of_each, write
from stillhouse.curate.steps import GROUP, chosen, knows_references, read_by
from stillhouse.curate.verified import whole_prompts
from stillhouse.ledger import Ledger
from stillhouse.recipe import Recipe
from stillhouse.records import Watch, unwatched
from stillhouse.scoring import BUILTIN, Scorer
from stillhouse.workspace import RunFolder

__all__ = [
    "DROPPED",
    "GROUP",
    "SAMPLES",
    "Curated",
    "Filter",
    "Row",
    "curate",
    "read_by",
    "recalled_of",
    "resting_on",
]

Alone = Callable[[RunFolder, Recipe], Iterator[list[Judged]]]
"""Yields the exchanges in order, each after the steps that look at it alone."""


@dataclass(frozen=True, slots=True)
class Curated:
    """Counts that balance: `rows` = `kept` + the sum of `reasons` + the sum of `unscored`.

    `reasons` are those of dropped rows, `families` count the kept ones, `digest` is over the kept rows.
    `funnel` has an entry for each filter in order (see `Tally.funnel`), `balance` the same sum for each
    family and teacher, `leaks` what `leaks.report` says of each evaluation set, and `draws` the yield where
    several answers to a prompt were chosen from.
    """

    rows: int
    kept: int
    reasons: dict[str, int]
    families: dict[str, int]
    digest: str
    transform: int
    unscored: dict[str, int] = field(default_factory=dict)
    funnel: list[dict[str, Any]] = field(default_factory=list)
    balance: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    leaks: list[dict[str, Any]] = field(default_factory=list)
    draws: dict[str, int] | None = None


def curate(
    run: RunFolder,
    recipe: Recipe,
    ledger: Ledger,
    watch: Watch = unwatched,
    scorers: Mapping[str, Scorer] = BUILTIN,
    losses: Losses | None = None,
    alone: Alone | None = None,
) -> Curated:
    """Judge every exchange of the run, write `samples.parquet` and `dropped.parquet`, log each kept row.

    The ledger gets one `transform` leaf (what was done, by which settings) and one `row` leaf a sample,
    which names the exchange leaves that the sample was made from. Rows of a recalled decision are dropped,
    whatever else holds of them. `losses` measures how hard a row is for a
    student, where the recipe's mix asks for it, and `alone` takes the steps that look at one row alone
    somewhere else. Memory follows the number of rows only where rows are compared: see docs/curating.md.
    Raises UsageError where a filter, a file or a package that the recipe names is missing.
    """
    settings = recipe.curate
    run.unmixed.unlink(missing_ok=True)
    exams = leaks.exams(run.prompts, settings.leak_sets)
    sample = sample_of_each(run.exchanges) if settings.near_duplicates else ()
    plan = chosen(settings, scorers, exams, sample)
    total = pq.read_metadata(run.exchanges).num_rows
    transform = ledger.append(
        "transform",
        {"run": run.root.name, "stage": "curate", "settings": settings.model_dump(), "rows": total},
    )
    batches: Iterator[list[Judged]]
    if alone is None:
        known = references(run.prompts) if knows_references(settings) else {}
        batches = (put_through(batch, plan.alone) for batch in exchanges(run.exchanges, known))
    else:
        batches = alone(run, recipe)
    names, recalled = plan.names, recalled_of(run, ledger)
    if recalled:
        batches, names = (recalled.judge(batch) for batch in batches), (NAME, *names)
    if plan.draws is not None:
        batches = whole_prompts(batches)
    judged: Iterator[list[Judged]] = (put_through(batch, plan.ordered) for batch in batches)
    if settings.mix is not None:
        judged, names = mixed(judged, settings.mix, recipe.run.seed, losses, run), (*names, "mix")
    tally, digest = write(judged, run, ledger, transform, exams, total, watch)
    return Curated(
        rows=total,
        kept=sum(tally.reasons("keep").values()),
        reasons=tally.reasons("drop"),
        families=tally.families("keep"),
        digest=digest,
        transform=transform,
        unscored=tally.reasons("unscored"),
        funnel=tally.funnel(names),
        balance={"families": tally.balance(3), "teachers": tally.balance(4)},
        leaks=[leaks.report(exam, settings.leaks) for exam in exams],
        draws=None if plan.draws is None else {"prompts": plan.draws.prompts, "answers": plan.draws.answers},
    )
