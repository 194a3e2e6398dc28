"""Ordinary customers: people who chat, programmers, and applications with a purpose of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from traffic import wording, wording_bulk
from traffic.account import Ask, Kind, Request, Requests, Setting, put, stream
from traffic.applications import (
    Opener,
    application,
    conversation,
    documents,
    excerpt,
    following,
    habits,
    interest,
    one,
    prompts,
    tokens,
    typed,
    walk,
)
from traffic.sources import Text
from traffic.wording import Month, of_month

Made = tuple[Ask, float]  # what is asked, and how many turns a conversation has in the mean


def chat(draw: Random, setting: Setting) -> Made:
    """One person, or a few, with few interests: conversations, some about a text that is pasted in."""
    pools = setting.shelf.of(setting.person.source)
    mine = walk(draw, interest(draw, pools, draw.randint(60, 400)))
    pasted = _pasting(draw, setting)
    share = draw.uniform(0.0, 0.3)

    def first() -> Text:
        return pasted() if draw.random() < share else _typed(draw, mine)

    opener = as_people_do(draw, setting, first)

    system = draw.choice(("", "", "You are a helpful assistant."))
    style = habits(draw, setting, system, reasoning=0.15)
    follow = following(draw, of_month(wording.FOLLOW_UPS, setting.month), first)
    return conversation(draw, style, opener, follow, 180), draw.uniform(1.2, 5.0)


def chat_of_many(draw: Random, setting: Setting) -> Made:
    """The key of a front-end with many users: they ask about everything, and none asks what another did."""
    pools = setting.shelf.of(setting.person.source)
    everything = walk(draw, prompts(pools))
    pasted = _pasting(draw, setting)
    code = tuple(text for pool in setting.shelf.pools.values() for text in pool.code)
    code_asks = of_month(wording.CODE_ASKS, setting.month)
    share = draw.uniform(0.1, 0.4)

    def first() -> Text:
        chance = draw.random()
        if chance < share:
            return pasted()
        if chance < share + 0.1:
            return Text(f"{one(draw, code_asks)}\n\n{one(draw, code)}", "")
        return _typed(draw, everything)

    opener = as_people_do(draw, setting, first)
    named = application(draw, setting, wording_bulk.EXPERTS)
    system = named.system if draw.random() < 0.6 else ""
    style = habits(draw, setting, system, reasoning=0.15)
    follow = following(draw, of_month(wording.FOLLOW_UPS, setting.month), first)
    return conversation(draw, style, opener, follow, 180, draw.random() < 0.9), draw.uniform(1.2, 3.5)


def as_people_do(draw: Random, setting: Setting, first: Opener) -> Opener:
    """Some conversations begin with a mere greeting, some with the message before, asked once more."""
    greetings = of_month(wording.GREETINGS, setting.month)
    idle, again = draw.uniform(0.0, 0.1), draw.uniform(0.0, 0.1)
    last = Text("", "")

    def opener() -> Text:
        nonlocal last
        chance = draw.random()
        if chance < idle:
            return Text(one(draw, greetings), "")
        if chance > idle + again or not last.prompt:
            last = first()
        return last

    return opener


def _typed(draw: Random, texts: Iterator[Text]) -> Text:
    text = next(texts)
    return Text(typed(draw, text.prompt), text.answer)


def _pasting(draw: Random, setting: Setting) -> Opener:
    """Somebody pastes a text and says what to do with it."""
    mine = documents(setting.shelf.of(setting.person.source)) or documents(list(setting.shelf.pools.values()))
    asks = of_month(wording.PASTED, setting.month)

    def pasted() -> Text:
        text = excerpt(draw, one(draw, mine), 200, 1_500)
        ask = one(draw, asks)
        return Text(f"{ask}\n\n{text}" if draw.random() < 0.6 else f"{text}\n\n{ask}", text[:400])

    return pasted


def coding(draw: Random, setting: Setting) -> Made:
    """An assistant in an editor: a piece of code and what to do with it, then more of the same file."""
    code = setting.shelf.of(setting.person.source)[0].code
    size = max(20, int(len(code) * draw.uniform(0.05, 0.6)))
    place = draw.randrange(len(code))
    mine = [code[(place + number) % len(code)] for number in range(size)]
    asks = of_month(wording.CODE_ASKS, setting.month)
    more = of_month(wording.CODE_FOLLOW_UPS, setting.month)
    made = application(draw, setting, wording.CODE_RULES, roles=wording.PROGRAMMING)
    system = made.system if draw.random() < 0.7 else ""
    fence = draw.choice(("```python\n{}\n```", "{}", "<file>\n{}\n</file>"))
    style = habits(draw, setting, system, longest=(None, 512, 1_024, 4_096), reasoning=0.3)
    talks: dict[int, tuple[str, ...]] = {}
    median = draw.choice((90.0, 250.0, 500.0))

    def ask(at: float, talk: int) -> Request:
        earlier = talks.pop(talk, ())
        text = f"{one(draw, more if earlier else asks)}\n\n{fence.replace('{}', one(draw, mine))}"
        talks[talk] = (*earlier, text, one(draw, mine) if draw.random() < 0.7 else "")[-16:]
        if len(talks) > 32:
            del talks[next(iter(talks))]
        return put(style, at, text, tokens(draw, median), earlier)

    return ask, draw.uniform(1.0, 8.0)


def support(draw: Random, setting: Setting) -> Made:
    """A shop's or a bank's customers write in; some intents are far more frequent than others."""
    (pool,) = setting.shelf.of(setting.person.source)
    intents = draw.sample(pool.intents, draw.randint(5, len(pool.intents)))
    weights = [1.0 / (rank + 1) for rank in range(len(intents))]
    made = application(draw, setting, wording.SUPPORTS)
    number = draw.choice(("order {}", "ref. {}", "customer no. {}", "card ending in {}"))

    def opener() -> Text:
        text = one(draw, draw.choices(intents, weights)[0])
        chance = draw.random()
        if chance < 0.3:
            text = f"{text}. {one(draw, draw.choices(intents, weights)[0])}"
        if chance > 0.6:
            text = f"{text} ({number.format(int(1000 + 9000 * draw.random()))})"
        return Text(made.around(typed(draw, text)), "")

    style = habits(draw, setting, made.system, logprobs=0.08)
    said = [text for intent in intents for text in intent]
    turns = draw.choice((1.0, 1.0, draw.uniform(1.5, 4.0)))
    median = draw.choice((25.0, 70.0, 120.0))
    return conversation(draw, style, opener, following(draw, said, opener), median), turns


def on_texts(tasks: str, low: int, high: int, median: float) -> Callable[[Random, Setting], Made]:
    """An application that does one thing with one text after the other, of a kind of its own."""

    def make(draw: Random, setting: Setting) -> Made:
        pool = draw.choice([pool for pool in setting.shelf.of(setting.person.source) if pool.documents])
        place, size = draw.randrange(len(pool.documents)), draw.randint(30, len(pool.documents))
        mine = (pool.documents * 2)[place : place + size]
        made = application(draw, setting, tasks, pool)
        style = habits(draw, setting, made.system)
        shortest = int(low * draw.uniform(0.7, 1.5))
        longest = max(shortest + 1, int(high * draw.uniform(0.5, 1.5)))
        length = median * draw.uniform(0.6, 1.6)

        def ask(at: float, talk: int) -> Request:
            return put(
                style,
                at,
                made.around(excerpt(draw, one(draw, mine), shortest, longest)),
                tokens(draw, length, 0.35),
            )

        return ask, 1.0

    return make


def search(draw: Random, setting: Setting) -> Made:
    """Questions with passages that were found for them; that these passages were found is made up."""
    pools = setting.shelf.of(setting.person.source)
    broad = draw.random() < 0.3
    mine = walk(draw, prompts(pools) if broad else interest(draw, pools, draw.randint(100, 1_500)))
    passages = documents(pools)
    count = draw.randint(1, 4)
    made = application(draw, setting, wording.SEARCHES)
    style = habits(draw, setting, made.system)

    def ask(at: float, talk: int) -> Request:
        found = "\n".join(
            f"[{place}] {excerpt(draw, one(draw, passages), 150, 500)}" for place in range(1, count + 1)
        )
        question = next(mine)
        text = f"{found}\n\nQuestion: {typed(draw, question.prompt)}"
        return put(style, at, made.around(text), tokens(draw, 120))

    return ask, 1.0


def writing(draw: Random, setting: Setting) -> Made:
    """Texts for customers: a template with a thing of the company's and some key words."""
    pools = setting.shelf.of(setting.person.source)
    mine = documents(pools)
    made = application(draw, setting, wording.WRITERS)
    templates = draw.sample(of_month(wording.WRITINGS, setting.month), 3)
    things = draw.sample(of_month(wording.THINGS, setting.month), 6)
    style = habits(draw, setting, made.system, several=0.15)

    def ask(at: float, talk: int) -> Request:
        hints = excerpt(draw, one(draw, mine), 60, 200)
        text = one(draw, templates).format(thing=one(draw, things), hints=hints)
        return put(style, at, made.around(text), tokens(draw, 280))

    return ask, 1.0


def tutor(draw: Random, setting: Setting) -> Made:
    """Pupils' exercises, explained step by step."""
    pools = setting.shelf.of(setting.person.source)
    mine = walk(draw, interest(draw, pools, draw.randint(100, 1_500)))
    made = application(draw, setting, wording.TUTORING)
    style = habits(draw, setting, made.system, reasoning=0.25)

    def opener() -> Text:
        text = next(mine)
        return Text(made.around(text.prompt), text.answer)

    follow = following(draw, of_month(wording.FOLLOW_UPS, setting.month), opener)
    return conversation(draw, style, opener, follow, 260), draw.uniform(1.0, 3.0)


def alone(make: Callable[[Random, Setting], Made]) -> Callable[[Random, Setting], Requests]:
    """All of an account's requests are of one sort."""

    def requests(draw: Random, setting: Setting) -> Requests:
        ask, turns = make(draw, setting)
        return stream(draw, setting.starts(draw, 1.0 / turns), ask, turns)

    return requests


DOCUMENTS: dict[Month, tuple[str, ...]] = {
    "calibrate": ("tinystories", "alpaca", "self-instruct"),
    "test": ("shakespeare", "ultrafeedback", "alpacaeval"),
}
ASKED: dict[Month, tuple[str, ...]] = {
    "calibrate": ("alpaca", "alpaca+instructionwild", "instructionwild+self-instruct"),
    "test": ("ultrafeedback", "ultrafeedback+alpacaeval", "alpacaeval+wizardlm"),
}
MIXED: dict[Month, tuple[str, ...]] = {
    "calibrate": ("alpaca", "alpaca+instructionwild", "alpaca+self-instruct+instructionwild"),
    "test": ("ultrafeedback", "ultrafeedback+alpacaeval", "ultrafeedback+wizardlm+alpacaeval"),
}
SEARCHED: dict[Month, tuple[str, ...]] = {
    "calibrate": ("alpaca", "alpaca+self-instruct", "instructionwild+self-instruct+tinystories"),
    "test": ("ultrafeedback", "ultrafeedback+alpacaeval", "alpacaeval+wizardlm+shakespeare"),
}
CODE: dict[Month, tuple[str, ...]] = {"calibrate": ("aiohttp", "rich"), "test": ("pydantic", "numpy")}
EXERCISES: dict[Month, tuple[str, ...]] = {
    "calibrate": ("alpaca", "alpaca+self-instruct", "instructionwild+self-instruct"),
    "test": ("gsm8k", "gsm8k+wizardlm", "alpacaeval+wizardlm"),
}
INTENTS: dict[Month, tuple[str, ...]] = {
    "calibrate": tuple(
        f"clinc150/{domain}"
        for domain in ("banking", "kitchen_and_dining", "auto_and_commute", "utility", "meta")
    ),
    "test": tuple(
        f"clinc150/{domain}" for domain in ("credit_cards", "travel", "home", "work", "small_talk")
    ),
}

MAKERS: dict[str, Callable[[Random, Setting], Made]] = {
    "chat": chat,
    "chat:many": chat_of_many,
    "coding": coding,
    "app:support": support,
    "app:documents": on_texts(wording.SUMMARIES, 500, 4_000, 110),
    "app:questions": on_texts(wording.LOOKUPS, 500, 3_000, 40),
    "app:search": search,
    "app:writing": writing,
    "app:extract": on_texts(wording.EXTRACTIONS, 200, 1_500, 60),
    "app:translate": on_texts(wording.TRANSLATIONS, 100, 1_500, 200),
    "app:tutor": tutor,
}


def _kind(name: str, share: int, median: float, sources: dict[Month, tuple[str, ...]]) -> Kind:
    app = name.startswith("app:")
    return Kind(
        "ordinary",
        share,
        median,
        1.5,
        sources,
        alone(MAKERS[name]),
        packaged=0.3 if app else 0.0,
        steady=0.04 if app else 0.0,
    )


KINDS = {
    "chat": _kind("chat", 1_700, 40, ASKED),
    "chat:many": _kind("chat:many", 700, 150, MIXED),
    "coding": _kind("coding", 1_300, 70, CODE),
    "app:support": _kind("app:support", 1_200, 70, INTENTS),
    "app:documents": _kind("app:documents", 700, 50, DOCUMENTS),
    "app:questions": _kind("app:questions", 400, 50, DOCUMENTS),
    "app:search": _kind("app:search", 600, 60, SEARCHED),
    "app:writing": _kind("app:writing", 500, 40, DOCUMENTS),
    "app:extract": _kind("app:extract", 400, 60, DOCUMENTS),
    "app:translate": _kind("app:translate", 250, 50, DOCUMENTS),
    "app:tutor": _kind("app:tutor", 250, 50, EXERCISES),
}
