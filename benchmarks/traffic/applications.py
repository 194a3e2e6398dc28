"""What accounts are built from: applications with fixed preambles, and ways to draw texts and lengths."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from traffic import wording
from traffic.account import NEVER, SMALL_MODEL, Ask, Request, Setting, Style, put
from traffic.arrivals import DAY
from traffic.sources import Pool, Text
from traffic.wording import Month, of_month

T = TypeVar("T")
PACKAGES = 8  # of each kind of application, on the market in a month
TEMPERATURES = (None, None, 0.0, 0.2, 0.3, 0.7, 0.7, 1.0)
LONGEST = (None, None, 256, 512, 800, 1_024, 2_048)


@dataclass(frozen=True, slots=True)
class Application:
    system: str
    before: str
    after: str

    def around(self, text: str) -> str:
        return f"{self.before}{text}{self.after}"


def habits(
    draw: Random,
    setting: Setting,
    system: str = "",
    *,
    longest: Sequence[int | None] = LONGEST,
    logprobs: float = 0.03,
    several: float = 0.03,
    reasoning: float = 0.08,
) -> Style:
    """What an account asks for besides the text. The last three are the shares of accounts that ask for log
    probabilities, for more answers than one, and for hidden reasoning. Two in five move to the new model."""
    style = Style(
        system=system,
        moves=setting.release + draw.expovariate(1 / (3 * DAY)) if draw.random() < 0.4 else NEVER,
        max_tokens=draw.choice(longest),
        temperature=draw.choice(TEMPERATURES),
        n=draw.choice((2, 3, 4)) if draw.random() < several else 1,
        logprobs=draw.choice((1, 3, 5)) if draw.random() < logprobs else 0,
        reasoning=draw.random() < reasoning,
    )
    return _small(style) if draw.random() < 0.3 else style


def _small(style: Style) -> Style:
    return Style(
        style.system,
        SMALL_MODEL,
        SMALL_MODEL,
        NEVER,
        style.max_tokens,
        style.temperature,
        style.n,
        style.logprobs,
        style.reasoning,
    )


def application(
    draw: Random, setting: Setting, tasks: str, pool: Pool | None = None, roles: str = wording.ROLES
) -> Application:
    """The account's own application, or the packaged one that it has bought: then made from that one's name,
    so that it is the same everywhere. With a `pool`, a third of the own ones hold a long extract of it that
    never changes."""
    if setting.person.application:
        draw, pool = Random(f"{setting.month}/{setting.person.application}"), None
    month = setting.month
    preamble = _preamble(draw, month, pool, roles)
    task = draw.choice(of_month(tasks, month))
    heading = draw.choice(of_month(wording.HEADINGS, month))
    form = draw.choice(of_month(wording.FORMATS, month)) if draw.random() < 0.6 else ""
    layout = draw.random()
    if layout < 0.45:
        return Application(f"{preamble}\n\n{task}\n{form}".strip(), draw.choice(("", f"{heading}: ")), "")
    if layout < 0.75:
        return Application(preamble, f"{task}\n\n{heading}:\n", f"\n\n{form}".rstrip())
    return Application("", f"{preamble}\n\n{task}\n\n{heading}:\n---\n", f"\n---\n{form}".rstrip())


def company(draw: Random) -> str:
    return "".join(draw.choices(wording.SYLLABLES, k=3)).capitalize()


def _preamble(draw: Random, month: Month, pool: Pool | None, roles: str) -> str:
    name, trade = company(draw), draw.choice(of_month(wording.TRADES, month))
    role = draw.choice(of_month(roles, month)).format(company=name, trade=trade)
    chosen = draw.sample(of_month(wording.RULES, month), draw.randint(0, 6)) + _own_rules(draw, month)
    draw.shuffle(chosen)
    mark = draw.choice(("- ", "* ", "", "Rule: "))
    known = ""
    if pool is not None and pool.documents and draw.random() < 0.33:
        known = "\n\nWhat you know:\n" + excerpt(draw, one(draw, pool.documents), 600, 3_000)
    return f"{role}\n" + "\n".join(mark + rule for rule in chosen) + known


def _own_rules(draw: Random, month: Month) -> list[str]:
    """Rules about the products and the branches of one company, so that no two preambles are the same."""
    names = [company(draw) for _ in range(6)]
    cases, orders = of_month(wording.CASES, month), of_month(wording.ORDERS, month)
    return [
        f"{draw.choice(cases)} {draw.choice(orders)}".format(
            thing=draw.choice(names[:4]), place=draw.choice(names[4:])
        )
        for _ in range(draw.randint(2, 10))
    ]


def one(draw: Random, texts: Sequence[T]) -> T:
    """`draw.choice`, at a third of its cost."""
    return texts[int(draw.random() * len(texts))]


def excerpt(draw: Random, text: str, low: int, high: int) -> str:
    """A piece of the text, `low` to `high` characters where it has as many."""
    size = low + int(draw.random() * (high - low))
    if len(text) <= size:
        return text
    start = int(draw.random() * (len(text) - size))
    return text[text.find(" ", start) + 1 : start + size]


def walk(draw: Random, texts: Sequence[Text], first: int = 0, every: int = 1) -> Iterator[Text]:
    """The texts in an order of the account's own, none twice before all were there; from then on each with
    something that was not there before, cut from another text, as nobody asks the very same again. Of the
    order from number `first` on each `every`-th, for accounts that share one order."""
    count = len(texts)
    step = draw.randrange(1, count + 1)
    while math.gcd(step, count) > 1:
        step = draw.randrange(1, count + 1)
    start = draw.randrange(count)
    number = first
    while True:
        text = texts[(start + number * step) % count]
        if number >= count:
            added = excerpt(draw, one(draw, texts).prompt, 40, 200)
            text = Text(f"{text.prompt}\n\n{added}", text.answer)
        yield text
        number += every


def interest(draw: Random, pools: Sequence[Pool], least: int) -> list[Text]:
    """What one customer asks about: prompts that hold one of some words, `least` where there are as many."""
    topics = [(pool, topic) for pool in pools for topic in pool.topics]
    draw.shuffle(topics)
    chosen: dict[Text, None] = {}
    for pool, topic in topics:
        chosen.update((pool.prompts[number], None) for number in topic)
        if len(chosen) >= least:
            return list(chosen)
    return prompts(pools)


def prompts(pools: Sequence[Pool]) -> list[Text]:
    return [text for pool in pools for text in pool.prompts]


def documents(pools: Sequence[Pool]) -> list[str]:
    return [text for pool in pools for text in pool.documents]


def typed(draw: Random, text: str) -> str:
    """As a person types it into a box."""
    chance = draw.random()
    if chance < 0.12:
        return text.lower()
    if chance < 0.2:
        return f"hi, {text}"
    if chance < 0.26:
        return f"{text} please"
    return text


def tokens(draw: Random, median: float, spread: float = 0.6) -> float:
    """Tokens of an answer: log-normal."""
    return median * math.exp(spread * draw.gauss(0.0, 1.0))


Opener = Callable[[], Text]
Follow = Callable[[tuple[str, ...]], str]


def following(draw: Random, lines: Sequence[str], more: Opener) -> Follow:
    """What is said after an answer: a line, a line about a piece of the answer, or something new of the kind
    that conversations begin with."""
    quoting, changing = draw.uniform(0.1, 0.5), draw.uniform(0.1, 0.4)

    def follow(earlier: tuple[str, ...]) -> str:
        chance = draw.random()
        if chance < changing:
            return more().prompt
        line = one(draw, lines)
        if chance < changing + quoting and earlier[-1]:
            return f'{line} "{excerpt(draw, earlier[-1], 20, 160)}"'
        return line

    return follow


def conversation(
    draw: Random, style: Style, opener: Opener, follow: Follow, median: float, keeps: bool = True
) -> Ask:
    """An ask whose first turn is an `opener` and whose others carry what was said before. Answers that no
    source has are pieces of the one before. Without `keeps` the assistant's turns are sent back empty."""
    talks: dict[int, tuple[tuple[str, ...], str]] = {}  # what was said, the answer that a source has

    def ask(at: float, talk: int) -> Request:
        earlier, known = talks.pop(talk, ((), ""))
        if earlier:
            text = follow((*earlier[:-1], known))
            answer = excerpt(draw, known, 40, 600)
        else:
            text, known = opener()
            answer = known
        talks[talk] = ((*earlier, text, answer if keeps else "")[-20:], known)
        if len(talks) > 32:
            del talks[next(iter(talks))]
        return put(style, at, text, tokens(draw, median), earlier)

    return ask
