"""What a model says at the places of a batch that predict a target, student and teacher alike.

Shapes: N places, D the hidden width, V the vocabulary.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from stillhouse.train.rows import Batch


def states_at(model: Any, batch: Batch) -> Tensor:
    """The last hidden states (N, D), which enter the head."""
    hidden_BTD: Tensor = model.base_model(input_ids=batch.ids_BT, use_cache=False).last_hidden_state
    return hidden_BTD.flatten(0, 1).index_select(0, batch.places_N)


def scores_at(model: Any, batch: Batch) -> Tensor:
    """The logits (N, V); all others are made as well."""
    scores_BTV: Tensor = model(input_ids=batch.ids_BT, use_cache=False).logits
    return scores_BTV.flatten(0, 1).index_select(0, batch.places_N)
