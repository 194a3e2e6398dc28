"""What a model says at the places of a batch that predict a target, student and teacher alike.

Shapes: N places, D the hidden width, V the vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillhouse.errors import UsageError
from stillhouse.train.rows import Batch, Row, collate, pack, to_device


def states_at(model: Any, batch: Batch) -> Tensor:
    """The last hidden states (N, D), which enter the head."""
    hidden_BTD: Tensor = model.base_model(**_inputs(batch)).last_hidden_state
    return hidden_BTD.flatten(0, 1).index_select(0, batch.places_N)


def scores_at(model: Any, batch: Batch) -> Tensor:
    """The logits (N, V); all others are made as well."""
    scores_BTV: Tensor = model(**_inputs(batch)).logits
    return scores_BTV.flatten(0, 1).index_select(0, batch.places_N)


def _inputs(batch: Batch) -> dict[str, Any]:
    given = {"input_ids": batch.ids_BT, "use_cache": False}
    return given if batch.positions_BT is None else {**given, "position_ids": batch.positions_BT}


def check_packing(model: Any, who: str) -> None:
    """Raises UsageError for a model that says something else of a row where others stand before it.

    Tried, not looked up: whether a mask is made of the positions is each architecture's own affair. What a
    model says of a row alone comes by other shapes of its matrices, so that it may differ by half of the
    digits of the type. Other rows of the same lengths before it leave all shapes, and so each digit.
    """
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = np.array([1, 5, 3, 2, 7, 4, 6], dtype=np.int32) % vocabulary
    rows = [Row(ids, 1, ""), Row(ids[::-2].copy(), 1, ""), Row(ids[1:5], 1, "")]
    others = [Row((row.ids + 2) % vocabulary, 1, "") for row in rows[:2]]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            apart, together, after_others = (
                scores_at(model, to_device(batch, model.device))
                for batch in (collate(rows), pack(rows), pack([*others, rows[2]]))
            )
        most, last = apart.abs().max(), slice(1 - len(rows[2].ids), None)
        alike = (apart - together).abs().max() <= torch.finfo(apart.dtype).eps ** 0.5 * most
        same = bool(alike and (together - after_others)[last].abs().max() <= 1e-4 * most)
        why = "what stands before a row changes what it says of it, as its layers do not keep rows apart"
    except (TypeError, ValueError, RuntimeError) as error:
        same, why = False, str(error).splitlines()[0][:200]
    finally:
        model.train(was_training)
    if not same:
        raise UsageError(
            f"rows cannot be packed for this {who}, a {type(model).__name__}",
            why,
            "set `train.packing = false`",
        )
