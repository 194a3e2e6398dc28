"""One lesson, whoever tells it: a teacher that is here, its words in shards, and a server over HTTP."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from aiohttp import web
from pyarrow import parquet
from tiny import TEMPLATE, tiny_model
from train.tiny_student import BASE, losses, make_recipe, sums, weights, write_samples
from transformers import AutoTokenizer

from stillhouse.ask import Limits, Teacher
from stillhouse.ask.scores import Readings
from stillhouse.errors import BudgetReached, EndpointError, ModelError, UsageError
from stillhouse.ledger import Ledger
from stillhouse.ledger.targets import open_shard
from stillhouse.models.local import load_model
from stillhouse.models.serve import background
from stillhouse.money import Price
from stillhouse.recipe import Distil, parse_recipe
from stillhouse.train import Source, loop, train
from stillhouse.train.forward import scores_at
from stillhouse.train.lessons import stored
from stillhouse.train.losses import position_losses
from stillhouse.train.rows import collate
from stillhouse.workspace import RunFolder, init_workspace

TEACHER = {**BASE, "width": 48, "seed": 9, "initializer_range": 0.5}
LIMITS = Limits(concurrency=8, timeout=60.0, retries=1)
EXACT = {"dtype": "float32", "epochs": 3}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("teachers") / "teacher", template=TEMPLATE, **TEACHER)


@pytest.fixture(scope="module")
def url(teacher, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "server.log"
    with background(str(teacher), log, "--max-logprobs", "-1") as found:
        yield found


@pytest.fixture
def ledger(tmp_path):
    with Ledger.open(init_workspace(tmp_path)) as found:
        yield found


def new_run(tmp_path, name):
    run = RunFolder(tmp_path / name)
    write_samples(run.samples, sums())
    return run


def readings(ledger, url, limits=LIMITS, **teacher):
    asked = Teacher("teacher", "here", "r1", lambda: url, **teacher)
    return Readings(asked, 0, limits, ledger, "t")


def learn(run, student, teacher=None, remote=None, own=None, **settings):
    """`teacher` is a folder that is read here; `remote` is asked."""
    of_train = {key: settings.pop(key) for key in ("epochs", "dtype") if key in settings}
    tree = {"objective": "on_policy" if own else "distil", "distil": settings, **EXACT, **of_train}
    tree |= {"on_policy": own} if own else {}
    recipe = make_recipe(str(student)).model_dump(mode="json")
    recipe["train"] |= tree
    recipe["teacher"]["endpoint"] = "http://127.0.0.1:9/v1" if remote else None
    source = Source(run.root.parent / "targets", (), "teacher", "r1", remote)
    return train(run, parse_recipe(recipe), teacher_folder=teacher and str(teacher), source=source)


def curve(run):
    return np.array([row["loss"] for row in losses(run)])


def held(run):
    return np.array([row["held_out"] for row in losses(run) if "held_out" in row])


def test_a_teacher_here_one_in_shards_and_one_at_a_server_give_one_curve(
    folder, teacher, url, ledger, tmp_path
):
    along, kept, asked = (new_run(tmp_path, name) for name in ("along", "kept", "asked"))
    learn(along, folder, teacher, online=True)
    learn(kept, folder, teacher, keep="all")
    result = learn(asked, folder, remote=readings(ledger, url), keep="all", tokenizer=str(teacher))
    assert len(curve(along)) > 20
    assert curve(along).max() > 0.5
    for run in (kept, asked):
        assert np.abs(curve(run) - curve(along)).max() <= 1e-5
        assert np.abs(held(run) - held(along)).max() <= 1e-5
    assert result.rows + result.rows_held_out == 48
    assert not result.notices


def cut(log_V, named):
    """Log-probabilities of the named ids, and of all others together."""
    rest = np.delete(log_V, named)
    return np.append(log_V[named], np.logaddexp.reduce(rest) if len(rest) else -np.inf)


def bounds(logt_V, logp_V, named):
    """Of one position the loss over named ids and tail, how far rounding to 16 bits can move it, and the
    loss over the whole distribution; docs/targets.md has the derivation."""
    t, p = cut(logt_V, named), cut(logp_V, named)
    t, p = t[t > -np.inf], p[t > -np.inf]
    moved = 2.0**-11 * (np.abs(t) + np.log(len(t))) + 2.0**-24
    most = np.sum(np.exp(t) * np.expm1(moved) * (np.abs(t - p) + moved))
    return np.sum(np.exp(t) * (t - p)), most, np.sum(np.exp(logt_V) * (logt_V - logp_V))


@pytest.mark.parametrize(("where", "head"), [("here", 48), ("server", 4)])
def test_packed_targets_give_a_loss_within_its_bound(
    folder, teacher, url, ledger, tmp_path, monkeypatch, where, head
):
    """With the student as it is at each step: what 16 bits and a tail can do, and no more."""
    kept, along = new_run(tmp_path, "kept"), new_run(tmp_path, "along")
    if where == "server":
        remote = readings(ledger, url)
        result = learn(kept, folder, remote=remote, head=head, draws=0, tokenizer=str(teacher))
    else:
        result = learn(kept, folder, teacher, head=head, draws=0)
    bound = open_shard(tmp_path / "targets" / f"{result.shards[0]}.targets").binding
    student, read = load_model(str(folder)), load_model(str(teacher)).model
    settings = Distil(head=head, draws=0)
    lesson = stored(tmp_path / "targets", [(bound, tuple(result.shards))], student.reader, settings)
    seen, step = [], loop.train_step

    def compare(work, groups, *rest):
        ((rows, _),) = groups
        causal = work.causal
        batch = collate(rows)
        assert all(lesson.has(row) for row in rows)
        targets = lesson.targets(rows, batch)
        with torch.no_grad():
            logp, logt = (scores_at(m, batch).double().log_softmax(-1) for m in (causal, read))
            packed = position_losses(logp, targets, lesson.objective).numpy()
        named = [
            ids[w > -torch.inf].numpy() for ids, w in zip(targets.ids_NK, targets.log_weights_NK, strict=True)
        ]
        found = [bounds(*each) for each in zip(logt.numpy(), logp.numpy(), named, strict=True)]
        exact, most, whole = np.array(found).T
        assert (np.abs(packed - exact) <= most + 1e-5).all()
        assert (exact <= whole + 1e-9).all(), "a tail hides what differs within it"
        stepped = step(work, groups, *rest)
        assert stepped.loss == pytest.approx(whole.mean(), abs=1e-5)
        seen.append((most.mean(), (whole - exact).mean()))
        return stepped

    monkeypatch.setattr(loop, "train_step", compare)
    learn(along, folder, teacher, online=True)
    most, hidden = np.array(seen).T
    apart = curve(along) - curve(kept)
    assert len(seen) == len(apart)
    assert most.max() < 0.01
    assert abs(apart[0] - hidden[0]) <= most[0] + 1e-5, "the first step, where both students are one"
    if head == 48:  # and a whole training that learned from 16 bits stays as near, as far as this one goes
        assert hidden.max() < 1e-9
        assert np.abs(apart).max() <= most.max()


def test_a_reading_is_an_exchange_and_never_bought_twice(folder, teacher, url, ledger, tmp_path):
    first, again = new_run(tmp_path, "first"), new_run(tmp_path, "again")
    remote = readings(ledger, url, price=Price(2.0, 3.0))
    settings = {"head": 8, "draws": 0, "tokenizer": str(teacher), "epochs": 1}
    result = learn(first, folder, remote=remote, **settings)
    rows = parquet.read_table(first.readings).to_pylist()
    leaves = {leaf.index: leaf.body for leaf in ledger.leaves("exchange")}
    assert len(rows) == result.rows + result.rows_held_out == 48
    assert {row["reading"] for row in rows} == leaves.keys()
    assert ledger.attempts("t").total == len(leaves) == 48
    assert {body["stage"] for body in leaves.values()} == {"read"}
    billed = ledger.billed("t", "read")
    read = sum(body["prompt_tokens"] for body in leaves.values())
    assert billed == (len(leaves), read, pytest.approx((2 * read + 3 * len(leaves)) / 1e6))
    learn(again, folder, remote=remote, **settings)
    assert ledger.attempts("t").total == 48, "all were there"
    assert weights(again) == weights(first)
    assert [row["loss"] for row in losses(again)] == [row["loss"] for row in losses(first)]


def own_text(**settings):
    return {"after": 0.0, "max_tokens": 12, **settings}


@pytest.mark.parametrize("divergence", ["reverse_kl", "jensen_shannon"])
def test_own_text_that_a_server_reads_teaches_as_a_teacher_here_does(
    folder, teacher, url, ledger, tmp_path, divergence
):
    here, there = new_run(tmp_path, "here"), new_run(tmp_path, "there")
    own = own_text(divergence=divergence, temperature=1.5)
    learn(here, folder, teacher, own=own, online=True, epochs=1)
    learn(there, folder, remote=readings(ledger, url), own=own, epochs=1, keep="all", tokenizer=str(teacher))
    assert np.abs(curve(here) - curve(there)).max() <= 1e-5
    own_losses = [[row["own"]["loss"] for row in losses(run) if "own" in row] for run in (here, there)]
    assert len(own_losses[0]) > 3
    assert np.abs(np.subtract(*own_losses)).max() <= 1e-5


def test_a_few_told_tokens_are_enough_to_learn_from_own_text(folder, teacher, url, ledger, tmp_path):
    run, again = new_run(tmp_path, "run"), new_run(tmp_path, "again")
    remote = readings(ledger, url)
    settings = {"own": own_text(share=1.0), "epochs": 4, "head": 8, "draws": 0, "tokenizer": str(teacher)}
    learn(run, folder, remote=remote, **settings)
    own = np.array([row["own"]["loss"] for row in losses(run)])
    assert own[-6:].mean() < 0.9 * own[:6].mean()
    sent = ledger.attempts("t").total
    learn(again, folder, remote=remote, **settings)
    assert ledger.attempts("t").total == sent > 0, "the same seed writes what is read already"
    assert weights(again) == weights(run)


def test_where_asking_ends_the_step_before_is_kept_and_what_was_read_is_not_asked_again(
    folder, teacher, url, ledger, tmp_path
):
    whole, cut = new_run(tmp_path, "whole"), new_run(tmp_path, "cut")
    settings = {"own": own_text(), "epochs": 1, "head": 8, "draws": 0, "tokenizer": str(teacher)}
    price = Price(1.0, 1.0)
    learn(cut, folder, remote=readings(ledger, url, price=price), **settings)
    cost = ledger.spent("t").most
    with Ledger.open(init_workspace(tmp_path / "other")) as other:
        capped = readings(other, url, replace(LIMITS, max_cost=0.8 * cost), price=price)
        with pytest.raises(BudgetReached):
            learn(whole, folder, remote=capped, **settings)
        assert other.spent("t").most <= 0.8 * cost
        assert list(whole.checkpoints.glob("*/step-*"))
        before = len(losses(whole))
        assert 0 < before < len(losses(cut))
        learn(whole, folder, remote=readings(other, url, price=price), **settings)
        assert other.attempts("t").answered == ledger.attempts("t").answered
    # The server reads what is there at once in one batch, and another batch rounds otherwise
    assert np.abs(curve(whole) - curve(cut)).max() <= 1e-5


async def no_scores(body, number):
    said = {"model": "m", "choices": [{"index": 0, "text": "a", "finish_reason": "length"}]}
    return web.json_response(said)


async def too_many(body, number):
    return web.json_response({"error": {"message": "at most 20 prompt_logprobs"}}, status=400)


def scoring(change):
    """A server that scores, and whose answer is changed before it leaves."""

    async def handle(body, number):
        at = {str(i): {"logprob": -4.0, "rank": 1, "decoded_token": None} for i in range(48)}
        scores = [None, *({**at} for _ in body["prompt"][1:])]
        change(scores)
        choice = {"index": 0, "text": "a", "finish_reason": "length", "prompt_logprobs": scores}
        return web.json_response({"model": "m", "choices": [choice]})

    return handle


def spelt_otherwise(scores):
    scores[-1] = {str(i): {"logprob": -4.0, "rank": 1, "decoded_token": "zebra"} for i in range(48)}


@pytest.mark.parametrize(
    ("handler", "error", "words"),
    [
        (no_scores, EndpointError, "vLLM"),
        (too_many, EndpointError, "at most 20 prompt_logprobs"),
        (scoring(spelt_otherwise), ModelError, "zebra"),
        (scoring(lambda scores: scores.pop()), UsageError, "no targets"),
    ],
)
def test_a_server_that_cannot_read_is_named_with_what_it_said(
    folder, teacher, ledger, run, provider, handler, error, words
):
    server = provider(handler)
    remote = readings(ledger, server.url, replace(LIMITS, max_failures=0.2))
    with pytest.raises(error) as stopped:
        learn(run, folder, remote=remote, head=8, draws=0, tokenizer=str(teacher))
    told = stopped.value
    assert words in f"{told.what} {told.why}"
    assert told.mend
    assert not run.student.exists()


def test_a_teacher_whose_tokenizer_or_template_is_another_is_not_asked(
    folder, ledger, run, provider, tmp_path
):
    server = provider(no_scores)
    other = tiny_model(tmp_path / "other", template=TEMPLATE + " ", **BASE)
    longer = tiny_model(tmp_path / "longer", template=TEMPLATE, **BASE)
    tokenizer = AutoTokenizer.from_pretrained(longer)
    tokenizer.add_tokens(["longer"])
    tokenizer.save_pretrained(longer)
    for source, words in ((other, "template"), (longer, "tokenizers differ")):
        with pytest.raises(UsageError) as refused:
            learn(run, folder, remote=readings(ledger, server.url), keep="all", tokenizer=str(source))
        assert words in refused.value.why
    with pytest.raises(ModelError, match="could not load a tokenizer"):
        learn(run, folder, remote=readings(ledger, server.url), keep="all", tokenizer=str(tmp_path / "none"))
    assert not server.bodies


@pytest.mark.parametrize(
    ("settings", "own", "words"),
    [
        ({"online": True}, None, "weights"),
        ({"head": 8, "draws": 0}, None, "tokenizer"),
        ({"tokenizer": "t"}, None, "draws none"),
        ({"tokenizer": "t", "head": 0, "draws": 0, "keep": "some"}, None, "nothing would be kept"),
        ({"tokenizer": "t", "head": 8, "draws": 0}, own_text(temperature=2.0), "temperature"),
        ({"tokenizer": "t", "head": 8, "draws": 0, "temperature": 2.0}, own_text(), "temperature"),
        ({"tokenizer": "t", "head": 8, "draws": 0, "unit": "chunk"}, None, "chunks"),
    ],
)
def test_what_a_server_cannot_tell_is_refused_by_the_recipe(run, folder, settings, own, words):
    with pytest.raises(UsageError) as refused:
        learn(run, folder, remote="a server", own=own, **settings)
    assert words in refused.value.why
