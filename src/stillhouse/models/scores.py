"""What a server says of token ids that it was sent to read: how likely the model held each, and which others.

The form is vLLM's `prompt_logprobs`: for each token a map from id to log-probability, null for the first. The
token itself is in its map whatever its rank. JSON has no infinity, so -9999 stands for a probability of 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from stillhouse.errors import ModelError
from stillhouse.models.logprobs import MASS_ERROR, SENTINEL
from stillhouse.models.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What was told at N positions, E entries together: position n has those from `offsets_N1[n]` up to
    `offsets_N1[n + 1]`, likeliest first. `logprobs_E` are in nats, float64 and exactly as they were sent."""

    offsets_N1: NDArray[np.int64]
    ids_E: NDArray[np.int64]
    logprobs_E: NDArray[np.float64]


def read_scores(response: bytes, ids: Sequence[int], start: int, vocabulary: Vocabulary) -> Scores | str:
    """What a completion says of the tokens of `ids` from `start` on, or why nothing can be learned from it.

    Ids that are not in `vocabulary` only pad the model's head, and are left out; so is what is called
    impossible. Raises ModelError where the server's ids spell something else than the vocabulary says: then
    no answer of its means what it seems to.
    """
    try:
        told = orjson.loads(response)["choices"][0]["prompt_logprobs"]
        if len(told) != len(ids):
            return "another number of tokens than was sent"
        sizes, found, values = [], [], []
        for token, options in zip(ids[start:], told[start:], strict=True):
            if str(token) not in options:
                return "other tokens than were sent"
            _check_spelling(token, options[str(token)], vocabulary)
            entries = _entries(options, len(vocabulary.raw))
            if entries is None:
                return "impossible probabilities"
            sizes.append(len(entries))
            found += [at for _, at in entries]
            values += [value for value, _ in entries]
    except (ValueError, LookupError, TypeError, AttributeError):
        return "not readable"
    offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    return Scores(offsets, np.array(found, dtype=np.int64), np.array(values, dtype=np.float64))


def _entries(options: Mapping[str, Mapping[str, Any]], size: int) -> list[tuple[float, int]] | None:
    """Log-probabilities and ids, likeliest first; None for what is no distribution, or a part of one."""
    entries, mass = [], 0.0
    for name, said in options.items():
        value = float(said["logprob"])
        if not value <= MASS_ERROR:  # no NaN is
            return None
        mass += math.exp(min(value, 0.0))
        if value > SENTINEL and (at := int(name)) < size:
            entries.append((min(value, 0.0), at))
    if mass > 1 + MASS_ERROR or not entries:
        return None
    return sorted(entries, key=lambda entry: (-entry[0], entry[1]))


def _check_spelling(token: int, said: Mapping[str, Any], vocabulary: Vocabulary) -> None:
    """Raises ModelError where the server shows another text for a token than it has here.

    Blanks at the ends are not looked at, since SentencePiece loses them, nor are parts of a character, which
    servers show in many ways.
    """
    shown = said.get("decoded_token")
    try:
        own = vocabulary.raw[token].decode()
    except UnicodeDecodeError:
        return
    if not shown or "\ufffd" in shown or shown.strip() == own.strip():
        return
    raise ModelError(
        "the teacher's server reads other tokens than the student",
        f"the id {token} is {own!r} for the student and {shown!r} there",
        "start the student from the teacher's family and name the teacher's tokenizer in "
        'train.distil.tokenizer, or set train.distil.targets = "answers", which are mapped by bytes',
    )
