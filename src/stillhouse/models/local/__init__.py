"""A local causal language model (folder or hub id): load it, let it answer, score texts with it."""

from stillhouse.models.local.decode import (
    Decoder,
    Event,
    Generation,
    Request,
    TokenLogprob,
    generate,
    score,
)
from stillhouse.models.local.load import (
    LocalModel,
    Token,
    best_device,
    ids_text,
    load_model,
    make_differentiable,
    parameters,
    prompt_ids,
    text_ids,
    threads_for,
    vocabulary,
    workers_for,
)

__all__ = [
    "Decoder",
    "Event",
    "Generation",
    "LocalModel",
    "Request",
    "Token",
    "TokenLogprob",
    "best_device",
    "generate",
    "ids_text",
    "load_model",
    "make_differentiable",
    "parameters",
    "prompt_ids",
    "score",
    "text_ids",
    "threads_for",
    "vocabulary",
    "workers_for",
]
