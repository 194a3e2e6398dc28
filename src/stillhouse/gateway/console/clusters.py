"""Accounts that act as one: which, why, how probable by chance, and what a person decides about them."""

from __future__ import annotations

from typing import get_args

from pydantic import ValidationError
from starlette.responses import RedirectResponse, Response

from stillhouse.gateway import stands
from stillhouse.gateway.console.pages import names_of
from stillhouse.gateway.console.standings import OFF, watching_of
from stillhouse.gateway.console.visit import Visit, page, problem
from stillhouse.gateway.decisions import AnswerCluster
from stillhouse.gateway.store.findings import Answer
from stillhouse.guard import clusters as searching


async def clusters(visit: Visit) -> Response:
    """Those that wait for a person first, and the searches that were made."""
    watching = watching_of(visit)
    if watching is None:
        return problem(visit, 404, OFF)
    found, made = await watching.ask(lambda steps: (stands.acting_as_one(steps), stands.searches(steps)))
    return page(
        visit,
        "clusters.html",
        found=found,
        searches=made,
        looks=searching.LOOKS,
        fewest=searching.FEWEST,
        month_named=stands.month_named,
    )


async def cluster(visit: Visit) -> Response:
    return await _shown(visit)


async def decide(visit: Visit) -> Response:
    """A person decides for all accounts of a cluster, with a reason that their customers may read."""
    watching, answer = watching_of(visit), visit.form.get("decision", "")
    if watching is None:
        return problem(visit, 404, OFF)
    if answer not in get_args(Answer)[1:]:
        return problem(visit, 400, "There is no such decision.")
    reason, settings = visit.form.get("reason", "").strip(), visit.gateway.config.detection
    try:
        order = AnswerCluster.model_validate({"decision": answer, "reason": reason})
    except ValidationError:
        return await _shown(visit, "Say why: it is recorded, and shown to the customers.", reason, 422)
    number, who = _number(visit), visit.session.operator
    await watching.ask(lambda steps: steps.answer(number, order.decision, settings, who, reason, visit.at))
    visit.console.log("console: act", operator=who, act=f"decide {answer}", subject=f"cluster:{number}")
    return RedirectResponse(f"/admin/clusters/{number}?done=cluster_{answer}", 303)


async def _shown(visit: Visit, fault: str = "", reason: str = "", status: int = 200) -> Response:
    watching = watching_of(visit)
    if watching is None:
        return problem(visit, 404, OFF)
    told = await watching.ask(lambda steps: stands.one_cluster(steps, _number(visit)))
    names = await names_of(visit, [each.account for each in told.accounts])
    return page(visit, "cluster.html", status, told=told, names=names, fault=fault, reason=reason)


def _number(visit: Visit) -> int:
    """0, which no cluster has, for what is no number."""
    id = visit.request.path_params["id"]
    return int(id) if id.isdecimal() and len(id) <= 18 else 0
