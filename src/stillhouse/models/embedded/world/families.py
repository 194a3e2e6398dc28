"""The seven families of questions and their right answers, worked in small and regular steps.

A family fills the slots of a template and works out the answer. The steps are chosen for small models:
every line needs one fact of single digits, values are restated where they are used, and a sum is made
of its ones and its tens, so a few hundred answers show each fact many times.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from stillhouse.models.embedded.world import phrases, slots, wording
from stillhouse.models.embedded.world.slots import MONTHS, Split
from stillhouse.models.embedded.world.wording import arrangement, joined


@dataclass(frozen=True, slots=True)
class Case:
    """A question with its answer as taught (steps included) and the reference that it is scored by."""

    question: str
    answer: str
    reference: str
    scorer: str
    template: str


def extract(rng: Random, split: Split) -> Case:
    """Two or three of four fields of a mail as a JSON object, in the order in which they are asked."""
    values = {
        "name": slots.person(rng, split),
        "order": slots.order_id(rng, split),
        "item": slots.item(rng, split),
        "city": slots.city(rng, split),
    }
    fields = rng.sample(tuple(values), rng.choice((2, 2, 3)))
    asked = ", ".join(fields[:-1]) + " and " + fields[-1]
    name, mail = mail_of(rng, split, values)
    question = joined(rng.choice(wording.MAIL_HEADS), mail, rng.choice(wording.FIELDS).format(fields=asked))
    answer = json.dumps({field: values[field] for field in fields})
    return Case(question, answer, answer, "json", name)


def mail_of(rng: Random, split: Split, values: dict[str, str]) -> tuple[str, str]:
    """A template's name and a mail of four clauses, in any order."""
    lists = (wording.WHO, wording.WHERE, wording.WHICH, wording.WHAT)
    name, clauses = arrangement(rng, split, "extract", *lists)
    mail = " ".join(rng.sample(clauses, len(clauses))).format(**values)
    return name, mail[0].upper() + mail[1:]


def route(rng: Random, split: Split) -> Case:
    """The queue of a message; some messages name another queue's matter as well."""
    queue, other = rng.sample(tuple(phrases.QUEUES), 2)
    complaints = phrases.QUEUES[queue].complaints
    name, (frame, complaint) = arrangement(rng, split, f"route/{queue}", wording.FRAMES, complaints)
    message = frame.format(
        trouble=phrases.trouble(rng, split, queue, complaints.index(complaint)),
        other=rng.choice(phrases.QUEUES[other].matters),
        **_bystanders(rng, split),
    )
    question = joined(rng.choice(wording.ROUTE_HEADS), message, rng.choice(wording.ROUTE_TAILS))
    return Case(question, queue, queue, "choice", name)


def dates(rng: Random, split: Split) -> Case:
    """A date some days later: add, compare with the length of the month, subtract it if need be."""
    day, month, offset = slots.day_month_offset(rng, split)
    month_name, length = MONTHS[month]
    later = day + offset
    steps = f"{day} + {offset} = {later}. {month_name} has {length}."
    if later > length:
        reference = f"{later - length} {MONTHS[(month + 1) % 12][0]}"
        steps += f" {later} - {length} = {later - length}."
    else:
        reference = f"{later} {month_name}"
    name, core = arrangement(rng, split, "dates", wording.EVENTS, wording.DURATIONS)
    question = joined(rng.choice(wording.DATE_HEADS), *core, rng.choice(wording.DATE_TAILS))
    question = question.format(day=day, month=month_name, offset=offset, **_bystanders(rng, split))
    return Case(question, f"{steps} Answer: {reference}", reference, "last_line", name)


def total(rng: Random, split: Split) -> Case:
    """What two kinds of goods cost, in half the orders with a fee: ones and tens apart, then together."""
    (q1, p1), (q2, p2) = slots.two_lines(rng, split)
    fee = rng.randint(3, 9) if rng.random() < 0.5 else 0
    first, second = q1 * p1, q2 * p2
    due = first + second
    steps = [_product(q1, p1), _product(q2, p2), _sum(first, second)]
    if fee:
        steps.append(_sum(due, fee))
        due += fee
    name, (pieces, price, link) = arrangement(
        rng, split, "total", wording.PIECES, wording.PRICES, wording.LINKS
    )
    lines = [(pieces + price).format(q=q, p=p, i=slots.item(rng, split)) for q, p in ((q1, p1), (q2, p2))]
    fee_text = rng.choice(wording.FEES).format(fee=fee) if fee else ""
    head = rng.choice(wording.TOTAL_HEADS).format(**_bystanders(rng, split))
    question = f"{head} {link.join(lines)}{fee_text}. {rng.choice(wording.TOTAL_TAILS)}"
    return Case(question, f"{' '.join(steps)} Answer: {due}", str(due), "numeric", name)


def policy(rng: Random, split: Split) -> Case:
    """Refund, voucher or nothing under a rule of two limits; opened goods get nothing."""
    first, second, days = slots.limits_and_days(rng, split)
    opened = rng.random() < 0.25
    seal = rng.choice(phrases.SEALS["opened" if opened else "sealed"])
    if opened:
        verdict, reason = "nothing", "It was opened."
    elif days <= first:
        verdict, reason = "refund", f"It is sealed. {days} is within {first}."
    elif days <= second:
        verdict, reason = "voucher", f"It is sealed. {days} is over {first}. {days} is within {second}."
    else:
        verdict, reason = "nothing", f"It is sealed. {days} is over {first}. {days} is over {second}."
    name, core = arrangement(rng, split, "policy", wording.RULES, wording.CASES)
    question = joined(*core, rng.choice(wording.POLICY_TAILS))
    question = question.format(first=first, second=second, days=days, seal=seal, **_bystanders(rng, split))
    return Case(question, f"{reason} Answer: {verdict}", verdict, "choice", name)


def sort(rng: Random, split: Split) -> Case:
    """Three or four tickets, each behind the hours that it waits (one digit), rising or falling."""
    hours = rng.sample(range(1, 10), rng.choice((3, 4)))
    tickets = [f"{waited} {slots.order_id(rng, split)}" for waited in hours]
    name, (joint, directions) = arrangement(rng, split, "sort", wording.JOINTS, wording.DIRECTIONS)
    falling = rng.random() < 0.5
    head = rng.choice(wording.SORT_HEADS).format(**_bystanders(rng, split))
    question = f"{head} {joint.join(tickets)}. {directions.split('|')[falling]}"
    answer = ", ".join(sorted(tickets, reverse=falling))
    return Case(question, answer, answer, "exact", name)


def reply(rng: Random, split: Split) -> Case:
    """A short letter: one of many right wordings, so the answer is scored by what it must mention."""
    facts = {
        "name": slots.person(rng, split),
        "item": slots.item(rng, split),
        "fault": rng.choice(phrases.FAULTS),
        "remedy": rng.choice(phrases.REMEDIES),
    }
    name, core = arrangement(rng, split, "reply", wording.TROUBLES, wording.OFFERED)
    reference = json.dumps([facts["name"], facts["item"], facts["remedy"]])
    question = joined(rng.choice(wording.REPLY_HEADS), *core, rng.choice(wording.REPLY_TAILS))
    return Case(question.format(**facts), phrases.letter(rng, facts), reference, "mentions", name)


# The weights are those of training, where arithmetic needs the most practice.
FAMILIES: dict[str, tuple[Callable[[Random, Split], Case], int]] = {
    "extract": (extract, 3),
    "route": (route, 3),
    "dates": (dates, 4),
    "total": (total, 5),
    "policy": (policy, 3),
    "sort": (sort, 3),
    "reply": (reply, 3),
}


def _bystanders(rng: Random, split: Split) -> dict[str, str]:
    """Slots that some templates mention and no answer needs."""
    return {
        "name": slots.person(rng, split),
        "order": slots.order_id(rng, split),
        "item": slots.item(rng, split),
    }


def _product(quantity: int, price: int) -> str:
    """`3 * 14: 12 + 30 = 42.`"""
    ones, tens = quantity * (price % 10), quantity * (price // 10) * 10
    return f"{quantity} * {price}: {ones} + {tens} = {ones + tens}."


def _sum(left: int, right: int) -> str:
    """`47 + 38: 15 + 70 = 85.`: the ones, then the tens."""
    ones = left % 10 + right % 10
    return f"{left} + {right}: {ones} + {left + right - ones} = {left + right}."
