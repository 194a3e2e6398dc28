"""From a folder or hub id to a model that is ready, and from messages to its token ids."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from stillhouse.errors import ModelError, UsageError
from stillhouse.models import reading, source_folder
from stillhouse.models.reading import Reader, first_line, load_part, stop_ids
from stillhouse.models.vocabulary import byte_table, token_bytes
from stillhouse.records import Message

_SMALL_MODEL = 20_000_000  # weights
_UNSET_LENGTH = 1_000_000  # tokenizers write 1e30 when they know no limit


@dataclass(frozen=True, slots=True)
class LocalModel:
    """`context` is the longest sequence in tokens, None when the model does not say."""

    source: str
    folder: str
    model: Any
    tokenizer: Any
    stop_ids: frozenset[int]
    has_chat_template: bool
    context: int | None

    @property
    def reader(self) -> Reader:
        return Reader(self.tokenizer, self.stop_ids)


def load_model(source: str, dtype: str = "auto", device: str | None = None) -> LocalModel:
    """Load a causal language model and its tokenizer, ready to answer, on `device` or the best there is.

    `source` is `embedded:NAME`, a folder or a hub id. `dtype` is `auto`, `float32`, `bfloat16` or `float16`;
    `auto` is float32 on a CPU, bfloat16 on CUDA (float16 where it has none) and float16 on MPS.

    Raises ModelError when it is not a usable causal language model.
    """
    folder = source_folder(source)
    device = device or best_device()
    config = load_part("configuration", source, folder)
    tokenizer = load_part("tokenizer", source, folder)
    model = _load_weights(source, folder, config, _dtype(dtype, device)).to(device)
    if device == "cpu" and model.dtype == torch.float32:
        _multiply_by_onednn(model)
    limits = [
        getattr(config, name, None)
        for name in ("max_position_embeddings", "n_positions", "max_sequence_length")
    ]
    limits.append(getattr(tokenizer, "model_max_length", None))
    known = [int(n) for n in limits if isinstance(n, int | float) and 0 < n < _UNSET_LENGTH]
    return LocalModel(
        source=source,
        folder=folder,
        model=model,
        tokenizer=tokenizer,
        stop_ids=_stop_ids(model, tokenizer),
        has_chat_template=bool(getattr(tokenizer, "chat_template", None)),
        context=known[0] if known else None,
    )


def best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _dtype(name: str, device: str) -> Any:
    if name != "auto":
        dtype = getattr(torch, name, None)
        if name not in {"float32", "bfloat16", "float16"}:
            raise UsageError(f"no number format {name!r}", "", "use auto, float32, bfloat16 or float16")
        return dtype
    if device == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.float16 if device == "mps" else torch.float32


def _load_weights(source: str, folder: str, config: Any, dtype: Any) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, output_loading_info=True
        )
    except Exception as error:  # as above, and SafetensorError
        raise ModelError(
            f"could not load the weights of {source}",
            first_line(error),
            "check that the folder holds a whole causal language model; copy or download it again",
        ) from error
    finally:
        logging.set_verbosity(shown[0])
        if shown[1]:
            logging.enable_progress_bar()
    if lacking := sorted(loading["missing_keys"]) + sorted(str(k) for k in loading["mismatched_keys"]):
        raise ModelError(
            f"the weights of {source} are not complete",
            f"{len(lacking)} tensors are missing or of another shape, the first is {lacking[0]}",
            "a model with random parts would answer nonsense; copy or save the model again",
        )
    return model.eval().requires_grad_(False)


_onednn_linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


class _AnswerLinear(torch.nn.Linear):  # type: ignore[misc]
    """A linear layer that oneDNN multiplies; it has no backward pass."""

    def forward(self, x: Any) -> Any:
        return _onednn_linear(x, self.weight, self.bias, "none", [], "")  # type: ignore[misc]


def _multiply_by_onednn(model: Any) -> None:
    """Let float32 linear layers be multiplied by oneDNN, where torch has it, instead of by its BLAS.

    Measured on an AMD EPYC with AVX-512, one thread, 2,048 and 64 rows by 256 x 688: 2.3 and 1.9 times as
    fast; a row's result has the same bits in every batch of two or more rows (BLAS: of four or more).
    """
    if torch.backends.mkldnn.is_available() and _onednn_linear is not None:
        for layer in model.modules():
            if type(layer) is torch.nn.Linear:
                layer.__class__ = _AnswerLinear


def make_differentiable(model: LocalModel) -> None:
    """Give linear layers that were made for answering only their own kernels back, for training."""
    for layer in model.model.modules():
        if type(layer) is _AnswerLinear:
            layer.__class__ = torch.nn.Linear


def _stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    holders = (getattr(model, "generation_config", None), model.config, tokenizer)
    return stop_ids(getattr(holder, "eos_token_id", None) for holder in holders)


@contextmanager
def threads_for(model: LocalModel) -> Iterator[None]:
    """Within the block torch uses as many threads as serve this model well; one core is left to the rest
    of the process, as the HTTP side. Cores are counted that this process may use.

    One for a small model: its operations are too short to be worth sharing, and where cores are busy each of
    them would wait for the thread that was not scheduled. Measured with 4 M weights on 2 busy cores: one
    thread answers 5 times as many requests as two.
    """
    before = torch.get_num_threads()
    small = parameters(model) < _SMALL_MODEL
    torch.set_num_threads(1 if small else max(1, _cores() - 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def workers_for(model: LocalModel) -> int:
    """How many threads may run this model side by side, each with a batch of its own.

    A small model on a CPU gets one for each core: what cannot share an operation can share the requests.
    """
    return _cores() if model.model.device.type == "cpu" and parameters(model) < _SMALL_MODEL else 1


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: containers and `taskset` allow fewer than there are
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def parameters(model: LocalModel) -> int:
    """Number of weights, tied ones once."""
    return sum(p.numel() for p in model.model.parameters())


def prompt_ids(model: LocalModel, messages: Sequence[Message]) -> list[int]:
    """As `models.reading.prompt_ids`."""
    return reading.prompt_ids(model.reader, messages)


def text_ids(model: LocalModel, text: str) -> list[int]:
    """As `models.reading.text_ids`."""
    return reading.text_ids(model.reader, text)


def ids_text(model: LocalModel, ids: Sequence[int]) -> str:
    """The text of token ids, without special tokens."""
    text: str = model.tokenizer.decode(
        list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text


@dataclass(frozen=True, slots=True)
class Token:
    """A token's own bytes; a special one has a name and no text."""

    raw: bytes
    name: str
    special: bool


def vocabulary(model: LocalModel) -> list[Token]:
    """Every token id's bytes, read from the tokenizer's own notation.

    `name` is the text, or `bytes:\\x..` where the bytes are no whole characters, as OpenAI writes it.
    """
    tokenizer = model.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    byte_level = backend is not None and "ByteLevel" in str(backend.decoder)
    special = set(getattr(tokenizer, "all_special_ids", ()))
    table = byte_table() if byte_level else {}
    found = []
    for at in range(max(len(tokenizer), 1)):
        written = tokenizer.convert_ids_to_tokens(at) or ""
        raw = written.encode() if at in special else token_bytes(written, table)
        found.append(Token(raw, _token_name(raw), at in special))
    return found


def _token_name(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
