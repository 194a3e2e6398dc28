"""Canaries: the same few questions, asked again and again among the others, to see whether the teacher
changes.

They go the way of every question (gate, budget, attempt, ledger) and have keys of their own, so that each
round is asked anew and none of it is ever taken for an answer to learn from. A round belongs to the set of
questions and not to a run: runs that use the same answers from the ledger use what was found out beside them
as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from stillhouse.ask.drift import Change, Heard, first_change, look
from stillhouse.ask.lane import Job, Lane, new_job
from stillhouse.ask.questions import (
    Canary,
    Part,
    Question,
    Sampling,
    Tally,
    as_exchange,
    question_key,
    stored_answers,
)
from stillhouse.errors import EndpointError
from stillhouse.ledger import Ledger, read_workspace_key
from stillhouse.records import Completion, Exchange

RECORDED = "teacher changed"  # what a leaf of kind `correction` says that tells of a change


@dataclass(frozen=True, slots=True)
class Watched:
    """What the rounds say. `since` is the leaf of the first answer to a canary: answers with an older one
    were there before anybody watched. Answers after the leaf `same_until`, where a change was found, may be
    by another teacher than those before."""

    rounds: int
    questions: int
    since: int | None
    change: Change | None
    same_until: int | None


Round = list[Exchange | None]  # for each question its exchange, None where no answer is there


def among(
    fresh: Iterator[Job | None], lane: Lane, sampling: Sampling, ledger: Ledger, run: str, tally: Tally
) -> Iterator[Job | None]:
    """The lane's fresh jobs with rounds of canaries among them: two before the first job, where none was ever
    asked, else one; one after every `every` jobs; one after the last.

    No round goes with fewer jobs than it has questions, so nothing is asked when nothing else is. A round is
    judged once all of it is over, the last by `conclude`. Raises EndpointError for a change, if it is to
    stop.
    """
    part, under_way = lane.part, lane.under_way
    assert part.canary is not None
    canary, secret = part.canary, read_workspace_key(ledger.workspace)
    rounds = asked_rounds(part, sampling, ledger)
    for exchange in (e for each in rounds for e in each if e is not None and e.run == run):
        tally.count(exchange.completion, exchange.cost)
    watched, asked = judge(part, rounds), len(rounds)
    open_keys: set[str] = set()
    held: list[Job] = []
    since: int | None = None  # jobs since the last round; None before the first

    def ask(number: int) -> Iterator[Job]:
        for question in _round(canary, number):
            key = question_key(secret, question, part.teacher, sampling)
            under_way[key] = new_job(key, question, part.teacher, sampling)
            open_keys.add(key)
            tally.questions += 1
            yield under_way[key]

    for job in fresh:
        if open_keys and open_keys.isdisjoint(under_way):
            open_keys.clear()
            rounds += asked_rounds(part, sampling, ledger, len(rounds))
            watched = judge(part, rounds, watched)
            settle(part, watched, ledger, tally)
        if job is None:
            yield None
            continue
        held.append(job)
        if since is None and len(held) < len(canary.questions):
            continue
        if since is None or (since >= canary.every and not open_keys):
            settle(part, watched, ledger, tally)
            for number in range(asked, max(2, asked + 1)):
                yield from ask(number)
                asked = number + 1
            since = 0
        since += len(held)
        yield from held
        held.clear()
    yield from held
    if since is not None and since >= len(canary.questions):
        yield from ask(asked)


def next_rounds(part: Part, sampling: Sampling, ledger: Ledger, first: bool) -> list[Question]:
    """The questions of the round that comes next; where it is the `first` of a call and none was ever asked,
    of two."""
    assert part.canary is not None
    asked = len(asked_rounds(part, sampling, ledger))
    numbers = range(asked, max(2, asked + 1) if first else asked + 1)
    return [question for number in numbers for question in _round(part.canary, number)]


def to_ask(part: Part, fresh: int, sampling: Sampling, ledger: Ledger, in_batches: bool = False) -> int:
    """How many canaries go with so many fresh questions, as `among` asks them, or before and after batches:
    for plans."""
    if part.canary is None or fresh < (size := len(part.canary.questions)):
        return 0
    first = 1 if asked_rounds(part, sampling, ledger) else 2
    if in_batches:
        return size * (first + 1)
    until_second = max(size, part.canary.every)
    between = max(0, -(-(fresh - until_second) // part.canary.every))
    since = fresh if between == 0 else fresh - until_second - (between - 1) * part.canary.every
    return size * (first + between + (since >= size))


def conclude(part: Part, sampling: Sampling, ledger: Ledger, tally: Tally) -> Watched | None:
    """What all rounds say in the end; None without canaries. Raises EndpointError as `among` does."""
    if part.canary is None:
        return None
    watched = judge(part, asked_rounds(part, sampling, ledger))
    settle(part, watched, ledger, tally)
    return watched


def asked_rounds(part: Part, sampling: Sampling, ledger: Ledger, start: int = 0) -> list[Round]:
    """The rounds that were asked, in order from number `start` on, as far as their answers are there."""
    assert part.canary is not None
    rounds: list[Round] = []
    while True:
        questions = _round(part.canary, start + len(rounds))
        found = list(stored_answers(questions, part.teacher, sampling, ledger))
        if all(stored is None for _, _, stored in found):
            return rounds
        rounds.append([None if s is None else as_exchange(q, part.teacher, s) for q, _, s in found])


def judge(part: Part, rounds: Sequence[Round], before: Watched | None = None) -> Watched:
    """What the rounds say. `before` is what was said without the last of them: a change stays found."""
    assert part.canary is not None
    heard = [[None if e is None else _heard(e.completion) for e in each] for each in rounds]
    if before is None or len(rounds) < 3:
        change = first_change(heard, part.canary.alpha)
    else:
        change = before.change or look(heard, part.canary.alpha)
    leaves = [[exchange.leaf for exchange in each if exchange is not None] for each in rounds]
    first = min(chain.from_iterable(leaves), default=None)
    last = max(chain.from_iterable(leaves[: change.since]), default=None) if change else None
    return Watched(len(rounds), len(part.canary.questions), first, change, last)


def settle(part: Part, watched: Watched, ledger: Ledger, tally: Tally) -> None:
    """Write a change that was found into the ledger, once, and tell of it.

    The leaf is a `correction`: it corrects what the exchange leaves after `same_until` say, that they come
    from the same teacher as those before. Nothing is taken out of the log, and no row is dropped by it.
    """
    change = watched.change
    if change is None:
        return
    assert part.canary is not None
    teacher = part.teacher
    body: dict[str, Any] = {
        "what": RECORDED,
        "teacher": {"endpoint": teacher.endpoint, "model": teacher.model, "revision": teacher.revision},
        "canaries": _digest(part.canary),
        "questions": watched.questions,
        "found_in_round": change.found,
        "since_round": change.since,
        "same_until": watched.same_until,
        "sign": change.sign,
        "p": change.p,
    }
    if not any(leaf.body == body for leaf in ledger.leaves("correction")):
        ledger.append("correction", body)
    said = f"the teacher {teacher.model} changed: {change.words}"
    if said not in tally.notices:
        tally.notices.append(said)
    if part.canary.stop:
        raise EndpointError(
            f"the teacher {teacher.model} changed while it was asked",
            f"{change.words}, from round {change.since + 1} of the canaries on",
            "set teacher.revision to ask the changed one everything anew, or collect.canary.action to "
            '"warn" to go on with the answers of both',
        )


def _round(canary: Canary, number: int) -> list[Question]:
    """The questions of a round. Their epoch is a number of 48 bits that set and round have to themselves."""
    digest = hashlib.sha256(f"{_digest(canary)}:{number}".encode()).digest()
    epoch = int.from_bytes(digest[:6])
    return [replace(q, prompt_id=f"{q.prompt_id} (canary {number})", epoch=epoch) for q in canary.questions]


def _digest(canary: Canary) -> str:
    return hashlib.sha256("\n".join(question.prompt_id for question in canary.questions).encode()).hexdigest()


def _heard(completion: Completion) -> Heard:
    parts = (completion.text, completion.refusal, completion.tool_calls)
    return Heard("\n".join(part for part in parts if part), completion.model, completion.fingerprint)
