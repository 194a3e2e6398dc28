import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest
import torch
from tokenizers import Tokenizer

from stillhouse.ask import Limits, Sampling, Teacher, ask, question_key
from stillhouse.ask.questions import Question, stored_answers
from stillhouse.collect import sampling_of
from stillhouse.collect.targets import TaughtRow, write_targets
from stillhouse.errors import LedgerError, UsageError
from stillhouse.ledger import Ledger
from stillhouse.ledger.targets import Binding, TargetReader
from stillhouse.models.local import load_model, prompt_ids
from stillhouse.models.serve import background
from stillhouse.models.vocabulary import read_vocabulary
from stillhouse.recipe import parse_recipe
from stillhouse.records import Message
from stillhouse.workspace import init_workspace

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[2]
MODELS = ROOT.parent / "shared" / "data" / "models"
BASE = ROOT / "src" / "stillhouse" / "models" / "embedded" / "base" / "tokenizer.json"
OPENINGS = ["Once upon a time", "The dog saw", "Lily and Tom went to the", "One day, a big bird"]
ASKED = 20
HALF = 2.0**-11


def binding_of(vocabulary, head=ASKED + 1, **more):
    return Binding("stories260K", "r1", vocabulary.digest, "", len(vocabulary.raw), head, **more)


def local(name):
    if not (MODELS / name).is_dir():
        pytest.skip(f"the shared {name} model is not here")
    model = load_model(str(MODELS / name))
    return model, read_vocabulary(model.tokenizer.backend_tokenizer.to_str())


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Answers with probabilities, asked over HTTP and recorded in a ledger: question and response."""
    if not MODELS.is_dir():
        pytest.skip("the shared models are not here")
    folder = tmp_path_factory.mktemp("taught")
    workspace = init_workspace(folder)
    sampling = Sampling(0.8, 1.0, 40, top_logprobs=ASKED)
    questions = [Question(f"p{n}", (Message("user", text),)) for n, text in enumerate(OPENINGS)]
    with (
        background(str(MODELS / "stories260K"), folder / "server.log") as url,
        Ledger.open(workspace) as ledger,
    ):
        teacher = Teacher("stories260K", "here", "r1", lambda: url)
        ask(questions, teacher, sampling, Limits(4, 60.0, 1), ledger, "run", decision=0)
        return [(q, s.response) for q, _, s in stored_answers(questions, teacher, sampling, ledger)]


def rows_of(model, taught):
    """Rows as the trainer makes them: prompt, completion and end."""
    for question, response in taught:
        text = orjson.loads(response)["choices"][0]["message"]["content"]
        prompt = prompt_ids(model, question.messages)
        completion = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = np.array([*prompt, *completion, model.tokenizer.eos_token_id], dtype=np.int32)
        yield TaughtRow(f"{question.prompt_id}#0", response, ids, len(prompt))


def located(reader, rows):
    return [reader.locate(row.sample_id, row.ids, len(row.ids) - row.start) for row in rows]


def exact(model, vocabulary, question, response):
    """The teacher's log-probabilities at each byte of its answer where one of its tokens begins."""
    content = orjson.loads(response)["choices"][0]["logprobs"]["content"]
    raws = [bytes(entry["bytes"]) for entry in content]
    prompt = prompt_ids(model, question.messages)
    ids = torch.tensor([[*prompt, *(vocabulary.ids[raw] for raw in raws)]])
    scores = torch.log_softmax(model.model(ids).logits[0].double(), -1)
    begins = np.cumsum([0, *map(len, raws)])
    return {int(begin): scores[len(prompt) + at - 1].numpy() for at, begin in enumerate(begins[:-1])}


def test_a_real_teachers_probabilities_come_through_to_the_precision_of_fp16(taught, tmp_path):
    model, vocabulary = local("stories260K")
    rows = list(rows_of(model, taught))
    tally = write_targets(rows, tmp_path, binding_of(vocabulary), vocabulary, ASKED, vocabulary)
    reader = TargetReader(tmp_path, tally.shards, binding_of(vocabulary))
    assert (tally.rows, tally.with_targets, dict(tally.reasons)) == (4, 4, {})
    assert tally.counts.keys() <= {"sampled token added"}
    assert tally.positions == reader.positions == sum(len(row.ids) - row.start for row in rows)
    assert tally.known == reader.known
    assert tally.coverage > 0.9  # all but the blank before an answer and its end
    assert tally.mass_mapped > 0.999
    assert tally.bytes_per_token == reader.bytes_per_token
    checked = 0
    for (question, response), row, place in zip(taught, rows, located(reader, rows), strict=True):
        truth = exact(model, vocabulary, question, response)
        found = reader.read([place])
        at = -len(vocabulary.raw[row.ids[row.start]]) if row.ids[row.start] == vocabulary.ids[b" "] else 0
        for position, own in enumerate(row.ids[row.start :]):
            entries = slice(*found.offsets_N1[position : position + 2])
            ids, logprobs = found.ids_E[entries], found.logprobs_E[entries]
            if len(ids):
                assert own in ids
                assert set(np.argsort(truth[at])[-ASKED:]) <= set(ids.tolist())
                np.testing.assert_allclose(logprobs, truth[at][ids], rtol=HALF, atol=2e-4)
                rest = 1 - np.exp(truth[at][ids]).sum()
                assert math.isclose(math.exp(found.log_tail_N[position]), rest, rel_tol=0.02, abs_tol=2e-4)
                checked += 1
            at += len(vocabulary.raw[own])
    assert checked == tally.known > 120


def test_a_student_with_another_tokenizer_learns_where_both_cut_alike(taught, tmp_path):
    _, teacher = local("stories260K")
    model, student = local("babyllama361")
    rows = list(rows_of(model, taught))
    binding = binding_of(student)
    tally = write_targets(rows, tmp_path, binding, student, ASKED, teacher)
    assert 0.02 < tally.coverage < 0.5  # a student of characters, a teacher of words
    assert 0.5 < tally.mass_mapped < 1.0
    found = TargetReader(tmp_path, tally.shards, binding)
    targets = found.read(located(found, rows))
    given = {
        bytes(rival["bytes"])
        for _, response in taught
        for entry in orjson.loads(response)["choices"][0]["logprobs"]["content"]
        for rival in [entry, *entry["top_logprobs"]]
    }
    assert {student.raw[at] for at in targets.ids_E} <= given
    own = np.concatenate([row.ids[row.start :] for row in rows])
    for position in np.flatnonzero(np.diff(targets.offsets_N1)):
        assert own[position] in targets.ids_E[slice(*targets.offsets_N1[position : position + 2])]


def test_shards_of_another_tokenizer_are_refused(taught, tmp_path):
    model, vocabulary = local("stories260K")
    _, other = local("babyllama361")
    rows = list(rows_of(model, taught))
    tally = write_targets(rows, tmp_path, binding_of(vocabulary), vocabulary, ASKED)
    with pytest.raises(LedgerError, match="another tokenizer") as caught:
        TargetReader(tmp_path, tally.shards, binding_of(other))
    assert vocabulary.digest in caught.value.why
    reader = TargetReader(tmp_path, tally.shards, binding_of(vocabulary))
    with pytest.raises(LedgerError, match="other input ids"):
        located(reader, [replace(rows[0], ids=rows[0].ids + 1)])
    with pytest.raises(ValueError, match="vocabulary"):
        write_targets(rows, tmp_path, binding_of(other), vocabulary, ASKED)


def test_shards_are_closed_by_size_and_read_as_one(taught, tmp_path):
    model, vocabulary = local("stories260K")
    rows = list(rows_of(model, taught))
    small = write_targets(rows, tmp_path, binding_of(vocabulary, 4), vocabulary, ASKED, shard_bytes=600)
    whole = write_targets(rows, tmp_path, binding_of(vocabulary, 4), vocabulary, ASKED)
    assert len(small.shards) > len(whole.shards) == 1
    one, many = (TargetReader(tmp_path, t.shards, binding_of(vocabulary, 4)) for t in (whole, small))
    for name in ("offsets_N1", "ids_E", "logprobs_E", "log_tail_N"):
        pair = [getattr(reader.read(located(reader, rows)), name) for reader in (one, many)]
        np.testing.assert_array_equal(*pair)
    assert np.diff(one.read(located(one, rows)).offsets_N1).max() == 4
    assert write_targets([], tmp_path, binding_of(vocabulary, 4), vocabulary, ASKED).shards == []


# ---------------------------------------------------------------- rows that are not as they should be


def wire(text, *tokens, **message):
    """A response whose tokens are (bytes, probability) with two rivals each."""

    def shown(raw, probability):
        return {"token": raw.decode("utf-8", "replace"), "bytes": list(raw), "logprob": math.log(probability)}

    content = [shown(raw, p) | {"top_logprobs": [shown(raw, p), shown(b"a", 0.1)]} for raw, p in tokens]
    return orjson.dumps(
        {"choices": [{"message": {"content": text} | message, "logprobs": {"content": content}}]}
    )


def base_row(tokenizer, number, text, response, start=2):
    completion = tokenizer.encode(text, add_special_tokens=False).ids
    ids = np.array([2, *([3] * (start - 1)), *completion, 1], dtype=np.int32)
    return TaughtRow(f"s{number}", response, ids, start)


def test_every_row_is_written_and_every_reason_counted(tmp_path):
    tokenizer, vocabulary = Tokenizer.from_file(str(BASE)), read_vocabulary(BASE.read_bytes())
    text = "To the end."
    cuts = [vocabulary.raw[at] for at in tokenizer.encode(text, add_special_tokens=False).ids]
    right = wire(text, *((raw, 0.5) for raw in cuts))
    responses = [
        (text, right),
        (text, wire(text, (text.encode(), 0.5))),
        (text, wire(text, (cuts[0], 0.5))),
        (text, wire(text, refusal="I will not")),
        (text, b"{"),
        ("Another text.", right),
        (text, orjson.dumps({"choices": [{"message": {"content": text}}]})),
    ]
    rows = [base_row(tokenizer, n, text, raw) for n, (text, raw) in enumerate(responses)]
    binding = binding_of(vocabulary, 2)
    tally = write_targets(rows, tmp_path, binding, vocabulary, 2)
    assert tally.rows == tally.with_targets + sum(tally.reasons.values()) == 7
    assert tally.reasons == {
        "no token in common": 1,
        "the tokens do not spell the text": 1,
        "refusal": 1,
        "not readable": 1,
        "the sample is another text than the answer": 1,
        "no logprobs": 1,
    }
    assert (tally.with_targets, tally.known) == (1, len(cuts))
    reader = TargetReader(tmp_path, tally.shards, binding)
    targets = reader.read(located(reader, rows))
    assert np.flatnonzero(np.diff(targets.offsets_N1)).tolist() == [*range(len(cuts))]
    assert (targets.log_tail_N[len(cuts) :] == 0).all()


def test_the_shipped_tokenizer_maps_onto_itself_where_it_joins_words(tmp_path):
    """It writes a word after a mark with a joiner and a blank, which its decoder takes away again."""
    tokenizer, vocabulary = Tokenizer.from_file(str(BASE)), read_vocabulary(BASE.read_bytes())
    text = 'Ask "Ada" (or Bo) about a-b.'
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    raws = [vocabulary.raw[at] for at in ids]
    assert b"".join(raws).decode() != text == tokenizer.decode(ids)
    response = wire(text, *((raw, 0.5) for raw in raws))
    rows = [base_row(tokenizer, 0, text, response)]
    tally = write_targets(rows, tmp_path, binding_of(vocabulary, 2), vocabulary, 2, vocabulary)
    assert (tally.positions, tally.known) == (len(ids) + 1, len(ids))
    assert not tally.reasons
    unknown = write_targets(rows, tmp_path, binding_of(vocabulary, 2), vocabulary, 2)
    assert unknown.reasons == {"the tokens do not spell the text": 1}


# ---------------------------------------------------------------- asking for them

RECIPE = {
    "run": {"name": "a"},
    "teacher": {"model": "m", "endpoint": "http://127.0.0.1:1/v1"},
    "prompts": {"source": "p"},
    "student": {"init": "embedded:base"},
}


def test_probabilities_are_asked_for_when_the_recipe_says_so(provider, workspace):
    from provider import echo

    server = provider(echo)
    question = Question("p0", (Message("user", "hello"),))
    teacher = Teacher("m", "somewhere", "r1", lambda: server.url)
    keys = set()
    for top in (None, 0, 5):
        recipe = parse_recipe(RECIPE | {"collect": {} if top is None else {"top_logprobs": top}})
        sampling = sampling_of(recipe)
        keys.add(question_key(b"k" * 32, question, teacher, sampling))
        with Ledger.open(workspace) as ledger:
            assert ask([question], teacher, sampling, Limits(1, 5.0, 0), ledger, "run", 0).sent == 1
    assert "logprobs" not in server.bodies[0]
    assert [body["top_logprobs"] for body in server.bodies[1:]] == [0, 5]
    assert all(body["logprobs"] is True for body in server.bodies[1:])
    assert len(keys) == 3


@pytest.mark.parametrize("top", [-1, 21, "many"])
def test_more_than_providers_give_is_refused(top):
    with pytest.raises(UsageError, match=r"collect\.top_logprobs"):
        parse_recipe(RECIPE | {"collect": {"top_logprobs": top}})
