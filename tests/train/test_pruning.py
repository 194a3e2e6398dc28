"""Students cut out of their teacher: exact where nothing is lost, better than chance where something is."""

import copy
import json
from contextlib import nullcontext
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TEMPLATE, VOCABULARY, tiny_llama, tiny_model
from train.tiny_student import BASE, losses, make_recipe, sample, sums, weights, write_samples
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from stillhouse.errors import Interrupted, ModelError, UsageError
from stillhouse.models.local import load_model
from stillhouse.recipe import Student, Width
from stillhouse.train import train
from stillhouse.train.losses import head_of
from stillhouse.train.pruning import prune
from stillhouse.train.rows import Row, read_rows
from stillhouse.train.step import Way, Work, measure
from stillhouse.workspace import RunFolder

DATA = Path(__file__).parents[2].parent / "shared" / "data"
STORIES, BABY = DATA / "text" / "tinystories_sample_2MB.txt", DATA / "models" / "babyllama361"
SHAPES = {"layers": 3, "width": 32, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 6}


def rows(count: int = 12) -> list[Row]:
    source = np.random.default_rng(4)
    lengths = source.integers(4, 20, count)
    return [Row(source.integers(3, VOCABULARY, n).astype(np.int32), 1, f"{n}") for n in lengths]


def cut(model, **settings):
    """A copy of the model, cut."""
    made = copy.deepcopy(model)
    prune(made, Student(init="from_teacher", **settings), rows(), 64, seed=1)
    return made


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([[5, 9, 12, 30, 7, 8], [3, 3, 44, 9, 10, 2]])).logits


@pytest.mark.parametrize("tied", [True, False])
def test_pruning_nothing_leaves_every_bit(tied):
    model = tiny_llama(**SHAPES, tie_word_embeddings=tied)
    same = cut(model, keep_width=Width(), keep_layers=3)
    assert same.config.to_dict() == model.config.to_dict()
    for (name, one), (other_name, other) in zip(
        model.state_dict().items(), same.state_dict().items(), strict=True
    ):
        assert name == other_name
        assert torch.equal(one, other)
    assert torch.equal(logits(model), logits(same))


@pytest.mark.parametrize("tied", [True, False])
def test_what_does_nothing_goes_first_and_nothing_is_lost_with_it(tied):
    """Half of the channels, neurons and groups of heads are silent: the rest computes the same without."""
    model = tiny_llama(**SHAPES, tie_word_embeddings=tied, attention_bias=True, mlp_bias=True)
    source = torch.Generator().manual_seed(8)
    silent = torch.randperm(32, generator=source)[:16]
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" in name or "bias" in name:
                value.add_(0.3 * torch.randn(value.shape, generator=source))
        model.model.embed_tokens.weight[:, silent] = 0
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for back in (attention.o_proj, mlp.down_proj):
                back.weight[silent], back.bias[silent] = 0, 0
            for group in torch.randperm(4, generator=source)[:2].tolist():
                attention.v_proj.weight[6 * group : 6 * group + 6] = 0
                attention.v_proj.bias[6 * group : 6 * group + 6] = 0
            neurons = torch.randperm(64, generator=source)[:32]
            mlp.gate_proj.weight[neurons], mlp.gate_proj.bias[neurons] = 0, 0
    small = cut(model, keep_width={"hidden": 0.5, "mlp": 0.5, "heads": 0.5})
    assert sum(p.numel() for p in small.parameters()) < 0.4 * sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(logits(small), logits(model), rtol=1e-4, atol=1e-4)


def test_a_layer_that_passes_everything_on_unchanged_is_the_first_to_go(tmp_path):
    shape = {**BASE, "layers": 4}
    model = tiny_llama(**shape)
    with torch.no_grad():
        model.model.layers[2].self_attn.o_proj.weight.zero_()
        model.model.layers[2].mlp.down_proj.weight.zero_()
    assert torch.equal(logits(cut(model, keep_layers=3)), logits(model))
    with pytest.raises(UsageError, match="does not fit the teacher"):
        cut(model, keep_layers=5)
    folder = tiny_model(tmp_path / "teacher", template=TEMPLATE, **shape)
    run = RunFolder(tmp_path / "run")
    write_samples(run.samples, [sample(n, f"{n}?", f"{n}=") for n in range(12)])
    train(run, make_recipe("from_teacher", {"epochs": 0.1}, keep_layers=3), teacher_folder=str(folder))
    assert AutoModelForCausalLM.from_pretrained(run.student_before).config.num_hidden_layers == 3


def test_other_architectures_are_refused_by_name():
    other = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=32, n_embd=8, n_layer=2, n_head=2))
    with pytest.raises(ModelError, match="GPT2LMHeadModel cannot be cut to size") as caught:
        cut(other, keep_width=Width(mlp=0.5))
    assert "keep_layers" in caught.value.mend
    for setting in ({"keep_width": {"mlp": 0.5}}, {"keep_layers": 2}):
        with pytest.raises(
            UsageError, match=r"only read with `init = \"from_teacher\"`|not usable"
        ) as refused:
            make_recipe("embedded:base", **setting)
        assert "from_teacher" in refused.value.why


def test_a_cut_student_whose_training_was_stopped_goes_on_with_other_threads_to_the_same_weights(tmp_path):
    """It is cut anew when its training goes on, and the checkpoint is found by the weights that gives."""
    shape = {**BASE, "layers": 4, "width": 64}
    folder = tiny_model(tmp_path / "teacher", template=TEMPLATE, **shape)
    whole, cut = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "cut")
    student = {"keep_layers": 3, "keep_width": {"hidden": 0.5, "mlp": 0.75, "heads": 0.5}}
    recipe = make_recipe("from_teacher", {"dtype": "float32"}, **student)
    for run in (whole, cut):
        write_samples(run.samples, sums())
    train(whole, recipe, teacher_folder=str(folder))

    def strike(progress):
        if progress.done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        train(cut, recipe, strike, teacher_folder=str(folder), clock=count().__next__)
    (before,) = (path.read_bytes() for path in cut.student_before.glob("*.safetensors"))
    reached, said = losses(cut)[-1]["step"], []
    torch.set_num_threads(2)
    train(cut, recipe, said.append, teacher_folder=str(folder), clock=count().__next__)
    assert (cut.student_before / "model.safetensors").read_bytes() == before
    assert said[0].done == reached + 1
    assert weights(cut) == weights(whole)


@pytest.mark.skipif(not (STORIES.exists() and BABY.exists()), reason="needs ../shared/data")
def test_a_pruned_student_is_ahead_of_a_random_one_before_and_after_some_steps(tmp_path):
    """A real model and real text: half as wide everywhere, and a random student of the very same shape."""
    stories = STORIES.read_text().split("<|endoftext|>")[:300]
    told = [(story.strip()[:20], story.strip()[20:140]) for story in stories if len(story.strip()) > 140]
    samples = [sample(n, *parts, group=f"g{n}") for n, parts in enumerate(told)]
    half = {"hidden": 0.5, "mlp": 0.5, "heads": 0.5}
    settings = {"epochs": 1, "batch_tokens": 2048, "held_out": 0.2, "dtype": "float32", "learning_rate": 2e-3}
    before, after, runs = {}, {}, {name: RunFolder(tmp_path / name) for name in ("pruned", "random")}
    for name, run in runs.items():
        write_samples(run.samples, samples)
        init, student = "from_teacher", {"keep_width": half}
        if name == "random":
            shape = json.loads((runs["pruned"].student_before / "config.json").read_text())
            sizes = ("hidden_size", "intermediate_size", "head_dim", "tie_word_embeddings")
            numbers = [key for key in shape if key.startswith(("num_", "max_"))]
            init, student = "config", {"config": {key: shape[key] for key in (*sizes, *numbers)}}
        result = train(run, make_recipe(init, settings, **student), teacher_folder=str(BABY))
        fresh = load_model(str(run.student_before), "float32")
        assert result.parameters == sum(p.numel() for p in fresh.model.parameters())
        test, _ = read_rows(run.samples, fresh, 1024)
        size = fresh.model.config.vocab_size
        work = Work(fresh.model, fresh.model, [], 1.0, nullcontext, size)
        before[name] = measure(work, test[:40], 2048, Way(None, head_of(fresh.model)))
        after[name] = result.held_out_loss
        assert result.steps < 30
    assert result.parameters < 0.3 * sum(p.numel() for p in load_model(str(BABY)).model.parameters())
    assert before["pruned"] < before["random"] - 0.3
    assert after["pruned"] < after["random"] - 0.5
