"""How much may be asked: amounts reserved before a request is sent and settled when its answer has ended.

Here are the words of it; `counting.py` is the algorithm that every store of counts follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Measure = Literal["requests", "input_tokens", "output_tokens", "concurrent", "money"]
Window = Literal["minute", "day", "month", "ever"]


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `amount` in any stretch of the window's length; a month is a calendar month in UTC.

    `concurrent` counts what is in flight (its window is "ever"), `money` billionths of a dollar.
    """

    measure: Measure
    window: Window
    amount: int


@dataclass(frozen=True, slots=True)
class Subject:
    """Who is limited: `key:ID`, `account:ID`, `organisation:ID` or `model:NAME`."""

    name: str
    limits: tuple[Limit, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """Billionths of a dollar for a token, from the payer's `over`-th token of the month on."""

    over: int
    input: int
    output: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request before it is sent: upper bounds of its tokens, of everyone whom it counts for, and for how
    long it may stay open (seconds). `payer` is the name of the subject whose month of `volume` tokens under
    `schedule` prices it; the price is worst where in doubt. Without steps it costs nothing."""

    id: str
    subjects: tuple[Subject, ...]
    input_tokens: int
    output_tokens: int
    seconds: float
    payer: str = ""
    schedule: str = ""
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class Used:
    """What came of it. Nothing of a request that never left counts (`sent` False)."""

    input_tokens: int
    output_tokens: int
    sent: bool = True


@dataclass(frozen=True, slots=True)
class Room:
    """What is left of the tightest limit of a measure: for headers. `reset` is in seconds."""

    measure: Measure
    limit: int
    remaining: int
    reset: float


@dataclass(frozen=True, slots=True)
class Granted:
    id: str
    cost: int  # reserved, billionths of a dollar
    room: tuple[Room, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """`retry_after` is after how many seconds the same request would pass if nothing else came; None: never
    under these limits, or not before money is paid in."""

    subject: str
    limit: Limit
    retry_after: float | None
    room: tuple[Room, ...]
