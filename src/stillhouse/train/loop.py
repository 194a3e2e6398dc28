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
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillhouse import recipe as recipes
from stillhouse.errors import Interrupted, ModelError, storage
from stillhouse.records import Progress, Watch
from stillhouse.train import checkpoint, health
from stillhouse.train.lessons import Lesson
from stillhouse.train.loss import attend_in_float32
from stillhouse.train.losses import head_of
from stillhouse.train.on_policy import OwnText, check_health
from stillhouse.train.rows import Row, epoch_batches
from stillhouse.train.step import SCORES, Way, measure, take_turn, train_step

WATCH_SECONDS = 0.3
OUTER = ("embed", "wte", "wpe", "lm_head")  # in the names of matrices that are tables or heads


@dataclass(frozen=True, slots=True)
class Trained:
    """Losses in nats per token; `tokens` counts all real tokens read, `target_tokens` those with a loss.

    `loss` is the mean over the target tokens of the last epoch's steps, `dtype` what the forward pass ran in,
    and `own` what the student's own text was like in the last epoch, None where it wrote none.
    """

    steps: int
    tokens: int
    target_tokens: int
    seconds: float
    loss: float
    held_out: float | None
    dtype: str
    own: dict[str, float] | None = None


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
    own: OwnText | None = None,
) -> Trained:
    """Train `model` in place; continue from the newest checkpoint in `folder` that bears `key`.

    Without a `lesson` the text of the rows is learned; with one, all of them have its targets. With `own` the
    student writes answers itself to some of the rows at each step, and learns of them what `own` teaches.

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
    way = Way(lesson, head_of(causal))
    if device.type == "cpu":
        attend_in_float32(causal)
    trainable = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    optimisers = make_optimisers(trainable, settings)
    vocabulary = causal.get_input_embeddings().num_embeddings

    # Where it stands
    torch.manual_seed(seed)
    done, tokens, targets, spent, loss, held = 0, 0, 0, 0.0, math.nan, None
    threads = state["threads"] if state else torch.get_num_threads()
    # Of each step its loss, its target tokens and what the student's own text was like
    recent: deque[tuple[float, int, dict[str, float] | None]] = deque(maxlen=per_epoch)
    window = health.Window()
    if state:
        restore(trainable, optimisers, state)
        done, tokens, targets = state["step"], state["tokens"], state["targets"]
        spent, loss, held = state["seconds"], state["loss"], state["held_out"]
        recent.extend(state["recent"])
        window = health.Window(*state["window"])
    lines = _kept_lines(log, done)
    began = clock() - spent
    fresh, fresh_began = 0, clock()  # this process's own tokens, for the rate that is shown
    saved = shown = clock()

    def save() -> None:
        content: dict[str, Any] = {"step": done, "tokens": tokens, "targets": targets}
        content |= {"seconds": clock() - began, "dtype": dtype, "threads": threads}
        content |= {"loss": loss, "held_out": held, "recent": list(recent), "window": astuple(window)}
        content |= capture(trainable, optimisers)
        checkpoint.save(folder, key, done, content, 1 if done == steps else checkpoint.KEPT)

    model.train()
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
            rate = learning_rate(step, steps, settings)
            set_rate(optimisers, rate)
            with out_of_memory(step, device):
                turn = take_turn(rows, batches[step % per_epoch], way, own, step, per_epoch, precision)
                stepped = train_step(
                    model, causal, turn.groups, optimisers, settings.clip, precision, vocabulary, halves=two
                )
            _check_step(stepped.loss, stepped.norm, step, settings)
            loss, done, targets = stepped.loss, step + 1, targets + stepped.tokens
            tokens, fresh = tokens + turn.tokens, fresh + turn.tokens
            said = {**turn.figures, **stepped.own} if turn.figures and stepped.own else None
            window = health.after(window, said)
            recent.append((loss, stepped.tokens, said))
            row: dict[str, Any] = {"step": done, "loss": loss, "lr": rate, "grad_norm": stepped.norm}
            if said:
                row["own"] = said
            if held_out and (done % per_epoch == 0 or done == steps):
                held = measure(model, causal, held_out, settings.batch_tokens, precision, way)
                row["held_out"] = held
            now = clock()
            file.write(json.dumps(row | {"tokens": tokens, "seconds": round(now - began, 3)}) + "\n")
            file.flush()
            check_health(window, done)
            if now - shown >= WATCH_SECONDS or done == steps or step == 0:
                shown = now
                rate_shown = fresh / max(now - fresh_began, 1e-9)
                _tell(watch, _progress(done, steps, loss, held, rate_shown, said), stopped)
            if stopped.is_set() and done < steps:
                save()
                raise _interrupted(done, steps)
            if now - saved >= settings.checkpoint_seconds or done == steps:
                save()
                saved = clock()
    bearing = sum(count for _, count, _ in recent)
    mean = sum(loss * count for loss, count, _ in recent) / max(1, bearing)
    text = health.mean([said for *_, said in recent if said])
    return Trained(steps, tokens, targets, clock() - began, mean, held, dtype, text)


def learning_rate(step: int, steps: int, settings: recipes.Train) -> float:
    """Linear rise over the warm-up, then a half cosine down to `final_rate` of the peak at the last step."""
    warm = round(settings.warmup * steps)
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    progress = (step - warm) / max(1, steps - 1 - warm)
    low = settings.final_rate
    return settings.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))


def set_rate(optimisers: Sequence[torch.optim.Optimizer], rate: float) -> None:
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = rate


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


def _progress(
    done: int, steps: int, loss: float, held: float | None, rate: float, own: dict[str, float] | None
) -> Progress:
    note = f"loss {loss:.3f}" + (f"  held-out {held:.3f}" if held is not None else "")
    if own:
        note += f"  own answers {own['length']:.0f} tokens, {own['truncated']:.0%} cut"
    return Progress("train", done, steps, "step", note=f"{note}  {rate / 1000:.1f}k tok/s")


def _tell(watch: Watch, progress: Progress, stopped: threading.Event) -> None:
    """A watcher may stop the training as well, at the end of the step."""
    try:
        watch(progress)
    except KeyboardInterrupt:
        stopped.set()


def _interrupted(done: int, steps: int) -> Interrupted:
    return Interrupted(
        f"training was stopped at step {done} of {steps}",
        "Ctrl-C; a checkpoint was written",
        "run the same command again to go on from this step",
    )


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
        "lower `train.batch_tokens` or `train.max_length`, or train a LoRA adapter; "
        "the last checkpoint is intact",
    )
