"""Rows that say again what an earlier row said: in the same words, nearly the same, or quite other ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from stillhouse.curate.funnel import KEEP, Judge, Row
from stillhouse.errors import UsageError
from stillhouse.records import Verdict
from stillhouse.similar import NearIndex, shared_wording
from stillhouse.text import conversation

Embed = Callable[[Sequence[str]], NDArray[np.float32]]
"""Texts to vectors, [texts, dimensions]; their cosine is how much two texts say the same."""

_BETWEEN = "¶ ¶"  # prompt and answer, so that no 3 tokens in a row are of both
_COMPARED = 4096  # vectors of a block that a batch is compared with at once


def first_of_its_kind() -> Judge:
    """Drops a row whose normalised prompt and answer were seen before; about 100 bytes are kept of each."""
    seen: set[bytes] = set()

    def unseen(row: Row) -> Verdict:
        turns = [(m["role"], m["content"]) for m in row["messages"]]
        text = conversation([*turns, ("assistant", row["answer"])])
        mark = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if mark in seen:
            return Verdict("drop", "duplicate")
        seen.add(mark)
        return KEEP

    return lambda rows: [unseen(row) for row in rows]


def unlike_the_kept(threshold: float, sample: Iterable[Row]) -> Judge:
    """Drops a row whose prompt and answer together, and whose answer alone, have at least this Jaccard
    similarity with a kept row (see `similar.NearIndex`).

    What more than half of a family's rows in `sample` say does not count: else rows that differ in nothing
    but a sentence after a long instruction would all be near duplicates.
    """
    wording = shared_wording((row["family"], prompt_of(row)) for row in sample)
    index = NearIndex(threshold, wording=wording)

    def judge(rows: Sequence[Row]) -> list[Verdict]:
        answers = [f"{_BETWEEN} {row['answer']}" for row in rows]
        texts = [f"{prompt_of(row)} {answer}" for row, answer in zip(rows, answers, strict=True)]
        repeats = index.add_batch(texts, answers)
        return [KEEP if repeat is None else Verdict("drop", "near duplicate") for repeat in repeats]

    return judge


def saying_something_new(threshold: float, embed: Embed) -> Judge:
    """Drops a row whose vector has at least this cosine with that of a kept row.

    Every row is compared with every kept one: n * n / 2 products, minutes from 100,000 rows on.
    """
    kept: list[NDArray[np.float32]] = []

    def judge(rows: Sequence[Row]) -> list[Verdict]:
        vectors = embed([f"{prompt_of(row)}\n{row['answer']}" for row in rows]).astype(np.float32)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        new = np.ones(len(rows), dtype=np.bool_)
        for block in kept:
            new &= (vectors @ block.T).max(axis=1) < threshold
        own = vectors @ vectors.T
        for place in range(len(rows)):
            new[place] &= not (own[place, :place][new[:place]] >= threshold).any()
        fresh = vectors[new]
        if kept and len(kept[-1]) + len(fresh) <= _COMPARED:
            kept[-1] = np.concatenate((kept[-1], fresh))
        elif len(fresh):
            kept.append(fresh)
        return [KEEP if one else Verdict("drop", "semantic duplicate") for one in new]

    return judge


def embedder(model: str) -> Embed:
    """A Model2Vec model, a folder or a hub id. Raises UsageError where it, or the package, is not there."""
    try:
        from model2vec import StaticModel
    except ImportError:
        raise UsageError(
            "model2vec is not installed",
            "`curate.semantic_duplicates` needs it",
            "pip install 'stillhouse[semantic]'",
        ) from None
    try:
        loaded = StaticModel.from_pretrained(model)
    except Exception as error:
        raise UsageError(
            f"{model} is no Model2Vec model", str(error).splitlines()[0], "mend `curate.embedding`"
        ) from None
    return lambda texts: np.asarray(loaded.encode(list(texts)), dtype=np.float32)


def prompt_of(row: Row) -> str:
    """The messages of a row as one text, without their roles."""
    return "\n".join(message["content"] for message in row["messages"])
