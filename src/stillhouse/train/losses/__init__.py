"""Losses of distillation: exact, and made so that positions times vocabulary never exist.

A training loop picks the positions that predict (`places`, or `rows.collate`), and calls one of

    total, count = head_loss(hidden_ND, head_of(model), targets, objective, ids_N)   # a language model
    total, count = distil(logits_NV, targets, objective, labels_N)                   # a classifier

where `targets` are a teacher's logits (N, V), a teacher's hidden states with its head (`TeacherStates`), or
a few weighted ids of each position (`SparseTargets`; from a shard by `unpacked`). A teacher of another
tokenizer has none of these: `chunk_loss` takes how likely it held stretches of the text (`ChunkTargets`), and
the student's own `token_logprobs`. `total` is a sum in nats; it is divided once, by the positions of the
whole step over all micro-batches and processes (`normalised`).
`sound` runs the self-test and refuses to go on where it fails. `try_kernels` lets a GPU use a Triton kernel
if it is equal to torch there.
"""

from stillhouse.train.losses.chunks import chunk_loss, token_logprobs
from stillhouse.train.losses.divergence import (
    Divergence,
    Objective,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
)
from stillhouse.train.losses.fused import head_loss
from stillhouse.train.losses.heads import Head, head_of
from stillhouse.train.losses.selftest import Check, kernel_notices, self_test, sound, try_kernels
from stillhouse.train.losses.targets import (
    ChunkTargets,
    SparseTargets,
    Targets,
    TeacherStates,
    places,
    stratified,
    unpacked,
    whole_distributions,
    with_text,
)
from stillhouse.train.losses.whole import cross_entropy, distil, normalised, position_losses

__all__ = [
    "Check",
    "ChunkTargets",
    "Divergence",
    "Head",
    "Objective",
    "SparseTargets",
    "Targets",
    "TeacherStates",
    "chunk_loss",
    "cross_entropy",
    "distil",
    "forward_kl",
    "head_loss",
    "head_of",
    "jensen_shannon",
    "kernel_notices",
    "normalised",
    "places",
    "position_losses",
    "reverse_kl",
    "self_test",
    "skew_kl",
    "skew_reverse_kl",
    "sound",
    "stratified",
    "token_logprobs",
    "try_kernels",
    "unpacked",
    "whole_distributions",
    "with_text",
]
