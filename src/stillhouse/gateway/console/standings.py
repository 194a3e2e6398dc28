"""Accounts that seem to copy the model: who stands where and why, and the decisions of people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from starlette.responses import RedirectResponse, Response

from stillhouse.errors import StillhouseError
from stillhouse.gateway import stands
from stillhouse.gateway.console.pages import names_of
from stillhouse.gateway.console.visit import Visit, page, problem, status_of
from stillhouse.gateway.steps import Steps, read_reasons
from stillhouse.gateway.store.standings import Step
from stillhouse.gateway.watcher import Watcher
from stillhouse.guard import ladder, orders
from stillhouse.guard.ladder import Decision, Standing

ROWS = 50
TRAIL = 100
OFF = "No account is watched: detection.mode is off."


@dataclass(frozen=True, slots=True)
class Row:
    """`score` and `requests` are None where nothing is kept of the account's requests."""

    standing: Standing
    score: float | None
    requests: int | None
    at: float | None


async def standings(visit: Visit) -> Response:
    """Open appeals, then accounts on a step, then the highest scores."""
    watching = watching_of(visit)
    if watching is None:
        return problem(visit, 404, OFF)
    appeals, rows, clusters = await watching.ask(_rows)
    names = await names_of(visit, [row.standing.account for row in rows])
    return page(
        visit,
        "standings.html",
        appeals=appeals,
        rows=rows,
        clusters=clusters,
        names=names,
        settings=visit.gateway.config.detection,
        lines=watching.lines,
        observed=watching.observed,
        unobserved=watching.unobserved.total(),
    )


def _rows(steps: Steps) -> tuple[list[Step], list[Row], int]:
    """Appeals; rows; how many clusters wait for a person."""
    store = steps.standings
    scored: dict[str, tuple[float, int, float]] = {}
    for account, score, requests, at in store.ranked(ROWS):
        scored.setdefault(account, (score, requests, at))
    rows = []
    for standing in store.held():
        known = store.strongest(standing.account)
        told = (None, None, None) if known is None else (known.score, known.requests, known.at)
        rows.append(Row(standing, *told))
    on_step = {row.standing.account for row in rows}
    rows.sort(key=lambda row: (-ladder.RUNGS.index(row.standing.rung), -(row.score or 0.0)))
    rest = [account for account in scored if account not in on_step]
    rows += [Row(store.standing(account), *scored[account]) for account in rest]
    return store.appeals(), rows, store.findings.open()


async def standing(visit: Visit) -> Response:
    return await _shown(visit, visit.request.path_params["id"])


async def decide(visit: Visit) -> Response:
    """A person decides, with a reason that the customer reads."""
    id, form = visit.request.path_params["id"], visit.form
    watching, decision = watching_of(visit), form.get("decision", "")
    if watching is None:
        return problem(visit, 404, OFF)
    if decision not in ladder.DECISIONS:
        return problem(visit, 400, "There is no such decision.")
    chosen: Decision = decision
    reason, settings = form.get("reason", "").strip(), visit.gateway.config.detection
    try:
        orders.Because(reason=reason)
    except ValidationError:
        return await _shown(visit, id, "Say why: it is recorded, and shown to the customer.", reason, 422)
    if chosen == "kill" and form.get("sure") != "yes":
        return await _shown(visit, id, "Tick that you looked at it yourself.", reason, 422)
    if form.get("seen") != await watching.ask(lambda steps: _seen(steps, id)):
        return await _shown(visit, id, "A step came while you looked at it: see how it is now.", reason, 409)
    try:
        await watching.ask(
            lambda steps: steps.decide(id, chosen, settings, visit.session.operator, reason, visit.at)
        )
    except StillhouseError as error:
        told = ": ".join(part for part in (error.what, error.why) if part)
        return await _shown(visit, id, told, reason, status_of(error))
    visit.console.log(
        "console: act", operator=visit.session.operator, act=f"decide {chosen}", subject=f"account:{id}"
    )
    return RedirectResponse(f"/admin/standings/{id}?done={chosen}", 303)


async def _shown(visit: Visit, id: str, fault: str = "", reason: str = "", status: int = 200) -> Response:
    watching = watching_of(visit)
    if watching is None:
        return problem(visit, 404, OFF)
    account = await visit.gateway.accounts.ask(lambda register: register.account(id))
    told = await watching.ask(lambda steps: _told(steps, id))
    return page(
        visit,
        "standing.html",
        status,
        account=account,
        settings=visit.gateway.config.detection,
        flag=watching.lines.flag_of(told["standing"].declared),
        kill=watching.lines.kill_of(told["standing"].declared),
        source=watching.lines.source,
        does=ladder.DOES,
        force=ladder.in_force(told["standing"], visit.gateway.config.detection),
        fault=fault,
        reason=reason,
        **told,
    )


def _told(steps: Steps, id: str) -> dict[str, Any]:
    known = steps.standings.strongest(id)
    pattern, reasons = stands.looks_like(known)
    trail = steps.standings.steps(id, TRAIL)
    return {
        "standing": steps.standings.standing(id),
        "known": known if pattern else None,  # else another version wrote it
        "reasons": reasons,
        "pattern": pattern,
        "clusters": steps.standings.findings.of(id),
        "trail": [(step, read_reasons(step), steps.differs(step)) for step in trail],
        "seen": str(trail[0].id if trail else 0),
    }


def _seen(steps: Steps, id: str) -> str:
    trail = steps.standings.steps(id, 1)
    return str(trail[0].id if trail else 0)


def watching_of(visit: Visit) -> Watcher | None:
    return visit.gateway.watching if visit.gateway.config.detection.mode != "off" else None
