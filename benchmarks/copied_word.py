"""After how many steps a student comes upon the one word that is hard to copy.

    .venv/bin/python benchmarks/copied_word.py [--quick] [--folder FOLDER] [--json FILE]

Of "steel kettle" in a request the reply of the quickstart's student has to repeat both words. The kettle is
copied early. The steel is guessed among the twelve such words of the training split, at ln 12 = 2.48 nats,
for a long time, and then copied within some hundred steps, or never: see docs/training.md. Here the shipped
base student learns 6,000 requests with the answers of the world that the shipped teacher learned from, in
batches of 1,024 tokens for seven epochs at a rate of 3e-3, with five seeds of requests and of order. Every 50
steps the loss on that word is measured in replies that were not learned; it counts as found below 0.3 nats,
and the training ends. A full run takes 25 minutes of one core; what is in --folder is not done again. --quick
takes one seed and 150 steps: it shows that the path works, not what it reaches.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rows import Row, arguments, header, part, show, working_folder
from torch.nn.functional import cross_entropy

from stillhouse.models.embedded import world
from stillhouse.models.embedded.world.slots import KINDS
from stillhouse.models.local import LocalModel
from stillhouse.models.reading import end_id, row_ids
from stillhouse.recipe import Train, parse_recipe
from stillhouse.stats import wilson
from stillhouse.train.optimisers import learning_rate, make_optimisers, set_rate
from stillhouse.train.rows import Row as Lesson
from stillhouse.train.rows import collate, epoch_batches
from stillhouse.train.student import initial_student

RECIPE = Path(__file__).parents[1] / "examples" / "quickstart" / "recipe.toml"
SEEDS = (17, 18, 19, 20, 21)
LESSONS, EPOCHS, TOKENS = 6000, 7, 1024
ASKED, REPLIES = 99_991, 200  # the seed of the replies that are measured, and how many
EVERY, FOUND = 50, 0.3  # steps between two looks, and nats
SETTINGS = Train(optimiser="muon", learning_rate=3e-3, final_rate=0.05)


@dataclass(frozen=True, slots=True)
class Replies:
    """`places` are of the token of the word in each, so that the token before it predicts it."""

    lessons: list[Lesson]
    places: list[int]


def main() -> None:
    options = arguments(__doc__ or "", resumable=True)
    torch.set_num_threads(1)
    seeds, most = (SEEDS[:1], 150) if options.quick else (SEEDS, None)
    with working_folder(options.folder) as folder:
        made = [taught(folder, seed, most) for seed in seeds]
    found = sum(row.unit == "steps" for row in made)
    span = wilson(found, len(made))
    first = Row("trainings that found the word", found / len(made), f"of {len(made)}", span.low, span.high)
    show(header(SEEDS[0], ["stillhouse", "torch", "transformers"]), [first, *made], options.json)


def taught(folder: Path, seed: int, most: int | None) -> Row:
    """The step at which the word was found, or the last one."""

    def make() -> Sequence[Row]:
        *_, (step, loss) = looks(seed, most)
        return [Row(f"found, seed {seed}", step, "steps" if loss < FOUND else f"steps, not: {loss:.2f} nats")]

    (row,) = part(folder / f"seed-{seed}.json", make)
    return row


def looks(seed: int, most: int | None) -> Iterator[tuple[int, float]]:
    """Steps done, and the loss on the word in nats; up to the first below `FOUND`, and at most so many."""
    torch.manual_seed(seed)
    student = initial_student(parse_recipe(tomllib.loads(RECIPE.read_text())), None)
    lessons = [lesson for lesson, _ in drawn(student, seed, LESSONS)]
    replies = measured(student)
    lengths = [len(lesson.ids) for lesson in lessons]
    batches = [batch for epoch in range(EPOCHS) for batch in epoch_batches(lengths, TOKENS, seed, epoch)]
    model = student.model.requires_grad_(True).train()
    trainable = list(model.named_parameters())
    optimisers = make_optimisers(trainable, SETTINGS)
    for step, numbers in enumerate(batches[:most]):
        set_rate(optimisers, learning_rate(step, len(batches), SETTINGS))
        batch = collate([lessons[number] for number in numbers])
        logits_TV = model(input_ids=batch.ids_BT).logits.flatten(0, 1)
        cross_entropy(logits_TV[batch.places_N].float(), batch.targets_N).backward()
        torch.nn.utils.clip_grad_norm_([value for _, value in trainable], SETTINGS.clip)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        if (step + 1) % EVERY == 0:
            loss = loss_on_the_word(model, replies)
            print(f"seed {seed}, step {step + 1:,}: {loss:.3f} nats", file=sys.stderr, flush=True)
            yield step + 1, loss
            if loss < FOUND:
                return


def drawn(student: LocalModel, seed: int, count: int) -> Iterator[tuple[Lesson, world.Example]]:
    end = end_id(student.reader)
    for each in islice(world.examples("train", seed), count):
        made = row_ids(student.reader, each.prompt.messages, each.answer, end)
        if isinstance(made, tuple):
            yield Lesson(*made, each.prompt.id), each


def measured(student: LocalModel) -> Replies:
    """Replies in which the word is one token and stands in the answer."""
    kinds = student.tokenizer([f" {kind}" for kind in KINDS])["input_ids"]
    single = {ids[0] for ids in kinds if len(ids) == 1}
    found = Replies([], [])
    for lesson, each in drawn(student, ASKED, 20 * REPLIES):
        if each.prompt.family != "reply" or len(found.lessons) == REPLIES:
            continue
        places = [at for at in range(lesson.start, len(lesson.ids)) if int(lesson.ids[at]) in single]
        if places:
            found.lessons.append(lesson)
            found.places.append(places[0])
    return found


def loss_on_the_word(model: Any, replies: Replies) -> float:
    model.eval()
    losses: list[float] = []
    with torch.inference_mode():
        for at in range(0, len(replies.lessons), 50):
            some, places = replies.lessons[at : at + 50], replies.places[at : at + 50]
            logits_BTV = model(input_ids=collate(some).ids_BT).logits.float()
            for row, (lesson, place) in enumerate(zip(some, places, strict=True)):
                wanted = torch.tensor(int(lesson.ids[place]))
                losses.append(float(cross_entropy(logits_BTV[row, place - 1], wanted)))
    model.train()
    return float(np.mean(losses))


if __name__ == "__main__":
    main()
