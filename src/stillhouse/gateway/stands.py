"""Where accounts stand and why, and which act as one: what the command line and the admin API tell of it."""

from __future__ import annotations

from dataclasses import dataclass

from stillhouse.gateway.steps import Steps, read_reasons, reasons_of
from stillhouse.gateway.store.findings import Finding, Search
from stillhouse.gateway.store.rows import NotThere
from stillhouse.gateway.store.standings import Step, Watched
from stillhouse.guard.clusters import Cluster, in_words
from stillhouse.guard.evidence import Evidence
from stillhouse.guard.ladder import Rung
from stillhouse.guard.scoring import reading, shipped

TRAIL = 100  # steps of an account, and members of a list, at most


@dataclass(frozen=True, slots=True)
class Stands:
    """`score` and `requests` are null where nothing is kept of the account's requests; `appeal`: one is
    open."""

    account: str
    rung: Rung
    code: str
    shadow: bool
    score: float | None
    requests: int | None
    appeal: bool


@dataclass(frozen=True, slots=True)
class Term:
    """What of a score an account shows more or less of than ordinary ones, `of` this use or the account."""

    words: str
    of: str
    found: float
    ordinary: float
    adds: float


@dataclass(frozen=True, slots=True)
class TakenStep:
    """An entry of an account's trail, at Unix seconds. `witness` is `shown` where the ledger shows it, else
    why it does not."""

    id: int
    account: str
    at: float
    act: str
    who: str
    was: str
    rung: str
    shadow: bool
    code: str
    score: float | None
    reasons: list[Term]
    said: str
    replica: str
    leaf: int | None
    witness: str


@dataclass(frozen=True, slots=True)
class Told:
    """All that is known of where an account stands; `reasons` are what its score is the sum of now, `pattern`
    what they look like; `clusters` are the numbers of those that it is in. Moments are in Unix seconds."""

    account: str
    rung: Rung
    since: float
    shadow: bool
    code: str
    alarmed: float
    spared: str
    spared_until: float
    declared: str
    appeal: int
    score: float | None
    requests: int | None
    pattern: str
    reasons: list[Term]
    clusters: list[int]
    steps: list[TakenStep]


@dataclass(frozen=True, slots=True)
class ActAsOne:
    """A cluster: why its accounts seem to be one, and of how probable so large a one is by chance the bound.
    `found` accounts when it was looked for last, at Unix seconds; those that were forgotten since are in no
    list. `answer` is what a person decided, "" while none has."""

    id: int
    at: float
    month: str
    found: int
    why: str
    chance: float
    answer: str
    who: str
    said: str
    answered: float
    accounts: list[Stands]


def overview(steps: Steps, most: int) -> list[Stands]:
    """Accounts on a step or with an appeal, and then those with the highest scores."""
    store = steps.standings
    scored: dict[str, tuple[float, int]] = {}
    for account, score, requests, _ in store.ranked(most):
        scored.setdefault(account, (score, requests))
    rows = []
    for each in store.held():
        known = scored.pop(each.account, None)
        rows.append(_stands(steps, each.account, known))
    return rows + [_stands(steps, account, known) for account, known in scored.items()]


def told(steps: Steps, account: str) -> Told:
    store = steps.standings
    known = store.strongest(account)
    pattern, reasons = looks_like(known)
    return Told(
        *store.standing(account),
        score=None if known is None else round(known.score, 4),
        requests=None if known is None else known.requests,
        pattern=pattern,
        reasons=reasons,
        clusters=store.findings.of(account),
        steps=[taken(steps, step) for step in store.steps(account, TRAIL)],
    )


def taken(steps: Steps, step: Step) -> TakenStep:
    return TakenStep(
        **step._asdict() | {"reasons": [Term(**each) for each in read_reasons(step)]},
        witness=steps.differs(step) or "shown",
    )


def looks_like(known: Watched | None) -> tuple[str, list[Term]]:
    """What an account's last use looks like, and what speaks for it."""
    if known is None:
        return "", []
    try:
        now = reading(Evidence.unpacked(known.evidence), known.use, shipped())
    except ValueError:  # another version wrote it
        return "", []
    return now.pattern.words, [Term(**each) for each in reasons_of(now)]


def acting_as_one(steps: Steps, most: int = TRAIL) -> list[ActAsOne]:
    """Those that wait for a person first, without their accounts."""
    return [_cluster(each, []) for each in steps.standings.findings.clusters(most)]


def one_cluster(steps: Steps, id: int) -> ActAsOne:
    """Raises NotThere."""
    findings = steps.standings.findings
    found = findings.cluster(id)
    if found is None:
        raise NotThere(f"there is no cluster {id}", "none with that number was found", "see the list")
    return _cluster(found, [_stands(steps, account) for account in findings.accounts(id)])


def searches(steps: Steps, most: int = 10) -> list[Search]:
    """The newest first."""
    return steps.standings.findings.searches(most)


def month_named(number: int) -> str:
    return f"{1970 + number // 12}-{number % 12 + 1:02}"


def _stands(steps: Steps, account: str, scored: tuple[float, int] | None = None) -> Stands:
    now = steps.standings.standing(account)
    if scored is None and (known := steps.standings.strongest(account)) is not None:
        scored = known.score, known.requests
    score, requests = (None, None) if scored is None else (round(scored[0], 4), scored[1])
    return Stands(account, now.rung, now.code, now.shadow, score, requests, bool(now.appeal))


def _cluster(found: Finding, accounts: list[Stands]) -> ActAsOne:
    # The words count accounts and do not name them
    cluster = Cluster(("",) * found.found, found.shared, found.joined, found.linked, found.chance)
    return ActAsOne(
        found.id,
        found.at,
        month_named(found.month),
        found.found,
        in_words(cluster),
        found.chance,
        found.answer,
        found.who,
        found.said,
        found.answered,
        accounts,
    )
