"""What the ladder would have done to requests of the past. Pure.

Requests go through the same evidence, score and steps as those that a gateway answers. What a step would
have changed of the requests after it (fewer where throttled, none after a kill) nobody knows: they are taken
as they came.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple, get_args

import orjson

from stillhouse.guard import ladder
from stillhouse.guard.asked import Route
from stillhouse.guard.clusters import Found, clusters
from stillhouse.guard.config import Detection
from stillhouse.guard.evidence import Evidence, observe
from stillhouse.guard.ladder import Rung, Standing
from stillhouse.guard.likeness import Sketch, month_of, note
from stillhouse.guard.lines import Lines
from stillhouse.guard.scoring import in_words, reading, score, shipped
from stillhouse.guard.seen import seen_of

_ROUTES = frozenset(get_args(Route))


class Past(NamedTuple):
    """A request that was answered; `at` in Unix seconds. `declared`: the use that its account declared."""

    account: str
    at: float
    body: Mapping[str, Any]
    output_tokens: int
    route: Route = "chat/completions"
    declared: str = ""


class Taken(NamedTuple):
    """A step that an account would have been taken to, at its so-manieth request."""

    account: str
    rung: Rung
    at: float
    request: int
    code: str
    score: float
    why: str


@dataclass(slots=True)
class Replayed:
    """`highest` by account; what was `found` of accounts that act as one, by month, counted from January 1970
    (UTC); `skipped` rows by why, none of which was looked at."""

    requests: int = 0
    highest: dict[str, float] = field(default_factory=dict)
    steps: list[Taken] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    found: dict[int, Found] = field(default_factory=dict)

    def on(self, rung: Rung) -> list[Taken]:
        """The accounts that came to a rung, the first one first."""
        return sorted((each for each in self.steps if each.rung == rung), key=lambda each: each.at)


def replay(rows: Iterable[Past | str], key: bytes, lines: Lines, settings: Detection) -> Replayed:
    """`rows` in order of time for each account; one that is text says why there is no request."""
    done, weights = Replayed(), shipped()
    held: dict[str, tuple[Evidence, Standing]] = {}
    months: dict[int, dict[str, Sketch]] = {}
    for row in rows:
        if isinstance(row, str):
            done.skipped[row] += 1
            continue
        if row.route == "embeddings":
            done.skipped["embeddings are not looked at"] += 1
            continue
        evidence, standing = held.get(row.account) or (Evidence(), Standing(row.account))
        standing = standing._replace(declared=row.declared)
        seen = seen_of(key, row.body, row.route, row.output_tokens, row.at)
        use = observe(evidence, seen)
        sketch = months.setdefault(month_of(int(row.at) // 86_400), {}).setdefault(row.account, Sketch())
        note(sketch, evidence, seen, str(row.body.get("model")))
        reached = score(evidence, use, weights)
        done.requests += 1
        done.highest[row.account] = max(reached, done.highest.get(row.account, reached))
        quiet = ladder.lapsed(standing, settings, row.at)
        standing = quiet or standing
        if reached > lines.flag_of(row.declared):
            standing = standing._replace(alarmed=row.at)
            told = reading(evidence, use, weights)
            code = ladder.code_of(told.pattern)
            after = ladder.climbed(standing, told.score, code, lines, settings, row.at)
            if after is not None:
                standing = after
                done.steps.append(
                    Taken(
                        row.account,
                        after.rung,
                        row.at,
                        evidence.requests,
                        code,
                        round(told.score, 4),
                        in_words(told),
                    )
                )
        held[row.account] = evidence, standing
    draw = Random(key)
    done.found = {month: clusters(sketches, draw) for month, sketches in sorted(months.items())}
    return done


def past_requests(lines: Iterable[bytes]) -> Iterator[Past | str]:
    """Of JSONL: objects with `account`, `at`, `body`, `output_tokens`, perhaps `route` and `declared`."""
    for line in lines:
        if line.strip():
            yield _past(line)


def _past(line: bytes) -> Past | str:
    try:
        told = orjson.loads(line)
    except orjson.JSONDecodeError:
        return "no JSON"
    if not isinstance(told, dict):
        return "no object"
    body, route = told.get("body"), str(told.get("route", "chat/completions")).removeprefix("/v1/")
    if not isinstance(body, dict):
        return "no body: an event alone holds no text"
    at, tokens, account = told.get("at"), told.get("output_tokens"), told.get("account")
    if (
        not isinstance(account, str)
        or not isinstance(at, int | float)
        or not 0 <= at < 1e11
        or not isinstance(tokens, int)
        or route not in _ROUTES
    ):
        return "account, at, output_tokens or route is missing or wrong"
    declared = told.get("declared", "")
    return Past(account, float(at), body, tokens, route, declared if isinstance(declared, str) else "")  # type: ignore[arg-type]
