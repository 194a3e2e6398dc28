"""Test errors of classic distillation on MNIST, beside those of Hinton, Vinyals and Dean (2015).

    .venv/bin/python benchmarks/hinton_mnist.py [--quick] [--json FILE]

Section 3 of https://arxiv.org/abs/1503.02531. A teacher 784-1200-1200-10 of rectified linear units learns
from labels with dropout, weights of limited length and images moved by up to two pixels. Students
784-800-800-10 learn from unmoved images and with none of that: from labels alone; and from labels and the
teacher's answers at temperature 20, with all digits in the transfer set, without the 3, and with 7 and 8
alone. Every network is judged once, after its last step; the recipes were chosen on the last 10,000
training images, held out for that, without a look at the test set. Where the paper moves the bias of a
digit by what is best on the test set, so does this script, and says so; beside it stands the bias that is
best on the training images.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rows import DATA, Row, arguments, header, need, show
from torch import Tensor, nn
from torch.nn.functional import pad

from stillhouse.train.losses import Objective, cross_entropy, distil, normalised

SEED = 11
CLASSES, SIDE = 10, 28
OBJECTIVE = Objective(temperature=20.0, hard=0.1)

Pixels = NDArray[np.uint8]  # (images, 28, 28)
Labels = NDArray[np.int64]  # (images,)
Logits = NDArray[np.float32]  # (images, 10)


class Digits(NamedTuple):
    train: Pixels
    train_labels: Labels
    test: Pixels
    test_labels: Labels


class Recipe(NamedTuple):
    """How a network 784-hidden-hidden-10 is trained: momentum 0.9, gradients no longer than 1."""

    hidden: int
    epochs: int
    batch: int
    rate: float  # at its highest
    dropped: float = 0.0  # share of the hidden units
    moved: int = 0  # pixels, at most, along and across
    longest: float = float("inf")  # Euclidean length that the weights into a hidden unit may have


class Answers(NamedTuple):
    """Logits of the trained network for all images of both sets, and the CPU time of its training."""

    train: Logits
    test: Logits
    seconds: float


class Plan(NamedTuple):
    teacher: Recipe
    student: Recipe
    students: int  # of each kind, with seeds of their own


FULL = Plan(
    Recipe(1200, 24, 256, 0.1, dropped=0.2, moved=2, longest=3.0), Recipe(800, 15, 256, 0.1), students=3
)
QUICK = Plan(FULL.teacher._replace(epochs=2), FULL.student._replace(epochs=2), students=1)


def fit(
    name: str,
    recipe: Recipe,
    digits: Digits,
    seed: int,
    teacher: Logits | None = None,
    shown: Sequence[int] = range(CLASSES),
) -> Answers:
    """Trains on one thread, so that the same seed gives the same weights on any number of cores."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    start = time.process_time()
    network, hidden = layers(recipe)
    images, labels = torch.from_numpy(digits.train), torch.from_numpy(digits.train_labels)
    padded = pad(images, (recipe.moved,) * 4)
    transfer = torch.isin(labels, torch.tensor(list(shown))).nonzero().squeeze(1)
    steps = recipe.epochs * -(-len(transfer) // recipe.batch)
    optimizer = torch.optim.SGD(network.parameters(), recipe.rate, momentum=0.9, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share(step, steps))
    for epoch in range(recipe.epochs):
        total = torch.zeros(())
        for chosen in transfer[torch.randperm(len(transfer))].split(recipe.batch):
            batch = cut(padded, chosen, recipe.moved) if recipe.moved else images[chosen]
            logits = network(scaled(batch))
            if teacher is None:
                loss, count = cross_entropy(logits, labels[chosen])
            else:
                loss, count = distil(logits, torch.from_numpy(teacher)[chosen], OBJECTIVE, labels[chosen])
            optimizer.zero_grad()
            normalised(loss, count).backward()
            # At T = 20 the loss is a parabola in the logits: its slope far from the teacher has no bound
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            shorten(hidden, recipe.longest)
            total += loss.detach()
        spent = time.process_time() - start
        mean = total.item() / len(transfer)
        print(
            f"{name}: epoch {epoch + 1} of {recipe.epochs}, loss {mean:.4f}, CPU {spent:.0f} s",
            file=sys.stderr,
        )
    return Answers(answers(network, digits.train), answers(network, digits.test), time.process_time() - start)


def share(step: int, steps: int) -> float:
    """Of the learning rate at a step: a fifteenth of them lead up to all of it, the others down to 0."""
    rise = -(-steps // 15)
    return min((step + 1) / rise, (steps - step) / (steps - rise + 1))


def layers(recipe: Recipe) -> tuple[nn.Sequential, list[nn.Linear]]:
    """The whole network, and its hidden layers alone."""
    hidden = [nn.Linear(SIDE * SIDE, recipe.hidden), nn.Linear(recipe.hidden, recipe.hidden)]
    last = nn.Linear(recipe.hidden, CLASSES)
    for layer in (*hidden, last):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    parts: list[nn.Module] = [nn.Flatten()]
    for layer in hidden:
        parts += [layer, nn.ReLU(), nn.Dropout(recipe.dropped)]
    return nn.Sequential(*parts, last), hidden


def cut(padded: Tensor, chosen: Tensor, moved: int) -> Tensor:
    """From each of the `chosen` images, with `moved` pixels of margin: 28 x 28 pixels at a random place."""
    window = torch.arange(SIDE)
    down = torch.randint(0, 2 * moved + 1, (len(chosen), 1)) + window
    right = torch.randint(0, 2 * moved + 1, (len(chosen), 1)) + window
    return padded[chosen[:, None, None], down[:, :, None], right[:, None, :]]


def scaled(pixels: Tensor) -> Tensor:
    return pixels.float() / 255


@torch.no_grad()
def shorten(hidden: Sequence[nn.Linear], longest: float) -> None:
    if longest < float("inf"):
        for layer in hidden:
            layer.weight.mul_((longest / layer.weight.norm(dim=1, keepdim=True)).clamp(max=1))


def answers(network: nn.Module, images: Pixels) -> Logits:
    network.eval()
    with torch.inference_mode():
        parts = [network(scaled(part)) for part in torch.from_numpy(images).split(1000)]
    logits: Logits = torch.cat(parts).numpy()
    return logits


def errors(logits: Logits, labels: Labels) -> int:
    return int((logits.argmax(1) != labels).sum())


def shifted(logits: Logits, digits: Sequence[int], by: float) -> Logits:
    """As if the biases of these digits' output units were greater by so much."""
    there = np.isin(np.arange(CLASSES), digits)
    return np.where(there, logits + np.float32(by), logits)


def best_shift(logits: Logits, labels: Labels, digits: Sequence[int]) -> float:
    """With the fewest errors, of -20.0, -19.9, ... 20.0; of equals the nearest to 0."""
    steps = sorted(range(-200, 201), key=abs)
    return min(steps, key=lambda step: errors(shifted(logits, digits, step / 10), labels)) / 10


def read(file: Path) -> Digits:
    with np.load(file) as held:
        images, labels = ([held[f"{what}_{part}"] for part in ("train", "test")] for what in "xy")
    return Digits(images[0], labels[0].astype(np.int64), images[1], labels[1].astype(np.int64))


def row(what: str, unit: str, ours: Sequence[float], published: float | None = None) -> Row:
    """The mean, and where there are several the least and the greatest."""
    mean = float(np.mean(ours))
    span = (min(ours), max(ours)) if len(ours) > 1 else (None, None)
    if published is None:
        return Row(what, mean, unit, *span)
    return Row(what, mean, unit, *span, "published", published, mean / published)


def without_threes(found: Sequence[Answers], digits: Digits) -> Iterator[Row]:
    labels, threes = digits.test_labels, digits.test_labels == 3
    name = "distilled without any 3"
    yield row(f"{name}", "errors", [errors(f.test, labels) for f in found], 206)
    yield row(f"{name}: on threes", "errors", [errors(f.test[threes], labels[threes]) for f in found], 133)
    best_on_test = [best_shift(f.test, labels, [3]) for f in found]
    best_on_training = [best_shift(f.train, digits.train_labels, [3]) for f in found]
    for chosen, published, shifts in (
        ("test set, as in the paper", (3.5, 109, 14), best_on_test),
        ("training images", (None, None, None), best_on_training),
    ):
        moved = [shifted(f.test, [3], by) for f, by in zip(found, shifts, strict=True)]
        yield row(f"{name}, bias best on the {chosen}: bias", "higher", shifts, published[0])
        yield row(
            f"{name}, bias best on the {chosen}", "errors", [errors(m, labels) for m in moved], published[1]
        )
        on_threes = [errors(m[threes], labels[threes]) for m in moved]
        yield row(f"{name}, bias best on the {chosen}: on threes", "errors", on_threes, published[2])


def sevens_and_eights(found: Sequence[Answers], digits: Digits) -> Iterator[Row]:
    name, labels = "distilled on 7 and 8 alone", digits.test_labels
    shifts = [best_shift(f.test, labels, [7, 8]) for f in found]
    moved = [shifted(f.test, [7, 8], by) for f, by in zip(found, shifts, strict=True)]
    yield row(name, "errors", [errors(f.test, labels) for f in found], 4730)
    yield row(f"{name}, biases best on the test set, as in the paper: biases", "higher", shifts, -7.6)
    yield row(
        f"{name}, biases best on the test set, as in the paper",
        "errors",
        [errors(m, labels) for m in moved],
        1320,
    )


def rows(plan: Plan, digits: Digits) -> list[Row]:
    seeds = range(SEED, SEED + plan.students)
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        one = pool.submit(fit, "teacher", plan.teacher, digits, SEED)
        alone = [pool.submit(fit, f"labels {seed}", plan.student, digits, seed) for seed in seeds]
        teacher = one.result()
        kinds = {"distilled": range(CLASSES), "no 3": (0, 1, 2, 4, 5, 6, 7, 8, 9), "7 and 8": (7, 8)}
        taught = {
            kind: [
                pool.submit(fit, f"{kind} {seed}", plan.student, digits, seed, teacher.train, shown)
                for seed in seeds
            ]
            for kind, shown in kinds.items()
        }
        hard = [future.result() for future in alone]
        soft, no_three, two_digits = ([future.result() for future in taught[kind]] for kind in kinds)
    labels = digits.test_labels
    top, low, high = ([errors(answer.test, labels) for answer in kind] for kind in ([teacher], hard, soft))
    gaps = [(np.mean(low) - each) / (np.mean(low) - top[0]) for each in high]
    student = f"student 2 x {plan.student.hidden}"
    spent = [answer.seconds / 60 for answer in (*hard, *soft, *no_three)]
    return [
        row(f"teacher 2 x {plan.teacher.hidden}, {plan.teacher.epochs} epochs", "errors", top, 67),
        row(f"{student}, labels alone, {plan.student.epochs} epochs", "errors", low, 146),
        row(f"{student}, distilled at T = {OBJECTIVE.temperature:g}, same steps", "errors", high, 74),
        row("gap to the teacher closed", "of the gap", gaps, (146 - 74) / (146 - 67)),
        *without_threes(no_three, digits),
        *sevens_and_eights(two_digits, digits),
        row("teacher: CPU time", "min", [teacher.seconds / 60]),
        row("student: CPU time", "min", spent),
    ]


def main() -> None:
    options = arguments((__doc__ or "").split("\n", 1)[0])
    digits = read(need(DATA / "mnist" / "mnist.npz"))
    found = rows(QUICK if options.quick else FULL, digits)
    show(header(SEED, ["stillhouse", "torch", "numpy"]), found, options.json)


if __name__ == "__main__":
    main()
