"""Which student stands before its teacher: put there by a comparison, and taken back by one command.

A cascade has a name in the workspace, and under it `current`, a link to the run whose student is at work.
What became of it are leaves of the kind `cascade`: they are written before the link is moved, and rule where
the two differ.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from stillhouse.cascade.calibration import differ
from stillhouse.collect.prompts import question_of
from stillhouse.errors import UsageError, storage
from stillhouse.ledger import Ledger
from stillhouse.ledger.leaves import Leaf
from stillhouse.models import weights_digest
from stillhouse.pipeline.cascading import calibrate_run, max_tokens_of, prompts_of, teacher_of, told_answers
from stillhouse.records import Progress, Prompt, Watch, unwatched
from stillhouse.scoring import Scorer, score
from stillhouse.scoring import scorers as installed_scorers
from stillhouse.stats import group_codes, paired_difference
from stillhouse.workspace import RunFolder, Workspace

Ruling = Literal["not worse", "worse", "not decided"]


@dataclass(frozen=True, slots=True)
class Compared:
    """Both students on the prompts that neither learned from. `difference` is the new one's mean score less
    that of the one at work, with its 95 % interval (Tango 1998), on `n` prompts; `left_out` are test prompts
    that one of them learned from, could not read, or that have no score. `before` are margins that the same
    two were held against earlier: one that is chosen after scores were seen proves nothing."""

    n: int
    left_out: int
    new: float | None
    old: float | None
    difference: float | None
    low: float | None
    high: float | None
    margin: float
    ruling: Ruling
    before: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """`figures` are those of the new calibration, None where none was made; `why` the student stays."""

    replaced: bool
    why: str
    at_work: str
    before: str | None
    compared: Compared | None
    figures: Mapping[str, Any] | None
    leaf: int


def replace(
    workspace: Workspace,
    ledger: Ledger,
    name: str,
    run: RunFolder,
    margin: float,
    promise: tuple[float, float, bool],
    watch: Watch = unwatched,
    scorers: Mapping[str, Scorer] | None = None,
) -> Outcome:
    """Put a run's student to work in the cascade `name` where it is not worse than the one there, and its
    calibration keeps anything; the first comes without a comparison.

    Not worse: the 95 % interval of the difference of their mean scores lies above -`margin`. `promise` is
    what `calibrate_run` takes: the most that is lost, its level, and whether gains count. Nobody else is
    asked. Raises UsageError for a run that was not evaluated, is of another workspace, or whose student is at
    work already.
    """
    known = installed_scorers() if scorers is None else scorers
    stack = _settled(workspace, ledger, name)
    if run.root.resolve().parent != workspace.runs.resolve():
        raise UsageError(
            f"{run.root} is no run of this workspace",
            f"a cascade links to what lies in {workspace.runs}",
            "give a run of this workspace, or go to the one that has it",
        )
    there = stack[-1] if stack else None
    weights = weights_digest(run.student) if run.student.is_dir() else None
    if there is not None and weights == there["weights"]:
        raise UsageError(
            f"the student of {run.root.name} is at work in {name} already",
            f"it was put there by leaf {there['leaf']}",
            "`stillhouse cascade calibrate` calibrates it anew; `rollback` takes it back",
        )
    compared = None
    if there is not None:
        compared = _compared(workspace, ledger, name, run, there, margin, watch, known)
        body = {"weights": weights, "against": there["weights"], **asdict(compared)}
        leaf = _write(ledger, name, "compared", run.root.name, body)
        if compared.ruling != "not worse":
            why = "it is worse" if compared.ruling == "worse" else "that it is no worse is not shown"
            return Outcome(False, why, there["run"], there["run"], compared, None, leaf)
    most, level, signed = promise
    calibration, figures = calibrate_run(run, most, level, signed, watch, known)
    digest = hashlib.sha256(run.cascade.read_bytes()).hexdigest()
    body = {"weights": calibration.student, "calibration": digest, "promise": figures["promise"]}
    leaf = _write(ledger, name, "calibrated", run.root.name, body)
    if there is not None and calibration.promise.threshold is None:
        why = "its calibration can promise nothing, and would keep no answer"
        return Outcome(False, why, there["run"], there["run"], compared, figures, leaf)
    before = None if there is None else there["run"]
    body = {"weights": calibration.student, "calibration": digest, "before": before}
    leaf = _write(ledger, name, "put to work", run.root.name, body)
    _link(workspace, name, run.root.name)
    return Outcome(True, "", run.root.name, before, compared, figures, leaf)


def roll_back(workspace: Workspace, ledger: Ledger, name: str, reason: str) -> Outcome:
    """Put the student to work that was there before. Raises UsageError where there was none, or where it or
    its calibration is not what it was then."""
    stack = _settled(workspace, ledger, name)
    if len(stack) < 2:
        raise UsageError(
            f"nothing was at work in {name} before" if stack else f"there is no cascade {name}",
            "only one student was ever put there, or all others were taken back"
            if stack
            else "no student was put to work under that name in this workspace",
            "`stillhouse ledger show --kind cascade` shows what was done",
        )
    gone, back = stack[-1], stack[-2]
    run = RunFolder(workspace.runs / back["run"])
    there = run.student.is_dir() and run.cascade.is_file()
    same = (
        there
        and weights_digest(run.student) == back["weights"]
        and hashlib.sha256(run.cascade.read_bytes()).hexdigest() == back["calibration"]
    )
    if not same:
        raise UsageError(
            f"{back['run']} is not what was at work in {name}",
            "its student or its calibration is gone, or was made anew since",
            f"`stillhouse cascade replace {name} {back['run']}` compares and calibrates anew",
        )
    leaf = _write(ledger, name, "rolled back", back["run"], {"from": gone["run"], "reason": reason})
    _link(workspace, name, back["run"])
    return Outcome(True, reason, back["run"], gone["run"], None, None, leaf)


def _compared(
    workspace: Workspace,
    ledger: Ledger,
    name: str,
    run: RunFolder,
    there: Mapping[str, Any],
    margin: float,
    watch: Watch,
    scorers: Mapping[str, Scorer],
) -> Compared:
    old = RunFolder(workspace.runs / there["run"])
    if not old.student.is_dir() or weights_digest(old.student) != there["weights"]:
        raise UsageError(
            f"the student at work in {name} is not in {there['run']} any more",
            "it cannot be compared with",
            "put the run's folder back",
        )
    learned, tested = prompts_of(run)
    earlier, _ = prompts_of(old)
    teacher = teacher_of(run)
    seen = {question_of(prompt) for prompt in (*learned, *earlier)}
    asked = [prompt for prompt in tested if question_of(prompt) not in seen and prompt.id in teacher]
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        watch(Progress("cascade", done, 2 * len(asked), "answers"))

    new_told, old_told = (
        told_answers(str(each.student), asked, max_tokens_of(run), count) for each in (run, old)
    )

    def scored(prompt: Prompt, text: str) -> float | None:
        if prompt.reference is None:
            return float(not differ(text, teacher[prompt.id][0]))
        return score(prompt.scorer, text, prompt.reference, scorers).value

    rows: list[tuple[Prompt, float, float]] = []
    for prompt, first, second in zip(asked, new_told, old_told, strict=True):
        if first is not None and second is not None:
            one, other = scored(prompt, first.text), scored(prompt, second.text)
            if one is not None and other is not None:
                rows.append((prompt, one, other))
    new, was = (np.array([row[at] for row in rows], dtype=np.float64) for at in (1, 2))
    codes = group_codes([row[0].group for row in rows], [row[0].id for row in rows])
    span = paired_difference(new, was, codes)
    weights = weights_digest(run.student)
    before = [
        leaf.body["margin"]
        for leaf in _leaves(ledger, name)
        if leaf.body["what"] == "compared"
        and (leaf.body["weights"], leaf.body["against"]) == (weights, there["weights"])
        and leaf.body["margin"] != margin
    ]
    return Compared(
        len(rows),
        len(tested) - len(rows),
        float(new.mean()) if rows else None,
        float(was.mean()) if rows else None,
        span.value,
        span.low,
        span.high,
        margin,
        ruling_of(span.low, span.high, margin),
        tuple(dict.fromkeys(before)),
    )


def ruling_of(low: float | None, high: float | None, margin: float) -> Ruling:
    """By the interval of the difference, new less old."""
    if low is None or high is None:
        return "not decided"
    if low >= -margin:
        return "not worse"
    return "worse" if high < -margin else "not decided"


def _settled(workspace: Workspace, ledger: Ledger, name: str) -> Sequence[Mapping[str, Any]]:
    """What was put to work and not taken back, the one at work last; `current` is made to say the same, where
    a process was killed between the two."""
    if not name.replace("-", "").replace("_", "").isalnum():
        raise UsageError(f"{name!r} names no cascade", "it names a folder", "use letters, digits, - and _")
    stack: list[dict[str, Any]] = []
    for leaf in _leaves(ledger, name):
        if leaf.body["what"] == "put to work":
            stack.append({**leaf.body, "leaf": leaf.index})
        elif leaf.body["what"] == "rolled back":
            stack.pop()
    link = workspace.cascade(name)
    if stack and not (link.is_symlink() and os.path.basename(os.readlink(link)) == stack[-1]["run"]):
        _link(workspace, name, stack[-1]["run"])
    return stack


def _leaves(ledger: Ledger, name: str) -> list[Leaf]:
    return [leaf for leaf in ledger.leaves("cascade") if leaf.body["cascade"] == name]


def _write(ledger: Ledger, name: str, what: str, run: str, body: Mapping[str, Any]) -> int:
    return ledger.append("cascade", {"cascade": name, "what": what, "run": run, **body})


def _link(workspace: Workspace, name: str, run: str) -> None:
    """Move `current` in one step: whoever reads it sees the old run or the new one."""
    link = workspace.cascade(name)
    with storage("write", link):
        link.parent.mkdir(parents=True, exist_ok=True)
        fresh = link.with_name(f".{os.getpid()}")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(os.path.relpath(workspace.runs / run, link.parent))
        os.replace(fresh, link)
