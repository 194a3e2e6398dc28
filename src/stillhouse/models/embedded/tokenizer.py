"""The desk's tokenizer: byte-level BPE in which every digit is a token of its own.

Trained on the world's training split and its unlabelled text, used by the teacher and the base student
alike, and saved as a `transformers` fast tokenizer with its chat template.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.models.embedded import world
from stillhouse.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY = 768
USER, ASSISTANT, SYSTEM, END, PAD = "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|pad|>"
CONTEXT = 512
# Punctuation before a digit keeps its blank (`, 4`), before a word it leaves it to the word (`,` ` at`),
# so that a word has one form within a sentence and a list of numbers costs few tokens.
# A word has one form wherever it stands: after a mark without a blank (`"Ada"`) it is written with a joiner
# and a blank, which decoding takes away again. Copying a value into JSON is then copying of tokens.
JOINER = "\u2060 "
MARKS = "\"'([{</-&=+*#@_~"
PIECES = r"\p{N}| ?\p{L}+|[^\p{L}\p{N}]+(?=\p{N})|[^\p{L}\p{N}]+?(?= \p{L})|[^\p{L}\p{N}]+"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train(folder: Path, *, questions: int = 20_000, passages: int = 20_000, seed: int = 1) -> None:
    """Train the tokenizer and write it into `folder`; the same seed gives the same pieces."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    joined = [normalizers.Replace(Regex(f"\\{mark}(?=\\p{{L}})"), mark + JOINER) for mark in MARKS]
    tokenizer.normalizer = normalizers.Sequence(joined)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace(JOINER, "")])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, END, USER, ASSISTANT, SYSTEM],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(questions, passages, seed), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT, SYSTEM],
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    folder.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(folder)


def load(folder: Path) -> PreTrainedTokenizerFast:
    from transformers import AutoTokenizer

    loaded: Any = AutoTokenizer.from_pretrained(folder)
    return loaded


def opening(messages: tuple[Message, ...]) -> str:
    """The text up to where the assistant begins, equal to the chat template's."""
    return "".join(f"<|{message.role}|>{message.content}{END}" for message in messages) + ASSISTANT


def _corpus(questions: int, passages: int, seed: int) -> Iterator[str]:
    for example in islice(world.examples("train", seed), questions):
        yield example.prompt.messages[0].content
        yield example.answer
    yield from islice(world.text(seed), passages)
