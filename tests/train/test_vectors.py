"""A teacher's vectors in place of the teacher: the same losses and gradients, and what rounding them does."""

import gc
import weakref
from functools import partial

import numpy as np
import pytest
import torch
from tiny import TEMPLATE, tiny_llama, tiny_model
from train.tiny_student import BASE, losses, make_recipe, sums, weights, write_samples
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaForCausalLM

from stillhouse.errors import ModelError, UsageError
from stillhouse.ledger.targets import Binding, open_shard
from stillhouse.models.local import load_model
from stillhouse.recipe import Distil
from stillhouse.records import unwatched
from stillhouse.train import Source, lessons, train, vectors
from stillhouse.train import capture as capturing
from stillhouse.train.capture import capture
from stillhouse.train.forward import scores_at
from stillhouse.train.lessons import online
from stillhouse.train.loss import batch_loss
from stillhouse.train.losses import head_of, position_losses
from stillhouse.train.rows import Row, collate, read_rows
from stillhouse.workspace import RunFolder

TEACHER = {**BASE, "width": 48, "seed": 9, "initializer_range": 0.5}
MEASURES = ["forward_kl", "reverse_kl", "jensen_shannon", "skew_kl"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("teachers") / "teacher", template=TEMPLATE, **TEACHER)


def learn(run, student, teacher, watch=unwatched, **distil):
    names = "epochs", "packing", "objective", "on_policy"
    of_train = {key: distil.pop(key) for key in names if key in distil}
    settings = {"objective": "distil", "distil": distil, "dtype": "float32", "epochs": 2, **of_train}
    source = Source(run.root.parent / "targets", (), "teacher", "r1")
    recipe = make_recipe(str(student), settings)
    return train(run, recipe, watch, teacher_folder=str(teacher), source=source)


def new_run(tmp_path, name):
    run = RunFolder(tmp_path / name)
    write_samples(run.samples, sums())
    return run


def curve(run):
    return np.array([[row["loss"], row.get("held_out", 0.0)] for row in losses(run)])


@pytest.mark.parametrize("packing", [False, True])
def test_stored_vectors_give_the_curve_of_a_teacher_that_reads_along(folder, teacher, tmp_path, packing):
    kept, along = new_run(tmp_path, "kept"), new_run(tmp_path, "along")
    result = learn(kept, folder, teacher, keep="vectors", packing=packing, epochs=3)
    learn(along, folder, teacher, online=True, packing=packing, epochs=3)
    assert len(curve(along)) > 20
    assert curve(along).max() > 0.5
    assert np.abs(curve(kept) - curve(along)).max() <= 1e-5
    bound = open_shard(tmp_path / "targets" / f"{result.shards[0]}.targets").binding
    assert (bound.width, bound.dtype, bound.temperature) == (48, "float32", 1.0)
    assert 4 * 48 < result.bytes_per_token < 4 * 48 + 100


def test_one_capture_serves_every_temperature_and_measure(folder, teacher, tmp_path, monkeypatch):
    kept, read = new_run(tmp_path, "kept"), []
    original = capturing.collate
    monkeypatch.setattr(capturing, "collate", lambda rows: read.append(len(rows)) or original(rows))
    for number, (temperature, divergence) in enumerate(zip((1.0, 0.5, 4.0), MEASURES, strict=False)):
        settings = {"temperature": temperature, "divergence": divergence, "epochs": 1, "hard": 0.1}
        learn(kept, folder, teacher, keep="vectors", **settings)
        along = new_run(tmp_path, f"along{number}")
        learn(along, folder, teacher, online=True, **settings)
        assert np.abs(curve(kept) - curve(along)).max() <= 1e-5 * max(1.0, temperature**2)
        kept.losses.unlink()
    assert sum(read) == 48, "the teacher reads each row once"
    assert len(list((tmp_path / "targets").iterdir())) == 1


@pytest.fixture(scope="module")
def read_once(teacher, folder, tmp_path_factory):
    """Student and teacher, the rows as one batch, and a lesson of stored vectors by measure and type."""
    place = tmp_path_factory.mktemp("vectors")
    run = new_run(place, "run")
    student, here = load_model(str(folder)), load_model(str(teacher))
    rows, _ = read_rows(run.samples, student, 128)
    rows = list({row.id: row for row in rows}.values())
    head = vectors.readout(here)

    def lesson(**settings):
        said = Distil(keep="vectors", **settings)
        binding = vectors.bound(here, head, "teacher", "r1", said)
        reads = partial(vectors.read, here.model, binding=binding, batch_tokens=160)
        record = place / f"{binding.dtype}.json"
        shards = capture(reads, rows, place / "targets", record, binding, None, lambda more: None)
        made = vectors.told(place / "targets", (binding, tuple(shards)), student.reader, said, head)
        assert all(made.has(row) for row in rows)
        return made

    return student, here, rows, lesson


@pytest.mark.parametrize("apart", [True, False], ids=["head apart", "all logits"])
@pytest.mark.parametrize("divergence", MEASURES)
def test_gradients_are_those_of_the_teacher_itself(read_once, folder, divergence, apart):
    _, here, rows, lesson = read_once
    settings = {"divergence": divergence, "temperature": 2.0, "hard": 0.2}
    batch, found = collate(rows), []
    said = Distil(**settings, online=True)
    for each in (lesson(**settings), online(here, "r1", said, said.hard)):
        model = LlamaForCausalLM.from_pretrained(folder)
        head = head_of(model) if apart else None
        total, _ = batch_loss(model, batch, head, each.targets(rows, batch), each)
        total.backward()
        found.append((total.item(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    (kept, slope), (along, own_slope) = found
    assert kept == pytest.approx(along, rel=1e-6)
    assert own_slope.norm() > 1
    assert (slope - own_slope).norm() <= 1e-5 * own_slope.norm()


def bounds(here, batch, temperature, logt_NV, logp_NV):
    """Of each position, in nats: how far rounding a vector to bfloat16 can move the loss, and how far from
    the teacher a student can lie that learned what is stored; docs/targets.md has the derivation."""
    head = head_of(here.model)
    hidden_ND = vectors_of(here, batch)
    most_NV = 2.0**-8 * (hidden_ND.abs() @ head.weight_VD.double().abs().T) / temperature
    moved_NV = most_NV + (logt_NV + most_NV).logsumexp(-1, keepdim=True)
    far_NV = (logt_NV - logp_NV).abs() + moved_NV
    return (logt_NV.exp() * torch.expm1(moved_NV) * far_NV).sum(-1), most_NV.amax(-1) ** 2 / 2


def vectors_of(here, batch):
    with torch.no_grad():
        hidden_BTD = here.model.base_model(batch.ids_BT, use_cache=False).last_hidden_state
    return hidden_BTD.flatten(0, 1)[batch.places_N].double()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("who", ["student", "nearly the teacher", "teacher"])
def test_bfloat16_moves_a_loss_by_no_more_than_its_bound(read_once, temperature, who):
    student, here, rows, lesson = read_once
    batch, stored = collate(rows), lesson(vectors="bfloat16", temperature=temperature)
    with torch.no_grad():
        logits_NV = scores_at(here.model, batch).double()
        own_NV = scores_at(student.model, batch).double() if who == "student" else logits_NV.clone()
    if who == "nearly the teacher":
        own_NV += 0.3 * torch.randn(own_NV.shape, generator=torch.Generator().manual_seed(1)).double()
    logt_NV, logp_NV = ((each / temperature).log_softmax(-1) for each in (logits_NV, own_NV))
    exact_N = (logt_NV.exp() * (logt_NV - logp_NV)).sum(-1)
    found_N = position_losses(own_NV, stored.targets(rows, batch), stored.objective) / temperature**2
    most_N, least_N = bounds(here, batch, temperature, logt_NV, logp_NV)
    assert ((found_N - exact_N).abs() <= most_N).all()
    if who == "teacher":
        assert (found_N <= least_N).all()
        assert 0 < found_N.max() < 1e-4
    if who == "student":
        assert most_N.mean() < 0.25 * exact_N.mean()
        assert 1e-4 < (found_N - exact_N).abs().mean() < 0.01


def test_bfloat16_takes_half_and_a_whole_training_stays_near(folder, teacher, tmp_path):
    kept, along = new_run(tmp_path, "kept"), new_run(tmp_path, "along")
    result = learn(kept, folder, teacher, keep="vectors", vectors="bfloat16", epochs=3)
    learn(along, folder, teacher, online=True, epochs=3)
    assert 2 * 48 < result.bytes_per_token < 2 * 48 + 100
    assert 0 < np.abs(curve(kept) - curve(along)).max() < 0.005


def test_a_teacher_that_computes_in_bfloat16_is_kept_to_the_bit(teacher, read_once):
    rows = read_once[2]
    half = load_model(str(teacher), "bfloat16")
    head = vectors.readout(half)
    binding = vectors.bound(half, head, "teacher", "r1", Distil(keep="vectors"))
    assert binding.dtype == "bfloat16"
    reads = vectors.read(half.model, rows[:3], binding, 160)
    for row, found_ND in reads:
        ids_BT = torch.from_numpy(row.ids[None].astype(np.int64))
        own = half.model(ids_BT).logits[0, row.start - 1 : -1]
        rounded_ND = torch.from_numpy(found_ND).bfloat16()
        assert torch.equal(rounded_ND.float(), torch.from_numpy(found_ND))
        assert (head.logits(rounded_ND).float() - own.float()).abs().max() <= 2**-7 * own.abs().max()


def rows_of(count, vocabulary, seed=0):
    source = np.random.default_rng(seed)
    return [
        Row(source.integers(0, vocabulary, n).astype(np.int32), int(source.integers(1, n)), "", f"s{i}")
        for i, n in enumerate(source.integers(2, 20, count))
    ]


def bound(readout):
    return Binding("teacher", "", "t" * 64, "", 40, 0, width=16, dtype="float32", readout=readout)


class Local:
    """As much of a `LocalModel` as its head asks for."""

    def __init__(self, model):
        self.model = model


def test_a_head_that_caps_is_part_of_what_is_kept():
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    config = Gemma2Config(**sizes, **heads, final_logit_softcapping=2.0, initializer_range=0.5)
    model = Gemma2ForCausalLM(config).eval().requires_grad_(False)
    head = vectors.readout(Local(model))
    assert head.softcap == 2.0
    binding = bound(vectors.digest(head))
    for row, found_ND in vectors.read(model, rows_of(6, 40), binding, 64):
        ids_BT = torch.from_numpy(row.ids[None].astype(np.int64))
        own = model(ids_BT).logits[0, row.start - 1 : -1]
        assert (head.logits(torch.from_numpy(found_ND)) - own).abs().max() <= 1e-5
    uncapped = vectors.Head(head.weight_VD)
    assert vectors.digest(uncapped) != vectors.digest(head)


class Doubled(LlamaForCausalLM):
    """Something lies between its last hidden states and its head."""

    def forward(self, *given, **named):
        hook = self.lm_head.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 2,))
        try:
            return super().forward(*given, **named)
        finally:
            hook.remove()


class Shifted(LlamaForCausalLM):
    """Something is added to what its head makes."""

    def forward(self, *given, **named):
        made = super().forward(*given, **named)
        made.logits = made.logits + torch.arange(made.logits.shape[-1])
        return made


@pytest.mark.parametrize("kind", [Doubled, Shifted])
def test_a_teacher_that_its_head_does_not_make_is_refused(kind):
    model = kind(tiny_llama().config).eval()
    with pytest.raises(UsageError, match="cannot be kept") as refused:
        vectors.readout(Local(model))
    assert kind.__name__ in refused.value.why
    assert 'keep = "all"' in refused.value.mend


def test_a_teacher_whose_numbers_are_none_is_named(tmp_path):
    model = tiny_llama()
    binding = bound("")
    with torch.no_grad():
        model.base_model.norm.weight[3] = float("inf")
    with pytest.raises(ModelError, match="no probabilities") as refused:
        list(vectors.read(model, rows_of(2, 40), binding, 64))
    assert "'s" in refused.value.why
    with torch.no_grad():
        model.get_output_embeddings().weight[5, 0] = float("nan")
    with pytest.raises(ModelError, match="no probabilities"):
        vectors.readout(Local(model))


def test_another_head_under_the_same_name_and_revision_is_read_anew(run, folder, teacher, tmp_path):
    first = learn(run, folder, teacher, keep="vectors", epochs=1)
    again = learn(run, folder, teacher, keep="vectors", epochs=1)
    assert again.shards == first.shards
    other = tiny_model(tmp_path / "other", template=TEMPLATE, **TEACHER)
    changed = LlamaForCausalLM.from_pretrained(other)
    with torch.no_grad():
        changed.get_output_embeddings().weight[7] *= 1.5
    changed.save_pretrained(other)
    assert learn(run, folder, other, keep="vectors", epochs=1).shards != first.shards


def test_a_capture_that_was_stopped_goes_on_and_what_waits_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(capturing, "SHARD_ROWS", 8)
    model, some = tiny_llama(), rows_of(30, 40)
    binding, sizes = bound("e" * 64), []

    def read(folder, stop_after=None):
        told = []

        def advance(more):
            told.append(more)
            if stop_after is not None and sum(told) >= stop_after:
                raise KeyboardInterrupt

        reads = partial(vectors.read, model, binding=binding, batch_tokens=64)
        return capture(reads, some, folder, folder / "record.json", binding, None, advance), told

    whole, _ = read(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        read(tmp_path / "cut", 20)
    again, told = read(tmp_path / "cut")
    assert (again, told[0], sum(told)) == (whole, 16, 30)
    monkeypatch.setattr(vectors, "HELD", 4 * 16 * 20)
    apart = vectors.read_apart
    monkeypatch.setattr(
        vectors,
        "read_apart",
        lambda says, rows, tokens: (
            sizes.append(sum(len(r.ids) - r.start for r in rows)) or apart(says, rows, tokens)
        ),
    )
    narrow, _ = read(tmp_path / "narrow")
    assert max(sizes) < 40
    assert [open_shard(tmp_path / "narrow" / f"{each}.targets").sample_ids for each in narrow] == [
        open_shard(tmp_path / "whole" / f"{each}.targets").sample_ids for each in whole
    ]


def test_the_rest_of_the_teacher_is_let_go_before_training(run, folder, teacher, monkeypatch):
    bodies, alive = [], []
    original = lessons.load_model

    def load(source):
        loaded = original(source)
        bodies.append(weakref.ref(loaded.model.base_model.layers[0].mlp.gate_proj.weight))
        return loaded

    def watch(progress):
        if progress.unit == "step":
            gc.collect()
            alive.extend(body() is not None for body in bodies)

    monkeypatch.setattr(lessons, "load_model", load)
    learn(run, folder, teacher, watch, keep="vectors", epochs=1)
    assert alive
    assert not any(alive)


def test_own_text_goes_with_rows_that_are_learned_from_vectors(folder, teacher, tmp_path):
    kept, along = new_run(tmp_path, "kept"), new_run(tmp_path, "along")
    own = {"objective": "on_policy", "on_policy": {"after": 0.0, "max_tokens": 12}}
    learn(kept, folder, teacher, keep="vectors", epochs=1, **own)
    learn(along, folder, teacher, online=True, epochs=1, **own)
    assert any("own" in row for row in losses(kept))
    assert np.abs(curve(kept) - curve(along)).max() <= 1e-5


def test_the_same_seed_gives_the_same_shards_and_weights(folder, teacher, tmp_path):
    one, two = new_run(tmp_path, "one"), new_run(tmp_path, "two")
    first, second = (learn(run, folder, teacher, keep="vectors", epochs=1) for run in (one, two))
    assert first.shards == second.shards
    assert weights(one) == weights(two)
