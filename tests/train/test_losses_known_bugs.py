"""Bugs that trained models silently wrong in the frameworks of the field, planted here one by one.

Each is written anew from its description, put in the place of the loss, and must be caught by the check that
is named; the same check holds for ours (`test_losses.py`). Where a bug lies outside the loss, in how rows and
targets find each other, what catches it is named at the end.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial, wraps

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from stillhouse.errors import LedgerError
from stillhouse.ledger.targets import Binding, ShardWriter, TargetReader
from stillhouse.train.losses import (
    Head,
    Objective,
    SparseTargets,
    distil,
    forward_kl,
    head_loss,
    jensen_shannon,
    places,
    self_test,
    stratified,
    unpacked,
)
from stillhouse.train.losses.checks import packed

BUGS = {}


def caught_by(*checks):
    """The checks that must fail with this bug in place of `head_loss`; others may."""

    def register(bug):
        BUGS[bug.__name__] = (bug, checks)
        return bug

    return register


def failing(*arguments, **named):
    return {check.what for check in self_test(*arguments, **named) if not check.holds}


def test_there_are_no_false_alarms():
    assert failing() == set()


# ---------------------------------------------------------------- objectives


@caught_by("student = teacher, dense: loss and gradient", "forward KL by its definition")
def hidden_halves(hidden, head, targets, objective, ids=None, vocabulary=None, chunk=None):
    """Half cross-entropy and half divergence at another temperature, whatever was asked (TRL#5731)."""
    return head_loss(hidden, head, targets, replace(objective, hard=0.5), ids, vocabulary, chunk)


@caught_by("student = teacher, dense: loss and gradient")
def no_teacher_entropy(hidden, head, targets, objective, ids=None, vocabulary=None, chunk=None):
    """Cross-entropy in place of the divergence, whose least value is not 0 (torchtune, DistiLLM)."""
    soft = replace(objective, divergence=lambda p, t: -(t.exp() * p.clamp(min=-1e30)).sum(-1))
    if isinstance(targets, SparseTargets):
        return head_loss(hidden, head, targets, objective, ids, vocabulary, chunk)
    return head_loss(hidden, head, targets, soft, ids, vocabulary, chunk)


@caught_by("Jensen-Shannon runs into the KLs at its ends")
def undivided_jensen_shannon(hidden, head, targets, objective, ids=None, vocabulary=None, chunk=None):
    """A divergence that drops to 0 beside its special-cased ends (TRL, Liger, ms-swift)."""
    if getattr(objective.divergence, "func", None) is jensen_shannon:
        beta = objective.divergence.keywords["beta"]
        own = objective.divergence
        objective = replace(objective, divergence=lambda p, t: beta * (1 - beta) * own(p, t))
    return head_loss(hidden, head, targets, objective, ids, vocabulary, chunk)


@caught_by("reverse KL by its definition", "forward KL by its definition")
def swapped(hidden, head, targets, objective, ids=None, vocabulary=None, chunk=None):
    """Student and teacher in each other's place (twinkle's docstring swaps the names)."""
    own = objective.divergence
    return head_loss(
        hidden, head, targets, replace(objective, divergence=lambda p, t: own(t, p)), ids, vocabulary, chunk
    )


@caught_by("reported loss is applied gradient")
def only_reported(hidden, head, targets, objective, ids=None, vocabulary=None, chunk=None):
    """T^2 and the share of cross-entropy multiply the number that is shown, not the gradient (axolotl)."""
    bare = replace(objective, hard=0.0)
    applied, count = head_loss(hidden, head, targets, bare, None, vocabulary, chunk)
    applied = applied / objective.temperature**2
    with torch.no_grad():
        shown, _ = head_loss(hidden, head, targets, objective, ids, vocabulary, chunk)
    return applied + (shown - applied.detach()), count


@caught_by("forward KL by its definition")
def no_square_of_temperature(hidden, head, targets, objective, ids=None, vocabulary=None, chunk=None):
    """The soft part fades beside cross-entropy as the temperature rises (TRL, Liger, ms-swift, verl)."""
    soft, count = head_loss(hidden, head, targets, replace(objective, hard=0.0), None, vocabulary, chunk)
    total = (1 - objective.hard) * soft / objective.temperature**2
    if objective.hard:
        total = (
            total + objective.hard * head_loss(hidden, head, None, Objective(hard=1.0), ids, vocabulary)[0]
        )
    return total, count


@caught_by("forward KL by its definition")
def one_temperature_only(hidden, head, targets, objective, ids=None, vocabulary=None, chunk=None):
    """The teacher's logits are left at temperature 1."""
    if isinstance(targets, torch.Tensor):
        targets = targets * objective.temperature
    return head_loss(hidden, head, targets, objective, ids, vocabulary, chunk)


@caught_by("tokens that have no share in the loss")
def cross_entropy_at_no_weight(hidden, head, targets, objective, ids=None, vocabulary=None, chunk=None):
    """Cross-entropy is made and multiplied by 0, so labels that are none break it (Liger)."""
    logits = head.logits(hidden)[:, :vocabulary]
    total, count = distil(logits, targets, objective, ids, vocabulary)
    return total + 0.0 * F.nll_loss(logits.log_softmax(-1), ids, ignore_index=-1, reduction="sum"), count


# ---------------------------------------------------------------- heads and vocabularies


@caught_by("final softcap and logit scale")
def no_cap_and_no_scale(hidden, head, targets, objective, ids=None, vocabulary=None, chunk=None):
    """The model's own scale and cap of its logits are left out (TRL#6629)."""
    bare = Head(head.weight_VD, head.bias_V)
    return head_loss(hidden, bare, targets, objective, ids, vocabulary, chunk)


@caught_by("padded vocabulary")
def padding_takes_part(hidden, head, targets, objective, ids=None, vocabulary=None, chunk=None):
    """Columns that only pad the vocabulary are part of the softmax (Liger pads with 0, not with -inf)."""
    padding = len(head.weight_VD) - (vocabulary or len(head.weight_VD))
    if padding and isinstance(targets, torch.Tensor):
        targets = F.pad(targets[:, :vocabulary], (0, padding))
    return head_loss(hidden, head, targets, objective, ids, None, chunk)


@caught_by("padded vocabulary")
def padding_is_copied(hidden, head, targets, objective, ids=None, vocabulary=None, chunk=None):
    """What one model lacks is filled with the other's logits, which then agree (ms-swift)."""
    if vocabulary and isinstance(targets, torch.Tensor):
        targets = torch.cat([targets[:, :vocabulary], head.logits(hidden)[:, vocabulary:].detach()], -1)
    return head_loss(hidden, head, targets, objective, ids, None, chunk)


@caught_by("bfloat16 products, all else in float32")
def summed_in_bfloat16(hidden, head, targets, objective, ids=None, vocabulary=None, chunk=None):
    """The softmax over the vocabulary in the type of the weights."""
    logits = head.logits(hidden)[:, :vocabulary]
    if logits.dtype != torch.bfloat16:
        return distil(logits, targets, objective, ids, vocabulary)
    logp, logt = logits.log_softmax(-1), targets[:, :vocabulary].log_softmax(-1)
    return objective.divergence(logp, logt).sum(), len(hidden)


@caught_by("logits of tens of thousands")
def probabilities_before_logarithms(hidden, head, targets, objective, ids=None, vocabulary=None, chunk=None):
    """log(softmax(x) + 1e-8): small probabilities are lost, and their gradient with them."""
    own = objective.divergence
    lossy = replace(objective, divergence=lambda p, t: own((p.exp() + 1e-8).log(), (t.exp() + 1e-8).log()))
    return head_loss(hidden, head, targets, lossy, ids, vocabulary, chunk)


# ---------------------------------------------------------------- sparse targets


def sparse_only(loss):
    """A loss over the kept ids in place of ours, for targets that have a tail."""

    @wraps(loss)
    def path(hidden, head, targets, objective, ids=None, vocabulary=None, chunk=None):
        if not isinstance(targets, SparseTargets) or targets.log_tail_N is None or objective.hard:
            return head_loss(hidden, head, targets, objective, ids, vocabulary, chunk)
        logp = (head.logits(hidden)[:, :vocabulary] / objective.temperature).log_softmax(-1)
        near = logp.gather(-1, targets.ids_NK)
        return objective.temperature**2 * loss(near, targets.log_weights_NK, objective), len(hidden)

    return path


@caught_by("student = teacher, tail bucket: loss and gradient", "forward KL by its definition")
@sparse_only
def unnormalised(near, weights, objective):
    """Top-k without the rest, held at 0 where it is below (verl): over-confident by 1 / kept mass."""
    return (weights.exp() * (weights - near)).nansum(-1).clamp(min=0).sum()


@caught_by("student = teacher, tail bucket: loss and gradient")
@sparse_only
def teacher_renormalised(near, weights, objective):
    """The teacher's top-k scaled up to 1 against the student's whole softmax (DistillKit, tinker)."""
    weights = weights.log_softmax(-1)
    return (weights.exp() * (weights - near)).nansum()


@caught_by("forward KL by its definition")
@sparse_only
def both_renormalised(near, weights, objective):
    """Both over the kept ids (ms-swift, twinkle): the student's tail is free. Equal models do not show it."""
    return objective.divergence(near.log_softmax(-1), weights.log_softmax(-1)).sum()


@caught_by("drawn ids: mean gradient, in standard errors")
def counts_without_repeats(hidden, head, targets, objective, ids=None, vocabulary=None, chunk=None):
    """Each drawn id once, all with one weight: how often it was drawn is lost, and likely ids with it."""
    if isinstance(targets, SparseTargets) and targets.log_tail_N is None:
        first = torch.ones_like(targets.ids_NK, dtype=torch.bool)
        for k in range(1, targets.ids_NK.shape[1]):
            first[:, k] = (targets.ids_NK[:, :k] != targets.ids_NK[:, k : k + 1]).all(-1)
        weights = torch.zeros_like(targets.log_weights_NK).masked_fill(~first, -torch.inf).log_softmax(-1)
        targets = replace(targets, log_weights_NK=weights)
    return head_loss(hidden, head, targets, objective, ids, vocabulary, chunk)


@caught_by("head and drawn ids: mean gradient, in standard errors")
def drawn_tail_as_a_head(hidden, head, targets, objective, ids=None, vocabulary=None, chunk=None):
    """A head and a drawn tail, weighed alike and not by the mass that each stands for."""
    if isinstance(targets, SparseTargets) and targets.log_tail_N is None:
        flat = torch.full_like(targets.log_weights_NK, -np.log(targets.ids_NK.shape[1]))
        targets = replace(targets, log_weights_NK=flat)
    return head_loss(hidden, head, targets, objective, ids, vocabulary, chunk)


@caught_by("all ids as sparse targets are dense targets")
def another_loss_from_a_cache(hidden, head, targets, objective, ids=None, vocabulary=None, chunk=None):
    """Cached targets go another way than a teacher at hand, and the same run begins at 0.239 and not at 0.032
    (ms-swift#9671)."""
    if isinstance(targets, SparseTargets):
        targets = replace(targets, log_weights_NK=(targets.log_weights_NK / 0.9).log_softmax(-1))
    return head_loss(hidden, head, targets, objective, ids, vocabulary, chunk)


# ---------------------------------------------------------------- normalisation, chunks, devices


@caught_by("micro-batches of unequal size", "two processes that average their gradients")
def mean_of_each_micro_batch(hidden, head, targets, objective, ids=None, vocabulary=None, chunk=None):
    """A mean for each micro-batch, averaged again over them (TRL#4719, DistillKit)."""
    total, count = head_loss(hidden, head, targets, objective, ids, vocabulary, chunk)
    return total / max(count, 1), 1


@caught_by("micro-batches of unequal size")
def divided_twice(hidden, head, targets, objective, ids=None, vocabulary=None, chunk=None):
    """Divided by the positions here, and again by the caller (EasyDistill 1.0)."""
    total, count = head_loss(hidden, head, targets, objective, ids, vocabulary, chunk)
    return total / max(count, 1), count


@caught_by("chunks of 1, 5 and all positions")
def last_chunk_lost(hidden, head, targets, objective, ids=None, vocabulary=None, chunk=None):
    whole = len(hidden) // (chunk or 1) * (chunk or 1)
    return head_loss(hidden[:whole], head, targets[:whole], objective, ids[:whole], vocabulary, chunk)


@caught_by("no position that counts: loss and gradient")
def mean_of_nothing(hidden, head, targets, objective, ids=None, vocabulary=None, chunk=None):
    """0 / 0 where a rank has no position."""
    total, count = head_loss(hidden, head, targets, objective, ids, vocabulary, chunk)
    return total / torch.tensor(float(count)) * count, count


@caught_by("unknown positions")
def unknown_ones_count(hidden, head, targets, objective, ids=None, vocabulary=None, chunk=None):
    """Positions that the teacher said nothing of make every other one weigh less."""
    return head_loss(hidden, head, targets, objective, ids, vocabulary, chunk)[0], len(hidden)


@caught_by("student = teacher, dense: loss and gradient", "chunks of 1, 5 and all positions")
def crashes(hidden, head, targets, objective, ids=None, vocabulary=None, chunk=None):
    """A path that nobody ever ran (twinkle calls a property)."""
    return hidden.device().total, 0


@caught_by("student = teacher, dense: loss and gradient", "reported loss is applied gradient")
def no_number(hidden, head, targets, objective, ids=None, vocabulary=None, chunk=None):
    total, count = head_loss(hidden, head, targets, objective, ids, vocabulary, chunk)
    return total * torch.nan, count


@pytest.mark.parametrize("name", sorted(BUGS))
def test_a_planted_bug_is_caught(name):
    bug, checks = BUGS[name]
    assert set(checks) <= failing(bug)


# ---------------------------------------------------------------- where positions and targets meet

LAYOUTS = "padded left, right, packed; one-token answers"


def unshifted(trained):
    """Logits at a token's own place (TRL GOLD's default, ms-swift#8436, DistillKit's mask)."""
    return places(trained) + 1


def dead_mask(trained):
    """A mask that lets everything through, padding and prompt (MiniLLM in TRL; Liger#974)."""
    return places(torch.cat([trained[:, :1] & False, torch.ones_like(trained[:, 1:])], 1))


def first_answer_token_lost(trained):
    """Asked of the place that predicts and not of the token that is predicted, so that an answer's first
    token is lost and one after its end is in (DistillKit)."""
    return trained.flatten().nonzero().squeeze(-1)[:-1]


@pytest.mark.parametrize("wrong", [unshifted, dead_mask, first_answer_token_lost])
def test_a_wrong_shift_or_mask_is_caught(wrong):
    assert LAYOUTS in failing(predicting=wrong)


def test_targets_taken_by_their_place_in_time_are_caught(tmp_path):
    """Rows written as threads ended, or read by the number of the step (DistillKit, EasyDistill 1.0): here a
    row is found by its sample and the digest of its ids, in whatever order, or not at all."""
    teacher = torch.randn(6, 30, generator=torch.Generator().manual_seed(0))
    binding = Binding("teacher", "", "tokenizer", "", 30, 30)
    rows = {"first": (slice(0, 4), np.arange(5)), "second": (slice(4, 6), np.arange(9, 12))}
    with ShardWriter(tmp_path, binding) as writer:
        for name, (part, ids) in reversed(rows.items()):
            writer.add(name, ids.astype(np.int32), packed(stratified(teacher[part].log_softmax(-1), 30, 0)))
        reader = TargetReader(tmp_path, [writer.seal().stem], binding)
    at = [reader.locate(name, ids.astype(np.int32), len(ids) - 1) for name, (_, ids) in rows.items()]
    total, count = distil(teacher, unpacked(reader.read(at), False), Objective())
    assert count == 6
    assert 0 <= total.item() < 1e-4  # the student is the teacher, up to fp16
    by_order, _ = distil(teacher, unpacked(reader.read(sorted(at)), False), Objective())
    assert by_order.item() > 0.1
    with pytest.raises(LedgerError, match="other input ids"):
        reader.locate("first", np.arange(1, 6, dtype=np.int32), 4)


def test_vocabularies_of_one_size_are_not_one_vocabulary(tmp_path):
    """Equal sizes let ids of another tokenizer pass (TRL#4562, #6457); a shard names its tokenizer."""
    logt = torch.zeros(2, 8).log_softmax(-1)
    binding = Binding("teacher", "", "digest of one", "", 8, 4)
    with ShardWriter(tmp_path, binding) as writer:
        writer.add("a", np.arange(3, dtype=np.int32), packed(stratified(logt, 4, 0)))
        digest = writer.seal().stem
    with pytest.raises(LedgerError, match="another tokenizer"):
        TargetReader(tmp_path, [digest], replace(binding, tokenizer="digest of another"))


def test_a_cache_of_one_temperature_serves_no_other():
    """Top-k log-probabilities divided by T have no right tail (DistillKit's leftover to the alpha)."""
    targets = stratified(torch.zeros(2, 8).log_softmax(-1), 4, 0)
    with pytest.raises(ValueError, match="cannot be had"):
        head_loss(torch.zeros(2, 3), Head(torch.zeros(8, 3)), targets, Objective(temperature=2.0))


def test_reverse_kl_on_part_of_the_support_does_not_empty_it():
    """Without the tail a student lowers its loss by leaving the support (verl#5041)."""
    logt = torch.randn(1, 20, generator=torch.Generator().manual_seed(1)).mul(2).log_softmax(-1)
    targets = stratified(logt, 5, 0)
    kept = {}
    for name in ("ours", "partial"):
        student = logt.clone().requires_grad_()
        for _ in range(300):
            near = student.log_softmax(-1).gather(-1, targets.ids_NK)
            partial_loss = (near.exp() * (near - targets.log_weights_NK)).sum()
            ours, _ = distil(student, targets, Objective(partial(jensen_shannon, beta=1.0)))
            (slope,) = torch.autograd.grad(ours if name == "ours" else partial_loss, student)
            student.data -= slope
        kept[name] = student.softmax(-1).gather(-1, targets.ids_NK).sum().item()
    assert kept["ours"] == pytest.approx(targets.log_weights_NK.exp().sum().item(), abs=1e-4)
    assert kept["partial"] < 0.75 * kept["ours"]


def test_a_divergence_on_partial_mass_has_another_optimum():
    """The over-confidence of a top-k without its tail is 1 / kept mass; with it there is none."""
    logt = torch.log_softmax(-1.2 * torch.arange(1, 2001).log(), -1)[None]
    targets = stratified(logt, 8, 0)
    student = logt.clone().requires_grad_()
    (slope,) = torch.autograd.grad(distil(student, targets, Objective(forward_kl))[0], student)
    assert slope.abs().max() < 1e-6
    mass = targets.log_weights_NK.exp().sum().item()
    cut = SparseTargets(targets.ids_NK, targets.log_weights_NK)  # as if the eight were all
    (slope,) = torch.autograd.grad(distil(student, cut, Objective())[0], student)
    top = logt[0, 0].exp().item()
    assert slope[0, 0].item() == pytest.approx(mass * top - top, rel=1e-4)
