"""The stages in order. A stage whose inputs have not changed is not run again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stillhouse import ask as asking
from stillhouse.ask.scores import STAGE as READING
from stillhouse.collect import Asked, PromptSet, collect, limits_of, load_prompts
from stillhouse.collect.grow import Grown, grow, keep_record
from stillhouse.collect.taught import keep_targets, read_taught
from stillhouse.curate import curate, read_by, recalled_of
from stillhouse.curate.cluster import on_ray
from stillhouse.curate.difficulty import losses_of
from stillhouse.errors import UsageError
from stillhouse.ledger import Ledger
from stillhouse.models import source_folder, weights_digest
from stillhouse.models.reading import Reader
from stillhouse.models.vocabulary import Vocabulary
from stillhouse.pipeline.economy import known_costs
from stillhouse.pipeline.further import further_inputs, train_further
from stillhouse.pipeline.judging import Bench, open_judge
from stillhouse.pipeline.landing import with_landed
from stillhouse.pipeline.planning import Plan, plan
from stillhouse.pipeline.reading import readings, reads_there
from stillhouse.pipeline.recalling import grounds, none_recalled
from stillhouse.pipeline.recording import recorded
from stillhouse.pipeline.releasing import decide_and_release
from stillhouse.pipeline.rounds import account, focus_note, focused
from stillhouse.pipeline.setup import (
    STAGES,
    admit_all,
    admit_learning,
    check,
    check_reachable,
    check_reading,
    greedy,
    local_teacher,
    need_extra,
    open_teacher,
    open_teachers,
    student_reading,
    today,
)
from stillhouse.pipeline.work import (
    Work,
    asked_of_the_test,
    counts,
    digest,
    facts,
    is_done,
    mark,
    need,
    result_of,
)
from stillhouse.prices import price_of
from stillhouse.recipe import Recipe, recipe_digest, run_digest
from stillhouse.records import Watch, unwatched
from stillhouse.scoring import BUILTIN, Scorer
from stillhouse.scoring import scorers as installed_scorers
from stillhouse.terms import gate
from stillhouse.train import Source, dismiss, follow, launched, train
from stillhouse.workspace import RunFolder, Workspace, locked, read_marker, write_json

__all__ = [
    "STAGES",
    "Finished",
    "Plan",
    "cancel_batches",
    "check",
    "focused",
    "follow_training",
    "need_extra",
    "open_teacher",
    "plan",
    "run",
]


@dataclass(frozen=True, slots=True)
class Finished:
    run: RunFolder
    evaluation: dict[str, Any] | None  # None when the run stopped before it was made
    skipped: tuple[str, ...]
    notices: tuple[str, ...] = ()  # what whoever runs it should know before using the result


def run(
    recipe: Recipe,
    workspace: Workspace,
    watch: Watch = unwatched,
    stages: Sequence[str] = STAGES,
    prompts: PromptSet | None = None,
    scorers: Mapping[str, Scorer] | None = None,
    ray_workers: int | None = None,
) -> Finished:
    """Run the stages of a recipe, skipping what is done, and return where the results are.

    `prompts` replaces the recipe's prompt files and `scorers` those that are installed, for callers with rows
    and judgements of their own. With `ray_workers` the prompts to learn from are asked by so many workers
    of a Ray cluster (0: see `ask.on_ray`), and rows are judged there (see `curate.cluster`). Raises what the
    stages raise; what they finished stays finished.
    """
    _alone(stages)
    prompts = prompts or load_prompts(recipe)
    scorers = installed_scorers() if scorers is None else scorers
    check(recipe, prompts, scorers)
    if ray_workers is not None and "collect" in stages:
        check_reachable(recipe)
    if {"train", "evaluate"} & set(stages):
        need_extra("train", ("torch", "transformers"))
    if {"train", "evaluate"} & set(stages) and recipe.train.preference:
        need_extra("preference", ("trl",))
    if "evaluate" in stages and recipe.evaluate.harness:
        need_extra("lmeval", ("lm_eval",))
    folder = workspace.run(recipe.run.name, run_digest(recipe))
    if {"collect", "train"} & set(stages) and read_marker(folder, "train") is None:
        check_reading(recipe)
    with (
        locked(folder),
        Ledger.open(workspace) as ledger,
        open_teachers(recipe, folder.logs / "teacher.log") as teachers,
        recorded(folder, watch) as recording,
    ):
        write_json(folder.recipe, recipe.model_dump(mode="json"))
        folder.logs.mkdir(exist_ok=True)
        prompts = with_landed(prompts, recipe, ledger)
        work = Work(workspace, folder, recipe, ledger, teachers, prompts, scorers, recording, ray_workers)
        skipped = [stage for stage in STAGES if stage in stages and not _DO[stage](work)]
        evaluation = json.loads(folder.evaluation.read_bytes()) if folder.evaluation.exists() else None
        return Finished(folder, evaluation, tuple(skipped), tuple(_notices(folder)))


def follow_training() -> bool:
    """Whether this is one of several processes and not the first; then its part of the training is done.

    Raises what `train` raises.
    """
    number, _ = launched()
    if number:
        need_extra("train", ("torch", "transformers"))
        follow()
    return number > 0


def _alone(stages: Sequence[str]) -> None:
    """Raises UsageError where several processes would do what only one may."""
    if launched()[1] > 1 and tuple(stages) != ("train",):
        raise UsageError(
            "several processes were started, and only training is shared out",
            f"{', '.join(stages)} would ask, write and pay as often as there are processes",
            "run the other stages as one process, and `train` by the launcher; see docs/training.md",
        )


def _notices(folder: RunFolder) -> Iterator[str]:
    for who in (result_of(folder, "collect") or {}).get("answered_by", ()):
        change = who["canary"] and who["canary"]["change"]
        if change:
            yield f"the teacher {who['teacher']} changed while it was asked: {change['words']}"
    yield from (result_of(folder, "train") or {}).get("notices", ())


def cancel_batches(recipe: Recipe, workspace: Workspace, watch: Watch = unwatched) -> asking.Tally:
    """Cancel the batches of a recipe's run and keep the answers that were ready; nothing is asked.

    `answered` of the result counts those. Raises EndpointError when the provider does not reply.
    """
    folder = workspace.run(recipe.run.name, run_digest(recipe))
    with locked(folder), Ledger.open(workspace) as ledger, open_teachers(recipe) as teachers:
        parts = [asking.Part(teacher, 0, ()) for teacher in teachers]
        return asking.cancel_batches(parts, limits_of(recipe), ledger, folder.root.name, watch)


def _collect(work: Work) -> bool:
    """Never skipped as a whole: what the ledger holds is looked up, which takes a second, and not asked."""
    started = time.monotonic()
    admitted, reading = admit_all(work.recipe, work.ledger), student_reading(work.recipe)
    decisions = admitted.learned
    teachers = list(zip(work.teachers, decisions, strict=True))
    tallies: list[asking.Tally] = []

    def put(questions: Sequence[asking.Question], teacher: asking.Teacher, sampling: asking.Sampling) -> None:
        limits, run = limits_of(work.recipe), work.folder.root.name
        assert admitted.seeds is not None
        tallies.append(
            asking.ask(
                questions, teacher, sampling, limits, work.ledger, run, admitted.seeds, work.watch, "grow"
            )
        )

    grown = grow(work.recipe, work.prompts, work.teachers[0], work.ledger, put)
    prompts = work.prompts.whole([prompt for one in grown for prompt in one.prompts])
    growth = keep_record(work.folder, work.recipe, grown, work.ledger) if grown else None
    with ExitStack() as stack:
        cluster = None
        if work.ray_workers is not None:
            cluster = stack.enter_context(
                asking.on_ray(work.ray_workers, work.folder.shards, work.ledger, work.folder.root.name)
            )
        done = collect(work.folder, work.recipe, prompts, teachers, work.ledger, work.watch, cluster)
    tallies.append(done.tally)
    taught = None if reading is None else _teach(work, *reading)
    known = [price_of(each, today()) for each in (work.recipe.teacher, *work.recipe.teachers)]
    prices = [None if price is None else price.record() for price in known]
    before = result_of(work.folder, "collect")
    seconds = 0.0 if before is None else before["seconds"]  # of the calls that bought something
    if before is None or any(tally.answered for tally in tallies):
        seconds += time.monotonic() - started
    result = {
        "recipe": recipe_digest(work.recipe),
        "teacher": work.teachers[0].model,
        "endpoint": work.teachers[0].endpoint,
        "revision": work.teachers[0].revision,
        "decision": decisions[0],
        "teachers": [
            {
                "model": who.model,
                "endpoint": who.endpoint,
                "revision": who.revision,
                "decision": leaf,
                "price": price,
            }
            for (who, leaf), price in zip(teachers, prices, strict=True)
        ],
        "price": prices[0],
        "prompts": len(prompts.train),
        "broken_lines": len(work.prompts.broken),
        "leaked": work.prompts.leaked,
        "exchanges": done.exchanges,
        "answered_by": done.answered_by,
        "digest": done.digest,
        "grow": growth,
        "focus": _account(work, grown),
        "targets": taught,
        **counts(work, *tallies),
    }
    mark(work, "collect", digest(recipe_digest(work.recipe)), seconds, result)
    return any(tally.sent or tally.answered for tally in tallies)


def _teach(work: Work, student: Reader, vocabularies: Sequence[Vocabulary | None]) -> list[dict[str, Any]]:
    """Write the targets, and what each teacher's came to."""
    asked = work.recipe.collect.top_logprobs or 0
    learning = work.recipe.train
    chunks = learning.objective != "sequence" and learning.distil.unit == "chunk"
    taught = keep_targets(
        work.folder, work.teachers, vocabularies, student, asked, work.ledger, work.watch, chunks
    )
    return [
        {
            "teacher": one.binding.teacher,
            **one.tally.record(),
            "bytes_per_token": one.tally.bytes_per_token,
            "coverage": one.tally.coverage,
            "mass_mapped": one.tally.mass_mapped,
        }
        for one in taught
    ]


def _account(work: Work, grown: Sequence[Grown]) -> dict[str, Any] | None:
    focus = work.recipe.prompts.focus
    if focus is None:
        return None
    return account(focus, work.prompts, grown, work.workspace, work.folder, work.ledger)


def _curate(work: Work) -> bool:
    collected = need(work, "collect")
    settings = work.recipe.curate
    prompts = hashlib.sha256(work.folder.prompts.read_bytes()).hexdigest()
    seed = work.recipe.run.seed if settings.mix else None
    recalled = recalled_of(work.folder, work.ledger).record()
    read = [*read_by(settings), *(["recalled", recalled] if recalled else [])]
    inputs = digest(collected["digest"], settings.model_dump(), prompts, read, seed)
    if is_done(work, "curate", inputs, work.folder.samples, work.folder.dropped):
        return False
    started = time.monotonic()
    losses = None
    if settings.mix is not None and settings.mix.checkpoint is not None:
        need_extra("train", ("torch", "transformers"))
        losses = losses_of(settings.mix.checkpoint)
    alone = None if work.ray_workers is None else on_ray(work.scorers)
    done = curate(work.folder, work.recipe, work.ledger, work.watch, work.scorers, losses, alone)
    result = asdict(done)
    if result["kept"] == 0:
        raise UsageError(
            "no row was kept",
            f"of {done.rows} rows were dropped {done.reasons} and set aside unscored {done.unscored}",
            f"see {work.folder.dropped}",
        )
    mark(work, "curate", inputs, time.monotonic() - started, result)
    return True


def _train(work: Work) -> bool:
    recipe, curated, local = work.recipe, need(work, "curate"), local_teacher(work.recipe)
    none_recalled(work)
    source = _source(work) if recipe.train.objective != "sequence" else None
    made_here = recipe.student.init in ("from_teacher", "config")
    start = local if made_here else source_folder(recipe.student.init)
    inputs = digest(
        curated["digest"],
        recipe.student.model_dump(exclude={"task"}),
        recipe.train.model_dump(exclude={"checkpoint_seconds", "track"}),
        recipe.run.seed,
        weights_digest(start) if start and Path(start).is_dir() else start,
        source and [source.revision, [digests for _, digests in source.answers], *_recalled(source)],
        hashlib.sha256(work.folder.dropped.read_bytes()).hexdigest() if recipe.train.preference else None,
    )
    if is_done(work, "train", inputs, work.folder.student / "config.json", work.folder.student_before):
        dismiss()
        return False
    base = admit_learning(recipe, work.ledger)
    started = time.monotonic()
    result = asdict(train(work.folder, recipe, work.watch, local, source=source))
    result |= {"weights": weights_digest(str(work.folder.student)), "decisions": sorted(grounds(work))}
    if source is not None and source.remote is not None:
        result["readings"] = work.ledger.billed(work.folder.root.name, READING)._asdict()
    work.ledger.append(
        "train_run",
        {
            "run": work.folder.root.name,
            "samples": curated["digest"],
            "transform": curated["transform"],
            "base": base,
            "settings": json.loads(recipe.train.model_dump_json()),
            "seed": recipe.run.seed,
            "weights": result["weights"],
            "steps": result["steps"],
            "targets": list(result["shards"]),
            **({"pairs": result["preference"]["digest"]} if result["preference"] else {}),
        },
    )
    mark(work, "train", inputs, max(result["seconds"], time.monotonic() - started), result)
    return True


def _source(work: Work) -> Source:
    """Where the probabilities are that the student learns."""

    folder, teacher = work.ledger.workspace.targets, work.teachers[0]
    settings, answers = work.recipe.train, []
    if settings.distil.targets == "answers":
        found = read_taught(work.folder) or []
        answers = [(one.binding, tuple(one.tally.shards)) for one in found if one.tally.shards]
    remote = readings(work) if reads_there(work.recipe) else None
    return Source(folder, answers, teacher.model, teacher.revision, remote)


def _recalled(source: Source) -> list[list[int]]:
    """What the training's inputs say of readings that were recalled; nothing where none were."""
    return [sorted(source.remote.recalled)] if source.remote and source.remote.recalled else []


def _evaluate(work: Work) -> bool:
    from stillhouse.evaluate import TeacherAnswers, evaluate

    recipe, trained = work.recipe, need(work, "train")
    started = time.monotonic()
    decision = gate.admit(recipe, recipe.teacher, "evaluation", work.ledger, datetime.now(UTC))
    questions, sampling, teacher = Asked(work.prompts.test), greedy(recipe), work.teachers[0]
    tally = asking.ask(
        questions,
        teacher,
        sampling,
        limits_of(recipe),
        work.ledger,
        work.folder.root.name,
        decision,
        work.watch,
        "evaluate",
    )
    texts, tokens, finish, leaves = {}, {}, {}, []
    for question, exchange in asking.answers(questions, teacher, sampling, work.ledger):
        if exchange is not None:
            texts[question.prompt_id] = exchange.completion.text
            usage = exchange.completion.usage
            tokens[question.prompt_id] = (usage.prompt_tokens, usage.completion_tokens)
            finish[question.prompt_id] = exchange.completion.finish_reason
            leaves.append(exchange.leaf)
    wanted = further_inputs(work.folder, recipe, _trained_from(work), work.scorers)
    inputs = digest(
        trained["weights"],
        wanted,
        leaves,
        [facts(p) for p in work.prompts.test],
        asked_of_the_test(recipe),
        recipe.run.seed,
    )
    outputs = (work.folder.evaluation, work.folder.predictions)
    # A scorer that is not shipped may have changed.
    own = any(BUILTIN.get(name) is not work.scorers[name] for name in work.prompts.scorers())
    fresh = not is_done(work, "evaluate", inputs, *outputs) or own
    tallies = [tally]
    if fresh:
        if wanted:
            none_recalled(work)
        failed = {question.prompt_id: question.reason for question in tally.failed}
        answers = TeacherAnswers(texts, tokens, failed, local_teacher(recipe), finish)
        further = train_further(
            work.folder,
            recipe,
            wanted,
            work.scorers,
            lambda folder, settings: train(
                folder,
                settings,
                work.watch,
                local_teacher(recipe),
                source=_source(work),
                dropped=work.folder.dropped,
            ),
        )
        prompts = tuple(work.prompts.test)
        with _judge(work) as judge:
            scores = evaluate(work.folder, recipe, prompts, answers, work.watch, work.scorers, judge, further)
        tallies += judge.tallies if judge else []
        predictions = hashlib.sha256(work.folder.predictions.read_bytes()).hexdigest()
        work.ledger.append(
            "evaluation",
            {
                "run": work.folder.root.name,
                "weights": trained["weights"],
                "predictions": predictions,
                "retention": scores["retention"],
                "verdict": {name: scores["verdict"][name] for name in ("margin", "ruling", "more")},
                "decision": decision,
            },
        )
        mark(
            work,
            "evaluate",
            inputs,
            time.monotonic() - started,
            {
                "predictions": predictions,
                "judge": judge and judge.bill(),
                **counts(work, *tallies, others=[judge.judge] if judge else []),
            },
        )
    _complete_evaluation(work, tallies)
    return fresh


def _trained_from(work: Work) -> str:
    """The digest of all that the training of the run depends on."""
    return str((read_marker(work.folder, "train") or {})["inputs"])


def _judge(work: Work) -> AbstractContextManager[Bench | None]:
    run, log = work.folder.root.name, work.folder.logs / "judge.log"
    return open_judge(work.recipe, work.ledger, run, log, work.watch)


def _complete_evaluation(work: Work, tested: Sequence[asking.Tally]) -> None:
    """Add what only the run knows: seconds of each stage when it was worked, what was asked now, and what it
    all is worth. Of the tallies the first is the teacher's."""
    from stillhouse.evaluate import economics, read_predictions

    evaluation = json.loads(work.folder.evaluation.read_bytes())
    asked, testing = need(work, "collect"), counts(work, *tested)
    markers = {stage: read_marker(work.folder, stage) or {} for stage in STAGES[:4]}
    seconds = {stage: round(marker.get("seconds", 0.0), 2) for stage, marker in markers.items()}
    evaluation["seconds"] = {**seconds, "total": round(sum(seconds.values()), 2)}
    evaluation["exchanges"] = {name: asked[name] + testing[name] for name in ("sent", "reused", "failed")}
    evaluation["exchanges"]["unknown"] = testing["unknown"]  # of the whole run
    if asked.get("focus") and (note := focus_note(asked["focus"])) and note not in evaluation["notes"]:
        evaluation["notes"].append(note)
    rows, recipe = read_predictions(work.folder.predictions), work.recipe
    read = work.ledger.billed(work.folder.root.name, READING)
    evaluation["economics"] = economics(
        rows,
        evaluation,
        known_costs(recipe, asked["cost"]["low"], tested[0].billed + (read.cost or 0.0), seconds),
        recipe.run.seed,
        recipe.evaluate.resamples,
    )
    evaluation["versions"] = {name: version(name) for name in ("stillhouse", "torch", "transformers")}
    write_json(work.folder.evaluation, evaluation)


_DO: dict[str, Callable[[Work], bool]] = {
    "collect": _collect,
    "curate": _curate,
    "train": _train,
    "evaluate": _evaluate,
    "release": decide_and_release,
}
