"""Ways to work a step that change time and memory and not what is learnt, and when training ends early."""

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import VOCABULARY, tiny_llama
from train.tiny_student import BASE, losses, make_recipe, sums, weights, write_samples
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaMLP

from stillhouse.errors import Interrupted, UsageError
from stillhouse.train import loop, step, train
from stillhouse.train.forward import check_packing
from stillhouse.train.loss import batch_loss
from stillhouse.train.losses import head_of
from stillhouse.train.rows import Row, collate, epoch_batches, pack
from stillhouse.train.step import Way, Work, train_step
from stillhouse.workspace import RunFolder

BABY = Path(__file__).parents[2].parent / "shared" / "data" / "models" / "babyllama361"


def row(*ids, start):
    return Row(np.array(ids, dtype=np.int32), start, "")


ROWS = [
    row(5, 9, 11, 4, 1, start=3),
    row(7, 1, start=1),
    row(8, 8, 6, 20, 30, 31, 12, 13, 1, start=8),
    row(3, 4, 5, 6, 7, 8, 1, start=1),
]
PADDING = row(0, 0, 0, 0, 0, start=5)  # learns nothing: what stands left of a row


def gpt2():
    torch.manual_seed(4)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": VOCABULARY, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0))


def bloom():
    return BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=2))


def mamba():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
    return MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, **sizes))


MODELS = {"llama": lambda: tiny_llama(**BASE), "gpt2": gpt2}


def gradients(model, batch, kind):
    model = model.to(kind)
    loss, _ = batch_loss(model, batch, head_of(model))
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize(("kind", "close"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("model", MODELS)
def test_rows_give_the_same_gradient_packed_and_padded_on_either_side(model, kind, close):
    """Float32 keeps 7 digits of sums that are some tens large."""
    loss, wanted = gradients(MODELS[model](), collate(ROWS), kind)
    ways = {
        "right": collate(ROWS, padding=3),
        "left": pack([each for row in ROWS for each in (PADDING, row)]),
        "packed": pack(ROWS),
        "in another order": pack(ROWS[::-1]),
    }
    for name, batch in ways.items():
        other, got = gradients(MODELS[model](), batch, kind)
        assert float(abs(other - loss)) <= close * float(loss), name
        assert float((got - wanted).abs().max()) <= close * float(wanted.abs().max()), name


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("most", [None, 6], ids=["1 part", "4 parts"])
def test_a_step_on_packed_rows_is_the_step_on_padded_ones_in_however_many_parts(packed, most):
    def after(packed, most):
        model = tiny_llama(**BASE).double()
        optimiser = torch.optim.SGD(model.parameters(), 0.1)
        work = Work(model, model, [optimiser], 1e9, nullcontext, VOCABULARY, most)
        stepped = train_step(work, [(ROWS, Way(None, head_of(model), packed))])
        return stepped, torch.cat([p.detach().flatten() for p in model.parameters()])

    (wanted, expected), (stepped, got) = after(False, None), after(packed, most)
    assert (stepped.loss, stepped.norm) == pytest.approx((wanted.loss, wanted.norm), rel=1e-6)
    assert stepped.tokens == wanted.tokens == 10
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("most", "threads"), [(None, 2), (24, 1)])
def test_a_bound_on_the_tokens_worked_at_once_holds_over_all_threads(most, threads, monkeypatch):
    model, seen, both = tiny_llama(**BASE), set(), threading.Barrier(threads)
    rows = [Row(np.arange(1, 9, dtype=np.int32), 2, str(number)) for number in range(6)]
    plain = step._loss

    def loss(*given):
        seen.add(threading.get_ident())
        both.wait(60)
        return plain(*given)

    monkeypatch.setattr(step, "_loss", loss)
    work = Work(model, model, [torch.optim.SGD(model.parameters(), 0.1)], 1.0, nullcontext, VOCABULARY, most)
    with ThreadPoolExecutor(2) as halves:
        assert train_step(work, [(rows, Way(None, None))], halves).tokens == 36
    assert len(seen) == threads


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model", [bloom, mamba])
def test_a_model_that_sees_the_row_before_is_not_packed(model, kind):
    with pytest.raises(UsageError, match="rows cannot be packed for this student") as caught:
        check_packing(model().to(kind), "student")
    assert caught.value.why
    assert "packing = false" in caught.value.mend
    for fits in MODELS.values():
        check_packing(fits().to(kind), "student")


@pytest.mark.skipif(not BABY.exists(), reason="needs ../shared/data")
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_real_model_whose_numbers_are_short_is_packed(kind):
    """In bfloat16 its logits of packed rows are apart from those of padded ones by 0.2 % of the largest."""
    check_packing(AutoModelForCausalLM.from_pretrained(BABY).to(kind), "teacher")


def test_batches_of_packed_rows_are_filled_with_tokens_alone():
    lengths = [8, 4, 4, 4, 4]
    batches = epoch_batches(lengths, 12, 0, 0, packed=True)
    assert sorted(n for batch in batches for n in batch) == list(range(5))
    assert [sum(lengths[n] for n in batch) for batch in batches] == [12, 12]
    assert len(epoch_batches(lengths, 12, 0, 0)) == 3
    assert epoch_batches([20, 3], 12, 0, 0, packed=True) in ([[0], [1]], [[1], [0]])


def other(tmp_path, name):
    run = RunFolder(tmp_path / name)
    write_samples(run.samples, sums())
    return run


def test_parts_packing_and_recomputed_activations_learn_the_same(run, folder, tmp_path, monkeypatch):
    common = {"dtype": "float32", "epochs": 1, "held_out": 0.0}
    calls, forward = [], LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda *given: (calls.append(1), forward(*given))[1])
    train(run, make_recipe(str(folder), common))
    wanted, once = losses(run), len(calls)
    again = other(tmp_path, "again")
    train(again, make_recipe(str(folder), {**common, "gradient_checkpointing": True}))
    assert len(calls) - 2 * once == BASE["layers"] * len(wanted), "each layer once more in every step"
    assert weights(again) == weights(run), "bit for bit"
    parts = other(tmp_path, "parts")
    train(parts, make_recipe(str(folder), {**common, "micro_tokens": 50}))
    assert [r["loss"] for r in losses(parts)] == pytest.approx([r["loss"] for r in wanted], rel=1e-4)
    packed = other(tmp_path, "packed")
    train(packed, make_recipe(str(folder), {**common, "packing": True}))
    assert len(losses(packed)) <= len(wanted)
    assert losses(packed)[-1]["tokens"] == wanted[-1]["tokens"]
    assert losses(packed)[-1]["loss"] < losses(packed)[0]["loss"]


def test_dropout_draws_the_same_when_activations_are_made_again_and_when_training_goes_on(
    run, folder, tmp_path
):
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape |= {"num_key_value_heads": 2, "attention_dropout": 0.2}

    def dropped(run, watch=lambda _: None, **settings):
        settings = {"dtype": "float32", "epochs": 1, **settings}
        train(run, make_recipe("config", settings, config=shape), watch, teacher_folder=str(folder))
        return weights(run)

    whole = dropped(run)
    assert dropped(other(tmp_path, "recomputed"), gradient_checkpointing=True) == whole
    stopped, steps = other(tmp_path, "stopped"), count()

    def stop(progress):
        if next(steps) == 0:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        dropped(stopped, stop)
    assert dropped(stopped) == whole


def test_patience_ends_a_training_with_the_weights_of_its_best_step_also_when_it_was_stopped(
    run, folder, tmp_path, monkeypatch
):
    """What is held out is said to be 3, 2, 2.5 and 2.2 nats after the epochs."""
    recipe = make_recipe(str(folder), {"dtype": "float32", "epochs": 9, "patience": 2})

    def patient(run, watch=lambda _: None):
        seen = {}

        def measured(work, *rest):
            at = len([row for row in losses(run) if "held_out" in row])
            seen[at] = {name: value.detach().clone() for name, value in work.model.named_parameters()}
            return (3.0, 2.0, 2.5, 2.2)[at]

        monkeypatch.setattr(loop, "measure", measured)
        return seen, train(run, recipe, watch)

    seen, result = patient(run)
    lines = losses(run)
    assert [row["held_out"] for row in lines if "held_out" in row] == [3.0, 2.0, 2.5, 2.2]
    assert result.steps == len(lines) == lines[-1]["step"]
    assert result.held_out_loss == 2.0
    assert result.epochs == 4.0, "of 9"
    (notice,) = result.notices
    assert f"of {result.steps} (2.0000 nats" in notice
    kept = dict(AutoModelForCausalLM.from_pretrained(run.student).named_parameters())
    assert all(torch.equal(kept[name], value) for name, value in seen[1].items())

    stopped = other(tmp_path, "stopped")

    def stop(progress):
        if "held-out 2.5" in progress.note:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "WATCH_SECONDS", 0.0)
    with pytest.raises(Interrupted):
        patient(stopped, stop)
    assert patient(stopped)[1].steps == result.steps
    assert weights(stopped) == weights(run)


def test_patience_without_held_out_rows_is_an_error(run, folder):
    with pytest.raises(UsageError, match="patience"):
        train(run, make_recipe(str(folder), {"patience": 1, "held_out": 0.0}))


def test_tensorboard_shows_the_figures_of_the_losses(run, folder):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(run, make_recipe(str(folder), {"epochs": 1, "track": "tensorboard"}))
    shown = EventAccumulator(str(run.logs / "tensorboard")).Reload()
    for name in ("loss", "lr", "grad_norm", "held_out", "tokens"):
        wanted = [(row["step"], row[name]) for row in losses(run) if name in row]
        found = [(event.step, event.value) for event in shown.Scalars(name)]
        assert [step for step, _ in found] == [step for step, _ in wanted]
        assert [value for _, value in found] == pytest.approx([value for _, value in wanted], rel=1e-6)


def test_a_tracker_that_is_not_installed_is_named(run, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match="cannot be tracked with wandb") as caught:
        train(run, make_recipe(str(folder), {"track": "wandb"}))
    assert "pip install wandb" in caught.value.mend


def test_where_figures_are_shown_is_no_part_of_what_a_training_is(run, folder):
    pytest.importorskip("tensorboard")
    train(run, make_recipe(str(folder), {"epochs": 1}))
    before = json.dumps(losses(run))
    train(run, make_recipe(str(folder), {"epochs": 1, "track": "tensorboard"}))
    assert json.dumps(losses(run)) == before
