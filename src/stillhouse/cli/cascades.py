"""`stillhouse cascade`: which of a student's answers may be kept, and what the teacher is still asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from stillhouse.cli.options import Json

cascade_app = typer.Typer(
    rich_markup_mode=None, help="Serve a student with its teacher behind it: see docs/cascade.md."
)
_LOST = {
    "regressions": "answers that the teacher has right and the cascade has not",
    "score": "the cascade's score below the teacher's",
    "differences": "answers that differ from the teacher's (the test prompts have no reference)",
}


@cascade_app.command("calibrate")
def cascade_calibrate(
    run_name: Annotated[
        str, typer.Argument(metavar="RUN", help="A run's name or folder; the newest that fits.")
    ],
    most: Annotated[float, typer.Option(min=0.0001, max=0.5, help="The most that may be lost, of 1.")] = 0.01,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.9999, help="Of the promise.")] = 0.95,
    lost: Annotated[
        Literal["regressions", "score"],
        typer.Option(help="What is lost: right answers of the teacher, or its mean score."),
    ] = "regressions",
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
