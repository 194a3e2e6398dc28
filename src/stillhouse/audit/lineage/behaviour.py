"""Behavioural lineage from stored answers: is the suspect nearer to the teacher than chance allows?

Two questions are asked of each family of likeness, for either alone is too easily answered yes:

- Prompts. On the same prompts, is the suspect more like the teacher than like every control? Were a control
  as good an explanation, teacher and control could change places on any prompt: a sign-flip test against each
  control, of which the largest p-value counts (an intersection-union test, Berger 1982, Technometrics
  24:295). With enough prompts somebody is always the nearest, and this test finds it.
- Models. Among all pairs of the panel, how many are as alike as suspect and teacher? Were these two models
  like any others of the panel, every pair was as likely to be the one asked about (a permutation of the
  models' names). Pairs with a stated relation are left out, for they are alike for a reason.

A family's p-value is the larger of the two, and Holm's correction runs over families. N prompts, M models:
the suspect is 0, the teacher 1, the others are controls.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from stillhouse.audit.lineage.evidence import NOT_DECIDED, SUPPORTED, Finding, Test
from stillhouse.audit.lineage.families import FAMILIES, Floats, Likeness, errors
from stillhouse.audit.lineage.materials import Panel
from stillhouse.errors import UsageError
from stillhouse.stats import Codes, Interval, clustered_share, holm, sign_flip

Tags = Mapping[str, Collection[str]]
Between = NDArray[np.bool_]  # [M, M]

LIMITS = (
    "Answers alike do not say why: the suspect may have learnt from the teacher, from another student of it, "
    "from text of it that stands on the web, or both from a third. Many public models saw outputs of the "
    "same few teachers.",
    "Only the controls given are ruled out. A model that is not among them may explain the likeness better.",
    "If the teacher was picked because it looked alike, multiply its p-values by the number of candidates.",
    "Prompts are taken as drawn one by one, but for those that share a group; models as like each other but "
    "for the relations stated.",
    "Not decided is not a finding that there was no distillation: paraphrase, other prompts, or much other "
    "training hide it.",
)


def compare_answers(panel: Panel, level: float, related: Tags | None = None) -> Finding:
    """`related` gives tags (a maker, a base model, a data set, a teacher) by name of model; two models with
    one in common have a stated relation. Controls with one to the teacher explain nothing and are set aside.

    Nothing in it is random. Raises UsageError with fewer than two controls.
    """
    apart = without_relation(panel.names, related or {})
    controls = [model for model in range(2, len(panel.names)) if apart[1, model]]
    if len(controls) < 2:
        raise UsageError(
            "there are too few controls",
            f"{len(controls)} models without a stated relation to {panel.names[1]}",
            "let other models answer the same prompts; with fewer than some thirty little can be decided",
        )
    tests = judge(panel.names, likenesses(panel), panel.groups, controls, apart)
    pairs = compared_pairs(apart)
    found = [test.name for test in tests if test.adjusted is not None and test.adjusted <= level]
    return Finding(
        "answers",
        f"Are the answers of {panel.names[0]} more like those of {panel.names[1]} than chance "
        "and the controls explain?",
        SUPPORTED if found else NOT_DECIDED,
        _why(found, tests, panel.names, int(np.triu(pairs, 1).sum()), level),
        tests,
        f"Holm over {len(tests)} families, level {level:g}; within a family the larger of two p-values",
        tuple(panel.names[model] for model in controls),
        {
            "prompts": len(panel.prompts),
            "groups_of_prompts": int(panel.groups.max()) + 1,
            "pairs_of_models": int(np.triu(pairs, 1).sum()),
            "set_aside": [panel.names[m] for m in range(2, len(panel.names)) if m not in controls],
            "rows_left_out": dict(zip(panel.names, panel.alone, strict=True)),
        },
        LIMITS,
    )


def likenesses(panel: Panel) -> dict[str, Likeness]:
    """[N, M, M] of each family; of errors only where right answers are known."""
    found = {name: family(panel.texts) for name, family in FAMILIES.items()}
    if any(right is not None for right in panel.expected):
        found["errors"] = errors(panel.texts, panel.expected)
    return found


def judge(
    names: Sequence[str],
    likeness: Mapping[str, Likeness],
    groups: Codes,
    controls: Sequence[int],
    apart: Between,
    suspect: int = 0,
    teacher: int = 1,
) -> tuple[Test, ...]:
    """One test for each family, with Holm's correction: see the module. Models are places in `names`, and
    `apart` [M, M] says which two have no stated relation."""
    pairs = compared_pairs(apart, suspect, teacher)
    both = (suspect, teacher)
    tests = [_test(name, each, names, both, controls, pairs, groups) for name, each in likeness.items()]
    return tuple(
        Test(t.name, t.p, p, t.effect, t.unit, t.n, t.control, t.parts, t.note)
        for t, p in zip(tests, holm([t.p for t in tests]), strict=True)
    )


def compared_pairs(apart: Between, suspect: int = 0, teacher: int = 1) -> Between:
    """The pairs of models without a stated relation, and suspect and teacher whatever is stated of them."""
    pairs = apart.copy()
    pairs[suspect, teacher] = pairs[teacher, suspect] = True
    return pairs


def without_relation(names: Sequence[str], related: Tags) -> Between:
    """[M, M]: whether two models have no stated relation, which a model has to itself."""
    tags = [set(related.get(name, ())) for name in names]
    found = np.array([[not (a & b) for b in tags] for a in tags], dtype=np.bool_).reshape(len(tags), -1)
    np.fill_diagonal(found, False)
    return found


def _test(
    family: str,
    likeness: Likeness,
    names: Sequence[str],
    both: tuple[int, int],
    controls: Sequence[int],
    pairs: Between,
    groups: Codes,
) -> Test:
    mean = likeness.mean(axis=0, dtype=np.float64)
    to_all, to_teacher = likeness[:, both[0]], likeness[:, both[0], both[1]]
    best = max(controls, key=lambda model: float(mean[both[0], model]))
    gap = to_teacher.astype(np.float64) - to_all[:, best]
    by_prompts = nearer_than_all(to_teacher, to_all[:, list(controls)], groups)
    by_models = among_pairs(mean, pairs, *both)
    return Test(
        family,
        max(by_prompts, by_models),
        None,
        nearer_share(gap, groups),
        "share of prompts on which the teacher is nearer than that control",
        int(groups.max()) + 1,
        names[best],
        {"prompts": by_prompts, "models": by_models},
    )


def nearer_than_all(teacher: Likeness, controls: Likeness, groups: Codes) -> float:
    """The largest over controls of the one-sided sign-flip p-value that the suspect is nearer to the teacher.

    teacher [N], controls [N, C]. 1 where one control is as near on the mean.
    """
    gaps = teacher.astype(np.float64)[:, None] - controls
    _, codes = np.unique(groups, return_inverse=True)
    sums = np.zeros((int(codes.max()) + 1, gaps.shape[1]))
    np.add.at(sums, codes, gaps)
    totals = sums.sum(axis=0)
    if (totals <= 0).any():
        return 1.0
    # No p-value is above exp(-z^2 / 2) (Hoeffding 1963, JASA 58:13): few controls have to be gone through.
    bounds = np.exp(-(totals**2) / (2 * (sums**2).sum(axis=0)))
    largest = 0.0
    for control in np.argsort(-bounds, kind="stable"):
        if bounds[control] <= largest:
            break
        largest = max(largest, sign_flip(gaps[:, control], groups) / 2)
    return largest


def among_pairs(mean: Floats, pairs: Between, suspect: int, teacher: int) -> float:
    """The share of pairs of models in `pairs` (symmetric, with suspect and teacher in it) that are at least
    as alike on the mean as these two."""
    alike = mean[np.triu(pairs, 1)]
    return float((alike >= mean[suspect, teacher] - 1e-12).sum() / len(alike))


def nearer_share(gap: Floats, groups: Codes) -> Interval:
    """Of prompts, those on which the gap is above 0, an even one counting half, with its 95 % interval."""
    return clustered_share((np.sign(gap) + 1) / 2, groups)


def _why(found: Sequence[str], tests: Sequence[Test], names: Sequence[str], pairs: int, level: float) -> str:
    if found:
        return (
            f"in {', '.join(found)} the suspect is nearer to {names[1]} than to every control, and "
            "nearer than two models of the panel are by chance"
        )
    if len(tests) / pairs > level:
        return (
            f"{pairs} pairs of models cannot show p <= {level:g} in {len(tests)} families: "
            "more controls are needed"
        )
    near = [t for t in tests if t.parts and (t.parts["models"] or 0.0) <= level / len(tests)]
    if near:
        said = ", ".join(f"{test.control} ({test.name})" for test in near)
        return f"the two are alike, but a control explains it as well: {said}"
    return "the two are no more alike than models of this panel are"
