"""The rate of each step, against torch's own schedules."""

import pytest
import torch
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, SequentialLR

from stillhouse.recipe import Train
from stillhouse.train.optimisers import learning_rate

STEPS, PEAK = 200, 3e-3


def torchs(warm, falls, low):
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    parts = [
        LinearLR(optimiser, 1 / warm, 1.0, warm - 1),
        CosineAnnealingLR(optimiser, falls, PEAK * low),
        ConstantLR(optimiser, low, STEPS),
    ]
    schedule = SequentialLR(optimiser, parts, [warm, warm + falls])
    rates = []
    for _ in range(STEPS):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return rates


@pytest.mark.parametrize(("hold", "falls"), [(0.0, 189), (0.5, 89), (0.65, 59)])
def test_the_rate_rises_falls_and_is_held(hold, falls):
    settings = Train(learning_rate=PEAK, warmup=0.05, final_rate=0.2, hold=hold)
    rates = [learning_rate(step, STEPS, settings) for step in range(STEPS)]
    assert rates == pytest.approx(torchs(10, falls, 0.2), rel=1e-9)


@pytest.mark.parametrize("hold", [0.95, 1.0])
def test_a_rate_that_is_held_from_the_start_is_the_low_one(hold):
    settings = Train(learning_rate=PEAK, warmup=0.05, final_rate=0.2, hold=hold)
    rates = [learning_rate(step, STEPS, settings) for step in range(STEPS)]
    assert rates[-150:] == pytest.approx([PEAK * 0.2] * 150)
