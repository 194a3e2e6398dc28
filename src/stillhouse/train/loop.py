"""The training loop: one flat function over rows, a model and an optimiser."""

from __future__ import annotations

import json
import math
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillhouse import recipe as recipes
from stillhouse.errors import Interrupted, ModelError, storage
from stillhouse.records import Progress, Watch
from stillhouse.train import checkpoint
from stillhouse.train.lessons import Lesson
from stillhouse.train.loss import attend_in_float32, can_gather, sequence_loss, taught_loss, to_device
from stillhouse.train.losses import Head, Targets, head_of
from stillhouse.train.losses.whole import counted
from stillhouse.train.rows import Batch, Row, collate, epoch_batches

SCORES = 1 << 28  # most logits (rows times vocabulary) made at once: 1 GiB in float32
WATCH_SECONDS = 0.3
OUTER = ("embed", "wte", "wpe", "lm_head")  # in the names of matrices that are tables or heads


@dataclass(frozen=True, slots=True)
class Trained:
    """Losses in nats per token; `tokens` counts all real tokens read, `target_tokens` those with a loss.

    `loss` is the mean over the target tokens of the last epoch's steps, `dtype` what the forward pass ran in.
    """

    steps: int
    tokens: int
    target_tokens: int
    seconds: float
    loss: float
    held_out: float | None
    dtype: str


@dataclass(frozen=True, slots=True)
class Way:
    """How a batch's loss is made. `head` is the student's, where a lesson can use it apart from the rest, and
    `gather` says the same of plain cross-entropy."""

    lesson: Lesson | None
    head: Head | None
    gather: bool

    @property
    def narrow(self) -> bool:
        """Whether logits are made of the places that predict, and of no others."""
        return self.gather or self.head is not None


def fit(  # noqa: PLR0915 - the one flat loop reads better whole
    model: Any,
    rows: Sequence[Row],
    held_out: Sequence[Row],
    settings: recipes.Train,
    seed: int,
    folder: Path,
    log: Path,
    key: str,
    watch: Watch,
    clock: Callable[[], float],
    lesson: Lesson | None = None,
) -> Trained:
    """Train `model` in place; continue from the newest checkpoint in `folder` that bears `key`.

    Without a `lesson` the text of the rows is learned; with one, all of them have its targets.

    The result depends on rows, settings, seed and the machine, not on where a run was stopped and resumed:
    number format and number of threads, which change the order of sums, are those of the first process.
    Writes one line per step to `log`. Raises ModelError when the loss is no number or memory runs out, and
    Interrupted after Ctrl-C; the last checkpoint is whole in each case.
    """
    # What there is to do: the batches of each epoch follow from the seed alone
    lengths = [len(row.ids) for row in rows]
    per_epoch = len(epoch_batches(lengths, settings.batch_tokens, seed, 0))
    steps = max(1, round(settings.epochs * per_epoch))

    # The model: float32 weights, matrix products in bf16 where that is faster
    causal = model.get_base_model() if hasattr(model, "peft_config") else model
    state = checkpoint.newest(folder, key)
    device = causal.device
    dtype = state["dtype"] if state else resolved_dtype(settings.dtype, device.type)
    precision = autocast(dtype, device.type)
    way = Way(lesson, head_of(causal) if lesson else None, lesson is None and can_gather(causal))
    if device.type == "cpu":
        attend_in_float32(causal)
    trainable = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    optimisers = make_optimisers(trainable, settings)
    vocabulary = causal.get_input_embeddings().num_embeddings

    # Where it stands
    torch.manual_seed(seed)
    done, tokens, targets, spent, loss, held = 0, 0, 0, 0.0, math.nan, None
    threads = state["threads"] if state else torch.get_num_threads()
    recent: deque[tuple[float, int]] = deque(maxlen=per_epoch)  # loss and target tokens of each step
    if state:
        restore(trainable, optimisers, state)
        done, tokens, targets = state["step"], state["tokens"], state["targets"]
        spent, loss, held = state["seconds"], state["loss"], state["held_out"]
        recent.extend(state["recent"])
    lines = _kept_lines(log, done)
    began = clock() - spent
    fresh, fresh_began = 0, clock()  # this process's own tokens, for the rate that is shown
    saved = shown = clock()

    def save() -> None:
        content: dict[str, Any] = {"step": done, "tokens": tokens, "targets": targets}
        content |= {"seconds": clock() - began, "loss": loss, "held_out": held, "recent": list(recent)}
        content |= {"dtype": dtype, "threads": threads}
        content |= capture(trainable, optimisers)
        checkpoint.save(folder, key, done, content, 1 if done == steps else checkpoint.KEPT)

    model.train()
    how = precision, way, vocabulary
    shared = device.type == "cpu" and settings.batch_tokens * vocabulary <= SCORES and not draws(model)
    with (
        storage("write", log),
        log.open("w") as file,
        interrupts() as stopped,
        workers(threads, shared) as two,
    ):
        file.writelines(lines)
        batches = epoch_batches(lengths, settings.batch_tokens, seed, done // per_epoch)
        for step in range(done, steps):
            if step % per_epoch == 0:
                batches = epoch_batches(lengths, settings.batch_tokens, seed, step // per_epoch)
            chosen = [rows[i] for i in batches[step % per_epoch]]
            rate = learning_rate(step, steps, settings)
            for group in (group for optimiser in optimisers for group in optimiser.param_groups):
                group["lr"] = rate
            try:
                loss, norm, count = train_step(
                    model, causal, chosen, optimisers, settings.clip, *how, halves=two
                )
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                raise _out_of_memory(error, step, device) from error
            _check_step(loss, norm, step, settings)
            done, tokens, targets = step + 1, tokens + sum(len(r.ids) for r in chosen), targets + count
            fresh += sum(len(r.ids) for r in chosen)
            recent.append((loss, count))
            row: dict[str, Any] = {"step": done, "loss": loss, "lr": rate, "grad_norm": norm}
            if held_out and (done % per_epoch == 0 or done == steps):
                held = measure(model, causal, held_out, settings.batch_tokens, precision, way)
                row["held_out"] = held
            now = clock()
            file.write(json.dumps(row | {"tokens": tokens, "seconds": round(now - began, 3)}) + "\n")
            file.flush()
            try:
                if now - shown >= WATCH_SECONDS or done == steps or step == 0:
                    shown = now
                    watch(_progress(done, steps, loss, held, fresh / max(now - fresh_began, 1e-9)))
            except KeyboardInterrupt:
                stopped.set()
            if stopped.is_set() and done < steps:
                save()
                raise Interrupted(
                    f"training was stopped at step {done} of {steps}",
                    "Ctrl-C; a checkpoint was written",
                    "run the same command again to go on from this step",
                )
            if now - saved >= settings.checkpoint_seconds or done == steps:
                save()
                saved = clock()
    mean = sum(loss * count for loss, count in recent) / max(1, sum(count for _, count in recent))
    return Trained(steps, tokens, targets, clock() - began, mean, held, dtype)


def train_step(
    model: Any,
    causal: Any,
    rows: Sequence[Row],
    optimisers: Sequence[torch.optim.Optimizer],
    clip: float,
    precision: Callable[[], AbstractContextManager[Any]],
    way: Way,
    vocabulary: int,
    parts: int | None = None,
    halves: Executor | None = None,
) -> tuple[float, float, int]:
    """One optimiser step over `rows`: loss in nats per token, gradient norm before clipping, tokens with a
    loss.

    The rows are cut into parts where all their logits at once would be too many; each part's loss is
    divided by the tokens of the whole, so the gradient is that of one batch. With `halves`, an executor of
    two threads, a batch that need not be cut is worked in two parts at once. A step whose loss or gradient
    is not finite changes nothing.
    """
    predicting = sum(len(row.ids) - row.start for row in rows)
    wide = predicting if way.narrow else len(rows) * max(len(row.ids) for row in rows)
    needed = parts or math.ceil(wide * vocabulary / SCORES)
    parts = min(len(rows), max(needed, 2) if halves else needed)

    prepared = [_prepared(rows[part::parts], way, causal.device) for part in range(parts)]
    count = sum(number for _, _, number in prepared)

    def backward(part: int) -> Tensor:
        batch, targets, _ = prepared[part]
        with precision():
            loss = _loss(causal, batch, targets, way) / max(count, 1)
        loss.backward()
        return loss.detach()

    if halves is not None and parts == 2:
        losses = list(halves.map(backward, range(2)))  # a + b = b + a: which half ends first changes nothing
    else:
        losses = [backward(part) for part in range(parts)]
    total = torch.stack(losses).sum()
    norm = float(torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], clip))
    value = float(total)
    for optimiser in optimisers:
        if math.isfinite(value) and math.isfinite(norm):
            optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return value, norm, count


def measure(
    model: Any,
    causal: Any,
    rows: Sequence[Row],
    batch_tokens: int,
    precision: Callable[[], AbstractContextManager[Any]],
    way: Way,
) -> float:
    """Mean loss over the rows' target tokens, in nats per token, without touching the model."""
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad(), precision():
        for chosen in epoch_batches([len(row.ids) for row in rows], batch_tokens, 0, 0):
            batch, targets, n = _prepared([rows[i] for i in chosen], way, causal.device)
            total, count = total + float(_loss(causal, batch, targets, way)), count + n
    model.train()
    return total / max(count, 1)


def _prepared(rows: Sequence[Row], way: Way, device: Any) -> tuple[Batch, Targets | None, int]:
    """A batch, what the lesson has for it, and how many of its places bear a loss."""
    batch = to_device(collate(rows), device)
    if way.lesson is None:
        return batch, None, len(batch.targets_N)
    targets = way.lesson.targets(rows, batch)
    return batch, targets, counted(targets, way.lesson.objective, len(batch.targets_N))


def _loss(causal: Any, batch: Batch, targets: Targets | None, way: Way) -> Tensor:
    """The sum over the batch's places, in nats."""
    if way.lesson is None or targets is None:
        return sequence_loss(causal, batch, way.gather)[0]
    return taught_loss(causal, batch, way.head, targets, way.lesson)


def learning_rate(step: int, steps: int, settings: recipes.Train) -> float:
    """Linear rise over the warm-up, then a half cosine down to `final_rate` of the peak at the last step."""
    warm = round(settings.warmup * steps)
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    progress = (step - warm) / max(1, steps - 1 - warm)
    low = settings.final_rate
    return settings.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))


def make_optimisers(
    trainable: Sequence[tuple[str, Tensor]], settings: recipes.Train
) -> list[torch.optim.Optimizer]:
    """AdamW in one fused kernel, weight decay on matrices only; or Muon for the matrices within the layers
    (Jordan 2024, its rate scaled to AdamW's as by Liu et al. 2025) and AdamW for the rest."""
    muon = settings.optimiser == "muon"
    inner = [v for n, v in trainable if muon and v.ndim == 2 and not any(part in n for part in OUTER)]
    chosen = {id(value) for value in inner}
    rest = [value for _, value in trainable if id(value) not in chosen]
    groups = [
        {"params": [v for v in rest if v.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [v for v in rest if v.ndim < 2], "weight_decay": 0.0},
    ]
    fused = {value.device.type for value in rest} <= {"cpu", "cuda"}
    rate = settings.learning_rate
    optimisers: list[torch.optim.Optimizer] = []
    if groups := [group for group in groups if group["params"]]:
        optimisers.append(torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=fused))
    if inner:
        decay = settings.weight_decay
        optimisers.append(
            torch.optim.Muon(inner, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        )
    return optimisers


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


def capture(
    trainable: Sequence[tuple[str, Tensor]], optimisers: Sequence[torch.optim.Optimizer]
) -> dict[str, Any]:
    random: dict[str, Tensor] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random["cuda"] = torch.cuda.get_rng_state()
    return {
        "weights": {name: value.detach() for name, value in trainable},
        "optimisers": [optimiser.state_dict() for optimiser in optimisers],
        "random": random,
    }


def restore(
    trainable: Sequence[tuple[str, Tensor]],
    optimisers: Sequence[torch.optim.Optimizer],
    state: dict[str, Any],
) -> None:
    with torch.no_grad():
        for name, value in trainable:
            value.copy_(state["weights"][name])
    for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
        optimiser.load_state_dict(saved)
    torch.set_rng_state(state["random"]["cpu"])
    if "cuda" in state["random"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["random"]["cuda"])


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


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, so that a step is never cut in half; a second Ctrl-C stops at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(number: int, frame: Any) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def _kept_lines(log: Path, step: int) -> list[str]:
    """The lines of an earlier process up to `step`: what it wrote after its last checkpoint is done again."""
    if step == 0 or not log.is_file():
        return []
    kept = []
    for line in log.read_text().splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    return kept


def _check_step(loss: float, norm: float, step: int, settings: recipes.Train) -> None:
    """Raises ModelError where a step learnt nothing: no finite number, or no gradient."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise ModelError(
            f"training went astray at step {step + 1}: loss {loss}, gradient norm {norm}",
            "the loss or its gradient is no longer a finite number",
            f"lower `train.learning_rate` (it is {settings.learning_rate:g}), raise `train.warmup`, "
            'or set `train.dtype = "float32"`; the last checkpoint is intact',
        )
    if norm == 0 and loss > 0.01:
        raise ModelError(
            f"the student does not learn: zero gradient at step {step + 1} with a loss of {loss:.3f}",
            "no gradient reaches the weights through this model's layers",
            "start from another student, or report this with the model's name",
        )


def _progress(done: int, steps: int, loss: float, held: float | None, rate: float) -> Progress:
    note = f"loss {loss:.3f}" + (f"  held-out {held:.3f}" if held is not None else "")
    return Progress("train", done, steps, "step", note=f"{note}  {rate / 1000:.1f}k tok/s")


def _out_of_memory(error: BaseException, step: int, device: Any) -> BaseException:
    text = str(error).lower()
    memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
    if not memory and "out of memory" not in text and "can't allocate memory" not in text:
        return error
    return ModelError(
        f"out of memory at training step {step + 1}",
        f"a batch does not fit on {device}",
        "lower `train.batch_tokens` or `train.max_length`, or train a LoRA adapter; "
        "the last checkpoint is intact",
    )
