"""What `plan`, `run` and the commands of one stage do: call the pipeline, print what came back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillhouse.recipe import Recipe
    from stillhouse.workspace import Workspace


# What --json tells of collect's marker
COLLECTED = (
    "exchanges",
    "sent",
    "answered",
    "reused",
    "failed",
    "failures",
    "unknown",
    "cost",
    "answered_by",
)


def load(path: Path) -> tuple[Recipe, Workspace]:
    """The recipe and its workspace, which a first run makes."""
    from stillhouse.cli import show
    from stillhouse.recipe import load_recipe
    from stillhouse.workspace import find_workspace, init_workspace, open_workspace

    recipe = load_recipe(path)
    if find_workspace(Path.cwd()) is None:
        made = init_workspace(Path.cwd())
        show.say(
            f"workspace  {made.root}  (new: ledger and keys are made; docs/keys.md says how to keep them)"
        )
    return recipe, open_workspace(Path.cwd())


def plan(path: Path, as_json: bool, pilot: int = 0) -> None:
    from stillhouse import pipeline
    from stillhouse.cli import show
    from stillhouse.cli.live import live
    from stillhouse.ledger import Ledger

    recipe, workspace = load(path)
    with Ledger.open(workspace) as ledger, live(as_json or not pilot) as watch:
        planned = pipeline.plan(recipe, workspace, ledger, pilot=pilot, watch=watch)
    text = f"{show.plan_text(recipe, planned)}\nnext       stillhouse run {path}"
    show.result(show.plan_object(recipe, planned), text, as_json)


def cancel_batches(path: Path, as_json: bool) -> None:
    from stillhouse import pipeline
    from stillhouse.cli import show
    from stillhouse.cli.live import live

    recipe, workspace = load(path)
    with live(as_json) as watch:
        tally = pipeline.cancel_batches(recipe, workspace, watch)
    found = {"answered": tally.answered, "failures": tally.failures, "unknown": tally.unknown}
    ended = ", ".join(f"{count:,} {kind}" for kind, count in tally.failures.items())
    text = f"cancelled  {tally.answered:,} answers were ready and are kept" + (f"; {ended}" if ended else "")
    show.result(found, f"{text}\nnext       stillhouse collect {path}", as_json)


def run(
    path: Path,
    stages: Sequence[str] | None,
    as_json: bool,
    focus: str | None = None,
    count: int | None = None,
    ray_workers: int | None = None,
    cascade: tuple[Path, str | None] | None = None,
) -> None:
    """`cascade` names the settings of a guard, and the model there, from whose cascade is also learned."""
    from stillhouse import pipeline
    from stillhouse.cli import show
    from stillhouse.cli.live import live
    from stillhouse.cli.targets import tally_text
    from stillhouse.collect.prompts import name_broken
    from stillhouse.ledger import Ledger
    from stillhouse.report import write_report
    from stillhouse.workspace import read_marker

    if pipeline.follow_training():
        return
    recipe, workspace = load(path)
    with Ledger.open(workspace) as ledger:
        if (why := ledger.rolled_back()) is not None:
            show.say(f"warning    the ledger was rolled back or forked: {why}; see docs/ledger.md")
        if focus is not None:
            recipe = pipeline.focused(recipe, workspace, ledger, focus, count)
        if cascade is not None:
            from stillhouse.cli.landing import landed_from

            recipe, landed = landed_from(recipe, ledger, *cascade)
            show.say(landed.text, as_json)
        planned = pipeline.plan(recipe, workspace, ledger)
    show.say(show.plan_text(recipe, planned), as_json)
    with live(as_json) as watch:
        finished = pipeline.run(
            recipe, workspace, watch, stages or pipeline.STAGES, planned.prompts, ray_workers=ray_workers
        )
    report_file = str(write_report(finished.run)) if finished.evaluation is not None else None
    for notice in finished.notices:
        show.say(f"warning    {notice}", as_json)
    for stage in finished.skipped:
        done = "nothing new to ask" if stage == "collect" else "unchanged, not run again"
        show.say(f"{stage:<9} {done}", as_json)
    collected = (read_marker(finished.run, "collect") or {}).get("result", {})
    for line in [*show.collected_text(collected), *tally_text(collected.get("targets") or [])]:
        show.say(line, as_json)
    if cascade is not None:
        show.say(f"recipe     {finished.run.recipe}; `stillhouse run` with it goes on with this run", as_json)
    if focus is not None:
        path = finished.run.recipe
        show.say(f"recipe     {path}; for a recipe of your own:\n{show.focus_lines(recipe)}", as_json)
    found: dict[str, Any] = {
        "run": finished.run.root.name,
        "folder": str(finished.run.root),
        "report": report_file,
        "unchanged": list(finished.skipped),
        "notices": list(finished.notices),
        "broken_rows": name_broken(planned.prompts.broken),
        "collected": {name: collected.get(name) for name in COLLECTED} if collected else None,
        "grow": collected.get("grow"),
        "focus": collected.get("focus"),
        "landed": None if cascade is None else landed.found,
        "targets": collected.get("targets"),
        "evaluation": finished.evaluation,
    }
    if stages is None:
        show.result(found, show.scores_text(finished, report_file), as_json)
    else:
        order = [*pipeline.STAGES, "run"]
        following = order[order.index(stages[0]) + 1] if focus is None else "run"
        done = f"{stages[0]:<10} done, in {finished.run.root}\nnext       stillhouse {following} {path}"
        show.result(found, done, as_json)
