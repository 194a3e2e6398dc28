"""A student that learns from its own text: what it writes, what it learns of it, and when it is stopped."""

import signal
import subprocess
import sys
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TEMPLATE, tiny_llama, tiny_model, tiny_tokenizer
from train.tiny_student import BASE, losses, make_recipe, sums, weights, write_samples

from stillhouse.errors import ModelError, UsageError
from stillhouse.models.local import load_model
from stillhouse.recipe import OnPolicy
from stillhouse.train import Source, health, loop, train
from stillhouse.train.lessons import online
from stillhouse.train.on_policy import OwnText, drawn
from stillhouse.train.rows import Row
from stillhouse.workspace import RunFolder

TEACHER = {**BASE, "width": 48, "seed": 9, "initializer_range": 0.5}
FIGURES = {*health.OF_ROWS, *health.OF_TOKENS, "rows", "tokens"}

KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from itertools import count
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from train.test_on_policy import own_recipe, source_of
from stillhouse.train import loop, train
from stillhouse.workspace import RunFolder
step, seen, ticks = loop.train_step, count(1), count()
def dies(*args, **kwargs):
    if next(seen) == 12:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*args, **kwargs)
loop.train_step = dies
run = RunFolder(Path(sys.argv[1]))
train(run, own_recipe(sys.argv[2], checkpoint_seconds=7), clock=lambda: float(next(ticks)),
      teacher_folder=sys.argv[3], source=source_of(run))
"""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("teachers") / "teacher", template=TEMPLATE, **TEACHER)


def own_recipe(student, distil=None, lora=None, **settings):
    """Settings of [train] by their names, all others of [train.on_policy]."""
    names = ("epochs", "dtype", "checkpoint_seconds", "learning_rate", "batch_tokens")
    of_train = {key: settings.pop(key) for key in names if key in settings}
    own = {"after": 0.0, "max_tokens": 12, **settings}
    tree = {"objective": "on_policy", "on_policy": own, "distil": distil or {"online": True}, **of_train}
    return make_recipe(str(student), tree, lora=lora)


def source_of(run):
    return Source(run.root.parent / "targets", (), "teacher", "r1")


def learn(run, student, teacher, **settings):
    recipe = own_recipe(student, **settings)
    return train(run, recipe, teacher_folder=teacher and str(teacher), source=source_of(run))


def other_run(tmp_path, name):
    run = RunFolder(tmp_path / name)
    write_samples(run.samples, sums())
    return run


def test_the_student_comes_nearer_on_its_own_text_and_a_seed_repeats_it(run, folder, teacher, tmp_path):
    result = learn(run, folder, teacher, share=1.0, epochs=5)
    seen = losses(run)
    assert all(row["own"].keys() == FIGURES for row in seen)
    own = np.array([row["own"]["loss"] for row in seen])
    assert own[-6:].mean() < 0.85 * own[:6].mean()
    assert seen[-1]["own"]["overlap"] > seen[0]["own"]["overlap"]
    held = [row["held_out"] for row in seen if "held_out" in row]
    assert held[-1] < held[0], "nearer on the teacher's answers as well, which it never read"
    assert result.objective == "on_policy"
    assert result.own.keys() == FIGURES
    assert result.own["rows"] == result.rows
    again = other_run(tmp_path, "again")
    learn(again, folder, teacher, share=1.0, epochs=5)
    assert weights(again) == weights(run)
    assert [row["own"] for row in losses(again)] == [row["own"] for row in seen]


def test_a_killed_training_ends_with_the_weights_of_an_unbroken_one(run, folder, teacher, tmp_path):
    whole = other_run(tmp_path, "whole")
    ticks = count()
    recipe = own_recipe(folder, checkpoint_seconds=7)
    train(
        whole,
        recipe,
        clock=lambda: float(next(ticks)),
        teacher_folder=str(teacher),
        source=source_of(whole),
    )
    arguments = [str(run.root), str(folder), str(teacher), str(Path(__file__).parents[1])]
    dead = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], check=False, capture_output=True, timeout=120
    )
    assert dead.returncode == -signal.SIGKILL, dead.stderr.decode()[-2000:]
    assert list(run.checkpoints.glob("*/step-*"))
    result = learn(run, folder, teacher)
    assert weights(run) == weights(whole)
    assert [(r["loss"], r.get("own")) for r in losses(run)] == [
        (r["loss"], r.get("own")) for r in losses(whole)
    ]
    assert result.own["rows"] == round(0.5 * result.rows)


def test_it_draws_from_its_whole_distribution_and_keeps_the_ids_that_it_drew(folder, teacher):
    student = load_model(str(folder))
    row = Row(np.array([5, 9, 4, 7], dtype=np.int32), 3, "")
    own = OwnText(student, online(load_model(str(teacher)), "", OnPolicy()), OnPolicy(), 3, 128, 4096, 1)
    written = own.write([row] * 4000, range(4000), step=0)
    with torch.no_grad():
        logits = student.model(input_ids=torch.tensor([[5, 9, 4]])).logits[0, -1]
    wanted = torch.softmax(logits.double(), -1).numpy()
    found = np.bincount([each.ids[3] for each in written], minlength=len(wanted)) / 4000
    often = wanted > 0.002
    error = np.sqrt(wanted[often] * (1 - wanted[often]) / 4000)
    assert (np.abs(found - wanted)[often] < 4.5 * error).all()
    assert all((each.ids[:3] == row.ids[:3]).all() and each.start == 3 for each in written)
    for each in written:
        said = each.ids[3:].tolist()
        assert said[-1] in student.stop_ids or len(said) == 3
        assert not student.stop_ids & set(said[:-1])
    again = own.write([row] * 10, range(10), step=0)
    assert [each.ids.tolist() for each in again] == [each.ids.tolist() for each in written[:10]]
    other = own.write([row] * 10, range(10), step=1)
    assert [each.ids.tolist() for each in other] != [each.ids.tolist() for each in again]


def test_rows_that_only_pad_the_head_are_never_written(tmp_path, teacher):
    model = tiny_llama(layers=1, width=16, vocab_size=80)
    model.save_pretrained(tmp_path / "padded")
    tiny_tokenizer(TEMPLATE).save_pretrained(tmp_path / "padded")
    student = load_model(str(tmp_path / "padded"))
    row = Row(np.array([5, 9, 4], dtype=np.int32), 2, "")
    own = OwnText(student, online(load_model(str(teacher)), "", OnPolicy()), OnPolicy(), 20, 128, 4096, 1)
    written = own.write([row] * 50, range(50), step=0)
    assert max(int(each.ids.max()) for each in written) < own.lesson.vocabulary == 48


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "jensen_shannon"])
def test_the_loss_of_the_first_step_is_the_divergence_at_the_places_it_wrote(
    run, folder, teacher, divergence, monkeypatch
):
    """Against sums in float64 over both models' whole distributions, made here."""
    turns = []
    take = loop.take_turn
    monkeypatch.setattr(loop, "take_turn", lambda *a: turns.append(take(*a)) or turns[-1])
    learn(run, folder, teacher, share=1.0, divergence=divergence, epochs=0.2, dtype="float32")
    models = [load_model(str(each), "float32").model for each in (folder, teacher)]
    total, places = 0.0, 0
    for rows, way in turns[0].groups:
        assert way.own
        for row in rows:
            ids = torch.from_numpy(row.ids.astype(np.int64))[None]
            with torch.no_grad():
                p, t = (
                    torch.log_softmax(model(input_ids=ids).logits[0, row.start - 1 : -1].double(), -1)
                    for model in models
                )
            total += float(plain(divergence, p, t).sum())
            places += len(p)
    assert losses(run)[0]["own"]["loss"] == pytest.approx(total / places, rel=1e-4)
    assert losses(run)[0]["loss"] == pytest.approx(total / places, rel=1e-4)


def plain(divergence, p, t):
    kl = lambda a, b: (a.exp() * (a - b)).sum(-1)  # noqa: E731
    m = torch.log((p.exp() + t.exp()) / 2)
    return {
        "forward_kl": kl(t, p),
        "reverse_kl": kl(p, t),
        "jensen_shannon": 2 * (kl(t, m) + kl(p, m)),
    }[divergence]


def test_before_it_writes_it_learns_as_without_and_each_epoch_draws_other_rows(
    run, folder, teacher, tmp_path
):
    learn(run, folder, teacher, share=0.25, after=1.0)
    along = other_run(tmp_path, "along")
    recipe = make_recipe(str(folder), {"objective": "distil", "distil": {"online": True}})
    result = train(along, recipe, teacher_folder=str(teacher), source=source_of(along))
    seen, plain_curve = losses(run), losses(along)
    first = len(seen) // 3
    assert [row["loss"] for row in seen[:first]] == [row["loss"] for row in plain_curve[:first]]
    assert not any("own" in row for row in seen[:first])
    for epoch in (seen[first : 2 * first], seen[2 * first :]):
        assert sum(row["own"]["rows"] for row in epoch if "own" in row) == round(0.25 * result.rows)
    assert drawn(40, 0.25, 1, 1) != drawn(40, 0.25, 1, 2)


def test_its_own_tokens_are_never_labels(run, folder, teacher, tmp_path):
    """A share of cross-entropy on the teacher's text changes nothing where all text is the student's."""
    learn(run, folder, teacher, share=1.0, epochs=2)
    hard = other_run(tmp_path, "hard")
    learn(hard, folder, teacher, share=1.0, epochs=2, distil={"online": True, "hard": 0.5})
    assert weights(hard) == weights(run)


def test_stored_targets_serve_the_rows_that_it_does_not_write_and_adapters_learn_too(run, folder, teacher):
    result = learn(run, folder, teacher, distil={"head": 4, "draws": 2}, lora={"rank": 4})
    assert len(result.shards) == 1
    assert result.trainable < result.parameters
    held = [row["held_out"] for row in losses(run) if "held_out" in row]
    assert held[-1] < held[0]


def test_a_student_that_ceases_to_end_its_answers_is_stopped(run, folder, tmp_path):
    """It was taught short answers, and now a teacher that all but never ends one."""
    short = other_run(tmp_path, "short")
    train(short, make_recipe(str(folder), {"epochs": 12}))
    endless = tiny_llama(**{**TEACHER, "tie_word_embeddings": False})
    with torch.no_grad():
        endless.lm_head.weight.mul_(2.0)
        endless.lm_head.weight[1] = 0.0
    endless.save_pretrained(tmp_path / "endless")
    tiny_tokenizer(TEMPLATE).save_pretrained(tmp_path / "endless")
    with pytest.raises(ModelError, match="run on without end") as stopped:
        learn(
            run,
            short.student,
            tmp_path / "endless",
            share=1.0,
            epochs=12,
            learning_rate=0.001,
            divergence="forward_kl",
        )
    assert "on_policy.share" in stopped.value.mend
    seen = losses(run)
    assert seen[0]["own"]["truncated"] < health.ENDED
    assert seen[-1]["own"]["truncated"] >= health.CUT
    assert not run.student.exists()


def test_the_rule_needs_a_student_that_once_ended_its_answers():
    def through(*shares):
        window = health.Window()
        for share in shares:
            for _ in range(8):
                window = health.after(window, {"rows": 32.0, "truncated": share})
        return window

    assert health.collapsed(through(0.0, 1.0))
    assert health.collapsed(through(1.0, 0.1, 0.9))
    assert not health.collapsed(through(1.0, 1.0)), "it never learnt to"
    assert not health.collapsed(through(0.3, 0.9))
    assert not health.collapsed(through(0.0, 0.7))
    assert not health.collapsed(health.after(through(0.0), {"rows": 32.0, "truncated": 1.0})), "one step"
    assert health.after(through(0.0), None) == through(0.0)


def test_figures_count_what_was_cut_and_said_again():
    def answer(*ids):
        return Row(np.array([3, *ids], dtype=np.int32), 1, "")

    loops, ends = answer(*[7, 8] * 6), answer(5, 6, 7, 8, 1)
    said = health.figures([answer(4, 1), answer(4, 4, 4, 1)], [loops, ends], frozenset({1}))
    assert (said["rows"], said["tokens"], said["length"], said["answer_length"]) == (2, 17, 8.5, 3.0)
    assert said["truncated"] == 0.5
    assert said["repeated"] == pytest.approx(7 / 11), "9 runs of which 2 differ, and 2 that stand once"
    assert health.figures([ends], [answer(1)], frozenset({1}))["repeated"] == 0.0


def test_agreement_of_two_models_that_are_one():
    torch.manual_seed(0)
    logits = torch.randn(700, 20)
    said = health.agreed(health.agreement(logits, None, logits.clone(), 16))
    entropy = torch.distributions.Categorical(logits=logits[::3, :16]).entropy().mean()
    assert said["entropy"] == pytest.approx(float(entropy), rel=1e-5)
    assert said["entropy"] == said["teacher_entropy"]
    assert said["overlap"] == 1.0
    assert said["student_mass"] == said["teacher_mass"]
    apart = torch.full((4, 20), -30.0)
    one, two = apart.clone(), apart.clone()
    one[:, :8], two[:, 8:16] = 0.0, 0.0
    said = health.agreed(health.agreement(one, None, two, 20))
    assert said["overlap"] == 0.0
    assert said["student_mass"] < 1e-10


def test_what_does_not_fit_is_refused_with_a_way_out(run, folder, teacher, tmp_path):
    with pytest.raises(UsageError, match="teacher cannot read"):
        learn(run, folder, None)
    with pytest.raises(UsageError) as refused:
        learn(run, folder, teacher, after=3.0)
    assert "never write" in refused.value.why
    retemplated = tiny_model(tmp_path / "other", template=TEMPLATE + " ", **BASE)
    with pytest.raises(UsageError, match="token by token"):
        learn(run, folder, retemplated)


def test_rows_that_the_teacher_cannot_hold_are_counted(run, folder, tmp_path):
    narrow = tiny_model(tmp_path / "narrow", template=TEMPLATE, **{**TEACHER, "max_position_embeddings": 28})
    result = learn(run, folder, narrow, epochs=1)
    left = result.rows_left_out["too long for the teacher"]
    assert 0 < left < 48
    assert result.rows + result.rows_held_out + left == 48
