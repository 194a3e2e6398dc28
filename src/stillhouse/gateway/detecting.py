"""Looks for the gateway's marks in texts, for whoever holds the admin secret: off the event loop, without
torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from stillhouse.errors import UsageError
from stillhouse.guard import orders
from stillhouse.guard.config import Guard
from stillhouse.recipe.base import Table
from stillhouse.watermark import Key, account_key, read_key, word_ids
from stillhouse.watermark.telling import LIMITS, rows, tried, verdict

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
    return {"texts": len(texts), **rows(found, decoys), "verdict": verdict(found), "limits": LIMITS}
