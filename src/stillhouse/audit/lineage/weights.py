"""White-box lineage: do two checkpoints share weights that independent training would not give both?

What makes the p-values right: training treats hidden channels, and neurons of a layer, alike, so a model
whose channels (or neurons) were numbered otherwise was as likely to come out of it. If the suspect was
trained independently of the teacher, the numbering of its parts has nothing to do with the teacher's, and the
suspect with its parts shuffled is an equally likely suspect (Zhu et al. 2025, arXiv:2502.12292, who test
whole models of one shape so). What was fine-tuned, quantised or pruned from a teacher keeps the order.

S is the suspect, T the teacher; V shared tokens, D channels of the hidden stream, H neurons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.audit.lineage.checkpoints import (
    Checkpoint,
    Matrix,
    evenly,
    neuron_rows,
    rows_of,
)
from stillhouse.audit.lineage.evidence import NOT_DECIDED, SUPPORTED, Finding, Test, untested
from stillhouse.stats import Interval, holm

_TOKENS = 1024  # shared tokens that channels and neurons are recognised by
_FEWEST = 32  # of them
_SAMPLED = 256  # neurons of a layer
_SHUFFLES = 9_999
_AT_ONCE = 500  # of them: bounds memory
_RENUMBERINGS = 499  # of channels, each of which costs as much as the comparison itself

LIMITS = (
    "Shared weights say that one checkpoint was made from the other, or both from a third, or both from one "
    "random seed; they do not say who copied whom.",
    "Distillation through answers alone shares no weights: nothing found here says nothing about it.",
    "Whoever renumbers channels and neurons, or rotates the hidden stream, escapes tests of order.",
    "A shared tokenizer is no sign of shared training: many unrelated models use one that was published.",
    "The p-values rest on training that treats channels alike; fixed sinusoidal positions do not.",
)


@dataclass(frozen=True, slots=True)
class Compared:
    """Figures of one checkpoint beside the suspect. Shares are of the suspect's; None where not comparable.

    `channels` and `neurons` are rank correlations of order, `logits` the overlap of the spaces that logits
    of shared tokens lie in, of which `logits_by_chance` is that of two random spaces.
    """

    name: str
    tokens: float
    merges: float
    merges_alike: int
    channels: float | None
    neurons: float | None
    logits: float | None
    logits_by_chance: float | None


def compare_weights(
    suspect: Checkpoint,
    teacher: Checkpoint,
    controls: Sequence[Checkpoint],
    level: float,
    seed: int,
) -> Finding:
    """Raises ModelError for weights that cannot be read. Deterministic for a seed."""
    rng = np.random.default_rng(seed)
    made = [test(suspect, teacher, rng) for test in (_channels, _neurons, _copies)]
    tests = [
        Test(t.name, t.p, p, t.effect, t.unit, t.n, note=t.note)
        for t, p in zip(made, holm([t.p for t in made]), strict=True)
    ]
    found = [test for test in tests if test.adjusted is not None and test.adjusted <= level]
    beside = [_beside(suspect, other) for other in (teacher, *controls)]
    why = (
        f"{', '.join(test.name for test in found)}: weights are in common that independent training "
        "would not give both"
        if found
        else "no weights in common were found; what was renumbered, or taught by answers alone, has none"
    )
    return Finding(
        "weights",
        f"Was {suspect.name} made from the weights of {teacher.name}?",
        SUPPORTED if found else NOT_DECIDED,
        why,
        tuple(tests),
        f"Holm over {sum(test.p is not None for test in tests)} tests, level {level:g}",
        tuple(control.name for control in controls),
        {"beside": [_row(each) for each in beside], "layers": _layers(suspect, teacher)},
        LIMITS,
    )


def _channels(suspect: Checkpoint, teacher: Checkpoint, rng: np.random.Generator) -> Test:
    """Are the suspect's hidden channels in the order of the teacher's that embed tokens most like them?"""
    name = "order of channels"
    partners = channel_partners(suspect, teacher)
    if partners is None:
        return untested(name, f"fewer than {_FEWEST} tokens in common")
    value, p = order_test([partners], rng)
    return Test(name, p, None, Interval(value, None, None), "rank correlation", len(partners))


def _neurons(suspect: Checkpoint, teacher: Checkpoint, rng: np.random.Generator) -> Test:
    """The same of neurons within each layer, recognised by how they respond to tokens."""
    name = "order of neurons"
    partners = [best for _, _, best, _ in _matched_layers(suspect, teacher)]
    if not partners:
        return untested(name, "no feed-forward weights, or too few tokens, in common")
    value, p = order_test(partners, rng)
    return Test(name, p, None, Interval(value, None, None), "rank correlation", sum(map(len, partners)))


def _copies(suspect: Checkpoint, teacher: Checkpoint, rng: np.random.Generator) -> Test:
    """Have the suspect's neurons nearer partners than if the teacher's channels were numbered otherwise?

    The order of neurons plays no part. The mean over neurons of the greatest cosine with a neuron of the
    teacher's layer at the same share of its depth.
    """
    name = "copies of neurons"
    if suspect.width != teacher.width:
        return untested(name, f"{suspect.width} and {teacher.width} channels cannot be laid side by side")
    pairs = [
        (_unit(neuron_rows(suspect, ours, _SAMPLED)), _unit(neuron_rows(teacher, theirs)))
        for kind in sorted(suspect.neurons.keys() & teacher.neurons.keys())
        for ours, theirs in _same_depth(suspect.neurons[kind], teacher.neurons[kind])
    ]
    if not pairs:
        return untested(name, "no feed-forward weights of one kind")

    def nearest(order: NDArray[np.intp]) -> float:
        return float(np.mean([(ours @ theirs[:, order].T).max(axis=1).mean() for ours, theirs in pairs]))

    observed = nearest(np.arange(suspect.width))
    chance = [nearest(rng.permutation(suspect.width)) for _ in range(_RENUMBERINGS)]
    p = (1 + sum(value >= observed for value in chance)) / (1 + _RENUMBERINGS)
    return Test(
        name,
        p,
        None,
        Interval(observed - float(np.mean(chance)), None, None),
        "greatest cosine, beyond chance",
        sum(len(ours) for ours, _ in pairs),
    )


def order_test(partners: Sequence[NDArray[np.intp]], rng: np.random.Generator) -> tuple[float, float]:
    """Mean rank correlation, over layers, of parts' places with their partners' places, and its one-sided
    p-value: the chance of as great a sum when each layer's parts are shuffled (Monte Carlo, counting what was
    observed as one of the draws, which keeps it exact)."""
    scored = [scores for scores in map(_standard_ranks, partners) if scores is not None]
    if not scored:
        return 0.0, 1.0
    observed = sum(float(_standard_line(len(theirs)) @ theirs) for theirs in scored)
    reached, left = 1, _SHUFFLES
    while left:
        drawn = np.zeros(min(left, _AT_ONCE))
        for theirs in scored:
            shuffled = rng.permuted(np.tile(theirs, (len(drawn), 1)), axis=1)
            drawn += shuffled @ _standard_line(len(theirs))
        reached += int((drawn >= observed - 1e-12).sum())
        left -= len(drawn)
    return observed / len(partners), reached / (1 + _SHUFFLES)


def channel_partners(suspect: Checkpoint, teacher: Checkpoint) -> NDArray[np.intp] | None:
    """For each channel of the suspect the teacher's whose values over shared tokens are most like its own,
    whatever their sign. None with too few tokens in common."""
    ours, theirs = shared_tokens(suspect, teacher)
    if len(ours) < _FEWEST:
        return None
    left, right = (
        _unit(_centred(rows_of(each, each.embedding, ids)).T)
        for each, ids in ((suspect, ours), (teacher, theirs))
    )
    found: NDArray[np.intp] = np.abs(left @ right.T).argmax(axis=1)
    return found


def shared_tokens(suspect: Checkpoint, teacher: Checkpoint) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Ids of tokens that both know by the same spelling, evenly spaced in the suspect's order."""
    both = sorted(
        (at, teacher.tokens[token])
        for token, at in suspect.tokens.items()
        if token in teacher.tokens
        and at < suspect.places[suspect.embedding].shape[0]
        and teacher.tokens[token] < teacher.places[teacher.embedding].shape[0]
    )
    table = np.array(both, dtype=np.intp).reshape(-1, 2)
    kept = table[evenly(len(table), _TOKENS)]
    return kept[:, 0], kept[:, 1]


def logit_overlap(suspect: Checkpoint, teacher: Checkpoint) -> tuple[float, float] | None:
    """How much of the smaller space that logits of shared tokens can lie in is within the other, 0 to 1, and
    what two random spaces would have in common.

    Logits are the head times a hidden state, so they lie in a space of as many dimensions as there are
    channels (Finlayson et al. 2024, arXiv:2403.09539): the mean squared cosine of its principal angles with
    the other's. None where there are not four tokens for each dimension.
    """
    ours, theirs = shared_tokens(suspect, teacher)
    wide = max(suspect.width, teacher.width)
    if len(ours) < 4 * wide:
        return None
    left, right = (
        np.linalg.qr(_centred(rows_of(each, each.head, ids)))[0]
        for each, ids in ((suspect, ours), (teacher, theirs))
    )
    least = min(suspect.width, teacher.width)
    return float(((left.T @ right) ** 2).sum() / least), wide / (len(ours) - 1)


def _matched_layers(
    suspect: Checkpoint, teacher: Checkpoint
) -> list[tuple[str, str, NDArray[np.intp], float]]:
    """For each of the suspect's feed-forward matrices the teacher's of its kind whose neurons respond most
    alike: the two names, each neuron's partner and the mean of their cosines.

    A neuron is recognised by its responses to embedded tokens, which a change of the hidden stream's basis
    leaves as they are. Choosing layer and partners looks at no order, so shuffled neurons have the same.
    """
    ours, theirs = shared_tokens(suspect, teacher)
    if len(ours) < _FEWEST:
        return []
    left = _centred(rows_of(suspect, suspect.embedding, ours))
    right = _centred(rows_of(teacher, teacher.embedding, theirs))
    found = []
    for kind in sorted(suspect.neurons.keys() & teacher.neurons.keys()):
        known = [(name, _unit(neuron_rows(teacher, name) @ right.T)) for name in teacher.neurons[kind]]
        for name in suspect.neurons[kind]:
            mine = _unit(neuron_rows(suspect, name, _SAMPLED) @ left.T)
            alike = [(mine @ other.T, other_name) for other_name, other in known]
            best, other_name = max(alike, key=lambda each: float(each[0].max(axis=1).mean()))
            found.append((name, other_name, best.argmax(axis=1), float(best.max(axis=1).mean())))
    return sorted(found, key=lambda each: each[0])


def _layers(suspect: Checkpoint, teacher: Checkpoint) -> list[dict[str, Any]]:
    return [
        {"suspect": name, "teacher": other, "cosine": cosine, "order": _order(best)}
        for name, other, best, cosine in _matched_layers(suspect, teacher)
    ]


def _beside(suspect: Checkpoint, other: Checkpoint) -> Compared:
    partners = channel_partners(suspect, other)
    layers = [_order(best) for _, _, best, _ in _matched_layers(suspect, other)]
    overlap = logit_overlap(suspect, other)
    merges = set(other.merges)
    return Compared(
        other.name,
        sum(token in other.tokens for token in suspect.tokens) / max(1, len(suspect.tokens)),
        sum(merge in merges for merge in suspect.merges) / max(1, len(suspect.merges)),
        _alike(suspect.merges, other.merges),
        None if partners is None else _order(partners),
        float(np.mean(layers)) if layers else None,
        *(overlap or (None, None)),
    )


def _row(each: Compared) -> dict[str, Any]:
    return {name: getattr(each, name) for name in Compared.__slots__}


def _alike(first: Sequence[str], second: Sequence[str]) -> int:
    """How many merges the two learnt first, and in the same order."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count


def _same_depth(ours: Sequence[str], theirs: Sequence[str]) -> list[tuple[str, str]]:
    last = max(1, len(ours) - 1)
    return [(name, theirs[round(at * (len(theirs) - 1) / last)]) for at, name in enumerate(ours)]


def _order(partners: NDArray[np.intp]) -> float:
    scores = _standard_ranks(partners)
    return 0.0 if scores is None else float(_standard_line(len(scores)) @ scores)


def _standard_line(count: int) -> NDArray[np.float64]:
    """0..count-1 less its mean, over its length: with `_standard_ranks` their product is a correlation."""
    line = np.arange(count, dtype=np.float64) - (count - 1) / 2
    return np.asarray(line / np.linalg.norm(line))


def _standard_ranks(values: NDArray[np.intp]) -> NDArray[np.float64] | None:
    """Mid-ranks less their mean, over their length; None where all are equal or there is but one."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts + 1) / 2)[places]
    ranks = ranks - ranks.mean()
    length = float(np.linalg.norm(ranks))
    return None if length == 0 else ranks / length


def _centred(rows: Matrix) -> Matrix:
    return np.asarray(rows - rows.mean(axis=0))


def _unit(rows: Matrix) -> Matrix:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))
