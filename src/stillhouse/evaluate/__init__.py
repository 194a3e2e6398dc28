"""evaluate: teacher, untrained student, distilled student and a cheap baseline on the same test prompts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from stillhouse.errors import ModelError, UsageError
from stillhouse.evaluate.baseline import baseline_answers
from stillhouse.evaluate.battery import MAX_TOKENS as BATTERY_TOKENS
from stillhouse.evaluate.battery import battery_figures, battery_prompts
from stillhouse.evaluate.costs import cost_figures
from stillhouse.evaluate.divergence import Drift, divergence, drifts
from stillhouse.evaluate.economics import Ledgered, economics, flops_share
from stillhouse.evaluate.fidelity import fidelity_figures
from stillhouse.evaluate.figures import lay_out, summarise
from stillhouse.evaluate.further import Further, further_figures
from stillhouse.evaluate.harness import open_tasks, run_harness
from stillhouse.evaluate.predictions import (
    Given,
    Prediction,
    TeacherAnswers,
    given_by_teacher,
    judged,
    read_predictions,
    write_predictions,
)
from stillhouse.evaluate.preference import AskJudge, judge_pairs, preference_figures, write_judgements
from stillhouse.evaluate.students import (
    Measured,
    local_answers,
    measured,
    model_source,
    out_of_memory,
    size_on_disk,
)
from stillhouse.evaluate.verdict import margins_before, notes_on_verdict, verdict
from stillhouse.models import source_folder
from stillhouse.recipe import Recipe
from stillhouse.records import Progress, Prompt, Watch, unwatched
from stillhouse.scoring import BUILTIN, Scorer, check
from stillhouse.scoring import scorers as installed_scorers
from stillhouse.workspace import RunFolder, write_json

__all__ = ["Further", "Ledgered", "Prediction", "TeacherAnswers", "economics", "evaluate", "read_predictions"]


def evaluate(
    run: RunFolder,
    recipe: Recipe,
    prompts: Sequence[Prompt],
    teacher: TeacherAnswers,
    watch: Watch = unwatched,
    scorers: Mapping[str, Scorer] | None = None,
    ask_judge: AskJudge | None = None,
    further: Sequence[Further] = (),
) -> dict[str, Any]:
    """Answer, score and compare; write `predictions.parquet` first, then `evaluation.json` from it.

    Students answer here, greedily, the messages as they stand. Returns what `evaluation.json` holds, None
    where something is not known, with a line in `notes` that says why:

        teacher, student_before, student, baseline
                      score (the mean over scored prompts), low, high, n, unscored, failed (no answer; a
                      student that could not read a prompt failed and has the score 0 there, within n)
        retention     value, low, high, n, groups: student / teacher over prompts that both were scored on
        difference    value, low, high, p, n: student - teacher, with a test over groups
        verdict       ruling, margin, more, and the rest of what `verdict.verdict` says
        gap_closed    value, low, high, n: (student - before) / (teacher - before), of all three
        agreement     value, low, high, n, and the same for teacher_right and teacher_wrong
        mcnemar       p, teacher_only, student_only, n
        families      by name: n, groups, the four systems, retention, difference (p adjusted over families)
        worst_family  name, value, low, high, n, groups, p_adjusted
        flops_share   value, low, high, n: FLOPs of the student's answers to those of the teacher's
        latency       of teacher and student: seconds for an answer on this machine
        flops_ratio   mean FLOPs of an answer, student to teacher, over flops_prompts prompts
        flops, flops_per_token, parameters, tokens_per_second
                      by model
        fidelity      divergence (see `divergence.divergence`) and what `fidelity_figures` finds
        battery       the fixed battery before and after (see `battery_figures`)
        harness       what lm-eval's tasks give (see `run_harness`), None without any
        further       other seeds, hard labels, fewer samples, other sizes (see `further_figures`), None
                      without any
        judge         what a judge prefers (see `preference_figures`), None without one
        prompts       n, groups, families
        scored_by     names of the scorers used
        notes         sentences about what was not scored or is not known

    Raises UsageError for an unknown scorer or repeated prompt ids, ModelError when the student cannot be
    loaded.
    """
    scorers = installed_scorers() if scorers is None else scorers
    _check(prompts, scorers)
    tasks = open_tasks(recipe.evaluate, run.logs / "harness.log") if recipe.evaluate.harness else None
    limit = recipe.evaluate.max_tokens or recipe.collect.max_tokens
    notes: list[str] = []
    sizes: dict[str, Measured] = {}
    before = model_source(run.student_before)
    advance = _counter(watch, len(prompts) * ((before is not None) + 1 + len(further)), teacher)

    rows, general = judged("teacher", prompts, given_by_teacher(prompts, teacher), scorers), []
    if before is None:
        notes.append("student_before: there is no record of the student before training")
    else:
        said = _answer(before, prompts, limit, advance("student before"), False)
        rows += judged("student_before", prompts, said.answers, scorers)
        general += judged("student_before", battery_prompts(), said.battery, BUILTIN)
        sizes["student_before"] = said.size
    said = _answer(str(run.student), prompts, limit, advance("student"), True)
    rows += judged("student", prompts, said.answers, scorers)
    general += judged("student", battery_prompts(), said.battery, BUILTIN)
    sizes["student"] = said.size
    for student in further:
        said = _answer(str(student.folder), prompts, limit, advance(student.name), False)
        rows += judged(student.name, prompts, said.answers, scorers)
        sizes[student.name] = said.size
    baseline = _baseline(run, recipe, prompts, notes)
    rows += judged("baseline", prompts, baseline, scorers) if baseline else []
    write_predictions(run.predictions, rows)
    write_predictions(run.battery, general)

    if tooled := sum(bool(prompt.tools) for prompt in prompts):
        notes.append(
            f"{tooled} test prompts offer tools: a student is not shown them here, and calls are compared"
            " only where they are written as text"
        )
    if prompts and sizes["student"].tokens_per_second is None:
        notes.append(
            "the student's speed is unknown: no prompt fits, or memory ran out while it was measured"
        )
    if (found := _teacher_size(teacher, prompts, limit, notes)) is not None:
        sizes["teacher"] = found
    recorded = read_predictions(run.predictions)
    result = _figures(run, recipe, prompts, teacher, recorded, sizes, further, notes)
    result["harness"] = None
    if tasks is not None:
        result["harness"] = _harness(run, recipe, before, tasks, notes)
    result["judge"] = None if ask_judge is None else _judged(run, recipe, prompts, recorded, ask_judge, notes)
    result["notes"] += notes
    write_json(run.evaluation, result)
    return result


def _figures(
    run: RunFolder,
    recipe: Recipe,
    prompts: Sequence[Prompt],
    teacher: TeacherAnswers,
    rows: Sequence[Prediction],
    sizes: Mapping[str, Measured],
    further: Sequence[Further],
    notes: list[str],
) -> dict[str, Any]:
    """What follows from the rows, and what is measured on the models beside."""
    seed, resamples = recipe.run.seed, recipe.evaluate.resamples
    earlier = json.loads(run.evaluation.read_bytes()) if run.evaluation.exists() else None
    figures, costs = summarise(rows), cost_figures(rows, sizes)
    ruling = verdict(lay_out(rows), recipe.evaluate.margin, margins_before(earlier))
    return {
        **figures,
        **costs,
        "flops_share": flops_share(rows, sizes, seed, resamples),
        "verdict": ruling,
        "scored_by": sorted({prompt.scorer for prompt in prompts if prompt.scorer}),
        "fidelity": {
            "divergence": _divergence(run, teacher, prompts, seed, resamples, notes),
            **fidelity_figures(rows, recipe.evaluate.slice or (), seed, resamples),
        },
        "further": further_figures(rows, further, seed, _sample_count(run), sizes) if further else None,
        "battery": battery_figures(read_predictions(run.battery)),
        "notes": [*notes_on_verdict(ruling), *figures["notes"], *costs["notes"]],
    }


def _harness(
    run: RunFolder, recipe: Recipe, before: str | None, tasks: Any, notes: list[str]
) -> dict[str, Any]:
    models = {"student_before": before, "student": str(run.student)}
    folders = {name: source_folder(model) for name, model in models.items() if model is not None}
    found = run_harness(folders, tasks, recipe.evaluate, recipe.run.seed, run.logs / "harness.log")
    notes += [f"lm-eval could not be run on {name}: {reason}" for name, reason in found["failed"].items()]
    return found


def _judged(
    run: RunFolder,
    recipe: Recipe,
    prompts: Sequence[Prompt],
    rows: Sequence[Prediction],
    ask_judge: AskJudge,
    notes: list[str],
) -> dict[str, Any]:
    """Write `judgements.parquet`, then add up. `ask_judge` raises what asking raises."""
    settings = recipe.evaluate.judge
    judged = judge_pairs(rows, prompts, ask_judge, None if settings is None else settings.count)
    write_judgements(run.judgements, judged)
    figures = preference_figures(judged, recipe.run.seed, recipe.evaluate.resamples)
    if figures["usable"] is not True:
        notes.append(f"judge: {figures['why']}; its verdicts are not to be relied on")
    if settings is not None and settings.model == recipe.teacher.model:
        notes.append("judge: it is the teacher itself, whose own manner of answering it may prefer")
    return {"model": None if settings is None else settings.model, **figures}


def _check(prompts: Sequence[Prompt], scorers: Mapping[str, Scorer]) -> None:
    check((prompt.scorer for prompt in prompts), scorers)
    repeated = [name for name, count in Counter(prompt.id for prompt in prompts).items() if count > 1]
    if repeated:
        raise UsageError(
            f"{len(repeated)} test prompts share an id with another",
            f"the first is {repeated[0]!r}; answers could not be told apart",
            "give every test prompt an id of its own",
        )


def _counter(watch: Watch, total: int, teacher: TeacherAnswers) -> Callable[[str], Callable[[int], None]]:
    """For each student a function that is told of further answers and reports all so far."""
    failed = {"teacher failed": len(teacher.failed)} if teacher.failed else {}
    done = 0

    def advance(student: str) -> Callable[[int], None]:
        def add(more: int) -> None:
            nonlocal done
            done += more
            watch(Progress("evaluate", done, total, "answers", failed, student))

        return add

    return advance


def _sample_count(run: RunFolder) -> int:
    from pyarrow import parquet

    return int(parquet.read_metadata(run.samples).num_rows)


class _Said(NamedTuple):
    """A student's answers to the test prompts and to the battery, and its size."""

    answers: list[Given]
    battery: list[Given]
    size: Measured


def _answer(
    source: str, prompts: Sequence[Prompt], limit: int, done: Callable[[int], None], timed: bool
) -> _Said:
    """Load a student, let it answer and measure it (its speed if `timed`); its memory is free on return."""
    from stillhouse.models.local import load_model, threads_for

    model = load_model(source)
    with threads_for(model):  # as when it is served, so that its speed is that of the served model
        return _Said(
            local_answers(model, prompts, limit, done),
            local_answers(model, battery_prompts(), BATTERY_TOKENS, lambda _: None),
            measured(model, prompts if timed else (), limit),
        )


def _teacher_size(
    teacher: TeacherAnswers, prompts: Sequence[Prompt], limit: int, notes: list[str]
) -> Measured | None:
    """The teacher's size and speed on this machine, None with a note where it cannot be had.

    Its size is read from its files, so that only its speed is unknown where it does not fit into memory.
    """
    from stillhouse.models.local import load_model, threads_for

    if teacher.folder is None:
        notes.append("the teacher is not on this machine: its parameters, FLOPs and speed are unknown")
        return None
    size = size_on_disk(teacher.folder)
    if size is not None and not prompts:
        return size
    try:
        model = load_model(teacher.folder)
        with threads_for(model):
            found = measured(model, prompts, limit)
    except ModelError as error:
        lost = "parameters, FLOPs and speed are" if size is None else "speed is"
        notes.append(f"the teacher's {lost} unknown: {error.what} ({error.why})")
        return size
    if prompts and found.tokens_per_second is None:
        notes.append(
            "the teacher's speed is unknown: no prompt fits, or memory ran out while it was measured"
        )
    return found


def _divergence(
    run: RunFolder,
    teacher: TeacherAnswers,
    prompts: Sequence[Prompt],
    seed: int,
    resamples: int,
    notes: list[str],
) -> dict[str, Any] | None:
    """None with a note where the probabilities of both cannot be had."""
    from stillhouse.models.local import load_model

    if teacher.folder is None:
        found: list[Drift] | str = "the teacher is not on this machine"
    else:
        try:
            found = drifts(load_model(teacher.folder), load_model(str(run.student)), prompts, teacher.texts)
        except (ModelError, MemoryError, RuntimeError) as error:
            if not (isinstance(error, ModelError) or out_of_memory(error)):
                raise
            found = "the two models could not be loaded side by side"
    if isinstance(found, str):
        notes.append(f"divergence of the probabilities: not measured, {found}")
        return None
    return divergence(found, seed, resamples)


def _baseline(run: RunFolder, recipe: Recipe, prompts: Sequence[Prompt], notes: list[str]) -> list[Given]:
    if not recipe.evaluate.baseline:
        notes.append("baseline: switched off by `evaluate.baseline`")
        return []
    answers = baseline_answers(run.samples, prompts, recipe.run.seed)
    if isinstance(answers, str):
        notes.append(f"baseline: {answers}")
        return []
    return answers
