"""Divergence of the probabilities, against torch's own and against what must hold."""

from __future__ import annotations

import pytest
import torch
from tiny import TEMPLATE, tiny_model

from stillhouse.evaluate.divergence import divergence, drifts
from stillhouse.models.local import load_model, prompt_ids
from stillhouse.records import Message, Prompt

PROMPTS = [Prompt(f"p{i}", (Message("user", f"is {i} even?"),), group=f"g{i % 3}") for i in range(9)]
TEXTS = {prompt.id: "no" if i % 2 else "yes" for i, prompt in enumerate(PROMPTS[:-1])}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    sharp = {"initializer_range": 0.5}
    teacher = tiny_model(root / "teacher", layers=2, seed=1, **sharp)
    student = tiny_model(root / "student", seed=2, template=TEMPLATE, **sharp)
    return load_model(str(teacher)), load_model(str(student))


def test_a_model_does_not_diverge_from_itself(models):
    found = divergence(drifts(models[0], models[0], PROMPTS, TEXTS), 1, 100)
    assert found["value"] == pytest.approx(0.0, abs=1e-6)
    assert (found["n"], found["places"]) == (8, 4 * 4 + 4 * 3)


def test_it_is_the_divergence_that_torch_computes_each_prompt_read_by_its_own_template(models):
    teacher, student = models
    (first, *_) = drifts(teacher, student, PROMPTS, TEXTS)
    ids = teacher.tokenizer("yes", add_special_tokens=False)["input_ids"]
    logprobs = []
    for model in (student, teacher):
        asked = prompt_ids(model, PROMPTS[0].messages)
        with torch.inference_mode():
            logits = model.model(torch.tensor([asked + ids])).logits[0, len(asked) - 1 :]
        logprobs.append(logits.double().log_softmax(-1))
    wanted = torch.nn.functional.kl_div(*logprobs, reduction="sum", log_target=True)
    assert first.places == 4
    assert first.nats == pytest.approx(float(wanted), rel=1e-4)
    assert first.nats > 0.1


def test_other_vocabularies_and_prompts_that_do_not_fit_are_told(models, tmp_path):
    from small_models import make_folder

    other = load_model(str(make_folder(tmp_path / "other")))
    assert drifts(models[0], other, PROMPTS, TEXTS) == "teacher and student have different vocabularies"
    long = [Prompt("long", (Message("user", "a" * 200),))]
    assert drifts(*models, long, {"long": "b"}) == "no answer of the teacher fits into both models"
