"""Student-driven rounds: an earlier run's scores say which further prompts the next one collects."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import rfc8785

from stillhouse.collect import PromptSet
from stillhouse.collect.focus import Scored, expected_losses, shares
from stillhouse.collect.grow import Grown
from stillhouse.collect.spool import read_prompts
from stillhouse.errors import UsageError
from stillhouse.ledger import Ledger
from stillhouse.recipe import Focus, Recipe, load_recipe, run_digest
from stillhouse.text import conversation
from stillhouse.workspace import RunFolder, Workspace, read_marker

if TYPE_CHECKING:
    from stillhouse.evaluate import Prediction

SHARE = 5  # a round is a fifth of what the run was trained on, where nobody says how many


def focused(recipe: Recipe, workspace: Workspace, ledger: Ledger, name: str, count: int | None) -> Recipe:
    """The recipe with further prompts of the families in which the run called `name` lost most.

    What that run had beyond the recipe stays in. The decision is a `transform` leaf, written once. Raises
    UsageError where the run has no scores, was made from other prompts, or lost nothing.
    """
    from stillhouse.evaluate import read_predictions

    run = workspace.find_run(name)
    old = load_recipe(run.recipe)
    if old.prompts.focus is not None and read_marker(run, "evaluate") is None:
        # The newest run of that name is a round under way: the same command goes on with it.
        run = workspace.find_run(old.prompts.focus.run)
        old = load_recipe(run.recipe)
    collected = read_marker(run, "collect")
    if collected is None or read_marker(run, "evaluate") is None:
        raise UsageError(
            f"the run {run.root.name} has no scores",
            "it was not evaluated, or its evaluation is no longer current",
            f"run `stillhouse run {run.recipe}`",
        )
    _check_base(recipe, old, run)
    predictions = run.predictions.read_bytes()
    families = scored_families(read_predictions(run.predictions))
    wanted = shares(families, count or max(1, collected["result"]["prompts"] // SHARE))
    if not wanted:
        raise UsageError(
            f"the student of {run.root.name} lost nothing that more prompts could bring back",
            "it is at the teacher's level in every family" if families else "no prompt was scored for both",
            "give references and scorers" if not families else "collect more with a larger `prompts.count`",
        )
    before = old.prompts.focus.further if old.prompts.focus else {}
    further = {family: before.get(family, 0) + wanted.get(family, 0) for family in {**before, **wanted}}
    focus = Focus(run=run.root.name, further=dict(sorted(further.items())))
    made = recipe.model_copy(update={"prompts": recipe.prompts.model_copy(update={"focus": focus})})
    losses = expected_losses(families)
    new = workspace.run(made.run.name, run_digest(made)).root.name
    body = {
        "run": new,
        "stage": "focus",
        "of": run.root.name,
        "predictions": hashlib.sha256(predictions).hexdigest(),
        "decided_on": slice_of(old),
        "further": sum(wanted.values()),
    }
    table = [
        {**asdict(of), "expected_loss": losses[of.family], "further": wanted.get(of.family, 0)}
        for of in families
    ]
    if decision_of(ledger, new) is None:
        ledger.append("transform", body, {"families": rfc8785.dumps(table)})
    return made


def scored_families(rows: Sequence[Prediction]) -> list[Scored]:
    """Each family's scores over the prompts that teacher and student were both scored on, by name."""
    scores: dict[str, dict[str, float]] = {"teacher": {}, "student": {}}
    places: dict[str, tuple[str, str]] = {}
    for row in rows:
        if row.system in scores and row.score is not None:
            scores[row.system][row.prompt_id] = row.score
            places[row.prompt_id] = row.family, row.group or row.prompt_id
    families: dict[str, list[str]] = {}
    for name in sorted(scores["teacher"].keys() & scores["student"].keys()):
        families.setdefault(places[name][0], []).append(name)
    return [
        Scored(
            family,
            len(names),
            len({places[name][1] for name in names}),
            sum(scores["teacher"][name] for name in names) / len(names),
            sum(scores["student"][name] for name in names) / len(names),
        )
        for family, names in sorted(families.items())
    ]


def slice_of(recipe: Recipe) -> str:
    """Which prompts a run is scored on, in words."""
    source = recipe.evaluate.source or recipe.prompts.source
    if source.startswith("embedded:"):
        return f"{source}, {recipe.evaluate.split}"
    return "evaluate.source" if recipe.evaluate.source else "evaluate.held_out"


def decision_of(ledger: Ledger, run: str) -> tuple[int, dict[str, Any]] | None:
    """The leaf by which a run's focus was decided; None for a recipe that somebody wrote by hand."""
    for leaf in ledger.leaves("transform"):
        if leaf.body.get("stage") == "focus" and leaf.body["run"] == run:
            return leaf.index, leaf.body
    return None


def account(
    focus: Focus,
    prompts: PromptSet,
    grown: Sequence[Grown],
    workspace: Workspace,
    run: RunFolder,
    ledger: Ledger,
) -> dict[str, Any]:
    """What became of a focus, for the marker: further = from the source + grown + wanting, by family.

    `tested` counts the test prompts of this run that decided which prompts it learns from: what it scores on
    them is no claim about new prompts. None where the earlier run's prompts are no longer there.
    """
    decision = decision_of(ledger, run.root.name)
    found = {one.order.family: len(one.prompts) for one in grown if one.order.family is not None}
    return {
        "run": focus.run,
        "decided_on": None if decision is None else decision[1]["decided_on"],
        "transform": None if decision is None else decision[0],
        "tested": _tested_before(focus, prompts, workspace),
        "families": {
            family: {
                "further": count,
                "source": count - prompts.short.get(family, 0),
                "grown": found.get(family, 0),
                "wanting": prompts.short.get(family, 0) - found.get(family, 0),
            }
            for family, count in focus.further.items()
        },
    }


def _tested_before(focus: Focus, prompts: PromptSet, workspace: Workspace) -> int | None:
    try:
        earlier = read_prompts(workspace.find_run(focus.run).prompts, "test")
    except (UsageError, OSError, pa.ArrowException):
        return None
    asked = {conversation((m.role, m.content) for m in prompt.messages) for prompt in earlier}
    return sum(conversation((m.role, m.content) for m in prompt.messages) in asked for prompt in prompts.test)


def focus_note(account: dict[str, Any]) -> str | None:
    """What a reader of this run's scores must know; None where its test prompts decided nothing."""
    if account["tested"] == 0:
        return None
    how_many = "an unknown number" if account["tested"] is None else f"{account['tested']:,}"
    return (
        f"{how_many} of the test prompts also decided what to collect (focus on {account['run']}): scores on "
        "them are no claim about new prompts"
    )


def _check_base(recipe: Recipe, old: Recipe, run: RunFolder) -> None:
    """Raises UsageError when the recipe does not begin with the prompts of the run."""

    def base(given: Recipe) -> dict[str, Any]:
        tree = {f"prompts.{key}": value for key, value in given.prompts.model_dump(exclude={"focus"}).items()}
        if not (given.evaluate.source or given.prompts.source.startswith("embedded:")):
            tree |= {"evaluate.held_out": given.evaluate.held_out, "run.seed": given.run.seed}
        return tree

    ours, theirs = base(recipe), base(old)
    differ = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    if differ:
        raise UsageError(
            f"{run.root.name} was made from other prompts than this recipe names",
            f"they differ in {', '.join(differ)}, so it is not known which prompts it did not use",
            f"use the recipe of that run: {run.recipe}",
        )
