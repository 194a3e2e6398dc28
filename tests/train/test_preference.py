"""Pairs of answers to one prompt, and what a student learns from them."""

from __future__ import annotations

import json
import socket
from dataclasses import asdict
from itertools import count
from math import log
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from train.tiny_student import losses, make_recipe, sample, weights, write_samples
from transformers import AutoModelForCausalLM, AutoTokenizer

from stillhouse.errors import Interrupted, UsageError
from stillhouse.models.local import load_model
from stillhouse.train import pairs, train
from stillhouse.train.rows import read_rows
from stillhouse.workspace import RunFolder

pytest.importorskip("trl")

DPO = {"pairs": "answers", "epochs": 4, "learning_rate": 1e-3}


def draw(prompt: int, index: int, right: bool) -> dict[str, object]:
    """An answer to a sum, as curate writes it: right ones into one file, wrong ones into another."""
    said = prompt % 7 + prompt % 5 + (0 if right else 1 + index)
    row = sample(100 * prompt + index, f"{prompt % 7}+{prompt % 5}?" + " x" * (prompt % 4), f"{said}")
    return row | {"id": f"p{prompt}#{index}"}


def write_wrong(path: Path, rows: list[dict[str, object]]) -> None:
    """As `write_samples`, with the reasons of dropped rows."""
    write_samples(path, rows)
    table = pq.read_table(path)
    reasons = pa.array([row.get("reason", "wrong answer") for row in rows], pa.string())
    pq.write_table(table.append_column("reason", reasons), path)


@pytest.fixture
def drawn(tmp_path) -> RunFolder:
    """24 prompts with two right answers and one wrong one each, but for the last four."""
    return fill(RunFolder(tmp_path / "drawn"))


def fill(run: RunFolder) -> RunFolder:
    right = [draw(prompt, index, True) for prompt in range(24) for index in (0, 1)]
    wrong = [draw(prompt, 2, False) for prompt in range(20)]
    write_samples(run.samples, right)
    write_wrong(run.dropped, [*wrong, draw(21, 3, False) | {"reason": "duplicate"}, draw(99, 2, False)])
    return run


def test_right_answers_are_paired_with_wrong_ones_to_the_same_prompt(drawn, folder):
    student = load_model(str(folder), "float32")
    rows, _ = read_rows(drawn.samples, student, 128)
    made = pairs.ranked(rows, drawn.samples, drawn.dropped, student, 128)
    assert len(made) == 20
    assert made.without == {"right answer: no wrong one to the same prompt": 28}
    for chosen, rejected in zip(made.chosen, made.rejected, strict=True):
        assert chosen.ids[: chosen.start].tolist() == rejected.ids[: rejected.start].tolist()
        assert chosen.ids.tolist() != rejected.ids.tolist()
    short = pairs.ranked(rows[:2], drawn.samples, drawn.dropped, student, 6)
    assert short.without == {
        "wrong answer: too long": 1,
        "right answer: no wrong one to the same prompt": 2,
    }


def test_a_student_learns_to_prefer_right_answers_after_its_objective(drawn, folder):
    plain = RunFolder(drawn.root.with_name("plain"))
    fill(plain)
    alone = train(plain, make_recipe(str(folder), {"epochs": 1}))
    said = []
    result = train(drawn, make_recipe(str(folder), {"epochs": 1, "preference": DPO}), said.append)
    told = result.preference
    assert told is not None
    assert (result.steps, result.train_loss) == (alone.steps, alone.train_loss), "the objective comes first"
    assert weights(drawn) != weights(plain)
    assert told["pairs"] + told["pairs_held_out"] == 20
    assert told["pairs_held_out"] > 0
    rows = losses(drawn)
    assert [row["step"] for row in rows] == list(range(1, alone.steps + told["steps"] + 1))
    first = rows[alone.steps]
    assert first["loss"] == pytest.approx(log(2), abs=1e-4), "nothing is preferred yet"
    assert first["preference"]["margins"] == pytest.approx(0, abs=1e-4)
    assert told["loss"] < 0.6
    assert told["accuracy"] > 0.6
    assert told["held_out_loss"] == rows[-1]["held_out"]
    assert sum("held_out" in row for row in rows[alone.steps :]) == 4
    assert rows[-1]["tokens"] > first["tokens"] > rows[alone.steps - 1]["tokens"]
    assert json.loads(json.dumps(asdict(result))) == asdict(result)
    assert "pairs: loss" in said[-1].note
    assert said[-1].done == said[-1].total == told["steps"]
    loaded = AutoModelForCausalLM.from_pretrained(drawn.student)
    before = AutoTokenizer.from_pretrained(folder)
    after = AutoTokenizer.from_pretrained(drawn.student)
    assert (after.pad_token, loaded.config.pad_token_id) == (before.pad_token, 0), "trl leaves no trace"


def test_what_is_reported_is_the_loss_of_the_paper(drawn, folder):
    """One step over all pairs; the weights before it and after it give the same figures by hand."""
    how = {"epochs": 1, "learning_rate": 1e-3, "beta": 0.3}
    settings = {"epochs": 1, "held_out": 0.0, "dtype": "float32", "batch_tokens": 100_000, "warmup": 0.0}
    plain = fill(RunFolder(drawn.root.with_name("plain")))
    train(plain, make_recipe(str(folder), settings))
    train(drawn, make_recipe(str(folder), settings | {"preference": how | {"epochs": 2}}))
    reference = AutoModelForCausalLM.from_pretrained(plain.student)
    student = load_model(str(folder), "float32")
    rows, _ = read_rows(drawn.samples, student, 128)
    made = pairs.ranked(rows, drawn.samples, drawn.dropped, student, 128)

    def likely(model, row) -> torch.Tensor:
        ids = torch.from_numpy(row.ids).long()
        logprobs = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
        return logprobs.gather(1, ids[1:, None])[row.start - 1 :, 0].sum()

    def loss(model) -> torch.Tensor:
        ratios = [
            (likely(model, chosen) - base[0]) - (likely(model, rejected) - base[1])
            for chosen, rejected, base in zip(made.chosen, made.rejected, bases, strict=True)
        ]
        return -torch.nn.functional.logsigmoid(0.3 * torch.stack(ratios)).mean()

    with torch.no_grad():
        bases = [
            (likely(reference, chosen), likely(reference, rejected))
            for chosen, rejected in zip(made.chosen, made.rejected, strict=True)
        ]
    model = AutoModelForCausalLM.from_pretrained(plain.student)
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=1e-3,
        betas=(0.9, 0.95),
    )
    lines = losses(drawn)[-2:]
    for line in lines:
        now = loss(model)
        now.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert line["loss"] == pytest.approx(now.item(), rel=1e-4)
        assert line["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)
        optimiser.step()
        optimiser.zero_grad()


def test_nothing_is_written_to_the_terminal_meanwhile(drawn, folder, capfd, recwarn):
    ticks, said = count(), []

    def watch(progress):
        if progress.note.startswith("pairs"):
            said.append(capfd.readouterr())

    settings = {"epochs": 1, "preference": DPO | {"epochs": 1}, "checkpoint_seconds": 3}
    train(drawn, make_recipe(str(folder), settings), watch, clock=lambda: float(next(ticks)))
    assert list(drawn.checkpoints.glob("*/preference/*/checkpoint-*"))
    assert len(said) > 3
    assert all(one == ("", "") for one in said[1:])
    assert not [one for one in recwarn if issubclass(one.category, FutureWarning)]


@pytest.mark.parametrize("student", [{}, {"lora": {"rank": 4, "alpha": 8}}], ids=["whole", "adapter"])
def test_a_stopped_training_on_pairs_goes_on_and_ends_with_the_same_weights(drawn, folder, student):
    settings = {"epochs": 1, "preference": DPO, "checkpoint_seconds": 1e9}
    whole = fill(RunFolder(drawn.root.with_name("whole")))
    result = train(whole, make_recipe(str(folder), settings, **student))
    stop = [True]

    def interrupt(progress):
        if stop and progress.note.startswith("pairs") and progress.done == 1:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="on pairs") as caught:
        train(drawn, make_recipe(str(folder), settings, **student), interrupt)
    assert "same command" in caught.value.mend
    assert not drawn.student.exists()
    stop.clear()
    again = train(drawn, make_recipe(str(folder), settings, **student))
    assert weights(drawn) == weights(whole)
    exact = [[(r["step"], r["loss"], r["lr"], r.get("held_out")) for r in losses(r)] for r in (drawn, whole)]
    assert exact[0] == exact[1]
    assert again.preference is not None
    assert result.preference is not None
    assert again.preference["loss"] == result.preference["loss"]


def test_a_checkpoint_that_was_torn_is_passed_over(drawn, folder):
    ticks = count()
    settings = {"epochs": 1, "preference": DPO, "checkpoint_seconds": 3}
    train(drawn, make_recipe(str(folder), settings), clock=lambda: float(next(ticks)))
    kept = sorted(drawn.checkpoints.glob("*/preference/*/checkpoint-*"))
    assert 1 <= len(kept) <= 2
    first = weights(drawn)
    for path in kept:
        (path / "model.safetensors").unlink()
        (path / "whole.json").unlink()
    train(drawn, make_recipe(str(folder), settings), clock=lambda: float(next(ticks)))
    assert weights(drawn) == first


def test_other_settings_of_the_pairs_begin_where_the_objective_ended(drawn, folder):
    ticks, steps = count(), []

    def watch(progress):
        steps.append(progress.note.startswith("pairs"))

    settings = {"epochs": 1, "preference": DPO, "checkpoint_seconds": 3}
    train(drawn, make_recipe(str(folder), settings), watch, clock=lambda: float(next(ticks)))
    assert steps.count(False) > 1
    steps.clear()
    settings["preference"] = DPO | {"beta": 0.5, "epochs": 1}
    result = train(drawn, make_recipe(str(folder), settings), watch, clock=lambda: float(next(ticks)))
    assert steps
    assert all(steps), "the objective is not trained again"
    assert len(list(drawn.checkpoints.glob("*/preference/*"))) == 1
    other = fill(RunFolder(drawn.root.with_name("other")))
    train(other, make_recipe(str(folder), settings), clock=lambda: float(next(ticks)))
    assert weights(drawn) == weights(other)
    assert len(losses(drawn)) == len(losses(other)) == result.steps + result.preference["steps"]


def test_an_adapter_learns_from_pairs_and_is_merged_alone(drawn, folder):
    from peft import PeftModel

    settings = {"epochs": 1, "preference": DPO | {"learning_rate": 1e-2}}
    result = train(drawn, make_recipe(str(folder), settings, lora={"rank": 4, "alpha": 8}))
    assert result.preference is not None
    assert result.preference["accuracy"] > 0.6
    assert [path.name for path in (drawn.student / "adapter").iterdir() if path.is_dir()] == []
    ids = torch.tensor([[5, 9, 12, 30, 7]])
    base = AutoModelForCausalLM.from_pretrained(folder).eval()
    adapted = PeftModel.from_pretrained(base, drawn.student / "adapter").eval()(input_ids=ids).logits
    merged = AutoModelForCausalLM.from_pretrained(drawn.student).eval()(input_ids=ids).logits
    torch.testing.assert_close(merged, adapted, rtol=1e-5, atol=1e-5)


def test_without_wrong_answers_the_students_own_are_rejected_and_nobody_is_told(drawn, folder, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("something was sent"))
    drawn.dropped.unlink()
    with pytest.raises(UsageError, match="no pairs") as caught:
        train(drawn, make_recipe(str(folder), {"epochs": 1, "preference": DPO}))
    assert '"own"' in caught.value.mend
    settings = {"epochs": 6, "preference": DPO | {"pairs": "own"}, "held_out": 0.0}
    result = train(drawn, make_recipe(str(folder), settings))
    told = result.preference
    assert told is not None
    assert told["pairs"] + sum(told["without"].values()) == result.rows == 48
    assert told["pairs"] > 10
    assert told["loss"] < log(2)


def test_a_tracker_is_shown_the_pairs_after_the_objective(drawn, folder):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = {"epochs": 1, "track": "tensorboard", "preference": DPO | {"epochs": 1}}
    train(drawn, make_recipe(str(folder), settings))
    shown, rows = EventAccumulator(str(drawn.logs / "tensorboard")).Reload(), losses(drawn)
    assert [event.step for event in shown.Scalars("loss")] == [row["step"] for row in rows]
    for figure in ("chosen", "rejected", "margins", "accuracy"):
        wanted = [row["preference"][figure] for row in rows if "preference" in row]
        seen = [event.value for event in shown.Scalars(f"preference/{figure}")]
        assert seen == pytest.approx(wanted)
        assert len(seen) > 1


@pytest.mark.parametrize("setting", [{"micro_tokens": 64}, {"packing": True}])
def test_what_cannot_be_done_with_pairs_is_refused_by_the_recipe(folder, setting):
    with pytest.raises(UsageError) as refused:
        make_recipe(str(folder), {"preference": DPO, **setting})
    assert f"`{next(iter(setting))}`" in refused.value.why
