"""How hard a row is for a real small student."""

import math

import pytest
import torch
from curating import row
from small_models import make_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

from stillhouse.curate.difficulty import losses_of


def test_a_students_loss_is_that_of_the_answer_alone(tmp_path):
    folder = make_folder(tmp_path / "student")
    losses = losses_of(str(folder))
    rows = [row(0, "yes it is", "is it?"), row(1, "", "is it?"), row(2, "x" * 400, "is it?")]
    found = losses(rows)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    turns = [{"role": "user", "content": "is it?"}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    answer = tokenizer("yes it is", add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        logprobs = model(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
    wanted = [float(logprobs[len(prompt) + i - 1, token]) for i, token in enumerate(answer)]
    assert found[0] == pytest.approx(-sum(wanted) / len(wanted), rel=1e-3)
    assert math.isnan(found[1])  # no token
    assert math.isnan(found[2])  # longer than the context
