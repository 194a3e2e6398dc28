"""The training loop: one flat function over rows, a model and an optimiser."""

from __future__ import annotations

import hashlib
import json
import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillhouse import recipe as recipes
from stillhouse.errors import BudgetReached, EndpointError, Interrupted, ModelError, UsageError, storage
from stillhouse.records import Progress, Watch
from stillhouse.train import checkpoint, health
from stillhouse.train.lessons import Lesson
from stillhouse.train.loss import attend_in_float32
from stillhouse.train.losses import head_of
from stillhouse.train.machine import autocast, draws, out_of_memory, recompute, resolved_dtype, workers
from stillhouse.train.on_policy import OwnText, check_health
from stillhouse.train.optimisers import learning_rate, make_optimisers, set_rate
from stillhouse.train.processes import ALONE, Processes
from stillhouse.train.rows import Row, epoch_batches, together
from stillhouse.train.shards import divide, gathered, own_part, own_parts, place
from stillhouse.train.standing import Best, Standing, standing
from stillhouse.train.step import SCORES, Stepped, Turn, Way, Work, measure, take_turn, train_step
from stillhouse.train.tracking import Track, untracked

WATCH_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class Trained:
    """Losses in nats per token; `tokens` counts all real tokens read, `target_tokens` those with a loss.

    `loss` is the mean over the target tokens of the last epoch's steps, `dtype` what the forward pass ran in,
    and `own` what the student's own text was like in the last epoch, None where it wrote none. `best` is
    where the held-out loss was lowest; a training with patience ends with the weights of then, and perhaps
    after fewer `epochs` than were asked for.
    """

    steps: int
    tokens: int
    target_tokens: int
    seconds: float
    loss: float
    held_out: float | None
    dtype: str
    best: Best
    epochs: float
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
    processes: Processes = ALONE,
    track: Track = untracked,
    beside: Sequence[Row] = (),
) -> Trained:
    """Train `model` in place; continue from the newest checkpoint in `folder` that bears `key`.

    Without a `lesson` the text of the rows is learned; with one, all of them have its targets. With `own` the
    student writes answers itself to some of the rows at each step, and learns of them what `own` teaches.
    Each of the rows `beside` is in the batch of the row of its id, so that all steps weigh them alike.

    The result depends on rows, settings, seed and machine, not on where a run was stopped and resumed: number
    format and threads, which change the order of sums, are those of whoever began. Of several `processes`
    each calls this with the same, and the first writes. One line per step goes to `log` and to `track`.

    Raises UsageError for settings that do not fit; ModelError when the loss is no number, memory runs out or
    another process is gone; Interrupted after Ctrl-C. The last checkpoint is whole in each case.
    """
    # What there is to do: the batches of each epoch follow from the seed alone
    units, rows = together(rows, beside), [*rows, *beside]
    lengths = [sum(len(rows[number].ids) for number in unit) for unit in units]
    shuffled = partial(epoch_batches, lengths, settings.batch_tokens, seed, packed=settings.packing)
    per_epoch, patience = len(shuffled(0)), settings.patience
    steps = max(1, round(settings.epochs * per_epoch))
    _check_patience(patience, held_out)

    # The model: float32 weights, matrix products in bf16 where that is faster
    causal = model.get_base_model() if hasattr(model, "peft_config") else model
    divided = settings.shard and processes.count > 1
    device = place() if divided else causal.device
    state = checkpoint.newest(folder, key)
    dtype = state["dtype"] if state else resolved_dtype(settings.dtype, device.type)
    threads = state["threads"] if state else torch.get_num_threads()
    _make_ready(causal, device, settings)
    head, random = head_of(causal), draws(model)
    shards = divide(causal, head, dtype) if divided else None
    way = Way(lesson, shards.head if shards else head, settings.packing)
    trainable = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    optimisers, precision = make_optimisers(trainable, settings), autocast(dtype, device.type)
    vocabulary, most = causal.get_input_embeddings().num_embeddings, settings.micro_tokens
    work = Work(model, causal, optimisers, settings.clip, precision, vocabulary, most, processes, shards)

    # Where it stands
    now = standing(per_epoch, state and state["standing"])
    processes.check_same((key, now.done))
    if state:
        restore(trainable, optimisers, state)
    began = clock() - (state["seconds"] if state else 0.0)
    del state, head  # as large as student and optimiser, and weights that were shared out
    lines, pace, saved = _kept_lines(log, now.done), Pace(clock), clock()

    def save() -> None:
        content = {"seconds": clock() - began, "dtype": dtype, "threads": threads}
        content |= gathered({"standing": now.content(), **capture(trainable, optimisers)}, processes.first)
        if processes.first:
            kept = 1 if now.ended(steps, patience) else checkpoint.KEPT
            checkpoint.save(folder, key, now.done, content, kept)

    model.train()
    shared = device.type == "cpu" and settings.batch_tokens * vocabulary <= SCORES
    shared = shared and not (random or divided)
    with (
        storage("write", log),
        _writing(log, lines, processes.first) as write,
        interrupts(processes.count > 1) as stopped,
        workers(threads, shared) as two,
    ):
        batches = shuffled(now.done // per_epoch)
        while not now.ended(steps, patience):
            step = now.done
            if step % per_epoch == 0:
                batches = shuffled(step // per_epoch)
            set_rate(optimisers, rate := learning_rate(step, steps, settings))
            if random:
                torch.manual_seed(_seed(seed, step, processes.number))
            with out_of_memory(step, device), saved_where_asking_ends(save):
                places = processes.share(batches[step % per_epoch])
                numbers = [number for place in places for number in units[place]]
                turn = take_turn(rows, numbers, way, own, step, per_epoch, precision)
                stepped = train_step(work, turn.groups, two)
            _check_step(stepped.loss, stepped.norm, step, settings)
            said = _own_figures(turn, stepped, processes) if own else None
            read = round(processes.total(turn.tokens)[0])
            now.take(stepped.loss, stepped.tokens, read, said)
            row: dict[str, Any] = {"step": now.done, "loss": stepped.loss, "lr": rate}
            row |= {"grad_norm": stepped.norm, **({"own": said} if said else {})}
            if held_out and (now.done % per_epoch == 0 or now.done == steps):
                now.measured(measure(work, held_out, settings.batch_tokens, way), patience, trainable)
                row["held_out"] = now.held_out
            time = clock()
            for tell in (write, track):
                tell(row | {"tokens": now.tokens, "seconds": round(time - began, 3)})
            check_health(now.window, now.done)
            ended = now.ended(steps, patience)
            if pace.is_due(time, read) or ended or step == 0:
                _tell(watch, _progress(now, steps, stepped.loss, pace.shown(time), said), stopped)
            stop, due = processes.total(stopped.is_set(), time - saved >= settings.checkpoint_seconds)
            if stop and not ended:
                save()
                raise _interrupted(now.done, steps)
            if due or ended:
                save()
                saved = clock()
    if now.weights is not None:
        now.held_out = now.best.loss
        put_back(trainable, now.weights)
    counts, epochs = (now.done, now.tokens, now.targets), settings.epochs * now.done / steps
    return Trained(*counts, clock() - began, now.loss, now.held_out, dtype, now.best, epochs, now.own)


def _make_ready(causal: Any, device: torch.device, settings: recipes.Train) -> None:
    if device.type == "cpu":
        attend_in_float32(causal)
    if settings.gradient_checkpointing:
        recompute(causal)


@dataclass(slots=True)
class Pace:
    """When to show how far the training is, and how many tokens a second this process has read."""

    clock: Callable[[], float]
    began: float = 0.0
    last: float = 0.0
    tokens: int = 0

    def __post_init__(self) -> None:
        self.began = self.last = self.clock()

    def is_due(self, time: float, tokens: int) -> bool:
        self.tokens += tokens
        return time - self.last >= WATCH_SECONDS

    def shown(self, time: float) -> float:
        self.last = time
        return self.tokens / max(time - self.began, 1e-9)


@contextmanager
def _writing(log: Path, lines: Sequence[str], first: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Writes one JSON line for each row that it is given, after the `lines` that are kept; does so in the
    first process alone."""
    if not first:
        yield lambda row: None
        return
    with log.open("w") as file:
        file.writelines(lines)

        def write(row: dict[str, Any]) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()

        yield write


def _own_figures(turn: Turn, stepped: Stepped, processes: Processes) -> dict[str, float] | None:
    """What the student's own text was like in this step, over all processes; None where none wrote."""
    said = {**turn.figures, **stepped.own} if turn.figures and stepped.own else None
    return health.mean([each for each in processes.gather(said) if each])


def capture(
    trainable: Sequence[tuple[str, Tensor]], optimisers: Sequence[torch.optim.Optimizer]
) -> dict[str, Any]:
    return {
        "weights": {name: value.detach() for name, value in trainable},
        "optimisers": [optimiser.state_dict() for optimiser in optimisers],
    }


def restore(
    trainable: Sequence[tuple[str, Tensor]],
    optimisers: Sequence[torch.optim.Optimizer],
    state: dict[str, Any],
) -> None:
    put_back(trainable, state["weights"])
    for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
        optimiser.load_state_dict(own_parts(saved, optimiser))


def put_back(trainable: Sequence[tuple[str, Tensor]], weights: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in trainable:
            value.copy_(own_part(weights[name], value))


def _seed(seed: int, step: int, process: int) -> int:
    """For what a model draws in a step, so that a training which goes on draws the same."""
    digest = hashlib.sha256(f"{seed}:{step}:{process}".encode()).digest()
    return int.from_bytes(digest[:7], "little")


@contextmanager
def interrupts(launched: bool = False) -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, so that a step is never cut in half; a second Ctrl-C stops at once.

    Processes that were `launched` hear it from the terminal and again from the launcher, which kills them
    itself where they do not end.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(number: int, frame: Any) -> None:
        asked.set()
        if not launched:
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


def _check_patience(patience: int | None, held_out: Sequence[Row]) -> None:
    if patience is not None and not held_out:
        raise UsageError(
            f"`train.patience` = {patience} cannot be kept",
            "no rows are held out, so nothing says when the student ceases to learn",
            "raise `train.held_out`, or leave `train.patience` out",
        )


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


def _progress(now: Standing, steps: int, loss: float, rate: float, own: dict[str, float] | None) -> Progress:
    note = f"loss {loss:.3f}" + (f"  held-out {now.held_out:.3f}" if now.held_out is not None else "")
    if own:
        note += f"  own answers {own['length']:.0f} tokens, {own['truncated']:.0%} cut"
    return Progress("train", now.done, steps, "step", note=f"{note}  {rate / 1000:.1f}k tok/s")


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
def saved_where_asking_ends(save: Callable[[], None]) -> Iterator[None]:
    """Saves where a teacher at an endpoint cannot be asked on. A step asks before it changes anything, so
    that what is saved is the state before it."""
    try:
        yield
    except (Interrupted, BudgetReached, EndpointError):
        save()
        raise
