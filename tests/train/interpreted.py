"""The Triton kernel in Triton's interpreter, beside torch in float64: run by `test_kernels.py`, as the
interpreter must be asked for before Triton is imported."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.train.losses import (
    Head,
    Objective,
    SparseTargets,
    cross_entropy,
    head_loss,
    jensen_shannon,
    position_losses,
    selftest,
    stratified,
)
from stillhouse.train.losses import kernel_checks as beside
from stillhouse.train.losses.kernels import row_losses

CPU = torch.device("cpu")
UNIT = 2.0**-7  # of bfloat16: the interpreter cuts digits off where a GPU rounds

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of what is then left out


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    """Rows of a few dozen logits in several blocks, as rows of 150,000 are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stillhouse.train.losses.kernels.BLOCK_LOGITS", 16)
        patch.setattr(beside, "SIZES", (37, 64))
        patch.setattr(beside, "POSITIONS", 4)
        yield


def normal(*shape, seed, size=1.0):
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sparse(kind, logt, temperature, seed):
    generator = torch.Generator().manual_seed(seed)
    many = logt.shape[1]
    head, draws = {"tail": (min(5, many), 0), "sampled": (min(2, many), 6), "drawn": (0, 9)}[kind]
    return replace(stratified(logt, head, draws, generator), temperature=temperature)


def wanted(raw, head, targets, objective, ids):
    """Losses and derivative by the logits, by autograd and in float64."""
    leaf = raw.double().requires_grad_()
    if targets is None:
        losses = torch.stack(
            [cross_entropy(head.finish(z[None]), i[None])[0] for z, i in zip(leaf, ids, strict=True)]
        )
    else:
        losses = position_losses(head.finish(leaf), targets, objective, ids)
    return losses, torch.autograd.grad(losses.sum(), leaf)[0]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(["none", "tail", "sampled", "drawn"]),
    vocabulary=st.integers(2, 70),
    positions=st.integers(1, 3),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    hard=st.sampled_from([0.0, 0.3]),
    scale=st.sampled_from([1.0, 0.125, -2.0]),
    cap=st.sampled_from([None, 0.5, 30.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    none=st.sampled_from([0.0, 0.3, 1.0]),
    size=st.sampled_from([0.0, 1.0, 50.0]),
    seed=st.integers(0, 99),
)
def test_each_loss_and_each_derivative(
    kind, vocabulary, positions, temperature, hard, scale, cap, dtype, none, size, seed
):
    """Rows that no block divides, ids that stand twice, entries that are none, positions that nothing is
    known of, logits that are all 0."""
    raw = normal(positions, vocabulary, seed=seed, size=size).to(dtype)
    head = Head(torch.empty(vocabulary, 0), None, scale, cap)
    ids = torch.randint(vocabulary, (positions,), generator=torch.Generator().manual_seed(seed))
    objective, targets = Objective(temperature=temperature, hard=hard if kind != "none" else 1.0), None
    if kind != "none":
        logt = normal(positions, vocabulary, seed=seed + 1, size=2.0).log_softmax(-1)
        targets = sparse(kind, logt, temperature, seed)
        gone = torch.rand(targets.ids_NK.shape, generator=torch.Generator().manual_seed(seed)) < none
        weights = targets.log_weights_NK.masked_fill(gone, -torch.inf)
        targets = replace(targets, log_weights_NK=weights, ids_NK=targets.ids_NK.masked_fill(gone, 0))
        if targets.log_tail_N is not None:  # of an unknown position all is tail
            tail = torch.where(targets.known_N, targets.log_tail_N, 0.0)
            targets = replace(targets, log_tail_N=tail)
    losses, slopes = wanted(raw, head, targets, objective, ids)
    made = raw.clone()
    got = row_losses(made, head, targets, objective, ids if objective.hard else None, True)
    assert got.dtype == torch.float32
    bound = 1e-5 * max(1.0, temperature**2)  # what is small was a difference of larger numbers
    torch.testing.assert_close(got.double(), losses, rtol=2e-5, atol=bound)
    near = 2e-5 if dtype == torch.float32 else UNIT
    torch.testing.assert_close(made.double(), slopes, rtol=near, atol=bound * max(1.0, abs(scale)))
    unlearnt = row_losses(raw.clone(), head, targets, objective, ids if objective.hard else None, False)
    assert torch.equal(unlearnt, got)


@pytest.mark.parametrize("kind", ["none", "tail", "sampled"])
def test_an_id_that_cannot_be(kind):
    """A logit of -inf, named or not, by the head's bias, beside torch in float64."""
    hidden, weight = normal(4, 6, seed=1), normal(40, 6, seed=2)
    bias = normal(40, seed=3).index_fill(0, torch.tensor([0, 7, 39]), -torch.inf)
    ids = torch.tensor([1, 2, 3, 4])
    objective = Objective(hard=1.0 if kind == "none" else 0.3)
    logt = normal(4, 40, seed=4).index_fill(1, torch.tensor([7, 39]), -torch.inf).log_softmax(-1)
    for first in (5, 0):  # ids that the teacher names: none that cannot be, one of them
        targets = None
        if kind != "none":
            targets = sparse(kind, logt, 1.0, 3)
            targets = replace(targets, ids_NK=targets.ids_NK.masked_fill(targets.ids_NK == 0, 12))
            targets = SparseTargets(*distinct(targets, first))
        found = []
        for dtype, kernel in ((torch.float64, None), (torch.float32, row_losses)):
            leaves = [each.to(dtype).requires_grad_() for each in (hidden, weight, bias)]
            with beside.using(kernel, CPU):
                total, _ = head_loss(leaves[0], Head(*leaves[1:]), targets, objective, ids)
            found.append([total.detach(), *torch.autograd.grad(total, leaves)])
        for want, got in zip(*found, strict=True):
            torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


def distinct(targets, first):
    """The targets with other ids: 0 where `first` is, all ids of a position different."""
    ids = (first + torch.arange(targets.ids_NK.shape[1])).expand_as(targets.ids_NK).contiguous()
    ids = torch.where(ids == 7, 30, ids)
    return ids, targets.log_weights_NK, targets.log_tail_N


def test_a_tail_that_no_id_is_left_for():
    logt = normal(3, 9, seed=1).log_softmax(-1)
    targets = stratified(logt, 9, 0)
    raw, head = normal(3, 9, seed=2), Head(torch.empty(9, 0))
    losses, slopes = wanted(raw, head, targets, Objective(), None)
    got = row_losses(raw, head, targets, Objective(), None, True)
    torch.testing.assert_close(got.double(), losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(raw.double(), slopes, rtol=1e-5, atol=1e-6)


def test_a_tail_of_next_to_nothing_keeps_its_digits():
    """The student leaves e^-60 to the ids that are not named; 1 minus the rest would be 0."""
    raw = normal(2, 33, seed=1)
    raw[:, 4] += 60.0
    targets = SparseTargets(
        torch.tensor([[4], [4]]), torch.full((2, 1), math.log(0.75)), torch.full((2,), math.log(0.25))
    )
    head = Head(torch.empty(33, 0))
    losses, slopes = wanted(raw, head, targets, Objective(), None)
    got = row_losses(raw, head, targets, Objective(), None, True)
    torch.testing.assert_close(got.double(), losses, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(raw.double(), slopes, rtol=1e-5, atol=1e-9)


def test_what_is_no_number_is_not_hidden():
    head, targets = Head(torch.empty(20, 0)), stratified(normal(3, 20, seed=1).log_softmax(-1), 4, 0)
    ids = torch.tensor([1, 2, 3])
    broken = normal(3, 20, seed=2)
    broken[1, 17] = torch.nan
    for objective, given_targets in ((Objective(), targets), (Objective(hard=1.0), None)):
        losses = row_losses(broken.clone(), head, given_targets, objective, ids, True)
        assert losses.isnan().tolist() == [False, True, False]
    losses = row_losses(
        normal(3, 20, seed=2), head, None, Objective(hard=1.0), torch.tensor([1, 20, -1]), True
    )
    assert losses.isnan().tolist() == [False, True, True]
    outside = replace(targets, ids_NK=targets.ids_NK.index_fill(1, torch.tensor([0]), 20))
    assert row_losses(normal(3, 20, seed=2), head, outside, Objective(), None, True).isnan().all()


@pytest.mark.parametrize("kind", ["none", "tail", "sampled"])
@pytest.mark.parametrize("chunk", [1, 3, 50])
def test_the_whole_of_head_and_loss(kind, chunk):
    """Through `head_loss`: chunks, a padded vocabulary, a bias, a scaled gradient, frozen parts, autocast."""
    hidden, weight, bias = normal(7, 5, seed=1), normal(45, 5, seed=2), normal(45, seed=3)
    ids, vocabulary = torch.arange(7), 41
    targets = None if kind == "none" else sparse(kind, normal(7, 41, seed=4).log_softmax(-1), 1.0, 5)
    objective = Objective(hard=1.0 if kind == "none" else 0.5)

    def made(kernel, autocast=False, frozen=()):
        leaves = [
            each.clone().requires_grad_(n not in frozen) for n, each in enumerate((hidden, weight, bias))
        ]
        used = []

        def seen(*given):
            used.append(len(given[0]))
            return kernel(*given)

        with beside.using(kernel and seen, CPU), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            total, count = head_loss(
                leaves[0], Head(leaves[1], leaves[2], 0.5, 6.0), targets, objective, ids, vocabulary, chunk
            )
        assert sum(used) == (7 if kernel else 0)
        slopes = torch.autograd.grad(3.0 * total, [leaf for leaf in leaves if leaf.requires_grad])
        return [total.detach(), torch.tensor(count), *slopes]

    for frozen in ((), (1, 2), (0,)):
        for want, got in zip(made(None, frozen=frozen), made(row_losses, frozen=frozen), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    for want, got in zip(made(None, autocast=True), made(row_losses, autocast=True), strict=True):
        torch.testing.assert_close(got, want, rtol=UNIT, atol=3 * UNIT * float(want.abs().max()))


def test_what_looks_at_all_ids_stays_in_torch():
    def never(*given):
        raise AssertionError("not for this loss")

    hidden, weight, ids = normal(3, 5, seed=1), normal(200, 5, seed=2), torch.arange(3)
    logt = normal(3, 200, seed=4).log_softmax(-1)
    tail = stratified(logt, 4, 0)
    with beside.using(never, CPU):
        head_loss(hidden, Head(weight), logt, Objective(), ids)
        head_loss(hidden, Head(weight), tail, Objective(jensen_shannon), ids)
        head_loss(hidden, Head(weight), stratified(logt, 150, 0), Objective(), ids)
        head_loss(hidden.double(), Head(weight.double()), tail, Objective(), ids)
        with pytest.raises(AssertionError):
            head_loss(hidden, Head(weight), tail, Objective(), ids)


def test_the_self_test_holds_with_the_kernel(monkeypatch):
    monkeypatch.setattr("stillhouse.train.losses.checks.DRAWS", 100)
    with beside.using(row_losses, CPU):
        assert [check for check in selftest.self_test() if not check.holds] == []


def test_the_comparison_of_a_gpu_holds_and_sees_a_small_mistake():
    assert [check for check in selftest.kernels_equal(CPU) if not check.holds] == []

    def wrong(logits, *given):
        losses = row_losses(logits, *given)
        logits[:, -1] *= 1.01
        return losses

    assert beside.kernel_apart(wrong, CPU, torch.float32) > 1e-5
