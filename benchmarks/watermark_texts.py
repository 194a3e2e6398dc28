"""Texts that bear no mark, cut into windows: by people, by models, from templates, and caught in a loop."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
from rows import DATA
from tokenizers import Tokenizer

from stillhouse.models import source_folder
from stillhouse.models.embedded import world
from stillhouse.watermark import word_ids
from stillhouse.watermark.hashing import Ids

WINDOW = 200  # tokens, or words
LINES = 500  # encoded at once
GPT2 = DATA / "tokenizers" / "gpt2.json"
DESK = Path(source_folder("embedded:desk")) / "tokenizer.json"


@cache
def stories() -> list[str]:
    """TinyStories: written by a model, for children."""
    whole = (DATA / "text" / "tinystories_sample_2MB.txt").read_text()
    return [one.strip() for one in whole.split("<|endoftext|>") if len(one) > 200]


def human(windows: int) -> str:
    """Shakespeare's plays, and questions of school mathematics where these do not suffice."""
    plays = (DATA / "text" / "tinyshakespeare.txt").read_text()
    rows = (DATA / "math" / "gsm8k_train.jsonl").read_text().splitlines()
    return plays + "\n" + "\n".join(json.loads(row)["question"] for row in rows)


def models(windows: int) -> str:
    """Answers of text-davinci-003 to Alpaca's instructions, then TinyStories."""
    rows = json.loads((DATA / "prompts" / "alpaca_5000.json").read_text())
    return "\n".join(row["output"] for row in rows) + "\n" + "\n".join(stories())


def templated(windows: int) -> str:
    """The support desk's answers, those of one template after each other: the same sentences with other names
    and numbers, as in a file of form letters."""
    made = list(islice(world.examples("train", 5), 24 * windows))
    made.sort(key=lambda example: (example.prompt.family, example.prompt.group))
    return "\n".join(example.answer for example in made)


KINDS = {"human": human, "model": models, "templated": templated, "looping": models}
LOOP = 40  # tokens that a looping window says again and again, as models do that have lost their way


def windows(kind: str, count: int, tokenizer: Path = GPT2) -> list[Ids]:
    """So many disjoint windows of `WINDOW` tokens."""
    encoder = Tokenizer.from_file(str(tokenizer))

    def encoded(lines: Sequence[str]) -> Ids:
        batches = encoder.encode_batch([line + "\n" for line in lines], add_special_tokens=False)
        return np.array([at for one in batches for at in one.ids], dtype=np.int64)

    return _cut(kind, encoded, count)


def word_windows(kind: str, count: int) -> list[Ids]:
    return _cut(kind, lambda lines: word_ids("\n".join(lines)), count)


def _cut(kind: str, encoded: Callable[[Sequence[str]], Ids], count: int) -> list[Ids]:
    """From the first lines of the text: no more are encoded than it takes."""
    lines = [line for line in KINDS[kind](count).split("\n") if line.strip()]
    ids = np.zeros(0, dtype=np.int64)
    for begin in range(0, len(lines), LINES):
        ids = np.concatenate([ids, encoded(lines[begin : begin + LINES])])
        if len(ids) >= count * WINDOW:
            break
    else:
        raise SystemExit(f"{len(ids):,} tokens give no {count:,} windows of {WINDOW}")
    found = ids[: count * WINDOW].reshape(count, WINDOW)
    return list(np.tile(found[:, :LOOP], WINDOW // LOOP) if kind == "looping" else found)
