"""Above which score an account is flagged, and above which it may be stopped: the file of thresholds.

`calibrated` makes them of the highest scores that a month's accounts reached, and `as_toml` writes them.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from stillhouse.guard.calibrating import accounts_needed, threshold
from stillhouse.recipe.base import Table
from stillhouse.recipe.strict import checked, read_tree

FLAG, KILL, DECLARED_KILL = 0.01, 0.001, 0.005  # of accounts that are ordinary
_NO_SECRET = re.compile(r"(?!)")

Score = Annotated[float, Field(ge=-1e9)]


class Line(Table):
    """One more account like the `accounts` that it was set on passes `score` with a probability of at most
    `alarm`. Infinite where there were too few."""

    score: Score
    alarm: float = Field(gt=0, lt=1)
    accounts: int = Field(ge=0)


class Lines(Table):
    """`source` says whose scores they are of. An account with a declared use is compared with those that have
    one too, and never passes a lower line than others."""

    source: str
    flag: Line
    kill: Line
    declared_flag: Line
    declared_kill: Line

    @model_validator(mode="after")
    def rise(self) -> Self:
        if self.kill.score < self.flag.score or self.declared_kill.score < self.declared_flag.score:
            raise ValueError("an account would be stopped before it is flagged")
        return self

    def flag_of(self, declared: str) -> float:
        return max(self.flag.score, self.declared_flag.score) if declared else self.flag.score

    def kill_of(self, declared: str) -> float:
        return max(self.kill.score, self.declared_kill.score) if declared else self.kill.score


@cache
def shipped() -> Lines:
    """Those of simulated traffic."""
    text = files("stillhouse.guard").joinpath("thresholds.toml").read_text()
    return Lines.model_validate(tomllib.loads(text))


def read_lines(path: str | None) -> Lines:
    """The thresholds of a file, or those that are shipped. Raises UsageError for a file that holds none."""
    if path is None:
        return shipped()
    write_one = "write one with `stillhouse guard calibrate`"
    tree, text = read_tree(Path(path), "file of thresholds", write_one)
    return checked(Lines, tree, text, path, "thresholds", "docs/guard-ladder.md", _NO_SECRET)


def calibrated(
    reached: Sequence[float], declared: Sequence[float], source: str, flag: float = FLAG, kill: float = KILL
) -> Lines:
    """Of the highest scores of accounts, those with a declared use apart. Raises ValueError for an alarm that
    is no probability."""
    return Lines(
        source=source,
        flag=_line(reached, flag),
        kill=_line(reached, min(flag, kill)),
        declared_flag=_line(declared, flag),
        declared_kill=_line(declared, min(flag, DECLARED_KILL)),
    )


def as_toml(lines: Lines) -> str:
    rows = [f'source = "{lines.source}"']
    for name in ("flag", "kill", "declared_flag", "declared_kill"):
        line: Line = getattr(lines, name)
        rows += [
            "",
            f"[{name}]",
            f"score = {line.score!r}",
            f"alarm = {line.alarm!r}",
            f"accounts = {line.accounts}",
        ]
    return "\n".join(rows) + "\n"


def promises(lines: Lines) -> list[str]:
    """What each line can promise, for the operator to read."""
    said = []
    for what, line in (
        ("flag", lines.flag),
        ("kill", lines.kill),
        ("flag, use declared", lines.declared_flag),
        ("kill, use declared", lines.declared_kill),
    ):
        if math.isinf(line.score):
            needed = accounts_needed(line.alarm)
            said.append(
                f"{what:<19} none: 1 in {1 / line.alarm:,.0f} needs {needed:,} accounts, "
                f"and there are {line.accounts:,}"
            )
        else:
            said.append(
                f"{what:<19} {line.score:.3f}: of accounts like these {line.accounts:,}, "
                f"at most 1 in {1 / line.alarm:,.0f} a month lies above it"
            )
    return said


def _line(reached: Sequence[float], alarm: float) -> Line:
    found = threshold(reached, alarm)
    return Line(score=found.score, alarm=alarm, accounts=found.accounts)
