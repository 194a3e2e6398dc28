"""What the administration can do about accounts that seem to copy the model: the same as the command line,
in the same trail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from stillhouse.errors import LedgerError, StorageError
from stillhouse.gateway import stands
from stillhouse.gateway.operations import API, Desk, Listed, Operation
from stillhouse.gateway.stands import ActAsOne, Stands, TakenStep, Told
from stillhouse.gateway.steps import Steps
from stillhouse.gateway.store.changing import Act
from stillhouse.gateway.store.counts import StoreDown
from stillhouse.gateway.store.rows import NotThere
from stillhouse.guard.ladder import Decision
from stillhouse.guard.orders import SHOWN, Because, Limit
from stillhouse.recipe.base import Table

AnyTold = TypeVar("AnyTold")


class First(Table):
    limit: Limit = 20


class Decide(Because):
    """The customer reads the reason, and not who gave it."""

    decision: Decision


class Declare(Because):
    use: Annotated[
        str, Field(max_length=64, pattern=SHOWN, description='"" where none is declared any more.')
    ]


@dataclass(frozen=True, slots=True)
class Forgotten:
    """`complete` is False where another process was reading just then: give the order again."""

    account: str
    complete: bool


class AnswerCluster(Because):
    """`review` puts every account of it there that is not yet, `dismiss` leaves them where they are."""

    decision: Literal["review", "dismiss"]


def list_standings(desk: Desk, _: str, first: First, act: Act) -> Listed[Stands]:
    return Listed(_asked(desk, lambda steps: stands.overview(steps, first.limit)))


def list_appeals(desk: Desk, _: str, order: None, act: Act) -> Listed[TakenStep]:
    return Listed(
        _asked(desk, lambda steps: [stands.taken(steps, step) for step in steps.standings.appeals()])
    )


def show_standing(desk: Desk, id: str, _: None, act: Act) -> Told:
    return _of(desk, id, lambda steps: None)


def decide(desk: Desk, id: str, order: Decide, act: Act) -> Told:
    settings = desk.config.detection
    return _of(
        desk, id, lambda steps: steps.decide(id, order.decision, settings, act.who, act.reason, act.at)
    )


def declare(desk: Desk, id: str, order: Declare, act: Act) -> Told:
    return _of(desk, id, lambda steps: steps.declare(id, order.use, act.who, act.reason, act.at))


def forget(desk: Desk, id: str, order: Because, act: Act) -> Forgotten:
    """Of what was known before, also where nobody is watched any more."""
    desk.register.account(id)
    return Forgotten(id, _answered(desk, lambda steps: steps.forget(id, act.who, act.reason, act.at)))


def list_clusters(desk: Desk, _: str, first: First, act: Act) -> Listed[ActAsOne]:
    return Listed(_asked(desk, lambda steps: stands.acting_as_one(steps, first.limit)))


def show_cluster(desk: Desk, id: str, _: None, act: Act) -> ActAsOne:
    return _asked(desk, lambda steps: stands.one_cluster(steps, _number(id)))


def answer_cluster(desk: Desk, id: str, order: AnswerCluster, act: Act) -> ActAsOne:
    settings = desk.config.detection

    def run(steps: Steps) -> ActAsOne:
        stands.one_cluster(steps, _number(id))
        steps.answer(_number(id), order.decision, settings, act.who, act.reason, act.at)
        return stands.one_cluster(steps, _number(id))

    return _asked(desk, run)


def _of(desk: Desk, account: str, change: Callable[[Steps], object]) -> Told:
    """Where an account stands after a change. Raises NotThere where there is no such account."""
    desk.register.account(account)

    def run(steps: Steps) -> Told:
        change(steps)
        return stands.told(steps, account)

    return _asked(desk, run)


def _asked(desk: Desk, question: Callable[[Steps], AnyTold]) -> AnyTold:
    if desk.config.detection.mode == "off":
        raise NotThere("no account is watched", "detection.mode is off", "set it to shadow")
    return _answered(desk, question)


def _answered(desk: Desk, question: Callable[[Steps], AnyTold]) -> AnyTold:
    if desk.steps is None:
        raise NotThere("no account is watched", "no steps are taken in this process", "ask the gateway")
    try:
        found: AnyTold = desk.steps(question)
    except (StorageError, LedgerError) as error:
        raise StoreDown(error.what, error.why, error.mend) from error
    return found


def _number(id: str) -> int:
    if not id.isdecimal() or len(id) > 18:
        raise NotThere(f"there is no cluster {id}", "its number is no number", "see the list")
    return int(id)


_OF_ACCOUNT, _OF_CLUSTER = f"{API}/accounts/{{id}}/standing", f"{API}/clusters/{{id}}"
DECISIONS: tuple[Operation, ...] = (
    Operation(
        "list_standings",
        "GET",
        f"{API}/standings",
        "Accounts on a step, and then those with the highest scores.",
        list_standings,
        Listed[Stands],
        First,
    ),
    Operation(
        "list_appeals",
        "GET",
        f"{API}/appeals",
        "Appeals that wait for a person, the oldest first.",
        list_appeals,
        Listed[TakenStep],
    ),
    Operation(
        "show_standing",
        "GET",
        _OF_ACCOUNT,
        "Where an account stands, what its score is the sum of, and every step.",
        show_standing,
        Told,
    ),
    Operation(
        "decide",
        "POST",
        f"{_OF_ACCOUNT}/decide",
        "Put it to review, turn its appeal down, undo its steps, or stop it after the review.",
        decide,
        Told,
        Decide,
    ),
    Operation(
        "declare",
        "POST",
        f"{_OF_ACCOUNT}/declare",
        "Record the use that it declared.",
        declare,
        Told,
        Declare,
    ),
    Operation(
        "forget",
        "DELETE",
        _OF_ACCOUNT,
        "Erase what is known of its requests, its steps and its standing.",
        forget,
        Forgotten,
        Because,
    ),
    Operation(
        "list_clusters",
        "GET",
        f"{API}/clusters",
        "Accounts that act as one, those that nobody decided on first.",
        list_clusters,
        Listed[ActAsOne],
        First,
    ),
    Operation("show_cluster", "GET", _OF_CLUSTER, "One cluster with its accounts.", show_cluster, ActAsOne),
    Operation(
        "answer_cluster",
        "POST",
        f"{_OF_CLUSTER}/decide",
        "Put its accounts to review, or leave them where they are.",
        answer_cluster,
        ActAsOne,
        AnswerCluster,
    ),
)
