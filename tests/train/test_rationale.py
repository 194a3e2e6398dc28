"""The rationale of an answer as a second task of the student."""

from contextlib import nullcontext

import pyarrow.parquet as pq
import pytest
import torch
from train.tiny_student import losses, make_recipe, sample, sums, write_samples

from stillhouse.errors import UsageError
from stillhouse.models.local import Request, generate, ids_text, load_model, make_differentiable, prompt_ids
from stillhouse.records import Message
from stillhouse.train import train
from stillhouse.train.optimisers import make_optimisers
from stillhouse.train.rationale import asked_why, rationales
from stillhouse.train.rows import read_rows, split_held_out
from stillhouse.train.step import Way, Work, measure, train_step
from stillhouse.workspace import RunFolder


def why(number: int) -> dict[str, object]:
    return {"rationale": f"{number % 7} and {number % 5} more is {number % 7 + number % 5}"}


@pytest.fixture
def reasoned(tmp_path) -> RunFolder:
    """Every third answer came without a rationale."""
    run = RunFolder(tmp_path / "reasoned")
    rows = sums(24)
    write_samples(run.samples, [row | (why(n) if n % 3 else {}) for n, row in enumerate(rows)])
    return run


def working(model, optimisers=(), most: int | None = None) -> Work:
    return Work(model, model, optimisers, 1e9, nullcontext, 48, most)


def test_both_tasks_are_learned_and_the_answer_is_asked_for_as_before(reasoned, folder):
    settings = {"epochs": 90, "batch_tokens": 2000, "rationale": {}, "held_out": 0.0, "learning_rate": 0.02}
    result = train(reasoned, make_recipe(str(folder), settings))
    told = result.rationales
    assert told is not None
    assert result.rows == 24
    assert told["rows"] == 16
    assert told["without"] == {"no rationale": 8}
    student = load_model(str(reasoned.student))

    def says(messages) -> str:
        asked = Request(prompt_ids(student, messages), 40)
        (said,) = generate(student, [asked], batch=1)
        return ids_text(student, said.token_ids)

    right = explained = 0
    for row in sums(24)[::4]:
        question = row["messages"][0]["content"]
        right += says([Message("user", question)]) == row["completion"]
        explained += "more" in says(asked_why(row["messages"]))
    assert right >= 5, "an answer is the label alone"
    assert explained >= 5, "the marker asks for the other task"


def test_each_task_counts_by_its_own_tokens_however_long_they_are(reasoned, folder):
    """One batch holds all rows, so that its loss is that of the formula."""
    settings = {"epochs": 1, "batch_tokens": 100_000, "held_out": 0.0, "dtype": "float32"}
    train(reasoned, make_recipe(str(folder), settings | {"rationale": {"weight": 0.25}}))
    (step,) = losses(reasoned)
    before = load_model(str(folder), "float32")
    labels, _ = read_rows(reasoned.samples, before, 1024)
    second = rationales(reasoned.samples, before, labels, 1024, 0.25).rows
    work, way = working(before.model), Way(None, None)
    label, rationale = (measure(work, rows, 10_000, way) for rows in (labels, second))
    assert rationale != pytest.approx(label, rel=0.01)
    assert step["loss"] == pytest.approx((label + 0.25 * rationale) / 1.25, rel=1e-5)


def test_a_rationale_that_counts_next_to_nothing_is_not_learned_by_steps_of_its_own(reasoned, folder):
    """Rows of like length share a batch, so that long rationales would otherwise have batches to themselves,
    in which whatever weight they all have is divided away."""
    settings = {"epochs": 8, "batch_tokens": 200, "held_out": 0.0, "learning_rate": 0.02}
    found = []
    for weight in (1e-6, 1.0):
        train(reasoned, make_recipe(str(folder), settings | {"rationale": {"weight": weight}}))
        after = load_model(str(reasoned.student), "float32")
        labels, _ = read_rows(reasoned.samples, after, 1024)
        second = rationales(reasoned.samples, after, labels, 1024, weight).rows
        found.append(measure(working(after.model), second, 10_000, Way(None, None)))
    assert found[0] > 1.5 * found[1]


@pytest.mark.parametrize("parts", [1, 3])
def test_the_gradient_is_that_of_the_whole_batch_however_it_is_cut(reasoned, folder, parts):
    local = load_model(str(folder), "float32")
    labels, _ = read_rows(reasoned.samples, local, 1024)
    second = rationales(reasoned.samples, local, labels, 1024, 2.0).rows
    make_differentiable(local)
    model = local.model.requires_grad_(True).train()
    optimisers = make_optimisers(list(model.named_parameters()), make_recipe(str(folder)).train)
    ways = [Way(None, None), Way(None, None, weight=second[0].weight)]
    groups = list(zip((labels, second), ways, strict=True))
    tokens = max(len(rows) * max(len(row.ids) for row in rows) for rows in (labels, second))
    stepped = train_step(working(model, optimisers, tokens // parts), groups)
    other = load_model(str(folder), "float32")
    make_differentiable(other)
    again = other.model.requires_grad_(True)
    total = torch.zeros(())
    for rows, weight in ((labels, 1.0), (second, 2.0)):
        ids = [torch.from_numpy(row.ids).long()[None] for row in rows]
        sums_of = [
            torch.nn.functional.cross_entropy(
                again(input_ids=one).logits[0, row.start - 1 : -1], one[0, row.start :], reduction="sum"
            )
            for one, row in zip(ids, rows, strict=True)
        ]
        total = total + weight / 3 * torch.stack(sums_of).sum() / sum(len(r.ids) - r.start for r in rows)
    total.backward()
    norm = torch.stack([p.grad.norm() for p in again.parameters()]).norm()
    assert stepped.loss == pytest.approx(total.item(), rel=1e-5)
    assert stepped.norm == pytest.approx(float(norm), rel=1e-4)
    assert stepped.tokens == sum(len(row.ids) - row.start for row in [*labels, *second])


def test_held_out_rows_have_no_rationale_in_training_and_are_measured_by_their_answers(reasoned, folder):
    recipe = make_recipe(str(folder), {"rationale": {}, "held_out": 0.25, "epochs": 1})
    result = train(reasoned, recipe)
    told = result.rationales
    assert told is not None
    assert result.rows_held_out > 0
    assert told["rows"] + sum(told["without"].values()) == result.rows
    after = load_model(str(reasoned.student), "float32")
    rows, _ = read_rows(reasoned.samples, after, 1024)
    _, held_out = split_held_out(rows, 0.25, recipe.run.seed)
    measured = measure(working(after.model), held_out, 160, Way(None, None))
    assert result.held_out_loss == pytest.approx(measured, rel=1e-3)


def test_rationales_that_nobody_gave_are_told_of(run, folder):
    assert "rationale" not in pq.read_schema(run.samples).names, "as written before there were any"
    with pytest.raises(UsageError, match="no rationales to learn") as caught:
        train(run, make_recipe(str(folder), {"rationale": {}}))
    assert "curate.rationale" in caught.value.mend
    rows = [sample(1, "1?", "2", "a"), sample(2, "2?", "3", "b") | {"rationale": "x" * 90}]
    write_samples(run.samples, rows)
    with pytest.raises(UsageError, match="no rationales to learn") as caught:
        train(run, make_recipe(str(folder), {"rationale": {}, "max_length": 64, "held_out": 0.0}))
    assert "'too long': 1" in caught.value.why
    with pytest.raises(UsageError, match="not usable") as refused:
        make_recipe(str(folder), {"rationale": {}, "objective": "distil"})
    assert "learned as text" in refused.value.why
