"""Was a model trained on marked answers? Tests of what it predicts, or answers, for the trace of the key.

After Sander et al. 2024 (arXiv:2402.14904): a student of marked text prefers the marked tokens a little, in
contexts that it was taught. The p-value is over keys, as in `detect`, and says nothing of models that score
low: a paraphrase of the training data, or too few contexts in common, leave no trace.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stillhouse.watermark.detect import Evidence, evidence, judged, refuse_selected
from stillhouse.watermark.hashing import Hashes, Ids, SipKey, seeds
from stillhouse.watermark.schemes import Scheme


def reading(
    scheme: Scheme,
    key: SipKey,
    read: Sequence[Ids],
    predicted: Sequence[Ids],
    served: Hashes | None = None,
) -> Evidence:
    """From a model's predictions: `predicted[i][t]` is the token that it holds likeliest after
    `read[i][:t + 1]`; both (T,).

    A context that stands earlier in the same text is left out: the model could copy what followed it there,
    and where the text itself is marked that would be taken for the model's own preference. Each context is
    scored once, by what was predicted after it first. `served`, from `detect.contexts` of marked answers that
    the model may have been taught, leaves out all others (the supervised setting). With a self-hashed scheme
    `read` must not be marked with the key: the pair that decides a token may stand earlier in it.

    Raises ValueError when a text and its predictions differ in length, and for `served` with the scheme
    `Selection`: see `detect.evidence`.
    """
    refuse_selected(scheme, served)
    known: set[int] = set()
    found = []
    for ids, tokens in zip(read, predicted, strict=True):
        if len(ids) != len(tokens):
            raise ValueError(f"{len(tokens)} predictions for {len(ids)} tokens")
        if len(ids) < scheme.width:
            continue
        # The context before place t + 1 ends at t, so the last one has a prediction and no token after it.
        whole = np.append(ids, 0)
        contexts = seeds(key, whole, scheme.width)
        places = np.unique(contexts, return_index=True)[1]
        if served is not None:
            places = places[np.isin(contexts[places], served)]
        places = np.array([at for at in places if int(contexts[at]) not in known], dtype=np.intp)
        known.update(contexts[places].tolist())
        found.append(scheme.bits(key, whole, tokens[scheme.width - 1 :])[places])
    bits = np.concatenate(found) if found else np.zeros(0, dtype=np.uint64)
    return judged(scheme, bits, sum(map(len, read)))


def answers(
    scheme: Scheme,
    key: SipKey,
    written: Sequence[Ids],
    prompts: Sequence[Ids],
    served: Hashes | None = None,
) -> Evidence:
    """From a model's own answers, as ids of the marking model's tokenizer: an API is enough.

    What stands in its prompt could be copied from there, so a pair of context and token that does is left
    out. `served` as in `reading`.

    Raises ValueError when there are not as many prompts as answers, and for `served` with the scheme
    `Selection`: see `detect.evidence`.
    """
    refuse_selected(scheme, served)
    if len(written) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts for {len(written)} answers")
    if all(len(prompt) <= scheme.width for prompt in prompts):
        return evidence(scheme, key, written, served)
    found = []
    for ids, prompt in zip(written, prompts, strict=True):
        bits = scheme.bits(key, ids, ids[scheme.width :])
        kept = ~np.isin(bits, scheme.bits(key, prompt, prompt[scheme.width :]))
        if served is not None:
            kept &= np.isin(seeds(key, ids, scheme.width), served)
        found.append(bits[kept])
    return judged(scheme, np.concatenate(found), sum(map(len, written)))
