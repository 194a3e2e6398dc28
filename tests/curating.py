"""Rows as collect writes them, and a run of them through the whole stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.collect import EXCHANGES
from stillhouse.curate import Curated, curate
from stillhouse.curate.rows import MESSAGES
from stillhouse.ledger import Ledger
from stillhouse.recipe import Recipe, parse_recipe
from stillhouse.workspace import RunFolder, Workspace

PROMPTS = pa.schema(
    [
        ("id", pa.string()),
        ("messages", MESSAGES),
        ("reference", pa.string()),
        ("scorer", pa.string()),
        ("split", pa.string()),
    ]
)


def recipe(**curating: Any) -> Recipe:
    return parse_recipe(
        {
            "run": {"name": "a"},
            "teacher": {"model": "m", "endpoint": "http://x/v1"},
            "prompts": {"source": "p"},
            "student": {"init": "s"},
            "curate": curating,
        }
    )


def row(number: int, answer: str, prompt: str | None = None, **more: Any) -> dict[str, Any]:
    return {
        "key": f"{number:064x}",
        "leaf": number,
        "decision": 0,
        "prompt_id": f"p{number}",
        "sample_index": 0,
        "messages": [{"role": "user", "content": prompt or f"question {number}", "extra": ""}],
        "answer": answer,
        "finish_reason": "stop",
        "refusal": None,
        "family": "f",
        "group": "",
        "teacher": "m",
        **more,
    }


def through(
    rows: list[dict[str, Any]], workspace: Workspace, prompts: Sequence[dict[str, Any]] = (), **curating: Any
) -> tuple[Curated, list[dict[str, Any]], list[dict[str, Any]]]:
    """The stage's account, the rows that it kept, and those that it did not. `losses`, `scorers` and `alone`
    go to `curate`, the rest into the recipe."""
    given = {name: curating.pop(name) for name in ("losses", "scorers", "alone") if name in curating}
    run = RunFolder(workspace.runs / "r")
    run.root.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=EXCHANGES), run.exchanges)
    pq.write_table(pa.Table.from_pylist(list(prompts), schema=PROMPTS), run.prompts)
    with Ledger.open(workspace) as ledger:
        done = curate(run, recipe(**curating), ledger, **given)
    return done, pq.read_table(run.samples).to_pylist(), pq.read_table(run.dropped).to_pylist()


def balances(done: Curated) -> bool:
    """in = kept + dropped + unscored in all, in every step, in every family and for every teacher."""
    whole = done.rows == done.kept + sum(done.reasons.values()) + sum(done.unscored.values())
    came = done.rows
    for step in done.funnel:
        whole &= step["in"] == came == step["dropped"] + step["unscored"] + step["out"]
        lost = step["in"] - step["out"]
        whole &= lost == sum(step["families"].values()) == sum(step["teachers"].values())
        came = step["out"]
    whole &= came == done.kept
    for groups in done.balance.values():
        for group in groups.values():
            whole &= group["rows"] == group["kept"] + group["dropped"] + group["unscored"]
        whole &= sum(group["rows"] for group in groups.values()) == done.rows
    return whole and {f: n["kept"] for f, n in done.balance["families"].items() if n["kept"]} == done.families


def declare(monkeypatch, *more: tuple[str, str], **named: str) -> None:
    from importlib.metadata import EntryPoint, EntryPoints

    points = [EntryPoint(name, value, "stillhouse.filters") for name, value in (*named.items(), *more)]
    monkeypatch.setattr(
        "stillhouse.curate.steps.entry_points", lambda group: EntryPoints(points).select(group=group)
    )
