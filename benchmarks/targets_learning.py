"""What a student learns from packed targets, beside what it learns from whole distributions at equal bytes.

    .venv/bin/python benchmarks/targets_learning.py [--quick] [--json FILE]

The same student (one start and one order of batches for each seed) learns the same rows of a real teacher:

    dense                its whole distributions
    6 exact + 4 drawn    the likeliest ids, and independent draws from the rest (stratified)
    16 drawn             independent draws alone ("Sparse Logit Sampling", RS-KD)
    16 spread            draws alone, spread evenly over the distribution: what a capture makes
    top 7 and tail       the likeliest ids, and the mass of the rest in one bucket
    vectors in bfloat16  what enters the teacher's head, rounded, and in float32 as it is

The three after the stratified form get as many ids, to a limit, as fit into its bytes. These are equal with
128,256 ids: in the small vocabularies of these teachers a drawn id costs less of them, and vectors cost the
same. A public model of characters continues stories; the shipped teacher of the support desk answers its
prompts, and the shipped base student learns from it. Of a third, a public model of 512 pieces that is less
certain than these, only sizes and variances are told.

Losses are of rows that no student saw, over the whole vocabulary. Excess is the mean KL(teacher || student);
cross-entropy adds the teacher's entropy. The angle is between the gradients of one batch, for the student
that learned from dense targets. Intervals are by Student's t over seeds, which are pairs where two are
compared.
"""

from __future__ import annotations

import bisect
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rows import DATA, Row, arguments, header, interval, need, show
from torch import Tensor

from stillhouse.ledger.targets import Binding, ShardWriter, Targets, encode
from stillhouse.ledger.targets.layout import NUMBERS
from stillhouse.models.embedded.world import examples
from stillhouse.models.local import LocalModel, Request, generate, load_model
from stillhouse.models.reading import end_id, prompt_ids, row_ids
from stillhouse.recipe import Recipe, parse_recipe
from stillhouse.records import Message, unwatched
from stillhouse.train import lessons, loop, rows, vectors
from stillhouse.train.capture import sparse_targets, spread
from stillhouse.train.loss import batch_loss
from stillhouse.train.losses import head_of
from stillhouse.train.student import initial_student

SEEDS = 3
LARGE = 128_256  # ids, of the vocabulary in which bytes are equal
MOST_DRAWS = 512  # more are never asked for, though they may fit where the teacher is nearly certain
PROBED = 20  # rows by which sizes are found
ANGLE_ROWS = 24


@dataclass(frozen=True, slots=True)
class Form:
    """How few ids stand for a distribution."""

    head: int
    draws: int = 0
    spread: bool = False

    def __str__(self) -> str:
        if not self.draws:
            return f"top {self.head} and tail"
        if self.head:
            return f"{self.head} exact + {self.draws} drawn"
        return f"{self.draws} {'spread' if self.spread else 'drawn'}"

    def variance(self, logits_NV: Tensor) -> float:
        """Of the ids' weights, summed over the vocabulary: the mean over positions, exactly."""
        if not self.draws:
            return 0.0
        probs_NV = torch.softmax(logits_NV.double(), -1)
        rest_NV = probs_NV.scatter(1, probs_NV.topk(self.head, -1).indices, 0.0)
        mass_N1 = rest_NV.sum(-1, keepdim=True)
        counts_NV = self.draws * rest_NV / mass_N1.clamp_min(1e-300)
        part_NV = counts_NV % 1.0
        spread_NV, drawn_NV = part_NV * (1 - part_NV), counts_NV * (1 - counts_NV / self.draws)
        of_counts_NV = spread_NV if self.spread else drawn_NV
        return float(((mass_N1 / self.draws) ** 2 * of_counts_NV).sum(-1).mean())

    def targets(self, logits_NV: Tensor, random: torch.Generator) -> Targets:
        each = 1 if self.spread else self.draws
        uniform_ND = torch.rand(len(logits_NV), each, dtype=torch.float64, generator=random)
        points_ND = spread(uniform_ND, self.draws) if self.spread else uniform_ND
        return sparse_targets(logits_NV, self.head, self.draws, points_ND)


STRATIFIED, SPREAD = JUDGED = Form(6, 4), Form(0, 32, True)  # the latter is the recipe's default


@dataclass(frozen=True, slots=True)
class Task:
    """`forms` are the stratified ones whose bytes the others get."""

    name: str
    teacher: LocalModel
    recipe: Recipe
    learned: list[rows.Row]
    held_out: list[rows.Row]
    forms: tuple[Form, ...]


@dataclass(frozen=True, slots=True)
class Kept:
    """A shard's lesson, and the ids that it names for a token."""

    lesson: lessons.Lesson
    entries: float

    def bytes_with(self, vocabulary: int) -> float:
        """For each token, if its ids were of so many; the rest of the layout does not depend on that."""
        more = (vocabulary - 1).bit_length() - (self.lesson.vocabulary - 1).bit_length()
        assert self.lesson.bytes_per_token is not None
        return self.lesson.bytes_per_token + self.entries * more / 8


@dataclass(frozen=True, slots=True)
class Learned:
    """One student: excess in nats per token, the angle in degrees, and bytes per token as stored, with 32,000
    ids and with LARGE."""

    excess: float
    angle: float = 0.0
    sizes: tuple[float, float, float] = (0.0, 0.0, 0.0)


Taught = dict[Form | str | None, Learned]


def main() -> None:
    options = arguments(__doc__ or "")
    show(header(0, ["stillhouse", "torch", "transformers", "numpy"]), learning(options.quick), options.json)


def learning(quick: bool) -> list[Row]:
    torch.set_num_threads(1)
    found: list[Row] = []
    for task in (stories("babyllama361", quick), desk(quick)):
        forms = matched(task)
        seeds = [one_seed(task, forms, seed) for seed in range(1 if quick else SEEDS)]
        found += told(task, forms, seeds)
    return found + drawing(stories("stories260K", quick))


# ---------------------------------------------------------------- tasks


def stories(name: str, quick: bool) -> Task:
    """The beginnings of real stories; what follows the first words is learned."""
    teacher = load_model(str(need(DATA / "models" / name)))
    text = need(DATA / "text" / "tinystories_sample_2MB.txt").read_text(errors="ignore")
    characters = 240 if name == "babyllama361" else 600
    parts = [part.strip()[:characters] for part in text.split("<|endoftext|>") if len(part) > characters]
    taught, tested = (60, 20) if quick else (500, 100)
    made = [story(teacher, part, number) for number, part in enumerate(parts[: taught + tested])]
    width = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2, "num_attention_heads": 4}
    student = {"init": "config", "config": width | {"max_position_embeddings": 512}}
    student["config"] |= {"tie_word_embeddings": True}
    train = {"optimiser": "muon", "learning_rate": 6e-3, "epochs": 1 if quick else 2, "batch_tokens": 2048}
    forms = (STRATIFIED,) if quick else (Form(1, 1), STRATIFIED)
    return Task(name, teacher, recipe_of(teacher, student, train), made[:taught], made[taught:], forms)


def story(teacher: LocalModel, text: str, number: int) -> rows.Row:
    """Cut at spaces, which the tokenizer puts before each part by itself."""
    begin = text.index(" ", 20)
    message = Message("user", text[:begin])
    return made_row(teacher, [message], text[begin + 1 : text.rindex(" ")], f"story{number}")


def desk(quick: bool) -> Task:
    """What the shipped teacher answers, and to be tested what it answers to templates that nobody learned."""
    teacher = load_model("embedded:desk")
    taught, tested = (60, 20) if quick else (400, 80)
    learned, held_out = answered(teacher, "train", taught), answered(teacher, "dev", tested)
    train = {"optimiser": "muon", "learning_rate": 6e-3, "final_rate": 0.05, "epochs": 1 if quick else 2}
    recipe = recipe_of(teacher, {"init": "embedded:base"}, train | {"batch_tokens": 1024})
    return Task("embedded:desk", teacher, recipe, learned, held_out, (STRATIFIED,))


def answered(teacher: LocalModel, split: Any, count: int) -> list[rows.Row]:
    asked = [example.prompt.messages for example in islice(examples(split, 1), count)]
    answers = generate(teacher, [Request(prompt_ids(teacher.reader, each), 128) for each in asked])
    both = zip(asked, answers, strict=True)
    return [
        made_row(teacher, each, answer.text, f"{split}{n}")
        for n, (each, answer) in enumerate(both)
        if answer.text
    ]


def made_row(reader: LocalModel, messages: Sequence[Message], completion: str, name: str) -> rows.Row:
    ids, start = row_ids(reader.reader, messages, completion, end_id(reader.reader))
    return rows.Row(ids, start, name, name)


def recipe_of(teacher: LocalModel, student: dict[str, Any], train: dict[str, Any]) -> Recipe:
    return parse_recipe(
        {
            "run": {"name": "targets"},
            "teacher": {"model": teacher.source},
            "prompts": {"source": "embedded:desk"},
            "student": student,
            "train": {"objective": "distil", "dtype": "float32", **train},
        }
    )


# ---------------------------------------------------------------- estimators of equal size


def matched(task: Task) -> list[Form]:
    """Each stratified form, and after it those that take no more bytes with LARGE ids; at last SPREAD."""
    logits_NV = probed(task)

    def size(form: Form) -> float:
        return payload(task, form, logits_NV)

    forms: list[Form] = []
    for form in task.forms:
        room = size(form)
        forms.append(form)
        for peers in (
            [Form(0, draws) for draws in range(1, MOST_DRAWS + 1)],
            [Form(0, draws, True) for draws in range(1, MOST_DRAWS + 1)],
            [Form(head) for head in range(1, 64)],
        ):
            forms.append(peers[max(0, bisect.bisect_right(peers, room, key=size) - 1)])
    return [*forms, SPREAD]


def probed(task: Task) -> Tensor:
    """The teacher's logits at the places of some rows."""
    some = task.learned[:: len(task.learned) // PROBED]
    return torch.cat([logits for _, logits in read(task.teacher, some)])


def payload(task: Task, form: Form, logits_NV: Tensor) -> float:
    """Bytes per token with LARGE ids, without a shard's index."""
    bound = replace(binding(task), vocabulary=LARGE, head=form.head, draws=form.draws)
    return len(encode(bound, form.targets(logits_NV, generator(0)))) / len(logits_NV)


def binding(task: Task) -> Binding:
    return lessons.captured(task.teacher, task.name, "", task.recipe.train.distil)


def read(
    teacher: LocalModel, some: Sequence[rows.Row], at_once: int = 16
) -> Iterator[tuple[rows.Row, Tensor]]:
    """Each row with the teacher's logits (N, V) at the places that predict its trained tokens."""
    for begin in range(0, len(some), at_once):
        part = some[begin : begin + at_once]
        batch = rows.collate(part)
        with torch.no_grad():
            logits_NV = teacher.model(input_ids=batch.ids_BT, use_cache=False).logits.flatten(0, 1)
        places = batch.places_N.split([len(row.ids) - row.start for row in part])
        yield from ((row, logits_NV[place]) for row, place in zip(part, places, strict=True))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def packed(task: Task, forms: list[Form], seed: int, folder: Path) -> dict[Form, Kept]:
    """Each estimator's shard, all drawn while the teacher reads the rows once."""
    bound = {form: replace(binding(task), head=form.head, draws=form.draws) for form in forms}
    random, entries, positions = generator(seed), dict.fromkeys(forms, 0), 0
    with ExitStack() as stack:
        writers = {form: stack.enter_context(ShardWriter(folder, bound[form])) for form in forms}
        for row, logits_NV in read(task.teacher, task.learned):
            positions += len(logits_NV)
            for form, writer in writers.items():
                targets = form.targets(logits_NV, random)
                writer.add(row.id, row.ids, targets)
                entries[form] += len(targets.ids_E)
        sealed = {form: writer.seal().stem for form, writer in writers.items()}
    found = {}
    for form, digest in sealed.items():
        shards = [(bound[form], (digest,))]
        lesson = lessons.stored(folder, shards, task.teacher.reader, task.recipe.train.distil)
        assert all(lesson.has(row) for row in task.learned)
        found[form] = Kept(lesson, entries[form] / positions)
    return found


def vectored(task: Task, folder: Path) -> dict[str, lessons.Lesson]:
    """The teacher's vectors in each type of number."""
    head, found = vectors.readout(task.teacher), {}
    for dtype in NUMBERS:
        settings = task.recipe.train.distil.model_copy(update={"keep": "vectors", "vectors": dtype})
        bound = vectors.bound(task.teacher, head, task.name, "", settings)
        with ShardWriter(folder, bound) as writer:
            for row, vectors_ND in vectors.read(task.teacher.model, task.learned, bound, 2048):
                writer.add(row.id, row.ids, vectors_ND)
            shards = bound, (writer.seal().stem,)
        found[dtype] = vectors.told(folder, shards, task.teacher.reader, settings, head)
        assert all(found[dtype].has(row) for row in task.learned)
    return found


# ---------------------------------------------------------------- training


def one_seed(task: Task, forms: list[Form], seed: int) -> Taught:
    """What each form taught, and each type of number of vectors; None is dense."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        dense = lessons.online(task.teacher, "", task.recipe.train.distil)
        taught = packed(task, forms, seed, folder)
        student = trained(task, dense, seed, folder)
        found: Taught = {None: Learned(excess(task, student, dense))}
        say(task, seed, "dense", found[None])
        batch = task.learned[:ANGLE_ROWS]
        whole = gradient(student, batch, dense)

        def learned(lesson: lessons.Lesson, sizes: tuple[float, float, float]) -> Learned:
            cosine = torch.cosine_similarity(whole, gradient(student, batch, lesson), dim=0)
            angle = math.degrees(math.acos(min(1.0, float(cosine))))
            return Learned(excess(task, trained(task, lesson, seed, folder), dense), angle, sizes)

        for form, kept in taught.items():
            sizes = kept.bytes_with(kept.lesson.vocabulary), kept.bytes_with(32_000), kept.bytes_with(LARGE)
            found[form] = learned(kept.lesson, sizes)
            say(task, seed, str(form), found[form])
        for dtype, lesson in vectored(task, folder).items():
            assert lesson.bytes_per_token is not None
            found[dtype] = learned(lesson, (lesson.bytes_per_token,) * 3)
            say(task, seed, f"vectors in {dtype}", found[dtype])
    return found


def trained(task: Task, lesson: lessons.Lesson, seed: int, folder: Path) -> Any:
    run = task.recipe.run.model_copy(update={"seed": seed})
    source = task.teacher.folder
    model = initial_student(task.recipe.model_copy(update={"run": run}), source).model.requires_grad_(True)
    key = f"{seed} {lesson.name}"
    with tempfile.TemporaryDirectory(dir=folder) as place:
        log = Path(place) / "losses.jsonl"
        loop.fit(
            model,
            task.learned,
            [],
            task.recipe.train,
            seed,
            Path(place) / "steps",
            log,
            key,
            unwatched,
            time.monotonic,
            lesson,
        )
    return model


def excess(task: Task, model: Any, dense: lessons.Lesson) -> float:
    """Mean KL(teacher || student) over the held-out rows' tokens."""
    work = loop.Work(model, model, [], 1.0, loop.autocast("float32", "cpu"), dense.vocabulary)
    return loop.measure(work, task.held_out, 2048, loop.Way(dense, head_of(model)))


def gradient(model: Any, batch: Sequence[rows.Row], lesson: lessons.Lesson) -> Tensor:
    model.zero_grad(set_to_none=True)
    collated = rows.collate(batch)
    loss, _ = batch_loss(model, collated, head_of(model), lesson.targets(batch, collated), lesson)
    loss.backward()
    return torch.cat(
        [value.grad.flatten() for value in model.parameters() if value.grad is not None]
    ).double()


def say(task: Task, seed: int, name: str, found: Learned) -> None:
    print(f"{task.name}, seed {seed}, {name}: {found}", file=sys.stderr, flush=True)


# ---------------------------------------------------------------- rows


def told(task: Task, forms: Sequence[Form], seeds: Sequence[Taught]) -> list[Row]:
    logits_NV = torch.cat([logits for _, logits in read(task.teacher, task.held_out)])
    own = entropy(logits_NV)
    dense = np.array([found[None].excess for found in seeds])
    made = [
        Row(f"{task.name}: the teacher's entropy", own, "nats/token"),
        interval(f"{task.name}, dense: excess", dense, "nats/token"),
    ]
    for form in dict.fromkeys(forms):
        what, of = f"{task.name}, {form}", [found[form] for found in seeds]
        lost = np.array([each.excess for each in of])
        over = interval(f"{what}: cross-entropy above dense", 100 * (lost - dense) / (own + dense), "%")
        stored, middle, large = np.mean([each.sizes for each in of], axis=0).tolist()
        size = beside(Row(f"{what}: size with {LARGE:,} ids", large, "bytes/token"), "32,000 ids", middle)
        asked = form in JUDGED
        made += [
            judged(over, "<= 1 %", over.high is not None and over.high <= 1.0) if asked else over,
            beside(interval(f"{what}: excess", lost, "nats/token"), "dense", float(dense.mean())),
            interval(f"{what}: angle to dense", np.array([each.angle for each in of]), "degrees"),
            Row(f"{what}: variance of the weights", form.variance(logits_NV), ""),
            Row(f"{what}: size as stored", stored, "bytes/token"),
            judged(size, "<= 36 bytes/token", large <= 36) if asked else size,
        ]
    whole = 4.0 * len(logits_NV[0])
    for dtype in NUMBERS:
        what, of = f"{task.name}, vectors in {dtype}", [found[dtype] for found in seeds]
        lost = np.array([each.excess for each in of])
        stored = Row(f"{what}: size with any number of ids", of[0].sizes[0], "bytes/token")
        made += [
            interval(f"{what}: cross-entropy above dense", 100 * (lost - dense) / (own + dense), "%"),
            interval(f"{what}: angle to dense", np.array([each.angle for each in of]), "degrees"),
            beside(stored, "whole distributions", whole),
        ]
    for at in range(0, len(forms) - 1, 4):
        stratified, drawn, spread, top = forms[at : at + 4]
        pairs = (stratified, drawn), (spread, drawn), (spread, stratified), (spread, top)
        for one, other in pairs:
            less = np.array([found[one].excess - found[other].excess for found in seeds])
            row = interval(f"{task.name}: excess, {one} less {other}", less, "nats/token")
            made.append(judged(row, "< 0", row.high is not None and row.high < 0) if other == drawn else row)
    return made


def drawing(task: Task) -> list[Row]:
    """What the forms take and how much they vary for a teacher that nobody learns from here."""
    logits_NV, made = probed(task), []
    for form in dict.fromkeys(matched(task)):
        what = f"{task.name}, {form}"
        made.append(Row(f"{what}: variance of the weights", form.variance(logits_NV), ""))
        made.append(Row(f"{what}: size with {LARGE:,} ids", payload(task, form, logits_NV), "bytes/token"))
    return made


def entropy(logits_NV: Tensor) -> float:
    logp_NV = torch.log_softmax(logits_NV.double(), -1)
    return float(-(logp_NV.exp() * logp_NV).sum(-1).mean())


def beside(row: Row, peer: str, value: float) -> Row:
    assert row.value is not None
    return replace(row, peer=peer, peer_value=float(value), ratio=row.value / float(value))


def judged(row: Row, target: str, holds: bool) -> Row:
    return replace(row, target=target, holds=holds)


if __name__ == "__main__":
    main()
