"""How an answer is compared with a known right answer: named scorers, and what is said when none applies.

Scorers of your own come from installed packages, as entry points of the group `stillhouse.scorers`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from types import MappingProxyType

from stillhouse.errors import UsageError
from stillhouse.records import Score
from stillhouse.scoring.builtin import (
    BadReference,
    Unscored,
    as_reference,
    choice,
    exact,
    json_fields,
    json_fields_share,
    json_value,
    last_line,
    mentions,
    numeric,
)
from stillhouse.scoring.verifier import mathematics

__all__ = [
    "BUILTIN",
    "GROUP",
    "BadReference",
    "Scorer",
    "Unscored",
    "as_reference",
    "check",
    "score",
    "scorers",
]

Scorer = Callable[[str, str], float]
"""(answer, reference) -> a score in [0, 1]. Raise Unscored where none can be given, with the reason."""

BUILTIN: Mapping[str, Scorer] = MappingProxyType(
    {
        "exact": exact,
        "json": json_value,
        "json_fields": json_fields,
        "json_fields_share": json_fields_share,
        "numeric": numeric,
        "math": mathematics,
        "choice": choice,
        "last_line": last_line,
        "mentions": mentions,
    }
)
GROUP = "stillhouse.scorers"


@cache
def scorers() -> Mapping[str, Scorer]:
    """The shipped scorers and those of installed packages, by name.

    Raises UsageError for a package whose scorer cannot be loaded, or takes a name that is taken.
    """
    found = dict(BUILTIN)
    for entry in entry_points(group=GROUP):
        where = f"entry point {entry.name} = {entry.value!r} in {GROUP}"
        if entry.name in found:
            raise UsageError(
                f"there are two scorers named {entry.name!r}",
                f"one comes from the {where}",
                "rename that one, or uninstall its package",
            )
        try:
            own = entry.load()
        except Exception as error:
            raise UsageError(
                f"the scorer {entry.name!r} could not be loaded",
                f"{where}: {type(error).__name__}: {error}",
                "mend the package, or uninstall it",
            ) from error
        if not callable(own):
            raise UsageError(
                f"the scorer {entry.name!r} cannot be called",
                f"{where} is a {type(own).__name__}",
                "name a function of answer and reference there",
            )
        found[entry.name] = own
    return MappingProxyType(found)


def check(names: Iterable[str | None], known: Mapping[str, Scorer] | None = None) -> None:
    """Raise UsageError for the first name that is no scorer, so that a plan fails before money is spent, and
    for one that needs a package which is not installed. `known` is `scorers()` when left out."""
    known = scorers() if known is None else known
    for name in names:
        if name is not None and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UsageError(
                f"no scorer named {name!r}",
                f"scorers here: {', '.join(sorted(known))}",
                f"did you mean {near[0]!r}?" if near else "name one of these, or pass your own",
            )
        if name is not None and known[name] is mathematics and find_spec("math_verify") is None:
            raise UsageError(
                f"the scorer {name!r} needs math-verify",
                "it is not installed",
                "pip install 'stillhouse[math]'",
            )


def score(
    scorer: str | None, answer: str, reference: str | None, known: Mapping[str, Scorer] | None = None
) -> Score:
    """The score of one answer in [0, 1], or None with the reason why there is none.

    There is none without a scorer or a reference, where the scorer raises (a reference it cannot read, or
    a fault of its own) and where it returns something other than a number from 0 to 1. `known` is
    `scorers()` when left out, and only what that raises is raised.
    """
    if scorer is None:
        return Score(None, "no scorer")
    if reference is None:
        return Score(None, "no reference")
    known = scorers() if known is None else known
    if scorer not in known:
        return Score(None, f"no scorer named {scorer!r}")
    try:
        returned = known[scorer](answer, reference)
    except Unscored as error:
        return Score(None, str(error) or f"scorer {scorer!r} could not score it")
    except Exception as error:
        return Score(None, f"scorer {scorer!r} raised {type(error).__name__}: {error}")
    try:
        value = float(returned)
    except Exception:
        return Score(None, f"scorer {scorer!r} returned a {type(returned).__name__}, which is no number")
    if not (math.isfinite(value) and 0.0 <= value <= 1.0):
        return Score(None, f"scorer {scorer!r} returned {value}, which is not between 0 and 1")
    return Score(value)
