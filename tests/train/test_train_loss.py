"""The loss and its gradient do not depend on how rows are padded, mixed, cut or projected."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import VOCABULARY
from tiny import tiny_llama as make
from train.tiny_student import BASE

from stillhouse.train.loss import attend_in_float32, batch_loss
from stillhouse.train.losses import head_of
from stillhouse.train.rows import Row, collate
from stillhouse.train.step import Way, Work, train_step


def row(*ids, start, group=""):
    return Row(np.array(ids, dtype=np.int32), start, group)


def tiny_llama():
    return make(**BASE)


ROWS = [
    row(5, 9, 11, 4, 1, start=3),
    row(7, 1, start=1),  # a completion of one token
    row(8, 8, 6, 20, 30, 31, 12, 13, 1, start=8),  # the end token alone
    row(3, 4, 5, 6, 7, 8, 1, start=1),  # all but the first token trained
]


def loss_of(model, rows, padding=0):
    return batch_loss(model, collate(rows, padding), head_of(model))[0]


def by_hand(model, rows):
    """The definition, one token at a time, each from its own unpadded prefix."""
    total, count = torch.zeros(()), 0
    for row in rows:
        for place in range(row.start, len(row.ids)):
            scores = model(input_ids=torch.tensor(row.ids[None, :place].tolist())).logits[0, -1]
            total = total - torch.log_softmax(scores, -1)[int(row.ids[place])]
            count += 1
    return total, count


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("apart", [True, False], ids=["head apart", "all logits"])
@pytest.mark.parametrize("padding", [0, 1, 13])
def test_shift_and_mask_agree_with_the_definition(apart, padding):
    model = tiny_llama()
    expected, count = by_hand(model, ROWS)
    wanted = gradients(model, expected)
    got, _ = batch_loss(model, collate(ROWS, padding), head_of(model) if apart else None)
    assert count == 2 + 1 + 1 + 6
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients(model, got), wanted, rtol=1e-4, atol=1e-5)


def test_loss_is_the_sum_of_each_row_alone_in_any_order():
    model = tiny_llama()
    together = loss_of(model, ROWS[::-1])
    apart = sum(loss_of(model, [row]) for row in ROWS)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)


def test_attention_in_float32_changes_nothing_in_float32():
    model = tiny_llama()
    before = loss_of(model, ROWS)
    attend_in_float32(model)
    after = loss_of(model, ROWS)
    torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-6)


def test_bf16_stays_close_and_trains_float32_weights():
    model = tiny_llama()
    attend_in_float32(model)
    exact = loss_of(model, ROWS)
    with torch.autocast("cpu", torch.bfloat16):
        rough = loss_of(model, ROWS)
    assert rough.dtype == torch.float32
    assert abs((rough - exact).item()) < 0.03 * exact.item()
    assert gradients(model, rough).dtype == torch.float32


@pytest.mark.parametrize("most", [18, 12, 9], ids=["2 parts", "3 parts", "4 parts"])
def test_accumulated_parts_step_as_one_batch(most):
    found = []
    for cut in (None, most):
        model = tiny_llama()
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        work = Work(model, model, [optimiser], 1e9, nullcontext, VOCABULARY, cut)
        loss, norm, count, _ = train_step(work, [(ROWS, Way(None, head_of(model)))])
        found.append((loss, norm, count, torch.cat([p.detach().flatten() for p in model.parameters()])))
    assert found[0][2] == found[1][2]
    assert found[0][:2] == pytest.approx(found[1][:2], rel=1e-5)
    torch.testing.assert_close(found[0][3], found[1][3], rtol=1e-5, atol=1e-6)


def test_two_halves_at_once_give_the_bits_of_two_in_turn():
    def after(steps, halves):
        model = tiny_llama()
        attend_in_float32(model)
        optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
        work = Work(model, model, [optimiser], 1.0, bf16, VOCABULARY, most=18)
        for _ in range(steps):
            train_step(work, [(ROWS, Way(None, head_of(model)))], halves)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    def bf16():
        return torch.autocast("cpu", torch.bfloat16)

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with ThreadPoolExecutor(2) as pool:
        assert torch.equal(after(40, pool), after(40, None))
    torch.set_num_threads(before)


def test_a_head_that_caps_or_scales_gives_the_models_own_loss():
    from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM

    sizes = {
        "vocab_size": 46,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    capped = Gemma2ForCausalLM(
        Gemma2Config(**sizes, head_dim=16, final_logit_softcapping=30.0, pad_token_id=0)
    )
    scaled = CohereForCausalLM(CohereConfig(**sizes, logit_scale=0.0625, pad_token_id=0, eos_token_id=1))
    for model in (capped, scaled):
        expected, _ = by_hand(model.eval(), ROWS)
        assert head_of(model) is not None
        got = loss_of(model, ROWS)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.lists(st.integers(3, 45), min_size=2, max_size=12).flatmap(
            lambda ids: st.integers(1, len(ids) - 1).map(lambda start: row(*ids, start=start))
        ),
        min_size=1,
        max_size=6,
    )
)
def test_every_target_is_predicted_by_the_place_before_it(rows):
    batch = collate(rows)
    places, targets = batch.places_N, batch.targets_N
    assert len(targets) == sum(len(r.ids) - r.start for r in rows)
    assert torch.equal(batch.ids_BT.flatten()[places + 1], targets)
    assert (places % batch.ids_BT.shape[1] < batch.ids_BT.shape[1] - 1).all()  # never across rows


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_a_model_with_dropout_is_not_worked_in_halves(rate):
    from transformers import GPT2Config, GPT2LMHeadModel

    from stillhouse.train.machine import draws

    rates = {"resid_pdrop": rate, "embd_pdrop": rate, "attn_pdrop": rate, "summary_first_dropout": rate}
    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=16, **rates)
    assert draws(GPT2LMHeadModel(config)) == (rate > 0)
    assert not draws(tiny_llama())
