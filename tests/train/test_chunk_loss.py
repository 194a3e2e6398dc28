"""The loss across tokenizers, against the same formulas written plainly."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.train.losses import ChunkTargets, Head, chunk_loss, token_logprobs
from stillhouse.train.losses.chunks import chunk_losses, log1mexp

logs = st.floats(-60.0, -1e-6)


def plain(logp, logt, temperature):
    """A Bernoulli KL with the probabilities themselves, in numpy's longest floats."""
    p, t = (np.exp(np.longdouble(value) / temperature) for value in (logp, logt))
    rest = 0 if t == 1 else (1 - t) * np.log((1 - t) / (1 - p))
    return float(temperature * (t * np.log(t / p) + rest))


def tensor(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


@settings(max_examples=300, deadline=None)
@given(logs, logs, st.sampled_from([1.0, 10.0, 100.0, 1e4]))
def test_a_chunks_loss_is_its_definition(logp, logt, temperature):
    found = float(chunk_losses(tensor(logp), tensor(logt), temperature))
    assert found == pytest.approx(plain(logp, logt, temperature), rel=1e-6, abs=1e-9)
    assert found >= -1e-9
    rough = float(
        chunk_losses(tensor(logp, dtype=torch.float32), tensor(logt, dtype=torch.float32), temperature)
    )
    assert rough == pytest.approx(found, rel=1e-3, abs=2e-4)


def test_golden_values():
    """t = 1/2 and p = 1/4 by hand: half of log 2 and half of log (1/2 / 3/4); and the limit of high T."""
    half, quarter = math.log(0.5), math.log(0.25)
    assert float(chunk_losses(tensor(quarter), tensor(half), 1.0)) == pytest.approx(
        0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    )
    a, b = 3.0, 5.0
    limit = a * math.log(a / b) - a + b
    assert float(chunk_losses(tensor(-b), tensor(-a), 1e6)) == pytest.approx(limit, rel=1e-4)
    assert float(chunk_losses(tensor(-b), tensor(-a))) == pytest.approx(limit, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1.0, 100.0])
def test_a_student_that_agrees_has_no_loss_and_no_gradient(dtype, temperature):
    held = tensor(0.0, -1e-9, -1e-3, -0.7, -3.0, -50.0, -900.0, dtype=dtype)
    own = held.clone().requires_grad_()
    loss = chunk_losses(own, held, temperature)
    loss.sum().backward()
    assert loss.abs().max() == 0
    assert own.grad.abs().max() < 1e-5


@settings(max_examples=100, deadline=None)
@given(st.floats(-30.0, -1e-3), st.floats(-30.0, -1e-3), st.sampled_from([1.0, 100.0]))
def test_the_gradient_is_that_of_the_loss(logp, logt, temperature):
    own, step = tensor(logp).requires_grad_(), 1e-6 * abs(logp)
    chunk_losses(own, tensor(logt), temperature).sum().backward()
    up, down = (plain(logp + by, logt, temperature) for by in (step, -step))
    assert float(own.grad) == pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-5)


def test_a_certain_teacher_gives_the_gradient_of_cross_entropy():
    own = tensor(-0.1, -2.0, -9.0).requires_grad_()
    chunk_losses(own, torch.zeros(3, dtype=torch.float64)).sum().backward()
    assert own.grad.tolist() == pytest.approx([-1.0] * 3, rel=0.06)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_overflows(dtype):
    ends = tensor(0.0, -1e-12, -1e-7, -100.0, -65504.0, dtype=dtype)
    own, held = (each.flatten() for each in torch.meshgrid(ends, ends, indexing="ij"))
    own = own.clone().requires_grad_()
    loss = chunk_losses(own, held)
    loss.sum().backward()
    assert bool(loss.isfinite().all() and own.grad.isfinite().all())


@settings(max_examples=200, deadline=None)
@given(st.floats(-700.0, -1e-15))
def test_log1mexp(value):
    own = tensor(value).requires_grad_()
    found = log1mexp(own)
    want = np.log(-np.expm1(np.longdouble(value))) if value > -1 else np.log1p(-np.exp(np.longdouble(value)))
    assert float(found.detach()) == pytest.approx(float(want), rel=1e-12)
    found.sum().backward()
    assert math.isfinite(float(own.grad))


def targets(chunk, before, *held):
    numbers = (torch.tensor(each, dtype=torch.int64) for each in (chunk, before))
    return ChunkTargets(*numbers, tensor(*held), torch.tensor([0]))


def test_chunks_are_sums_with_their_border_and_what_belongs_to_none_is_left_out():
    own, border = (
        tensor(*values).requires_grad_() for values in ((-1.0, -2, -3, -4, -5), (-0.5, -6, -7, -8, -9))
    )
    asked = targets([0, 0, 2, 1, 2], [2, 2, 0, 2, 1], -2.5, -4.0)
    total, chunks = chunk_loss(own, border, asked, 10.0)
    assert chunks == 2
    assert float(total.detach()) == pytest.approx(plain(-10.0, -2.5, 10.0) + plain(-13.0, -4.0, 10.0))
    total.backward()
    assert own.grad[0] == own.grad[1] == border.grad[2] != 0
    assert own.grad[[2, 4]].tolist() == [0.0, 0.0]
    assert border.grad[[0, 1, 3]].tolist() == [0.0, 0.0, 0.0]
    assert float(chunk_loss(own, border, targets([0] * 5, [0] * 5))[0].detach()) == 0.0


def test_padding_and_the_order_of_chunks_change_nothing():
    generator = torch.Generator().manual_seed(1)
    own, border = (-torch.rand(40, generator=generator, dtype=torch.float64) * 4 for _ in range(2))
    number = torch.sort(torch.randint(0, 9, (40,), generator=generator)).values
    before = torch.randint(0, 10, (40,), generator=generator)
    held = -torch.rand(9, generator=generator, dtype=torch.float64) * 9
    ids = torch.tensor([0])
    want = float(chunk_loss(own, border, ChunkTargets(number, before, held, ids))[0])
    order, shuffled = torch.randperm(9, generator=generator), torch.randperm(40, generator=generator)
    name = torch.cat([order.argsort(), torch.tensor([9])])
    moved = ChunkTargets(name[number][shuffled], name[before][shuffled], held[order], ids)
    assert float(chunk_loss(own[shuffled], border[shuffled], moved)[0]) == pytest.approx(want)
    none, junk = torch.full((7,), 9), torch.full((7,), -99.0, dtype=torch.float64)
    padded = ChunkTargets(torch.cat([number, none]), torch.cat([before, none]), held, ids)
    assert float(chunk_loss(torch.cat([own, junk]), torch.cat([border, junk]), padded)[0]) == pytest.approx(
        want
    )


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_token_logprobs_are_those_of_whole_logits(chunk):
    """Also the gradient, a head with scale and cap, and rows that only pad the vocabulary."""
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(12, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(19, 6, generator=generator, dtype=torch.float64)
    ids, edges = torch.randint(0, 17, (12,), generator=generator), torch.tensor([2, 5, 16])
    slope = torch.randn(12, generator=generator, dtype=torch.float64)
    found = []
    for whole in (True, False):
        leaf, matrix = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        head = Head(matrix, None, 0.7, 5.0)
        if whole:
            logp_NV = head.cut(17).logits(leaf).log_softmax(-1)
            logp, border = logp_NV.gather(1, ids[:, None])[:, 0], logp_NV.exp()[:, edges].sum(1).log()
        else:
            logp, border = token_logprobs(leaf, head, ids, edges, 17, chunk)
        ((logp - 0.3 * border) * slope).sum().backward()
        found.append(torch.cat([logp, border, leaf.grad.flatten(), matrix.grad.flatten()]).detach())
    assert torch.allclose(*found, rtol=1e-12, atol=1e-12)
