"""benchmarks/hinton_mnist.py on a few images: what its figures rest on."""

from pathlib import Path

import hinton_mnist as bench
import numpy as np
import pytest
import torch

MNIST = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "mnist" / "mnist.npz"
NO_THREE = (0, 1, 2, 4, 5, 6, 7, 8, 9)
TEACHER = bench.Recipe(100, 15, 64, 0.1, dropped=0.1, moved=1, longest=3.0)
STUDENT = bench.Recipe(60, 12, 64, 0.1)


@pytest.fixture(scope="module")
def digits():
    if not MNIST.exists():
        pytest.skip("mnist.npz is absent (data sets are not part of the project)")
    whole = bench.read(MNIST)
    return bench.Digits(
        whole.train[:3000], whole.train_labels[:3000], whole.test[:1000], whole.test_labels[:1000]
    )


@pytest.fixture(scope="module")
def teacher(digits):
    return bench.fit("teacher", TEACHER, digits, 0)


def test_a_student_that_never_saw_a_three_knows_it_once_its_bias_is_moved(digits, teacher):
    labels, threes = digits.test_labels, digits.test_labels == 3
    assert bench.errors(teacher.test, labels) < 120
    taught = bench.fit("no 3", STUDENT, digits, 0, teacher.train, NO_THREE)
    by = bench.best_shift(taught.test, labels, [3])
    moved = bench.shifted(taught.test, [3], by)
    assert by > 0
    assert bench.errors(moved, labels) < bench.errors(taught.test, labels)
    assert bench.errors(moved[threes], labels[threes]) < 0.4 * threes.sum()
    unaided = bench.fit("labels", STUDENT, digits, 0, None, NO_THREE)
    assert bench.errors(unaided.test[threes], labels[threes]) == threes.sum()


def test_the_same_seed_gives_the_same_network(digits):
    short = STUDENT._replace(epochs=1)
    one, two, other = (bench.fit("again", short, digits, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.test, two.test)
    assert np.array_equal(one.train, two.train)
    assert not np.array_equal(one.test, other.test)


def test_jitter_moves_whole_images_by_up_to_two_pixels_and_no_further():
    torch.manual_seed(0)
    image = torch.zeros(1, 28, 28, dtype=torch.uint8)
    image[0, 13, 14] = 255
    seen = bench.cut(torch.nn.functional.pad(image, (2, 2, 2, 2)), torch.zeros(2000, dtype=torch.long), 2)
    assert seen.shape == (2000, 28, 28)
    assert (seen.flatten(1).long().sum(1) == 255).all()
    places = {divmod(int(place), 28) for place in seen.flatten(1).argmax(1)}
    assert places == {(13 + down, 14 + right) for down in range(-2, 3) for right in range(-2, 3)}


def test_only_weights_that_are_too_long_are_shortened():
    layer = torch.nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 4.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]))
    bench.shorten([layer], 2.5)
    assert torch.allclose(layer.weight, torch.tensor([[1.5, 2.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]))


def test_the_best_bias_makes_the_fewest_errors_and_is_the_smallest_that_does():
    logits = np.zeros((3, 10), dtype=np.float32)
    logits[:, 3] = [2.0, 4.0, 9.0]
    labels = np.array([5, 5, 3])
    assert bench.errors(logits, labels) == 2
    by = bench.best_shift(logits, labels, [5])
    assert by == pytest.approx(4.1)
    assert bench.errors(bench.shifted(logits, [5], by), labels) == 0
    assert bench.best_shift(logits, np.array([3, 3, 3]), [5]) == 0
