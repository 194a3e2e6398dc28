"""What the figures of benchmarks/watermark.py rest on."""

import math

import numpy as np
import pytest
import torch
from rows import Row, part
from watermark_null import critical
from watermark_theirs import called

from stillhouse.watermark import Kgw, Tournament


@pytest.mark.parametrize("scheme", [Kgw(), Kgw(share=0.5), Tournament(depth=3)])
def test_the_least_sum_that_is_called_marked_is_found_for_any_number_of_pairs(scheme):
    for count in range(1, 50):
        for level in (1e-2, 1e-4):
            least = critical(scheme, count, level)
            assert scheme.log_p(least, count) <= math.log(level) < scheme.log_p(least - 1, count)


def test_marked_texts_are_called_by_a_line_that_unmarked_ones_draw():
    scorer = torch.Tensor.float
    assert called(scorer, torch.tensor([98, 99, 100, 101]), torch.arange(101)) == pytest.approx(0.5)
    assert called(scorer, torch.from_numpy(np.arange(50)), torch.arange(101)) == 0


def test_a_part_that_was_made_is_not_made_again(tmp_path):
    made = [Row("one", 1.5, "s", holds=True)]
    assert part(tmp_path / "one.json", lambda: made) == made
    assert part(tmp_path / "one.json", lambda: pytest.fail("made again")) == made


def test_a_part_that_failed_is_made_again(tmp_path):
    with pytest.raises(ZeroDivisionError):
        part(tmp_path / "one.json", lambda: [Row("one", 1 / 0, "s")])
    assert part(tmp_path / "one.json", lambda: [Row("one", 1.0, "s")])[0].value == 1.0
