"""How an answer is compared with a known right answer: named scorers, and what is said when none applies."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from stillhouse.errors import UsageError
from stillhouse.records import Score
from stillhouse.scoring.builtin import BadReference, choice, exact, json_value, last_line, mentions, numeric

__all__ = ["BUILTIN", "BadReference", "Scorer", "check", "score"]

Scorer = Callable[[str, str], float]
"""(answer, reference) -> a score in [0, 1]. Raise BadReference where the reference cannot be used."""

BUILTIN: Mapping[str, Scorer] = MappingProxyType(
    {
        "exact": exact,
        "json": json_value,
        "numeric": numeric,
        "choice": choice,
        "last_line": last_line,
        "mentions": mentions,
    }
)


def check(names: Iterable[str | None], scorers: Mapping[str, Scorer] = BUILTIN) -> None:
    """Raise UsageError for the first name that is no scorer, so that a plan fails before money is spent."""
    for name in names:
        if name is not None and name not in scorers:
            near = difflib.get_close_matches(name, scorers, n=1)
            known = ", ".join(sorted(scorers))
            raise UsageError(
                f"no scorer named {name!r}",
                f"scorers here: {known}",
                f"did you mean {near[0]!r}?" if near else "name one of these, or pass your own",
            )


def score(
    scorer: str | None, answer: str, reference: str | None, scorers: Mapping[str, Scorer] = BUILTIN
) -> Score:
    """The score of one answer in [0, 1], or None with the reason why there is none. Never raises.

    There is none without a scorer or a reference, where the scorer raises (a reference it cannot read, or
    a fault of its own) and where it returns something other than a number from 0 to 1.
    """
    if scorer is None:
        return Score(None, "no scorer")
    if reference is None:
        return Score(None, "no reference")
    if scorer not in scorers:
        return Score(None, f"no scorer named {scorer!r}")
    try:
        value = float(scorers[scorer](answer, reference))
    except BadReference as error:
        return Score(None, str(error))
    except Exception as error:
        return Score(None, f"scorer {scorer!r} raised {type(error).__name__}: {error}")
    if not (math.isfinite(value) and 0.0 <= value <= 1.0):
        return Score(None, f"scorer {scorer!r} returned {value}, which is not between 0 and 1")
    return Score(value)
