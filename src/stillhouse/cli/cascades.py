"""`stillhouse cascade`: which of a student's answers may be kept, and what the teacher is still asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stillhouse.cli.options import Json

if TYPE_CHECKING:
    from stillhouse.pipeline.replacing import Compared, Outcome

cascade_app = typer.Typer(
    rich_markup_mode=None, help="Serve a student with its teacher behind it: see docs/cascade.md."
)
_LOST = {
    "regressions": "answers that the teacher has right and the cascade has not",
    "score": "the cascade's score below the teacher's",
    "differences": "answers that differ from the teacher's (the test prompts have no reference)",
}


RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's name or folder; the newest that fits.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="What the cascade is called in this workspace.")]
Most = Annotated[float, typer.Option(min=0.0001, max=0.5, help="The most that may be lost, of 1.")]
Confidence = Annotated[float, typer.Option(min=0.5, max=0.9999, help="Of the promise.")]
Lost = Annotated[
    Literal["regressions", "score"],
    typer.Option(help="What is lost: right answers of the teacher, or its mean score."),
]


@cascade_app.command("calibrate")
def cascade_calibrate(
    run_name: RunName,
    most: Most = 0.01,
    confidence: Confidence = 0.95,
    lost: Lost = "regressions",
    as_json: Json = False,
) -> None:
    """Find out which answers of a run's student a gateway may keep; writes the file that it decides by."""
    from stillhouse.cli import show
    from stillhouse.cli.live import live
    from stillhouse.pipeline import need_extra
    from stillhouse.pipeline.cascading import calibrate_run
    from stillhouse.workspace import open_workspace

    need_extra("train", ("torch", "transformers"))
    run = open_workspace(Path.cwd()).find_run(run_name)
    with live(as_json) as watch:
        _, figures = calibrate_run(run, most, round(1 - confidence, 10), lost == "score", watch)
    figures |= {"calibration": str(run.cascade)}
    show.result(figures, _text(figures), as_json)


@cascade_app.command("replace")
def cascade_replace(
    name: Name,
    run_name: RunName,
    margin: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="How much of 1 its score may lie below, to be no worse.")
    ] = 0.01,
    most: Most = 0.01,
    confidence: Confidence = 0.95,
    lost: Lost = "regressions",
    as_json: Json = False,
) -> None:
    """Put a run's student to work where it is no worse than the one there; calibrates it anew."""
    from dataclasses import asdict

    from stillhouse.cli import show
    from stillhouse.cli.live import live
    from stillhouse.ledger import Ledger
    from stillhouse.pipeline import need_extra
    from stillhouse.pipeline.replacing import replace
    from stillhouse.workspace import open_workspace

    need_extra("train", ("torch", "transformers"))
    workspace = open_workspace(Path.cwd())
    run = workspace.find_run(run_name)
    promise = most, round(1 - confidence, 10), lost == "score"
    with Ledger.open(workspace) as ledger, live(as_json) as watch:
        done = replace(workspace, ledger, name, run, margin, promise, watch)
    show.result(asdict(done), _replaced(done, name, str(workspace.cascade(name))), as_json)
    if not done.replaced:
        raise typer.Exit(1)


@cascade_app.command("rollback")
def cascade_rollback(
    name: Name,
    reason: Annotated[str, typer.Option(help="Why; it is kept in the ledger, so name no person in it.")] = "",
    as_json: Json = False,
) -> None:
    """Put the student to work that was there before, with the calibration that it had."""
    from dataclasses import asdict

    from stillhouse.cli import show
    from stillhouse.ledger import Ledger
    from stillhouse.pipeline.replacing import roll_back
    from stillhouse.workspace import open_workspace

    workspace = open_workspace(Path.cwd())
    with Ledger.open(workspace) as ledger:
        done = roll_back(workspace, ledger, name, reason)
    show.result(asdict(done), _replaced(done, name, str(workspace.cascade(name))), as_json)


def _replaced(done: Outcome, name: str, link: str) -> str:
    lines = []
    if done.compared is not None:
        lines += _compared(done.compared)
    if done.figures is not None:
        lines.append(_text(dict(done.figures) | {"calibration": f"leaf {done.leaf}"}))
    if not done.replaced:
        return "\n".join([*lines, f"stays      {done.at_work}: {done.why}"])
    lines.append(
        f"at work    {done.at_work} in {name}, by leaf {done.leaf}"
        + (f"; before it {done.before}" if done.before else "")
    )
    lines.append(f"next       serve {link}/student anew, and give the gateway a SIGHUP")
    return "\n".join(lines)


def _compared(found: Compared) -> list[str]:
    if found.difference is None:
        return [f"compared   on no prompt; {found.left_out:,} left out"]
    span = (
        "no interval"
        if found.low is None or found.high is None
        else f"{100 * found.low:+.2f} to {100 * found.high:+.2f}"
    )
    lines = [
        f"compared   {found.new:.1%} against {found.old:.1%} on {found.n:,} prompts,"
        f" {found.left_out:,} left out: {100 * found.difference:+.2f} points ({span}),"
        f" margin {100 * found.margin:g}: {found.ruling}"
    ]
    if found.before:
        margins = ", ".join(f"{100 * each:g}" for each in found.before)
        lines.append(f"           compared before with another margin ({margins}): this one proves nothing")
    return lines


def _text(figures: dict[str, Any]) -> str:
    promise = figures["promise"]
    lines = [
        f"teacher    {figures['teacher']:.1%} of {figures['n']:,} prompts;"
        f" the student alone {figures['student']:.1%}",
        _promised("promise", promise, figures),
        *(_promised(f"  {name}", each, figures) for name, each in figures["families"].items()),
        f"order      saves {100 * figures['score']['area']:.2f} points over random deferral, on average;"
        f" the mean log-probability alone {100 * figures['logprob']['area']:.2f}",
        f"written    {figures['calibration']}",
    ]
    if figures["left_out"]:
        lines.append(f"left out   {figures['left_out']:,} test prompts without an answer or a score")
    return "\n".join(lines)


def _promised(name: str, promise: dict[str, Any], figures: dict[str, Any]) -> str:
    if promise["threshold"] is None:
        more = promise["more"]
        need = "and no number of rows like these would do" if more is None else f"{more:,} more needed"
        return f"{name:<10} not attainable with this calibration set of {promise['n']:,}, {need}"
    level = 1 - figures["level"]
    return (
        f"{name:<10} {promise['deferred']:.1%} deferred: with {level:.0%} confidence at most"
        f" {100 * figures['most']:g} points lost ({_LOST[figures['lost']]}); {100 * promise['loss']:.2f} seen"
    )
