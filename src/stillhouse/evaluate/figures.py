"""Scores, intervals and comparisons from prediction rows. Pure: rows in, plain values out.

A system's score is the mean over its scored prompts. A comparison of two systems takes only the prompts
that both were scored on, paired. Intervals are clustered by prompt group; a family whose prompts are all of
one group gets Wilson's interval over its prompts, with a note. Families are many chances to find a
difference, so their p-values are adjusted together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse import stats
from stillhouse.evaluate.predictions import SYSTEMS, Prediction
from stillhouse.text import normalise

RIGHT = 0.5  # a score of this much or more is a right answer, where only right or wrong can be counted
FEW_GROUPS = 10  # in simulation 95 % intervals cover 93 to 95 % from 12 groups on, and 91 % with 6
REASONS = 5  # reasons named for each system; all are counted

Mask = NDArray[np.bool_]
Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sheet:
    """Rows laid out by prompt: position i of every array is the same prompt.

    `scores` hold NaN where a system has no score; `answers` hold the normalised answer, None where it
    has none; `asked` says which prompts have a row of that system at all.
    """

    families: tuple[str, ...]
    codes: stats.Codes
    scores: dict[str, stats.Floats]
    answers: dict[str, tuple[str | None, ...]]
    asked: dict[str, Mask]

    def scored(self, *systems: str) -> Mask:
        mask = np.ones(len(self.families), dtype=bool)
        for system in systems:
            mask &= ~np.isnan(self.scores[system])
        return mask


def lay_out(rows: Sequence[Prediction], systems: Sequence[str] = SYSTEMS) -> Sheet:
    by_id: dict[str, dict[str, Prediction]] = {}
    for row in rows:
        by_id.setdefault(row.prompt_id, {})[row.system] = row
    firsts = [next(iter(of.values())) for of in by_id.values()]
    scores: dict[str, stats.Floats] = {}
    answers: dict[str, tuple[str | None, ...]] = {}
    asked: dict[str, Mask] = {}
    for system in systems:
        found = [of.get(system) for of in by_id.values()]
        scores[system] = np.array(
            [np.nan if row is None or row.score is None else row.score for row in found], dtype=np.float64
        )
        answers[system] = tuple(
            None if row is None or row.answer is None else normalise(row.answer) for row in found
        )
        asked[system] = np.array([row is not None for row in found], dtype=bool)
    return Sheet(
        tuple(row.family for row in firsts),
        stats.group_codes([row.group for row in firsts], list(by_id)),
        scores,
        answers,
        asked,
    )


def summarise(rows: Sequence[Prediction]) -> Figures:
    """All figures that follow from the rows; where nothing could be scored they are None, with a note."""
    sheet = lay_out(rows)
    everywhere = np.ones(len(sheet.families), dtype=bool)
    figures: Figures = {system: standing(sheet, system, everywhere) for system in SYSTEMS}
    figures["retention"] = retention(sheet, everywhere)
    figures["difference"] = difference(sheet, everywhere)
    figures["gap_closed"] = gap_closed(sheet)
    figures["mcnemar"] = mcnemar(sheet)
    figures["agreement"] = agreement(sheet)
    figures["prompts"] = {
        "n": len(sheet.families),
        "groups": len(set(sheet.codes.tolist())),
        "families": len(set(sheet.families)),
    }
    figures["families"] = {
        name: family(sheet, np.array([of == name for of in sheet.families]))
        for name in sorted(set(sheet.families))
    }
    adjust(figures["families"])
    figures["worst_family"] = worst_family(figures["families"])
    figures["notes"] = [*notes_on_rows(rows), *notes_on_figures(sheet, figures)]
    return figures


def standing(sheet: Sheet, system: str, among: Mask, one_group: bool = False) -> Figures:
    """A system's mean score with its interval; `failed` prompts got no answer, `unscored` answers no score.

    A student's failed prompts are scored 0 and counted in `n` too. With `one_group` prompts that are all of
    one group get the interval of independent prompts, and else none.
    """
    scored = sheet.scored(system) & among
    asked = int((sheet.asked[system] & among).sum())
    answered = among & np.array([answer is not None for answer in sheet.answers[system]], dtype=bool)
    values, n = sheet.scores[system][scored], int(scored.sum())
    span = stats.clustered_share(values, sheet.codes[scored])
    if one_group and span.low is None:
        span = stats.wilson(min(float(values.sum()), n), n)
    return {
        "score": span.value,
        "low": span.low,
        "high": span.high,
        "n": n,
        "unscored": int((answered & ~scored).sum()),
        "failed": asked - int(answered.sum()),
    }


def retention(sheet: Sheet, among: Mask, system: str = "student") -> Figures:
    """Share of the teacher's score that a student keeps, over the prompts that both were scored on."""
    student, teacher, codes = both_scored(sheet, among, system)
    ratio = stats.paired_ratio(student, teacher, codes)
    return {**_plain(ratio), "n": len(codes), "groups": len(set(codes.tolist()))}


def difference(sheet: Sheet, among: Mask, other: str = "teacher") -> Figures:
    """Student less the other over the prompts that both were scored on; p of a sign-flip test over groups,
    None where there are not two groups to tell by."""
    student, theirs, codes = both_scored(sheet, among, "student", other)
    span = stats.paired_difference(student, theirs, codes)
    p = stats.sign_flip(student - theirs, codes) if len(set(codes.tolist())) > 1 else None
    return {**_plain(span), "p": p, "n": len(codes)}


def both_scored(
    sheet: Sheet, among: Mask, first: str = "student", second: str = "teacher"
) -> tuple[stats.Floats, stats.Floats, stats.Codes]:
    """Scores of two systems, and group codes, where both have a score."""
    both = sheet.scored(first, second) & among
    return sheet.scores[first][both], sheet.scores[second][both], sheet.codes[both]


def gap_closed(sheet: Sheet) -> Figures:
    """(student - before) / (teacher - before); None unless the teacher was ahead of the untrained student."""
    all_three = sheet.scored("teacher", "student", "student_before")
    before = sheet.scores["student_before"][all_three]
    ratio = stats.fieller_ratio(
        sheet.scores["student"][all_three] - before,
        sheet.scores["teacher"][all_three] - before,
        sheet.codes[all_three],
    )
    return {**_plain(ratio), "n": int(all_three.sum())}


def mcnemar(sheet: Sheet) -> Figures:
    """Exact McNemar test of student against teacher, prompts taken as independent; p is None when no prompt
    was scored for both."""
    both = sheet.scored("teacher", "student")
    teacher = sheet.scores["teacher"][both] >= RIGHT
    student = sheet.scores["student"][both] >= RIGHT
    teacher_only, student_only = int((teacher & ~student).sum()), int((student & ~teacher).sum())
    return {
        "p": stats.mcnemar(teacher_only, student_only) if both.any() else None,
        "teacher_only": teacher_only,
        "student_only": student_only,
        "n": int(both.sum()),
    }


def agreement(sheet: Sheet) -> Figures:
    """Share of prompts that teacher and student answer alike (normalised text), scored or not.

    Split by whether the teacher was right: agreement where it was wrong is copied error, not quality.
    """
    pairs = list(zip(sheet.answers["teacher"], sheet.answers["student"], strict=True))
    answered = np.array([a is not None and b is not None for a, b in pairs], dtype=bool)
    same = np.array([float(a == b) for a, b in pairs], dtype=np.float64)
    scored = answered & sheet.scored("teacher")
    right = np.nan_to_num(sheet.scores["teacher"], nan=0.0) >= RIGHT

    def share(mask: Mask) -> Figures:
        return {**_plain(stats.clustered_share(same[mask], sheet.codes[mask])), "n": int(mask.sum())}

    return {
        **share(answered),
        "teacher_right": share(scored & right),
        "teacher_wrong": share(scored & ~right),
    }


def family(sheet: Sheet, among: Mask) -> Figures:
    return {
        "n": int(among.sum()),
        "groups": len(set(sheet.codes[among].tolist())),
        **{system: standing(sheet, system, among, one_group=True) for system in SYSTEMS},
        "retention": retention(sheet, among),
        "difference": difference(sheet, among),
    }


def adjust(families: Figures) -> None:
    """Give every family's difference its p adjusted over all families that could be tested."""
    adjusted = stats.holm([of["difference"]["p"] for of in families.values()])
    for of, p in zip(families.values(), adjusted, strict=True):
        of["difference"]["p_adjusted"] = p


def worst_family(families: Figures) -> Figures | None:
    """The family that kept the smallest share, the larger one of two; None where no share is known.

    Of many small families one is always far down: whether it lies below the teacher is said by its p.
    """
    known = [(name, of) for name, of in families.items() if of["retention"]["value"] is not None]
    if not known:
        return None
    name, of = min(known, key=lambda each: (each[1]["retention"]["value"], -each[1]["retention"]["n"]))
    return {"name": name, **of["retention"], "p_adjusted": of["difference"]["p_adjusted"]}


def notes_on_rows(rows: Sequence[Prediction]) -> list[str]:
    """What was not answered, not scored or cut off, by system."""
    notes = []
    for system in SYSTEMS:
        of = [row for row in rows if row.system == system]
        failed = Counter(row.reason for row in of if row.answer is None)
        unscored = Counter(row.reason for row in of if row.answer is not None and row.score is None)
        cut = sum(row.finish_reason == "length" for row in of)
        if failed:
            wrong = sum(row.answer is None and row.score is not None for row in of)
            counted = f"; {wrong} of them count as wrong" if wrong else ""
            notes.append(
                f"{system}: no answer to {failed.total()} of {len(of)} prompts ({_reasons(failed)}){counted}"
            )
        if unscored:
            notes.append(
                f"{system}: {unscored.total()} of {len(of)} answers not scored ({_reasons(unscored)})"
            )
        if cut:
            notes.append(f"{system}: {cut} of {len(of)} answers were cut off at the longest length allowed")
    return notes


def notes_on_figures(sheet: Sheet, figures: Figures) -> list[str]:
    notes = []
    prompts, groups = figures["prompts"]["n"], figures["prompts"]["groups"]
    if not prompts:
        return ["there were no test prompts, so nothing was measured"]
    if not any(figures[system]["n"] for system in SYSTEMS):
        notes.append(
            "no answer could be scored, so there are no scores: prompts need a scorer and a reference"
        )
    elif figures["retention"]["n"] < prompts:
        notes.append(
            f"teacher and student are compared on the {figures['retention']['n']} of {prompts} prompts "
            "that both were scored on"
        )
    if groups == 1 and prompts > 1:
        notes.append("all test prompts are of one group, so no clustered interval can be given")
    elif groups < min(FEW_GROUPS, prompts):
        notes.append(
            f"the test prompts are of only {groups} groups: overall intervals are somewhat too narrow"
        )
    single = [name for name, of in figures["families"].items() if of["n"] == 1]
    if single and len(figures["families"]) > 1:
        notes.append(f"families of one prompt ({_named(single)}) were not tested and have no interval")
    alone = [name for name, of in figures["families"].items() if of["groups"] == 1 < of["n"]]
    if alone:
        notes.append(
            f"families whose prompts are all of one group ({_named(alone)}): the intervals of their scores "
            "take the prompts as independent and are too narrow"
        )
    if figures["mcnemar"]["p"] is not None and groups < prompts:
        notes.append(
            "McNemar's p takes prompts as independent; as they share groups it is too small: use the p of "
            "the difference, which takes groups"
        )
    kept = figures["retention"]
    if kept["n"] and kept["value"] is None:
        notes.append("the teacher scored nothing: the share of its score that is kept is undefined")
    compared = sheet.scored("teacher", "student", "student_before").any()
    if compared and figures["gap_closed"]["value"] is None:
        notes.append("the teacher did no better than the untrained student: the share closed is undefined")
    if any(np.any((values > 0) & (values < 1)) for values in sheet.scores.values()):
        notes.append(f"some scores are fractions: {RIGHT} and more counts as right where answers are counted")
    return notes


def _reasons(counts: Counter[str]) -> str:
    named = [f"{count} x {reason}" for reason, count in counts.most_common(REASONS)]
    more = counts.total() - sum(count for _, count in counts.most_common(REASONS))
    return "; ".join([*named, f"{more} for other reasons"] if more else named)


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:REASONS]) + (f" and {len(names) - REASONS} more" if names[REASONS:] else "")


def _plain(span: stats.Interval) -> Figures:
    return {"value": span.value, "low": span.low, "high": span.high}
