"""Losses of distillation against other people's numbers, and against the same formulas written plainly."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy
from tiny import tiny_llama
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from train.tiny_student import BASE

from stillhouse.errors import LedgerError, ModelError
from stillhouse.ledger.targets import Binding, ShardWriter, TargetReader
from stillhouse.train.losses import (
    Check,
    Head,
    Objective,
    SparseTargets,
    TeacherStates,
    cross_entropy,
    distil,
    forward_kl,
    head_loss,
    head_of,
    jensen_shannon,
    normalised,
    places,
    position_losses,
    reverse_kl,
    selftest,
    skew_kl,
    skew_reverse_kl,
    sound,
    stratified,
    unpacked,
)
from stillhouse.train.losses.checks import packed

TEACHER, STUDENT = [0.7, 0.2, 0.1], [0.3, 0.4, 0.3]
ALL = {
    "forward": forward_kl,
    "reverse": reverse_kl,
    "middle": partial(jensen_shannon, beta=0.3),
    "skew": skew_kl,
    "skew reverse": skew_reverse_kl,
}


def logs(*rows):
    return torch.tensor(rows, dtype=torch.float64).log()


def normal(*shape, seed=0, size=1.0, dtype=torch.float64):
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ---------------------------------------------------------------- formulas


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 40), st.integers(1, 5), st.floats(0.1, 10), st.integers(0, 99))
def test_divergences_are_those_of_torch_and_scipy(outcomes, rows, size, seed):
    logp, logt = (normal(rows, outcomes, seed=s, size=size).log_softmax(-1) for s in (seed, seed + 100))
    p, t = logp.exp().numpy(), logt.exp().numpy()
    wanted = {
        "forward": F.kl_div(logp, logt, reduction="none", log_target=True).sum(-1).numpy(),
        "reverse": F.kl_div(logt, logp, reduction="none", log_target=True).sum(-1).numpy(),
        "skew": entropy(t, 0.1 * t + 0.9 * p, axis=-1),
        "skew reverse": entropy(p, 0.1 * p + 0.9 * t, axis=-1),
    }
    for name, want in wanted.items():
        np.testing.assert_allclose(ALL[name](logp, logt), want, rtol=1e-9, atol=1e-12)
    half = 4 * jensenshannon(p, t, axis=-1) ** 2
    np.testing.assert_allclose(jensen_shannon(logp, logt), half, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("beta", "known"), [(0.01, 0.0034), (0.1, 0.031), (0.5, 0.084), (0.9, 0.031), (0.99, 0.0035)]
)
def test_jensen_shannon_is_the_undivided_one_of_gkd_divided(beta, known):
    """Values of the undivided form, which is 0.345 and 0.353 at its ends and next to nothing beside them."""
    own = jensen_shannon(logs(STUDENT), logs(TEACHER), beta) * beta * (1 - beta)
    assert own.item() == pytest.approx(known, abs=6e-4 if beta in (0.1, 0.5, 0.9) else 6e-5)


def test_jensen_shannon_runs_into_the_two_divergences():
    student, teacher = logs(STUDENT), logs(TEACHER)
    assert jensen_shannon(student, teacher, 0.0).item() == pytest.approx(0.345, abs=5e-4)
    assert jensen_shannon(student, teacher, 1.0).item() == pytest.approx(0.353, abs=5e-4)
    steps = [jensen_shannon(student, teacher, beta).item() for beta in np.linspace(0, 1, 1001)]
    assert np.abs(np.diff(steps)).max() < 2e-3


def test_by_hand():
    """0.7 ln(7/3) + 0.2 ln(1/2) + 0.1 ln(1/3)."""
    assert forward_kl(logs(STUDENT), logs(TEACHER)).item() == pytest.approx(0.3446176, abs=1e-6)
    assert reverse_kl(logs(TEACHER), logs(STUDENT)).item() == pytest.approx(0.3446176, abs=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_impossible_outcomes_on_both_sides_change_nothing(name):
    student, teacher = logs(STUDENT).requires_grad_(), logs(TEACHER)
    want = ALL[name](student, teacher)
    (slope,) = torch.autograd.grad(want.sum(), student)
    wide = torch.cat([student, torch.full((1, 2), -torch.inf)], -1)
    got = ALL[name](wide, torch.cat([teacher, torch.full((1, 2), -torch.inf)], -1))
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got.sum(), student)[0], slope)


def test_at_high_temperature_logits_are_matched():
    """Hinton, Vinyals and Dean 2015, equation 4: T^2 times the gradient goes to (z - v) / N."""
    student, teacher = normal(4, 10, seed=1), normal(4, 10, seed=2)
    student, teacher = (z - z.mean(-1, keepdim=True) for z in (student, teacher))
    student.requires_grad_()
    total, count = distil(student, teacher, Objective(temperature=20000.0))
    total.backward()
    assert count == 4
    torch.testing.assert_close(student.grad, (student.detach() - teacher) / 10, rtol=0, atol=1e-4)


def test_a_classifier_learns_from_logits_and_labels():
    student, teacher, labels = normal(6, 10), normal(6, 10, seed=1, size=3), torch.arange(6)
    got, count = distil(student, teacher, Objective(temperature=20.0, hard=0.1), labels)
    soft = F.kl_div(
        F.log_softmax(student / 20, -1), F.log_softmax(teacher / 20, -1), reduction="sum", log_target=True
    )
    want = 0.9 * 400 * soft + 0.1 * F.cross_entropy(student, labels, reduction="sum")
    torch.testing.assert_close(got, want)
    assert count == 6
    torch.testing.assert_close(cross_entropy(student, labels)[0], -student.log_softmax(-1).diagonal().sum())


# ---------------------------------------------------------------- sparse targets


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 30), st.integers(0, 99), st.data())
def test_a_tail_bucket_is_a_coarser_distribution(outcomes, seed, data):
    kept = data.draw(st.integers(1, outcomes))
    student, teacher = normal(3, outcomes, seed=seed), normal(3, outcomes, seed=seed + 100, size=2)
    targets = stratified(teacher.log_softmax(-1), kept, 0)
    got = position_losses(student, targets, Objective()).numpy()
    p, t = student.softmax(-1).numpy(), teacher.softmax(-1).numpy()
    for n, ids in enumerate(targets.ids_NK.numpy()):
        rest = [v for v in range(outcomes) if v not in ids]
        coarse = [np.append(d[n, ids], d[n, rest].sum()) for d in (t, p)]
        assert got[n] == pytest.approx(entropy(*coarse), abs=1e-9)
        assert got[n] <= entropy(t[n], p[n]) + 1e-9


@pytest.mark.parametrize(("head", "draws"), [(0, 20), (3, 7), (6, 1)])
def test_drawn_targets_are_the_teacher_on_average(head, draws):
    logt = normal(1, 12, size=2, seed=3).log_softmax(-1)
    targets = stratified(logt.repeat(20_000, 1), head, draws, torch.Generator().manual_seed(0))
    weights = torch.zeros(20_000, 12, dtype=torch.float64)
    weights.scatter_add_(-1, targets.ids_NK, targets.log_weights_NK.exp())
    torch.testing.assert_close(weights.sum(-1), torch.ones(20_000, dtype=torch.float64))
    error = weights.std(0) / 20_000**0.5
    assert ((weights.mean(0) - logt[0].exp()).abs() <= 4 * error + 1e-12).all()


def test_the_gradient_of_drawn_targets_is_p_less_w():
    student = normal(2, 5).requires_grad_()
    targets = SparseTargets(torch.tensor([[1, 1, 3], [0, 2, 4]]), logs([0.2, 0.3, 0.5], [0.1, 0.1, 0.8]))
    distil(student, targets, Objective())[0].backward()
    weights = torch.tensor([[0, 0.5, 0, 0.5, 0], [0.1, 0, 0.1, 0, 0.8]], dtype=torch.float64)
    torch.testing.assert_close(student.grad, student.detach().softmax(-1) - weights)


def test_a_top_answer_alone_leaves_nothing_to_draw():
    sure = torch.tensor([[0.0, -torch.inf, -torch.inf]])
    targets = stratified(sure, 1, 4, torch.Generator().manual_seed(0))
    student = torch.zeros(1, 3, requires_grad=True)
    total, _ = distil(student, targets, Objective())
    total.backward()
    assert total.item() == pytest.approx(np.log(3))
    torch.testing.assert_close(student.grad, torch.tensor([[1 / 3 - 1, 1 / 3, 1 / 3]]))


def test_targets_that_cannot_serve_an_objective_are_refused():
    logits, targets = normal(2, 9), stratified(normal(2, 9).log_softmax(-1), 2, 3)
    with pytest.raises(ValueError, match="temperature"):
        distil(logits, targets, Objective(temperature=2.0))
    with pytest.raises(ValueError, match="biased"):
        head_loss(logits, Head(torch.eye(9, dtype=torch.float64)), targets, Objective(reverse_kl))
    with pytest.raises(ValueError, match="needs the tokens"):
        distil(logits, logits, Objective(hard=0.1))
    with pytest.raises(ValueError, match="2 positions, and 1"):
        distil(logits[:1], targets, Objective())
    with pytest.raises(ValueError, match="12 outputs and the student 9"):
        distil(logits, normal(2, 12), Objective())
    with pytest.raises(ValueError, match="only cross-entropy"):
        head_loss(logits, Head(torch.eye(9, dtype=torch.float64)), None, Objective())
    for wrong in ({"temperature": 0.0}, {"hard": 1.5}, {"temperature": float("nan")}):
        with pytest.raises(ValueError, match="not"):
            Objective(**wrong)
    for wrong in (partial(jensen_shannon, beta=1.1), partial(skew_kl, skew=0.0)):
        with pytest.raises(ValueError, match="must lie"):
            wrong(logs(STUDENT), logs(TEACHER))


def test_targets_from_a_shard_on_disk(tmp_path):
    teacher, student = normal(7, 50, size=2).float(), normal(7, 50, seed=5).float()
    for head, draws, objective in ((8, 0, Objective(reverse_kl)), (4, 5, Objective()), (0, 9, Objective())):
        binding = Binding("teacher", "1", "one tokenizer", "", 50, head, draws)
        made = stratified(teacher.log_softmax(-1), head, draws, torch.Generator().manual_seed(1))
        with ShardWriter(tmp_path, binding) as writer:
            for name, part in (("b", slice(3, 7)), ("a", slice(0, 3))):
                writer.add(name, np.arange(part.start, part.stop + 1, dtype=np.int32), packed(made[part]))
            sealed = writer.seal()
        reader = TargetReader(tmp_path, [sealed.stem], binding)
        rows = [
            reader.locate("a", np.arange(0, 4, dtype=np.int32), 3),
            reader.locate("b", np.arange(3, 8, dtype=np.int32), 4),
        ]
        read = unpacked(reader.read(rows), draws > 0)
        want, got = (position_losses(student, targets, objective) for targets in (made, read))
        entropies = 0.0
        if draws:  # merged draws have the same gradient and cross-entropy, and less entropy
            entropies = sum(
                (t.log_weights_NK.exp() * t.log_weights_NK.nan_to_num(neginf=0)).sum(-1) * s
                for t, s in ((read, 1), (made, -1))
            )
        torch.testing.assert_close(got - entropies, want, rtol=3e-3, atol=3e-3)
        other = Binding("teacher", "1", "another tokenizer of as many tokens", "", 50, head, draws)
        with pytest.raises(LedgerError, match="another tokenizer"):
            TargetReader(tmp_path, [sealed.stem], other)


def test_places_are_before_what_they_predict():
    trained = torch.tensor([[False, True, True], [False, False, True]])
    assert places(trained).tolist() == [0, 1, 4]
    with pytest.raises(ValueError, match="nothing comes before"):
        places(torch.tensor([[True, True]]))
    assert normalised(torch.tensor(6.0), 3, processes=2).item() == 4.0
    assert normalised(torch.tensor(0.0), 0).item() == 0.0


# ---------------------------------------------------------------- head and loss in one


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(ALL)),
    kind=st.sampled_from(["logits", "states", "tail", "sampled"]),
    temperature=st.sampled_from([1.0, 0.5, 3.0]),
    hard=st.sampled_from([0.0, 0.25, 1.0]),
    scale=st.sampled_from([1.0, 0.25]),
    cap=st.sampled_from([None, 3.0]),
    bias=st.booleans(),
    padding=st.integers(0, 3),
    positions=st.integers(0, 9),
    chunk=st.integers(1, 10),
    seed=st.integers(0, 999),
)
def test_in_chunks_with_the_head_as_with_all_logits(
    name, kind, temperature, hard, scale, cap, bias, padding, positions, chunk, seed
):
    vocabulary = 11
    divergence = forward_kl if kind == "sampled" else ALL[name]
    objective = Objective(divergence, temperature, hard)
    wide = vocabulary + padding
    leaves = [normal(positions, 4, seed=seed), normal(wide, 4, seed=seed + 1)]
    leaves += [normal(wide, seed=seed + 2)] if bias else []
    for leaf in leaves:
        leaf.requires_grad_()
    head = Head(leaves[1], leaves[2] if bias else None, scale, cap)
    teacher = normal(positions, wide, seed=seed + 3, size=2)
    logt = (teacher[:, :vocabulary] / temperature).log_softmax(-1)
    generator = torch.Generator().manual_seed(seed)
    sparse = stratified(logt, 3, 0 if kind == "tail" else 4, generator)
    targets = {
        "logits": teacher,
        "states": TeacherStates(teacher[:, :6], Head(normal(wide, 6, seed=seed), None, 0.5, 4.0)),
    }.get(kind, SparseTargets(sparse.ids_NK, sparse.log_weights_NK, sparse.log_tail_N, temperature))
    ids = torch.randint(vocabulary, (positions,), generator=generator)
    want, count = distil(head.logits(leaves[0]), targets, objective, ids, vocabulary)
    slopes = torch.autograd.grad(want, leaves)
    got, counted = head_loss(leaves[0], head, targets, objective, ids, vocabulary, chunk)
    assert count == counted == positions
    torch.testing.assert_close(got, want)
    for one, other in zip(torch.autograd.grad(3.0 * got, leaves), slopes, strict=True):
        torch.testing.assert_close(one, 3.0 * other)
    with torch.no_grad():
        torch.testing.assert_close(head_loss(leaves[0], head, targets, objective, ids, vocabulary)[0], want)


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that anything made."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        out = function(*arguments, **(named or {}))
        for made in out if isinstance(out, tuple | list) else (out,):
            if isinstance(made, torch.Tensor):
                self.numbers = max(self.numbers, made.numel())
        return out


@pytest.mark.parametrize("kind", ["sampled", "tail", "states", "none"])
def test_positions_times_vocabulary_never_exists(kind):
    positions, vocabulary, width, chunk = 64, 500, 8, 4
    hidden, weight = normal(positions, width).requires_grad_(), normal(vocabulary, width).requires_grad_()
    logt = normal(positions, vocabulary).log_softmax(-1)
    targets = {
        "sampled": stratified(logt, 3, 3),
        "tail": stratified(logt, 3, 0),
        "states": TeacherStates(normal(positions, 5), Head(normal(vocabulary, 5))),
        "none": None,
    }[kind]
    ids = torch.zeros(positions, dtype=torch.long)
    objective = Objective(hard=1.0 if targets is None else 0.5)
    with Largest() as largest:
        head_loss(hidden, Head(weight), targets, objective, ids, chunk=chunk)[0].backward()
    assert largest.numbers <= vocabulary * max(chunk, width)


def test_a_frozen_head_and_a_frozen_body_are_left_alone():
    hidden, weight, teacher = normal(5, 4), normal(9, 4), normal(5, 9)
    for trained, frozen in ((hidden, weight), (weight, hidden)):
        trained.requires_grad_()
        head_loss(hidden, Head(weight), teacher, Objective())[0].backward()
        got = trained.grad.clone()
        trained.grad = None
        distil(hidden @ weight.T, teacher, Objective())[0].backward()
        torch.testing.assert_close(got, trained.grad)
        assert frozen.grad is None
        trained.requires_grad_(False).grad = None


def test_a_gradient_asked_for_twice_is_refused_and_not_doubled():
    hidden = normal(5, 4).requires_grad_()
    total, _ = head_loss(hidden, Head(normal(9, 4)), normal(5, 9), Objective())
    (0.5 * total).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (0.5 * total).backward()


def test_bf16_products_of_float32_weights():
    """As the loop trains on a CPU that has bfloat16: float32 weights, float32 gradients, rounded products."""
    hidden, weight = (normal(*shape, dtype=torch.float32).requires_grad_() for shape in ((40, 32), (300, 32)))
    targets = stratified(normal(40, 300, size=2, dtype=torch.float32).log_softmax(-1), 5, 5)
    exact, _ = head_loss(hidden, Head(weight), targets, Objective())
    wanted = torch.autograd.grad(exact, [hidden, weight])
    with torch.autocast("cpu", torch.bfloat16):
        rough, _ = head_loss(hidden, Head(weight), targets, Objective(), chunk=7)
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=3e-3)
    for got, want in zip(torch.autograd.grad(rough, [hidden, weight]), wanted, strict=True):
        assert got.dtype == torch.float32
        assert (got - want).norm() < 0.02 * want.norm()


# ---------------------------------------------------------------- real architectures


def real_models():
    from transformers import (
        CohereConfig,
        CohereForCausalLM,
        Gemma2Config,
        Gemma2ForCausalLM,
        GraniteConfig,
        GraniteForCausalLM,
    )

    sizes = {
        "vocab_size": 46,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 1,
        "initializer_range": 0.4,
    }
    torch.manual_seed(0)
    return {
        "llama": (tiny_llama(**BASE), 1.0, None),
        "gemma2": (Gemma2ForCausalLM(Gemma2Config(**sizes, head_dim=16)), 1.0, 30.0),
        "cohere": (CohereForCausalLM(CohereConfig(**sizes, logit_scale=0.25)), 0.25, None),
        "granite": (GraniteForCausalLM(GraniteConfig(**sizes, logits_scaling=8.0)), 0.125, None),
    }


@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere", "granite"])
def test_the_head_of_a_model_makes_its_own_logits(name):
    model, scale, cap = real_models()[name]
    model.eval()
    head = head_of(model)
    assert (head.scale, head.softcap) == (scale, cap)
    ids = torch.randint(3, 46, (2, 9), generator=torch.Generator().manual_seed(0))
    trained = torch.zeros(2, 9, dtype=torch.bool)
    trained[0, 4:], trained[1, 8] = True, True
    at = places(trained)
    logits = model(input_ids=ids, use_cache=False).logits.flatten(0, 1)[at]
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)[at]
    teacher = normal(6, logits.shape[1], dtype=torch.float32)
    objective = Objective(temperature=2.0, hard=0.5)
    want, _ = distil(logits, teacher, objective, ids[trained])
    wanted = torch.autograd.grad(want, list(model.parameters()), allow_unused=True)
    got, count = head_loss(hidden, head, teacher, objective, ids[trained], chunk=2)
    assert count == 6
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    slopes = torch.autograd.grad(got, list(model.parameters()), allow_unused=True)
    for one, other in zip(slopes, wanted, strict=True):
        if other is not None:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    own, _ = head_loss(hidden, head, TeacherStates(hidden.detach(), head), objective=Objective())
    assert own.item() == 0


def test_a_head_that_is_not_known_is_not_guessed():
    model = tiny_llama(**BASE)
    model.lm_head.register_forward_hook(lambda module, inputs, out: out * 0.5 + out**2)
    assert head_of(model) is None


# ---------------------------------------------------------------- the self-test


def test_the_self_test_holds_and_takes_less_than_a_second():
    import time

    before, state = time.process_time(), torch.get_rng_state()
    done = selftest.self_test()
    assert time.process_time() - before < 1.0
    assert [check for check in done if not check.holds] == []
    assert torch.equal(torch.get_rng_state(), state)
    sound()


def test_nothing_is_trained_with_losses_that_are_wrong(monkeypatch):
    monkeypatch.setattr(
        selftest, "self_test", lambda device: (Check("a sum", 0.0, 1.0), Check("it", 2.0, 1.0))
    )
    with pytest.raises(ModelError, match="it") as raised:
        sound()
    assert "off by 2" in raised.value.why
    assert not Check("not a number", float("nan"), 1.0).holds
