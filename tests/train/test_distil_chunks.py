"""A student learns from a public model of another tokenizer, which reads the answers in its own tokens."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import make_folder
from tiny import TEMPLATE, tiny_model
from train.tiny_student import BASE, losses, make_recipe, sample, sums, weights, write_samples

from stillhouse.errors import LedgerError, UsageError
from stillhouse.ledger.targets import TargetReader, chunks_of, holds_chunks
from stillhouse.models.local import load_model, score
from stillhouse.models.reading import end_id, row_ids
from stillhouse.records import Message
from stillhouse.train import Source, chunks, train
from stillhouse.train.lessons import Lesson
from stillhouse.train.loss import batch_loss
from stillhouse.train.losses import ChunkTargets, Objective, head_of
from stillhouse.train.losses.whole import counted
from stillhouse.train.rows import collate, read_rows
from stillhouse.workspace import RunFolder

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
MODELS = DATA / "models"
needs_data = pytest.mark.skipif(not MODELS.is_dir(), reason="../shared/data is absent")


@pytest.fixture(scope="module")
def stories():
    text = (DATA / "text" / "tinystories_sample_2MB.txt").read_text(errors="ignore")
    parts = [" ".join(part.split()) for part in text.split("<|endoftext|>")]
    return [part for part in parts if len(part) > 300][:24]


def story_samples(stories):
    rows = []
    for at, story in enumerate(stories):
        cut = story.index(" ", 40)
        rows.append(sample(at, story[:cut], story[cut + 1 : 160].rsplit(" ", 1)[0], f"g{at}"))
    return rows


def learn(run, student, teacher, source=None, **settings):
    settings = {"distil": {"unit": "chunk", **settings.pop("distil", {})}, **settings}
    recipe = make_recipe(str(student), {"objective": "distil", "batch_tokens": 1024, **settings})
    source = source or Source(run.root.parent / "targets", (), "teacher", "r1")
    return train(run, recipe, teacher_folder=teacher and str(teacher), source=source)


def nats(model, rows):
    """-log p of the trained tokens but the end, over all rows."""
    scored = score(model, [row.ids[:-1].tolist() for row in rows])
    return -sum(token.logprob for row, said in zip(rows, scored, strict=True) for token in said[row.start :])


@needs_data
def test_a_student_of_pieces_comes_nearer_to_a_teacher_of_letters(tmp_path, stories):
    """What the chunks lose falls on rows that were not learned, and the same seed gives the same weights."""
    done = []
    for name in ("one", "two"):
        run = RunFolder(tmp_path / name)
        write_samples(run.samples, story_samples(stories))
        result = learn(
            run, MODELS / "stories260K", MODELS / "babyllama361", epochs=6, learning_rate=1e-3, held_out=0.25
        )
        done.append((weights(run), [row["loss"] for row in losses(run)]))
    assert done[0] == done[1]
    assert (result.rows, result.rows_held_out, result.rows_left_out) == (18, 6, {})
    assert 0 < result.bytes_per_token < 8
    held = [row["held_out"] for row in losses(run) if "held_out" in row]
    assert held[-1] < 0.95 * held[0]


@needs_data
def test_what_is_kept_is_what_the_teacher_says(tmp_path, stories):
    """Each chunk against the teacher's own scores of the whole answer, put together anew."""
    run = RunFolder(tmp_path / "run")
    write_samples(run.samples, story_samples(stories[:4]))
    teacher, student = (load_model(str(MODELS / name)) for name in ("babyllama361", "stories260K"))
    result = learn(run, MODELS / "stories260K", MODELS / "babyllama361", epochs=1, held_out=0)
    rows, _ = read_rows(run.samples, student, 1024)
    binding = chunks.bound(teacher, "teacher", "r1", student.reader)
    reader = TargetReader(tmp_path / "targets", result.shards, binding)
    assert holds_chunks(binding)
    for each, row in zip(story_samples(stories[:4]), rows, strict=True):
        size = len(row.ids) - row.start
        found = chunks_of(reader.read([reader.locate(row.id, row.ids, size)]), [size])
        words = each["completion"].split(" ")
        assert len(found.logprobs_C) == len(words) + 1
        messages = [Message("user", each["messages"][0]["content"])]
        ids, start = row_ids(teacher.reader, messages, each["completion"], end_id(teacher.reader))
        with torch.no_grad():
            logits = teacher.model(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits
        logp = torch.log_softmax(logits[0, start - 1 : -1].double(), -1)
        own = logp[range(len(ids) - start), ids[start:].tolist()].tolist()
        spelt = teacher.reader.vocabulary().ids
        blank = spelt[b" "]
        at, want = 0, []
        for number, word in enumerate(words):
            length = len(word) + 1  # this tokenizer puts a blank before each text
            follows = logp[at + length]
            white = [blank, *(spelt[each] for each in (b"\n", b"\t", b"\r"))]
            border = torch.logsumexp(follows[[*white, ids[-1]]], 0)
            assert number < len(words) - 1 or at + length == len(own) - 1
            want.append(sum(own[at : at + length]) + float(border))
            at += length
        assert found.logprobs_C.tolist() == pytest.approx([*want, own[-1]], rel=1e-3, abs=1e-3)


def test_a_student_that_is_its_own_teacher_has_nothing_to_learn(run, folder):
    """The same tokenizer is cut into words too. What is kept has 16 bits, so the loss is only nearly 0."""
    result = learn(run, folder, folder, epochs=1, dtype="float32")
    assert result.rows_left_out == {}
    assert losses(run)[0]["loss"] < 1e-4


@pytest.mark.parametrize("hard", [0.0, 0.5])
def test_two_templates_and_two_tokenizers(run, folder, tmp_path, hard):
    """The teacher has a token for each byte and a template of its own."""
    teacher = make_folder(tmp_path / "teacher")
    result = learn(run, folder, teacher, epochs=6, distil={"hard": hard})
    assert result.rows_left_out == {}
    seen = [row["loss"] for row in losses(run)]
    assert sum(seen[-3:]) < 0.95 * sum(seen[:3])
    assert torch.isfinite(torch.tensor(seen)).all()


def test_answers_that_are_another_text_to_one_of_them_are_counted(run, folder, tmp_path):
    """The student has no token for a capital letter, so what it reads is no text."""
    rows = sums()
    rows[3]["completion"] = "Q"
    rows[4]["completion"] = "12 x" * 60  # longer than the teacher can read
    write_samples(run.samples, rows)
    teacher = make_folder(tmp_path / "teacher", max_position_embeddings=128)
    result = learn(run, folder, teacher, epochs=1, max_length=1024)
    assert result.rows_left_out["no targets"] == 1
    assert sum(result.rows_left_out.values()) == 2


def test_shards_of_another_unit_are_refused(run, folder, tmp_path):
    result = learn(run, folder, folder, epochs=1)
    teacher = load_model(str(folder))
    bound = chunks.bound(teacher, "teacher", "r1", teacher.reader)
    recipe = make_recipe(str(folder), {"objective": "distil", "distil": {"targets": "answers"}})
    source = Source(tmp_path / "targets", [(bound, tuple(result.shards))])
    with pytest.raises(LedgerError, match="another unit"):
        train(run, recipe, source=source)


def test_a_killed_training_does_not_ask_the_teacher_again(run, folder, tmp_path, monkeypatch):
    teacher = make_folder(tmp_path / "teacher")
    first = learn(run, folder, teacher, epochs=1)
    monkeypatch.setattr(chunks, "_said", lambda *_: pytest.fail("read again"))
    again = learn(run, folder, teacher, epochs=2)
    assert again.shards == first.shards


@pytest.mark.parametrize("held", [8, 90])
def test_rows_that_only_pad_the_teachers_head_change_nothing(run, folder, tmp_path, held):
    """Junk that would be the likeliest of all stands in them."""
    plain = make_folder(tmp_path / "plain")
    model = load_model(str(plain)).model
    model.resize_token_embeddings(260 + held, mean_resizing=False)
    with torch.no_grad():
        model.get_output_embeddings().weight[260:] = 50.0
    wide = make_folder(tmp_path / "wide")
    model.save_pretrained(wide)
    found = []
    for teacher in (plain, wide):
        result = learn(run, folder, teacher, epochs=1, dtype="float32")
        found.append([row["loss"] for row in losses(run)])
        assert result.rows_left_out == {}
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_what_cannot_be_learned_by_chunks(run, folder, tmp_path):
    with pytest.raises(UsageError, match="teacher cannot read"):
        learn(run, folder, None)
    for settings in ({"online": True}, {"divergence": "reverse_kl"}):
        with pytest.raises(UsageError) as refused:
            learn(run, folder, folder, distil=settings)
        assert "chunk" in refused.value.why
    other = tiny_model(tmp_path / "retemplated", template=TEMPLATE + " ", **BASE)
    learn(run, folder, other, epochs=1)


def test_what_is_in_no_known_chunk_is_learned_from_the_text(run, folder):
    """Of the end of an answer no server tells: a student must stop all the same."""
    student = load_model(str(folder))
    rows, _ = read_rows(run.samples, student, 1024)
    batch = collate(rows[:3])
    places = len(batch.targets_N)
    unknown = torch.zeros(places, dtype=torch.long)  # C, as there is no chunk
    targets = ChunkTargets(unknown, unknown.clone(), torch.zeros(0), torch.tensor([1]))
    lesson = Lesson("", Objective(temperature=100.0), len(student.reader.vocabulary().raw), bool, None)
    for head in (None, head_of(student.model)):
        text, _ = batch_loss(student.model, batch, head)
        taught, _ = batch_loss(student.model, batch, head, targets, lesson)
        assert float(taught) == pytest.approx(float(text), rel=1e-5)
    assert counted(targets, lesson.objective, places) == places
