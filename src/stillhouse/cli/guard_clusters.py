"""`stillhouse guard clusters`: accounts that act as one, and what a person decides about them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillhouse.cli.guard_ladder import Limit, Reason, opened_steps, stamp, stands_line
from stillhouse.cli.options import GUARD, Config, Json, Who, named

if TYPE_CHECKING:
    from stillhouse.gateway.stands import ActAsOne
    from stillhouse.gateway.store.findings import Search


def register(app: typer.Typer) -> None:
    """Give the command to `stillhouse guard`."""
    app.command("clusters")(clusters)


def clusters(
    cluster: Annotated[int | None, typer.Argument(metavar="NUMBER", help="Only this one, in full.")] = None,
    decision: Annotated[
        str | None, typer.Argument(metavar="DECISION", help="For all its accounts: review or dismiss.")
    ] = None,
    reason: Reason = "",
    who: Who = "",
    limit: Limit = 20,
    config: Config = GUARD,
    as_json: Json = False,
) -> None:
    """Accounts that act as one, those that nobody decided on first; by itself nothing is done about them."""
    import time
    from dataclasses import asdict

    from stillhouse.cli import show
    from stillhouse.gateway import stands

    with opened_steps(config) as (settings, steps):
        if cluster is None:
            found, made = stands.acting_as_one(steps, limit), stands.searches(steps)
            row = {"clusters": list(map(asdict, found)), "searches": [each._asdict() for each in made]}
            show.result(row, "\n".join(_overview(found, made)), as_json)
            return
        told = stands.one_cluster(steps, cluster)
        if decision is not None:
            answer = _answer(decision)
            steps.answer(cluster, answer, settings.detection, named(who), reason, time.time())
            told = stands.one_cluster(steps, cluster)
    show.result(asdict(told), "\n".join([*_lines(told), "", *map(stands_line, told.accounts)]), as_json)


def _answer(decision: str) -> Any:
    from stillhouse.errors import UsageError

    if decision not in ("review", "dismiss"):
        raise UsageError(
            f"{decision} is no decision on a cluster", "there are review, dismiss", "name one of them"
        )
    return decision


def _overview(found: list[ActAsOne], made: list[Search]) -> list[str]:
    lines = [line for each in found for line in (*_lines(each), "")] or ["no cluster was found", ""]
    return lines + [_search_line(each) for each in made] if made else [*lines, "no search was made yet"]


def _lines(told: ActAsOne) -> list[str]:
    decided = f"{told.answer} by {told.who}, {stamp(told.answered)}: {told.said}"
    return [
        f"cluster {told.id}  found {stamp(told.at)} in {told.month}",
        f"  {told.why}",
        f"  {decided if told.answer else 'nobody decided on it'}",
    ]


def _search_line(each: Search) -> str:
    from stillhouse.gateway.stands import month_named

    begun = f"search {each.look} of {month_named(each.month)}  begun {stamp(each.at)} by {each.replica}"
    if not each.ended:
        return f"{begun}: it has not ended"
    told = each.told
    said = f"{told['compared']:,} of {told['accounts']:,} accounts compared in {told['groups']:,} groups"
    return f"{begun}: {said}, {told['left']:,} of them left for lack of time"
