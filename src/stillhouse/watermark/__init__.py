"""Marks in what a model writes, and their detection. Only `marking` needs torch."""

from stillhouse.watermark.detect import Evidence, Part, among_keys, contexts, evidence, parts, word_ids
from stillhouse.watermark.keys import (
    Key,
    account_key,
    chosen,
    decoy_keys,
    new_key,
    read_key,
    rotate,
    workspace_keys,
    write_key,
)
from stillhouse.watermark.schemes import SCHEMES, Gumbel, Kgw, Scheme, Selection, Tournament

__all__ = [
    "SCHEMES",
    "Evidence",
    "Gumbel",
    "Key",
    "Kgw",
    "Part",
    "Scheme",
    "Selection",
    "Tournament",
    "account_key",
    "among_keys",
    "chosen",
    "contexts",
    "decoy_keys",
    "evidence",
    "new_key",
    "parts",
    "read_key",
    "rotate",
    "word_ids",
    "workspace_keys",
    "write_key",
]
