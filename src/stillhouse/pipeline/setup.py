"""What every command begins with: who is asked, and what can be known to fail before anybody is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, date, datetime
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from stillhouse import ask as asking
from stillhouse.collect import PromptSet
from stillhouse.collect.grow import check_growth
from stillhouse.curate.steps import check as check_filters
from stillhouse.errors import ModelError, UsageError
from stillhouse.ledger import Ledger
from stillhouse.models import preflight, source_folder, weights_digest
from stillhouse.models.reading import Reader, end_id, student_reader, teacher_reader, teacher_vocabulary
from stillhouse.models.vocabulary import Vocabulary
from stillhouse.pipeline.reading import reads_there
from stillhouse.prices import price_of
from stillhouse.recipe import Recipe, Teacher
from stillhouse.scoring import Scorer
from stillhouse.scoring import check as check_scorers
from stillhouse.scoring import scorers as installed_scorers
from stillhouse.terms import gate
from stillhouse.terms.asking import access_of, licence_texts, name_of
from stillhouse.terms.facts import OPEN
from stillhouse.terms.obligations import Settlement, must_be_possible, settled
from stillhouse.train import check_shared, launched

STAGES = ("collect", "curate", "train", "evaluate", "release")


class Admitted(NamedTuple):
    """Leaves of decisions: those that allow learning from each teacher, in order; the one that lets the first
    teacher invent prompts, where that is wanted; and all. And what a release will owe by them."""

    learned: list[int]
    seeds: int | None
    every: list[int]
    owed: Settlement


def admit_all(recipe: Recipe, ledger: Ledger) -> Admitted:
    """Hear what servers say of their terms, then ask the gate about each teacher and each use.

    Raises GateRefused at the first refusal, and where what these teachers ask for cannot be met by one
    release.
    """
    now = datetime.now(UTC)
    hear_terms(recipe, ledger)
    leaves = [(use, gate.admit(recipe, teacher, use, ledger, now)) for teacher, use in gate.uses_of(recipe)]
    learned = [leaf for use, leaf in leaves if use == "train_target"]
    base = gate.admit_base(recipe, ledger, now)
    of_the_base = [] if base is None else [base]
    bodies = [ledger.leaf(leaf).body for leaf in (*learned, *of_the_base)]
    owed = settled(recipe, bodies, licence_texts(recipe, ledger.workspace))
    must_be_possible(owed)
    return Admitted(
        learned,
        next((leaf for use, leaf in leaves if use == "prompt_seed"), None),
        [*(leaf for _, leaf in leaves), *of_the_base],
        owed,
    )


def hear_terms(recipe: Recipe, ledger: Ledger) -> None:
    """Let the gate know what the teachers' servers say of their terms today."""
    teachers = [teacher for teacher, _ in gate.uses_of(recipe) if access_of(teacher) not in OPEN]
    served = [teacher.endpoint for teacher in teachers if teacher.endpoint and not teacher.imported]
    asking.hear(served, ledger, today())


def admit_learning(recipe: Recipe, ledger: Ledger) -> int | None:
    """The leaf of the decision about the base; None where there is none. Raises GateRefused where one of the
    recipe's teachers, or who taught its base, may not be learned from today."""
    now = datetime.now(UTC)
    for teacher, use in gate.uses_of(recipe):
        if use == "train_target":
            gate.admit(recipe, teacher, use, ledger, now)
    return gate.admit_base(recipe, ledger, now)


@contextmanager
def open_teachers(recipe: Recipe, log: Path | None = None) -> Iterator[list[asking.Teacher]]:
    """[teacher] and [[teachers]] of the recipe, in this order, ready to be asked."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(open_teacher(settings, log))
            for settings in (recipe.teacher, *recipe.teachers)
        ]


@contextmanager
def open_teacher(settings: Teacher, log: Path | None = None) -> Iterator[asking.Teacher]:
    """A teacher, ready to be asked. A local one is served over HTTP on loopback, by a process of its own
    that starts with the first question and ends with this block."""
    known = price_of(settings, today())
    common: dict[str, Any] = {
        "key_env": settings.key_env,
        "system": settings.system,
        "upstream": settings.upstream,
        "price": None if known is None else known.price,
        "batch_price": None if known is None else known.batch,
    }
    if settings.imported:
        yield asking.Teacher(settings.model, "import", settings.revision, None, **common)
    elif settings.endpoint is not None:
        url = settings.endpoint
        endpoint = asking.logical_endpoint(url, settings.provider)
        yield asking.Teacher(settings.model, endpoint, settings.revision, lambda: url, **common)
    else:
        from stillhouse.models.serve import MAX_ROWS, background

        folder = source_folder(settings.model)
        with ExitStack() as stack:
            served: list[str] = []

            def serve() -> str:
                if not served:
                    served.append(stack.enter_context(background(settings.model, log)))
                return served[0]

            yield asking.Teacher(
                name_of(settings), "local", weights_digest(folder), serve, room=MAX_ROWS, **common
            )


def today() -> date:
    return datetime.now(UTC).date()


def check(recipe: Recipe, prompts: PromptSet, scorers: Mapping[str, Scorer] | None = None) -> None:
    """What can be known to fail before anybody is asked, and so paid. Raises UsageError or ModelError."""
    scorers = installed_scorers() if scorers is None else scorers
    check_scorers(prompts.scorers(), scorers)
    check_filters(recipe.curate, scorers)
    check_growth(recipe, prompts)
    check_shared(recipe, reads_there(recipe), launched()[1])
    _check_slice(recipe.evaluate.slice or (), prompts)
    for teacher in (recipe.teacher, *recipe.teachers):
        if recipe.collect.mode == "batch" and teacher.endpoint is None:
            raise UsageError(
                f"{teacher.model} cannot be asked in batches",
                "its answers are imported" if teacher.imported else "it is served here, without a Batch API",
                'set collect.mode = "online", or name an endpoint that has batches',
            )
        known = price_of(teacher, today())
        asking.check_cap(recipe.collect.max_cost, None if known is None else known.price)
        if known is not None and known.up_to is not None and recipe.collect.max_cost is not None:
            _check_lengths(teacher, prompts, known.up_to)
    if recipe.evaluate.judge is not None:
        known = price_of(recipe.evaluate.judge, today())
        asking.check_cap(recipe.collect.max_cost, None if known is None else known.price)
    if recipe.student.init in ("from_teacher", "config"):
        return
    folder = Path(source_folder(recipe.student.init))
    if folder.is_absolute() and not folder.is_dir():
        raise ModelError(f"there is no student at {folder}", "no such folder", "correct `student.init`")
    weights = any(path for kind in ("*.safetensors", "*.bin") for path in folder.glob(kind))
    if folder.is_dir() and not (weights and (folder / "config.json").is_file()):
        raise ModelError(
            f"{folder} is not a model",
            "it has no config.json, or no weights",
            "name a folder that `save_pretrained` wrote",
        )


def _check_slice(families: Sequence[str], prompts: PromptSet) -> None:
    """Raises UsageError for a family that no test prompt is of."""
    known = {prompt.family for prompt in prompts.test} if families else set()
    for name in families:
        if name not in known:
            raise UsageError(
                f"evaluate.slice names {name!r}, and no test prompt is of that family",
                f"families of the test prompts: {', '.join(sorted(known)[:12])}",
                "name families of the test prompts",
            )


def check_reachable(recipe: Recipe) -> None:
    """Raises UsageError for a teacher that only this machine can ask."""
    for teacher in (recipe.teacher, *recipe.teachers):
        if local_model(teacher) is not None:
            raise UsageError(
                f"{teacher.model} cannot be asked from other machines",
                "it has no endpoint, so it is served on this machine for this machine",
                "serve it where all can reach it and set `endpoint`, or collect without `--on ray`",
            )


def _check_lengths(teacher: Teacher, prompts: PromptSet, most: int) -> None:
    """Raises UsageError for a prompt that may be longer than the known price is for, under a cap."""
    for prompt in chain(prompts.train, prompts.further, prompts.test):
        question = asking.Question(prompt.id, prompt.messages, tools=prompt.tools)
        tokens = asking.worst_tokens(question, teacher.system)
        if tokens > most:
            raise UsageError(
                f"the prompt {prompt.id} may have {tokens:,} tokens; the known price is for {most:,}",
                f"{teacher.model} costs more for longer ones",
                "add [teacher.price] with the price for long prompts, or leave the prompt out",
            )


def student_reading(recipe: Recipe) -> tuple[Reader, list[Vocabulary | None]] | None:
    """How the student will read, and what the tokens of each teacher spell (None where its files are not
    here); None where no probabilities are asked for.

    Raises UsageError or ModelError when the student's tokenizer cannot be had.
    """
    if recipe.collect.top_logprobs is None:
        return None
    need_extra("train", ("transformers",))
    student = student_reader(recipe.student, local_teacher(recipe))
    student.vocabulary()  # these two fail now, and not when all is asked
    end_id(student)
    sources = [local_model(teacher) for teacher in (recipe.teacher, *recipe.teachers)]
    return student, [None if source is None else teacher_vocabulary(source) for source in sources]


def check_reading(recipe: Recipe) -> str:
    """That the student can learn from what the teacher will tell, in words; empty where nothing but text is
    learned, or a server tells the rest.

    Raises UsageError or ModelError where it cannot, before anybody is asked and before anything is trained.
    """
    source, train = local_teacher(recipe), recipe.train
    by_answers = train.objective == "distil" and train.distil.targets == "answers"
    if train.objective == "sequence" or by_answers or source is None:
        return ""
    if find_spec("transformers") is None:
        return "not compared, as the extra `train` is not installed"
    chunks = train.objective == "distil" and train.distil.unit == "chunk"
    compare = preflight.check_chunks if chunks else preflight.check
    teacher = teacher_reader(source)
    own, *_ = [
        compare(student_reader(student, source), teacher)
        for student in (recipe.student, *(recipe.evaluate.students or ()))
    ]
    return own


def local_teacher(recipe: Recipe) -> str | None:
    """The teacher's folder, None for one that is asked elsewhere."""
    return local_model(recipe.teacher)


def local_model(teacher: Teacher) -> str | None:
    return None if teacher.endpoint or teacher.imported else source_folder(teacher.model)


def need_extra(extra: str, modules: Sequence[str]) -> None:
    """Raises UsageError when a module of an extra is not installed."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"not installed: {', '.join(missing)}",
            f"this needs the extra `{extra}`",
            f"pip install 'stillhouse[{extra}]'",
        )


def greedy(recipe: Recipe) -> asking.Sampling:
    """Teacher and student are compared by their likeliest answers, whatever the samples were drawn at."""
    return asking.Sampling(0.0, 1.0, recipe.evaluate.max_tokens or recipe.collect.max_tokens)
