"""Honest customers who look like distillers. A declared use is what tells some of them apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random

from traffic import wording_bulk
from traffic.account import DAYS, NEVER, Ask, Kind, Request, Requests, Setting, Style, merged, put, stream
from traffic.applications import documents, excerpt, habits, one, prompts, tokens, walk
from traffic.ordinary import ASKED, DOCUMENTS, INTENTS, MAKERS, MIXED
from traffic.ordinary import KINDS as ORDINARY
from traffic.sources import Text
from traffic.wording import Month, of_month


def benchmark(draw: Random, setting: Setting) -> Requests:
    """A test set from its first question to its last, and again for each model or wording to compare."""
    questions = prompts(setting.shelf.of(setting.person.source))
    first = draw.randrange(len(questions))
    size = min(len(questions), draw.choice((100, 200, 500, 1_000)))
    questions = (questions * 2)[first : first + size]
    forms = draw.sample(of_month(wording_bulk.EXAMINING, setting.month), 2)
    shots = "\n\n".join(
        f"{text.prompt}\n{text.answer}" for text in draw.sample(questions, draw.choice((0, 0, 3)))
    )
    style = replace(
        habits(draw, setting, shots, reasoning=0.3), temperature=0.0, max_tokens=draw.choice((64, 256, 1_024))
    )
    if draw.random() < 0.25:
        style = replace(style, logprobs=5, max_tokens=draw.choice((1, 16)))
    number = 0

    def ask(at: float, talk: int) -> Request:
        nonlocal number
        again, place = divmod(number, size)
        number += 1
        text = forms[again % 2].replace("{text}", questions[place].prompt)
        return put(style, at, text, tokens(draw, 150))

    return stream(draw, setting.starts(draw), ask)


def judging(draw: Random, setting: Setting) -> Requests:
    """A model judges what the customer's own product answered."""
    ask = grading(draw, setting)
    return stream(draw, setting.starts(draw), ask)


def grading(draw: Random, setting: Setting) -> Ask:
    """Questions with one or two answers, to be marked by a rubric. A distiller who wants a reward model asks
    the same: from `judging` nothing but its purpose tells it apart."""
    judged = [text for pool in setting.shelf.of(setting.person.source) for text in pool.judged]
    mine = walk(draw, judged)
    pair = draw.random() < 0.4
    rubric = one(draw, of_month(wording_bulk.COMPARISONS if pair else wording_bulk.RUBRICS, setting.month))
    system = rubric if draw.random() < 0.5 else ""
    before = "" if system else f"{rubric}\n\n"
    style = replace(
        habits(draw, setting, system, logprobs=0.2), temperature=draw.choice((None, 0.0, 0.0, 1.0))
    )
    median = draw.choice((8.0, 120.0, 300.0))

    def ask(at: float, talk: int) -> Request:
        question, answer = next(mine)
        answers = f"Answer:\n{answer[:1_500]}"
        if pair:
            answers = f"A:\n{answer[:1_500]}\n\nB:\n{next(mine).answer[:1_500]}"
        return put(style, at, f"{before}Question:\n{question}\n\n{answers}", tokens(draw, median))

    return ask


def labelling(draw: Random, setting: Setting) -> Requests:
    """One label for each of many texts: long in, a few tokens out."""
    pools = setting.shelf.of(setting.person.source)
    said = [text for pool in pools for intent in pool.intents for text in intent]
    texts = documents(pools) + [text.prompt for text in prompts(pools)] + said
    task = one(draw, of_month(wording_bulk.LABELS, setting.month))
    in_system = draw.random() < 0.5
    style = replace(
        habits(draw, setting, task if in_system else "", logprobs=0.35),
        temperature=0.0,
        max_tokens=draw.choice((None, 1, 5, 10)),
    )

    def ask(at: float, talk: int) -> Request:
        text = excerpt(draw, one(draw, texts), 150, 1_200)
        return put(style, at, text if in_system else f"{task}\n\n{text}", 1 + draw.random() * 5)

    return stream(draw, setting.starts(draw), ask)


def backwards(draw: Random, setting: Setting) -> Requests:
    """Back-translation: through another language and back, or from an answer to its question."""
    texts = documents(setting.shelf.of(setting.person.source))
    task = one(draw, of_month(wording_bulk.BACKWARDS, setting.month))
    in_system = draw.random() < 0.4
    style = habits(draw, setting, task if in_system else "")
    low, high = draw.choice(((100, 400), (300, 1_200)))

    def ask(at: float, talk: int) -> Request:
        text = excerpt(draw, one(draw, texts), low, high)
        length = len(text) / 4 if "ranslat" in task else 30.0
        return put(style, at, text if in_system else f"{task}\n\n{text}", tokens(draw, length, 0.2))

    return stream(draw, setting.starts(draw), ask)


def synthetic(draw: Random, setting: Setting) -> Requests:
    """Buys data to train a model of the customer's own, as the terms allow: by examples that are to be
    continued, or by questions of which the answers are kept, which is what a distiller does."""
    texts = prompts(setting.shelf.of(setting.person.source))
    if draw.random() < 0.5:
        ask = harvesting(draw, walk(draw, texts), expert(draw, setting), wrapping(draw, setting))
    else:
        ask = continuing(draw, setting, texts)
    return stream(draw, setting.starts(draw), ask)


def continuing(draw: Random, setting: Setting, texts: list[Text]) -> Ask:
    """Some examples, and more of the kind are wanted: the way in which Self-Instruct made its data."""
    mine = walk(draw, texts)
    task = one(draw, of_month(wording_bulk.GENERATIONS, setting.month))
    shown = draw.randint(2, 6)
    style = replace(habits(draw, setting, several=0.2), temperature=draw.choice((0.7, 1.0, 1.0)))

    def ask(at: float, talk: int) -> Request:
        examples = [f"{number}. {next(mine).prompt[:600]}" for number in range(1, shown + 1)]
        return put(style, at, task + "\n\n" + "\n".join(examples), tokens(draw, 700, 0.3))

    return ask


def harvesting(draw: Random, mine: Iterator[Text], style: Style, form: str) -> Ask:
    """A question after the other, once each, and the answers are kept."""
    median = 180.0 if form == PLAIN else 320.0

    def ask(at: float, talk: int) -> Request:
        return put(style, at, form.replace(PLAIN, next(mine).prompt), tokens(draw, median))

    return ask


PLAIN = "{text}"


def wrapping(draw: Random, setting: Setting) -> str:
    """Half of those who harvest wrap each question in words that ask for more."""
    return one(draw, of_month(wording_bulk.WRAPPINGS, setting.month)) if draw.random() < 0.5 else PLAIN


def expert(draw: Random, setting: Setting) -> Style:
    """The style of those who harvest: two in five say that the model is an expert."""
    system = one(draw, of_month(wording_bulk.EXPERTS, setting.month)) if draw.random() < 0.4 else ""
    return appetite(draw, habits(draw, setting, system))


def appetite(draw: Random, style: Style) -> Style:
    """What those want who want all of an answer: long, at times several, at times with probabilities."""
    return replace(
        style,
        max_tokens=draw.choice((None, 1_024, 2_048, 4_096)),
        temperature=draw.choice((None, 0.0, 0.7, 1.0)),
        n=draw.choice((2, 4, 8)) if draw.random() < 0.12 else 1,
        logprobs=draw.choice((5, 20)) if draw.random() < 0.2 else 0,
        reasoning=draw.random() < 0.2,
    )


def load_test(draw: Random, setting: Setting) -> Requests:
    """The same few requests over and over, evenly, with a number so that no cache answers."""
    (pool, *_) = setting.shelf.of(setting.person.source)
    few = draw.sample(pool.prompts, draw.choice((1, 3, 10, 20)))
    numbered = draw.random() < 0.5
    style = Style(max_tokens=draw.choice((1, 16, 64, 256)), temperature=0.0, moves=NEVER)

    def ask(at: float, talk: int) -> Request:
        text = few[talk % len(few)].prompt
        if numbered:
            text = f"{text} [{draw.getrandbits(32):08x}]"
        return put(style, at, text, 300)

    return stream(draw, setting.starts(draw), ask)


def shared_key(draw: Random, setting: Setting) -> Requests:
    """A firm or a school behind one address and one key: 5 to 50 people and programs, each on its own."""
    users = draw.randint(5, 50)
    weights = [draw.paretovariate(1.1) for _ in range(users)]
    sources = setting.person.source.split("+")
    streams = []
    for weight in weights:
        own = Random(draw.getrandbits(64))
        name = own.choice(("chat", "chat", "chat", "coding", "app:support", "app:documents", "app:tutor"))
        known = {one for names in ORDINARY[name].sources[setting.month] for one in names.split("+")}
        source = own.choice([one for one in sources if one in known])
        person = replace(setting.person, source=source)
        theirs = replace(setting, person=person, phase=setting.phase + own.randrange(-6, 7))
        ask, turns = MAKERS[name](own, theirs)
        streams.append(stream(own, theirs.starts(own, weight / sum(weights) / turns), ask, turns))
    return merged(streams)


TESTED: dict[Month, tuple[str, ...]] = {
    "calibrate": ("self-instruct", "alpaca", "instructionwild"),
    "test": ("gsm8k", "alpacaeval", "wizardlm"),
}
JUDGED: dict[Month, tuple[str, ...]] = {
    "calibrate": ("self-instruct", "alpaca"),
    "test": ("alpacaeval", "ultrafeedback", "gsm8k"),
}
LABELLED: dict[Month, tuple[str, ...]] = {
    "calibrate": (*INTENTS["calibrate"], "alpaca", "tinystories", "self-instruct", "instructionwild"),
    "test": (*INTENTS["test"], "ultrafeedback", "shakespeare", "alpacaeval", "gsm8k"),
}
OF_ALL: dict[Month, tuple[str, ...]] = {
    "calibrate": (
        "instructionwild+alpaca+tinystories+aiohttp+clinc150/banking",
        "instructionwild+self-instruct+rich+clinc150/utility",
    ),
    "test": (
        "alpacaeval+wizardlm+gsm8k+shakespeare+pydantic+clinc150/travel",
        "ultrafeedback+wizardlm+numpy+clinc150/work",
    ),
}


def _kind(
    share: int,
    median: float,
    sources: dict[Month, tuple[str, ...]],
    make: Callable[[Random, Setting], Requests],
    declared: str,
    days: tuple[float, float] = (3, DAYS),
    steady: float = 0.3,
) -> Kind:
    return Kind("hard", share, median, 0.7, sources, make, declared, steady=steady, days=days)


KINDS = {
    "benchmark": _kind(200, 500, TESTED, benchmark, "evaluation", (0.1, 10)),
    "judging": _kind(100, 500, JUDGED, judging, "evaluation"),
    "labelling": _kind(200, 500, LABELLED, labelling, "labelling"),
    "backtranslation": _kind(100, 500, DOCUMENTS, backwards, "back-translation"),
    "synthetic": _kind(100, 600, MIXED, synthetic, "synthetic data"),
    "loadtest": _kind(100, 400, ASKED, load_test, "load test", (0.02, 1), 0.8),
    "nat": _kind(200, 400, OF_ALL, shared_key, "shared key", (DAYS, DAYS), 0.0),
}
