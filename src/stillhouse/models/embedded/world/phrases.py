"""Phrases inside the questions and answers: queues and their matters, faults, remedies, letters."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from stillhouse.models.embedded.world.slots import Split


class Queue(NamedTuple):
    """What a queue deals with: any of its matters with any of its complaints makes a message."""

    matters: tuple[str, ...]
    complaints: tuple[str, ...]


QUEUES: dict[str, Queue] = {
    "billing": Queue(
        ("invoice", "bill", "payment", "card charge", "receipt", "bank transfer", "tax line"),
        (
            "the {m} shows a wrong amount",
            "the {m} was booked twice",
            "I cannot find the {m} on my statement",
            "the {m} is higher than we agreed",
            "somebody must correct the {m}",
        ),
    ),
    "shipping": Queue(
        ("parcel", "delivery", "shipment", "courier", "tracking number", "package", "truck"),
        (
            "the {m} has not arrived",
            "the {m} went to a wrong street",
            "nobody knows where the {m} is",
            "the {m} is late by days",
            "I was out when the {m} came by",
        ),
    ),
    "returns": Queue(
        ("return label", "return", "exchange", "refund form", "wrong size", "wrong colour", "unwanted gift"),
        (
            "I want to send it back and ask about the {m}",
            "how do I start with the {m}",
            "it goes back to you because of the {m}",
            "please take it back, see the {m}",
            "I need help to give it back with the {m}",
        ),
    ),
    "repair": Queue(
        ("switch", "motor", "hinge", "screen", "battery", "plug", "handle"),
        (
            "the {m} is broken",
            "the {m} does not work any more",
            "the {m} makes a strange noise",
            "a crack is in the {m}",
            "the {m} came loose and must be fixed",
        ),
    ),
    "account": Queue(
        ("password", "login", "profile", "user name", "email address", "newsletter", "access code"),
        (
            "I want to change my {m}",
            "the website does not accept my {m}",
            "I have forgotten my {m}",
            "please delete my {m}",
            "somebody else uses my {m}",
        ),
    ),
    "sales": Queue(
        ("offer", "catalogue", "discount", "bulk order", "new model", "price list", "quote"),
        (
            "we think of buying and ask for the {m}",
            "is the {m} still on for ten more pieces",
            "our school would like the {m} before we buy",
            "can you send me the {m}",
            "tell me more about the {m}",
        ),
    ),
}

SEALS = {
    "sealed": ("sealed", "still sealed", "not opened", "unopened", "never opened"),
    "opened": ("opened", "already opened", "not sealed", "open", "no longer sealed"),
}

FAULTS = (
    "arrived broken",
    "came late",
    "does not work",
    "has a scratch",
    "is too loud",
    "was the wrong one",
    "lost a screw",
    "smells of smoke",
)
REMEDIES = (
    "a replacement",
    "a full refund",
    "a voucher",
    "a free repair",
    "a return label",
    "a discount",
    "a spare part",
    "a new one",
)

GREETINGS = ("Dear {name},", "Hello {name},", "Hi {name},", "Good day {name},")
THANKS = (
    "thank you for your message.",
    "thanks for writing to us.",
    "we have read your mail.",
    "thanks for telling us.",
)
REGRETS = (
    "We are sorry that the {item} {fault}.",
    "It is a pity that your {item} {fault}.",
    "We regret that the {item} {fault}.",
    "Your {item} {fault}, and we are sorry.",
)
OFFERS = (
    "We will send you {remedy} today.",
    "You will get {remedy} this week.",
    "We offer you {remedy}.",
    "Please accept {remedy}.",
    "You can have {remedy} at once.",
)
CLOSINGS = ("Your desk", "Kind regards, the desk", "Best wishes, the desk", "Yours, the desk team")


def trouble(rng: Random, split: Split, queue: str, complaint: int) -> str:
    """The complaint with this number, about a matter of the queue.

    Each matter occurs with each complaint in one split only; the diagonal rule (not a hash) makes sure that
    every split has a matter for every complaint.
    """
    matters, complaints = QUEUES[queue].matters, QUEUES[queue].complaints
    allowed = {"train": (2, 3, 5, 6), "dev": (0,), "test": (1, 4)}[split]
    matter = (rng.choice(allowed) - 2 * complaint) % len(matters)
    return complaints[complaint].format(m=matters[matter])


def letter(rng: Random, facts: dict[str, str]) -> str:
    """A reply that mentions the customer, the item and the remedy, in one of 5,120 wordings."""
    opening = f"{rng.choice(GREETINGS)} {rng.choice(THANKS)}" if rng.random() < 0.5 else rng.choice(GREETINGS)
    return f"{opening} {rng.choice(REGRETS)} {rng.choice(OFFERS)} {rng.choice(CLOSINGS)}".format(**facts)
