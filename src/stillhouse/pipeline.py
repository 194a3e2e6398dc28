"""The stages in order. A stage whose inputs have not changed is not run again."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import rfc8785

from stillhouse import ask as asking
from stillhouse.collect import PromptSet, collect, limits_of, load_prompts, plan_questions, sampling_of
from stillhouse.curate import curate
from stillhouse.errors import ModelError, UsageError
from stillhouse.ledger import Ledger
from stillhouse.models import source_folder, weights_digest
from stillhouse.money import FREE, UNKNOWN, Estimate, Price
from stillhouse.recipe import Recipe, recipe_digest
from stillhouse.records import Prompt, Watch, unwatched
from stillhouse.scoring import BUILTIN, Scorer
from stillhouse.scoring import check as check_scorers
from stillhouse.terms import gate
from stillhouse.workspace import RunFolder, Workspace, locked, read_marker, write_json

STAGES = ("collect", "curate", "train", "evaluate", "release")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do. `run --dry-run` and `plan` print it; the real run makes the same one first."""

    run: RunFolder
    is_new: bool
    prompts: PromptSet
    questions: int  # to the teacher, over training and test prompts
    answered: int  # of these, already in the ledger
    cost: Estimate  # US dollars for what is left
    seconds: Estimate  # for asking what is left
    done: tuple[str, ...]  # stages that finished before


@dataclass(frozen=True, slots=True)
class Finished:
    run: RunFolder
    evaluation: dict[str, Any] | None  # None when the run stopped before it was made
    skipped: tuple[str, ...]


@contextmanager
def open_teacher(recipe: Recipe, log: Path | None = None) -> Iterator[asking.Teacher]:
    """The recipe's teacher, ready to be asked. A local one is served over HTTP on loopback, by a process
    of its own that starts with the first question and ends with this block."""
    settings = recipe.teacher
    price = None if settings.price is None else Price(settings.price.input, settings.price.output)
    common: dict[str, Any] = {"key_env": settings.key_env, "system": settings.system}
    if settings.imported:
        yield asking.Teacher(settings.model, "import", settings.revision, None, price=FREE, **common)
    elif settings.endpoint is not None:
        url = settings.endpoint
        endpoint = asking.logical_endpoint(url, settings.provider)
        yield asking.Teacher(settings.model, endpoint, settings.revision, lambda: url, price=price, **common)
    else:
        folder = source_folder(settings.model)
        name = settings.model if settings.model.startswith("embedded:") else Path(folder).name
        with ExitStack() as stack:
            served: list[str] = []

            def serve() -> str:
                from stillhouse.models.serve import background

                if not served:
                    served.append(stack.enter_context(background(settings.model, log)))
                return served[0]

            yield asking.Teacher(name, "local", weights_digest(folder), serve, price=price or FREE, **common)


def plan(recipe: Recipe, workspace: Workspace, ledger: Ledger, prompts: PromptSet | None = None) -> Plan:
    """What a run of this recipe would do; asks nothing and records nothing."""
    run = workspace.run(recipe.run.name, recipe_digest(recipe))
    prompts = prompts or load_prompts(recipe)
    with open_teacher(recipe) as teacher:
        questions = plan_questions(prompts.train, recipe.collect.samples)
        known = [
            e for _, e in asking.answers(questions, teacher, sampling_of(recipe), ledger) if e is not None
        ]
        tests = plan_questions(prompts.test, 1)
        answered = sum(e is not None for _, e in asking.answers(tests, teacher, _greedy(recipe), ledger))
        left = len(questions) + len(tests) - len(known) - answered
        worst = sum(asking.worst_cost(q, teacher, sampling_of(recipe)) for q in (*questions, *tests))
        worst *= left / max(1, len(questions) + len(tests))
        usage = [e.completion.usage for e in known]
        return Plan(
            run=run,
            is_new=not run.recipe.exists(),
            prompts=prompts,
            questions=len(questions) + len(tests),
            answered=len(known) + answered,
            cost=_cost(teacher.price, left, worst, [(u.prompt_tokens, u.completion_tokens) for u in usage]),
            seconds=_seconds(ledger, [e.leaf for e in known[-200:]], left, recipe.collect.concurrency),
            done=tuple(stage for stage in STAGES if read_marker(run, stage) is not None),
        )


def run(
    recipe: Recipe,
    workspace: Workspace,
    watch: Watch = unwatched,
    stages: Sequence[str] = STAGES,
    prompts: PromptSet | None = None,
    scorers: Mapping[str, Scorer] = BUILTIN,
) -> Finished:
    """Run the stages of a recipe, skipping what is done, and return where the results are.

    `prompts` replaces the recipe's prompt files and `scorers` the shipped scorers, for callers with rows
    and judgements of their own. Raises what the stages raise; what they finished stays finished.
    """
    prompts = prompts or load_prompts(recipe)
    check_scorers({p.scorer for p in (*prompts.train, *prompts.test) if p.scorer}, scorers)
    _check_student(recipe)
    folder = workspace.run(recipe.run.name, recipe_digest(recipe))
    with (
        locked(folder),
        Ledger.open(workspace) as ledger,
        open_teacher(recipe, folder.logs / "teacher.log") as teacher,
    ):
        write_json(folder.recipe, recipe.model_dump(mode="json"))
        folder.logs.mkdir(exist_ok=True)
        work = _Work(folder, recipe, ledger, teacher, prompts, scorers, watch)
        skipped = [stage for stage in STAGES if stage in stages and not _DO[stage](work)]
        evaluation = json.loads(folder.evaluation.read_bytes()) if folder.evaluation.exists() else None
        return Finished(folder, evaluation, tuple(skipped))


@dataclass(frozen=True, slots=True)
class _Work:
    folder: RunFolder
    recipe: Recipe
    ledger: Ledger
    teacher: asking.Teacher
    prompts: PromptSet
    scorers: Mapping[str, Scorer]
    watch: Watch


def _check_student(recipe: Recipe) -> None:
    """Say that a student folder is no model before anything is asked, and so paid for. Raises ModelError."""
    init = recipe.student.init
    if init in ("from_teacher", "config"):
        return
    folder = Path(source_folder(init))
    if folder.is_dir():
        weights_digest(folder)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is not a model", "it has no config.json", "name a transformers folder")
    if folder.is_absolute() and not folder.is_dir():
        raise ModelError(
            f"there is no student at {folder}", "the folder does not exist", "correct `student.init`"
        )


def _collect(work: _Work) -> bool:
    """Never skipped as a whole: what the ledger holds is looked up, which takes a second, and not asked."""
    started = time.monotonic()
    decision = gate.admit(work.recipe.teacher, "train_target", work.ledger, datetime.now(UTC))
    gate.admit(
        work.recipe.teacher, "evaluation", work.ledger, datetime.now(UTC)
    )  # refused now, not when paid
    done = collect(work.folder, work.recipe, work.prompts, work.teacher, work.ledger, decision, work.watch)
    before = _result(work.folder, "collect")
    seconds = time.monotonic() - started
    if done.tally.answered == 0 and before is not None:
        seconds = before["seconds"]  # what it took when the answers were bought
    result = {
        "teacher": work.teacher.model,
        "endpoint": work.teacher.endpoint,
        "revision": work.teacher.revision,
        "decision": decision,
        "prompts": len(work.prompts.train),
        "broken_lines": len(work.prompts.broken),
        "leaked": work.prompts.leaked,
        "exchanges": done.exchanges,
        "digest": done.digest,
        **_counts(done.tally),
    }
    _mark(work, "collect", _digest(recipe_digest(work.recipe)), seconds, result)
    return done.tally.sent > 0


def _curate(work: _Work) -> bool:
    collected = _need(work, "collect")
    inputs = _digest(collected["digest"], work.recipe.curate.model_dump())
    if _is_done(work, "curate", inputs):
        return False
    started = time.monotonic()
    result = asdict(curate(work.folder, work.recipe, work.ledger, work.watch))
    if result["kept"] == 0:
        raise UsageError(
            "no row was kept",
            f"all {result['rows']} were dropped: {result['reasons']}",
            f"see {work.folder.dropped}",
        )
    _mark(work, "curate", inputs, time.monotonic() - started, result)
    return True


def _train(work: _Work) -> bool:
    from stillhouse.train import train

    recipe, curated = work.recipe, _need(work, "curate")
    local = (
        None if recipe.teacher.endpoint or recipe.teacher.imported else source_folder(recipe.teacher.model)
    )
    start = source_folder(recipe.student.init)
    inputs = _digest(
        curated["digest"],
        recipe.student.model_dump(),
        recipe.train.model_dump(),
        recipe.run.seed,
        weights_digest(start) if Path(start).is_dir() else start,
        local and recipe.student.init in ("from_teacher", "config") and weights_digest(local),
    )
    if _is_done(work, "train", inputs):
        return False
    started = time.monotonic()
    result = asdict(train(work.folder, recipe, work.watch, local))
    result["weights"] = weights_digest(str(work.folder.student))
    work.ledger.append(
        "train_run",
        {
            "run": work.folder.root.name,
            "samples": curated["digest"],
            "transform": curated["transform"],
            "settings": json.loads(recipe.train.model_dump_json()),
            "seed": recipe.run.seed,
            "weights": result["weights"],
            "steps": result["steps"],
        },
    )
    _mark(work, "train", inputs, time.monotonic() - started, result)
    return True


def _evaluate(work: _Work) -> bool:
    from stillhouse.evaluate import TeacherAnswers, evaluate

    recipe, trained = work.recipe, _need(work, "train")
    started = time.monotonic()
    decision = gate.admit(recipe.teacher, "evaluation", work.ledger, datetime.now(UTC))
    questions, sampling = plan_questions(work.prompts.test, 1), _greedy(recipe)
    tally = asking.ask(
        questions,
        work.teacher,
        sampling,
        limits_of(recipe),
        work.ledger,
        work.folder.root.name,
        decision,
        work.watch,
        "evaluate",
    )
    texts, tokens, leaves = {}, {}, []
    for question, exchange in asking.answers(questions, work.teacher, sampling, work.ledger):
        if exchange is not None:
            texts[question.prompt_id] = exchange.completion.text
            usage = exchange.completion.usage
            tokens[question.prompt_id] = (usage.prompt_tokens, usage.completion_tokens)
            leaves.append(exchange.leaf)
    inputs = _digest(
        trained["weights"],
        leaves,
        [_facts(p) for p in work.prompts.test],
        recipe.evaluate.model_dump(),
        recipe.run.seed,
    )
    fresh = not _is_done(work, "evaluate", inputs)
    if fresh:
        failed = {prompt_id: reason for (prompt_id, _), reason in tally.failed.items()}
        local = (
            None
            if recipe.teacher.endpoint or recipe.teacher.imported
            else source_folder(recipe.teacher.model)
        )
        answers = TeacherAnswers(texts, tokens, failed, local)
        scores = evaluate(work.folder, recipe, work.prompts.test, answers, work.watch, work.scorers)
        predictions = hashlib.sha256(work.folder.predictions.read_bytes()).hexdigest()
        work.ledger.append(
            "evaluation",
            {
                "run": work.folder.root.name,
                "weights": trained["weights"],
                "predictions": predictions,
                "retention": scores["retention"],
                "decision": decision,
            },
        )
        _mark(
            work,
            "evaluate",
            inputs,
            time.monotonic() - started,
            {"predictions": predictions, **_counts(tally)},
        )
    _complete_evaluation(work, tally)
    return fresh


def _complete_evaluation(work: _Work, tested: asking.Tally) -> None:
    """Add what only the run knows: seconds of each stage when it was worked, and what was asked now."""
    evaluation = json.loads(work.folder.evaluation.read_bytes())
    asked, testing = _need(work, "collect"), _counts(tested)
    markers = {stage: read_marker(work.folder, stage) or {} for stage in STAGES[:4]}
    seconds = {stage: round(marker.get("seconds", 0.0), 2) for stage, marker in markers.items()}
    evaluation["seconds"] = {**seconds, "total": round(sum(seconds.values()), 2)}
    evaluation["exchanges"] = {
        name: asked[name] + testing[name] for name in ("sent", "answered", "reused", "failed", "unknown")
    }
    evaluation["versions"] = {name: version(name) for name in ("stillhouse", "torch", "transformers")}
    write_json(work.folder.evaluation, evaluation)


def _release(work: _Work) -> bool:
    from stillhouse.release import release

    trained, evaluated = _need(work, "train"), read_marker(work.folder, "evaluate")
    if evaluated is None:
        _need(work, "evaluate")
    inputs = _digest(trained["weights"], evaluated and evaluated["inputs"], work.recipe.release.model_dump())
    if _is_done(work, "release", inputs):
        return False
    started = time.monotonic()
    result = release(work.folder, work.recipe, work.ledger, _need(work, "collect")["decision"])
    checkpoint = {"size": result.size, "root": result.root}
    recorded = {"folder": result.folder, "leaf": result.leaf, "files": result.files, "checkpoint": checkpoint}
    _mark(work, "release", inputs, time.monotonic() - started, {**recorded, "anchored": False})
    return True


_DO: dict[str, Callable[[_Work], bool]] = {
    "collect": _collect,
    "curate": _curate,
    "train": _train,
    "evaluate": _evaluate,
    "release": _release,
}


def _mark(work: _Work, stage: str, inputs: str, seconds: float, result: Mapping[str, Any]) -> None:
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    marker = {"inputs": inputs, "finished": finished, "seconds": seconds, "result": dict(result)}
    write_json(work.folder.marker(stage), marker)


def _is_done(work: _Work, stage: str, inputs: str) -> bool:
    marker = read_marker(work.folder, stage)
    return marker is not None and marker.get("inputs") == inputs


def _result(folder: RunFolder, stage: str) -> dict[str, Any] | None:
    marker = read_marker(folder, stage)
    return None if marker is None else {"seconds": marker["seconds"], **marker["result"]}


def _need(work: _Work, stage: str) -> dict[str, Any]:
    result = _result(work.folder, stage)
    if result is None:
        raise UsageError(
            f"the stage {stage} of {work.folder.root.name} has not been run",
            "this stage works on its result",
            f"run `stillhouse {stage} RECIPE` first, or `stillhouse run RECIPE` for all stages",
        )
    return result


def _digest(*parts: Any) -> str:
    return hashlib.sha256(rfc8785.dumps(list(parts))).hexdigest()


def _facts(prompt: Prompt) -> list[Any]:
    messages = [[m.role, m.content] for m in prompt.messages]
    return [prompt.id, messages, prompt.family, prompt.group, prompt.reference, prompt.scorer]


def _counts(tally: asking.Tally) -> dict[str, Any]:
    budget = tally.budget
    return {
        "sent": tally.sent,
        "answered": tally.answered,
        "reused": tally.reused,
        "failed": len(tally.failed),
        "unknown": tally.unknown,
        "failures": tally.failures,
        "prompt_tokens": tally.prompt_tokens,
        "completion_tokens": tally.completion_tokens,
        "spent": budget.spent,
    }


def _greedy(recipe: Recipe) -> asking.Sampling:
    """Teacher and student are compared by their likeliest answers, whatever the samples were drawn at."""
    return asking.Sampling(0.0, 1.0, recipe.evaluate.max_tokens or recipe.collect.max_tokens)


def _cost(
    price: Price | None, left: int, worst: float, usage: list[tuple[int | None, int | None]]
) -> Estimate:
    """US dollars for what is left to ask: from earlier answers where there are enough, else a bound."""
    if left == 0 or price == FREE:
        return Estimate(0.0, 0.0, 0.0)
    if price is None:
        return UNKNOWN
    costs = [price.of(p, c) for p, c in usage if p is not None and c is not None]
    if len(costs) < 10:
        return Estimate(None, None, worst)
    mean, spread = statistics.mean(costs), statistics.stdev(costs) / len(costs) ** 0.5
    return Estimate(left * max(0.0, mean - 2 * spread), left * mean, min(worst, left * (mean + 2 * spread)))


def _seconds(ledger: Ledger, leaves: Sequence[int], left: int, concurrency: int) -> Estimate:
    if left == 0:
        return Estimate(0.0, 0.0, 0.0)
    if len(leaves) < 10:
        return UNKNOWN
    each = sorted(float(ledger.leaf(index).body["milliseconds"]) / 1000 for index in leaves)
    tenth = len(each) // 10
    rate = left / concurrency
    return Estimate(rate * each[tenth], rate * statistics.mean(each), rate * each[-1 - tenth])
