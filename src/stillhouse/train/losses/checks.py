"""What the self-test measures, each a function of the path that is examined and of a small case.

Shapes: N positions, V the vocabulary, D the hidden width, B rows of T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.ledger.targets import Binding, decode, encode
from stillhouse.ledger.targets import Targets as PackedTargets
from stillhouse.train.losses import definition
from stillhouse.train.losses.divergence import (
    Divergence,
    Objective,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
)
from stillhouse.train.losses.heads import Head
from stillhouse.train.losses.targets import SparseTargets, Targets, TeacherStates, stratified, unpacked
from stillhouse.train.losses.whole import cross_entropy, distil, normalised

SEED = 2015
N, V, D = 12, 40, 10
DRAWS = 1000
KINDS = "dense", "states", "tail bucket", "sampled"
FORMULAS: dict[str, tuple[Divergence, definition.Formula]] = {
    "forward KL": (forward_kl, lambda p, t: definition.kl(t, p)),
    "reverse KL": (reverse_kl, definition.kl),
    "Jensen-Shannon": (partial(jensen_shannon, beta=0.3), partial(definition.jensen_shannon, beta=0.3)),
    "skewed KL": (skew_kl, lambda p, t: definition.kl(t, 0.1 * t + 0.9 * p)),
    "skewed reverse KL": (skew_reverse_kl, lambda p, t: definition.kl(p, 0.1 * p + 0.9 * t)),
}


class LossPath(Protocol):
    """The signature of `head_loss`."""

    def __call__(
        self,
        hidden_ND: Tensor,
        head: Head,
        targets: Targets | None,
        objective: Objective,
        ids_N: Tensor | None = None,
        vocabulary: int | None = None,
        chunk: int | None = None,
    ) -> tuple[Tensor, int]: ...


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """Positions of a student and a teacher of one vocabulary, both far from uniform and from each other."""

    hidden_ND: Tensor
    head: Head
    teacher_NV: Tensor
    ids_N: Tensor

    def __getitem__(self, part: slice) -> Case:
        return replace(
            self, hidden_ND=self.hidden_ND[part], ids_N=self.ids_N[part], teacher_NV=self.teacher_NV[part]
        )

    def logits(self) -> Tensor:
        return self.head.logits(self.hidden_ND)


def equal_models(path: LossPath, case: Case, kind: str) -> float:
    """A student that is its own teacher: no loss, and no gradient beside the one of another teacher."""
    worst, own_NV = 0.0, case.logits().detach()
    for divergence, _ in FORMULAS.values():
        for temperature in (1.0, 3.0):
            objective = Objective(divergence, temperature)
            same = run(path, case, as_targets(kind, case, own_NV, temperature), objective)
            other = run(path, case, case.teacher_NV, objective)
            worst = highest(worst, abs(same.loss / other.loss), float(same.slope.norm() / other.slope.norm()))
    return worst


def by_definition(path: LossPath, case: Case, name: str) -> float:
    divergence, formula = FORMULAS[name]
    worst = 0.0
    for kind in kinds(divergence):
        for temperature, hard in ((1.0, 0.0), (2.0, 0.3)):
            objective = Objective(divergence, temperature, hard)
            targets = as_targets(kind, case, case.teacher_NV, temperature)
            plain = targets if isinstance(targets, SparseTargets) else as_numpy(case.teacher_NV)
            want = definition.loss(
                formula, as_numpy(case.logits()), plain, objective, case.ids_N.cpu().numpy()
            )
            worst = highest(worst, abs(run(path, case, targets, objective).loss / want - 1))
    return worst


def differences(path: LossPath, case: Case) -> float:
    """Central differences along a random direction of states, weights and bias, through cap and scale."""
    generator, worst, step = torch.Generator().manual_seed(SEED), 0.0, 1e-5
    head = replace(case.head, scale=0.7, softcap=5.0)
    leaves = [case.hidden_ND, head.weight_VD, some(head.bias_V)]
    ways = [torch.randn(leaf.shape, generator=generator).to(leaf) for leaf in leaves]

    def moved(by: float) -> Case:
        hidden, weight, bias = (leaf.detach() + by * way for leaf, way in zip(leaves, ways, strict=True))
        return replace(case, hidden_ND=hidden, head=replace(head, weight_VD=weight, bias_V=bias))

    way = torch.cat([way.flatten() for way in ways])
    for divergence, _ in FORMULAS.values():
        for kind in kinds(divergence):
            objective = Objective(divergence, 2.0, 0.3)
            targets = as_targets(kind, case, case.teacher_NV, 2.0)
            up, down = (run(path, moved(by), targets, objective).loss for by in (step, -step))
            slope = float(run(path, moved(0.0), targets, objective).slope @ way)
            worst = highest(worst, abs((up - down) / (2 * step) / slope - 1))
    return worst


def drawn(path: LossPath, case: Case, head: int, draws: int) -> float:
    """The mean gradient by the state of one position whose student is the teacher, over many draws of its
    targets, in standard errors of its largest coordinate."""
    generator = torch.Generator(case.hidden_ND.device).manual_seed(SEED)
    many = replace(case, hidden_ND=case.hidden_ND[:1].repeat(DRAWS, 1), ids_N=case.ids_N[:1].repeat(DRAWS))
    targets = stratified(many.logits().detach().log_softmax(-1), head, draws, generator)
    each_ND = run(path, many, targets, Objective()).slope[: DRAWS * D].view(DRAWS, D)
    return float((each_ND.mean(0) / (each_ND.std(0) / math.sqrt(DRAWS))).abs().max())


def all_named(path: LossPath, case: Case) -> float:
    named = stratified(case.teacher_NV.log_softmax(-1), V, 0)
    return apart(run(path, case, named, Objective()), run(path, case, case.teacher_NV, Objective()))


def ends(path: LossPath, case: Case) -> float:
    worst = 0.0
    for beta, end in ((1e-3, forward_kl), (1 - 1e-3, reverse_kl)):
        near = run(path, case, case.teacher_NV, Objective(partial(jensen_shannon, beta=beta))).loss
        worst = highest(worst, abs(near / run(path, case, case.teacher_NV, Objective(end)).loss - 1))
    return worst


def chunks(path: LossPath, case: Case) -> float:
    worst = 0.0
    for kind in KINDS:
        targets = as_targets(kind, case, case.teacher_NV, 1.0)
        one, *others = [run(path, case, targets, Objective(hard=0.3), chunk=chunk) for chunk in (1, 5, N)]
        worst = highest(worst, *(apart(one, other) for other in others))
    return worst


def micro_batches(path: LossPath, case: Case, processes: int) -> float:
    """The gradient of one batch against that of three unequal parts, each normalised by all that count;
    with two processes the parts' gradients are averaged as data parallel training does."""
    objective, found = Objective(hard=0.3), []
    for parts, among in (((slice(0, N),), 1), ((slice(0, 1), slice(1, 8), slice(8, N)), processes)):
        hidden_ND = case.hidden_ND.detach().requires_grad_()
        weight_VD = case.head.weight_VD.detach().requires_grad_()
        head = replace(case.head, weight_VD=weight_VD)
        done = [path(hidden_ND[p], head, case.teacher_NV[p], objective, case.ids_N[p]) for p in parts]
        count = sum(n for _, n in done)
        (torch.stack([normalised(total, count, among) for total, _ in done]).sum() / among).backward()
        found.append(torch.cat([some(hidden_ND.grad).flatten(), some(weight_VD.grad).flatten()]))
    return float((found[0] - found[1]).norm() / found[0].norm())


def whole(path: LossPath, case: Case) -> float:
    """As of a classifier, with temperature and labels as by Hinton, Vinyals and Dean 2015."""
    objective = Objective(temperature=20.0, hard=0.1)
    leaf_NV = case.logits().detach().requires_grad_()
    total, count = distil(leaf_NV, case.teacher_NV, objective, case.ids_N)
    total.backward()
    plain = replace(case, hidden_ND=case.logits().detach(), head=Head(torch.eye(V).to(case.hidden_ND)))
    got = run(path, plain, case.teacher_NV, objective)
    want = Run(float(total.detach()), some(leaf_NV.grad).flatten(), count)
    return apart(replace(got, slope=got.slope[: N * V]), want)


def shard_order(path: LossPath, case: Case) -> float:
    """Rows of 3, 1 and 8 positions, packed as a shard packs them, read in two orders."""
    worst, rows, device = 0.0, torch.arange(N).split([3, 1, 8]), case.hidden_ND.device
    for head, draws in ((6, 0), (3, 4)):
        binding = Binding("t", "", "", "", V, head, draws)
        generator = torch.Generator(device).manual_seed(SEED)
        logt_NV = case.teacher_NV.log_softmax(-1)
        blocks = [encode(binding, packed(stratified(logt_NV[row], head, draws, generator))) for row in rows]
        found = []
        for order in ((0, 1, 2), (2, 0, 1)):
            read = [np.frombuffer(blocks[row], np.uint8) for row in order]
            sizes = np.array([len(rows[row]) for row in order])
            targets = unpacked(decode(binding, read, sizes), draws > 0).to(device)
            at_N = torch.cat([rows[row] for row in order]).to(device)
            moved = replace(case, hidden_ND=case.hidden_ND[at_N], ids_N=case.ids_N[at_N])
            made = run(path, moved, targets, Objective())
            own_ND = made.slope[: N * D].view(N, D)[at_N.argsort()]
            found.append(replace(made, slope=torch.cat([own_ND.flatten(), made.slope[N * D :]])))
        worst = highest(worst, apart(*found))
    return worst


def layouts(path: LossPath, case: Case, predicting: Callable[[Tensor], Tensor]) -> float:
    """Three answers, one of a single token and one that begins with its row's second token, in three layouts
    (rows padded on the right, on the left, packed into one), against each token from its own prefix alone."""
    ids = torch.randint(1, V, (15,), generator=torch.Generator().manual_seed(SEED)).to(case.ids_N)
    rows, starts = ids.split([6, 5, 4]), (3, 4, 1)
    prefixes = [(row, k) for row, start in zip(rows, starts, strict=True) for k in range(start, len(row))]
    states_MD = torch.stack(
        [states(case.head, row[None, :k], torch.zeros(1, k))[0, -1] for row, k in prefixes]
    )
    alone = replace(case, hidden_ND=states_MD, ids_N=torch.stack([row[k] for row, k in prefixes]))
    teacher_MV, objective, worst = case.teacher_NV[: len(prefixes)], Objective(hard=0.5), 0.0
    want = run(path, alone, teacher_MV, objective)
    for shape, firsts in (((3, 8), (0, 8, 16)), ((3, 8), (2, 11, 20)), ((1, 15), (0, 6, 11))):
        ids_F = torch.zeros(shape[0] * shape[1], dtype=ids.dtype, device=ids.device)
        part_F, trained_F = torch.full(ids_F.shape, -1.0), torch.zeros(ids_F.shape, dtype=torch.bool)
        for number, (row, start, first) in enumerate(zip(rows, starts, firsts, strict=True)):
            ids_F[first : first + len(row)] = row
            part_F[first : first + len(row)] = number
            trained_F[first + start : first + len(row)] = True
        at_M = predicting(trained_F.view(shape)).to(ids.device)
        hidden_FD = states(case.head, ids_F.view(shape), part_F.view(shape)).flatten(0, 1)
        laid = replace(case, hidden_ND=hidden_FD[at_M], ids_N=ids_F[at_M + 1])
        worst = highest(worst, apart(want, run(path, laid, teacher_MV, objective)))
    return worst


def states(head: Head, ids_BT: Tensor, part_BT: Tensor) -> Tensor:
    """A causal model of one line: each place sees the tokens of its own part up to itself. Places of no part,
    the padding, hold large nonsense."""
    part_BT = part_BT.to(ids_BT.device)
    sees_BTT = torch.tril(part_BT[:, :, None] == part_BT[:, None, :])
    hidden_BTD = torch.tanh(sees_BTT.to(head.weight_VD) @ head.weight_VD.detach()[ids_BT])
    return hidden_BTD.masked_fill((part_BT < 0)[..., None], 7.0)


def nothing(path: LossPath, case: Case) -> float:
    """0 where no position counts: no loss, and a gradient for everything that is 0 and not missing."""
    empty = replace(case, hidden_ND=case.hidden_ND[:0], ids_N=case.ids_N[:0])
    made = [run(path, empty, as_targets(kind, case, case.teacher_NV, 1.0)[:0], Objective()) for kind in KINDS]
    found = [abs(each.loss) + float(each.slope.abs().sum()) + each.count for each in made]
    return highest(*found) + float(normalised(torch.zeros(()), 0))


def unknown(path: LossPath, case: Case) -> float:
    """A position without entries counts nothing and changes nothing; where cross-entropy is mixed it bears
    its share of that."""
    worst, known = 0.0, replace(case, hidden_ND=case.hidden_ND[1:], ids_N=case.ids_N[1:])
    soft, mixed = Objective(), Objective(hard=0.5)
    for kind in ("tail bucket", "sampled"):
        targets = as_targets(kind, case, case.teacher_NV, 1.0)
        assert isinstance(targets, SparseTargets)
        weights_NK, tail_N = targets.log_weights_NK.clone(), targets.log_tail_N
        weights_NK[0] = -torch.inf
        if tail_N is not None:
            tail_N = torch.cat([torch.zeros_like(tail_N[:1]), tail_N[1:]])
        first = SparseTargets(targets.ids_NK, weights_NK, tail_N)
        made = run(path, case, first, soft)
        want = run(path, known, first[1:], soft)
        worst = highest(
            worst, float(made.slope[:D].abs().max()), apart(want, replace(made, slope=made.slope[D:]))
        )
        whole, rest = run(path, case, first, mixed), run(path, known, first[1:], mixed)
        alone = float(mixed.hard * cross_entropy(case.logits()[:1], case.ids_N[:1])[0])
        worst = highest(worst, abs((rest.loss + alone) / whole.loss - 1), abs(whole.count - N))
    return worst


def padded_vocabulary(path: LossPath, case: Case) -> float:
    """Rows that only pad the head, and columns that pad the teacher's logits, hold large nonsense."""
    junk_VD = torch.full((8, D), 9.0).to(case.hidden_ND)
    bias_V = torch.cat([some(case.head.bias_V), torch.full((8,), 9.0).to(case.hidden_ND)])
    wide = replace(case, head=Head(torch.cat([case.head.weight_VD, junk_VD]), bias_V))
    teacher_NV = torch.cat([case.teacher_NV, torch.full((N, 8), 50.0).to(case.hidden_ND)], -1)
    worst = 0.0
    for kind in ("dense", "tail bucket", "sampled"):
        targets = as_targets(kind, case, case.teacher_NV, 1.0)
        made = run(path, wide, teacher_NV if kind == "dense" else targets, Objective(hard=0.3), vocabulary=V)
        hidden, weight, bias = made.slope.split([N * D, (V + 8) * D, V + 8])
        real = torch.cat([hidden, weight[: V * D], bias[:V]])
        worst = highest(
            worst, apart(run(path, case, targets, Objective(hard=0.3)), replace(made, slope=real))
        )
        worst = highest(worst, float(weight[V * D :].abs().max()), float(bias[V:].abs().max()))
    return worst


def no_share(path: LossPath, case: Case) -> float:
    """Without a share of cross-entropy the tokens are not looked at, and may be none."""
    none = replace(case, ids_N=torch.full_like(case.ids_N, -100))
    made = [run(path, each, case.teacher_NV, Objective()) for each in (case, none)]
    return apart(*made)


def capped(path: LossPath, case: Case) -> float:
    worst = 0.0
    for scale, cap in ((0.0625, None), (3.0, None), (1.0, 3.0), (0.5, 2.0)):
        raw_NV = as_numpy(case.hidden_ND) @ as_numpy(case.head.weight_VD).T + as_numpy(some(case.head.bias_V))
        logits_NV = scale * raw_NV if cap is None else cap * np.tanh(scale * raw_NV / cap)
        formula, objective = FORMULAS["forward KL"][1], Objective(hard=0.3)
        ids_N = case.ids_N.cpu().numpy()
        want = definition.loss(formula, logits_NV, as_numpy(case.teacher_NV), objective, ids_N)
        made = replace(case, head=replace(case.head, scale=scale, softcap=cap))
        worst = highest(worst, abs(run(path, made, case.teacher_NV, objective).loss / want - 1))
    return worst


def bfloat16(path: LossPath, case: Case) -> float:
    """Products come out in bfloat16; from there on nothing else may be lost."""
    head = Head(case.head.weight_VD.bfloat16())
    rough, worst = replace(case, hidden_ND=case.hidden_ND.bfloat16(), head=head), 0.0
    for name in ("forward KL", "reverse KL"):
        divergence, formula = FORMULAS[name]
        arguments = as_numpy(rough.logits()), as_numpy(case.teacher_NV), Objective(divergence)
        want = definition.loss(formula, *arguments, case.ids_N.cpu().numpy())
        worst = highest(worst, abs(run(path, rough, case.teacher_NV, Objective(divergence)).loss / want - 1))
    return worst


def extreme(path: LossPath, case: Case) -> float:
    """One student, sure of id 0 by 30,000 nats, and what its loss then is by hand."""
    high, half = 3e4, math.log(0.5)
    student_NV, teacher_NV = torch.zeros(1, V), torch.zeros(1, V)
    student_NV[0, 0] = teacher_NV[0, 1] = high
    made = Case(
        student_NV.to(case.hidden_ND), Head(torch.eye(V).to(case.hidden_ND)), teacher_NV, case.ids_N[:1]
    )
    outside = SparseTargets(torch.tensor([[1, 2]]), torch.tensor([[half, half]]), torch.tensor([-torch.inf]))
    inside = SparseTargets(torch.tensor([[0]]), torch.tensor([[half]]), torch.tensor([half]))
    wanted: list[tuple[Targets, Divergence, float]] = [
        (teacher_NV, forward_kl, high),
        (teacher_NV, reverse_kl, high),
        (teacher_NV, skew_kl, -math.log(0.1)),
        (outside, forward_kl, high + half),
        (inside, forward_kl, 0.5 * (high - math.log(V - 1)) + half),
    ]
    worst = 0.0
    for targets, divergence, want in wanted:
        found = run(path, made, targets.to(case.hidden_ND.device), Objective(divergence))
        worst = highest(
            worst, abs(found.loss / want - 1), 0.0 if bool(found.slope.isfinite().all()) else math.inf
        )
    return worst


# ---------------------------------------------------------------- how it is measured


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A loss, its gradients by states, weights and bias in one vector, and how many positions counted."""

    loss: float
    slope: Tensor
    count: int


def run(
    path: LossPath,
    case: Case,
    targets: Targets | None,
    objective: Objective,
    vocabulary: int | None = None,
    chunk: int | None = None,
) -> Run:
    leaves = [case.hidden_ND, case.head.weight_VD]
    leaves += [] if case.head.bias_V is None else [case.head.bias_V]
    hidden_ND, weight_VD, *bias = (leaf.detach().requires_grad_() for leaf in leaves)
    head = replace(case.head, weight_VD=weight_VD, bias_V=bias[0] if bias else None)
    total, count = path(hidden_ND, head, targets, objective, case.ids_N, vocabulary, chunk)
    slopes = torch.autograd.grad(total, [hidden_ND, weight_VD, *bias])
    return Run(float(total.detach()), torch.cat([slope.flatten() for slope in slopes]), count)


def apart(one: Run, other: Run) -> float:
    """Relative difference of two runs that should be one."""
    if one.count != other.count:
        return math.inf
    slopes = (one.slope - other.slope).norm() / one.slope.norm()
    return highest(abs(other.loss / one.loss - 1), float(slopes))


def highest(*values: float) -> float:
    """The largest, and NaN where one is NaN; `max` would drop it."""
    return float(np.max(values))


def make_case(device: torch.device, dtype: torch.dtype) -> Case:
    generator = torch.Generator().manual_seed(SEED)

    def normal(*shape: int, size: float) -> Tensor:
        return (size * torch.randn(shape, generator=generator)).to(device, dtype)

    ids_N = torch.randint(V, (N,), generator=generator).to(device)
    head = Head(normal(V, D, size=0.6), normal(V, size=0.5))
    return Case(normal(N, D, size=1.0), head, normal(N, V, size=2.0), ids_N)


def as_targets(kind: str, case: Case, teacher_NV: Tensor, temperature: float) -> Targets:
    """The teacher of these logits as targets of a kind; drawn ones by the same draws each time."""
    if kind == "dense":
        return teacher_NV
    if kind == "states":
        return TeacherStates(teacher_NV, Head(torch.eye(V).to(teacher_NV)))
    generator = torch.Generator(teacher_NV.device).manual_seed(SEED)
    logt_NV = (teacher_NV / temperature).log_softmax(-1)
    made = stratified(logt_NV, *((6, 0) if kind == "tail bucket" else (3, 5)), generator)
    return replace(made, temperature=temperature)


def kinds(divergence: Divergence) -> Sequence[str]:
    return KINDS if divergence is forward_kl else KINDS[:3]


def packed(targets: SparseTargets) -> PackedTargets:
    """As capture packs them: drawn ids once, with the sum of their weights, after the head."""
    ids: list[int] = []
    weights: list[float] = []
    sizes = [0]
    for ids_K, weights_K in zip(targets.ids_NK.tolist(), targets.log_weights_NK.tolist(), strict=True):
        masses: dict[int, float] = {}
        for number, weight in zip(ids_K, weights_K, strict=True):
            masses[number] = masses.get(number, 0.0) + math.exp(weight)
        ids += masses
        weights += [math.log(mass) for mass in masses.values()]
        sizes.append(sizes[-1] + len(masses))
    tail_N = np.full(len(sizes) - 1, -np.inf) if targets.log_tail_N is None else as_numpy(targets.log_tail_N)
    as_read = np.array(ids, np.int32), np.array(weights, np.float32), tail_N.astype(np.float32)
    return PackedTargets(np.array(sizes), *as_read)


def as_numpy(values: Tensor) -> NDArray[np.float64]:
    return np.asarray(values.detach().cpu().double().numpy())


def some(value: Tensor | None) -> Tensor:
    assert value is not None
    return value
