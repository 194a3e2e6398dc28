"""Public benchmarks by lm-eval (EleutherAI), on the checkpoint before and after training; extra `lmeval`.

Its tasks bring their own prompts, scoring and errors, which are passed on as they stand. What it prints goes
into a log. With a folder of task files whose data lie beside them nothing is loaded from the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from stillhouse.errors import UsageError
from stillhouse.recipe import Evaluate

Figures = dict[str, Any]


def open_tasks(settings: Evaluate, log: Path) -> Any:
    """lm-eval's manager of tasks. The folder of one's own goes before the thousands that lm-eval ships, which
    take a while to read and are left alone where all tasks are found without them.

    Raises UsageError for a task that is in neither.
    """
    from lm_eval.tasks import TaskManager

    log.parent.mkdir(parents=True, exist_ok=True)
    own = settings.harness_path
    with log.open("a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        for defaults in (False, True) if own else (True,):
            manager = TaskManager(include_path=own, include_defaults=defaults)
            unknown = [name for name in settings.harness or () if name not in manager.all_tasks]
            if not unknown:
                return manager
    raise UsageError(
        f"lm-eval has no task {', '.join(unknown)}",
        f"it is not among the {len(manager.all_tasks)} that are known{f' with {own}' if own else ''}",
        "see `lm-eval ls tasks`, or name a folder of your own with `evaluate.harness_path`",
    )


def run_harness(models: Mapping[str, str], manager: Any, settings: Evaluate, seed: int, log: Path) -> Figures:
    """The tasks on each model (name to folder). `version` of lm-eval and `limit`, and for each task its
    version, n, and metrics: for each of the models value and `error` (its standard error, None where lm-eval
    gives none). `failed` says by model what could not be run."""
    import lm_eval

    found: Figures = {
        "version": lm_eval.__version__,
        "limit": settings.harness_limit,
        "tasks": {},
        "failed": {},
    }
    for name, folder in models.items():
        try:
            results = _evaluated(folder, manager, settings, seed, log)
        except Exception as error:  # a task is a program of its author's, and its data may be out of reach
            found["failed"][name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            continue
        for task, metrics in results["results"].items():
            of = found["tasks"].setdefault(
                task,
                {
                    "version": str(results.get("versions", {}).get(task, "")),
                    "n": results.get("n-samples", {}).get(task, {}).get("effective"),
                    "metrics": {},
                },
            )
            for metric, value in read_metrics(metrics).items():
                of["metrics"].setdefault(metric, {})[name] = value
    return found


def read_metrics(metrics: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """`{"acc,none": 0.4, "acc_stderr,none": 0.1}` as `{"acc": {"value": 0.4, "error": 0.1}}`; the filter is
    named where it is not `none`."""
    found = {}
    for key, value in metrics.items():
        metric, _, kind = key.partition(",")
        if not kind or metric.endswith("_stderr") or isinstance(value, bool | str) or value is None:
            continue
        error = metrics.get(f"{metric}_stderr,{kind}")
        name = metric if kind == "none" else f"{metric} ({kind})"
        found[name] = {"value": float(value), "error": error if isinstance(error, float) else None}
    return found


def _evaluated(folder: str, manager: Any, settings: Evaluate, seed: int, log: Path) -> Mapping[str, Any]:
    import lm_eval
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    with log.open("a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        results: Mapping[str, Any] | None = lm_eval.simple_evaluate(
            model="hf",
            model_args={"pretrained": folder},
            tasks=list(settings.harness or ()),
            device="cuda" if torch.cuda.is_available() else "cpu",
            batch_size=8,
            limit=settings.harness_limit,
            bootstrap_iters=1000,
            log_samples=False,
            apply_chat_template=tokenizer.chat_template is not None,
            task_manager=manager,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    return results or {"results": {}}
