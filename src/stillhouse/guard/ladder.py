"""Which step is due against an account that seems to copy the model, and what each step takes from it. Pure.

    observe -> notify -> throttle -> withhold -> mark -> review -> kill

Steps climb one at a time, at least so long apart as the settings say. Up to `review` it takes a score above
the flag's threshold, which one ordinary account in a hundred reaches; for `kill` it takes a person, or a
score above the kill's and an operator who said that no person is needed. `mark` is a step only where the
operator wants one. Only the account's own requests make a score: signals from other providers make none, and
so stop nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any, Literal, NamedTuple, get_args

from stillhouse.errors import UsageError
from stillhouse.guard.asked import Denied, Route
from stillhouse.guard.config import Detection, Leaks
from stillhouse.guard.limits import Limit, Subject
from stillhouse.guard.lines import Lines
from stillhouse.guard.scoring import Pattern

Rung = Literal["observe", "notify", "throttle", "withhold", "mark", "review", "kill"]
RUNGS: tuple[Rung, ...] = get_args(Rung)
Decision = Literal["review", "keep", "undo", "kill"]
DECISIONS: tuple[Decision, ...] = get_args(Decision)

# What of it a customer is told, by rung.
DOES: Mapping[Rung, str] = {
    "observe": "nothing",
    "notify": "nothing but this notice",
    "throttle": "a lower limit of requests and of tokens a day",
    "withhold": "a lower limit, and no log probabilities and no hidden reasoning",
    "mark": "as before, and answers bear a mark of this account where the model has one",
    "review": "as before, until a person has decided",
    "kill": "all requests are refused",
}
BY_HAND = "by_hand"
CLUSTER = "cluster"  # found among accounts that act as one, for which a person put it to review
STANDING, APPEAL = "/v1/standing", "/v1/standing/appeal"
_DAY = 86_400.0
_LOGPROBS = "message.output_text.logprobs"


class Standing(NamedTuple):
    """Where an account stands: its rung, since when (Unix seconds), whether it is there in shadow only, and
    the code of the reason.

    `alarmed` is when its score was last above the flag's threshold. After an undo the reason `spared` makes
    no step until `spared_until`. `declared` is the use that it declared, `appeal` the number of its open
    appeal or 0.
    """

    account: str
    rung: Rung = "observe"
    since: float = 0.0
    shadow: bool = True
    code: str = ""
    alarmed: float = 0.0
    spared: str = ""
    spared_until: float = 0.0
    declared: str = ""
    appeal: int = 0


def code_of(pattern: Pattern) -> str:
    """The reason code of one way of copying a model."""
    return f"copying_{pattern.name}"


def climbs(standing: Standing, score: float, lines: Lines, settings: Detection, now: float) -> bool:
    """Whether a step is due unless its reason is spared: cheap, to be asked at every request."""
    if score <= lines.flag_of(standing.declared) or standing.appeal:
        return False
    rung = _rung(standing, settings)
    if rung == "kill" or (rung != "observe" and now - standing.since < settings.step_hours * 3600.0):
        return False
    return rung != "review" or (settings.automatic and score > lines.kill_of(standing.declared))


def climbed(
    standing: Standing, score: float, code: str, lines: Lines, settings: Detection, now: float
) -> Standing | None:
    """The standing after the step that is due; None where none is.

    None is due while an appeal is open, and none for a reason that a person has looked at of late.
    """
    if not climbs(standing, score, lines, settings, now):
        return None
    if standing.spared == code and now < standing.spared_until:
        return None
    above = RUNGS[RUNGS.index(_rung(standing, settings)) + 1 :]
    rung = next(each for each in above if each != "mark" or settings.mark)
    return standing._replace(rung=rung, since=now, shadow=settings.mode == "shadow", code=code, alarmed=now)


def lapsed(standing: Standing, settings: Detection, now: float) -> Standing | None:
    """Back at the beginning where the score was low for long; None where the step stays. What a person is to
    look at, or has decided, stays."""
    quiet = now - max(standing.alarmed, standing.since)
    if standing.rung not in ("notify", "throttle", "withhold", "mark") or quiet <= settings.lapse_days * _DAY:
        return None
    return standing._replace(rung="observe", since=now, code="")


def decided(
    standing: Standing, decision: Decision, settings: Detection, now: float, code: str = BY_HAND
) -> Standing:
    """After a person's decision. `undo` gives back all that was taken, and its reason makes no step for a
    while; `keep` turns an appeal down; `review` has this `code` where no step had one before. Raises
    UsageError for what is not to be decided."""
    rung = _rung(standing, settings)
    shadow = settings.mode != "enforce"
    if decision == "undo":
        if standing.rung == "observe":
            raise UsageError("there is nothing to undo", "the account stands at the beginning", "")
        return standing._replace(
            rung="observe",
            since=now,
            code="",
            spared=standing.code,
            spared_until=now + settings.spared_days * _DAY,
            appeal=0,
        )
    if decision == "keep":
        if not standing.appeal:
            raise UsageError("there is nothing to keep to", "no appeal of this account is open", "")
        return standing._replace(appeal=0)
    if decision == "review":
        if rung in ("review", "kill"):
            raise UsageError("it is there already", f"the account stands at {rung}", "decide on it")
        code = standing.code or code
        return standing._replace(rung="review", since=now, shadow=shadow, code=code, alarmed=now)
    if rung != "review":
        raise UsageError(
            "the account cannot be stopped yet",
            f"it stands at {rung}, and a kill comes after the review",
            "put it to review first; whom you cannot wait for: `stillhouse guard accounts block`",
        )
    return standing._replace(rung="kill", since=now, shadow=shadow, appeal=0)


def in_force(standing: Standing | None, settings: Detection) -> Rung:
    """What is done to the requests of an account: nothing that it did not reach while steps were enforced."""
    return "observe" if standing is None or settings.mode != "enforce" or standing.shadow else standing.rung


def _rung(standing: Standing, settings: Detection) -> Rung:
    """From where it climbs: what was reached in shadow counts for nothing once steps are enforced."""
    return "observe" if standing.shadow and settings.mode == "enforce" else standing.rung


# What the steps take


def stopped(standing: Standing, contact: str) -> Denied:
    """What a request of a killed account is answered."""
    other = f", or write to {contact}" if contact else ""
    return Denied(
        403,
        "account_stopped",
        f"this account was stopped ({standing.code}): its requests look like copying the model. Read why at "
        f"GET {STANDING}; to have a person look at it again, POST your reasons to {APPEAL}{other}",
        kind="permission_error",
        more={"reason_code": standing.code, "standing": STANDING, "appeal": APPEAL},
    )


def header_of(rung: Rung, code: str) -> bytes:
    return f"{rung}; code={code}".encode()


def takes(rung: Rung, what: Literal["throttle", "withhold", "mark"]) -> bool:
    return RUNGS.index(rung) >= RUNGS.index(what)


def slowed(subjects: tuple[Subject, ...], settings: Detection) -> tuple[Subject, ...]:
    """The account's limits while it is throttled: a share of its requests and of its tokens a day. Money and
    what is in flight stay, and so do tokens a minute: one long request needs as many as before."""
    account, *others = subjects
    limits, most = [], settings.throttle_requests_per_minute
    for limit in account.limits:
        amount = max(1, int(limit.amount * settings.throttle_share))
        if limit.measure == "requests" and limit.window == "minute":
            most = min(most, amount)
        elif limit.measure == "requests" or (limit.window == "day" and limit.measure != "money"):
            limits.append(replace(limit, amount=amount))
        else:
            limits.append(limit)
    return (replace(account, limits=(Limit("requests", "minute", most), *limits)), *others)


@cache
def stricter(leaks: Leaks) -> Leaks:
    """A tier's rules while log probabilities and hidden reasoning are withheld."""
    return leaks.model_copy(update={"logprobs": "refuse", "reasoning": "strip"})


def without_logprobs(route: Route, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The request as if it had not asked for log probabilities: the object itself where it did not."""
    said = body.get("logprobs")
    kept = {name: value for name, value in body.items() if name not in ("logprobs", "top_logprobs")}
    include = body.get("include")
    if route == "responses" and isinstance(include, list) and _LOGPROBS in include:
        kept["include"] = [each for each in include if each != _LOGPROBS]
        return kept
    asked = (said is not None and said is not False) or bool(body.get("top_logprobs"))
    return kept if asked else body
