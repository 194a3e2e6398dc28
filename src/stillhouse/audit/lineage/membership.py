"""Ledger membership: does a student know the rows that were collected better than like ones that were not?

Dataset inference (Maini et al. 2024, arXiv:2406.06443) with the model from before training as the control:
what counts is by how much more training lowered the loss of a row, not how easy the row is. The test is right
where rows were kept out by chance, so that rows in and out are alike but for the training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.audit.lineage.evidence import NOT_DECIDED, SUPPORTED, Finding, Test
from stillhouse.audit.lineage.materials import read_rows
from stillhouse.errors import UsageError
from stillhouse.records import Message
from stillhouse.stats import Floats, Interval, wilson
from stillhouse.stats.intervals import z_value

_SHUFFLES = 9_999
_AT_ONCE = 500  # of them: bounds memory
_DIGITS = 4  # of a loss: what is finer differs from one processor to another
_MATCHED = 0.05  # below it rows in and out differ before any training

LIMITS = (
    "The rows that were held out must have been held out by chance from the same collection; the base's "
    "own losses are tested for that, and a difference that they do not show stays unseen.",
    "A student that was trained on these rows and reinforced or trained on much else afterwards may no "
    "longer tell them apart: no difference is no sign that it never saw them.",
    "Knowing the rows says that they, or copies of them, were trained on; not who took them from whom.",
)


@dataclass(frozen=True, slots=True)
class Row:
    messages: tuple[Message, ...]
    completion: str
    group: str


@dataclass(frozen=True, slots=True)
class Losses:
    """Mean loss of each row's completion, in nats per token, rows in order; NaN where it does not fit."""

    name: str
    members: Floats
    held_out: Floats


def read_samples(path: Path) -> tuple[list[Row], int]:
    """Rows of `samples.parquet`, or of JSON lines with `messages` (or `prompt`) and `completion` (or
    `answer`), and how many are broken. Rows of one `group`, or one prompt, are tested as one."""
    if path.suffix == ".parquet":
        from pyarrow import parquet

        try:
            rows, broken = parquet.read_table(path).to_pylist(), 0
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read {path}", str(error), "give the samples of a run") from None
    else:
        rows, broken = read_rows(path)
    made = [_row(row) for row in rows]
    good = [row for row in made if row is not None]
    return good, broken + len(made) - len(good)


def compare_membership(
    student: Losses,
    base: Losses,
    controls: Sequence[Losses],
    groups: tuple[Sequence[str], Sequence[str]],
    level: float,
    seed: int,
    broken: Mapping[str, int],
) -> Finding:
    """`groups` name the rows in and out that belong together. Raises UsageError with fewer than two groups on
    a side. Deterministic for a seed."""
    rng = np.random.default_rng(seed)
    known = _test("rows of the ledger", student, base, groups, rng)
    easy = _test("matched before training", base, None, groups, rng)
    others = [_test(f"control {each.name}", each, base, groups, rng) for each in controls]
    adjusted = [known.p if known.p is not None else 1.0]
    unmatched = easy.p is not None and easy.p <= _MATCHED
    fooled = [test.name for test in others if test.p is not None and test.p <= level]
    found = adjusted[0] <= level
    if unmatched:
        why = "rows in and out differ for the base already, so that they do not show what training did"
    elif fooled:
        why = f"{', '.join(fooled)}: a model that never saw these rows tells them apart as well"
    elif found:
        why = "training lowered the loss of these rows by more than that of like ones that were held out"
    else:
        why = "the rows are known no better than like ones, or too few of them to tell"
    return Finding(
        "membership",
        f"Was {student.name} trained on the rows of this ledger?",
        SUPPORTED if found and not unmatched and not fooled else NOT_DECIDED,
        why,
        (_adjusted(known), easy, *others),
        f"one test, one-sided, level {level:g}; the others can only take its verdict back",
        tuple(each.name for each in controls),
        {"base": base.name, "broken": dict(broken)},
        LIMITS,
    )


def _adjusted(test: Test) -> Test:
    return Test(test.name, test.p, test.p, test.effect, test.unit, test.n, note=test.note)


def _test(
    name: str,
    model: Losses,
    base: Losses | None,
    groups: tuple[Sequence[str], Sequence[str]],
    rng: np.random.Generator,
) -> Test:
    """Of gains over the base one-sided; of bare losses (no base) two-sided."""
    sides = []
    for side, its_groups in zip((0, 1), groups, strict=True):
        loss = (model.members, model.held_out)[side]
        gain = -loss if base is None else (base.members, base.held_out)[side] - loss
        sides.append(_by_group(gain, its_groups))
    inside, outside = sides
    if min(len(inside), len(outside)) < 2:
        raise UsageError(
            "there are too few rows to compare",
            f"{len(inside)} groups of rows were in, {len(outside)} out",
            "give at least two of each; some dozens show something",
        )
    p = shuffled(inside, outside, rng, two_sided=base is None)
    what = "is easier" if base is None else "gained more"
    return Test(
        name, p, None, advantage(inside, outside), f"chance that a row in {what}", len(inside) + len(outside)
    )


def shuffled(inside: Floats, outside: Floats, rng: np.random.Generator, two_sided: bool = False) -> float:
    """p-value of the difference of means: how often groups dealt to the two sides by chance differ as much
    (Monte Carlo, counting what was observed as one deal)."""
    values = np.concatenate([inside, outside])
    values = values - values.mean()
    observed = float(values[: len(inside)].sum())
    reached, left = 1, _SHUFFLES
    while left:
        dealt = rng.permuted(np.tile(values, (min(left, _AT_ONCE), 1)), axis=1)
        drawn = dealt[:, : len(inside)].sum(axis=1)
        as_far = np.abs(drawn) >= abs(observed) - 1e-12 if two_sided else drawn >= observed - 1e-12
        reached += int(as_far.sum())
        left -= len(drawn)
    return reached / (1 + _SHUFFLES)


def advantage(inside: Floats, outside: Floats) -> Interval:
    """The chance that a group in gained more than one out (ties count half), with its 95 % interval by DeLong
    et al. 1988 (Biometrics 44:837) on the logit scale; Wilson's where all gained more, or none."""
    above = (inside[:, None] > outside[None, :]) + 0.5 * (inside[:, None] == outside[None, :])
    value = float(above.mean())
    error = math.sqrt(
        above.mean(axis=1).var(ddof=1) / len(inside) + above.mean(axis=0).var(ddof=1) / len(outside)
    )
    if not 0 < value < 1:  # which shows no spread: as uncertain as the smaller side's groups alone
        least = min(len(inside), len(outside))
        return wilson(value * least, least)
    half = z_value(0.95) * error / (value * (1 - value))
    middle = math.log(value / (1 - value))
    return Interval(value, *(1 / (1 + math.exp(-(middle + sign * half))) for sign in (-1, 1)))


def losses(source: Path, members: Sequence[Row], held_out: Sequence[Row]) -> Losses:
    """The model's losses on both. Loads torch. Raises ModelError for a model that cannot be loaded."""
    from stillhouse.models.local import load_model
    from stillhouse.models.local.decode import score
    from stillhouse.models.reading import end_id, row_ids

    model = load_model(str(source), "float32")
    end = end_id(model.reader)
    context = model.context or 1 << 30

    def of(rows: Sequence[Row]) -> Floats:
        made = [row_ids(model.reader, row.messages, row.completion, end) for row in rows]
        fits = [each for each in made if not isinstance(each, str) and len(each[0]) <= context]
        scored = iter(score(model, [ids.tolist() for ids, _ in fits]))
        found: list[float] = []
        for each in made:
            if isinstance(each, str) or len(each[0]) > context:
                found.append(math.nan)
                continue
            tokens = next(scored)[each[1] :]
            mean = np.mean([token.logprob for token in tokens if token is not None])
            found.append(-round(float(mean), _DIGITS))
        return np.array(found)

    return Losses(source.name, of(members), of(held_out))


def _by_group(values: Floats, groups: Sequence[str]) -> Floats:
    """The mean of each group's rows; rows without a value are left out."""
    kept: NDArray[np.bool_] = ~np.isnan(values)
    _, codes = np.unique(np.array(groups)[kept], return_inverse=True)
    sums = np.bincount(codes, weights=values[kept])
    return np.asarray(sums / np.bincount(codes), dtype=np.float64)


def _row(row: Any) -> Row | None:
    completion = row.get("completion", row.get("answer"))
    said = row.get("messages")
    if isinstance(row.get("prompt"), str):
        said = [{"role": "user", "content": row["prompt"]}]
    if not isinstance(completion, str) or not completion or not isinstance(said, list):
        return None
    try:
        messages = tuple(Message(each["role"], each["content"]) for each in said)
    except (KeyError, TypeError):
        return None
    group = row.get("group")
    return Row(
        messages,
        completion,
        group if isinstance(group, str) and group else "\x1e".join(each.content for each in messages),
    )
