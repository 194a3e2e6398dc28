"""What steps which weights, and the rate of each step against torch's own schedules."""

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from train.tiny_student import make_recipe
from transformers import AutoModelForCausalLM

from stillhouse.recipe import Train
from stillhouse.train.optimisers import learning_rate, make_optimisers

STEPS, PEAK = 200, 3e-3


@pytest.mark.parametrize(("warmup", "warm"), [(0.05, 10), (0.5, 100)])
def test_the_rate_rises_and_falls_as_torchs_does(warmup, warm):
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    rise = LinearLR(optimiser, 1 / warm, 1.0, warm - 1)
    fall = CosineAnnealingLR(optimiser, STEPS - 1 - warm, PEAK * 0.2)
    schedule = SequentialLR(optimiser, [rise, fall], [warm])
    settings = Train(learning_rate=PEAK, warmup=warmup, final_rate=0.2)
    for step in range(STEPS):
        expected = optimiser.param_groups[0]["lr"]
        assert learning_rate(step, STEPS, settings) == pytest.approx(expected, rel=1e-9)
        optimiser.step()
        schedule.step()


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_every_weight_is_stepped_by_one_optimiser(folder, optimiser):
    student = AutoModelForCausalLM.from_pretrained(folder)
    settings = make_recipe(str(folder), {"optimiser": optimiser}).train
    optimisers = make_optimisers(list(student.named_parameters()), settings)
    stepped = [id(value) for each in optimisers for group in each.param_groups for value in group["params"]]
    assert sorted(stepped) == sorted(id(value) for value in student.parameters())
