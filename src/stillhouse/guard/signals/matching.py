"""Which signals an account's sketch matches. A match is a reason beside others, never a step by itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from stillhouse.guard.signals.form import Received, mark_of
from stillhouse.guard.signals.sketch import Sketch, equal, keyed

LEAST_EQUAL = 12  # slots, of 128
LEAST_SHARE = 0.15  # of the slots that either fills


@dataclass(frozen=True, slots=True)
class Match:
    """`part` is what matched: `template`, `prompt source` or `tooling`; of tooling, `of` marks of the signal
    `equal` were seen. `confidence` is the sender's, of 100."""

    signal: str
    sender: str
    part: str
    equal: int
    of: int
    confidence: int
    valid_until: datetime

    def words(self) -> str:
        """The reason as it stands in an account's evidence."""
        what = "marks of its tool" if self.part == "tooling" else f"slots of its {self.part}"
        return (
            f"{self.equal} of {self.of} {what} are those of signal {self.signal} from {self.sender}, which "
            f"it holds with confidence {self.confidence} of 100 until {self.valid_until:%Y-%m-%d}"
        )


def matches(
    signals: Iterable[Received],
    sketch: Sketch,
    *,
    salts: Mapping[str, bytes],
    now: datetime,
    marks: Iterable[str] = (),
) -> list[Match]:
    """What an account's runs of words, and the marks of its tools, share with signals that hold now.

    `salts` are those that each sender gave. The sketch is best of the account's template, or of its own words
    alone: against all that it sent, a template drowns. Signals that are revoked, expired, not yet valid or of
    a sender without salt match nothing.
    """
    marks, found, copies = tuple(marks), [], {}
    for signal in signals:
        salt = salts.get(signal.sender)
        if salt is None or signal.revoked or not signal.valid_from <= now < signal.valid_until:
            continue
        if signal.sender not in copies:
            copies[signal.sender] = keyed(salt, sketch), {mark_of(salt, mark) for mark in marks}
        own, own_marks = copies[signal.sender]
        said = signal.confidence, signal.valid_until
        for part, theirs in (("template", signal.template), ("prompt source", signal.prompt_source)):
            if theirs is None:
                continue
            same, either = equal(own, theirs)
            if same >= LEAST_EQUAL and same >= LEAST_SHARE * either:
                found.append(Match(signal.id, signal.sender, part, same, either, *said))
        if seen := len(own_marks & signal.marks):
            found.append(Match(signal.id, signal.sender, "tooling", seen, len(signal.marks), *said))
    return found
