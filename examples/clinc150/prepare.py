"""Makes the folder from which the run is started: prompts, test rows, the student's tokenizer, recipe, terms.

    python examples/clinc150/prepare.py data_full.json FOLDER

The prompts are the queries of `train` and `oos_train` without their labels: the student learns what the
teacher answers. Labels are written for the test only, with a family, in_scope or oos, for each row.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

PIECES = 4000  # of the tokenizer, labels not counted
PAD, END, ASK = "<|pad|>", "<|end|>", "<|intent|>"
WORDS = r" ?\p{L}+| ?\p{N}|[^\s\p{L}\p{N}]+|\s+"
TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    f"{{% if add_generation_prompt %}}{ASK}{{% endif %}}"
)
HERE = Path(__file__).parent


def train_tokenizer(texts: Sequence[str], labels: Iterable[str], folder: Path) -> None:
    """Byte-level BPE over the queries in which each label is one token, so that an answer is one choice."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Prepend(" ")  # the first word is written as any other
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES,
        special_tokens=[PAD, END, ASK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # A label that is also a word of the queries ("timer") is the same token there.
    whole = {"single_word": True, "lstrip": True, "rstrip": True, "normalized": False}
    tokenizer.add_tokens([AddedToken(label, **whole) for label in sorted(labels)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[ASK],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)


def test_rows(data: dict[str, Any]) -> list[dict[str, str]]:
    """The queries of an intent are one group: they answer one brief. Each out-of-scope query stands alone."""
    inside = [
        {"prompt": text, "reference": label, "family": "in_scope", "group": label}
        for text, label in data["test"]
    ]
    return inside + [{"prompt": text, "reference": "oos", "family": "oos"} for text, _ in data["oos_test"]]


def write_rows(path: Path, rows: Iterable[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the folder from which the run is started.")
    parser.add_argument("data", type=Path, help="CLINC150's data_full.json")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    data = json.loads(options.data.read_text())
    known = [*data["train"], *data["oos_train"]]
    texts = [text for text, _ in known]
    options.folder.mkdir(parents=True, exist_ok=True)
    write_rows(options.folder / "prompts.jsonl", ({"prompt": text} for text in texts))
    write_rows(options.folder / "test.jsonl", test_rows(data))
    train_tokenizer(texts, {label for _, label in known}, options.folder / "tokenizer")
    for name in ("recipe.toml", "terms.txt"):
        shutil.copy(HERE / name, options.folder)


if __name__ == "__main__":
    main()
