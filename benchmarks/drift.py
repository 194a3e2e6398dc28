"""The rule by which canaries tell a changed teacher: alarms without a change, and changes that it finds.

    .venv/bin/python benchmarks/drift.py [--quick] [--json FILE]

Simulated servers, because only of them it is known whether they changed: 8 questions, 40 words an answer, 12
rounds. A server at temperature 0 answers the same but for a share of cases, its noise, in which the answer
leaves its course at a random word; one that samples makes each answer of 8 out of 24 phrases. Beside it
stands the rule that takes any answer that differs from the first ones for a change.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from rows import Row, arguments, header, show

from stillhouse.ask.drift import ALPHA, Heard, first_change
from stillhouse.stats import wilson

SEED = 5
ROUNDS, QUESTIONS, WORDS, LEAVES = 12, 8, 40, 10
PHRASES, SAID = 24, 8
NOISE = (0.0, 0.1, 0.3, 1.0)

Answer = Callable[[random.Random, int, bool], str]  # to a question, by the changed teacher or by the first


class Found(NamedTuple):
    """Shares of runs: with an alarm, with one in the first and in the first three rounds after the change."""

    ever: float
    at_once: float
    soon: float


def noisy(noise: float) -> Answer:
    """At temperature 0. What the changed teacher says differs from word number `LEAVES` on."""

    def answer(draw: random.Random, question: int, changed: bool) -> str:
        words = [f"{'new' if changed and n >= LEAVES else 'old'}{question}.{n}" for n in range(WORDS)]
        if draw.random() < noise:
            place, way = draw.randrange(WORDS), draw.randrange(10)
            words[place:] = [f"{way}.{n}" for n in range(WORDS - place)]
        return " ".join(words)

    return answer


def sampling(draw: random.Random, question: int, changed: bool) -> str:
    """Half of the phrases that the changed teacher uses are new ones."""
    first = PHRASES // 2 if changed else 0
    return " ".join(f"{question}.{n} is so" for n in draw.sample(range(first, first + PHRASES), SAID))


def runs(answer: Answer, count: int, at: int, changed: float, draw: random.Random) -> tuple[Found, float]:
    """What the rule finds, and how often the rule beside it raises an alarm before the change."""
    late, naive = [], 0
    for _ in range(count):
        others = set(draw.sample(range(QUESTIONS), round(changed * QUESTIONS)))
        texts = [[answer(draw, q, n >= at and q in others) for q in range(QUESTIONS)] for n in range(ROUNDS)]
        change = first_change([[Heard(text, "m", None) for text in each] for each in texts])
        late.append(ROUNDS if change is None else change.found - at + 1)
        naive += any(
            text not in (texts[0][q], texts[1][q]) for each in texts[:at] for q, text in enumerate(each)
        )
    shares = (sum(rounds <= most for rounds in late) / count for most in (ROUNDS - 1, 1, 3))
    return Found(*shares), naive / count


def main() -> None:
    options = arguments((__doc__ or "").split("\n", 1)[0])
    count = 100 if options.quick else 1000
    draw = random.Random(SEED)
    rows = []
    servers: dict[str, Answer] = {f"noise {100 * noise:.0f} %": noisy(noise) for noise in NOISE}
    servers["sampling"] = sampling
    for name, answer in servers.items():
        found, naive = runs(answer, count, ROUNDS, 0.0, draw)
        span = wilson(round(found.ever * count), count)
        rows.append(
            Row(
                f"alarms in a run without a change, {name}",
                found.ever,
                "of runs",
                span.low,
                span.high,
                "any difference",
                naive,
                found.ever / naive if naive else 0.0,
                f"<= {ALPHA:g}",
                (span.low or 0.0) <= ALPHA,
            )
        )
    for name, answer in servers.items():
        for changed in (1.0, 0.75, 0.5):
            found, _ = runs(answer, count // 4, 4, changed, draw)
            what = f"change in {100 * changed:.0f} % of the questions, {name}"
            rows.append(Row(f"{what}: found at once", found.at_once, "of runs"))
            rows.append(Row(f"{what}: within 3 rounds", found.soon, "of runs"))
    show(header(SEED, ["stillhouse", "numpy"]), rows, options.json)


if __name__ == "__main__":
    main()
