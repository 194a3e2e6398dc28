"""Marks in text: false positives on text without one, power, robustness, cost, and the speed of detection.

    .venv/bin/python benchmarks/watermark.py [--quick] [--json FILE] [--folder FOLDER]

Unmarked windows of 200 tokens (of GPT-2's tokenizer; of words for `selection`): written by people, by models,
from templates, and 40 tokens said five times, under many keys. Power on two small real models: stories260K
has about 1.3 nats a token; embedded:desk is so certain of most of its tokens that little can be marked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import torch
import watermark_null as null
import watermark_power as power
import watermark_theirs
from rows import DATA, Row, arguments, header, need, part, show, working_folder
from tokenizers import Tokenizer
from watermark_texts import DESK, templated, windows

from stillhouse.watermark import Gumbel, Key, decoy_keys, evidence

SEED = 7
KEYS, WINDOWS, TEXTS = 200, 1000, 200
QUICK_KEYS, QUICK_WINDOWS, QUICK_TEXTS = 20, 100, 12
FASTEST = 5e5  # tokens/s of one core: a million on two
SECRET = bytes(range(32))


def main() -> None:
    options = arguments((__doc__ or "").split("\n", 1)[0], resumable=True)
    need(DATA)
    torch.set_num_threads(1)
    with working_folder(options.folder) as folder:
        named, size = parts(options.quick).items(), "-quick" if options.quick else ""
        rows = [row for name, make in named for row in part(folder / f"{name}{size}.json", make)]
    show(header(SEED, ["stillhouse", "numpy", "torch", "transformers"]), rows, options.json)


def parts(quick: bool) -> dict[str, Callable[[], list[Row]]]:
    keys, count, texts = (QUICK_KEYS, QUICK_WINDOWS, QUICK_TEXTS) if quick else (KEYS, WINDOWS, TEXTS)
    schemes, edited = (power.QUICK, power.QUICK[:1]) if quick else (power.SCHEMES, power.EDITED)
    rounds = 1 if quick else 3
    like = Key(Gumbel(), SECRET, datetime(2026, 1, 1, tzinfo=UTC))
    tells, desk = power.storyteller(texts), power.desk(5 * texts)
    return {
        "speed": lambda: speed(like, 2 if quick else 10),
        "null": lambda: null.rows(count, decoy_keys(like, keys)),
        "null-theirs": lambda: null.theirs(count, decoy_keys(like, keys)),
        "selection": lambda: power.selection(like, 10 if quick else 100),
        "power": lambda: power.power(tells, like, schemes),
        "cost": lambda: power.cost(tells, like, schemes, rounds),
        "robustness": lambda: power.robustness(tells, like, edited),
        "theirs": lambda: watermark_theirs.theirs(tells, like, texts),
        "divergence": lambda: power.divergence(tells, like, max(2, texts // 10)),
        "power-desk": lambda: power.power(desk, like, schemes),
        "cost-desk": lambda: power.cost(desk, like, schemes, rounds),
        "scores": lambda: power.scores(desk, like, schemes),
    }


def speed(like: Key, times: int) -> list[Row]:
    """Tokens judged in a second of one core; a file of answers, then one text."""
    texts = windows("model", 1000)
    text = templated(1000)
    tokenizer = Tokenizer.from_file(str(DESK))
    ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids)
    found = []
    for scheme in null.SCHEMES[:4]:
        many = rate(lambda scheme=scheme: evidence(scheme, like.sip, texts), 200_000, times)
        what = f"detection, {null.label(scheme)}: 1,000 texts of 200 tokens, one core"
        found.append(
            Row(
                what, many, "tokens/s", target=f">= {FASTEST:,.0f}, for 1,000,000 on 2", holds=many >= FASTEST
            )
        )
    one = rate(lambda: evidence(like.scheme, like.sip, [ids]), len(ids), times)
    encoding = rate(lambda: tokenizer.encode(text, add_special_tokens=False), len(ids), 1)
    return [
        *found,
        Row(f"detection, gumbel: one text of {len(ids):,} tokens, one core", one, "tokens/s"),
        Row("  and its tokenizer, from text", encoding, "tokens/s"),
    ]


def rate(work: Callable[[], object], tokens: int, times: int) -> float:
    """Tokens for each second of processor time, the best of some tries."""
    taken = []
    for _ in range(times):
        begun = time.process_time()
        work()
        taken.append(time.process_time() - begun)
    return tokens / min(taken)


if __name__ == "__main__":
    main()
