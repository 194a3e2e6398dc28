"""How a training uses the machine: number format, threads, and memory against time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from stillhouse.errors import ModelError, UsageError


def resolved_dtype(dtype: str, device: str) -> str:
    """What forward runs in: `auto` is bfloat16 where the device has it in hardware, else float32."""
    return dtype if dtype != "auto" else "bfloat16" if has_bf16(device) else "float32"


def autocast(dtype: str, device: str) -> Callable[[], AbstractContextManager[Any]]:
    """Makes the context in which forward runs."""
    return lambda: torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")


def has_bf16(device: str) -> bool:
    """Whether the device multiplies bf16 matrices in hardware (CPU: AVX512-BF16 or AMX)."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device != "cpu":
        return False
    has = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")]
    return any(check() for check in has if check is not None)


def draws(model: Any) -> bool:
    """Whether the model draws random numbers in training, as dropout does."""
    rates = [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    rates += [rate for name, rate in model.config.to_dict().items() if "drop" in name]
    return any(isinstance(rate, int | float) and rate > 0 for rate in rates)


@contextmanager
def workers(threads: int, shared: bool) -> Iterator[Executor | None]:
    """Two workers with half of the torch threads each, None where there is one or the work is not to be
    shared. That is for batches on a CPU that need not be cut, of models that draw nothing: two threads
    would draw from one generator in any order.

    Operations of small models are too short to be shared by threads, half batches are not. The process's
    own number of threads is put back after.
    """
    before = torch.get_num_threads()
    shared = shared and threads > 1
    torch.set_num_threads(threads // 2 if shared else threads)
    try:
        with ThreadPoolExecutor(2) if shared else nullcontext() as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def recompute(causal: Any) -> None:
    """Keep of each layer what enters it, and make the rest again for backward: a third more work, and memory
    for one layer's activations in place of all. The result is the same, bit for bit.

    Raises UsageError for a model whose layers cannot.
    """
    kept = {"use_reentrant": False, "preserve_rng_state": draws(causal)}
    try:
        causal.activation_checkpointing_enable(activation_checkpointing_kwargs=kept)
    except ValueError as error:
        raise UsageError(
            "the student cannot be trained with `train.gradient_checkpointing`",
            str(error)[:300],
            "leave it out, and lower `train.micro_tokens` where memory is short",
        ) from error


@contextmanager
def out_of_memory(step: int, device: Any) -> Iterator[None]:
    """Says what to lower where memory runs out within."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        raise _out_of_memory(error, step, device) from error


def _out_of_memory(error: BaseException, step: int, device: Any) -> BaseException:
    text = str(error).lower()
    memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
    if not memory and "out of memory" not in text and "can't allocate memory" not in text:
        return error
    return ModelError(
        f"out of memory at training step {step + 1}",
        f"a batch does not fit on {device}",
        "set or lower `train.micro_tokens`, which changes nothing else, set `train.gradient_checkpointing`, "
        "lower `train.batch_tokens` or `train.max_length`, or train a LoRA adapter; the last checkpoint is "
        "intact",
    )
