"""What a judge prefers, student or teacher, and first of all what its verdicts are worth.

Pairs of answers whose scores are known and differ are judged first: how often the judge prefers the better
one is its agreement with verified labels. A judge that is no better than chance there, or that gives no
verdict on any of them, is asked no further.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse import stats
from stillhouse.ask.judge import SAME, Comparison, Judged
from stillhouse.evaluate.predictions import Prediction
from stillhouse.records import Prompt
from stillhouse.workspace import write_atomic

AskJudge = Callable[[Sequence[Comparison]], list[Judged]]

CHANCE = 0.5
_WINNER = {"first": "student", "second": "teacher"}  # the student's answer is the first of each pair
_RIDGE = 1e-4  # keeps the slope finite where length separates all verdicts
_STEPS = 25
_BLOCK = 2_000_000


@dataclass(frozen=True, slots=True)
class Judgement:
    """A row of `judgements.parquet`. `outcome` is student, teacher, tie, inconsistent or unscored, and
    `reason` why it is unscored or nobody was asked. `better` is the student's score minus the teacher's, None
    where one is unknown; lengths are in characters."""

    prompt_id: str
    family: str
    group: str
    outcome: str
    reason: str
    student_in_a: str | None
    student_in_b: str | None
    better: float | None
    student_length: int
    teacher_length: int
    leaves: tuple[int, ...]

    @property
    def verified(self) -> bool:
        return self.better is not None and self.better != 0.0

    @property
    def credit(self) -> float | None:
        """1 where the student's answer is preferred, 0 for the teacher's, 1/2 for neither."""
        if self.outcome == "unscored":
            return None
        return {"student": 1.0, "teacher": 0.0}.get(self.outcome, 0.5)


def judge_pairs(
    rows: Sequence[Prediction], prompts: Sequence[Prompt], ask: AskJudge, count: int | None = None
) -> list[Judgement]:
    """Have teacher's and student's answers judged: the verified pairs, and then the others, unless the judge
    is not usable by the first. `count` is the most pairs in all; none is chosen by its scores."""
    found = {(row.system, row.prompt_id): row for row in rows}
    pairs: list[tuple[Comparison, Prediction, Prediction]] = []
    for prompt in prompts:
        student, teacher = found.get(("student", prompt.id)), found.get(("teacher", prompt.id))
        if student is None or teacher is None or student.answer is None or teacher.answer is None:
            continue
        compared = Comparison(prompt.id, prompt.messages, student.answer, teacher.answer)
        pairs.append((compared, student, teacher))
    if count is not None and count < len(pairs):
        pairs = [pairs[index * len(pairs) // count] for index in range(count)]
    known = [pair for pair in pairs if (better := _better(*pair[1:])) is not None and better != 0.0]
    others = [pair for pair in pairs if (better := _better(*pair[1:])) is None or better == 0.0]
    judged = _asked(known, ask)
    if standing(judged)["usable"] is not False:
        judged += _asked(others, ask)
    return judged


def preference_figures(judged: Sequence[Judgement], seed: int, resamples: int) -> dict[str, Any]:
    """What was judged, what the verdicts are worth, and what they say.

    verified      value, low, high, n: share of the pairs with different known scores in which the judge
                  preferred the better answer, a tie counting half
    usable        True when that is above chance, low end included; False when it is at or below chance, or
                  when there is no verdict on any such pair; None when it cannot be told; `why` in words
    outcomes      pairs by outcome; `same` is the number of ties between equal answers, not asked
    reasons       of unscored pairs
    win_rate      value, low, high, n: the student's, ties half
    length_adjusted
                  the same at equal length, with the `slope` by which longer answers gain
    first_place   share of all single verdicts, ties aside, for the answer in place A: 1/2 is fair
    """
    scored = [row for row in judged if row.credit is not None]
    codes = stats.group_codes([row.group for row in scored], [row.prompt_id for row in scored])
    credits_N = np.array([row.credit for row in scored], dtype=np.float64)
    longer_N = np.array([row.student_length - row.teacher_length for row in scored], dtype=np.float64)
    rate = stats.clustered_share(credits_N, codes)
    places = Counter(place for row in judged for place in (row.student_in_a, row.student_in_b) if place)
    at_a = places["A"] + places["B"]
    return {
        **standing(judged),
        "n": len(judged),
        "outcomes": dict(Counter(row.outcome for row in judged)),
        "same": sum(row.reason == SAME for row in judged),
        "reasons": dict(Counter(row.reason for row in judged if row.outcome == "unscored")),
        "win_rate": {**_plain(rate), "n": len(scored)},
        "length_adjusted": length_adjusted(
            credits_N, longer_N, codes, np.random.default_rng(seed), resamples
        ),
        "first_place": places["A"] / at_a if at_a else None,
    }


def standing(judged: Sequence[Judgement]) -> dict[str, Any]:
    """The judge's agreement with verified labels, and whether its verdicts may be used."""
    known = [(row, row.credit) for row in judged if row.verified]
    scored = [(row, credit) for row, credit in known if credit is not None]
    right = [credit if (row.better or 0.0) > 0 else 1.0 - credit for row, credit in scored]
    codes = stats.group_codes([row.group for row, _ in scored], [row.prompt_id for row, _ in scored])
    span = stats.clustered_share(right, codes)
    if not known:
        why = "no answers with different known scores were judged, so what the verdicts are worth is unknown"
        usable = None
    elif span.value is None:
        usable, why = False, f"it gave no verdict on any of {len(known)} pairs whose better answer is known"
    elif span.value <= CHANCE:
        usable, why = False, "on answers whose scores are known the judge is no better than chance"
    elif span.low is None or span.low <= CHANCE:
        usable, why = None, f"on {len(scored)} verified pairs the judge is not shown to be above chance"
    else:
        usable, why = True, f"above chance on {len(scored)} verified pairs"
    unscored = len(known) - len(scored)
    return {
        "verified": {**_plain(span), "n": len(scored), "unscored": unscored},
        "usable": usable,
        "why": why,
    }


def length_adjusted(
    credits: stats.Floats,
    longer: stats.Floats,
    codes: stats.Codes,
    rng: np.random.Generator,
    resamples: int,
) -> dict[str, Any]:
    """The win rate at equal length: a logistic regression of the preference on tanh(d / s), read at d = 0.

    `credits` [N] in [0, 1], `longer` [N] differences in characters, s their standard deviation. After
    AlpacaEval 2's length-controlled win rate (Dubois et al. 2024, arXiv:2404.04475) without its term for the
    difficulty of an instruction, which is fitted over many models. Percentile interval from groups drawn
    anew.
    All None without pairs, or where all lengths are equal and there is nothing to adjust.
    """
    unknown = {"value": None, "low": None, "high": None, "slope": None, "n": len(credits)}
    spread = float(longer.std()) if len(longer) else 0.0
    if spread == 0.0:
        return unknown
    x_N = np.tanh(longer / spread)
    count = int(codes.max()) + 1
    intercept, slope = (float(each[0]) for each in _logistic(x_N, credits, np.ones((1, len(credits)))))
    rates: list[float] = []
    block = max(1, _BLOCK // len(credits))
    while count > 1 and len(rates) < resamples:
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=min(block, resamples - len(rates)))
        rates += _sigmoid(_logistic(x_N, credits, drawn[:, codes].astype(np.float64))[0]).tolist()
    low, high = np.quantile(rates, [0.025, 0.975]).tolist() if rates else (None, None)
    value = float(_sigmoid(np.array(intercept)))
    return {"value": value, "low": low, "high": high, "slope": slope, "n": len(credits)}


def write_judgements(path: Path, rows: Sequence[Judgement]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    text = pa.string()
    schema = pa.schema(
        [
            pa.field("prompt_id", text, nullable=False),
            pa.field("family", text, nullable=False),
            pa.field("group", text, nullable=False),
            pa.field("outcome", text, nullable=False),
            pa.field("reason", text, nullable=False),
            ("student_in_a", text),
            ("student_in_b", text),
            ("better", pa.float64()),
            pa.field("student_length", pa.int64(), nullable=False),
            pa.field("teacher_length", pa.int64(), nullable=False),
            ("leaves", pa.list_(pa.int64())),
        ]
    )
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist([asdict(row) for row in rows], schema=schema), sink)
    write_atomic(path, sink.getvalue().to_pybytes())


def _asked(pairs: Sequence[tuple[Comparison, Prediction, Prediction]], ask: AskJudge) -> list[Judgement]:
    if not pairs:
        return []
    verdicts = ask([compared for compared, _, _ in pairs])
    return [
        Judgement(
            student.prompt_id,
            student.family,
            student.group,
            _WINNER.get(said.outcome, said.outcome),
            said.reason,
            said.forward,
            said.backward,
            _better(student, teacher),
            len(compared.first),
            len(compared.second),
            said.leaves,
        )
        for (compared, student, teacher), said in zip(pairs, verdicts, strict=True)
    ]


def _better(student: Prediction, teacher: Prediction) -> float | None:
    if student.score is None or teacher.score is None:
        return None
    return student.score - teacher.score


def _logistic(x: stats.Floats, y: stats.Floats, weights: stats.Floats) -> tuple[stats.Floats, stats.Floats]:
    """Intercepts and slopes [R] of R weighted logistic regressions of y [N] on x [N], weights [R, N].

    Newton's method with steps of at most 2, both coefficients drawn a little towards 0.
    """
    a, b = np.zeros(len(weights)), np.zeros(len(weights))
    ridge = _RIDGE * weights.sum(axis=1)
    for _ in range(_STEPS):
        p = _sigmoid(a[:, None] + b[:, None] * x)
        miss, curve = weights * (y - p), weights * p * (1 - p)
        ga, gb = miss.sum(axis=1) - ridge * a, miss @ x - ridge * b
        haa, hab, hbb = curve.sum(axis=1) + ridge, curve @ x, curve @ (x * x) + ridge
        determinant = haa * hbb - hab * hab
        a = a + np.clip((hbb * ga - hab * gb) / determinant, -2, 2)
        b = b + np.clip((haa * gb - hab * ga) / determinant, -2, 2)
    return a, b


def _sigmoid(z: stats.Floats) -> stats.Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(z, -500, 500))))


def _plain(span: stats.Interval) -> dict[str, float | None]:
    return {"value": span.value, "low": span.low, "high": span.high}
