"""Whole trainings: what they write, that they repeat, that they survive."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tiny import TEMPLATE, VOCABULARY, tiny_llama, tiny_model
from train.tiny_student import BASE, losses, make_recipe, sample, weights, write_samples
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from stillhouse.errors import Interrupted, ModelError, StorageError, UsageError
from stillhouse.train import loop, train
from stillhouse.train.step import Stepped
from stillhouse.workspace import RunFolder

KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(int(sys.argv[5]))
from itertools import count
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from train.tiny_student import make_recipe
from stillhouse.train import loop, train
from stillhouse.workspace import RunFolder
step = loop.train_step
seen = count(1)
def dies(*args, **kwargs):
    if next(seen) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*args, **kwargs)
loop.train_step = dies
ticks = count()
recipe = make_recipe(sys.argv[2], {"checkpoint_seconds": 7, "optimiser": sys.argv[6]})
train(RunFolder(Path(sys.argv[1])), recipe, clock=lambda: float(next(ticks)))
"""


def test_writes_student_before_and_losses(run, folder):
    seen = []
    result = train(run, make_recipe(str(folder)), seen.append)
    rows = losses(run)
    assert [r["step"] for r in rows] == list(range(1, result.steps + 1))
    assert {"loss", "lr", "tokens", "seconds", "grad_norm"} <= rows[0].keys()
    assert rows[-1]["held_out"] == result.held_out_loss
    assert sum("held_out" in r for r in rows) == 3
    last = [r["loss"] for r in rows[-result.steps // 3 :]]
    assert min(last) < result.train_loss < max(last), "the mean over the last epoch"
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert len(list(run.checkpoints.glob("*/step-*"))) == 1, "of a finished training only the last is kept"
    assert result.rows + result.rows_held_out == 48
    assert json.loads(json.dumps(asdict(result))) == asdict(result)
    assert seen[-1].done == seen[-1].total == result.steps
    assert "held-out" in seen[-1].note
    assert "tok/s" in seen[-1].note
    loaded = AutoModelForCausalLM.from_pretrained(run.student)
    assert loaded.config._attn_implementation == "sdpa"
    assert AutoTokenizer.from_pretrained(run.student).chat_template == TEMPLATE
    assert result.parameters == sum(p.numel() for p in loaded.parameters()) == result.trainable
    assert run.student_before.read_text() == f"{folder}\n"


def test_same_seed_twice_gives_the_same_bytes_and_a_finished_run_is_not_redone(run, folder, tmp_path):
    recipe = make_recipe(str(folder))
    first = train(run, recipe)
    other = RunFolder(tmp_path / "other")
    other.root.mkdir()
    other.samples.write_bytes(run.samples.read_bytes())
    train(other, recipe)
    assert weights(run) == weights(other)
    before, log = weights(run), losses(run)
    again = train(run, recipe)
    assert weights(run) == before
    assert losses(run) == log
    assert again.train_loss == first.train_loss


@pytest.mark.parametrize(("threads", "optimiser"), [(1, "adamw"), (2, "adamw"), (1, "muon"), (2, "muon")])
def test_a_killed_training_ends_with_the_weights_of_an_unbroken_one(
    run, folder, tmp_path, threads, optimiser
):
    """The number of threads changes the order of sums: the second process takes over that of the first."""
    torch.set_num_threads(threads)
    whole = RunFolder(tmp_path / "whole")
    whole.root.mkdir()
    whole.samples.write_bytes(run.samples.read_bytes())
    ticks = count()
    recipe = make_recipe(str(folder), {"checkpoint_seconds": 7, "optimiser": optimiser})
    result = train(whole, recipe, clock=lambda: float(next(ticks)))
    assert result.steps > 9
    command = [
        sys.executable,
        "-c",
        KILLED,
        str(run.root),
        str(folder),
        "9",
        str(Path(__file__).parents[1]),
        str(threads),
        optimiser,
    ]
    dead = subprocess.run(command, check=False, capture_output=True, timeout=120)
    assert dead.returncode == -signal.SIGKILL, dead.stderr.decode()[-2000:]
    assert not run.student.exists()
    assert list(run.checkpoints.glob("*/step-*"))
    torch.set_num_threads(3 - threads)
    seen = []
    again = make_recipe(str(folder), {"checkpoint_seconds": 1e9, "optimiser": optimiser})
    assert train(run, again, lambda _: seen.append(torch.get_num_threads())).steps == result.steps
    assert set(seen) == {max(1, threads // 2)}, "each of two workers has half of them"
    assert torch.get_num_threads() == 3 - threads
    assert weights(run) == weights(whole)
    exact = [[(r["step"], r["loss"], r["lr"], r.get("held_out")) for r in losses(r)] for r in (run, whole)]
    assert exact[0] == exact[1]


def test_ctrl_c_keeps_a_checkpoint_and_torn_ones_are_passed_over(run, folder, tmp_path):
    recipe = make_recipe(str(folder))
    stop = [True]

    def interrupt(progress):
        if stop:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="stopped at step 1 of") as caught:
        train(run, recipe, interrupt)
    assert "same command" in caught.value.mend
    assert signal.getsignal(signal.SIGINT) is before
    (kept,) = run.checkpoints.glob("*/step-*")
    torn = kept.with_name("step-00000009")
    torn.mkdir()
    (torn / "checkpoint.json").write_bytes((kept / "checkpoint.json").read_bytes())
    (torn / "state.pt").write_bytes((kept / "state.pt").read_bytes()[:-100])
    (kept.with_name("step-00000010")).mkdir()
    stop.clear()
    train(run, recipe)
    whole = RunFolder(tmp_path / "whole")
    whole.root.mkdir()
    whole.samples.write_bytes(run.samples.read_bytes())
    train(whole, recipe)
    assert weights(run) == weights(whole)


def test_a_checkpoint_of_other_settings_is_not_continued(run, folder):
    train(run, make_recipe(str(folder)))
    first = weights(run)
    result = train(run, make_recipe(str(folder), {"learning_rate": 0.001}))
    assert weights(run) != first
    assert len(losses(run)) == result.steps
    assert len(list(run.checkpoints.iterdir())) == 1


def test_lora_merges_into_what_the_adapter_computes(run, folder):
    from peft import PeftModel

    recipe = make_recipe(str(folder), lora={"rank": 4, "alpha": 8})
    result = train(run, recipe)
    assert result.trainable < result.parameters
    assert result.train_loss < losses(run)[0]["loss"]
    ids = torch.tensor([[5, 9, 12, 30, 7]])
    base = AutoModelForCausalLM.from_pretrained(folder).eval()
    plain = base(input_ids=ids).logits
    adapted = PeftModel.from_pretrained(base, run.student / "adapter").eval()(input_ids=ids).logits
    merged = AutoModelForCausalLM.from_pretrained(run.student).eval()(input_ids=ids).logits
    torch.testing.assert_close(merged, adapted, rtol=1e-5, atol=1e-5)
    assert (merged - plain).abs().max() > 0.01
    with pytest.raises(UsageError, match="LoRA adapter does not fit"):
        train(run, make_recipe(str(folder), lora={"targets": ["nothing"]}))


def test_dora_merges_into_what_the_adapter_computes(run, folder):
    from peft import PeftModel

    result = train(run, make_recipe(str(folder), lora={"rank": 4, "alpha": 8, "dora": True}))
    assert result.trainable < result.parameters
    assert result.train_loss < losses(run)[0]["loss"]
    lengths = [
        name for name in load_file(run.student / "adapter/adapter_model.safetensors") if "magni" in name
    ]
    assert lengths, "the length of each row of a matrix is learned apart"
    ids = torch.tensor([[5, 9, 12, 30, 7], [8, 8, 3, 2, 40]])
    base = AutoModelForCausalLM.from_pretrained(folder).eval()
    plain = base(input_ids=ids).logits
    adapted = PeftModel.from_pretrained(base, run.student / "adapter").eval()(input_ids=ids).logits
    merged = AutoModelForCausalLM.from_pretrained(run.student).eval()(input_ids=ids).logits
    torch.testing.assert_close(merged, adapted, rtol=1e-5, atol=1e-5)
    assert (merged - plain).abs().max() > 0.01


def test_from_teacher_keeps_the_named_layers(run, tmp_path):
    teacher = tmp_path / "teacher"
    shape = {**BASE, "layers": 4}
    tiny_model(teacher, template=TEMPLATE, **shape)
    big = tiny_llama(**shape)
    recipe = make_recipe("from_teacher", {"epochs": 0.1})
    train(run, recipe, teacher_folder=str(teacher))
    before = AutoModelForCausalLM.from_pretrained(run.student_before)
    assert before.config.num_hidden_layers == 2
    for mine, theirs in zip(before.model.layers, (big.model.layers[0], big.model.layers[2]), strict=True):
        for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(a, b)
    assert before.generate(torch.tensor([[5, 9]]), max_new_tokens=3, do_sample=False).shape[0] == 1
    with pytest.raises(UsageError, match="does not fit the teacher"):
        train(run, make_recipe("from_teacher", keep_layers=[1, 9]), teacher_folder=str(teacher))
    with pytest.raises(UsageError, match="from_teacher"):
        train(run, make_recipe("from_teacher"))


def test_config_makes_a_fresh_llama_with_the_teachers_tokenizer(run, folder):
    shape = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    result = train(run, make_recipe("config", {"epochs": 0.1}, config=shape), teacher_folder=str(folder))
    assert result.steps >= 1
    before = AutoModelForCausalLM.from_pretrained(run.student_before)
    assert before.config.hidden_size == 16
    assert before.config.vocab_size == VOCABULARY
    assert before.config.eos_token_id == 1
    with pytest.raises(UsageError, match=r"config\.hiden_size") as caught:
        train(run, make_recipe("config", config={"hiden_size": 16}), teacher_folder=str(folder))
    assert "hidden_size" in caught.value.mend
    bad = {**shape, "num_attention_heads": 5}
    with pytest.raises(UsageError, match="does not make a model"):
        train(run, make_recipe("config", config=bad), teacher_folder=str(folder))
    with pytest.raises(UsageError, match="no tokenizer"):
        train(run, make_recipe("config", config=shape))


def test_a_folder_that_is_not_a_model_is_named(run, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="not a model") as caught:
        train(run, make_recipe(str(tmp_path / "empty")))
    assert caught.value.why
    assert caught.value.mend


def test_nothing_that_fits_is_an_error(run, folder):
    write_samples(run.samples, [sample(1, "a" * 90, "b" * 90)])
    with pytest.raises(UsageError, match="nothing to train on") as caught:
        train(run, make_recipe(str(folder)))
    assert "too long" in caught.value.why


def test_a_loss_that_is_no_number_stops_with_the_last_checkpoint_whole(run, folder, monkeypatch):
    step, seen, ticks = loop.train_step, count(1), count()

    def breaks(work, *rest):
        if next(seen) == 6:
            with torch.no_grad():
                next(work.model.parameters())[:] = torch.nan
        return step(work, *rest)

    monkeypatch.setattr(loop, "train_step", breaks)
    recipe = make_recipe(str(folder), {"checkpoint_seconds": 1})
    with pytest.raises(ModelError, match="went astray at step 6") as caught:
        train(run, recipe, clock=lambda: float(next(ticks)))
    assert "learning_rate" in caught.value.mend
    assert sorted(p.name for p in run.checkpoints.glob("*/step-*"))[-1] == "step-00000005"


def test_a_student_that_no_gradient_reaches_is_an_error(run, folder, monkeypatch):
    monkeypatch.setattr(loop, "train_step", lambda *_, **__: Stepped(3.0, 0.0, 1))
    with pytest.raises(ModelError, match="zero gradient at step 1"):
        train(run, make_recipe(str(folder)))


def test_running_out_of_memory_says_what_to_lower(run, folder, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(loop, "train_step", full)
    with pytest.raises(ModelError, match="out of memory at training step 1") as caught:
        train(run, make_recipe(str(folder)))
    assert "batch_tokens" in caught.value.mend


def test_a_full_disk_is_named_whichever_writer_meets_it(run, folder, monkeypatch):
    """What safetensors 0.8 and torch 2.13 raise on a full file system."""
    said = "Error while serializing: I/O error: No space left on device (os error 28)"

    def full(*_, **__):
        raise SafetensorError(said)

    def full_archive(state, file):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError(
                "[enforce fail at inline_container.cc:672] . unexpected pos 768 vs 662"
            ) from None

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full_archive)
        with pytest.raises(StorageError, match="could not write a checkpoint in") as caught:
            train(run, make_recipe(str(folder)))
        assert caught.value.why == "no space left on the disk"
    with monkeypatch.context() as patched:
        patched.setattr(LlamaForCausalLM, "save_pretrained", full)
        with pytest.raises(StorageError, match="could not write") as caught:
            train(run, make_recipe(str(folder)))
        assert caught.value.why == "no space left on the disk"
    train(run, make_recipe(str(folder)))
    assert run.student.is_dir()
