"""What every token of a tokenizer spells, in bytes, read from its `tokenizer.json`. No torch, no network.

Three notations are in use. Byte-level BPE writes each byte as a printable character (GPT-2's table).
SentencePiece writes a blank as U+2581 and single bytes as `<0x0A>`. Others write their text as it is.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from stillhouse.errors import ModelError

_BLANK = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_JOINING = ("ByteLevel", "Fuse")
_READABLE = {*_JOINING, "ByteFallback", "Strip", "Replace", "Metaspace"}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of a tokenizer by id: `raw` is what each spells, b"" for an id without a token.

    A special token spells its name and is found in `specials`; `ids` finds the others. Where several spell
    the same, `ids` has the one that texts are made of, not the single byte. `replaced` is what the decoder
    changes in a text after its tokens were joined. `digest` is the tokenizer's identity: SHA-256 (hex) over
    what its ids spell, which of them are special, and its merges or scores. How it cuts words or pads changes
    no id's meaning and is left out.
    """

    raw: tuple[bytes, ...]
    ids: Mapping[bytes, int]
    specials: Mapping[bytes, int]
    replaced: tuple[tuple[str, str], ...]
    digest: str

    def text(self, spelt: bytes) -> str:
        """The text of joined tokens; the blank that SentencePiece puts before a text is not taken away."""
        text = spelt.decode("utf-8", "replace")
        for old, new in self.replaced:
            text = text.replace(old, new)
        return text


def read_vocabulary(tokenizer: str | bytes) -> Vocabulary:
    """Read a `tokenizer.json`, or what `tokenizer.backend_tokenizer.to_str()` gives.

    Raises ModelError for anything else, and for a tokenizer whose tokens have no bytes of their own
    (WordPiece).
    """
    try:
        said = json.loads(tokenizer)
        model, added = said["model"], said.get("added_tokens") or []
        scored = isinstance(model["vocab"], list)
        listed = enumerate(piece for piece, _ in model["vocab"]) if scored else ()
        pieces = dict(listed) or {at: piece for piece, at in model["vocab"].items()}
        pieces |= {token["id"]: token["content"] for token in added}
        special = {token["id"] for token in added if token.get("special")}
        order = model["vocab"] if scored else [_pair(merge) for merge in model.get("merges") or []]
        steps = _steps(said.get("decoder"))
        replaced = _replacements(steps)
        table = byte_table() if any(step["type"] == "ByteLevel" for step in steps) else {}
        raw = [b""] * (max(pieces) + 1)
        for at, piece in pieces.items():
            raw[at] = piece.encode() if at in special else token_bytes(piece, table)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(
            "these are not tokens that can be read",
            f"not a whole tokenizer.json ({type(error).__name__}: {error})",
            "give the tokenizer.json of a fast tokenizer",
        ) from None
    preferred = sorted(pieces.keys() - special, key=lambda at: (_BYTE.fullmatch(pieces[at]) is not None, at))
    identity = [[at, raw[at].hex(), at in special] for at in sorted(pieces)]
    return Vocabulary(
        raw=tuple(raw),
        ids={raw[at]: at for at in reversed(preferred) if raw[at]},
        specials={raw[at]: at for at in sorted(special, reverse=True)},
        replaced=replaced,
        digest=hashlib.sha256(json.dumps([identity, order]).encode()).hexdigest(),
    )


def token_bytes(written: str, table: Mapping[str, int]) -> bytes:
    """What a token spells, as its tokenizer writes it; `table` is empty where that is not of the byte-level
    kind, whose decoder takes a token with a character outside the table for its own text."""
    if table:
        known = all(character in table for character in written)
        return bytes(table[character] for character in written) if known else written.encode()
    if byte := _BYTE.fullmatch(written):
        return bytes.fromhex(byte[1])
    return written.replace(_BLANK, " ").encode("utf-8", "replace")


@cache
def byte_table() -> Mapping[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes, as character -> byte."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(b): b for b in shown} | {chr(256 + n): b for n, b in enumerate(hidden)}


def _steps(decoder: Any) -> list[dict[str, Any]]:
    """The decoder's steps in order. Raises ModelError where a token is written by what stands beside it."""
    steps = decoder["decoders"] if decoder and decoder["type"] == "Sequence" else [decoder] if decoder else []
    kinds = [step["type"] for step in steps]
    if not kinds or not set(kinds) <= _READABLE:
        raise ModelError(
            "the tokens of this tokenizer have no bytes of their own",
            f"its decoder is {' and '.join(kinds) or 'missing'}",
            "use a tokenizer of the byte-level or the SentencePiece kind",
        )
    return list(steps)


def _replacements(steps: list[dict[str, Any]]) -> tuple[tuple[str, str], ...]:
    """What is replaced once the tokens are joined. Raises ModelError for what cannot be done the same way."""
    found, joined = [], False
    for step in steps:
        joined |= step["type"] in _JOINING
        if step["type"] == "Replace":
            old, new = step["pattern"].get("String"), step["content"]
            if joined and old:
                found.append((old, new))
            elif (old, new) != (_BLANK, " "):
                raise ModelError(
                    "the tokens of this tokenizer cannot be read",
                    f"its decoder replaces {step['pattern']} by {new!r}",
                    "use a tokenizer of the byte-level or the SentencePiece kind",
                )
    return tuple(found)


def _pair(merge: Any) -> list[str]:
    """A merge in either of the two ways in which it is written."""
    return merge.split(" ", 1) if isinstance(merge, str) else list(merge)
