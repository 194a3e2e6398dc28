"""Learning from pairs of answers: direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290).

The loss, its batches and its loop are those of `trl`'s DPOTrainer; here it is given the very token ids that
the other objectives train on, the optimiser and the course of the learning rate that they have, and what it
reports becomes lines of the same log. The student as it comes here is the reference. Nothing is sent
anywhere: the telemetry of `trl` is off.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer

from stillhouse import recipe as recipes
from stillhouse.errors import Interrupted, ModelError, UsageError, storage
from stillhouse.records import Progress, Watch
from stillhouse.train import checkpoint
from stillhouse.train.loop import interrupts
from stillhouse.train.machine import out_of_memory
from stillhouse.train.optimisers import learning_rate, make_optimisers
from stillhouse.train.pairs import Pairs
from stillhouse.train.tracking import Track, untracked
from stillhouse.workspace import write_json

WATCH_SECONDS = 0.3
WHOLE = "whole.json"  # written into a checkpoint when all else is there


@dataclass(frozen=True, slots=True)
class Preferred:
    """What the pairs did. Losses are in nats per pair: log 2 for a student that has learnt nothing yet.
    `accuracy` is the share of pairs whose chosen answer it has made likelier against the rejected one, and
    `margin` by how many nats, times beta; both are of the last epoch, `held_out_*` of held-out pairs.
    `without` counts the answers that are in no pair, `digest` names those that were learned (see `Pairs`)."""

    pairs: int
    pairs_held_out: int
    without: dict[str, int]
    digest: str
    steps: int
    seconds: float
    loss: float
    accuracy: float
    margin: float
    held_out_loss: float | None
    held_out_accuracy: float | None

    def record(self) -> dict[str, Any]:
        return asdict(self)


def prefer(
    model: Any,
    tokenizer: Any,
    learnt: Pairs,
    held_out: Pairs,
    settings: recipes.Train,
    seed: int,
    dtype: str,
    folder: Path,
    log: Path,
    key: str,
    watch: Watch,
    clock: Callable[[], float],
    track: Track = untracked,
) -> Preferred:
    """Train `model` (with its adapter, where it has one) in place on pairs; go on from the newest whole
    checkpoint in `folder` that bears `key`. Lines are added to `log` and told to `track`, their steps counted
    on.

    Raises UsageError where there are no pairs, ModelError when the loss is no number or memory runs out,
    Interrupted after Ctrl-C.
    """
    how = settings.preference
    assert how is not None
    if not len(learnt):
        raise UsageError(
            "there are no pairs to learn a preference from",
            f"no prompt has an answer to prefer and one to reject: {learnt.without}",
            "collect more answers to each prompt at a higher temperature, or set "
            'train.preference.pairs = "own"',
        )
    longest = max(len(row.ids) for row in (*learnt.chosen, *learnt.rejected))
    size = max(1, settings.batch_tokens // (2 * longest))
    per_epoch = math.ceil(len(learnt) / size)
    steps = max(1, round(how.epochs * per_epoch))
    paced = settings.model_copy(
        update={"learning_rate": how.learning_rate, "optimiser": "adamw", "preference": None}
    )
    trainable = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    (optimiser,) = make_optimisers(trainable, paced)
    rate = LambdaLR(
        optimiser, lambda step: learning_rate(min(step, steps - 1), steps, paced) / how.learning_rate
    )
    reached = newest(folder, key)
    journal = _Journal(
        log,
        key,
        steps,
        per_epoch,
        settings.checkpoint_seconds,
        watch,
        clock,
        reached,
        len(held_out) > 0,
        track,
    )
    causal = model.get_base_model() if hasattr(model, "peft_config") else model
    with _as_it_was(causal, model), _quiet(), interrupts() as stopped, storage("write", folder):
        journal.stopped = stopped
        trainer = _Trainer(
            model=model,
            args=_arguments(folder, settings, how, size, steps, seed, dtype, causal.device.type),
            train_dataset=_dataset(learnt),
            eval_dataset=_dataset(held_out) if len(held_out) else None,
            processing_class=copy.deepcopy(tokenizer),
            callbacks=[journal],
            optimizers=(optimiser, rate),
        )
        trainer.remove_callback(PrinterCallback)
        with out_of_memory(journal.step, causal.device):
            trainer.train(resume_from_checkpoint=str(reached) if reached else None)
        if hasattr(model, "peft_config") and "ref" in model.peft_config:
            model.delete_adapter("ref")
    if journal.step < steps:
        raise Interrupted(
            f"training was stopped at step {journal.step} of {steps} on pairs",
            "Ctrl-C; a checkpoint was written",
            "run the same command again to go on from this step",
        )
    return journal.summary(learnt, len(held_out))


def newest(folder: Path, key: str) -> Path | None:
    """The newest checkpoint of this very training that was written to its end. Others are deleted: the
    trainer takes the highest number for the newest, and would delete what it writes itself."""
    found = []
    for path in folder.glob("checkpoint-*"):
        try:
            ours = json.loads((path / WHOLE).read_bytes())["key"] == key
        except (OSError, ValueError, KeyError, TypeError):
            ours = False
        if ours:
            found.append(path)
        else:
            shutil.rmtree(path, ignore_errors=True)
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


class _Trainer(DPOTrainer):  # type: ignore[misc]
    """Reads token ids as they are given, keeps nothing outside of the run's folder and tells nobody."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        numbers = range(0, len(dataset), batch_size)
        batches = ([dataset[at] for at in range(n, min(n + batch_size, len(dataset)))] for n in numbers)
        found = [
            self.compute_ref_log_probs(self.model, self._prepare_inputs(self.data_collator(batch)))
            for batch in batches
        ]
        for place, column in enumerate(("ref_chosen_logps", "ref_rejected_logps")):
            dataset = dataset.add_column(column, torch.cat([pair[place] for pair in found]).tolist())
        return dataset

    def create_model_card(self, *_: Any, **__: Any) -> None:
        return

    def _send_telemetry(self) -> None:
        return


class _Journal(TrainerCallback):  # type: ignore[misc]
    """Turns what the trainer reports into lines of the log, decides when it saves, and stops it."""

    def __init__(
        self,
        log: Path,
        key: str,
        steps: int,
        per_epoch: int,
        seconds: float,
        watch: Watch,
        clock: Callable[[], float],
        reached: Path | None,
        measures: bool,
        track: Track,
    ) -> None:
        lines = log.read_text().splitlines(keepends=True)
        last = json.loads(lines[-1])
        self.first, self.tokens, self.began_at = last["step"], last["tokens"], last["seconds"]
        self.rows: list[dict[str, Any]] = (
            json.loads((reached / WHOLE).read_bytes())["rows"] if reached else []
        )
        self.log, self.key, self.steps, self.per_epoch, self.every = log, key, steps, per_epoch, seconds
        self.watch, self.clock, self.stopped = watch, clock, threading.Event()
        self.measures, self.track = measures, track
        self.step = len(self.rows)
        self.read = self.rows[-1]["tokens"] - self.tokens if self.rows else 0
        self.began = clock() - (self.rows[-1]["seconds"] - self.began_at if self.rows else 0.0)
        self.saved = self.shown = clock()
        self.fresh: dict[str, Any] | None = None  # the step's line, until its evaluation is there as well
        with storage("write", log), log.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in self.rows)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "eval_loss" in logs and self.fresh is not None:
            self.fresh["held_out"] = logs["eval_loss"]
            self.fresh["preference"]["held_out_accuracy"] = logs["eval_rewards/accuracies"]
        elif "loss" in logs:
            _check(logs["loss"], logs["grad_norm"], state.global_step)
            self.step = state.global_step
            self.fresh = {
                "step": self.first + self.step,
                "loss": logs["loss"],
                "lr": logs["learning_rate"],
                "grad_norm": float(logs["grad_norm"]),
                "preference": {name: logs[f"rewards/{name}"] for name in ("chosen", "rejected", "margins")},
                "tokens": self.tokens + self.read + int(logs["num_tokens"]),
                "seconds": round(self.began_at + self.clock() - self.began, 3),
            }
            self.fresh["preference"]["accuracy"] = logs["rewards/accuracies"]

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._write()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self._write()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step, now = state.global_step, self.clock()
        control.should_evaluate = self.measures and (step % self.per_epoch == 0 or step == self.steps)
        control.should_save = now - self.saved >= self.every and step < self.steps
        if self.stopped.is_set() and step < self.steps:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._write()
        path = Path(args.output_dir) / f"checkpoint-{state.global_step}" / WHOLE
        write_json(path, {"key": self.key, "rows": self.rows})
        self.saved = self.clock()

    def summary(self, learnt: Pairs, held_out: int) -> Preferred:
        last = self.rows[-self.per_epoch :]
        of = [row["preference"] for row in last]
        return Preferred(
            pairs=len(learnt),
            pairs_held_out=held_out,
            without=learnt.without,
            digest=learnt.digest,
            steps=self.steps,
            seconds=self.rows[-1]["seconds"] - self.began_at,
            loss=sum(row["loss"] for row in last) / len(last),
            accuracy=sum(each["accuracy"] for each in of) / len(of),
            margin=sum(each["margins"] for each in of) / len(of),
            held_out_loss=last[-1].get("held_out"),
            held_out_accuracy=of[-1].get("held_out_accuracy"),
        )

    def _write(self) -> None:
        """The line of the step before, which is whole now."""
        if self.fresh is None:
            return
        row, self.fresh = self.fresh, None
        self.rows.append(row)
        with storage("write", self.log), self.log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.track(row)
        if (now := self.clock()) - self.shown >= WATCH_SECONDS or self.step in (1, self.steps):
            self.shown = now
            note = f"pairs: loss {row['loss']:.3f}  right {row['preference']['accuracy']:.0%}"
            try:
                self.watch(Progress("train", self.step, self.steps, "step", note=note))
            except KeyboardInterrupt:
                self.stopped.set()


def _arguments(
    folder: Path,
    settings: recipes.Train,
    how: recipes.Preference,
    size: int,
    steps: int,
    seed: int,
    dtype: str,
    device: str,
) -> Any:
    arguments = DPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=size,
        per_device_eval_batch_size=size,
        max_steps=steps,
        beta=how.beta,
        max_length=None,
        precompute_ref_log_probs=True,
        activation_checkpointing=False,
        max_grad_norm=settings.clip,
        seed=seed,
        bf16=dtype == "bfloat16",
        use_cpu=device == "cpu",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        save_total_limit=checkpoint.KEPT,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        report_to=[],
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # the student lies on one
    return arguments


def _dataset(pairs: Pairs) -> Any:
    from datasets import Dataset

    return Dataset.from_dict(pairs.columns())


def _check(loss: float, norm: float, step: int) -> None:
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise ModelError(
            f"training on pairs went astray at step {step}: loss {loss}, gradient norm {norm}",
            "the loss or its gradient is no longer a finite number",
            "lower `train.preference.learning_rate`, or raise `train.preference.beta`",
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing is written to the terminal within: not by transformers, nor by what it deprecates in trl."""
    from transformers.utils import logging

    shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(shown[0])
        if shown[1]:
            logging.enable_progress_bar()


@contextmanager
def _as_it_was(*models: Any) -> Iterator[None]:
    """What the trainer puts onto models is taken off again: forward passes of its own, a padding token."""
    causal = models[0]
    padding = causal.config.pad_token_id, causal.generation_config.pad_token_id
    try:
        yield
    finally:
        for model in models:
            for name in ("forward", "_original_forward"):
                model.__dict__.pop(name, None)
        causal.config.pad_token_id, causal.generation_config.pad_token_id = padding
