"""Accounts that act as one, and customers who do not, as sketches of a month."""

from __future__ import annotations

from random import Random

from stillhouse.guard.evidence import Evidence, observe
from stillhouse.guard.likeness import Sketch, note
from stillhouse.guard.seen import seen_of

KEY = b"a key of the guard, of 32 bytes!"
DAY = 86_400.0
MONTH = 1_790_812_800.0  # 1 October 2026
WORDS = [
    f"{first}{last}" for first in ("ar", "bel", "cor", "dun", "esk") for last in ("an", "ith", "os", "um")
]
PACKAGE = "Keep to the text. Never promise a refund or a date. Answer in three sentences, politely."


def said(draw, count=12):
    return " ".join(f"{draw.choice(WORDS)}{draw.randrange(10_000)}" for _ in range(count))


def sketch(times, texts, system="", model="house-1", heat=None):
    evidence, made = Evidence(), Sketch()
    for at, text in zip(times, texts, strict=False):
        messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
        body = {"model": model, "messages": messages, "temperature": heat}
        seen = seen_of(KEY, body, "chat/completions", 100, at)
        observe(evidence, seen)
        note(made, evidence, seen, model)
    return made


def busy(draw, first, last, count):
    return sorted(MONTH + draw.uniform(first, last) * DAY for _ in range(count))


def customers(count, seed=1, part=None):
    """Each has a program of its own, and comes and goes when it likes; of a `part` every second request."""
    made = {}
    for number in range(count):
        draw = Random(f"{seed}/{number}")
        first = draw.uniform(0, 20)
        times = busy(draw, first, draw.uniform(first + 3, 30), draw.randint(20, 60))
        asked = [said(draw) for _ in times]
        of = slice(part, None, None if part is None else 2)
        made[f"customer-{number}"] = sketch(times[of], asked[of], f"Program {number} of {seed}.")
    return made


def team(count, seed, system="", span=(11.0, 14.0), before="", apart=False, questions=None, part=None):
    """Accounts with one program, on one schedule, or with `apart` each on its own."""
    made = {}
    for number in range(count):
        draw = Random(f"{seed}/{number}")
        first = draw.uniform(0, 20)
        low, high = (first, draw.uniform(first + 3, 30)) if apart else span
        times = busy(draw, low, high, 40)
        asked = questions or [said(draw) for _ in times]
        of = slice(part, None, None if part is None else 2)
        made[f"team-{number}"] = sketch(
            times[of], [f"{before}{text}" for text in asked][of], system, heat=0.7
        )
    return made
