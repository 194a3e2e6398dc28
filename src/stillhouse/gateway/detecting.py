"""Looks for the gateway's marks in texts, for whoever holds the admin secret: off the event loop, without
torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from stillhouse.errors import UsageError
from stillhouse.guard import markers, orders
from stillhouse.guard.config import Guard
from stillhouse.recipe.base import Table
from stillhouse.stats import holm
from stillhouse.watermark import Key, account_key, decoy_keys, read_key, word_ids
from stillhouse.watermark.telling import DECOYS, LIMITS, rows, tried, verdict

BODY_BYTES = 1 << 20
ACCOUNTS = 1000
WORK = 20_000_000  # words times keys: some seconds of one core


class Wanted(Table):
    """Texts that are tested as one: what was found of them in one place."""

    texts: list[str] = Field(min_length=1, max_length=10_000)
    accounts: list[orders.Id] | None = Field(
        default=None, min_length=1, max_length=ACCOUNTS, description="Whose keys are tried; else everybody's."
    )


def known_keys(config: Guard) -> list[Key]:
    """The keys that mark, and older ones beside them, the newest first. Keys of another scheme than
    `selection` need the tokenizer of the model that they marked, and are passed over. Raises UsageError for a
    file that holds no key."""
    files = {Path(model.watermark.key).resolve() for model in config.models if model.watermark is not None}
    files |= {path for file in files for path in file.parent.glob("watermark-*.json")}
    keys = {key.id: key for key in map(read_key, sorted(files)) if key.scheme.name == "selection"}
    return sorted(keys.values(), key=lambda key: key.created, reverse=True)


def detected(keys: Sequence[Key], accounts: Sequence[str], texts: Sequence[str]) -> dict[str, Any]:
    """The evidence of every key, the strongest first, and what it does not say. Raises UsageError without
    keys or accounts, and for more than can be tried at once."""
    if not keys:
        raise UsageError(
            "there is no key to look for",
            "no model has a watermark",
            "`stillhouse watermark detect` takes files",
        )
    if not accounts:
        raise UsageError("there is no account to look for", "each is marked with its own key", "name some")
    ids = [word_ids(text) for text in texts]
    derived = [account_key(key, account) for key in keys for account in accounts]
    words = sum(map(len, ids))
    if words * len(derived) > WORK:
        raise UsageError(
            "this is too much for one look",
            f"{words:,} words and {len(derived):,} keys; at most {WORK:,} of the two multiplied",
            "name fewer accounts, or give fewer texts",
        )
    found, decoys = tried(derived, {"selection": ids})
    selection = {**rows(found, decoys), "verdict": verdict(found)}
    return {"texts": len(texts), **selection, "markers": _markers(derived, texts), "limits": LIMITS}


def _markers(keys: Sequence[Key], texts: Sequence[str]) -> dict[str, Any]:
    """The same of markers, which are a test of their own: where either is asked for alone its p-value holds,
    the smaller of both is to be doubled."""
    seen = markers.seen(texts)
    said = [markers.heard(key, seen) for key in keys]
    adjusted = [1.0 if p is None else p for p in holm([one.p for one in said])]
    found = sorted(zip(keys, said, adjusted, strict=True), key=lambda row: row[1].log_p)
    decoys = [markers.heard(key, seen) for key in decoy_keys(found[0][0], DECOYS)]
    return {**rows(found, decoys), "verdict": verdict(found)}
