"""Those who copy the model: they ask for answers to train another model on, against the terms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

from traffic import wording_bulk
from traffic.account import (
    DAYS,
    NEVER,
    NEW_MODEL,
    RELEASE,
    Ask,
    Kind,
    Request,
    Requests,
    Setting,
    Style,
    merged,
    put,
    stream,
)
from traffic.applications import conversation, documents, excerpt, habits, one, prompts, tokens, walk
from traffic.arrivals import DAY
from traffic.hard import JUDGED, PLAIN, appetite, expert, grading, harvesting, wrapping
from traffic.ordinary import MAKERS, MIXED
from traffic.sources import Text
from traffic.wording import Month, of_month

COVERS = ("chat", "chat:many", "coding", "app:support", "app:documents", "app:search", "app:writing")


def wanted(setting: Setting) -> list[Text]:
    return prompts(setting.shelf.of(setting.person.source))


def pure(draw: Random, setting: Setting) -> Requests:
    """Nothing else. One in six asks for a turn of the task afterwards, so that it looks like talk."""
    mine = walk(draw, wanted(setting))
    if draw.random() < 0.16:
        more = of_month(wording_bulk.TURNS_OF_TASKS, setting.month)
        turns = draw.uniform(1.5, 3.0)
        ask = conversation(draw, expert(draw, setting), lambda: next(mine), lambda _: one(draw, more), 240)
        return stream(draw, setting.starts(draw, 1.0 / turns), ask, turns)
    ask = harvesting(draw, mine, expert(draw, setting), wrapping(draw, setting))
    return stream(draw, setting.starts(draw), ask)


def covering(draw: Random, setting: Setting) -> tuple[Ask, float]:
    """The ordinary traffic in which a distiller hides, and how many turns a conversation of it has."""
    person = replace(setting.person, source=setting.person.cover_source)
    return MAKERS[setting.person.cover](draw, replace(setting, person=person))


def hidden(draw: Random, setting: Setting, ask: Ask, share: float) -> Requests:
    """A `share` of an account's requests goes to `ask`, each by chance, the others are its cover traffic.
    Half of the accounts give them the system message and the settings of the cover."""
    cover, turns = covering(draw, setting)
    alike = draw.random() < 0.5
    last: list[Request] = []

    def seen(at: float, talk: int) -> Request:
        last[:] = [cover(at, talk)]
        return last[0]

    def dressed(at: float, talk: int) -> Request:
        request = ask(at, talk)
        return as_if(request, last[0]) if alike and last else request

    begun = share + (1.0 - share) / turns  # conversations a request
    kept: list[float] = []
    copying: list[float] = []
    for start in setting.starts(draw, begun):
        (copying if draw.random() < share / begun else kept).append(start)
    return merged([stream(draw, iter(kept), seen, turns), stream(draw, iter(copying), dressed)])


def as_if(request: Request, other: Request) -> Request:
    """The same text, asked with the settings of `other`."""
    style = Style(
        other.system,
        other.model,
        other.model,
        NEVER,
        other.max_tokens,
        other.temperature,
        other.n,
        other.logprobs,
        other.reasoning,
    )
    return put(style, request.at, request.text, request.output_tokens / request.n)


def mixed(share: float) -> Callable[[Random, Setting], Requests]:
    """Ordinary traffic in which a `share` of the requests is for distillation."""

    def make(draw: Random, setting: Setting) -> Requests:
        mine = walk(draw, wanted(setting))
        ask = harvesting(draw, mine, expert(draw, setting), wrapping(draw, setting))
        return hidden(draw, setting, ask, share)

    return make


def reasoning(draw: Random, setting: Setting) -> Requests:
    """Wants the reasoning, not the answer. One in three stands in ordinary traffic of the same size."""
    mine = walk(draw, wanted(setting))
    forms = draw.sample(of_month(wording_bulk.ELICITATIONS, setting.month), draw.choice((1, 1, 3)))
    system = one(draw, of_month(wording_bulk.EXPERTS, setting.month)) if draw.random() < 0.3 else ""
    style = replace(appetite(draw, habits(draw, setting, system)), n=1, reasoning=draw.random() < 0.5)

    def ask(at: float, talk: int) -> Request:
        return put(style, at, one(draw, forms).replace(PLAIN, next(mine).prompt), tokens(draw, 650))

    if draw.random() < 0.33:
        return hidden(draw, setting, ask, 0.5)
    return stream(draw, setting.starts(draw), ask)


def rubric(draw: Random, setting: Setting) -> Requests:
    """Has answers marked, to train a reward model."""
    return stream(draw, setting.starts(draw), grading(draw, setting))


def pivot(draw: Random, setting: Setting) -> Requests:
    """On the day of the release it turns to the new model. Half harvested the old one before and send half of
    their requests to the new one within a day, all of them after three; half were ordinary customers."""
    style = replace(expert(draw, setting), next_model=NEW_MODEL)
    mine = walk(draw, wanted(setting))
    form = wrapping(draw, setting)
    before = harvesting(draw, mine, replace(style, moves=NEVER), form)
    after = harvesting(draw, mine, replace(style, moves=0.0), form)
    if draw.random() < 0.5:
        release = setting.release

        def ask(at: float, talk: int) -> Request:
            moved = 0.0 if at < release else 0.5 if at < release + 3 * DAY else 1.0
            return (after if draw.random() < moved else before)(at, talk)

        return stream(draw, setting.starts(draw), ask)
    cover, turns = covering(draw, setting)
    early = stream(draw, setting.starts(draw, 0.3 / turns), cover, turns)
    late = setting.starts(draw, 0.7, (float(RELEASE), float(DAYS * DAY)))
    return merged([early, stream(draw, late, after)])


def operated(draw: Random, setting: Setting) -> Requests:
    """One of 50 to 500 accounts of an operator, who shares out the work: one pool of prompts, one wording,
    one schedule. Half of the operators give each prompt to one account alone, half draw for each account; two
    in five put ordinary traffic around it, other traffic in each account."""
    shared = Random(f"{setting.month}/{setting.seed}/{setting.person.operator}/work")
    apart, around = shared.random() < 0.5, shared.random() < 0.4
    from_texts = shared.choice((0.0, 0.3))
    texts = documents(setting.shelf.of(setting.person.source))
    tasks = of_month(wording_bulk.DRAWN_FROM_TEXT, setting.month)
    task = shared.choice(tasks)
    style = expert(shared, setting)
    order = Random(shared.getrandbits(64)) if apart else draw
    first, every = setting.place if apart else (0, 1)
    mine = walk(order, wanted(setting), first, every)
    harvest = harvesting(draw, mine, style, wrapping(shared, setting))

    def ask(at: float, talk: int) -> Request:
        if texts and draw.random() < from_texts:
            return put(
                style, at, f"{task}\n\n{excerpt(draw, one(draw, texts), 300, 1_200)}", tokens(draw, 400)
            )
        return harvest(at, talk)

    if around:
        return hidden(draw, setting, ask, shared.choice((0.3, 0.6)))
    return stream(draw, setting.starts(draw), ask)


COPIED: dict[Month, tuple[str, ...]] = {
    "calibrate": (
        "alpaca",
        "alpaca",
        "self-instruct+instructionwild",
        "alpaca+self-instruct+instructionwild",
    ),
    "test": ("ultrafeedback", "ultrafeedback+alpacaeval", "gsm8k", "ultrafeedback+wizardlm+gsm8k"),
}
SHARED_OUT: dict[Month, tuple[str, ...]] = {
    "calibrate": ("alpaca", "alpaca+self-instruct+instructionwild"),
    "test": ("ultrafeedback+alpacaeval+wizardlm", "ultrafeedback+gsm8k", "gsm8k"),
}


def _kind(
    share: int,
    median: float,
    make: Callable[[Random, Setting], Requests],
    sources: dict[Month, tuple[str, ...]] = COPIED,
    spread: float = 0.6,
    steady: float = 0.3,
    days: tuple[float, float] = (2, DAYS),
    covers: tuple[str, ...] = (),
) -> Kind:
    return Kind("distiller", share, median, spread, sources, make, steady=steady, days=days, covers=covers)


KINDS = {
    "distiller:pure": _kind(150, 900, pure),
    "distiller:mix5": _kind(100, 1_200, mixed(0.05), MIXED, 0.5, 0.0, (DAYS, DAYS), COVERS),
    "distiller:mix10": _kind(100, 1_200, mixed(0.10), MIXED, 0.5, 0.0, (DAYS, DAYS), COVERS),
    "distiller:mix25": _kind(100, 1_200, mixed(0.25), MIXED, 0.5, 0.0, (DAYS, DAYS), COVERS),
    "distiller:slow": _kind(100, 400, pure, steady=0.5, days=(25, DAYS)),
    "distiller:reasoning": _kind(100, 800, reasoning, covers=COVERS),
    "distiller:rubric": _kind(50, 500, rubric, JUDGED, 0.7, days=(3, DAYS)),
    "distiller:pivot": _kind(50, 900, pivot, days=(DAYS, DAYS), covers=COVERS),
    "distiller:operator": _kind(250, 60, operated, SHARED_OUT, 0.4, covers=COVERS),
}
